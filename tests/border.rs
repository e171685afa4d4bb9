//! The C and C++ programs of `tests/c` and `tests/cpp`, each compiled and run with the shared and with the static
//! library.
//!
//! They need a Unix: POSIX threads, fork and dlopen.
//!
//! - `MOFO_SANITIZE=address,undefined` compiles them with these sanitizers;
//! - `MOFO_VALGRIND=1` runs them, with shorter loops, under valgrind;
//! - `MOFO_REQUIRE_TIERS=1` makes a CPU tier that the machine lacks a failure.

#![cfg(unix)]

mod toolchain;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use toolchain::{Language, WARNINGS, compiler, root, say_skipped};

/// One test for each program and library: a failing one is named.
macro_rules! programs {
    ($($name:ident: $file:literal with $($library:ident)+;)+) => {
        const PROGRAMS: &[&str] = &[$($file),+];

        $(
            mod $name {
                $(
                    #[test]
                    fn $library() {
                        super::$library(stringify!($name), $file);
                    }
                )+
            }
        )+
    };
}

programs! {
    options: "c/options.c" with shared_library static_library;
    tensor: "c/tensor.c" with shared_library static_library;
    step: "c/step.c" with shared_library static_library;
    state: "c/state.c" with shared_library static_library;
    errors: "c/errors.c" with shared_library static_library;
    bad_input: "c/bad_input.c" with shared_library static_library;
    dtypes: "c/dtypes.c" with shared_library static_library;
    parallel_for: "c/parallel_for.c" with shared_library static_library;
    flush_to_zero: "c/flush_to_zero.c" with shared_library static_library;
    threads: "c/threads.c" with shared_library static_library;
    fork: "c/fork.c" with shared_library static_library;
    dlopen: "c/dlopen.c" with loaded_library;
    out_of_memory: "c/out_of_memory.c" with static_library;
    cpp_optimizer: "cpp/optimizer.cpp" with shared_library static_library;
    cpp_no_exceptions: "cpp/no_exceptions.cpp" with shared_library static_library;
    cpp_parallel_for: "cpp/parallel_for.cpp" with shared_library static_library;
}

#[test]
fn every_program_is_run() {
    let mut found = BTreeSet::new();
    for (folder, extension) in [("c", "c"), ("cpp", "cpp")] {
        for entry in std::fs::read_dir(root().join("tests").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == extension) {
                let name = path.file_name().unwrap().to_str().unwrap();
                found.insert(format!("{folder}/{name}"));
            }
        }
    }
    let run: BTreeSet<String> = PROGRAMS.iter().map(|&file| file.to_owned()).collect();
    assert_eq!(found, run);
}

fn shared_library(name: &str, file: &str) {
    let library = toolchain::shared_library();
    let program = compile(name, file, "shared", "c99", Some(&library));
    execute(Command::new(program));
}

fn static_library(name: &str, file: &str) {
    if file == "c/out_of_memory.c" && !cfg!(target_os = "linux") {
        say_skipped("out_of_memory: only GNU-like linkers can wrap functions");
        return;
    }
    let library = toolchain::static_library();
    let program = compile(name, file, "static", "c11", Some(&library));
    execute(Command::new(program));
}

/// Not linked at all: the program loads the shared library whose path it is given.
fn loaded_library(name: &str, file: &str) {
    let program = compile(name, file, "loaded", "c99", None);
    let mut command = Command::new(program);
    command.arg(toolchain::shared_library());
    execute(command);
}

/// What a program needs besides the flags of all.
fn extra_flags(file: &str) -> Vec<String> {
    match file {
        // Only in a static link does the linker see the library's own calls.
        "c/out_of_memory.c" => [
            "malloc",
            "calloc",
            "realloc",
            "posix_memalign",
            "aligned_alloc",
            "free",
        ]
        .map(|function| format!("-Wl,--wrap={function}"))
        .to_vec(),
        "cpp/no_exceptions.cpp" => ["-fno-exceptions", "-fno-rtti"].map(str::to_owned).to_vec(),
        _ => Vec::new(),
    }
}

fn compile(
    name: &str,
    file: &str,
    linkage: &str,
    c_standard: &str,
    library: Option<&Path>,
) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("border");
    std::fs::create_dir_all(&directory).unwrap();
    let program = directory.join(format!("{name}-{linkage}"));
    let language = match Path::new(file).extension() {
        Some(extension) if extension == "cpp" => Language::Cpp,
        _ => Language::C,
    };
    let mut command = compiler(language);
    command.arg(match language {
        Language::C => format!("-std={c_standard}"),
        Language::Cpp => "-std=c++17".to_owned(),
    });
    command.args(WARNINGS);
    // The reference of the tests rounds every operation, as the library does.
    command.arg("-ffp-contract=off");
    if let Some(sanitizers) = std::env::var_os("MOFO_SANITIZE") {
        let mut flag = std::ffi::OsString::from("-fsanitize=");
        flag.push(sanitizers);
        command
            .arg(flag)
            .args(["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]);
    }
    command
        .args(extra_flags(file))
        .arg("-I")
        .arg(root().join("include"))
        .arg(root().join("tests").join(file));
    if let Some(library) = library {
        command.arg(library);
    }
    command
        .args(["-lpthread", "-ldl", "-lm", "-o"])
        .arg(&program);
    toolchain::run(&mut command);
    program
}

/// A forked child gives up the records of threads that only its parent has, and each unloading of the library
/// leaves the collector behind that rayon's queues share. No other program may leak.
fn leaks_by_design(program: &Path) -> bool {
    let name = program.file_name().unwrap().to_string_lossy();
    name.starts_with("fork-") || name.starts_with("dlopen-")
}

fn execute(program: Command) {
    let path = PathBuf::from(program.get_program());
    let mut limit = Duration::from_secs(300);
    let mut command;
    if std::env::var_os("MOFO_VALGRIND").is_some() {
        assert!(
            std::env::var_os("MOFO_SANITIZE").is_none(),
            "valgrind and sanitizers exclude each other"
        );
        command = Command::new("valgrind");
        command
            .args([
                "--quiet",
                "--error-exitcode=99",
                "--errors-for-leak-kinds=definite",
                if leaks_by_design(&path) {
                    "--leak-check=no"
                } else {
                    "--leak-check=full"
                },
            ])
            .arg(&path)
            .args(program.get_args())
            .env("MOFO_TEST_QUICK", "1");
        limit *= 4;
    } else {
        command = program;
    }
    // A file, not a pipe: it needs no reader, and a child of the program that outlives it cannot hold it open.
    let log = path.with_extension("log");
    let output = File::create(&log).unwrap();
    command
        // The tests ask for more memory than there is, and expect to be told.
        .env("ASAN_OPTIONS", "allocator_may_return_null=1")
        .env("UBSAN_OPTIONS", "print_stacktrace=1")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output);
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if started.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    match status {
        Some(status) if status.success() => {}
        Some(status) => panic!("{command:?}\nended with {status}:\n{text}"),
        None => panic!("{command:?}\nhad not ended after {limit:?}:\n{text}"),
    }
    assert!(
        text.contains(" checks, 0 failed"),
        "{command:?}\nended early:\n{text}"
    );
    for line in text.lines() {
        if let Some(what) = line.strip_prefix("skipped: ") {
            say_skipped(&format!("{name}: {what}"));
        }
    }
    print!("{text}");
}
