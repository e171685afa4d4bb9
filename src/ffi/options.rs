//! `mofo_options`: the settings of an optimizer.

use std::ffi::c_void;
use std::mem::size_of;

use super::enums::Number;
use super::panic::guard;
use super::structs::{InputStruct, initialise, read};
use crate::config::{Device, MAX_THREADS, Options, ParallelFor, ParallelForFunction};
use crate::error::{Result, fail};

/// "As the optimizer has it": the value of a setting that is not set here.
pub const MOFO_INHERIT: f64 = -1.0;

/// The buffers are in the host's memory.
pub const MOFO_DEVICE_CPU: i32 = 0;
/// The buffers are in the memory of an NVIDIA GPU.
pub const MOFO_DEVICE_CUDA: i32 = 1;

/// IEEE 754 binary32, C's `float`.
pub const MOFO_DTYPE_F32: i32 = 0;
/// IEEE 754 binary16.
pub const MOFO_DTYPE_F16: i32 = 1;
/// The upper 16 bits of a binary32.
pub const MOFO_DTYPE_BF16: i32 = 2;

/// The largest |first moment| of each block move: MoFO.
pub const MOFO_FILTER_MOMENTUM: i32 = 0;
/// The largest |gradient| of each block move. For comparisons.
pub const MOFO_FILTER_GRADIENT: i32 = 1;
/// The largest |Adam update| of each block move. For comparisons.
pub const MOFO_FILTER_UPDATE: i32 = 2;
/// Entries drawn at random at every step move. For comparisons.
pub const MOFO_FILTER_RANDOM: i32 = 3;

/// Weight decay reaches the entries that move; all others keep their bits.
pub const MOFO_WEIGHT_DECAY_SELECTED: i32 = 0;
/// Weight decay reaches every entry, as in the MoFO authors' code.
pub const MOFO_WEIGHT_DECAY_ALL: i32 = 1;

/// To nearest, ties to even: updates below half a unit in the last place of the weight are lost.
pub const MOFO_ROUNDING_NEAREST: i32 = 0;
/// Up or down at random, with probabilities that make the rounding unbiased.
pub const MOFO_ROUNDING_STOCHASTIC: i32 = 1;

/// The best that the machine has, unless the environment variable `MOFO_CPU_TIER` names another.
pub const MOFO_CPU_TIER_BEST: i32 = 0;
/// The baseline of the target: SSE2 on x86-64, NEON on aarch64.
pub const MOFO_CPU_TIER_PORTABLE: i32 = 1;
/// AVX2 with F16C and BMI (x86-64).
pub const MOFO_CPU_TIER_AVX2: i32 = 2;
/// AVX-512 F, BW, DQ and VL (x86-64).
pub const MOFO_CPU_TIER_AVX512: i32 = 3;

/// One task of a step; `i` is its number. The library passes it to the engine's `mofo_parallel_for`.
#[allow(non_camel_case_types)]
pub type mofo_task = Option<unsafe extern "C" fn(task_ctx: *mut c_void, i: i64)>;

/// The engine's parallel loop: calls `task(task_ctx, i)` once for every `i` from 0 to `n - 1`, in any
/// order, on any threads, serially if it likes, and returns when all of them have returned. Tasks never
/// wait for each other, and need less than 64 KiB of stack. It must not throw or jump out of the call, nor use
/// the optimizer that called it. Each step first tries it with tasks that do nothing: if it leaves one out,
/// the step fails with `MOFO_ERROR_PARALLEL_FOR` before anything is written; tasks that it leaves out later
/// are run by the library on the calling thread. `ctx` is `mofo_options.parallel_for_ctx`.
#[allow(non_camel_case_types)]
pub type mofo_parallel_for =
    Option<unsafe extern "C" fn(ctx: *mut c_void, n: i64, task: mofo_task, task_ctx: *mut c_void)>;

