//! What the test programs share.

// Each of them uses a part of it.
#![allow(dead_code)]

pub mod c_api;
pub mod case;
pub mod case_on_cuda;
pub mod data;
pub mod device;
#[cfg(target_os = "linux")]
pub mod emulated_cuda;
pub mod parallel_for;
pub mod places;
pub mod toolchain;
pub mod vectors;
