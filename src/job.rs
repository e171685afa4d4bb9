//! What a step of one tensor is, once everything is checked: the words in which the optimizer and the devices talk.

use std::ffi::c_void;

use crate::config::{Dtype, Filter, Options, Rounding, StateDtype, WeightDecayScope, step_count};
use crate::error::{Result, fail};
use crate::rule::random::{Key, Stream};
use crate::rule::scalars::{Hyper, Scalars};
use crate::rule::select::rank;

/// Where a tensor's buffers are. Null is what is not bound, or not there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorBuffers {
    pub param: *mut u8,
    pub grad: *const u8,
    pub exp_avg: *mut u8,
    pub exp_avg_sq: *mut u8,
    pub master: *mut f32,
    /// `num_blocks` thresholds, as bits of floats.
    pub thresholds: *mut u32,
}

// SAFETY: a description. Whoever reads or writes through it promises that the buffers may be used there.
unsafe impl Send for TensorBuffers {}

/// A tensor in a step, as far as the optimizer can decide it: what the step or the tensor does not set has fallen back to
/// the optimizer's settings. How many steps it has seen, the device knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Participant {
    pub index: usize,
    pub name_hash: u64,
    pub buffers: TensorBuffers,
    pub param_dtype: Dtype,
    pub grad_dtype: Dtype,
    pub state_dtype: StateDtype,
    pub numel: u64,
    pub block_numel: u64,
    pub hyper: Hyper,
    pub update_fraction: f64,
}

impl Participant {
    /// The scalars of its next step. Refused if it could not be counted, or if a scalar is not finite.
    pub(crate) fn scalars(&self, progress: Progress) -> Result<Scalars> {
        let t = progress.step_count + 1;
        step_count(t)?;
        Scalars::new(&self.hyper, t)
    }

    /// Its next step.
    pub(crate) fn job(
        &self,
        options: &Options,
        progress: Progress,
        scalars: Scalars,
        before: StepBefore,
    ) -> Job {
        let TensorBuffers {
            param,
            grad,
            exp_avg,
            exp_avg_sq,
            master,
            thresholds,
        } = self.buffers;
        let t = progress.step_count + 1;
        let has_master = !master.is_null();
        let starts_master = has_master && (t == 1 || !progress.master_started);
        Job {
            param,
            grad,
            exp_avg,
            exp_avg_sq,
            master,
            thresholds,
            param_dtype: self.param_dtype,
            grad_dtype: self.grad_dtype,
            state_dtype: self.state_dtype,
            numel: self.numel,
            block_numel: self.block_numel,
            rank: rank(self.update_fraction, self.block_numel),
            rank_before: before.rank,
            everything_moves: everything_moves(self.update_fraction),
            starts_moments: t == 1,
            starts_master,
            starts_param: has_master && !starts_master && before.param != param,
            scalars,
            filter: options.filter,
            weight_decay_scope: options.weight_decay_scope,
            rounding: options.rounding,
            random: RandomKeys::new(options.seed, self.name_hash, t),
        }
    }
}

/// What a device remembers of a tensor's last step, since its state was set by others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepBefore {
    /// k of each block; 0 if there was no step.
    pub rank: u64,
    /// The parameter, which that step has left as the rounding of the master copy, if there is one; null if there was no
    /// step. Only compared.
    pub param: *const u8,
}

// SAFETY: the pointer is never followed.
unsafe impl Send for StepBefore {}

impl StepBefore {
    pub(crate) const NONE: Self = Self {
        rank: 0,
        param: std::ptr::null(),
    };
}

/// With this α a step is AdamW's.
pub(crate) fn everything_moves(update_fraction: f64) -> bool {
    update_fraction == 1.0
}

