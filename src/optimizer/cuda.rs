//! What is particular to CUDA: how the device is told of tensors and steps.

use super::Optimizer;
use super::args::StepArgs;
use super::step::Purpose;
use crate::backend::Backend;
use crate::config::{Dtype, Options, TensorSpec};
use crate::cuda::{Cuda, Description, Record, Request, dtype_number, state_dtype_number};
use crate::error::{Result, fail};
use crate::memory::try_reserve;
use crate::rule::random::hash_name;
use crate::rule::scalars::{Scalars, gradient_factor};

/// A tensor without buffers, as the CUDA backend is told of it.
pub(super) fn describe(options: &Options, spec: &TensorSpec<'_>) -> Description {
    let has_master = options.master_weights && spec.param_dtype != Dtype::F32;
    let entry_bytes = spec.param_dtype.size()
        + spec.grad_dtype.size()
        + 2 * options.state_dtype.size()
        + if has_master { 4 } else { 0 };
    Description {
        record: Record {
            numel: spec.numel,
            block_numel: spec.block_numel(),
            name_hash: hash_name(spec.name),
            step_count: spec.step_count,
            update_fraction: spec.update_fraction.unwrap_or(-1.0),
            weight_decay: spec.weight_decay.unwrap_or(-1.0),
            learning_rate_scale: spec.learning_rate_scale,
            param_dtype: dtype_number(spec.param_dtype),
            grad_dtype: dtype_number(spec.grad_dtype),
            state_dtype: state_dtype_number(options.state_dtype),
            ..Record::default()
        },
        update_fraction: spec.update_fraction.unwrap_or(options.update_fraction),
        always_everything: spec.update_fraction == Some(1.0),
        entry_bytes: entry_bytes as u64,
    }
}

impl Optimizer {
    /// What of a step on CUDA can be refused before it is launched.
    pub(super) fn check_for_cuda(&self, args: &StepArgs<'_>, purpose: Purpose) -> Result<()> {
        gradient_factor(args.grad_scale, 1.0)?;
        args.device.validate()?;
        if purpose == Purpose::Norm || !args.device.learning_rate.is_null() {
            return Ok(());
        }
        let tensors = || {
            let all = self.participants.iter().map(|one| &self.tensors[one.index]);
            all.flatten()
                .map(|tensor| (tensor, self.hyper(args, tensor)))
        };
        // Far from the limit, one look at the extremes is enough.
        let (mut rate, mut decay) = (0f64, 0f64);
        for (_, hyper) in tensors() {
            rate = rate.max(hyper.learning_rate * hyper.learning_rate_scale);
            decay = decay.max(hyper.weight_decay);
        }
        let largest = (rate / (1.0 - self.options.beta1))
            .max(rate * decay)
            .max(self.options.epsilon);
        if largest < f64::from(f32::MAX) / 2.0 {
            return Ok(());
        }
        for (tensor, hyper) in tensors() {
            // The device counts the steps. What is too large even in the last one is refused here, the rest there.
            Scalars::new(&hyper, i64::MAX as u64)
                .map_err(|error| error.in_tensor(tensor.name()))?;
        }
        Ok(())
    }

    /// Hands the step of `self.participants` to the CUDA backend.
    ///
    /// # Safety
    ///
    /// As for [`Optimizer::step_participants`], and whatever `ask` asks for.
    pub(super) unsafe fn ask_cuda<T>(
        &mut self,
        args: &StepArgs<'_>,
        ask: impl FnOnce(&mut Cuda, &Options, &Request<'_>) -> Result<T>,
    ) -> Result<T> {
        let default_fraction = args.update_fraction.unwrap_or(self.options.update_fraction);
        self.with_fractions.clear();
        try_reserve(
            &mut self.with_fractions,
            self.participants.len(),
            "the work of a step",
        )?;
        for participant in &self.participants {
            if let Some(tensor) = &self.tensors[participant.index] {
                let fraction = tensor.update_fraction.unwrap_or(default_fraction);
                self.with_fractions.push((participant.index, fraction));
            }
        }
        let Backend::Cuda(cuda) = &mut self.backend else {
            fail!(Internal, "the optimizer does not work on CUDA");
        };
        let request = Request {
            participants: &self.with_fractions,
            listed: args.tensors.is_some(),
            learning_rate: args.learning_rate.unwrap_or(self.options.learning_rate),
            update_fraction: default_fraction,
            grad_scale: args.grad_scale,
            grad_norm: args.grad_norm,
            device: args.device,
        };
        ask(cuda, &self.options, &request)
    }
}
