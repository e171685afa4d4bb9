//! The Momentum-Filtered Optimizer (MoFO) for training engines.
//!
//! MoFO (Chen et al., TMLR 2025, [arXiv:2407.20999](https://arxiv.org/abs/2407.20999)) keeps Adam's moments
//! for every weight, but moves only the weights whose momentum is among the largest few percent of their
//! block. A fine-tuned model then stays close to the pre-trained one and forgets less.
//!
//! ```
//! use mofo::{Optimizer, Options, StepArgs, TensorBinding, TensorSpec};
//!
//! let (mut weight, grad) = (vec![1.0f32; 1000], vec![0.5f32; 1000]);
//! let mut optimizer = Optimizer::new(Options { update_fraction: 0.03, ..Options::default() })?;
//! let index = optimizer.add_tensor(&TensorSpec::new("weight", 1000))?;
//! optimizer.step(&StepArgs::default(), &mut [TensorBinding::new(index, &mut weight, &grad)])?;
//! # Ok::<(), mofo::Error>(())
//! ```
//!
//! C programs use the functions of [`ffi`], through `include/mofo.h`. What a step computes, to the last bit, is
//! written in `docs/numerics.md` and defined by [`rule`].

#[cfg(not(all(target_pointer_width = "64", target_endian = "little")))]
compile_error!("mofo supports 64-bit little-endian targets");

mod backend;
mod buffer;
mod checkpoint;
mod config;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
pub mod ffi;
mod float_environment;
mod job;
mod memory;
mod optimizer;
pub mod rule;
#[cfg(feature = "forced-paths")]
pub mod test_paths;
#[cfg(not(feature = "forced-paths"))]
mod test_paths;

pub use buffer::{GradRef, ParamMut};
pub use checkpoint::LoadReport;
pub use config::{
    CpuTier, Device, Dtype, Filter, MAX_THREADS, Options, ParallelFor, ParallelForFunction,
    Rounding, StateDtype, Task, TensorSpec, WeightDecayScope,
};
pub use error::{Error, ErrorKind, Result};
pub use job::DeviceArgs;
pub use optimizer::{
    Buffers, Memory, Optimizer, StateSize, StepArgs, StepReport, TensorBinding, TensorState,
    state_size,
};
