//! A step: which tensors take part, what is refused, and what the device is asked for.

use super::args::{StepArgs, StepReport, TensorBinding};
use super::tensor::Tensor;
use super::{Optimizer, overlap};
use crate::backend::Backend;
use crate::config::Options;
use crate::error::{Result, fail};
use crate::float_environment::DefaultEnvironment;
use crate::job::{GradientRequest, Participant, StepRequest, TensorBuffers};
use crate::memory::{try_reserve, try_reserve_one};
use crate::rule::scalars::{Hyper, gradient_factor};

/// What a call lists tensors for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Step,
    /// Only the gradients are looked at.
    Norm,
}

/// Whose buffers a step uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The bound ones.
    Bound,
    /// Those lent to the call.
    Lent,
}

impl Optimizer {
    /// Takes a step of the tensors that are lent here.
    ///
    /// # Errors
    ///
    /// If an argument is out of range, a tensor is unknown or listed twice, a slice has another length or
    /// type than its tensor, or a derived scalar is not finite. Nothing has changed then.
    pub fn step(
        &mut self,
        args: &StepArgs<'_>,
        bindings: &mut [TensorBinding<'_>],
    ) -> Result<StepReport> {
        self.backend.check_is_host("lending slices to a step")?;
        self.list_bindings(args, bindings)?;
        // SAFETY: slices are alive, valid, of the tensors' lengths and types (checked in `list_bindings`),
        // and borrowed for this call.
        unsafe { self.step_participants(args, Source::Lent) }
    }

    /// Takes a step of the bound tensors, or of those listed in `args`. On CUDA, launches it.
    ///
    /// # Safety
    ///
    /// The bound buffers keep the promise of [`Optimizer::add_tensor_with_buffers`]; on CUDA until the step has ended
    /// on the device.
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::step`], and if no tensor is bound, one has a gradient but no parameter, or
    /// buffers overlap.
    pub unsafe fn step_bound(&mut self, args: &StepArgs<'_>) -> Result<StepReport> {
        self.list_bound(args, Purpose::Step)?;
        // SAFETY: the caller's promise.
        unsafe { self.step_participants(args, Source::Bound) }
    }

    /// The global norm of the gradients of the bound tensors, or of those listed in `args`, times
    /// |grad_scale|.
    ///
    /// # Safety
    ///
    /// As for [`Optimizer::step_bound`].
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::step_bound`].
    pub unsafe fn grad_norm_bound(&mut self, args: &StepArgs<'_>) -> Result<f64> {
        self.list_bound(args, Purpose::Norm)?;
        let _environment = DefaultEnvironment::enter();
        args.validate()?;
        // SAFETY: the caller's promise; null gradients are not listed, and alignment was checked when they were bound.
        self.ask(args, |backend, request| unsafe {
            backend.grad_norm(request)
        })
    }

    /// Takes the step of `self.participants`.
    ///
    /// # Safety
    ///
    /// Their buffers are alive, as large as the tensors, and used by nobody else.
    unsafe fn step_participants(
        &mut self,
        args: &StepArgs<'_>,
        source: Source,
    ) -> Result<StepReport> {
        #[cfg(test)]
        assert!(!self.panics_in_step, "a test asked for it");
        self.check_state_is_whole()?;
        let _environment = DefaultEnvironment::enter();
        args.validate()?;
        self.check_overlaps(source)?;
        // SAFETY: the caller's promise; null, alignment and overlap were checked, and when the buffers were bound also that
        // they are in the device's memory.
        let outcome = self.ask(args, |backend, request| unsafe { backend.step(request) })?;
        Ok(StepReport {
            grad_norm: outcome.grad_norm,
            entries: self.entries(),
            entries_selected: outcome.entries_selected,
            skipped: outcome.skipped,
            blocks_estimated: outcome.blocks_estimated,
            estimates_failed: outcome.estimates_failed,
            tensors: self.participants.len() as u64,
            entries_nonfinite: outcome.entries_nonfinite,
        })
    }

