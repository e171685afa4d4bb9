//! The only door to a device.
//!
//! What a device must do, and what whoever asks for it promises, is written here, once. [`Host`] and `Cuda` offer the same
//! functions, and keep these contracts.

mod host;

use std::ffi::c_void;

use crate::config::{CpuTier, Device, Options, TensorSpec};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda::{self, Cuda};
use crate::error::{Result, fail};
use crate::job::{Outcome, Progress, StepRequest, TensorBuffers};
use crate::memory::{self, PARTS};
use host::Host;

/// A device, and what it knows of an optimizer's tensors.
#[derive(Debug)]
// An optimizer has one, and nobody many optimizers.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Backend {
    Cpu(Host),
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
}

/// What a device has allocated for a tensor.
#[derive(Debug)]
pub(crate) struct State {
    /// First moment, second moment and master copy; null for what was not asked for.
    pub parts: [*mut u8; PARTS],
    /// A threshold for each block, 0.
    pub thresholds: *mut u32,
    memory: StateMemory,
}

/// Freed when it is dropped.
#[derive(Debug)]
enum StateMemory {
    Host {
        _parts: Option<memory::StateMemory>,
        thresholds: Vec<u32>,
    },
    #[cfg(feature = "cuda")]
    Cuda { _all: cuda::Memory },
}

// SAFETY: the pointers are to `memory`, which it owns like a `Box<[u8]>`.
unsafe impl Send for State {}

impl State {
    /// The thresholds, where they are in the host's memory.
    pub(crate) fn host_thresholds(&self) -> &[f32] {
        match &self.memory {
            // SAFETY: `thresholds` is as long, lives as long as `self`, and is written through this pointer alone; all
            // bit patterns are floats.
            StateMemory::Host { thresholds, .. } => unsafe {
                std::slice::from_raw_parts(self.thresholds.cast(), thresholds.len())
            },
            #[cfg(feature = "cuda")]
            StateMemory::Cuda { .. } => &[],
        }
    }
}

/// Asks whichever device it is; both have the same functions.
macro_rules! ask {
    ($backend:expr, $device:ident => $call:expr) => {
        match $backend {
            Self::Cpu($device) => $call,
            #[cfg(feature = "cuda")]
            Self::Cuda($device) => $call,
        }
    };
}

impl Backend {
    /// A device without tensors. Starts no thread.
    pub(crate) fn new(options: &Options) -> Result<Self> {
        match options.device {
            Device::Cpu => Ok(Self::Cpu(Host::new(options)?)),
            #[cfg(feature = "cuda")]
            Device::Cuda { index } => Ok(Self::Cuda(Cuda::new(index)?)),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda { .. } => fail!(Unsupported, "this build of mofo has no CUDA backend"),
        }
    }

    /// The instruction set in use; `None` on CUDA.
    pub(crate) fn tier(&self) -> Option<CpuTier> {
        match self {
            Self::Cpu(host) => Some(host.tier()),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => None,
        }
    }

