//! The C and C++ programs of `tests/c` and `tests/cpp`, each compiled and run with the shared and with the static
//! library.
//!
//! They need a Unix: POSIX threads, fork and dlopen.
//!
//! Those of the CUDA backend run on the emulated driver of `tests/cuda`, in two orders, and where there is a GPU once
//! more on the real one.
//!
//! - `MOFO_SANITIZE=address,undefined` compiles them with these sanitizers;
//! - `MOFO_VALGRIND=1` runs them, with shorter loops, under valgrind;
//! - `MOFO_REQUIRE_TIERS=1` makes a CPU tier that the machine lacks a failure;
//! - `MOFO_REQUIRE_CUDA=1` makes it a failure if there is no GPU.

#![cfg(unix)]

mod harness;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::toolchain::{self, Language, WARNINGS, compiler, root, say_skipped};

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
    empty: "c/empty.c" with shared_library static_library;
    state: "c/state.c" with shared_library static_library;
    errors: "c/errors.c" with shared_library static_library;
    bad_input: "c/bad_input.c" with shared_library static_library;
    dtypes: "c/dtypes.c" with shared_library static_library;
    parallel_for: "c/parallel_for.c" with shared_library static_library;
    flush_to_zero: "c/flush_to_zero.c" with shared_library static_library;
    threads: "c/threads.c" with shared_library static_library;
    shared_threads: "c/shared_threads.c" with static_library;
    fork: "c/fork.c" with shared_library static_library;
    dlopen: "c/dlopen.c" with loaded_library;
    out_of_memory: "c/out_of_memory.c" with static_library;
    checkpoint_resume: "c/checkpoint_resume.c" with shared_library static_library;
    checkpoint_calls: "c/checkpoint_calls.c" with shared_library static_library;
    checkpoint_file: "c/checkpoint_file.c" with shared_library static_library;
    checkpoint_damage: "c/checkpoint_damage.c" with shared_library static_library;
    checkpoint_faults: "c/checkpoint_faults.c" with static_library;
    checkpoint_partial: "c/checkpoint_partial.c" with shared_library static_library;
    checkpoint_memory: "c/checkpoint_memory.c" with static_library;
    cpp_optimizer: "cpp/optimizer.cpp" with shared_library static_library;
    cpp_checkpoint: "cpp/checkpoint.cpp" with shared_library static_library;
    cpp_no_exceptions: "cpp/no_exceptions.cpp" with shared_library static_library;
    cpp_parallel_for: "cpp/parallel_for.cpp" with shared_library static_library;
    cuda_step: "c/cuda_step.c" with emulated_cuda emulated_cuda_in_reverse real_cuda;
    cuda_report: "c/cuda_report.c" with emulated_cuda emulated_cuda_in_reverse real_cuda;
    cuda_graph: "c/cuda_graph.c" with emulated_cuda emulated_cuda_in_reverse real_cuda;
    cuda_streams: "c/cuda_streams.c" with emulated_cuda emulated_cuda_in_reverse real_cuda;
    cuda_bad_input: "c/cuda_bad_input.c" with emulated_cuda emulated_cuda_in_reverse real_cuda;
    cuda_memory: "c/cuda_memory.c" with emulated_cuda real_cuda;
    cuda_checkpoint: "c/cuda_checkpoint.c" with emulated_cuda emulated_cuda_in_reverse real_cuda;
    cuda_absent: "c/cuda_absent.c" with no_cuda_driver no_cuda_device;
    cpp_cuda_optimizer: "cpp/cuda_optimizer.cpp" with emulated_cuda emulated_cuda_in_reverse real_cuda;
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
    let program = compile(name, file, "shared", "c99", &[library.into()]);
    execute(Command::new(program));
}

fn static_library(name: &str, file: &str) {
    let flags = extra_flags(file);
    if flags.iter().any(|flag| flag.contains("--wrap=")) && !cfg!(target_os = "linux") {
        say_skipped(&format!("{name}: only GNU-like linkers can wrap functions"));
        return;
    }
    let library = toolchain::static_library();
    let program = compile(name, file, "static", "c11", &[library.into()]);
    execute(Command::new(program));
}

/// Not linked at all: the program loads the shared library whose path it is given.
fn loaded_library(name: &str, file: &str) {
    let program = compile(name, file, "loaded", "c99", &[]);
    let mut command = Command::new(program);
    command.arg(toolchain::shared_library());
    execute(command);
}

/// The programs of the CUDA backend.
mod on_cuda {
    use super::*;

    #[cfg(target_os = "linux")]
    fn driver() -> Option<PathBuf> {
        Some(harness::emulated_cuda::emulated_driver())
    }

    #[cfg(not(target_os = "linux"))]
    fn driver() -> Option<PathBuf> {
        None
    }

