//! The loops as compiled for each instruction set, and the choice among them.

use super::element::{Grad, HalfBf16, HalfF16, MasterBf16, MasterF16, Moment, Param, Single};
use super::kernels::{Bracket, Collected};
use crate::backend::Job;
use crate::config::{CpuTier, Dtype, StateDtype};
use crate::error::{Result, fail};

/// One tier's loops. Their contracts are those of the functions of the same name in [`super::kernels`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub(super) tier: CpuTier,
    pub(super) step: unsafe fn(&Job, u64, u64, u32) -> u64,
    pub(super) keys: unsafe fn(&Job, u64, usize, *mut u32),
    pub(super) collect: unsafe fn(&Job, u64, usize, Bracket, *mut u32) -> Collected,
    pub(super) sum_of_squares: unsafe fn(&Job, u64, usize) -> f64,
    pub(super) start: unsafe fn(&Job, u64, u64),
}

/// Calls `$function::<Param, Grad, Moment>` for the types of a job.
macro_rules! for_step_types {
    ($job:ident, $function:ident ( $($argument:expr),* )) => {
        match ($job.param_dtype, $job.master.is_null()) {
            (Dtype::F32, _) => for_step_types!(@grad $job, $function, Single, ($($argument),*)),
            (Dtype::F16, true) => for_step_types!(@grad $job, $function, HalfF16, ($($argument),*)),
            (Dtype::F16, false) => for_step_types!(@grad $job, $function, MasterF16, ($($argument),*)),
            (Dtype::BF16, true) => for_step_types!(@grad $job, $function, HalfBf16, ($($argument),*)),
            (Dtype::BF16, false) => for_step_types!(@grad $job, $function, MasterBf16, ($($argument),*)),
        }
    };
    (@grad $job:ident, $function:ident, $param:ty, $arguments:tt) => {
        match $job.grad_dtype {
            Dtype::F32 => for_step_types!(@moment $job, $function, $param, Single, $arguments),
            Dtype::F16 => for_step_types!(@moment $job, $function, $param, HalfF16, $arguments),
            Dtype::BF16 => for_step_types!(@moment $job, $function, $param, HalfBf16, $arguments),
        }
    };
    (@moment $job:ident, $function:ident, $param:ty, $grad:ty, ($($argument:expr),*)) => {
        match $job.state_dtype {
            StateDtype::F32 => $function::<$param, $grad, Single>($($argument),*),
            StateDtype::BF16 => $function::<$param, $grad, HalfBf16>($($argument),*),
        }
    };
}

/// Calls `$function::<Grad, Moment>` for the types of a job.
macro_rules! for_moment_types {
    ($job:ident, $function:ident $arguments:tt) => {
        match ($job.grad_dtype, $job.state_dtype) {
            (Dtype::F32, StateDtype::F32) => $function::<Single, Single> $arguments,
            (Dtype::F32, StateDtype::BF16) => $function::<Single, HalfBf16> $arguments,
            (Dtype::F16, StateDtype::F32) => $function::<HalfF16, Single> $arguments,
            (Dtype::F16, StateDtype::BF16) => $function::<HalfF16, HalfBf16> $arguments,
            (Dtype::BF16, StateDtype::F32) => $function::<HalfBf16, Single> $arguments,
            (Dtype::BF16, StateDtype::BF16) => $function::<HalfBf16, HalfBf16> $arguments,
        }
    };
}