/// The settings of an optimizer. Fill it with `mofo_options_init`, then change what should differ.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct mofo_options {
    /// Set by `mofo_options_init`: the size of the struct that the caller was compiled with.
    pub struct_size: u64,
    /// `MOFO_DEVICE_CPU` (default) or `MOFO_DEVICE_CUDA`.
    pub device: i32,
    /// Which GPU, as the CUDA driver counts them, from 0. Not looked at on the CPU. Default 0.
    pub device_index: i32,
    /// Learning rate: finite, at least 0. Default 1e-3.
    pub learning_rate: f64,
    /// Decay rate of the first moment: in [0, 1). Default 0.9.
    pub beta1: f64,
    /// Decay rate of the second moment: in [0, 1). Default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment: finite, at least 0. Default 1e-8. Below 1e-17, and with 0, gradients below
    /// 4e-18 can move entries far, or to infinity: docs/numerics.md.
    pub epsilon: f64,
    /// Decoupled weight decay: finite, at least 0. Default 0.
    pub weight_decay: f64,
    /// `MOFO_WEIGHT_DECAY_SELECTED` (default) or `MOFO_WEIGHT_DECAY_ALL`.
    pub weight_decay_scope: i32,
    /// `MOFO_FILTER_MOMENTUM` (default) or another `MOFO_FILTER_...`.
    pub filter: i32,
    /// Update fraction: the share of each block that moves in a step, in (0, 1]; 1 is AdamW. The MoFO
    /// paper uses 0.03 to 0.2. Default 0.1.
    pub update_fraction: f64,
    /// The type of both moments: `MOFO_DTYPE_F32` (default), or `MOFO_DTYPE_BF16`, rounded stochastically.
    pub state_dtype: i32,
    /// 1: keep an f32 master copy of every parameter of 16 bits, whose rounding to nearest the parameter
    /// then is. No effect on f32 parameters. Default 0.
    pub master_weights: i32,
    /// For parameters of 16 bits without a master copy: `MOFO_ROUNDING_STOCHASTIC` (default) or
    /// `MOFO_ROUNDING_NEAREST`.
    pub rounding: i32,
    /// 1: leave a step out when a gradient holds a NaN or an infinity (`MOFO_SKIPPED`). Default 0.
    pub skip_nonfinite: i32,
    /// Seed of every random draw. Default 0.
    pub seed: u64,
    /// Scale the gradients down so that their global norm is at most this: finite, at least 0; 0 (default)
    /// turns clipping off.
    pub max_grad_norm: f64,
    /// Threads of a step, the calling one included: 0 (default) is all that the process may use, 1 starts
    /// no thread; at most 1024. With `parallel_for`, into how many tasks a step is cut.
    pub num_threads: i32,
    /// `MOFO_CPU_TIER_BEST` (default) or another `MOFO_CPU_TIER_...`. All give the same bits. A tier that the machine
    /// lacks is `MOFO_ERROR_UNSUPPORTED`. With `MOFO_CPU_TIER_BEST`, and only then, the environment variable
    /// `MOFO_CPU_TIER` can name a tier: "portable", "avx2" or "avx512"; unset or empty it names none, and anything
    /// else is `MOFO_ERROR_INVALID_ARGUMENT`. `mofo_cpu_tier` tells which one is used.
    pub cpu_tier: i32,
    /// The engine's parallel loop, to be used instead of threads of the library's own. NULL (default):
    /// the library's own.
    pub parallel_for: mofo_parallel_for,
    /// Passed to every call of `parallel_for`. May be NULL.
    pub parallel_for_ctx: *mut c_void,
}

// SAFETY: `repr(C)`, starts with a u64, and the fields fill it without padding: 8 × 1 + 4 × 2 + 8 × 5 +
// 4 × 2 + 8 + 4 × 4 + 8 × 2 + 4 × 2 + 8 × 2 = 128 bytes (asserted below). Integers, floats and nullable
// pointers have no invalid bit patterns; a function pointer is only trusted as much as C does.
unsafe impl InputStruct for mofo_options {
    const NAME: &'static str = "mofo_options";
    const VERSION_1_SIZE: u64 = 128;

