//! A CUDA driver that runs on the CPU, for tests: `tests/cuda/driver` compiled with the kernels of the CUDA backend
//! into a `libcuda.so.1`.
//!
//! - `MOFO_SANITIZE=address,undefined` compiles it with these sanitizers for programs of their own, which must have
//!   them too. Without it a misaligned access of a kernel ends the process, too (SIGILL), and so does one beyond
//!   device memory, or by the host to it (SIGSEGV).
//!
//! What the emulation does and what it leaves out: `tests/cuda/driver/README.md`.

use std::ffi::{CString, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use super::toolchain::{Language, WARNINGS, compiler, root, run};

/// The library that C programs link with, and that they find through `LD_LIBRARY_PATH`.
const LIBRARY: &str = "libcuda.so.1";

/// The same driver under the name by which some ask first.
const UNVERSIONED: &str = "unversioned.so";

/// A folder with the emulated driver, `libcuda.so.1` and `libcuda.so`, that has the kernels of the CUDA backend. For
/// programs of their own: pass it as `-L` with `-lcuda`, and in `LD_LIBRARY_PATH`.
pub fn emulated_driver() -> PathBuf {
    driver_with(&backend_kernels(), sanitizers().as_deref())
}

/// Makes the emulated driver this process's libcuda: a later `dlopen("libcuda.so.1")`, or of `libcuda.so`, finds it
/// even where there is a real one. It has no sanitizers, which would have to be in the program itself.
pub fn load_emulated_driver() {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        let folder = driver_with(&backend_kernels(), None);
        for name in [LIBRARY, UNVERSIONED] {
            let path = CString::new(folder.join(name).as_os_str().as_bytes()).unwrap();
            // SAFETY: the library's initialisers are those of `tests/cuda/driver`, and need nothing.
            let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            assert!(!handle.is_null(), "cannot load {path:?}");
        }
    });
}

/// What `MOFO_SANITIZE` names.
pub fn sanitizers() -> Option<OsString> {
    std::env::var_os("MOFO_SANITIZE").filter(|names| !names.is_empty())
}

/// The compiler flags for them.
pub fn sanitizer_flags(names: &OsString) -> Vec<OsString> {
    let mut flag = OsString::from("-fsanitize=");
    flag.push(names);
    let others = ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"];
    std::iter::once(flag)
        .chain(others.map(OsString::from))
        .collect()
}

/// Where the driver's sources are.
pub fn sources() -> PathBuf {
    root().join("tests/cuda/driver")
}

fn backend_kernels() -> PathBuf {
    root().join("src/cuda/kernels/mofo.cu")
}

/// A folder with the emulated driver that has the kernels of a source file, which lists them as
/// `MOFO_KERNELS(X)`. It is built once for each state of the sources.
pub fn driver_with(kernels: &Path, sanitizers: Option<&std::ffi::OsStr>) -> PathBuf {
    let flags = flags(kernels, sanitizers);
    let mut hasher = DefaultHasher::new();
    flags.hash(&mut hasher);
    let version = run(compiler(Language::Cpp).arg("--version"));
    version.hash(&mut hasher);
    for file in inputs(kernels) {
        file.hash(&mut hasher);
        std::fs::read(&file).unwrap().hash(&mut hasher);
    }
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = parent.join(format!("cuda-driver-{:016x}", hasher.finish()));

    static BUILDS: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDS
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if !folder.exists() {
        let new = tempfile::tempdir_in(parent).unwrap();
        build(new.path(), &flags);
        // Of two processes that build the same, the second finds that it is there.
        if std::fs::rename(new.path(), &folder).is_ok() {
            let _ = new.keep();
        }
    }
    assert!(folder.join(LIBRARY).exists(), "{folder:?} is incomplete");
    folder
}

fn flags(kernels: &Path, sanitizers: Option<&std::ffi::OsStr>) -> Vec<OsString> {
    let mut flags: Vec<OsString> = WARNINGS.iter().map(OsString::from).collect();
    flags.extend(
        [
            "-std=c++17",
            "-O2",
            "-g",
            // The device's compiler is told the same.
            "-ffp-contract=off",
            "-fPIC",
            "-fvisibility=hidden",
            // CUDA's `#pragma unroll`.
            "-Wno-unknown-pragmas",
        ]
        .map(OsString::from),
    );
    match sanitizers {
        Some(names) => {
            flags.extend(sanitizer_flags(&names.to_owned()));
            if !is_clang() {
                // Shared memory has a section of its own, which GCC's AddressSanitizer leaves out unless told.
                flags.push("-fsanitize-sections=mofo_shared".into());
            }
        }
        // A misaligned access is an error on the device. This check needs no library.
        None => flags.extend(
            ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"].map(OsString::from),
        ),
    }
    let mut source = OsString::from("-DMOFO_KERNELS_SOURCE=\"");
    source.push(kernels);
    source.push("\"");
    flags.push(source);
    for folder in [sources(), root().join("tests/c")] {
        flags.extend(["-I".into(), folder.into_os_string()]);
    }
    flags
}

fn is_clang() -> bool {
    static CLANG: OnceLock<bool> = OnceLock::new();
    *CLANG.get_or_init(|| run(compiler(Language::Cpp).arg("--version")).contains("clang"))
}

/// A folder's files of some kinds.
pub fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            extensions
                .iter()
                .any(|&kind| path.extension().is_some_and(|e| e == kind))
        })
        .collect();
    files.sort();
    files
}

/// All files that a driver is made of, those beside the kernels' source included.
fn inputs(kernels: &Path) -> Vec<PathBuf> {
    let mut inputs = vec![root().join("tests/c/cuda_driver.h")];
    inputs.extend(files(&sources(), &["cpp", "hpp", "h"]));
    inputs.extend(files(kernels.parent().unwrap(), &["cu", "cuh", "h"]));
    inputs
}

fn build(folder: &Path, flags: &[OsString]) {
    link(folder, LIBRARY, LIBRARY, |command| {
        command
            .args(flags)
            .args(files(&sources(), &["cpp"]))
            .arg("-lpthread");
    });
    std::os::unix::fs::symlink(LIBRARY, folder.join("libcuda.so")).unwrap();
    link(folder, UNVERSIONED, "libcuda.so", |command| {
        command
            .args(["-Wl,--no-as-needed", "-lcuda", "-L"])
            .arg(folder);
    });
}

fn link(folder: &Path, file: &str, soname: &str, add: impl FnOnce(&mut Command)) {
    let mut command = compiler(Language::Cpp);
    command
        .arg("-shared")
        .arg(format!("-Wl,-soname,{soname}"))
        .arg("-o")
        .arg(folder.join(file));
    add(&mut command);
    run(&mut command);
}
