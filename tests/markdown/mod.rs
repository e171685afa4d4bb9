//! The project's Markdown files, as far as the tests read them: fenced code, links, and what a link can point at.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, LinkType, Options, Parser, Tag, TagEnd};

/// One Markdown file.
pub struct Document {
    /// Relative to the repository.
    pub path: PathBuf,
    text: String,
}

/// A fenced block of code. Its info string is a language and attributes, separated by commas: `c,in=step`.
#[derive(Debug)]
pub struct Block {
    pub path: PathBuf,
    /// Of its first line of code, from 1.
    pub line: usize,
    pub language: String,
    /// Those without a value are empty.
    pub attributes: BTreeMap<String, String>,
    pub code: String,
}

/// A link or an image.
#[derive(Debug)]
pub struct Link {
    pub line: usize,
    pub target: String,
}

/// Every Markdown file of the repository, in order of their paths.
pub fn documents(root: &Path) -> Vec<Document> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            // What is built, and what is not the project's: hidden folders, Python's environments.
            let foreign = name.starts_with('.')
                || ["target", "build", "node_modules"].contains(&name.as_str())
                || path.join("pyvenv.cfg").exists();
            if path.is_dir() && !path.is_symlink() {
                if !foreign {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(Document {
                    text: std::fs::read_to_string(&path).unwrap(),
                    path: path.strip_prefix(root).unwrap().to_owned(),
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

impl Block {
    /// Where the block is, for a message.
    pub fn place(&self) -> String {
        format!("{}:{}", self.path.display(), self.line)
    }

    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }
}

impl Document {
    fn events(&self) -> impl Iterator<Item = (Event<'_>, Range<usize>)> {
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
        // A reference that nothing defines, `[text][name]`, comes out as a link to nowhere instead of as text.
        let broken = |link: pulldown_cmark::BrokenLink<'_>| {
            matches!(link.link_type, LinkType::Reference | LinkType::Collapsed)
                .then(|| ("undefined".into(), "".into()))
        };
        Parser::new_with_broken_link_callback(&self.text, options, Some(broken)).into_offset_iter()
    }

    fn line(&self, offset: usize) -> usize {
        1 + self.text[..offset].matches('\n').count()
    }

    /// The fenced blocks. A block without a language, and so an indented one too, is refused: nothing could test it.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut inside = false;
        for (event, range) in self.events() {
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let (path, line) = (self.path.clone(), self.line(range.start) + 1);
                    let CodeBlockKind::Fenced(info) = kind else {
                        panic!(
                            "{}:{}: code that is indented, not fenced, says no language",
                            path.display(),
                            line - 1
                        );
                    };
                    let mut words = info.split(',').map(str::trim);
                    let language = words.next().unwrap_or_default().to_owned();
                    assert!(
                        !language.is_empty(),
                        "{}:{line}: a block without a language",
                        path.display()
                    );
                    let attributes = words
                        .map(|word| word.split_once('=').unwrap_or((word, "")))
                        .map(|(name, value)| (name.to_owned(), value.to_owned()))
                        .collect();
                    let code = String::new();
                    blocks.push(Block {
                        path,
                        line,
                        language,
                        attributes,
                        code,
                    });
                    inside = true;
                }
                Event::End(TagEnd::CodeBlock) => inside = false,
                Event::Text(text) if inside => blocks.last_mut().unwrap().code.push_str(&text),
                _ => {}
            }
        }
        blocks
    }

    /// All links and images, those to other machines included.
    pub fn links(&self) -> Vec<Link> {
        self.events()
            .filter_map(|(event, range)| match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    Some(Link {
                        line: self.line(range.start),
                        target: dest_url.into_string(),
                    })
                }
                _ => None,
            })
            .collect()
    }

    /// What stands in backquotes in running text.
    pub fn quoted(&self) -> Vec<(usize, String)> {
        self.events()
            .filter_map(|(event, range)| match event {
                Event::Code(text) => Some((self.line(range.start), text.into_string())),
                _ => None,
            })
            .collect()
    }

    /// HTML, which the tests do not look into.
    pub fn html(&self) -> Vec<(usize, String)> {
        self.events()
            .filter_map(|(event, range)| match event {
                Event::Html(text) | Event::InlineHtml(text) => {
                    Some((self.line(range.start), text.into_string()))
                }
                _ => None,
            })
            .collect()
    }

    /// What `#...` can name: the headings, as forges and mdBook make names of them.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut anchors = BTreeSet::new();
        let mut heading: Option<String> = None;
        for (event, _) in self.events() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::End(TagEnd::Heading(_)) => {
                    let name = slug(&heading.take().unwrap());
                    let mut unique = name.clone();
                    let mut count = 0;
                    while !anchors.insert(unique.clone()) {
                        count += 1;
                        unique = format!("{name}-{count}");
                    }
                }
                _ => {}
            }
        }
        anchors
    }
}

/// Lower case, blanks as hyphens, of everything else only letters, digits, hyphens and underscores.
pub fn slug(heading: &str) -> String {
    heading
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            c if c.is_alphanumeric() => Some(c),
            _ => None,
        })
        .flat_map(char::to_lowercase)
        .collect()
}

/// A path without `.` and `..`; none if it leaves the repository.
pub fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !normal.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(normal)
}
