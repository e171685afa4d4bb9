//! The CUDA device of the tests, a real one or the emulated one, and buffers in its memory.

use std::sync::OnceLock;

use cudarc::driver::sys;
use mofo::ffi::mofo_cuda_available;

use super::toolchain::say_skipped;

/// True if there is a device: a real one, or else, where the driver can be emulated, that. `MOFO_REQUIRE_CUDA=1` makes
/// the lack of a real one a failure.
pub fn is_here() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| {
        let required = std::env::var_os("MOFO_REQUIRE_CUDA").is_some_and(|value| value == "1");
        if mofo_cuda_available() == 1 {
            return true;
        }
        assert!(!required, "no CUDA device, and MOFO_REQUIRE_CUDA is 1");
        say_skipped("a real GPU: no CUDA device");
        emulate()
    })
}

#[cfg(target_os = "linux")]
fn emulate() -> bool {
    super::emulated_cuda::load_emulated_driver();
    assert_eq!(mofo_cuda_available(), 1, "the emulated driver is not found");
    true
}

#[cfg(not(target_os = "linux"))]
fn emulate() -> bool {
    say_skipped("CUDA: its driver is emulated on Linux only");
    false
}

/// While there is one, the emulated device takes blocks and threads in the random order of a seed; for the process.
#[derive(Debug)]
pub struct RandomOrder {
    set_seed: SetSeed,
    before: u64,
}

/// `mofo_emulated_random` of `tests/cuda/driver/hooks.h`.
type SetSeed = unsafe extern "C" fn(u64) -> u64;

impl RandomOrder {
    /// `None` if the device is a real one, or there is none.
    pub fn start(seed: u64) -> Option<Self> {
        let set_seed = emulation_set_seed()?;
        // SAFETY: the function may be called at any time.
        let before = unsafe { set_seed(seed) };
        Some(Self { set_seed, before })
    }
}

impl Drop for RandomOrder {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { (self.set_seed)(self.before) };
    }
}

#[cfg(target_os = "linux")]
fn emulation_set_seed() -> Option<SetSeed> {
    if !is_here() {
        return None;
    }
    // SAFETY: finds the driver that is loaded already; the hook has this type.
    unsafe {
        let driver = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        if driver.is_null() {
            return None;
        }
        let hook = libc::dlsym(driver, c"mofo_emulated_random".as_ptr());
        (!hook.is_null()).then(|| std::mem::transmute::<*mut libc::c_void, SetSeed>(hook))
    }
}

#[cfg(not(target_os = "linux"))]
fn emulation_set_seed() -> Option<SetSeed> {
    None
}

/// Calls the driver; fails the test on an error.
macro_rules! cuda {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        let code = sys::$function($($argument),*);
        assert_eq!(code, sys::CUresult::CUDA_SUCCESS, stringify!($function));
    }};
}

/// Makes the primary context of device 0 current in this thread, for the calls of the tests themselves.
pub fn enter() {
    // SAFETY: the pointers are to locals; the context stays retained.
    unsafe {
        let mut current = std::ptr::null_mut();
        cuda!(cuInit(0));
        cuda!(cuCtxGetCurrent(&mut current));
        if current.is_null() {
            cuda!(cuDevicePrimaryCtxRetain(&mut current, 0));
            cuda!(cuCtxSetCurrent(current));
        }
    }
}

/// Memory of the device.
#[derive(Debug)]
pub struct DeviceBuffer {
    pub start: u64,
    pub bytes: usize,
    owned: bool,
}

impl DeviceBuffer {
    pub fn new(bytes: usize) -> Self {
        enter();
        let mut start = 0;
        // SAFETY: the pointer is to a local.
        unsafe { cuda!(cuMemAlloc_v2(&mut start, bytes.max(1))) };
        Self {
            start,
            bytes,
            owned: true,
        }
    }

    /// Somebody else's memory.
    pub fn borrowed(start: u64, bytes: usize) -> Self {
        Self {
            start,
            bytes,
            owned: false,
        }
    }

    pub fn upload(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.bytes);
        enter();
        // SAFETY: both are that large.
        unsafe {
            cuda!(cuMemcpyHtoD_v2(
                self.start,
                bytes.as_ptr().cast(),
                bytes.len()
            ))
        };
    }

    /// A copy, aligned for words.
    pub fn download(&self) -> Vec<u64> {
        let mut copy = vec![0u64; self.bytes.div_ceil(8)];
        enter();
        // SAFETY: both are that large.
        unsafe {
            cuda!(cuCtxSynchronize());
            cuda!(cuMemcpyDtoH_v2(
                copy.as_mut_ptr().cast(),
                self.start,
                self.bytes
            ));
        }
        copy
    }

    pub fn download_into(&self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), self.bytes);
        enter();
        // SAFETY: both are that large.
        unsafe {
            cuda!(cuCtxSynchronize());
            cuda!(cuMemcpyDtoH_v2(
                bytes.as_mut_ptr().cast(),
                self.start,
                self.bytes
            ));
        }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.owned {
            enter();
            // SAFETY: allocated in `new`.
            unsafe { cuda!(cuMemFree_v2(self.start)) };
        }
    }
}
