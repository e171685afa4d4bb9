//! The headers compile alone, and included twice, in every language version that they promise, without a warning.

mod harness;

use std::path::Path;
use std::process::Command;

use harness::toolchain::{Language, WARNINGS, compiler, exists, root, run, say_skipped};

/// Each compiler by the way it is found: the one of the build, and those of this name if they are there.
fn compilers(language: Language) -> Vec<Command> {
    let mut found = vec![compiler(language)];
    let names = match language {
        Language::C => ["gcc", "clang"],
        Language::Cpp => ["g++", "clang++"],
    };
    for name in names {
        if exists(name) {
            found.push(Command::new(name));
        } else {
            say_skipped(&format!("header_compiles: there is no {name}"));
        }
    }
    found
}

/// Compiles a translation unit that includes the header this many times.
fn check(header: &str, language: Language, flags: &[&str], times: usize) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("header_compiles");
    std::fs::create_dir_all(&directory).unwrap();
    let extension = match language {
        Language::C => "c",
        Language::Cpp => "cpp",
    };
    let name = format!("{header}{}-{times}.{extension}", flags.join(""));
    let source = directory.join(name.replace(['+', '='], "_"));
    // A strictly conforming translation unit declares something.
    let text = format!("#include \"{header}\"\n").repeat(times) + "extern int nothing;\n";
    std::fs::write(&source, text).unwrap();
    for mut command in compilers(language) {
        command
            .args(flags)
            .args(WARNINGS)
            .args(["-fsyntax-only", "-I"])
            .arg(root().join("include"))
            .arg(&source);
        run(&mut command);
    }
}

fn check_all(header: &str, language: Language, flags: &[&[&str]]) {
    for flags in flags {
        for times in [1, 2] {
            check(header, language, flags, times);
        }
    }
}

#[test]
fn mofo_h_is_c() {
    check_all(
        "mofo.h",
        Language::C,
        &[
            &["-std=c99"],
            &["-std=c11"],
            &["-std=c99", "-Wstrict-prototypes"],
        ],
    );
}

#[test]
fn mofo_h_is_cpp() {
    check_all(
        "mofo.h",
        Language::Cpp,
        &[&["-std=c++11"], &["-std=c++17"], &["-std=c++20"]],
    );
}

#[test]
fn mofo_hpp_is_cpp() {
    check_all(
        "mofo.hpp",
        Language::Cpp,
        &[
            &["-std=c++17"],
            &["-std=c++20"],
            &["-std=c++17", "-fno-exceptions", "-fno-rtti"],
            &["-std=c++20", "-fno-exceptions", "-fno-rtti"],
            // What careful projects turn on besides.
            &[
                "-std=c++17",
                "-Wshadow",
                "-Wconversion",
                "-Wsign-conversion",
            ],
        ],
    );
}

/// The matrix can fail: the C++ wrapper is no C++11.
#[test]
fn a_language_that_is_too_old_is_noticed() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("header_compiles");
    std::fs::create_dir_all(&directory).unwrap();
    let source = directory.join("too-old.cpp");
    std::fs::write(&source, "#include \"mofo.hpp\"\n").unwrap();
    let output = compiler(Language::Cpp)
        .arg("-std=c++11")
        .args(WARNINGS)
        .args(["-fsyntax-only", "-I"])
        .arg(root().join("include"))
        .arg(&source)
        .output()
        .unwrap();
    assert!(!output.status.success());
}
