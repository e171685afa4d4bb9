//! What a step is given, and what it reports.

use crate::buffer::{GradRef, ParamMut};
use crate::config::{Options, at_least_zero, below_one, fraction};
use crate::error::{Result, fail};
use crate::job::DeviceArgs;
use crate::rule::scalars::Hyper;

/// What is particular to one step.
#[derive(Clone, Copy, Debug)]
pub struct StepArgs<'a> {
    /// η of this step; `None` is the optimizer's.
    pub learning_rate: Option<f64>,
    /// α of this step for the tensors without one of their own; `None` is the optimizer's.
    pub update_fraction: Option<f64>,
    /// β1 of this step, in [0, 1); `None` is the optimizer's.
    pub beta1: Option<f64>,
    /// β2 of this step, in [0, 1); `None` is the optimizer's.
    pub beta2: Option<f64>,
    /// ε of this step, finite and at least 0; `None` is the optimizer's.
    pub epsilon: Option<f64>,
    /// λ of this step for the tensors without one of their own, finite and at least 0; `None` is the optimizer's.
    pub weight_decay: Option<f64>,
    /// Multiplies every gradient; finite. Default 1.
    pub grad_scale: f64,
    /// The global gradient norm, if the engine knows it, at least 0, with |grad_scale| included. A NaN or
    /// infinite norm says that some gradient is.
    pub grad_norm: Option<f64>,
    /// The tensors to step, each at most once; `None` is all. For [`crate::Optimizer::step`], which lists its
    /// tensors itself, it must be `None`.
    pub tensors: Option<&'a [u64]>,
    /// What only steps on CUDA have; the default is none of it.
    pub device: DeviceArgs,
}

impl Default for StepArgs<'_> {
    fn default() -> Self {
        Self {
            learning_rate: None,
            update_fraction: None,
            beta1: None,
            beta2: None,
            epsilon: None,
            weight_decay: None,
            grad_scale: 1.0,
            grad_norm: None,
            tensors: None,
            device: DeviceArgs::default(),
        }
    }
}

impl StepArgs<'_> {
    /// The hyper-parameters of a tensor that has none of its own, where these are the optimizer's options.
    pub(super) fn hyper_with(&self, options: &Options) -> Hyper {
        Hyper {
            learning_rate: self.learning_rate.unwrap_or(options.learning_rate),
            learning_rate_scale: 1.0,
            beta1: self.beta1.unwrap_or(options.beta1),
            beta2: self.beta2.unwrap_or(options.beta2),
            epsilon: self.epsilon.unwrap_or(options.epsilon),
            weight_decay: self.weight_decay.unwrap_or(options.weight_decay),
        }
    }

    /// Likewise α.
    pub(super) fn update_fraction_with(&self, options: &Options) -> f64 {
        self.update_fraction.unwrap_or(options.update_fraction)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        type Check = fn(&str, f64) -> Result<()>;
        let checks: [(&str, Option<f64>, Check); 6] = [
            ("learning_rate", self.learning_rate, at_least_zero),
            ("update_fraction", self.update_fraction, fraction),
            ("beta1", self.beta1, below_one),
            ("beta2", self.beta2, below_one),
            ("epsilon", self.epsilon, at_least_zero),
            ("weight_decay", self.weight_decay, at_least_zero),
        ];
        for (what, value, check) in checks {
            if let Some(value) = value {
                check(what, value)?;
            }
        }
        if !self.grad_scale.is_finite() {
            fail!(
                InvalidArgument,
                "grad_scale is {}; it must be finite",
                self.grad_scale
            );
        }
        if let Some(norm) = self.grad_norm
            && norm < 0.0
        {
            fail!(
                InvalidArgument,
                "grad_norm is {norm}; it must be at least 0"
            );
        }
        Ok(())
    }
}

/// What a step did. On CUDA a step has only been launched when the call returns: then everything but `entries` and
/// `tensors` is unknown here, 0 or `None`, and [`DeviceArgs::report`] is where the device writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepReport {
    /// The global norm of the gradients, times |grad_scale|, before clipping; `None` where the step had no
    /// use for it.
    pub grad_norm: Option<f64>,
    /// Entries of the tensors that took part.
    pub entries: u64,
    /// How many of them moved.
    pub entries_selected: u64,
    /// The step was left out: `skip_nonfinite` is on and a gradient was not finite.
    pub skipped: bool,
    /// Blocks whose threshold the step bracketed by a sample before the pass over them.
    pub blocks_estimated: u64,
    /// Those of them whose estimate was wrong, or left so much open that there was no room for it. Their thresholds
    /// are exact all the same, but took longer. On CUDA, of all that a step reports only
    /// this may depend on the threads.
    pub estimates_failed: u64,
    /// Tensors that took part: those that had a gradient, of the listed ones.
    pub tensors: u64,
    /// Entries of which a moment is infinite or NaN after the step. They never move again: a gradient that is not finite,
    /// once taken, has frozen them (see `skip_nonfinite`).
    pub entries_nonfinite: u64,
}

/// A tensor's parameter and gradient for one [`crate::Optimizer::step`].
#[derive(Debug)]
pub struct TensorBinding<'a> {
    pub(crate) index: u64,
    pub(crate) param: ParamMut<'a>,
    pub(crate) grad: GradRef<'a>,
}

impl<'a> TensorBinding<'a> {
    /// Lends these slices, as long as the tensor and of its dtypes; both are empty for a tensor without entries.
    pub fn new(index: u64, param: impl Into<ParamMut<'a>>, grad: impl Into<GradRef<'a>>) -> Self {
        Self {
            index,
            param: param.into(),
            grad: grad.into(),
        }
    }
}