    /// Why a program of the CUDA backend is left out.
    fn left_out() -> Option<&'static str> {
        if !cfg!(target_os = "linux") {
            Some("the CUDA driver is emulated on Linux only")
        } else if !cfg!(feature = "cuda") {
            Some("this build has no CUDA backend")
        } else {
            None
        }
    }

    /// A program that is linked with a CUDA driver: the emulated one has what both have.
    fn linked(name: &str, file: &str, linkage: &str, library: &Path) -> Option<(Command, PathBuf)> {
        if let Some(why) = left_out() {
            say_skipped(&format!("{name}: {why}"));
            return None;
        }
        let driver = driver()?;
        let mut folder = OsString::from("-L");
        folder.push(&driver);
        let libraries = [library.into(), folder, "-lcuda".into()];
        let program = compile(name, file, linkage, "c99", &libraries);
        Some((Command::new(program), driver))
    }

    fn emulated(name: &str, file: &str, linkage: &str, library: &Path, order: &str) {
        if std::env::var_os("MOFO_VALGRIND").is_some() {
            say_skipped(&format!(
                "{name}: valgrind does not follow the threads of the emulated device"
            ));
            return;
        }
        if let Some((mut program, driver)) = linked(name, file, linkage, library) {
            program
                .env("LD_LIBRARY_PATH", driver)
                .env("MOFO_EMULATED_ORDER", order);
            execute(program);
        }
    }

    pub fn emulated_cuda(name: &str, file: &str) {
        let library = toolchain::shared_library();
        emulated(name, file, "shared", &library, "");
    }

    /// With the static library, and from the other end whatever has no order of its own.
    pub fn emulated_cuda_in_reverse(name: &str, file: &str) {
        let library = toolchain::static_library();
        emulated(name, file, "static", &library, "reverse");
    }

    pub fn real_cuda(name: &str, file: &str) {
        if mofo::ffi::mofo_cuda_available() == 0 {
            let required = std::env::var_os("MOFO_REQUIRE_CUDA").is_some_and(|value| value == "1");
            assert!(!required, "no CUDA device, and MOFO_REQUIRE_CUDA is 1");
            say_skipped(&format!("{name} on a real GPU: no CUDA device"));
            return;
        }
        let library = toolchain::shared_library();
        if let Some((mut program, _)) = linked(name, file, "real", &library) {
            // The driver maps what the sanitizer protects, and keeps what it allocates until the end.
            let options = "allocator_may_return_null=1:protect_shadow_gap=0:detect_leaks=0";
            program.env("ASAN_OPTIONS", options);
            execute(program);
        }
    }

    fn absent(name: &str, file: &str, linkage: &str, folder: &Path, reason: &[&str]) {
        let library = toolchain::shared_library();
        let mut program = Command::new(compile(name, file, linkage, "c99", &[library.into()]));
        program
            .env("LD_LIBRARY_PATH", folder)
            .env("MOFO_EMULATED_DEVICES", "0");
        if cfg!(feature = "cuda") {
            program.args(reason);
        } else {
            program.arg("no CUDA backend");
        }
        execute(program);
    }

    /// Files that are no libraries hide the machine's driver.
    pub fn no_cuda_driver(name: &str, file: &str) {
        let folder = directory().join("no-cuda-driver");
        std::fs::create_dir_all(&folder).unwrap();
        for library in ["libcuda.so", "libcuda.so.1"] {
            std::fs::write(folder.join(library), "not a library").unwrap();
        }
        let reason = ["CUDA driver library", "libcuda.so.1", "not installed"];
        absent(name, file, "no-driver", &folder, &reason);
    }

    /// The driver is there, and finds none.
    pub fn no_cuda_device(name: &str, file: &str) {
        if let Some(why) = left_out() {
            say_skipped(&format!("{name}: {why}"));
        } else if let Some(driver) = driver() {
            let reason = ["cuInit", "CUDA_ERROR_NO_DEVICE"];
            absent(name, file, "no-device", &driver, &reason);
        }
    }
}

use on_cuda::{emulated_cuda, emulated_cuda_in_reverse, no_cuda_device, no_cuda_driver, real_cuda};

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
        "c/shared_threads.c" => vec!["-Wl,--wrap=pthread_create".to_owned()],
        "c/checkpoint_faults.c" => [
            "open64", "read", "write", "lseek64", "fsync", "fchmod", "rename",
        ]
        .map(|function| format!("-Wl,--wrap={function}"))
        .to_vec(),
        "cpp/no_exceptions.cpp" => ["-fno-exceptions", "-fno-rtti"].map(str::to_owned).to_vec(),
        _ => Vec::new(),
    }
}

/// Where the programs are.
fn directory() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("border");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn compile(
    name: &str,
    file: &str,
    linkage: &str,
    c_standard: &str,
    libraries: &[OsString],
) -> PathBuf {
    let program = directory().join(format!("{name}-{linkage}"));
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
        .arg(root().join("tests").join(file))
        .args(libraries)
        .args(["-lpthread", "-ldl", "-lm", "-o"])
        .arg(&program);
    toolchain::run(&mut command);
    program
}

/// A forked child gives up the records of threads that only its parent has. No other program may leak.
fn leaks_by_design(program: &Path) -> bool {
    let name = program.file_name().unwrap().to_string_lossy();
    name.starts_with("fork-")
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
            .envs(
                program
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env("MOFO_TEST_QUICK", "1");
        limit *= 4;
    } else {
        command = program;
    }
    // A file, not a pipe: it needs no reader, and a child of the program that outlives it cannot hold it open.
    let log = path.with_extension("log");
    let output = File::create(&log).unwrap();
    if command.get_envs().all(|(name, _)| name != "ASAN_OPTIONS") {
        // The tests ask for more memory than there is, and expect to be told.
        command.env("ASAN_OPTIONS", "allocator_may_return_null=1");
    }
    command
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
