//! What the optimizer asks of a device.

use std::ffi::c_void;

use crate::config::{Device, Dtype, Filter, Options, Rounding, StateDtype, WeightDecayScope};
use crate::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::cuda::Cuda;
use crate::error::{Result, fail};
use crate::rule::random::{Key, Stream};
use crate::rule::scalars::Scalars;

/// One tensor's share of a step: the buffers, and everything that can be known before the gradients are
/// read.
///
/// A job is made by the optimizer, which has checked that the pointers are not null (the master's apart),
/// aligned for their elements, and that no two writable ranges overlap each other or a gradient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub param: *mut u8,
    pub grad: *const u8,
    pub exp_avg: *mut u8,
    pub exp_avg_sq: *mut u8,
    /// Null if the tensor has no master copy.
    pub master: *mut f32,
    /// `num_blocks` thresholds, as bits of floats.
    pub thresholds: *mut u32,
    pub param_dtype: Dtype,
    pub grad_dtype: Dtype,
    pub state_dtype: StateDtype,
    pub numel: u64,
    pub block_numel: u64,
    /// k, of each block.
    pub rank: u64,
    /// α is 1: AdamW.
    pub everything_moves: bool,
    /// The moments count as zero.
    pub starts_moments: bool,
    /// There is a master copy, and it starts from the parameter.
    pub starts_master: bool,
    /// With s still 1; the backend sets it once the gradient norm is known.
    pub scalars: Scalars,
    pub filter: Filter,
    pub weight_decay_scope: WeightDecayScope,
    pub rounding: Rounding,
    pub random: RandomKeys,
}

impl Job {
    /// The same job, but a step of it would leave the moments as they are: keys are those of the stored moments.
    pub(crate) fn after_step(&self) -> Self {
        Self {
            scalars: Scalars {
                b1: 1.0,
                c1: 0.0,
                b2: 1.0,
                c2: 0.0,
                ..self.scalars
            },
            // It counts for nothing, so it may be what is read anyway.
            grad: self.exp_avg,
            grad_dtype: match self.state_dtype {
                StateDtype::F32 => Dtype::F32,
                StateDtype::BF16 => Dtype::BF16,
            },
            ..*self
        }
    }
}

// SAFETY: a job is a description; the threads of a step access disjoint ranges of its buffers.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

/// The keys of all streams of a tensor's step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RandomKeys {
    seed: u64,
    name_hash: u64,
    t: u64,
    /// Of the first 2^32 entries, because loops over short ranges ask for them again and again.
    low: SpanKeys,
}

/// The keys of all streams for 2^32 consecutive entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpanKeys {
    /// Of the first round, which the streams share.
    pub first: u32,
    pub exp_avg: u32,
    pub exp_avg_sq: u32,
    pub param: u32,
    pub filter: u32,
}

impl RandomKeys {
    pub(crate) fn new(seed: u64, name_hash: u64, t: u64) -> Self {
        Self {
            seed,
            name_hash,
            t,
            low: SpanKeys::new(seed, name_hash, t, 0),
        }
    }

    /// The keys of the entries whose upper 32 index bits are `high`.
    #[inline]
    pub(crate) fn span(&self, high: u32) -> SpanKeys {
        if high == 0 {
            self.low
        } else {
            SpanKeys::new(self.seed, self.name_hash, self.t, high)
        }
    }
}

impl SpanKeys {
    #[cold]
    fn new(seed: u64, name_hash: u64, t: u64, high: u32) -> Self {
        let key = |stream| Key::new(seed, name_hash, t, stream).span(high);
        Self {
            first: key(Stream::ExpAvg).first,
            exp_avg: key(Stream::ExpAvg).second,
            exp_avg_sq: key(Stream::ExpAvgSq).second,
            param: key(Stream::Param).second,
            filter: key(Stream::Filter).second,
        }
    }
}

/// How the gradients of a step are scaled, and when the step is skipped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GradientRequest {
    pub grad_scale: f64,
    /// The norm, if the caller knows it.
    pub grad_norm: Option<f64>,
    /// 0 if clipping is off.
    pub max_grad_norm: f64,
    pub skip_nonfinite: bool,
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// The norm, if it was needed.
    pub grad_norm: Option<f64>,
    pub skipped: bool,
    pub entries_selected: u64,
    pub blocks_estimated: u64,
    pub estimates_failed: u64,
}

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