    /// Lists a tensor; refuses one that is listed twice in a call.
    fn list(
        &mut self,
        args: &StepArgs<'_>,
        index: u64,
        (param, grad): (*mut u8, *const u8),
        purpose: Purpose,
    ) -> Result<()> {
        let call = self.call;
        let tensor = self.tensor_mut(index)?;
        if tensor.listed_in == call {
            fail!(
                InvalidArgument,
                "tensor \"{}\" (index {index}) is listed twice; each may be listed once",
                tensor.name()
            );
        }
        tensor.listed_in = call;
        if grad.is_null() {
            return Ok(());
        }
        if param.is_null() && purpose == Purpose::Step {
            fail!(
                InvalidBuffer,
                "tensor \"{}\": a gradient is bound, but param is NULL",
                tensor.name()
            );
        }
        try_reserve_one(&mut self.participants, "the list of tensors")?;
        let tensor = (index as usize, self.tensor(index)?);
        let participant = participant(&self.options, args, tensor, (param, grad));
        self.participants.push(participant);
        Ok(())
    }

    /// Makes `self.participants` the bound tensors of a call, in ascending order.
    fn list_bound(&mut self, args: &StepArgs<'_>, purpose: Purpose) -> Result<()> {
        self.call += 1;
        self.participants.clear();
        let is_bound = |tensor: &Tensor| {
            let TensorBuffers { param, grad, .. } = tensor.buffers;
            !param.is_null() || !grad.is_null()
        };
        if !self.tensors.iter().flatten().any(is_bound) {
            fail!(
                InvalidState,
                "no tensor is bound: add tensors, and bind their parameters and gradients, before a step"
            );
        }
        match args.tensors {
            None => {
                for index in 0..self.tensors.len() {
                    if let Some(tensor) = &self.tensors[index] {
                        let bound = (tensor.buffers.param, tensor.buffers.grad);
                        self.list(args, index as u64, bound, purpose)?;
                    }
                }
            }
            Some(indices) => {
                for &index in indices {
                    let buffers = &self.tensor(index)?.buffers;
                    let bound = (buffers.param, buffers.grad);
                    self.list(args, index, bound, purpose)?;
                }
                self.participants
                    .sort_unstable_by_key(|participant| participant.index);
            }
        }
        Ok(())
    }