/// A step, or a gradient norm, as the optimizer asks a device for it. Settings and arguments are within their ranges.
// What a participant has decided already is here again for devices that keep the tensors' own settings themselves.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(crate) struct StepRequest<'a> {
    pub options: &'a Options,
    /// The tensors that take part, each once, in ascending order of their indices.
    pub participants: &'a [Participant],
    /// The caller named the tensors: others that have a gradient may be left out.
    pub listed: bool,
    /// Those of this step, for the tensors without any of their own.
    pub hyper: Hyper,
    /// Likewise α.
    pub update_fraction: f64,
    pub gradients: GradientRequest,
    pub device: DeviceArgs,
    /// The name of the tensor of an index, for messages.
    pub name: &'a dyn Fn(usize) -> &'a str,
}

/// One tensor's share of a step on the CPU: the buffers, and everything that can be known before the gradients are read.
///
/// The pointers keep the contract of [`Backend::step`](crate::backend::Backend::step), or for a gradient norm of
/// [`Backend::grad_norm`](crate::backend::Backend::grad_norm).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub param: *mut u8,
    pub grad: *const u8,
    pub exp_avg: *mut u8,
    pub exp_avg_sq: *mut u8,
    /// Null if the tensor has no master copy.
    pub master: *mut f32,
    /// `num_blocks` thresholds, as bits of floats.
    pub thresholds: *mut u32,
    pub param_dtype: Dtype,
    pub grad_dtype: Dtype,
    pub state_dtype: StateDtype,
    pub numel: u64,
    pub block_numel: u64,
    /// k, of each block.
    pub rank: u64,
    /// The same in the step before; 0 if there was none. The thresholds are those of that step until they are known.
    pub rank_before: u64,
    /// α is 1: AdamW.
    pub everything_moves: bool,
    /// The moments count as zero.
    pub starts_moments: bool,
    /// There is a master copy, and it starts from the parameter.
    pub starts_master: bool,
    /// There is a master copy from before, and the parameter, which the last step did not have, starts as its rounding.
    pub starts_param: bool,
    /// With s still 1; it is set once the gradient norm is known.
    pub scalars: Scalars,
    pub filter: Filter,
    pub weight_decay_scope: WeightDecayScope,
    pub rounding: Rounding,
    pub random: RandomKeys,
}

// SAFETY: a job is a description; the threads of a step access disjoint ranges of its buffers.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

/// The keys of all streams of a tensor's step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RandomKeys {
    seed: u64,
    name_hash: u64,
    t: u64,
    /// Of the first 2^32 entries, because loops over short ranges ask for them again and again.
    low: SpanKeys,
}

/// The keys of all streams for 2^32 consecutive entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpanKeys {
    /// Of the first round, which the streams share.
    pub first: u32,
    pub moments: u32,
    pub param: u32,
    pub filter: u32,
}

impl RandomKeys {
    pub(crate) fn new(seed: u64, name_hash: u64, t: u64) -> Self {
        Self {
            seed,
            name_hash,
            t,
            low: SpanKeys::new(seed, name_hash, t, 0),
        }
    }

    /// The keys of the entries whose upper 32 index bits are `high`.
    #[inline]
    pub(crate) fn span(&self, high: u32) -> SpanKeys {
        if high == 0 {
            self.low
        } else {
            SpanKeys::new(self.seed, self.name_hash, self.t, high)
        }
    }
}

impl SpanKeys {
    #[cold]
    fn new(seed: u64, name_hash: u64, t: u64, high: u32) -> Self {
        let key = |stream| Key::new(seed, name_hash, t, stream).span(high);
        Self {
            first: key(Stream::Moments).first,
            moments: key(Stream::Moments).second,
            param: key(Stream::Param).second,
            filter: key(Stream::Filter).second,
        }
    }
}

/// How the gradients of a step are scaled, and when the step is skipped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GradientRequest {
    pub grad_scale: f64,
    /// The norm, if the caller knows it.
    pub grad_norm: Option<f64>,
    /// 0 if clipping is off.
    pub max_grad_norm: f64,
    pub skip_nonfinite: bool,
}

