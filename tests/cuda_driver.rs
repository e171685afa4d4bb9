//! The emulated CUDA driver of `tests/cuda/driver`, on which the tests of the CUDA backend stand.
//!
//! - `MOFO_SANITIZE=address,undefined` compiles it and its test with these sanitizers.

#![cfg(target_os = "linux")]

mod harness;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::emulated_cuda::{driver_with, files, sanitizer_flags, sanitizers, sources};
use harness::toolchain::{Language, WARNINGS, compiler, exists, root, run, say_skipped};

fn selftest() -> PathBuf {
    sources().join("selftest")
}

fn kernels() -> PathBuf {
    selftest().join("selftest.cu")
}

#[test]
fn does_what_cuda_does() {
    let driver = driver_with(&kernels(), sanitizers().as_deref());
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = folder.path().join("selftest");
    let mut command = compiler(Language::Cpp);
    command.arg("-std=c++17").args(WARNINGS);
    if let Some(names) = sanitizers() {
        command.args(sanitizer_flags(&names));
    }
    command
        .arg("-I")
        .arg(root().join("tests/c"))
        .arg("-I")
        .arg(sources())
        .args(files(&selftest(), &["cpp"]))
        .arg("-L")
        .arg(&driver)
        .args(["-lcuda", "-lpthread", "-o"])
        .arg(&program);
    run(&mut command);
    run(Command::new(&program).env("LD_LIBRARY_PATH", &driver));
}

/// The names that a header declares as functions: `prefix…(`, at the end of a declaration's type.
fn declared(header: &Path, prefix: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(header).unwrap();
    text.lines()
        .filter(|line| line.ends_with(';') || line.ends_with(','))
        .filter_map(|line| line.split_once('('))
        .filter_map(|(before, _)| before.split_whitespace().last())
        .filter(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .collect()
}

#[test]
fn exports_what_its_headers_declare() {
    if !exists("nm") {
        say_skipped("the emulated driver's symbols: there is no nm");
        return;
    }
    let mut expected = declared(&root().join("tests/c/cuda_driver.h"), "cu");
    assert!(expected.contains("cuMemAlloc_v2"));
    expected.extend(declared(&sources().join("hooks.h"), "mofo_"));
    assert!(expected.contains("mofo_emulated_forbid"));
    let library = driver_with(&kernels(), None).join("libcuda.so.1");
    let exported: BTreeSet<String> = run(Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(library))
    .lines()
    .filter_map(|line| line.split_whitespace().last())
    .map(str::to_owned)
    .collect();
    let missing: Vec<_> = expected.difference(&exported).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // Nothing else but functions of CUDA, what the C++ library has as weak symbols, and the ends of a section.
    let own: Vec<_> = exported
        .difference(&expected)
        .filter(|name| {
            !["cu", "_Z", "__start_", "__stop_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        })
        .collect();
    assert!(own.is_empty(), "{own:?}");
}

#[test]
fn header_for_c_programs_compiles_alone() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (language, standard, extension) in
        [(Language::C, "c99", "c"), (Language::Cpp, "c++11", "cpp")]
    {
        let source = folder.path().join("alone").with_extension(extension);
        std::fs::write(
            &source,
            "#include \"cuda_driver.h\"\n#include \"cuda_driver.h\"\n",
        )
        .unwrap();
        run(compiler(language)
            .arg(format!("-std={standard}"))
            .args(WARNINGS)
            .arg("-fsyntax-only")
            .arg("-I")
            .arg(root().join("tests/c"))
            .arg(&source));
    }
}
