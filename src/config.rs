//! What an optimizer and its tensors are set to, and which values are allowed.

use std::ffi::c_void;

use serde::{Deserialize, Serialize};

use crate::error::{Result, fail};

/// Where an optimizer's buffers are, and where it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// In the host's memory.
    Cpu,
    /// In the memory of an NVIDIA GPU. Needs the feature `cuda`.
    Cuda {
        /// Which of those that the driver finds, from 0.
        index: usize,
    },
}

/// The element type of a parameter or gradient buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
}

impl Dtype {
    /// Bytes per element; also the alignment that a buffer needs.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// The element type of the stored moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StateDtype {
    /// 8 bytes of state per entry.
    F32,
    /// 4 bytes of state per entry, rounded stochastically: to nearest, the second moment would freeze.
    BF16,
}

impl StateDtype {
    /// Bytes per element; also the alignment that a buffer needs.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 => 2,
        }
    }

    /// The same type, as one of parameters and gradients.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub(crate) const fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::BF16 => Dtype::BF16,
        }
    }
}

/// Whose largest magnitudes decide which entries of a block move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// The first moment after this step: MoFO.
    Momentum,
    /// This step's gradient.
    Gradient,
    /// Adam's update, m / (√v + ε) with bias correction.
    Update,
    /// A fresh random draw at every step.
    Random,
}

/// Which entries are decayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDecayScope {
    /// Only the entries that move; the others keep their bits.
    Selected,
    /// Every entry, as in the authors' code.
    All,
}

/// How a parameter of 16 bits without a master copy is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// To nearest, ties to even. Updates of less than half a unit in the last place are lost.
    Nearest,
    /// Up or down with a probability proportional to the distance: unbiased.
    Stochastic,
}

/// An instruction set that the loops are compiled for. All of them give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CpuTier {
    /// What the target's baseline has: SSE2 on x86-64, NEON on aarch64.
    Portable,
    /// AVX2 with F16C and BMI on x86-64.
    Avx2,
    /// AVX-512 F, BW, DQ and VL on x86-64.
    Avx512,
}

/// One task of a [`ParallelFor`]: `task(task_ctx, i)`.
pub type Task = unsafe extern "C" fn(task_ctx: *mut c_void, i: i64);

/// The engine's own parallel loop: runs `task(task_ctx, i)` for every `i` from 0 to `n - 1`, in any order,
/// on any threads, serially if it likes, and returns after all of them.
pub type ParallelForFunction =
    unsafe extern "C" fn(ctx: *mut c_void, n: i64, task: Task, task_ctx: *mut c_void);

/// A [`ParallelForFunction`] with its context.
#[derive(Clone, Copy, Debug)]
pub struct ParallelFor {
    pub(crate) function: ParallelForFunction,
    pub(crate) ctx: *mut c_void,
}

// SAFETY: `ParallelFor::new` asks that the function may be called with this context from whichever
// thread uses the optimizer.
unsafe impl Send for ParallelFor {}

impl ParallelFor {
    /// Wraps an engine's loop.
    ///
    /// # Safety
    ///
    /// As long as an optimizer holds it, `function` may be called with `ctx` from any thread that uses
    /// the optimizer, and calls its task only before it returns.
    #[must_use]
    pub unsafe fn new(function: ParallelForFunction, ctx: *mut c_void) -> Self {
        Self { function, ctx }
    }
}

/// The settings of an optimizer. [`Options::default`] is what `mofo_options_init` fills in.
#[derive(Clone, Debug)]
pub struct Options {
    /// Default [`Device::Cpu`].
    pub device: Device,
    /// η, finite and at least 0. Default 1e-3.
    pub learning_rate: f64,
    /// β1 in [0, 1). Default 0.9.
    pub beta1: f64,
    /// β2 in [0, 1). Default 0.999.
    pub beta2: f64,
    /// ε, finite and at least 0. Default 1e-8.
    pub epsilon: f64,
    /// λ, decoupled, finite and at least 0. Default 0.
    pub weight_decay: f64,
    /// Default [`WeightDecayScope::Selected`].
    pub weight_decay_scope: WeightDecayScope,
    /// α in (0, 1], the fraction of each block that moves; 1 is AdamW. Default 0.1.
    pub update_fraction: f64,
    /// Default [`Filter::Momentum`].
    pub filter: Filter,
    /// Default [`StateDtype::F32`].
    pub state_dtype: StateDtype,
    /// Keep an f32 master copy of each parameter of 16 bits. Default false.
    pub master_weights: bool,
    /// For parameters of 16 bits without a master copy. Default [`Rounding::Stochastic`].
    pub rounding: Rounding,
    /// Skip a step whose gradients hold a NaN or an infinity. Default false.
    pub skip_nonfinite: bool,
    /// Seed of every random draw. Default 0.
    pub seed: u64,
    /// Clip the global gradient norm to this, finite and at least 0; 0 turns clipping off. Default 0.
    pub max_grad_norm: f64,
    /// Threads of a step, the calling one included; 0 is all that the process may use. Default 0.
    pub num_threads: usize,
    /// Default `None`: what the environment variable `MOFO_CPU_TIER` names ("portable", "avx2" or "avx512"), and where
    /// that is not set, or empty, the best that the machine has. Where a tier is given here, the variable is ignored.
    pub cpu_tier: Option<CpuTier>,
    /// Run the tasks of a step in the engine's threads instead of the library's own. Default `None`.
    pub parallel_for: Option<ParallelFor>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            weight_decay_scope: WeightDecayScope::Selected,
            update_fraction: 0.1,
            filter: Filter::Momentum,
            state_dtype: StateDtype::F32,
            master_weights: false,
            rounding: Rounding::Stochastic,
            skip_nonfinite: false,
            seed: 0,
            max_grad_norm: 0.0,
            num_threads: 0,
            cpu_tier: None,
            parallel_for: None,
        }
    }
}

