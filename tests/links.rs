//! Every relative link of every Markdown file points at a file that is there, and at a heading of it; and the book
//! has every page.

mod harness;
mod markdown;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use harness::toolchain::root;
use markdown::{Document, documents, normal};

/// What is wrong with a link of `document`, if anything is.
fn defect(
    document: &Document,
    target: &str,
    anchors: &BTreeMap<PathBuf, BTreeSet<String>>,
) -> Option<String> {
    if target.starts_with("https://") {
        return None;
    }
    if target.contains("://") {
        return Some("neither relative nor https".to_owned());
    }
    let (file, anchor) = match target.split_once('#') {
        Some((file, anchor)) => (file, Some(anchor)),
        None => (target, None),
    };
    let path = if file.is_empty() {
        document.path.clone()
    } else {
        match normal(&document.path.parent().unwrap().join(file)) {
            Some(path) => path,
            None => return Some("leaves the repository".to_owned()),
        }
    };
    if !root().join(&path).exists() {
        return Some(format!("there is no {}", path.display()));
    }
    let anchor = anchor?;
    match anchors.get(&path) {
        None => Some(format!("{} has no headings to point at", path.display())),
        Some(names) if !names.contains(anchor) => {
            Some(format!("{} has no heading #{anchor}", path.display()))
        }
        Some(_) => None,
    }
}

#[test]
fn relative_links_and_anchors_resolve() {
    let documents = documents(root());
    let anchors = documents
        .iter()
        .map(|document| (document.path.clone(), document.anchors()))
        .collect();
    let (mut defects, mut links) = (Vec::new(), 0);
    for document in &documents {
        for link in document.links() {
            links += 1;
            if let Some(what) = defect(document, &link.target, &anchors) {
                let place = format!("{}:{}", document.path.display(), link.line);
                defects.push(format!("{place}: {}: {what}", link.target));
            }
        }
        for (line, html) in document.html() {
            if html.contains("href=") || html.contains("src=") {
                let place = format!("{}:{line}", document.path.display());
                defects.push(format!("{place}: a link in HTML, which nothing checks"));
            }
        }
    }
    assert!(
        links > 50,
        "only {links} links in {} files",
        documents.len()
    );
    assert!(defects.is_empty(), "{}", defects.join("\n"));
    println!("{links} links in {} files", documents.len());
}

/// Where a path in backquotes may start, besides the document's own folder.
const ROOTS: [&str; 4] = ["", "src", "src/cpu", "tests"];
/// Files of others.
const ELSEWHERE: [&str; 1] = ["open-instruct-main/open_instruct/algorithms_MoFO.py"];
const EXTENSIONS: [&str; 11] = [
    "rs", "c", "h", "cpp", "hpp", "cu", "cuh", "py", "md", "toml", "sh",
];

#[test]
fn files_named_in_backquotes_are_there() {
    let (mut missing, mut files) = (Vec::new(), 0);
    for document in documents(root()) {
        for (line, name) in document.quoted() {
            let is_word = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
            let extension = Path::new(&name).extension().and_then(|e| e.to_str());
            let is_file = name.contains('/')
                && name.chars().all(is_word)
                && extension.is_some_and(|e| EXTENSIONS.contains(&e));
            if !is_file {
                continue;
            }
            if ELSEWHERE.contains(&name.as_str()) {
                continue;
            }
            files += 1;
            let own = document.path.parent().unwrap();
            let mut folders = ROOTS.iter().map(Path::new).chain([own]);
            if !folders.any(|folder| root().join(folder).join(&name).exists()) {
                missing.push(format!("{}:{line}: {name}", document.path.display()));
            }
        }
    }
    assert!(files > 20, "only {files} files are named");
    assert!(missing.is_empty(), "not there:\n{}", missing.join("\n"));
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let documents = documents(root());
    let pages: BTreeSet<PathBuf> = documents
        .iter()
        .map(|document| document.path.clone())
        .filter(|path| path.parent() == Some(Path::new("docs")) && !path.ends_with("SUMMARY.md"))
        .collect();
    let summary = documents
        .iter()
        .find(|document| document.path == Path::new("docs/SUMMARY.md"))
        .expect("docs/SUMMARY.md");
    let listed: BTreeSet<PathBuf> = summary
        .links()
        .iter()
        .map(|link| Path::new("docs").join(&link.target))
        .collect();
    assert_eq!(pages, listed);
}