impl GradientRequest {
    /// The norm of the gradients must be computed: the step has a use for it, and the caller does not know it.
    pub(crate) fn needs_norm(&self) -> bool {
        self.grad_norm.is_none() && (self.max_grad_norm > 0.0 || self.skip_nonfinite)
    }
}

/// What a step did; on a device that has only been told of it, nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// The norm, if it was needed.
    pub grad_norm: Option<f64>,
    pub skipped: bool,
    pub entries_selected: u64,
    pub entries_nonfinite: u64,
    pub blocks_estimated: u64,
    pub estimates_failed: u64,
}

/// How far a tensor has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Progress {
    /// Steps that its moments have seen.
    pub step_count: u64,
    /// Its master copy has its values; else it starts from the parameter.
    pub master_started: bool,
}

/// Bytes of a [`crate::ffi::mofo_step_report`].
pub(crate) const STEP_REPORT_BYTES: u64 = 64;

/// What is particular to a step on CUDA. For steps on the CPU all pointers must be null.
#[derive(Clone, Copy, Debug)]
pub struct DeviceArgs {
    /// The stream to work on, a `CUstream` or `cudaStream_t` of the device's primary context; null is the legacy
    /// default stream.
    pub stream: *mut c_void,
    /// In memory that the device can read: η of this step, in place of `learning_rate`, read when the step runs.
    pub learning_rate: *const f64,
    /// Likewise β1.
    pub beta1: *const f64,
    /// Likewise β2.
    pub beta2: *const f64,
    /// Likewise ε.
    pub epsilon: *const f64,
    /// Likewise λ.
    pub weight_decay: *const f64,
    /// Memory that the device can write, for a [`crate::ffi::mofo_step_report`].
    pub report: *mut c_void,
    /// Bytes of it; from 64 to 4,096 if there is any.
    pub report_size: u64,
}

impl Default for DeviceArgs {
    fn default() -> Self {
        Self {
            stream: std::ptr::null_mut(),
            learning_rate: std::ptr::null(),
            beta1: std::ptr::null(),
            beta2: std::ptr::null(),
            epsilon: std::ptr::null(),
            weight_decay: std::ptr::null(),
            report: std::ptr::null_mut(),
            report_size: 0,
        }
    }
}

impl DeviceArgs {
    /// The hyper-parameters that the device reads when the step runs, with the names of the C API; null where it does not.
    pub(crate) fn hyper(&self) -> [(&'static str, *const f64); 5] {
        [
            ("device_learning_rate", self.learning_rate),
            ("device_beta1", self.beta1),
            ("device_beta2", self.beta2),
            ("device_epsilon", self.epsilon),
            ("device_weight_decay", self.weight_decay),
        ]
    }

    /// Refuses hyper-parameters that are misaligned, and a report of another size than one may have.
    #[cfg(feature = "cuda")]
    pub(crate) fn validate(&self) -> Result<()> {
        for (what, pointer) in self.hyper() {
            if !pointer.is_aligned() {
                fail!(
                    InvalidArgument,
                    "{what} is {pointer:p}; it must be a multiple of 8"
                );
            }
        }
        let sizes = STEP_REPORT_BYTES..=4096;
        if !self.report.is_null() && !sizes.contains(&self.report_size) {
            fail!(
                InvalidArgument,
                "report_size is {}; it must be from {} to {}",
                self.report_size,
                sizes.start(),
                sizes.end()
            );
        }
        Ok(())
    }

    /// Refuses what the CPU has no use for.
    pub(crate) fn check_is_none(&self) -> Result<()> {
        let pointers = [
            ("stream", self.stream.cast_const()),
            ("report", self.report.cast_const()),
        ];
        let hyper = self.hyper().map(|(what, pointer)| (what, pointer.cast()));
        for (what, pointer) in pointers.into_iter().chain(hyper) {
            if !pointer.is_null() {
                fail!(
                    InvalidArgument,
                    "{what} is {pointer:p}; it must be NULL on the CPU"
                );
            }
        }
        Ok(())
    }
}
