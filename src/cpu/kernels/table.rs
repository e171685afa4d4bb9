//! The loops as compiled for each instruction set, and the choice among them.

use super::adamw::Step;
use super::apply::Apply;
use super::collect::Collect;
use super::keys::{self, KeyRange, Keys, Sifted};
use super::tiles::{self, Loop, Tile, Widen};
use super::{decay, norm as norm_loops, tiny};
use crate::config::{CpuTier, Dtype, Filter, StateDtype};
use crate::cpu::simd::element::{HalfBf16, HalfF16, MasterBf16, MasterF16, Moment, Param, Single};
use crate::cpu::simd::vector::Vector;
use crate::error::{Error, ErrorKind, Result, fail};
use crate::job::Job;
use crate::rule::norm;

/// A `Loop<Collect>`, for candidates of any lifetime.
type CollectLoop = unsafe fn(&mut Collect<'_>, Tile<'_>);

/// [`keys::line`], compiled for an instruction set.
type Line = unsafe fn(Tile<'_>, u32, *mut u32) -> u32;

/// The loops of one instruction set, those over tiles for the types of a job: what leads from tile to tile is for all of
/// them the same.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct Kernels {
    pub(in crate::cpu) tier: CpuTier,
    /// [`Vector::LANES`].
    pub(super) lanes: usize,
    pub(in crate::cpu) widen: Widen,
    pub(super) adamw: fn(&Job) -> Loop<Step>,
    pub(super) step_stored: fn(&Job) -> Loop<Step>,
    /// By the job's filter; without values by momentum.
    pub(super) collect: fn(&Job, values: bool) -> CollectLoop,
    pub(super) collect_stored: fn(&Job) -> CollectLoop,
    pub(super) apply: fn(&Job) -> unsafe fn(&Apply<'_>),
    pub(super) decay: fn(&Job) -> Loop<()>,
    pub(super) keys: fn(&Job) -> Loop<Keys>,
    pub(super) lines: fn(&Job) -> Line,
    pub(in crate::cpu) sift: unsafe fn(*const u32, usize, KeyRange, *mut u32) -> Sifted,
    /// [`tiny::thresholds`].
    pub(in crate::cpu) thresholds: unsafe fn(&[u32], usize, usize, &mut [u32]),
    pub(super) add_squares: unsafe fn(&mut [f64; norm::LANES], *const f32, usize),
    #[cfg(test)]
    pub(super) check_operations: unsafe fn(),
}

/// `$function::<Param, Moment, …>` for the types of a job.
macro_rules! for_types {
    ($job:ident, $function:ident $(, $constant:literal)*) => {
        match $job.state_dtype {
            StateDtype::F32 => for_param_types!($job, $function, Single $(, $constant)*),
            StateDtype::BF16 => for_param_types!($job, $function, HalfBf16 $(, $constant)*),
        }
    };
}

/// `$function::<Param, …>` for the types of a job.
macro_rules! for_param_types {
    ($job:ident, $function:ident $(, $moment:ty $(, $constant:literal)*)?) => {
        match ($job.param_dtype, has_master($job)) {
            (Dtype::F32, _) => $function::<Single $(, $moment $(, $constant)*)?>,
            (Dtype::F16, false) => $function::<HalfF16 $(, $moment $(, $constant)*)?>,
            (Dtype::F16, true) => $function::<MasterF16 $(, $moment $(, $constant)*)?>,
            (Dtype::BF16, false) => $function::<HalfBf16 $(, $moment $(, $constant)*)?>,
            (Dtype::BF16, true) => $function::<MasterBf16 $(, $moment $(, $constant)*)?>,
        }
    };
}

/// `$function::<Moment, …>` for the types of a job.
macro_rules! for_moment_types {
    ($job:ident, $function:ident $(, $constant:literal)*) => {
        match $job.state_dtype {
            StateDtype::F32 => $function::<Single $(, $constant)*>,
            StateDtype::BF16 => $function::<HalfBf16 $(, $constant)*>,
        }
    };
}

/// A job has a master copy, which only parameters of 16 bits do.
pub(in crate::cpu) fn has_master(job: &Job) -> bool {
    job.param_dtype != Dtype::F32 && !job.master.is_null()
}

/// Compiles the loops for one vector under one set of target features.
macro_rules! tier {
    ($module:ident, $tier:expr, $vector:ty $(, $features:literal)?) => {
        mod $module {
            use super::*;

            type V = $vector;

            pub(super) const KERNELS: Kernels = Kernels {
                tier: $tier,
                lanes: <V as Vector>::LANES,
                widen,
                adamw: |job| for_types!(job, step, false),
                step_stored: |job| for_types!(job, step, true),
                collect: |job, values| match (job.filter, values) {
                    (Filter::Momentum, false) => for_moment_types!(job, collect_keys),
                    (Filter::Momentum, true) => for_moment_types!(job, collect, true, false),
                    _ => for_moment_types!(job, collect, false, false),
                },
                collect_stored: |job| match job.filter {
                    Filter::Momentum => for_moment_types!(job, collect, true, true),
                    _ => for_moment_types!(job, collect, false, true),
                },
                apply: |job| for_param_types!(job, apply),
                decay: |job| for_param_types!(job, decay),
                keys: |job| for_moment_types!(job, keys),
                lines: |job| match job.filter {
                    Filter::Momentum => for_moment_types!(job, line, true),
                    _ => for_moment_types!(job, line, false),
                },
                sift,
                thresholds,
                add_squares,
                #[cfg(test)]
                check_operations,
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn widen(dtype: Dtype, from: *const u8, len: usize, to: *mut f32) {
                // SAFETY: the caller's promise.
                unsafe { tiles::widen::<V>(dtype, from, len, to) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn step<P: Param<V>, S: Moment<V>, const STORED: bool>(
                body: &mut Step, tile: Tile<'_>,
            ) {
                // SAFETY: the caller's promise.
                unsafe { body.tile::<V, P, S, STORED>(tile) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn collect<S: Moment<V>, const MOMENTUM: bool, const STORED: bool>(
                body: &mut Collect<'_>, tile: Tile<'_>,
            ) {
                // SAFETY: the caller's promise.
                unsafe { body.tile::<V, S, MOMENTUM, STORED>(tile) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn collect_keys<S: Moment<V>>(body: &mut Collect<'_>, tile: Tile<'_>) {
                // SAFETY: the caller's promise.
                unsafe { body.tile_of_keys::<V, S>(tile) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn apply<P: Param<V>>(body: &Apply<'_>) {
                // SAFETY: the caller's promise.
                unsafe { body.run::<V, P>() };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn decay<P: Param<V>>(_: &mut (), tile: Tile<'_>) {
                // SAFETY: the caller's promise.
                unsafe { super::decay::tile::<V, P>(tile) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn keys<S: Moment<V>>(body: &mut Keys, tile: Tile<'_>) {
                // SAFETY: the caller's promise.
                unsafe { body.tile::<V, S>(tile) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn line<S: Moment<V>, const MOMENTUM: bool>(
                tile: Tile<'_>, threshold_before: u32, keys: *mut u32,
            ) -> u32 {
                // SAFETY: the caller's promise.
                unsafe { super::keys::line::<V, S, MOMENTUM>(tile, threshold_before, keys) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn sift(
                keys: *const u32, len: usize, range: KeyRange, found: *mut u32,
            ) -> Sifted {
                // SAFETY: the caller's promise.
                unsafe { super::keys::sift::<V>(keys, len, range, found) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn thresholds(keys: &[u32], len: usize, rank: usize, thresholds: &mut [u32]) {
                tiny::thresholds(keys, len, rank, thresholds);
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn add_squares(lanes: &mut [f64; norm::LANES], grad: *const f32, len: usize) {
                // SAFETY: the caller's promise.
                unsafe { norm_loops::add_squares(lanes, grad, len) };
            }

            #[cfg(test)]
            $(#[target_feature(enable = $features)])?
            unsafe fn check_operations() {
                crate::cpu::simd::tests::check::<V>();
            }
        }
    };
}

tier!(
    portable,
    CpuTier::Portable,
    crate::cpu::simd::portable::Lanes
);
#[cfg(target_arch = "x86_64")]
tier!(
    avx2,
    CpuTier::Avx2,
    crate::cpu::simd::avx2::Lanes,
    "avx2,f16c,popcnt,bmi1,bmi2"
);
#[cfg(target_arch = "x86_64")]
tier!(
    avx512,
    CpuTier::Avx512,
    crate::cpu::simd::avx512::Lanes,
    "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,bmi2"
);

/// Overrides the choice of the tier where the options leave it open: "portable", "avx2" or "avx512".
const VARIABLE: &str = "MOFO_CPU_TIER";

impl Kernels {
    /// The loops of this tier, or of the one that the environment asks for, or of the best that there is.
    pub(in crate::cpu) fn choose(tier: Option<CpuTier>) -> Result<&'static Self> {
        if let Some(tier) = tier {
            return Self::of_tier(tier).ok_or_else(|| Self::missing("cpu_tier", tier));
        }
        match std::env::var_os(VARIABLE) {
            None => Ok(Self::best()),
            Some(name) if name.is_empty() => Ok(Self::best()),
            Some(name) => {
                let tier = match name.to_str() {
                    Some("portable") => CpuTier::Portable,
                    Some("avx2") => CpuTier::Avx2,
                    Some("avx512") => CpuTier::Avx512,
                    _ => fail!(
                        InvalidArgument,
                        "the environment variable {VARIABLE} is {name:?}; it must be \"portable\", \"avx2\" or \
                         \"avx512\""
                    ),
                };
                Self::of_tier(tier).ok_or_else(|| Self::missing(VARIABLE, tier))
            }
        }
    }

    fn best() -> &'static Self {
        [CpuTier::Avx512, CpuTier::Avx2]
            .into_iter()
            .find_map(Self::of_tier)
            .unwrap_or(&portable::KERNELS)
    }

    /// The loops of a tier, if the build and the processor have it.
    pub(super) fn of_tier(tier: CpuTier) -> Option<&'static Self> {
        #[cfg(target_arch = "x86_64")]
        let has_bmi = || {
            std::arch::is_x86_feature_detected!("popcnt")
                && std::arch::is_x86_feature_detected!("bmi1")
                && std::arch::is_x86_feature_detected!("bmi2")
        };
        match tier {
            CpuTier::Portable => Some(&portable::KERNELS),
            #[cfg(target_arch = "x86_64")]
            CpuTier::Avx2 => (has_bmi()
                && std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("f16c"))
            .then_some(&avx2::KERNELS),
            #[cfg(target_arch = "x86_64")]
            CpuTier::Avx512 => (has_bmi()
                && std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512bw")
                && std::arch::is_x86_feature_detected!("avx512dq")
                && std::arch::is_x86_feature_detected!("avx512vl"))
            .then_some(&avx512::KERNELS),
            #[cfg(not(target_arch = "x86_64"))]
            CpuTier::Avx2 | CpuTier::Avx512 => None,
        }
    }

    fn missing(setting: &str, tier: CpuTier) -> Error {
        Error::new(
            ErrorKind::Unsupported,
            format_args!(
                "{setting} is {tier:?}, which this processor or build lacks; the best that it has is {:?}",
                Self::best().tier
            ),
        )
    }
}
