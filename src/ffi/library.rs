//! What can be asked of the library itself.

use std::ffi::{CStr, c_char};

use super::panic::catch;
use crate::backend::is_cuda_available;

/// The number that changes whenever a program compiled against an older header could no longer use the
/// library.
pub const MOFO_ABI_VERSION: u32 = 1;

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a version has no NUL"),
    };

/// The library's version, "major.minor.patch". The text is static.
#[unsafe(no_mangle)]
pub extern "C" fn mofo_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The library's `MOFO_ABI_VERSION`: compare it with the header's after loading a shared library.
#[unsafe(no_mangle)]
pub extern "C" fn mofo_abi_version() -> u32 {
    MOFO_ABI_VERSION
}

/// 1 if the CUDA driver is installed and finds a GPU, and this build can use it, so that optimizers for
/// `MOFO_DEVICE_CUDA` can be created; else 0. Why not is what `mofo_create` says.
#[unsafe(no_mangle)]
pub extern "C" fn mofo_cuda_available() -> i32 {
    catch(&mut || Ok(i32::from(is_cuda_available()))).unwrap_or(0)
}