    /// Refuses what takes buffers in the host's memory, if the device's are elsewhere.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    pub(crate) fn check_is_host(&self, what: &str) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => fail!(
                InvalidState,
                "{what}: the optimizer works on CUDA, with buffers in device memory"
            ),
        }
    }

    /// Refuses a buffer that the device cannot use.
    pub(crate) fn check_memory(&self, what: &str, start: *const c_void, bytes: u64) -> Result<()> {
        ask!(self, device => device.check_memory(what, start, bytes))
    }

    /// Allocates state of these sizes in bytes, and thresholds; all of it counts as zero.
    pub(crate) fn allocate_state(&self, sizes: [usize; PARTS], num_blocks: u64) -> Result<State> {
        match self {
            Self::Cpu(host) => host.allocate_state(sizes, num_blocks),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => {
                let [m, v, master] = sizes;
                let thresholds = num_blocks as usize * size_of::<u32>();
                let (memory, [m, v, master, thresholds]) =
                    cuda.allocate_state([m, v, master, thresholds])?;
                Ok(State {
                    parts: [m, v, master],
                    thresholds: thresholds.cast(),
                    memory: StateMemory::Cuda { _all: memory },
                })
            }
        }
    }

    /// Tells the device of a tensor, at the next index. On CUDA this waits.
    ///
    /// The buffers are those of its steps until it is bound to others or removed. Nothing is read or written here.
    pub(crate) fn add(
        &mut self,
        options: &Options,
        spec: &TensorSpec<'_>,
        buffers: &TensorBuffers,
        progress: Progress,
    ) -> Result<()> {
        ask!(self, device => device.add(options, spec, buffers, progress))
    }

    /// Removes a tensor that is there. Its index is not used again. On CUDA this waits: no step uses its buffers any more.
    pub(crate) fn remove(&mut self, index: usize) -> Result<()> {
        ask!(self, device => device.remove(index))
    }

    /// Binds a tensor that is there to these buffers, from the next step on.
    pub(crate) fn bind(&mut self, index: usize, param: *mut u8, grad: *const u8) {
        ask!(self, device => device.bind(index, param, grad));
    }

    /// Waits until every step that was asked for has ended; on CUDA not for those replayed from a graph, which it does not
    /// know of.
    pub(crate) fn wait(&self) -> Result<()> {
        ask!(self, device => device.wait())
    }

    /// How far a tensor that is there has come. On CUDA this waits as [`Backend::wait`] does.
    pub(crate) fn progress(&self, index: usize) -> Result<Progress> {
        ask!(self, device => device.progress(index))
    }

    /// Sets how far a tensor that is there has come. On CUDA this waits.
    pub(crate) fn set_progress(&mut self, index: usize, progress: Progress) -> Result<()> {
        ask!(self, device => device.set_progress(index, progress))
    }

    /// Takes a step of the participants, and counts it; on CUDA, launches it. On an error nothing has changed.
    ///
    /// # Safety
    ///
    /// Until the step has ended, on CUDA on the device, the buffers of the participants:
    ///
    /// - are alive, in the device's memory, aligned for their elements, and hold `numel` elements of their types, the
    ///   thresholds one for each block. Only the master copy may be null. Where the moments have seen a step, they hold
    ///   values, and so does a master copy that has started.
    /// - are used by nobody else, and none that is written (all but the gradients) overlaps another one.
    ///
    /// On CUDA they are those that the device was told of in [`Backend::add`] and [`Backend::bind`].
    pub(crate) unsafe fn step(&mut self, request: &StepRequest<'_>) -> Result<Outcome> {
        // SAFETY: the caller's promise is the device's contract.
        ask!(self, device => unsafe { device.step(request) })
    }

    /// The norm of the participants' gradients, times |grad_scale|. On CUDA this waits for it. Nothing else changes.
    ///
    /// # Safety
    ///
    /// The gradients of the participants are alive, in the device's memory, aligned, hold `numel` elements of their types,
    /// and are not written meanwhile. Other buffers may be null.
    pub(crate) unsafe fn grad_norm(&mut self, request: &StepRequest<'_>) -> Result<f64> {
        // SAFETY: the caller's promise is the device's contract.
        ask!(self, device => unsafe { device.grad_norm(request) })
    }

    /// Copies state from where the device has it.
    ///
    /// # Safety
    ///
    /// `from` is in the device's memory, with as many bytes as `to`, which hold values and which no step is writing.
    pub(crate) unsafe fn read_state(&self, from: *const u8, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's promise is the device's contract.
        ask!(self, device => unsafe { device.read_state(from, to) })
    }

    /// Copies state to where the device has it.
    ///
    /// # Safety
    ///
    /// `to` is in the device's memory, with as many bytes as `from`, and no step is using them.
    pub(crate) unsafe fn write_state(&self, to: *mut u8, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise is the device's contract.
        ask!(self, device => unsafe { device.write_state(to, from) })
    }

    /// Bytes of work space at present.
    pub(crate) fn scratch_bytes(&self) -> u64 {
        ask!(self, device => device.scratch_bytes())
    }

    /// Bytes of the host's memory in which the device keeps track of tensors and steps.
    pub(crate) fn bookkeeping_bytes(&self) -> u64 {
        match self {
            Self::Cpu(host) => host.bookkeeping_bytes(),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => 0,
        }
    }
}

/// How many bytes [`Backend::allocate_state`] will take for state of these sizes, with the distances between its parts but
/// without the thresholds.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub(crate) fn state_bytes(device: Device, sizes: [usize; PARTS], num_blocks: u64) -> Result<u64> {
    match device {
        Device::Cpu => host::state_bytes(sizes),
        #[cfg(feature = "cuda")]
        Device::Cuda { .. } => {
            let [m, v, master] = sizes;
            let thresholds = num_blocks as usize * size_of::<u32>();
            Ok(cuda::state_bytes([m, v, master, thresholds]) - thresholds as u64)
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda { .. } => Ok(sizes.iter().map(|&size| size as u64).sum()),
    }
}

/// At most how many bytes of work space a step of one such tensor needs.
pub(crate) fn scratch_bound(options: &Options, spec: &TensorSpec<'_>) -> u64 {
    match options.device {
        #[cfg(feature = "cuda")]
        Device::Cuda { .. } => cuda::scratch_bound(options, spec),
        _ if spec.numel == 0 => 0,
        _ => cpu::scratch_bound(options, spec.numel, spec.num_blocks),
    }
}

/// True if there is a GPU that optimizers can be created for.
pub(crate) fn is_cuda_available() -> bool {
    #[cfg(feature = "cuda")]
    return cuda::is_available();
    #[cfg(not(feature = "cuda"))]
    false
}
