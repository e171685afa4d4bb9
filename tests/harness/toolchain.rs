//! What the tests of the C and C++ border share: the machine's compilers, and the libraries that `cargo test`
//! has just built.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// Warnings are errors; what is pedantic is a warning.
pub const WARNINGS: &[&str] = &["-Wall", "-Wextra", "-Werror", "-pedantic"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    C,
    Cpp,
}

/// The repository, or what `MOFO_ROOT` names: a folder with the files of it that the test reads, on a machine without it.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        std::env::var_os("MOFO_ROOT")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
    })
}

/// The compiler that the `cc` crate would take in a build script, with its default flags.
pub fn compiler(language: Language) -> Command {
    let target = target();
    cc::Build::new()
        .cpp(language == Language::Cpp)
        .target(&target)
        .host(&target)
        .opt_level(1)
        .debug(true)
        .cargo_metadata(false)
        .try_get_compiler()
        .unwrap_or_else(|error| panic!("no {language:?} compiler: {error}"))
        .to_command()
}

/// There is no build script that could pass Cargo's own name of the target on.
fn target() -> String {
    let arch = std::env::consts::ARCH;
    match std::env::consts::OS {
        "macos" if arch == "aarch64" => "aarch64-apple-darwin".to_owned(),
        "macos" => format!("{arch}-apple-darwin"),
        "linux" if cfg!(target_env = "musl") => format!("{arch}-unknown-linux-musl"),
        "linux" => format!("{arch}-unknown-linux-gnu"),
        os => format!("{arch}-unknown-{os}"),
    }
}

/// The shared library of this very build.
pub fn shared_library() -> PathBuf {
    built(&format!(
        "{}mofo{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    ))
}

/// The static library of this very build.
pub fn static_library() -> PathBuf {
    built("libmofo.a")
}

/// The Rust library of this very build; what it depends on lies beside it.
pub fn rust_library() -> PathBuf {
    built("libmofo.rlib")
}

/// `cargo test` writes all kinds of the library beside the test programs, and nowhere else: what lies one
/// directory up is of the last `cargo build`.
fn built(name: &str) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let path = program.parent().unwrap().join(name);
    let written = modified(&path)
        .unwrap_or_else(|error| panic!("cargo has not built {}: {error}", path.display()));
    let (newest, source) = newest_source();
    assert!(
        written >= newest,
        "{} is stale: it is older than {}",
        path.display(),
        source.display()
    );
    path
}

fn modified(path: &Path) -> std::io::Result<SystemTime> {
    path.metadata()?.modified()
}

/// Other files of `src`, kernels for one, are no part of the library, or known to Cargo.
fn newest_source() -> (SystemTime, PathBuf) {
    let mut newest = (SystemTime::UNIX_EPOCH, PathBuf::new());
    let mut pending = vec![root().join("src"), root().join("Cargo.toml")];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs" || e == "toml") {
            newest = newest.max((modified(&path).unwrap(), path));
        }
    }
    newest
}

/// Whether a program can be started.
pub fn exists(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Runs a tool to its end; what it says is shown if it fails.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        output.status.success(),
        "{command:?}\nended with {}:\n{text}",
        output.status
    );
    text
}

/// Says that something was left out, even where the test harness hides the output of tests that pass.
pub fn say_skipped(what: &str) {
    // Not a print macro, which the harness captures.
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}
