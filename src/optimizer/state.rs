//! What an optimizer keeps: how much, where, and how far it has come.

use std::ffi::{CStr, c_void};

use super::Optimizer;
use super::overlap::Extent;
use super::step::Participant;
use super::tensor::{Brought, Tensor, allocated_bytes, state_sizes};
use crate::backend::Backend;
use crate::config::{Dtype, Options, StateDtype, TensorSpec, step_count};
use crate::error::{Result, fail};
use crate::job::{Job, Progress};

/// What the optimizer keeps for a tensor. The pointers are valid until the tensor is removed or the
/// optimizer dropped.
#[derive(Debug)]
pub struct TensorState<'a> {
    /// The name.
    pub name: &'a CStr,
    /// Entries.
    pub numel: u64,
    /// Blocks.
    pub num_blocks: u64,
    /// Steps taken so far.
    pub step_count: u64,
    /// The parameter's type.
    pub param_dtype: Dtype,
    /// The gradient's type.
    pub grad_dtype: Dtype,
    /// The moments' type.
    pub state_dtype: StateDtype,
    /// The first moment, `numel` elements.
    pub exp_avg: *mut c_void,
    /// The second moment, `numel` elements.
    pub exp_avg_sq: *mut c_void,
    /// The master copy, `numel` elements, or null.
    pub master: *mut f32,
    /// Each block's threshold in the last step; empty on CUDA.
    pub thresholds: &'a [f32],
    /// Where these thresholds, `num_blocks` of them, lie; on CUDA in device memory.
    pub thresholds_start: *const f32,
}

/// The memory that an optimizer holds, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Moments and masters that the library allocated, with the distances between them.
    pub state: u64,
    /// Moments and masters in the caller's memory.
    pub caller_state: u64,
    /// Work space of a step.
    pub scratch: u64,
    /// Everything else.
    pub bookkeeping: u64,
    /// Tensors.
    pub num_tensors: u64,
    /// Entries of all tensors.
    pub entries: u64,
}

/// The memory that a tensor will need, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSize {
    /// The first moment.
    pub exp_avg: u64,
    /// The second moment.
    pub exp_avg_sq: u64,
    /// The master copy; 0 if the tensor needs none.
    pub master: u64,
    /// What adding the tensor allocates.
    pub allocated: u64,
    /// What a step of this tensor alone needs besides, at most.
    pub scratch: u64,
}

/// How much memory a tensor will need, if the caller brings these of first moment, second moment and master
/// copy.
///
/// # Errors
///
/// If a setting is out of range.
pub fn state_size(options: &Options, spec: &TensorSpec<'_>, brought: Brought) -> Result<StateSize> {
    options.validate()?;
    spec.validate()?;
    let (sizes, allocated) = state_sizes(options, spec, brought);
    let (_, allocated) = allocated_bytes(options.device, allocated, spec.num_blocks)?;
    let scratch = match options.device {
        #[cfg(feature = "cuda")]
        crate::config::Device::Cuda { .. } => {
            crate::cuda::space_bytes(&super::cuda::describe(options, spec))
        }
        _ => crate::cpu::scratch_bound(options, spec.numel, spec.num_blocks),
    };
    Ok(StateSize {
        exp_avg: sizes[0] as u64,
        exp_avg_sq: sizes[1] as u64,
        master: sizes[2] as u64,
        allocated: allocated.saturating_add(spec.name.len() as u64 + 1),
        scratch,
    })
}

impl Optimizer {
    /// Sets how many steps a tensor's moments have seen. With 0 the next step starts moments and master copy
    /// anew; otherwise both are taken as they now lie in memory.
    ///
    /// # Errors
    ///
    /// If there is no tensor of that index, or the count is above 2^63 - 1.
    pub fn set_step_count(&mut self, index: u64, count: u64) -> Result<()> {
        let tensor = self.tensor(index)?;
        step_count(count).map_err(|error| error.in_tensor(tensor.name()))?;
        let progress = Progress {
            step_count: count,
            master_started: count > 0,
        };
        self.set_progress(index as usize, progress)
    }

    /// How far a tensor that is there has come. On CUDA this waits.
    pub(crate) fn progress(&self, index: usize) -> Result<Progress> {
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = &self.backend {
            return cuda.progress(index);
        }
        let tensor = self.tensor(index as u64)?;
        Ok(Progress {
            step_count: tensor.step_count,
            master_started: tensor.master_started,
        })
    }

    /// Sets how far a tensor has come. On CUDA this waits.
    pub(crate) fn set_progress(&mut self, index: usize, progress: Progress) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = &mut self.backend {
            cuda.set_progress(index, progress)?;
        }
        let tensor = self.tensor_mut(index as u64)?;
        tensor.step_count = progress.step_count;
        tensor.master_started = progress.master_started;
        Ok(())
    }

    /// Refuses to go on with state of which a part was loaded.
    pub(crate) fn check_state_is_whole(&self) -> Result<()> {
        if self.half_loaded {
            fail!(
                InvalidState,
                "an earlier load broke off half-way, so that moments are lost; load a checkpoint again"
            );
        }
        Ok(())
    }

    /// What is kept for a tensor. On CUDA this waits for the steps that were taken, but not for those replayed from a
    /// graph, which the caller must have waited for.
    ///
    /// # Errors
    ///
    /// If there is no tensor of that index, or a step on CUDA has failed.
    pub fn tensor_state(&self, index: u64) -> Result<TensorState<'_>> {
        let tensor = self.tensor(index)?;
        Ok(TensorState {
            name: tensor.c_name(),
            numel: tensor.numel,
            num_blocks: tensor.num_blocks,
            step_count: self.progress(index as usize)?.step_count,
            param_dtype: tensor.param_dtype,
            grad_dtype: tensor.grad_dtype,
            state_dtype: tensor.state_dtype,
            exp_avg: tensor.exp_avg.cast(),
            exp_avg_sq: tensor.exp_avg_sq.cast(),
            master: tensor.master,
            thresholds: match &self.backend {
                Backend::Cpu(_) => tensor.host_thresholds(),
                #[cfg(feature = "cuda")]
                Backend::Cuda(_) => &[],
            },
            thresholds_start: tensor.thresholds.cast::<f32>(),
        })
    }

    /// How much memory the optimizer holds.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let mut memory = Memory {
            state: 0,
            caller_state: 0,
            scratch: self.backend.scratch_bytes(),
            bookkeeping: (size_of::<Self>()
                + self.tensors.capacity() * size_of::<Option<Tensor>>()
                + self.names.bytes()
                + self.participants.capacity() * size_of::<Participant>()
                + self.jobs.capacity() * size_of::<Job>()
                + self.extents.capacity() * size_of::<(Extent, u64)>())
                as u64,
            num_tensors: 0,
            entries: 0,
        };
        for tensor in self.tensors.iter().flatten() {
            let (owned, caller) = tensor.state_memory();
            memory.state += owned;
            memory.caller_state += caller;
            memory.bookkeeping += tensor.bookkeeping();
            memory.num_tensors += 1;
            memory.entries += tensor.numel;
        }
        memory
    }
}
