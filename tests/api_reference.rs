//! `docs/api.md` is what is made of `include/mofo.h`: the same declarations and texts, by subject, with links.

mod harness;
#[path = "api_reference/header.rs"]
mod header;

use std::collections::BTreeMap;

use harness::toolchain::root;
use header::{Field, Header, Item, Kind};

/// What stands under a subject.
enum Entry {
    /// A struct or a function.
    Of(&'static str),
    /// Constants of that name or, with `*` at the end, of that beginning, in a table with a heading.
    Constants(&'static str, &'static [&'static str]),
}
use Entry::{Constants, Of};

struct Subject {
    title: &'static str,
    /// Where more is said.
    guide: &'static str,
    entries: &'static [Entry],
}

/// Everything in the header has one place here.
const SUBJECTS: &[Subject] = &[
    Subject {
        title: "Version and status",
        guide: "[Errors](c.md#errors) in the guide.",
        entries: &[
            Constants("ABI version", &["MOFO_ABI_VERSION"]),
            Of("mofo_version"),
            Of("mofo_abi_version"),
            Constants("Statuses", &["MOFO_OK", "MOFO_SKIPPED", "MOFO_ERROR_*"]),
            Of("mofo_status_name"),
            Of("mofo_last_error"),
        ],
    },
    Subject {
        title: "Options",
        guide: "[Choosing settings](settings.md) says what to set them to.",
        entries: &[
            Of("mofo_options"),
            Of("mofo_options_init"),
            Constants("Inherited settings", &["MOFO_INHERIT"]),
            Constants("Element types", &["MOFO_DTYPE_*"]),
            Constants("Filters", &["MOFO_FILTER_*"]),
            Constants("Scopes of weight decay", &["MOFO_WEIGHT_DECAY_*"]),
            Constants("Rounding", &["MOFO_ROUNDING_*"]),
            Constants("CPU tiers", &["MOFO_CPU_TIER_*"]),
            Of("mofo_parallel_for"),
            Of("mofo_task"),
        ],
    },
    Subject {
        title: "Optimizers",
        guide: "[Using mofo from C](c.md) goes through their life.",
        entries: &[
            Of("mofo_optimizer"),
            Of("mofo_create"),
            Of("mofo_destroy"),
            Of("mofo_memory"),
            Of("mofo_memory_info"),
            Of("mofo_cpu_tier"),
        ],
    },
    Subject {
        title: "Tensors",
        guide: "[Tensors and buffers](c.md#tensors-and-buffers) in the guide.",
        entries: &[
            Of("mofo_tensor"),
            Of("mofo_tensor_init"),
            Of("mofo_add_tensor"),
            Of("mofo_bind_tensor"),
            Of("mofo_find_tensor"),
            Of("mofo_remove_tensor"),
        ],
    },
    Subject {
        title: "Steps",
        guide: "[In a training engine](engines.md) has clipping, accumulation and the rest; [Numerics](numerics.md) what is computed.",
        entries: &[
            Of("mofo_step"),
            Of("mofo_step_args"),
            Of("mofo_step_args_init"),
            Of("mofo_step_report"),
            Of("mofo_wait"),
            Of("mofo_grad_norm"),
        ],
    },
    Subject {
        title: "State",
        guide: "[Memory](memory.md) has the figures for whole models.",
        entries: &[
            Of("mofo_state_size"),
            Of("mofo_state_sizes"),
            Of("mofo_tensor_state"),
            Of("mofo_tensor_info"),
            Of("mofo_set_step_count"),
        ],
    },
    Subject {
        title: "Checkpoints",
        guide: "[Checkpoints](checkpoints.md) has the format, and what is restored.",
        entries: &[
            Of("mofo_save"),
            Of("mofo_load"),
            Of("mofo_save_size"),
            Of("mofo_save_to_memory"),
            Of("mofo_load_from_memory"),
            Of("mofo_load_with"),
            Of("mofo_load_from_memory_with"),
            Of("mofo_load_args"),
            Of("mofo_load_args_init"),
            Of("mofo_load_report"),
        ],
    },
    Subject {
        title: "CUDA",
        guide: "[CUDA](cuda.md) has the rules of a step on a GPU.",
        entries: &[
            Constants("Devices", &["MOFO_DEVICE_*"]),
            Of("mofo_cuda_available"),
        ],
    },
];

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

struct Reference<'a> {
    header: &'a Header,
    /// For each name of the header, the heading that it stands under.
    anchors: BTreeMap<&'a str, String>,
}

impl<'a> Reference<'a> {
    fn new(header: &'a Header) -> Self {
        let mut anchors = BTreeMap::new();
        let entries = || SUBJECTS.iter().flat_map(|subject| subject.entries);
        for item in &header.items {
            let constant = matches!(item.kind, Kind::Constant { .. });
            let places: Vec<String> = entries()
                .filter_map(|entry| match entry {
                    Of(name) => (!constant && *name == item.name).then(|| (*name).to_owned()),
                    Constants(title, patterns) => (constant
                        && patterns.iter().any(|pattern| matches(pattern, &item.name)))
                    .then(|| title.to_lowercase().replace(' ', "-")),
                })
                .collect();
            assert_eq!(
                places.len(),
                1,
                "{} has one place in SUBJECTS: {places:?}",
                item.name
            );
            anchors.insert(item.name.as_str(), places[0].clone());
        }
        Self { header, anchors }
    }

    fn item(&self, name: &str) -> &Item {
        let found = self.header.items.iter().find(|item| item.name == name);
        found.unwrap_or_else(|| panic!("the header has no {name}"))
    }

    /// Makes links of the names in backquotes.
    fn linked(&self, text: &str) -> String {
        let mut linked = String::new();
        for (i, part) in text.split('`').enumerate() {
            if i % 2 == 0 {
                linked += part;
                continue;
            }
            // A field's name follows that of its struct.
            match self.anchors.get(part.split('.').next().unwrap()) {
                Some(anchor) => linked += &format!("[`{part}`](#{anchor})"),
                None => linked += &format!("`{part}`"),
            }
        }
        linked
    }

    /// Paragraphs, their lines joined.
    fn paragraphs(&self, doc: &str) -> Vec<String> {
        doc.split("\n\n")
            .map(|paragraph| {
                let text = paragraph
                    .lines()
                    .map(str::trim)
                    .collect::<Vec<_>>()
                    .join(" ");
                ["Errors:", "Requires:"]
                    .iter()
                    .fold(self.linked(&text), |text, word| {
                        match text.strip_prefix(word) {
                            Some(rest) => format!("**{word}**{rest}"),
                            None => text,
                        }
                    })
            })
            .collect()
    }

    fn field(&self, field: &Field) -> String {
        let Field {
            declaration,
            name,
            doc,
        } = field;
        let ty = declaration.strip_suffix(name.as_str()).unwrap().trim();
        let doc = self.paragraphs(doc).join(" ");
        format!("- **`{name}`**, `{ty}`. {doc}\n")
    }

    fn constants(&self, title: &str, patterns: &[&str]) -> String {
        let mut text = format!("### {title}\n\n| constant | value | meaning |\n|---|---|---|\n");
        for item in &self.header.items {
            let Kind::Constant { value } = &item.kind else {
                continue;
            };
            if patterns.iter().any(|pattern| matches(pattern, &item.name)) {
                let doc = self.paragraphs(&item.doc).join(" ").replace('|', "\\|");
                text += &format!("| `{}` | {value} | {doc} |\n", item.name);
            }
        }
        text + "\n"
    }

    fn entry(&self, name: &str) -> String {
        let item = self.item(name);
        let mut text = format!("### {name}\n\n");
        if let Kind::Declaration { text: declaration } = &item.kind {
            text += &format!("```c,in=declaration\n{declaration}\n```\n\n");
        }
        text += &self.paragraphs(&item.doc).join("\n\n");
        text += "\n\n";
        if let Kind::Struct { fields } = &item.kind {
            text += &fields
                .iter()
                .map(|field| self.field(field))
                .collect::<String>();
            text += "\n";
        }
        text
    }

    /// The header's own words about all calls.
    fn conventions(&self) -> String {
        let (_, list) = self
            .header
            .preamble
            .split_once("Conventions of every call:")
            .unwrap();
        let mut text = String::new();
        for line in list.lines().filter(|line| !line.is_empty()) {
            if line.starts_with("- ") {
                text.push('\n');
            } else if !text.ends_with(' ') {
                text.push(' ');
            }
            text += line.trim();
        }
        text.trim().to_owned()
    }

    fn write(&self) -> String {
        let mut text = String::from(
            "<!-- Generated by `make api-reference` from include/mofo.h. Do not edit. -->\n\n# C API reference\n\n\
             Everything in [`include/mofo.h`](../include/mofo.h), in its words, by subject. [Using mofo from C](c.md) is \
             the guide.\n\n## Conventions\n\n",
        );
        text += &self.conventions();
        text += "\n\n## Contents\n\n";
        for Subject { title, entries, .. } in SUBJECTS {
            let names: Vec<String> = entries
                .iter()
                .map(|entry| match entry {
                    Of(name) => format!("[`{name}`](#{name})"),
                    Constants(title, _) => {
                        format!("[{}](#{})", title, title.to_lowercase().replace(' ', "-"))
                    }
                })
                .collect();
            text += &format!("- **{title}**: {}\n", names.join(", "));
        }
        for Subject {
            title,
            guide,
            entries,
        } in SUBJECTS
        {
            text += &format!("\n## {title}\n\n{guide}\n\n");
            for entry in *entries {
                text += &match entry {
                    Of(name) => self.entry(name),
                    Constants(title, patterns) => self.constants(title, patterns),
                };
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }
}

/// `MOFO_WRITE_API_REFERENCE=1` (that is `make api-reference`) writes the file instead of comparing.
#[test]
fn the_committed_reference_is_current() {
    let header = std::fs::read_to_string(root().join("include/mofo.h")).unwrap();
    let header = header::parse(&header);
    let generated = Reference::new(&header).write();
    let path = root().join("docs/api.md");
    if std::env::var_os("MOFO_WRITE_API_REFERENCE").is_some() {
        std::fs::write(&path, generated).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "docs/api.md is stale: run `make api-reference` and commit it"
    );
}

/// Nothing that a reader can look for is left out, and every place in `SUBJECTS` has something.
#[test]
fn every_name_of_the_header_is_in_the_reference() {
    let text = std::fs::read_to_string(root().join("include/mofo.h")).unwrap();
    let header = header::parse(&text);
    let generated = Reference::new(&header).write();
    // Counted by other means than the parser's.
    let functions = text
        .lines()
        .filter(|line| line.contains(" mofo_") || line.contains("*mofo_"));
    let functions = functions.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let functions = functions.filter(|line| line.contains('(') && !line.starts_with("typedef"));
    let mut count = 0;
    for line in functions {
        let name = line
            .split('(')
            .next()
            .unwrap()
            .rsplit([' ', '*'])
            .next()
            .unwrap();
        assert!(generated.contains(&format!("\n### {name}\n")), "{name}");
        count += 1;
    }
    assert!(count > 20, "only {count} functions");
    for line in text
        .lines()
        .filter_map(|line| line.strip_prefix("#define MOFO_"))
    {
        if let Some((name, value)) = line.split_once(' ') {
            assert!(
                generated.contains(&format!("\n| `MOFO_{name}` | {value} | ")),
                "{name}"
            );
        }
    }
    for subject in SUBJECTS {
        for entry in subject.entries {
            if let Constants(title, patterns) = entry {
                for pattern in *patterns {
                    let found = header.items.iter().any(|item| matches(pattern, &item.name));
                    assert!(found, "{title}: no constant is {pattern}");
                }
            }
        }
    }
}
