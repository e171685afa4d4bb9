//! The tables of `docs/memory.md` are what `examples/c/memory.c` prints.

#![cfg(all(unix, feature = "cuda"))]

mod harness;

use std::path::Path;
use std::process::Command;

use harness::toolchain::{self, Language, WARNINGS, compiler, root};

const BEGIN: &str =
    "<!-- Printed by examples/c/memory.c: `make memory-table` writes it here. -->\n\n";
const END: &str = "<!-- End of what it printed. -->\n";

fn printed() -> String {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("memory");
    let mut command = compiler(Language::C);
    command
        .arg("-std=c99")
        .args(WARNINGS)
        .arg("-I")
        .arg(root().join("include"))
        .arg(root().join("examples/c/memory.c"))
        .arg(toolchain::shared_library())
        .arg("-o")
        .arg(&program);
    toolchain::run(&mut command);
    toolchain::run(&mut Command::new(program))
}

/// `MOFO_WRITE_MEMORY_TABLE=1` (that is `make memory-table`) writes the tables instead of comparing.
#[test]
fn the_committed_tables_are_current() {
    let path = root().join("docs/memory.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("where the tables begin");
    let (committed, after) = rest.split_once(END).expect("where the tables end");
    let printed = printed() + "\n";
    if std::env::var_os("MOFO_WRITE_MEMORY_TABLE").is_some() {
        std::fs::write(&path, [before, BEGIN, &printed, END, after].concat()).unwrap();
        return;
    }
    assert!(
        committed == printed,
        "the tables of docs/memory.md are stale: run `make memory-table` and commit it. They should be\n\n{printed}"
    );
}
