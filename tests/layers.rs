//! Each layer of the library knows only those to its right.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// From left to right; modules side by side do not know each other.
const LAYERS: &[&[&str]] = &[
    &["ffi"],
    &["checkpoint"],
    &["optimizer"],
    &["backend"],
    &["cpu", "cuda"],
    &["job"],
    &["test_paths"],
    &["rule"],
    &["buffer", "memory", "float_environment"],
    &["config"],
    &["error"],
];

/// The devices, and the one that may speak to them.
const DEVICES: &[&str] = &["cpu", "cuda"];
const DOOR: &str = "backend";

struct Source {
    /// In `src/`.
    path: PathBuf,
    /// The module at the top of the crate that it belongs to; `lib` is the crate itself.
    module: String,
    /// How many modules lie between it and the crate's root, its own included.
    depth: usize,
    /// Without comments, and without what is compiled for tests alone.
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let mut of_tests = BTreeSet::new();
    let mut sources = Vec::new();
    for path in paths {
        let (text, test_modules) = product(&std::fs::read_to_string(&path).unwrap());
        let path = path.strip_prefix(&root).unwrap().to_owned();
        let mut modules = path.with_extension("");
        if modules.ends_with("mod") {
            modules.pop();
        }
        of_tests.extend(test_modules.iter().map(|name| {
            let parent = if modules == Path::new("lib") {
                Path::new("")
            } else {
                &modules
            };
            parent.join(name)
        }));
        let depth = modules.components().count();
        let module = modules.iter().next().unwrap().to_str().unwrap().to_owned();
        sources.push((
            modules,
            Source {
                path,
                module,
                depth,
                text,
            },
        ));
    }
    assert!(sources.len() > 20, "{} sources", sources.len());
    sources
        .into_iter()
        .filter(|(modules, _)| !of_tests.contains(modules))
        .map(|(_, source)| source)
        .collect()
}

/// A source without comments and without its inline modules of tests; and the names of those in files of their own.
fn product(text: &str) -> (String, Vec<String>) {
    let mut kept = String::new();
    let mut test_modules = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_module = |line: &&str| line.starts_with("mod ") || line.contains(" mod ");
        if line == "#[cfg(test)]"
            && let Some(module) = lines.next_if(is_module)
        {
            match module.strip_suffix(';') {
                Some(module) => {
                    test_modules.extend(module.split(' ').next_back().map(String::from))
                }
                None => while lines.next().is_some_and(|line| line != "}") {},
            }
            continue;
        }
        kept.push_str(line.split("//").next().unwrap_or_default());
        kept.push('\n');
    }
    (kept, test_modules)
}

/// The modules at the top of the crate that a source `depth` modules below it refers to, as far as these are `modules`.
fn references(text: &str, depth: usize, modules: &BTreeSet<&str>) -> BTreeSet<String> {
    let climbs = "super::".repeat(depth);
    let mut found = BTreeSet::new();
    for prefix in ["crate::", &climbs] {
        for (at, _) in text.match_indices(prefix) {
            if text[..at].ends_with("super::") {
                continue;
            }
            let rest = &text[at + prefix.len()..];
            let heads = match rest.strip_prefix('{') {
                Some(group) => heads_of_group(group),
                None => vec![rest],
            };
            for head in heads {
                let end = head.find(|c: char| !c.is_alphanumeric() && c != '_');
                let name = &head[..end.unwrap_or(head.len())];
                if modules.contains(name) {
                    found.insert(name.to_owned());
                }
            }
        }
    }
    found
}

/// What the paths of a `{…}` begin with; the opening brace was read.
fn heads_of_group(group: &str) -> Vec<&str> {
    let mut heads = vec![group.trim_start()];
    let mut open = 1;
    for (at, c) in group.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            ',' if open == 1 => heads.push(group[at + 1..].trim_start()),
            _ => {}
        }
        if open == 0 {
            break;
        }
    }
    heads
}

fn all_modules() -> BTreeSet<&'static str> {
    LAYERS.iter().copied().flatten().copied().collect()
}

