//! What the optimizer asks for, as the kernels are told of it.

use super::layout;
use super::tables::{Description, Record, space_bytes};
use crate::config::{Dtype, Filter, Options, Rounding, TensorSpec, WeightDecayScope};
use crate::error::Result;
use crate::job::{Progress, StepRequest, everything_moves};
use crate::rule::random::hash_name;
use crate::test_paths::{self, BracketPath};

/// A tensor without buffers.
pub(super) fn describe(options: &Options, spec: &TensorSpec<'_>) -> Description {
    let master_bytes = if options.has_master(spec.param_dtype) {
        size_of::<f32>()
    } else {
        0
    };
    let entry_bytes = spec.param_dtype.size()
        + spec.grad_dtype.size()
        + 2 * options.state_dtype.size()
        + master_bytes;
    Description {
        record: Record {
            numel: spec.numel,
            // The kernels divide by it.
            block_numel: spec.block_numel().max(1),
            name_hash: hash_name(spec.name),
            update_fraction: spec.update_fraction.unwrap_or(-1.0),
            weight_decay: spec.weight_decay.unwrap_or(-1.0),
            learning_rate_scale: spec.learning_rate_scale,
            param_dtype: dtype_number(spec.param_dtype),
            grad_dtype: dtype_number(spec.grad_dtype),
            state_dtype: dtype_number(options.state_dtype.dtype()),
            ..Record::default()
        },
        update_fraction: spec.update_fraction.unwrap_or(options.update_fraction),
        always_everything: spec.update_fraction.is_some_and(everything_moves),
        entry_bytes: entry_bytes as u64,
    }
}

/// At most how many bytes of work space such a tensor takes.
pub(crate) fn scratch_bound(options: &Options, spec: &TensorSpec<'_>) -> u64 {
    space_bytes(&describe(options, spec))
}

/// The kernels' number of a type.
fn dtype_number(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 2,
    }
}

/// Refuses hyper-parameters of which a scalar cannot be finite. The device counts the steps: what is too large even in the
/// last one is refused here, the rest there.
pub(super) fn check_scalars(request: &StepRequest<'_>) -> Result<()> {
    if request.device.hyper().iter().any(|(_, p)| !p.is_null()) {
        return Ok(());
    }
    let last = Progress {
        step_count: i64::MAX as u64 - 1,
        master_started: true,
    };
    for participant in request.participants {
        let hyper = &participant.hyper;
        let rate = hyper.learning_rate * hyper.learning_rate_scale;
        let largest = (rate / (1.0 - hyper.beta1))
            .max(rate * hyper.weight_decay)
            .max(hyper.epsilon);
        // Far from the limit, nothing needs to be computed.
        if largest >= f64::from(f32::MAX) / 2.0 {
            participant
                .scalars(last)
                .map_err(|error| error.in_tensor((request.name)(participant.index)))?;
        }
    }
    Ok(())
}

/// What the kernels are given; the tables and the caller's pointers are still to be entered.
pub(super) fn step(request: &StepRequest<'_>) -> layout::Step {
    let paths = test_paths::current();
    let StepRequest {
        options,
        hyper,
        gradients,
        ..
    } = request;
    layout::Step {
        tensors: 0,
        works: 0,
        blocks: 0,
        control: 0,
        sums: 0,
        device_hyper: [0; 5],
        report: 0,
        report_size: 0,
        num_tensors: 0,
        num_blocks: 0,
        seed: options.seed,
        learning_rate: hyper.learning_rate,
        beta1: hyper.beta1,
        beta2: hyper.beta2,
        epsilon: hyper.epsilon,
        weight_decay: hyper.weight_decay,
        update_fraction: request.update_fraction,
        grad_scale: gradients.grad_scale,
        grad_norm: gradients.grad_norm.unwrap_or(-1.0),
        max_grad_norm: gradients.max_grad_norm,
        filter: match options.filter {
            Filter::Momentum => 0,
            Filter::Gradient => 1,
            Filter::Update => 2,
            Filter::Random => 3,
        },
        scope: match options.weight_decay_scope {
            WeightDecayScope::Selected => 0,
            WeightDecayScope::All => 1,
        },
        rounding: match options.rounding {
            Rounding::Nearest => 0,
            Rounding::Stochastic => 1,
        },
        skip_nonfinite: u32::from(gradients.skip_nonfinite),
        needs_sum: u32::from(gradients.needs_norm()),
        only_norm: 0,
        forced_bracket: match paths.bracket {
            BracketPath::Sampled => 0,
            BracketPath::TooLow => 1,
            BracketPath::TooHigh => 2,
            BracketPath::Anywhere => 3,
            BracketPath::Exactly => 4,
        },
        no_room: u32::from(paths.no_room),
        digit: 0,
        reserved: 0,
    }
}
