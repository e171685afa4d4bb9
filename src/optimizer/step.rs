//! A step: which tensors take part, what is refused, and the jobs of the device.

use super::args::{StepArgs, StepReport, TensorBinding};
use super::tensor::Tensor;
use super::{Optimizer, overlap};
use crate::config::step_count;
use crate::error::{Result, fail};
use crate::float_environment::DefaultEnvironment;
use crate::job::{GradientRequest, Job, RandomKeys};
use crate::memory::{try_reserve, try_reserve_one};
use crate::rule::norm;
use crate::rule::scalars::{Hyper, Scalars, gradient_factor};
use crate::rule::select::rank;

/// A tensor in a step, with the buffers of this step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Participant {
    pub(super) index: usize,
    pub(super) param: *mut u8,
    pub(super) grad: *const u8,
}

// SAFETY: participants are rebuilt in every call; between calls their pointers are not used.
unsafe impl Send for Participant {}

/// What a call lists tensors for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
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
        self.backend.cpu("lending slices to a step")?;
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
        #[cfg(feature = "cuda")]
        if !self.backend.is_cpu() {
            self.check_for_cuda(args, Purpose::Norm)?;
            // SAFETY: the caller's promise.
            return unsafe {
                self.ask_cuda(args, |cuda, options, request| {
                    cuda.grad_norm(options, request)
                })
            };
        }
        args.device.check_is_none()?;
        self.make_jobs(args, Purpose::Norm)?;
        // SAFETY: the caller's promise.
        let sum = unsafe { self.backend.cpu("the norm")?.sum_of_squares(&self.jobs)? };
        Ok(norm::norm(sum, args.grad_scale))
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
        #[cfg(feature = "cuda")]
        if !self.backend.is_cpu() {
            self.check_for_cuda(args, Purpose::Step)?;
            // SAFETY: the caller's promise; null, alignment and overlap were checked, and when the buffers were bound
            // also that they are in the device's memory.
            unsafe { self.ask_cuda(args, |cuda, options, request| cuda.step(options, request))? };
            return Ok(StepReport {
                entries: self.entries(),
                ..StepReport::default()
            });
        }
        args.device.check_is_none()?;
        self.make_jobs(args, Purpose::Step)?;
        let request = GradientRequest {
            grad_scale: args.grad_scale,
            grad_norm: args.grad_norm,
            max_grad_norm: self.options.max_grad_norm,
            skip_nonfinite: self.options.skip_nonfinite,
        };
        // SAFETY: the caller's promise; null, alignment and overlap were checked.
        let outcome = unsafe { self.backend.cpu("a step")?.step(&mut self.jobs, &request)? };
        if !outcome.skipped {
            for participant in &self.participants {
                if let Some(tensor) = &mut self.tensors[participant.index] {
                    tensor.step_count += 1;
                    tensor.master_started = true;
                }
            }
        }
        Ok(StepReport {
            grad_norm: outcome.grad_norm,
            entries: self.entries(),
            entries_selected: outcome.entries_selected,
            skipped: outcome.skipped,
            blocks_estimated: outcome.blocks_estimated,
            estimates_failed: outcome.estimates_failed,
        })
    }

    /// Lists a tensor; refuses one that is listed twice in a call.
    fn list(
        &mut self,
        index: u64,
        param: *mut u8,
        grad: *const u8,
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
        self.participants.push(Participant {
            index: index as usize,
            param,
            grad,
        });
        Ok(())
    }

    /// Makes `self.participants` the bound tensors of a call, in ascending order.
    fn list_bound(&mut self, args: &StepArgs<'_>, purpose: Purpose) -> Result<()> {
        self.call += 1;
        self.participants.clear();
        let is_bound = |tensor: &Tensor| !tensor.param.is_null() || !tensor.grad.is_null();
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
                        let (param, grad) = (tensor.param, tensor.grad);
                        self.list(index as u64, param, grad, purpose)?;
                    }
                }
            }
            Some(indices) => {
                for &index in indices {
                    let tensor = self.tensor(index)?;
                    let (param, grad) = (tensor.param, tensor.grad);
                    self.list(index, param, grad, purpose)?;
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
            let (param, grad) = (param.as_mut_ptr(), grad.as_ptr());
            self.list(binding.index, param, grad, Purpose::Step)?;
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
                (Source::Lent, Some(lent)) => (lent.param, lent.grad),
                (Source::Bound, _) if !tensor.grad.is_null() => (tensor.param, tensor.grad),
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
        let tensors = self.participants.iter().map(|one| &self.tensors[one.index]);
        tensors.flatten().map(|tensor| tensor.numel).sum()
    }

    /// A tensor's hyper-parameters in this step.
    pub(super) fn hyper(&self, args: &StepArgs<'_>, tensor: &Tensor) -> Hyper {
        let options = &self.options;
        Hyper {
            learning_rate: args.learning_rate.unwrap_or(options.learning_rate),
            learning_rate_scale: tensor.learning_rate_scale,
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            weight_decay: tensor.weight_decay.unwrap_or(options.weight_decay),
        }
    }

    /// Makes `self.jobs` of `self.participants`.
    fn make_jobs(&mut self, args: &StepArgs<'_>, purpose: Purpose) -> Result<()> {
        // An unusable factor is found here even where clipping would not reach it.
        gradient_factor(args.grad_scale, 1.0)?;
        self.jobs.clear();
        try_reserve(
            &mut self.jobs,
            self.participants.len(),
            "the work of a step",
        )?;
        let options = &self.options;
        let default_fraction = args.update_fraction.unwrap_or(options.update_fraction);
        for participant in &self.participants {
            let Some(tensor) = &self.tensors[participant.index] else {
                continue;
            };
            let hyper = self.hyper(args, tensor);
            let t = tensor.step_count + 1;
            let scalars = match purpose {
                Purpose::Norm => Scalars::default(),
                Purpose::Step => step_count(t)
                    .and_then(|()| Scalars::new(&hyper, t))
                    .map_err(|error| error.in_tensor(tensor.name()))?,
            };
            let update_fraction = tensor.update_fraction.unwrap_or(default_fraction);
            let block_numel = tensor.numel / tensor.num_blocks;
            self.jobs.push(Job {
                param: participant.param,
                grad: participant.grad,
                exp_avg: tensor.exp_avg,
                exp_avg_sq: tensor.exp_avg_sq,
                master: tensor.master,
                thresholds: tensor.thresholds,
                param_dtype: tensor.param_dtype,
                grad_dtype: tensor.grad_dtype,
                state_dtype: tensor.state_dtype,
                numel: tensor.numel,
                block_numel,
                rank: rank(update_fraction, block_numel),
                everything_moves: update_fraction == 1.0,
                starts_moments: t == 1,
                starts_master: !tensor.master.is_null() && (t == 1 || !tensor.master_started),
                scalars,
                filter: options.filter,
                weight_decay_scope: options.weight_decay_scope,
                rounding: options.rounding,
                random: RandomKeys::new(options.seed, tensor.name_hash, t),
            });
        }
        Ok(())
    }
}