/// More threads than this are refused: a mistyped number should not exhaust the system.
pub const MAX_THREADS: usize = 1024;

impl Options {
    pub(crate) fn validate(&self) -> Result<()> {
        at_least_zero("learning_rate", self.learning_rate)?;
        below_one("beta1", self.beta1)?;
        below_one("beta2", self.beta2)?;
        at_least_zero("epsilon", self.epsilon)?;
        at_least_zero("weight_decay", self.weight_decay)?;
        fraction("update_fraction", self.update_fraction)?;
        at_least_zero("max_grad_norm", self.max_grad_norm)?;
        if self.num_threads > MAX_THREADS {
            fail!(
                InvalidArgument,
                "num_threads is {}; it must be from 0 (all) to {MAX_THREADS}",
                self.num_threads
            );
        }
        Ok(())
    }

    /// A tensor whose parameter is of this type has a master copy.
    pub(crate) fn has_master(&self, param_dtype: Dtype) -> bool {
        self.master_weights && param_dtype != Dtype::F32
    }
}

/// One parameter tensor, to be added to an optimizer.
#[derive(Clone, Debug)]
pub struct TensorSpec<'a> {
    /// Unique within the optimizer, not empty: the key in checkpoints and of the random bits.
    pub name: &'a str,
    /// Entries. A tensor of 0 takes part in steps, and nothing happens but that they are counted.
    pub numel: u64,
    /// Equal contiguous blocks, each with its own largest α; a divisor of `numel`, of 0 any number from 1 on. Default 1.
    pub num_blocks: u64,
    /// Default [`Dtype::F32`].
    pub param_dtype: Dtype,
    /// Default [`Dtype::F32`].
    pub grad_dtype: Dtype,
    /// α of this tensor; `None` is the optimizer's. Biases and norm weights are usually given 1.
    pub update_fraction: Option<f64>,
    /// λ of this tensor; `None` is the optimizer's.
    pub weight_decay: Option<f64>,
    /// Multiplies η for this tensor, finite and at least 0. Default 1.
    pub learning_rate_scale: f64,
    /// Steps that the moments have already seen. Default 0.
    pub step_count: u64,
}

impl<'a> TensorSpec<'a> {
    /// A tensor of `numel` entries in f32, one block, everything else as the optimizer has it.
    #[must_use]
    pub fn new(name: &'a str, numel: u64) -> Self {
        Self {
            name,
            numel,
            num_blocks: 1,
            param_dtype: Dtype::F32,
            grad_dtype: Dtype::F32,
            update_fraction: None,
            weight_decay: None,
            learning_rate_scale: 1.0,
            step_count: 0,
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.check().map_err(|error| error.in_tensor(self.name))
    }

    fn check(&self) -> Result<()> {
        // No buffer can be larger than the address space, and the widest element has 4 bytes.
        const MAX_NUMEL: u64 = isize::MAX as u64 / 4;
        if self.numel > MAX_NUMEL {
            fail!(
                InvalidArgument,
                "numel is {}; it must be at most {MAX_NUMEL}",
                self.numel
            );
        }
        // 0 is a multiple of every number; what no buffer could hold are its blocks' thresholds then.
        let divides = (1..=MAX_NUMEL).contains(&self.num_blocks)
            && self.numel.is_multiple_of(self.num_blocks);
        if !divides {
            fail!(
                InvalidArgument,
                "num_blocks is {}; it must divide numel, {}, and be at most {MAX_NUMEL}",
                self.num_blocks,
                self.numel
            );
        }
        if let Some(value) = self.update_fraction {
            fraction("update_fraction", value)?;
        }
        if let Some(value) = self.weight_decay {
            at_least_zero("weight_decay", value)?;
        }
        at_least_zero("learning_rate_scale", self.learning_rate_scale)?;
        step_count(self.step_count)
    }

    /// Entries per block.
    #[must_use]
    pub fn block_numel(&self) -> u64 {
        self.numel / self.num_blocks
    }
}

/// Refuses what is not a finite number of at least 0.
pub(crate) fn at_least_zero(what: &str, value: f64) -> Result<()> {
    if !(value.is_finite() && value >= 0.0) {
        fail!(
            InvalidArgument,
            "{what} is {value}; it must be finite and at least 0"
        );
    }
    Ok(())
}

/// Refuses what is outside [0, 1).
pub(crate) fn below_one(what: &str, value: f64) -> Result<()> {
    if !(0.0..1.0).contains(&value) {
        fail!(
            InvalidArgument,
            "{what} is {value}; it must be at least 0 and below 1"
        );
    }
    Ok(())
}

/// Refuses what is outside (0, 1].
pub(crate) fn fraction(what: &str, value: f64) -> Result<()> {
    if !(value > 0.0 && value <= 1.0) {
        fail!(
            InvalidArgument,
            "{what} is {value}; it must be above 0 and at most 1"
        );
    }
    Ok(())
}

/// Refuses a step counter that could not be counted further.
pub(crate) fn step_count(value: u64) -> Result<()> {
    const MAX: u64 = i64::MAX as u64;
    if value > MAX {
        fail!(
            InvalidArgument,
            "step_count is {value}; it must be at most {MAX}"
        );
    }
    Ok(())
}