/// Compiles the loops for one vector under one set of target features.
macro_rules! tier {
    ($module:ident, $tier:expr, $vector:ty $(, $features:literal)?) => {
        mod $module {
            use super::*;
            use crate::cpu::kernels;

            type V = $vector;

            pub(super) const KERNELS: Kernels = Kernels {
                tier: $tier,
                step,
                keys,
                collect,
                sum_of_squares,
                start,
            };

            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn step_of<P: Param<V>, G: Grad<V>, S: Moment<V>>(
                job: &Job, start: u64, len: u64, lowest: u32,
            ) -> u64 {
                // SAFETY: the caller's promise.
                unsafe { kernels::step::<V, P, G, S>(job, start, len, lowest) }
            }

            unsafe fn step(job: &Job, start: u64, len: u64, lowest: u32) -> u64 {
                // SAFETY: the caller's promise; `Kernels::choose` has seen that the processor has the features.
                unsafe { for_step_types!(job, step_of(job, start, len, lowest)) }
            }

            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn keys_of<G: Grad<V>, S: Moment<V>>(
                job: &Job, start: u64, len: usize, keys: *mut u32,
            ) {
                // SAFETY: the caller's promise.
                unsafe { kernels::keys::<V, G, S>(job, start, len, keys) };
            }

            unsafe fn keys(job: &Job, start: u64, len: usize, keys: *mut u32) {
                // SAFETY: as for `step`.
                unsafe { for_moment_types!(job, keys_of(job, start, len, keys)) }
            }

            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn collect_of<G: Grad<V>, S: Moment<V>>(
                job: &Job, start: u64, len: usize, bracket: Bracket, found: *mut u32,
            ) -> Collected {
                // SAFETY: the caller's promise.
                unsafe { kernels::collect::<V, G, S>(job, start, len, bracket, found) }
            }

            unsafe fn collect(
                job: &Job, start: u64, len: usize, bracket: Bracket, found: *mut u32,
            ) -> Collected {
                // SAFETY: as for `step`.
                unsafe { for_moment_types!(job, collect_of(job, start, len, bracket, found)) }
            }

            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn sum_of_squares_of<G: Grad<V>>(job: &Job, start: u64, len: usize) -> f64 {
                // SAFETY: the caller's promise.
                unsafe { kernels::sum_of_squares::<V, G>(job, start, len) }
            }

            unsafe fn sum_of_squares(job: &Job, start: u64, len: usize) -> f64 {
                // SAFETY: as for `step`.
                unsafe {
                    match job.grad_dtype {
                        Dtype::F32 => sum_of_squares_of::<Single>(job, start, len),
                        Dtype::F16 => sum_of_squares_of::<HalfF16>(job, start, len),
                        Dtype::BF16 => sum_of_squares_of::<HalfBf16>(job, start, len),
                    }
                }
            }

            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn start_of<P: Param<V>, S: Moment<V>>(job: &Job, start: u64, len: u64) {
                // SAFETY: the caller's promise.
                unsafe { kernels::start::<V, P, S>(job, start, len) };
            }

            unsafe fn start(job: &Job, start: u64, len: u64) {
                // SAFETY: as for `step`.
                unsafe {
                    match (job.param_dtype, job.state_dtype) {
                        (Dtype::F32, StateDtype::F32) => start_of::<Single, Single>(job, start, len),
                        (Dtype::F32, StateDtype::BF16) => start_of::<Single, HalfBf16>(job, start, len),
                        _ if job.master.is_null() => match job.state_dtype {
                            StateDtype::F32 => start_of::<Single, Single>(job, start, len),
                            StateDtype::BF16 => start_of::<Single, HalfBf16>(job, start, len),
                        },
                        (Dtype::F16, StateDtype::F32) => start_of::<MasterF16, Single>(job, start, len),
                        (Dtype::F16, StateDtype::BF16) => start_of::<MasterF16, HalfBf16>(job, start, len),
                        (Dtype::BF16, StateDtype::F32) => start_of::<MasterBf16, Single>(job, start, len),
                        (Dtype::BF16, StateDtype::BF16) => start_of::<MasterBf16, HalfBf16>(job, start, len),
                    }
                }
            }
        }
    };
}

tier!(portable, CpuTier::Portable, crate::cpu::portable::Lanes);
impl Kernels {
    /// The loops of this tier, or of the best that there is.
    pub(super) fn choose(tier: Option<CpuTier>) -> Result<&'static Self> {
        match tier {
            None | Some(CpuTier::Portable) => Ok(&portable::KERNELS),
            Some(tier) => fail!(
                Unsupported,
                "cpu_tier is {tier:?}, which this build lacks; the best that it has is {:?}",
                portable::KERNELS.tier
            ),
        }
    }
}
