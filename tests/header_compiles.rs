//! The headers compile alone, included twice, and after headers with hostile macros, in every language version that they
//! promise, without a warning.

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
    let text = format!("#include \"{header}\"\n").repeat(times);
    let name = format!("{header}{}-{times}", flags.join(""));
    for command in compilers(language) {
        compile(command, &name, language, flags, &text);
    }
}

/// Compiles a translation unit with the warnings of all.
fn compile(mut command: Command, name: &str, language: Language, flags: &[&str], text: &str) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("header_compiles");
    std::fs::create_dir_all(&directory).unwrap();
    let extension = match language {
        Language::C => "c",
        Language::Cpp => "cpp",
    };
    let name = format!("{name}.{extension}").replace(['+', '='], "_");
    let source = directory.join(name);
    // A strictly conforming translation unit declares something.
    std::fs::write(&source, format!("{text}extern int nothing;\n")).unwrap();
    command
        .args(flags)
        .args(WARNINGS)
        .args(["-fsyntax-only", "-I"])
        .arg(root().join("include"))
        .arg(&source);
    run(&mut command);
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
            &["-std=c89"],
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

/// Macros of headers that engines include, spelt out: `Xlib.h` and `X.h`, `windows.h`, `curses.h`, `complex.h`, Apple's
/// `AssertMacros.h`, `sys/sysmacros.h`, and what GNU compilers define for systems.
const HOSTILE: &str = "
#define Status int
#define Bool int
#define None 0L
#define True 1
#define False 0
#define Success 0
#define Always 2
#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#define ERROR 0
#define IN
#define OUT
#define OPTIONAL
#define CONST const
#define VOID void
#define DELETE (0x00010000L)
#define STRICT 1
#define near
#define far
#define small char
#define interface struct
#define OK (0)
#define ERR (-1)
#define I 1.0F
#define complex _Complex
#define check(assertion)
#define verify(assertion)
#define require(assertion, label)
#define major(device) ((device) >> 8)
#define minor(device) ((device) & 255)
#define unix 1
#define linux 1
";

#[test]
fn macros_of_other_headers_do_no_harm() {
    for (header, language, flags) in [
        ("mofo.h", Language::C, "-std=c99"),
        ("mofo.h", Language::Cpp, "-std=c++11"),
        ("mofo.hpp", Language::Cpp, "-std=c++17"),
    ] {
        // The standard headers are not those that are tried: they come first.
        let first = match header {
            "mofo.hpp" => {
                "#include <exception>\n#include <string>\n#include <utility>\n#include <vector>\n"
            }
            _ => "",
        };
        let mut text = format!("{first}{HOSTILE}#include \"{header}\"\n");
        if header == "mofo.hpp" {
            // The macro is still there, and the type has another name.
            text += "static_assert(sizeof(Status) == sizeof(int), \"\");\n";
            text +=
                "inline bool ok(mofo::StatusCode code) { return code == mofo::StatusCode::ok; }\n";
        }
        for command in compilers(language) {
            compile(
                command,
                &format!("hostile-{header}"),
                language,
                &[flags],
                &text,
            );
        }
    }
}

/// Uses of what is only compiled where it is used.
const USES: &str = "
namespace {
void use(std::int64_t n, mofo::Task task) { task(n); }
}  // namespace
template class mofo::ParallelFor<void (*)(std::int64_t, mofo::Task)>;
int used(float *param, const float *grad);
int used(float *param, const float *grad) {
    mofo::ParallelFor<void (*)(std::int64_t, mofo::Task)> loop(use);
    mofo::Options options;
    options.use(loop).set(mofo::Filter::random).set_state_dtype(mofo::Dtype::bf16);
    mofo::Optimizer optimizer(options);
    const std::uint64_t index = optimizer.add(mofo::Tensor(\"w\", param, grad, 4));
    mofo::Report report;
    optimizer.step(mofo::StepArgs().only(&index, 1).report_to(report));
    return static_cast<int>(optimizer.save_to_memory().size());
}
";

/// All that clang can warn of, but for what it takes to be C++17.
#[test]
fn clang_has_nothing_to_warn_of() {
    if !exists("clang") || !exists("clang++") {
        say_skipped("header_compiles: there is no clang");
        return;
    }
    let cases: &[(&str, &str, Language, &[&str], &str)] = &[
        ("clang", "mofo.h", Language::C, &["-std=c89"], ""),
        ("clang", "mofo.h", Language::C, &["-std=c99"], ""),
        (
            "clang++",
            "mofo.hpp",
            Language::Cpp,
            &[
                "-std=c++17",
                "-Wno-c++98-compat",
                "-Wno-c++98-compat-pedantic",
                "-Wno-pre-c++17-compat",
            ],
            USES,
        ),
    ];
    for (compiler, header, language, flags, uses) in cases {
        let text = format!("#include \"{header}\"\n{uses}");
        let flags: Vec<&str> = ["-Weverything"].iter().chain(*flags).copied().collect();
        let name = format!("everything-{header}{}", flags[1]);
        compile(Command::new(compiler), &name, *language, &flags, &text);
    }
}

/// What GNU's compiler can warn of besides.
#[test]
fn gcc_has_nothing_to_warn_of() {
    if !exists("g++") {
        say_skipped("header_compiles: there is no g++");
        return;
    }
    let text = format!("#include \"mofo.hpp\"\n{USES}");
    let flags = [
        "-std=c++17",
        "-Wuseless-cast",
        "-Wold-style-cast",
        "-Wcast-qual",
        "-Wcast-align=strict",
        "-Wzero-as-null-pointer-constant",
        "-Wextra-semi",
        "-Wlogical-op",
        "-Wnull-dereference",
        "-Wsuggest-override",
        "-Wconversion",
        "-Wsign-conversion",
        "-Wshadow",
    ];
    compile(
        Command::new("g++"),
        "everything-gcc",
        Language::Cpp,
        &flags,
        &text,
    );
}

/// Compilers that read source text in the system's encoding warn of anything else, or misread it.
#[test]
fn the_headers_are_ascii() {
    for header in ["mofo.h", "mofo.hpp"] {
        let text = std::fs::read_to_string(root().join("include").join(header)).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            assert!(line.is_ascii(), "{header}:{number}: {line}");
        }
    }
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