    fn defaults() -> Self {
        let defaults = Options::default();
        Self {
            struct_size: size_of::<Self>() as u64,
            device: MOFO_DEVICE_CPU,
            device_index: 0,
            learning_rate: defaults.learning_rate,
            beta1: defaults.beta1,
            beta2: defaults.beta2,
            epsilon: defaults.epsilon,
            weight_decay: defaults.weight_decay,
            weight_decay_scope: defaults.weight_decay_scope.number(),
            filter: defaults.filter.number(),
            update_fraction: defaults.update_fraction,
            state_dtype: defaults.state_dtype.number(),
            master_weights: defaults.master_weights.number(),
            rounding: defaults.rounding.number(),
            skip_nonfinite: defaults.skip_nonfinite.number(),
            seed: defaults.seed,
            max_grad_norm: defaults.max_grad_norm,
            num_threads: 0,
            cpu_tier: defaults.cpu_tier.number(),
            parallel_for: None,
            parallel_for_ctx: std::ptr::null_mut(),
        }
    }
}

const _: () = assert!(size_of::<mofo_options>() == 128);

/// Fills `*options` with the defaults; `size` is `sizeof *options`.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT` if `options` is NULL or `size` is not that of a `mofo_options`.
///
/// # Safety
///
/// `options` is NULL or points to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_options_init(options: *mut mofo_options, size: u64) -> i32 {
    // SAFETY: the caller's promise is that of `initialise`.
    guard(|| unsafe { initialise(options, size) })
}

/// Reads and translates the caller's options; values are checked by the safe library.
///
/// # Safety
///
/// As for [`read`].
pub(super) unsafe fn read_options(pointer: *const mofo_options) -> Result<Options> {
    // SAFETY: the caller's promise.
    let c = unsafe { read(pointer)? };
    let device = match c.device {
        MOFO_DEVICE_CPU => Device::Cpu,
        MOFO_DEVICE_CUDA => match usize::try_from(c.device_index) {
            Ok(index) => Device::Cuda { index },
            Err(_) => fail!(
                InvalidArgument,
                "device_index is {}; it must be at least 0",
                c.device_index
            ),
        },
        device => fail!(
            InvalidArgument,
            "device is {device}; it must be 0 (CPU) or 1 (CUDA)"
        ),
    };
    let Ok(num_threads) = usize::try_from(c.num_threads) else {
        fail!(
            InvalidArgument,
            "num_threads is {}; it must be from 0 (all) to {MAX_THREADS}",
            c.num_threads
        );
    };
    let parallel_for = c.parallel_for.map(|function| {
        // SAFETY: `mofo_parallel_for` and `ParallelForFunction` differ only in that the former's task may
        // be NULL, which the library never passes; C functions of both types have the same ABI. The
        // header asks of the engine what `ParallelFor::new` asks.
        unsafe {
            ParallelFor::new(
                std::mem::transmute::<
                    unsafe extern "C" fn(*mut c_void, i64, mofo_task, *mut c_void),
                    ParallelForFunction,
                >(function),
                c.parallel_for_ctx,
            )
        }
    });
    Ok(Options {
        device,
        learning_rate: c.learning_rate,
        beta1: c.beta1,
        beta2: c.beta2,
        epsilon: c.epsilon,
        weight_decay: c.weight_decay,
        weight_decay_scope: Number::read("weight_decay_scope", c.weight_decay_scope)?,
        update_fraction: c.update_fraction,
        filter: Number::read("filter", c.filter)?,
        state_dtype: Number::read("state_dtype", c.state_dtype)?,
        master_weights: Number::read("master_weights", c.master_weights)?,
        rounding: Number::read("rounding", c.rounding)?,
        skip_nonfinite: Number::read("skip_nonfinite", c.skip_nonfinite)?,
        seed: c.seed,
        max_grad_norm: c.max_grad_norm,
        num_threads,
        cpu_tier: Number::read("cpu_tier", c.cpu_tier)?,
        parallel_for,
    })
}
