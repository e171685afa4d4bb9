//! The optimizer: its tensors, their step counters, and what is asked of the device in each step.

mod args;
mod names;
mod overlap;
mod state;
mod step;
mod tensor;

use std::ffi::c_void;

use crate::backend::Backend;
use crate::config::{CpuTier, Device, Options, TensorSpec};
use crate::error::{Error, ErrorKind, Result, fail};
use crate::job::{Participant, Progress};
use crate::memory::try_reserve_one;
use crate::rule::random::hash_name;
use names::Names;
use overlap::Extent;

pub use args::{StepArgs, StepReport, TensorBinding};
pub use state::{Memory, StateSize, TensorState, state_size};
pub use tensor::Buffers;
pub(crate) use tensor::Tensor;

/// The Momentum-Filtered Optimizer over a set of tensors.
///
/// Parameters and gradients belong to the caller. Either they are lent to each [`Optimizer::step`], or raw
/// pointers are bound once and used by [`Optimizer::step_bound`].
#[derive(Debug)]
pub struct Optimizer {
    pub(crate) options: Options,
    pub(crate) backend: Backend,
    /// By index; removed tensors leave a gap.
    pub(crate) tensors: Vec<Option<Tensor>>,
    names: Names,
    /// Numbers the calls that list tensors.
    call: u64,
    /// The bound buffers and the state of all tensors were seen not to overlap.
    bindings_checked: bool,
    /// A checkpoint was checked, but then could not be read to its end: what is in memory is part of each.
    pub(crate) half_loaded: bool,
    /// Of the present call.
    participants: Vec<Participant>,
    extents: Vec<(Extent, u64)>,
    #[cfg(test)]
    pub(crate) panics_in_step: bool,
}

impl Optimizer {
    /// An optimizer without tensors. Starts no thread.
    ///
    /// # Errors
    ///
    /// If a setting is out of range, the CPU tier is not there, or memory is short.
    pub fn new(options: Options) -> Result<Self> {
        options.validate()?;
        let backend = Backend::new(&options)?;
        Ok(Self {
            options,
            backend,
            tensors: Vec::new(),
            names: Names::default(),
            call: 0,
            bindings_checked: false,
            half_loaded: false,
            participants: Vec::new(),
            extents: Vec::new(),
            #[cfg(test)]
            panics_in_step: false,
        })
    }

    /// Adds a tensor and allocates its state; its index. Indices count up from 0 and are not used again.
    ///
    /// # Errors
    ///
    /// If a setting is out of range, the name is taken, or memory is short.
    pub fn add_tensor(&mut self, spec: &TensorSpec<'_>) -> Result<u64> {
        // SAFETY: there are no buffers to promise anything about.
        unsafe { self.add_tensor_with_buffers(spec, Buffers::default()) }
    }

