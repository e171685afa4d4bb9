//! The shared library exports the functions that `include/mofo.h` declares, and nothing else.

mod harness;

use std::collections::BTreeSet;
use std::process::Command;

use harness::toolchain::{exists, root, run, say_skipped, shared_library};

/// Every name that is declared as a function: `mofo_…(`, not in a comment, not in a pointer's type.
fn declared() -> BTreeSet<String> {
    let header = std::fs::read_to_string(root().join("include/mofo.h")).unwrap();
    let mut code = String::new();
    let mut rest = header.as_str();
    while let Some((before, after)) = rest.split_once("/*") {
        code += before;
        rest = after.split_once("*/").expect("a comment ends").1;
    }
    code += rest;
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("mofo_") {
        let name: String = code[at..]
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        if code[at + name.len()..].starts_with('(') {
            names.insert(name);
        }
    }
    names
}

fn exported() -> BTreeSet<String> {
    run(Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(shared_library()))
    .lines()
    .filter_map(|line| line.split_whitespace().last())
    .map(str::to_owned)
    .collect()
}

#[test]
fn the_library_exports_what_the_header_declares() {
    if !cfg!(target_os = "linux") || !exists("nm") {
        say_skipped("symbols: needs nm and an ELF library");
        return;
    }
    let declared = declared();
    assert!(declared.contains("mofo_step") && declared.len() > 15);
    assert_eq!(exported(), declared);
}
