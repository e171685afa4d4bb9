//! What an optimizer keeps: how much, where, and how far it has come.

use std::ffi::{CStr, c_void};

use super::Optimizer;
use super::overlap::Extent;
use super::tensor::{Brought, StateSizes, Tensor};
use crate::backend;
use crate::config::{Dtype, Options, StateDtype, TensorSpec, step_count};
use crate::error::{Result, fail};
use crate::job::{Participant, Progress};

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
    /// The first moment, `numel` elements; null if there are none.
    pub exp_avg: *mut c_void,
    /// The second moment, likewise.
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
    let sizes = StateSizes::new(options, spec, brought);
    let [exp_avg, exp_avg_sq, master] = sizes.all.map(|bytes| bytes as u64);
    let thresholds = spec.num_blocks * size_of::<u32>() as u64;
    let name = spec.name.len() as u64 + 1;
    Ok(StateSize {
        exp_avg,
        exp_avg_sq,
        master,
        allocated: sizes
            .allocated_bytes(options, spec)?
            .saturating_add(thresholds)
            .saturating_add(name),
        scratch: backend::scratch_bound(options, spec),
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
        self.backend.set_progress(index as usize, progress)
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
            step_count: self.backend.progress(index as usize)?.step_count,
            param_dtype: tensor.param_dtype,
            grad_dtype: tensor.grad_dtype,
            state_dtype: tensor.state_dtype,
            exp_avg: tensor.buffers.exp_avg.cast(),
            exp_avg_sq: tensor.buffers.exp_avg_sq.cast(),
            master: tensor.buffers.master,
            thresholds: tensor.host_thresholds(),
            thresholds_start: tensor.buffers.thresholds.cast::<f32>(),
        })
    }

    /// How much memory the optimizer holds.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let mut memory = Memory {
            state: 0,
            caller_state: 0,
            scratch: self.backend.scratch_bytes(),
            bookkeeping: self.backend.bookkeeping_bytes()
                + (size_of::<Self>()
                    + self.tensors.capacity() * size_of::<Option<Tensor>>()
                    + self.names.bytes()
                    + self.participants.capacity() * size_of::<Participant>()
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