    /// Adds a tensor that is bound to the caller's buffers from the start, or whose state lies in the caller's
    /// memory.
    ///
    /// # Safety
    ///
    /// Until the tensor is removed, bound to others or the optimizer dropped, every buffer that is not null
    /// is alive, holds `numel` elements, and is not touched by others during a call. Where `numel` is 0 they are not looked
    /// at.
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::add_tensor`], and if the buffers are misaligned or overlap each other.
    pub unsafe fn add_tensor_with_buffers(
        &mut self,
        spec: &TensorSpec<'_>,
        buffers: Buffers,
    ) -> Result<u64> {
        spec.validate()?;
        let name = spec.name;
        if name.is_empty() || name.contains('\0') {
            fail!(
                InvalidArgument,
                "tensor \"{name}\": the name must not be empty nor contain NUL"
            );
        }
        if let Some(index) = self.position(name) {
            fail!(
                InvalidArgument,
                "tensor \"{name}\": the name is taken by tensor {index}; names must be unique"
            );
        }
        try_reserve_one(&mut self.tensors, "the tensor list")?;
        self.names.reserve()?;
        let tensor = Tensor::new(&self.options, spec, &buffers, &self.backend)
            .map_err(|error| error.in_tensor(name))?;
        let progress = Progress {
            step_count: spec.step_count,
            master_started: !buffers.master.is_null() && spec.step_count > 0,
        };
        self.backend
            .add(&self.options, spec, &tensor.buffers, progress)
            .map_err(|error| error.in_tensor(name))?;
        self.names.insert(tensor.name_hash, self.tensors.len());
        self.tensors.push(Some(tensor));
        self.bindings_checked = false;
        Ok(self.tensors.len() as u64 - 1)
    }

    /// Removes a tensor and frees its state.
    ///
    /// # Errors
    ///
    /// If there is no tensor of that index.
    pub fn remove_tensor(&mut self, index: u64) -> Result<()> {
        self.tensor(index)?;
        self.backend.remove(index as usize)?;
        if let Some(tensor) = self.tensors[index as usize].take() {
            self.names.remove(tensor.name_hash, index as usize);
        }
        Ok(())
    }

    /// The index of the tensor of that name.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn find_tensor(&self, name: &str) -> Result<u64> {
        match self.position(name) {
            Some(index) => Ok(index as u64),
            None => fail!(NotFound, "no tensor has the name \"{name}\""),
        }
    }

    fn position(&self, name: &str) -> Option<usize> {
        let name_hash = hash_name(name);
        let is_named = |tensor: &Option<Tensor>| {
            let tensor = tensor.as_ref();
            tensor.is_some_and(|tensor| tensor.name_hash == name_hash && tensor.name() == name)
        };
        let index = self.names.get(name_hash);
        match index.filter(|&index| is_named(&self.tensors[index])) {
            None if self.names.collided => self.tensors.iter().position(is_named),
            index => index,
        }
    }

    /// Binds a tensor to these buffers from now on; null unbinds.
    ///
    /// # Safety
    ///
    /// As for [`Optimizer::add_tensor_with_buffers`].
    ///
    /// # Errors
    ///
    /// If there is no tensor of that index, or the buffers are misaligned or overlap each other or the
    /// tensor's state.
    pub unsafe fn bind_tensor(
        &mut self,
        index: u64,
        param: *mut c_void,
        grad: *const c_void,
    ) -> Result<()> {
        let tensor = self.tensor(index)?;
        let bound = Buffers {
            param,
            grad,
            ..Buffers::default()
        };
        let Buffers { param, grad, .. } = bound.of_entries(tensor.numel);
        let (param, grad) = (param.cast(), grad.cast());
        let check = || {
            tensor.check_own_buffers(param, grad)?;
            let bound = [tensor.buffers.param.cast_const(), tensor.buffers.grad];
            for (extent, bound) in tensor.param_and_grad(param, grad).into_iter().zip(bound) {
                // Where a device is asked, a buffer that stays costs nothing: engines bind anew in every step.
                if let Some(extent) = extent?
                    && extent.start != bound as usize
                {
                    extent.check_memory(&self.backend)?;
                }
            }
            Ok(())
        };
        check().map_err(|error: Error| error.in_tensor(tensor.name()))?;
        self.backend.bind(index as usize, param, grad);
        let buffers = &mut self.tensor_mut(index)?.buffers;
        buffers.param = param;
        buffers.grad = grad;
        self.bindings_checked = false;
        Ok(())
    }

    /// Waits until every step that was launched has ended and its results are there: parameters, state and report. Not for
    /// steps replayed from a CUDA graph: of these the optimizer does not know. On the CPU there is nothing to wait for.
    ///
    /// # Errors
    ///
    /// If CUDA fails, now or in what it was waited for.
    pub fn wait(&self) -> Result<()> {
        self.backend.wait()
    }

    /// Where the optimizer works.
    #[must_use]
    pub fn device(&self) -> Device {
        self.options.device
    }

    /// The instruction set in use; `None` on CUDA.
    #[must_use]
    pub fn cpu_tier(&self) -> Option<CpuTier> {
        self.backend.tier()
    }

    fn tensor(&self, index: u64) -> Result<&Tensor> {
        let slot = usize::try_from(index)
            .ok()
            .and_then(|index| self.tensors.get(index));
        match slot {
            Some(Some(tensor)) => Ok(tensor),
            Some(None) => fail!(NotFound, "tensor {index} was removed"),
            None => fail!(
                NotFound,
                "tensor {index} does not exist; {} were added",
                self.tensors.len()
            ),
        }
    }

    fn tensor_mut(&mut self, index: u64) -> Result<&mut Tensor> {
        self.tensor(index)?;
        // `tensor` has seen that it is there.
        self.tensors[index as usize].as_mut().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format_args!("tensor {index} was removed"),
            )
        })
    }
}
