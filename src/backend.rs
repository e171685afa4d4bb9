//! What the optimizer asks of a device.

use std::ffi::c_void;

use crate::config::{Device, Options};
use crate::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::cuda::Cuda;
use crate::error::{Result, fail};

/// A device.
#[derive(Debug)]
// An optimizer has one, and nobody many optimizers.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Backend {
    Cpu(Cpu),
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
}

impl Backend {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        match options.device {
            Device::Cpu => Ok(Self::Cpu(Cpu::new(options)?)),
            #[cfg(feature = "cuda")]
            Device::Cuda { index } => Ok(Self::Cuda(Cuda::new(index)?)),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda { .. } => fail!(Unsupported, "this build of mofo has no CUDA backend"),
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu(_))
    }

    /// The CPU, for what is asked of no other device.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    pub(crate) fn cpu(&mut self, what: &str) -> Result<&mut Cpu> {
        match self {
            Self::Cpu(cpu) => Ok(cpu),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => fail!(
                InvalidState,
                "{what}: the optimizer works on CUDA, with buffers in device memory"
            ),
        }
    }

    /// Refuses a buffer that the device cannot use.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    pub(crate) fn check_memory(&self, what: &str, start: *const c_void, bytes: u64) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.check_memory(what, start, bytes),
        }
    }

    /// Copies state from where the device has it.
    ///
    /// # Safety
    ///
    /// `from` is in the device's memory, with as many bytes as `to`, which hold values and which no step is writing.
    pub(crate) unsafe fn read_state(&self, from: *const u8, to: &mut [u8]) -> Result<()> {
        match self {
            // SAFETY: the caller's promise; what is borrowed mutably is not the state.
            Self::Cpu(_) => unsafe {
                std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len());
                Ok(())
            },
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Self::Cuda(cuda) => unsafe { cuda.read_state(from, to) },
        }
    }

    /// Copies state to where the device has it.
    ///
    /// # Safety
    ///
    /// `to` is in the device's memory, with as many bytes as `from`, and no step is using them.
    pub(crate) unsafe fn write_state(&self, to: *mut u8, from: &[u8]) -> Result<()> {
        match self {
            // SAFETY: the caller's promise; what is borrowed is not the state.
            Self::Cpu(_) => unsafe {
                std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
                Ok(())
            },
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Self::Cuda(cuda) => unsafe { cuda.write_state(to, from) },
        }
    }

    /// Bytes of work space at present.
    pub(crate) fn scratch_bytes(&self) -> u64 {
        match self {
            Self::Cpu(cpu) => cpu.scratch_bytes(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.scratch_bytes(),
        }
    }
}