    /// Makes `self.participants` the lent tensors of a call, in ascending order.
    fn list_bindings(
        &mut self,
        args: &StepArgs<'_>,
        bindings: &mut [TensorBinding<'_>],
    ) -> Result<()> {
        if args.tensors.is_some() {
            fail!(
                InvalidArgument,
                "tensors must be None where the tensors are lent to the step"
            );
        }
        self.call += 1;
        self.participants.clear();
        for binding in bindings {
            let tensor = self.tensor(binding.index)?;
            let (param, grad) = (&mut binding.param, &binding.grad);
            let expected = (
                tensor.numel,
                tensor.param_dtype,
                tensor.numel,
                tensor.grad_dtype,
            );
            let lent = (
                param.len() as u64,
                param.dtype(),
                grad.len() as u64,
                grad.dtype(),
            );
            if lent != expected {
                fail!(
                    InvalidBuffer,
                    "tensor \"{}\": the parameter and gradient lent are {} × {:?} and {} × {:?}; they must \
                     be {} × {:?} and {} × {:?}",
                    tensor.name(),
                    lent.0,
                    lent.1,
                    lent.2,
                    lent.3,
                    expected.0,
                    expected.1,
                    expected.2,
                    expected.3
                );
            }
            let lent = (param.as_mut_ptr(), grad.as_ptr());
            self.list(args, binding.index, lent, Purpose::Step)?;
        }
        self.participants
            .sort_unstable_by_key(|participant| participant.index);
        Ok(())
    }

    /// Refuses writable buffers that overlap each other or a gradient: the state of all tensors, and the
    /// parameters and gradients of this step (if they are lent) or of all tensors that have a gradient.
    fn check_overlaps(&mut self, source: Source) -> Result<()> {
        if source == Source::Bound && self.bindings_checked {
            return Ok(());
        }
        self.extents.clear();
        try_reserve(
            &mut self.extents,
            5 * self.tensors.len(),
            "the overlap check",
        )?;
        let mut participants = self.participants.iter().peekable();
        for (index, tensor) in self.tensors.iter().enumerate() {
            let lent = participants.next_if(|participant| participant.index == index);
            let Some(tensor) = tensor else {
                continue;
            };
            let (param, grad) = match (source, lent) {
                (Source::Lent, Some(lent)) => (lent.buffers.param, lent.buffers.grad),
                (Source::Bound, _) if !tensor.buffers.grad.is_null() => {
                    (tensor.buffers.param, tensor.buffers.grad)
                }
                _ => (std::ptr::null_mut(), std::ptr::null()),
            };
            for extent in tensor.extents(param, grad) {
                let extent = extent.map_err(|error| error.in_tensor(tensor.name()))?;
                if let Some(extent) = extent {
                    self.extents.push((extent, index as u64));
                }
            }
        }
        if let Some([one, other]) = overlap::find(&mut self.extents) {
            let name = |index| self.tensor(index).map_or("", Tensor::name);
            fail!(
                InvalidBuffer,
                "tensor \"{}\": {} overlaps {} of tensor \"{}\"",
                name(other.1),
                other.0,
                one.0,
                name(one.1)
            );
        }
        self.bindings_checked |= source == Source::Bound;
        Ok(())
    }

    /// Entries of the tensors that take part.
    fn entries(&self) -> u64 {
        self.participants.iter().map(|one| one.numel).sum()
    }

    /// Asks the device for something about `self.participants`.
    fn ask<T>(
        &mut self,
        args: &StepArgs<'_>,
        ask: impl FnOnce(&mut Backend, &StepRequest<'_>) -> Result<T>,
    ) -> Result<T> {
        // An unusable factor is found here even where clipping would not reach it.
        gradient_factor(args.grad_scale, 1.0)?;
        let (options, tensors) = (&self.options, &self.tensors);
        let request = StepRequest {
            options,
            participants: &self.participants,
            listed: args.tensors.is_some(),
            hyper: args.hyper_with(options),
            update_fraction: args.update_fraction_with(options),
            gradients: GradientRequest {
                grad_scale: args.grad_scale,
                grad_norm: args.grad_norm,
                max_grad_norm: options.max_grad_norm,
                skip_nonfinite: options.skip_nonfinite,
            },
            device: args.device,
            name: &|index| tensors[index].as_ref().map_or("", Tensor::name),
        };
        ask(&mut self.backend, &request)
    }
}

/// A tensor with these buffers in a step: what it does not set falls back to the step's arguments, and those to the options.
fn participant(
    options: &Options,
    args: &StepArgs<'_>,
    (index, tensor): (usize, &Tensor),
    (param, grad): (*mut u8, *const u8),
) -> Participant {
    let hyper = args.hyper_with(options);
    Participant {
        index,
        name_hash: tensor.name_hash,
        buffers: TensorBuffers {
            param,
            grad,
            ..tensor.buffers
        },
        param_dtype: tensor.param_dtype,
        grad_dtype: tensor.grad_dtype,
        state_dtype: tensor.state_dtype,
        numel: tensor.numel,
        block_numel: tensor.numel / tensor.num_blocks,
        hyper: Hyper {
            learning_rate_scale: tensor.learning_rate_scale,
            weight_decay: tensor.weight_decay.unwrap_or(hyper.weight_decay),
            ..hyper
        },
        update_fraction: tensor
            .update_fraction
            .unwrap_or_else(|| args.update_fraction_with(options)),
    }
}