/// How far to the right a module is.
fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Whether a module may refer to another one.
fn may_know(one: &str, other: &str) -> bool {
    let is_right = layer_of(one) < layer_of(other);
    one == other || is_right && (!DEVICES.contains(&other) || one == DOOR)
}

#[test]
fn no_arrow_runs_back_and_only_the_backend_knows_the_devices() {
    let modules = all_modules();
    let mut arrows = BTreeSet::new();
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.module != "lib") {
        let (path, module) = (&source.path, &source.module);
        assert!(
            layer_of(module).is_some(),
            "{} has no layer",
            path.display()
        );
        for other in references(&source.text, source.depth, &modules) {
            if !may_know(module, &other) {
                wrong.push(format!("src/{}: {module} → {other}", path.display()));
            }
            arrows.insert((module.clone(), other));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let expected = [
        ("ffi", "optimizer"),
        ("optimizer", "backend"),
        ("backend", "cpu"),
        ("cpu", "job"),
        ("job", "rule"),
    ];
    for (one, other) in expected {
        assert!(
            arrows.contains(&(one.to_owned(), other.to_owned())),
            "{one} → {other} is not seen"
        );
    }
}

/// Refuses a text in the sources of modules for which `may_have` is false.
fn check_only_in(text: &str, may_have: impl Fn(&str) -> bool) {
    let sources = sources();
    let with = sources.iter().filter(|source| source.text.contains(text));
    let (rightly, wrongly): (Vec<&Source>, Vec<_>) =
        with.partition(|source| may_have(&source.module));
    let wrongly: Vec<_> = wrongly
        .iter()
        .map(|source| source.path.display().to_string())
        .collect();
    assert!(wrongly.is_empty(), "{text} is in {}", wrongly.join(", "));
    assert!(!rightly.is_empty(), "{text} is nowhere");
}

#[test]
fn only_cuda_calls_the_driver() {
    check_only_in("cudarc", |module| module == "cuda");
}

#[test]
fn only_ffi_exports_functions() {
    check_only_in("no_mangle", |module| module == "ffi");
    check_only_in("#[unsafe(", |module| module == "ffi");
}

#[test]
fn nothing_left_of_the_backend_depends_on_whether_cuda_is_compiled_in() {
    let door = layer_of(DOOR);
    check_only_in("feature = \"cuda\"", |module| {
        module == "lib" || layer_of(module) >= door
    });
}

#[test]
fn a_reference_is_seen_however_it_is_written() {
    let modules = BTreeSet::from(["backend", "cpu", "cuda", "ffi", "job"]);
    let cases: [(&str, usize, &[&str]); 8] = [
        ("use crate::ffi::mofo_step_report;", 1, &["ffi"]),
        (
            "let size = size_of::<crate::ffi::mofo_step_report>();",
            2,
            &["ffi"],
        ),
        (
            "use crate::{cpu::{Cpu, tier}, error::{Result, fail},\n    cuda};",
            1,
            &["cpu", "cuda"],
        ),
        ("use super::cpu::Cpu;", 1, &["cpu"]),
        ("use super::cpu::Cpu;", 2, &[]),
        (
            "use super::super::{backend, job::Job};",
            2,
            &["backend", "job"],
        ),
        ("use super::super::backend;", 1, &[]),
        ("use crate::job_list;", 1, &[]),
    ];
    for (text, depth, expected) in cases {
        let found = references(text, depth, &modules);
        let found: Vec<_> = found.iter().map(String::as_str).collect();
        assert_eq!(found, expected, "{text}");
    }
    assert!(!may_know("job", "ffi") && !may_know("optimizer", "cpu") && !may_know("cpu", "cuda"));
    assert!(may_know("backend", "cpu") && may_know("ffi", "error") && may_know("cpu", "cpu"));
}

#[test]
fn what_is_compiled_for_tests_alone_may_use_the_library_as_its_users_do() {
    let text = "use crate::job;\n// crate::ffi\n#[cfg(test)]\nmod tests {\n    use crate::Optimizer;\n}\nlet x = 1;\n";
    assert_eq!(product(text).0, "use crate::job;\n\nlet x = 1;\n");
    assert_eq!(
        product("#[cfg(test)]\npub(super) mod checks;\n").1,
        ["checks"]
    );
}
