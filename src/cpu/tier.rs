//! The loops as compiled for each instruction set, and the choice among them.

use super::element::{HalfBf16, HalfF16, MasterBf16, MasterF16, Moment, Param, Single};
use super::kernels::{
    Bracket, Collect, Collected, Decay, Keys, Pass, Place, Settle, Step, StepAndNote, Tile, Widen,
};
use super::vector::Vector;
use crate::config::{CpuTier, Dtype, Filter, StateDtype};
use crate::error::{Error, ErrorKind, Result, fail};
use crate::job::Job;
use crate::rule::norm;

/// A `Tile<StepAndNote>`, for notes of any lifetime.
type NotingTile = unsafe fn(&mut StepAndNote<'_>, &Pass, Place, u32, usize);

/// [`super::kernels::lines_by_momentum`], compiled for a tier.
type Lines = unsafe fn(&Job, &[u64], *mut u32);

/// One tier's loops, those over tiles for the types of a job: what [`super::kernels`] runs them with is for every tier
/// the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub(super) tier: CpuTier,
    /// [`Vector::LANES`].
    pub(super) lanes: usize,
    pub(super) widen: Widen,
    pub(super) step: fn(&Job) -> Tile<Step>,
    pub(super) step_and_note: fn(&Job) -> NotingTile,
    pub(super) decay: fn(&Job) -> Tile<Decay>,
    pub(super) settle: fn(&Job) -> Tile<Settle>,
    /// By the job's filter.
    pub(super) keys: fn(&Job) -> Tile<Keys>,
    /// By momentum, like the next one.
    pub(super) collect: fn(&Job) -> Tile<Collect>,
    pub(super) lines: fn(&Job) -> Lines,
    pub(super) sift: unsafe fn(*const u32, usize, Bracket, *mut u32) -> Collected,
    pub(super) add_squares: unsafe fn(&mut [f64; norm::LANES], *const f32, usize),
    #[cfg(test)]
    check_operations: unsafe fn(),
}

/// `$function::<Param, Moment>` for the types of a job.
macro_rules! for_types {
    ($job:ident, $function:ident) => {
        match $job.state_dtype {
            StateDtype::F32 => for_param_types!($job, $function, Single),
            StateDtype::BF16 => for_param_types!($job, $function, HalfBf16),
        }
    };
}

/// `$function::<Param, …>` for the types of a job.
macro_rules! for_param_types {
    ($job:ident, $function:ident $(, $moment:ty)?) => {
        match ($job.param_dtype, has_master($job)) {
            (Dtype::F32, _) => $function::<Single $(, $moment)?>,
            (Dtype::F16, false) => $function::<HalfF16 $(, $moment)?>,
            (Dtype::F16, true) => $function::<MasterF16 $(, $moment)?>,
            (Dtype::BF16, false) => $function::<HalfBf16 $(, $moment)?>,
            (Dtype::BF16, true) => $function::<MasterBf16 $(, $moment)?>,
        }
    };
}

/// `$function::<Moment, …>` for the types of a job.
macro_rules! for_moment_types {
    ($job:ident, $function:ident $(, $constant:literal)?) => {
        match $job.state_dtype {
            StateDtype::F32 => $function::<Single $(, $constant)?>,
            StateDtype::BF16 => $function::<HalfBf16 $(, $constant)?>,
        }
    };
}

/// A job has a master copy, which only parameters of 16 bits do.
pub(super) fn has_master(job: &Job) -> bool {
    job.param_dtype != Dtype::F32 && !job.master.is_null()
}

/// [`Param::KEEPS_OLD`] of a job's parameter.
pub(super) fn keeps_old(job: &Job) -> bool {
    // It is the same for every vector.
    type V = crate::cpu::portable::Lanes;
    fn of<P: Param<V>>() -> bool {
        P::KEEPS_OLD
    }
    let of: fn() -> bool = for_param_types!(job, of);
    of()
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
                lanes: <V as Vector>::LANES,
                widen,
                step: |job| for_types!(job, step),
                decay: |job| for_param_types!(job, decay),
                step_and_note: |job| for_types!(job, step_and_note),
                settle: |job| for_param_types!(job, settle),
                keys: |job| match job.filter {
                    Filter::Momentum => for_moment_types!(job, keys, true),
                    _ => for_moment_types!(job, keys, false),
                },
                collect: |job| for_moment_types!(job, collect),
                lines: |job| for_moment_types!(job, lines),
                sift,
                add_squares,
                #[cfg(test)]
                check_operations,
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn widen(dtype: Dtype, from: *const u8, len: usize, to: *mut f32) {
                // SAFETY: the caller's promise.
                unsafe { kernels::widen::<V>(dtype, from, len, to) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn step<P: Param<V>, S: Moment<V>>(
                body: &mut Step, pass: &Pass, place: Place, first: u32, len: usize,
            ) {
                // SAFETY: the caller's promise.
                unsafe { body.tile::<V, P, S>(pass, place, first, len) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn decay<P: Param<V>>(
                body: &mut Decay, pass: &Pass, place: Place, first: u32, len: usize,
            ) {
                // SAFETY: the caller's promise.
                unsafe { body.tile::<V, P>(pass, place, first, len) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn step_and_note<P: Param<V>, S: Moment<V>>(
                body: &mut StepAndNote<'_>, pass: &Pass, place: Place, first: u32, len: usize,
            ) {
                // SAFETY: the caller's promise.
                unsafe { body.tile::<V, P, S>(pass, place, first, len) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn settle<P: Param<V>>(
                body: &mut Settle, pass: &Pass, place: Place, first: u32, len: usize,
            ) {
                // SAFETY: the caller's promise.
                unsafe { body.tile::<V, P>(pass, place, first, len) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn keys<S: Moment<V>, const MOMENTUM: bool>(
                body: &mut Keys, pass: &Pass, place: Place, first: u32, len: usize,
            ) {
                // SAFETY: the caller's promise.
                unsafe { body.tile::<V, S, MOMENTUM>(pass, place, first, len) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn collect<S: Moment<V>>(
                body: &mut Collect, pass: &Pass, place: Place, first: u32, len: usize,
            ) {
                // SAFETY: the caller's promise.
                unsafe { body.tile::<V, S>(pass, place, first, len) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn lines<S: Moment<V>>(job: &Job, starts: &[u64], keys: *mut u32) {
                // SAFETY: the caller's promise.
                unsafe { kernels::lines_by_momentum::<V, S>(job, starts, keys) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn sift(
                keys: *const u32, len: usize, bracket: Bracket, found: *mut u32,
            ) -> Collected {
                // SAFETY: the caller's promise.
                unsafe { kernels::sift::<V>(keys, len, bracket, found) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn add_squares(lanes: &mut [f64; norm::LANES], grad: *const f32, len: usize) {
                // SAFETY: the caller's promise.
                unsafe { kernels::add_squares(lanes, grad, len) };
            }

            #[cfg(test)]
            $(#[target_feature(enable = $features)])?
            unsafe fn check_operations() {
                crate::cpu::vector::tests::check::<V>();
            }
        }
    };
}

tier!(portable, CpuTier::Portable, crate::cpu::portable::Lanes);
#[cfg(target_arch = "x86_64")]
tier!(
    avx2,
    CpuTier::Avx2,
    crate::cpu::avx2::Lanes,
    "avx2,f16c,popcnt,bmi1,bmi2"
);
#[cfg(target_arch = "x86_64")]
tier!(
    avx512,
    CpuTier::Avx512,
    crate::cpu::avx512::Lanes,
    "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,bmi2"
);

/// Overrides the choice of the tier where the options leave it open: "portable", "avx2" or "avx512".
const VARIABLE: &str = "MOFO_CPU_TIER";

impl Kernels {
    /// The loops of this tier, or of the one that the environment asks for, or of the best that there is.
    pub(super) fn choose(tier: Option<CpuTier>) -> Result<&'static Self> {
        if let Some(tier) = tier {
            return Self::of(tier).ok_or_else(|| Self::missing("cpu_tier", tier));
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
                Self::of(tier).ok_or_else(|| Self::missing(VARIABLE, tier))
            }
        }
    }

    fn best() -> &'static Self {
        [CpuTier::Avx512, CpuTier::Avx2]
            .into_iter()
            .find_map(Self::of)
            .unwrap_or(&portable::KERNELS)
    }

    /// The loops of a tier, if the build and the processor have it.
    fn of(tier: CpuTier) -> Option<&'static Self> {
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

#[cfg(test)]
mod tests {
    use super::super::kernels::{self, Bounds, Notes};
    use super::super::vector::{MAX_LANES, MIN_LANES};
    use super::*;
    use crate::config::{Rounding, WeightDecayScope};
    use crate::job::RandomKeys;
    use crate::rule::random::{Key, Stream};
    use crate::rule::scalars::{Hyper, Scalars};
    use crate::rule::{convert, entry, random};

    /// Entries of the window around index 2^32 that the test looks at, those of them on the near side, and the first.
    const ENTRIES: usize = 100;
    const NEAR: usize = 47;
    const FIRST: u64 = (1 << 32) - NEAR as u64;

    /// On both sides the last group of lanes is incomplete, on the far side more so: what the near one leaves in lanes
    /// that the far one does not fill must not be taken for entries.
    const _: () = {
        let mut lanes = MIN_LANES;
        while lanes <= MAX_LANES {
            let far = (ENTRIES - NEAR) % lanes;
            assert!(0 < far && far < NEAR % lanes);
            lanes *= 2;
        }
    };

    /// The types of a tensor.
    #[derive(Clone, Copy, Debug)]
    struct Types {
        param: Dtype,
        has_master: bool,
        grad: Dtype,
        state: StateDtype,
    }

    fn all_types() -> Vec<Types> {
        let mut all = Vec::new();
        for (param, has_master) in [
            (Dtype::F32, false),
            (Dtype::F16, false),
            (Dtype::F16, true),
            (Dtype::BF16, false),
            (Dtype::BF16, true),
        ] {
            for grad in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                for state in [StateDtype::F32, StateDtype::BF16] {
                    all.push(Types {
                        param,
                        has_master,
                        grad,
                        state,
                    });
                }
            }
        }
        all
    }

    /// The bits of a value of some type.
    fn nearest(dtype: Dtype, x: f32) -> u32 {
        match dtype {
            Dtype::F32 => x.to_bits(),
            Dtype::F16 => convert::f32_to_f16_nearest(x).into(),
            Dtype::BF16 => convert::f32_to_bf16_nearest(x).into(),
        }
    }

    fn stochastic(dtype: Dtype, x: f32, random: u32) -> u32 {
        match dtype {
            Dtype::F32 => x.to_bits(),
            Dtype::F16 => convert::f32_to_f16_stochastic(x, random).into(),
            Dtype::BF16 => convert::f32_to_bf16_stochastic(x, random).into(),
        }
    }

    fn widened(dtype: Dtype, bits: u32) -> f32 {
        match dtype {
            Dtype::F32 => f32::from_bits(bits),
            Dtype::F16 => convert::f16_to_f32(bits as u16),
            Dtype::BF16 => convert::bf16_to_f32(bits as u16),
        }
    }

    /// The entries of the window in one buffer, of which the others do not exist: nobody has memory for them.
    #[derive(Clone)]
    struct Buffer {
        dtype: Dtype,
        bits: Bits,
    }

    #[derive(Clone)]
    enum Bits {
        Halves(Vec<u16>),
        Words(Vec<u32>),
    }

    impl Buffer {
        fn new(dtype: Dtype, value: impl Fn(usize) -> f32) -> Self {
            let bits = (0..ENTRIES).map(|i| nearest(dtype, value(i)));
            let bits = match dtype {
                Dtype::F32 => Bits::Words(bits.collect()),
                _ => Bits::Halves(bits.map(|bits| bits as u16).collect()),
            };
            Self { dtype, bits }
        }

        /// Where entry 0 would be.
        fn start(&mut self) -> *mut u8 {
            match &mut self.bits {
                Bits::Halves(bits) => bits.as_mut_ptr().wrapping_sub(FIRST as usize).cast(),
                Bits::Words(bits) => bits.as_mut_ptr().wrapping_sub(FIRST as usize).cast(),
            }
        }

        fn get(&self, i: usize) -> u32 {
            match &self.bits {
                Bits::Halves(bits) => bits[i].into(),
                Bits::Words(bits) => bits[i],
            }
        }

        fn set(&mut self, i: usize, to: u32) {
            match &mut self.bits {
                Bits::Halves(bits) => bits[i] = to as u16,
                Bits::Words(bits) => bits[i] = to,
            }
        }

        fn value(&self, i: usize) -> f32 {
            widened(self.dtype, self.get(i))
        }
    }

    /// What the rule says of an entry, by bits: its moments and its key, and what its parameter, or the master copy of
    /// that, becomes if it moves and if not.
    #[derive(Clone, Copy)]
    struct Stepped {
        exp_avg: u32,
        exp_avg_sq: u32,
        key: u32,
        moves: u32,
        stays: u32,
    }

    #[derive(Clone)]
    struct Window {
        types: Types,
        param: Buffer,
        grad: Buffer,
        exp_avg: Buffer,
        exp_avg_sq: Buffer,
        master: Buffer,
        threshold: u32,
    }

    impl Window {
        fn new(types: Types) -> Self {
            let state = match types.state {
                StateDtype::F32 => Dtype::F32,
                StateDtype::BF16 => Dtype::BF16,
            };
            // Not in order: the last entries of the near side are among those that move or are open.
            let scatter = |i: usize| (29 * i + 50) % ENTRIES;
            let scaled = |scale: f32| move |i| scale * (1.0 + scatter(i) as f32);
            // So small a parameter cannot be computed back from what it becomes.
            let param = |i| if i % 5 == 4 { 1e-7 } else { scaled(0.1)(i) };
            Self {
                types,
                // With a master copy, the parameter says nothing.
                param: Buffer::new(
                    types.param,
                    |i| if types.has_master { 7.0 } else { param(i) },
                ),
                grad: Buffer::new(types.grad, |i| 0.01 * (scatter(i) as f32 - 40.0)),
                exp_avg: Buffer::new(state, scaled(1e-3)),
                exp_avg_sq: Buffer::new(state, scaled(1e-5)),
                master: Buffer::new(Dtype::F32, param),
                threshold: 0,
            }
        }

        fn job(&mut self, filter: Filter, weight_decay_scope: WeightDecayScope) -> Job {
            let hyper = Hyper {
                learning_rate: 0.01,
                learning_rate_scale: 1.0,
                beta1: 0.9,
                beta2: 0.99,
                epsilon: 1e-8,
                weight_decay: 0.1,
            };
            Job {
                param: self.param.start(),
                grad: self.grad.start(),
                exp_avg: self.exp_avg.start(),
                exp_avg_sq: self.exp_avg_sq.start(),
                master: if self.types.has_master {
                    self.master.start().cast()
                } else {
                    std::ptr::null_mut()
                },
                thresholds: &mut self.threshold,
                param_dtype: self.types.param,
                grad_dtype: self.types.grad,
                state_dtype: self.types.state,
                numel: FIRST + ENTRIES as u64,
                block_numel: FIRST + ENTRIES as u64,
                rank: 1,
                everything_moves: false,
                starts_moments: false,
                starts_master: false,
                scalars: Scalars::new(&hyper, 3).unwrap(),
                filter,
                weight_decay_scope,
                rounding: Rounding::Stochastic,
                random: RandomKeys::new(1, 2, 3),
            }
        }

        /// The parameter, or the master copy if there is one.
        fn kept(&self) -> &Buffer {
            if self.types.has_master {
                &self.master
            } else {
                &self.param
            }
        }

        fn set_kept(&mut self, i: usize, to: u32) {
            if self.types.has_master {
                self.master.set(i, to);
                let rounded = nearest(self.param.dtype, f32::from_bits(to));
                self.param.set(i, rounded);
            } else {
                self.param.set(i, to);
            }
        }

        /// What the rule says of all entries, and their keys in ascending order.
        fn expected(&self, job: &Job) -> (Vec<Stepped>, Vec<u32>) {
            let all: Vec<_> = (0..ENTRIES).map(|i| self.expected_entry(job, i)).collect();
            let mut sorted: Vec<u32> = all.iter().map(|entry| entry.key).collect();
            sorted.sort_unstable();
            (all, sorted)
        }

        fn expected_entry(&self, job: &Job, i: usize) -> Stepped {
            let scalars = &job.scalars;
            let draw = |stream| Key::new(1, 2, 3, stream).bits(FIRST + i as u64);
            let state = self.exp_avg.dtype;
            let (m, v) = entry::moments(
                self.grad.value(i),
                self.exp_avg.value(i),
                self.exp_avg_sq.value(i),
                scalars,
            );
            let bits = draw(Stream::Moments);
            let exp_avg = stochastic(state, m, random::for_exp_avg(bits));
            let exp_avg_sq = stochastic(state, v, random::for_exp_avg_sq(bits));
            let [m, v] = [exp_avg, exp_avg_sq].map(|bits| widened(state, bits));
            let kept = self.kept();
            let old = kept.value(i);
            let round = |x| stochastic(kept.dtype, x, draw(Stream::Param));
            let moved = entry::moved(old, entry::update(m, v, scalars), scalars);
            Stepped {
                exp_avg,
                exp_avg_sq,
                key: entry::key(match job.filter {
                    Filter::Random => random::uniform(draw(Stream::Filter)),
                    _ => m,
                }),
                moves: round(moved),
                stays: match job.weight_decay_scope {
                    WeightDecayScope::Selected => kept.get(i),
                    WeightDecayScope::All => round(old * scalars.decay),
                },
            }
        }

        /// Checks all entries after a step in which those with these keys have moved.
        fn compare(&self, expected: &[Stepped], moves: impl Fn(u32) -> bool) {
            let types = self.types;
            for (i, entry) in expected.iter().enumerate() {
                let [m, v] = [&self.exp_avg, &self.exp_avg_sq].map(|buffer| buffer.get(i));
                assert_eq!(m, entry.exp_avg, "exp_avg {i} of {types:?}");
                assert_eq!(v, entry.exp_avg_sq, "exp_avg_sq {i} of {types:?}");
                let kept = if moves(entry.key) {
                    entry.moves
                } else {
                    entry.stays
                };
                assert_eq!(self.kept().get(i), kept, "param {i} of {types:?}");
                if types.has_master {
                    let rounded = nearest(types.param, self.master.value(i));
                    assert_eq!(self.param.get(i), rounded, "rounded {i} of {types:?}");
                }
            }
        }
    }

    /// The loops of all tiers that are here; the others are named out loud.
    fn every_tier() -> Vec<&'static Kernels> {
        let mut found = Vec::new();
        for tier in [CpuTier::Portable, CpuTier::Avx2, CpuTier::Avx512] {
            match Kernels::of(tier) {
                Some(kernels) => found.push(kernels),
                None => {
                    let required = std::env::var_os("MOFO_REQUIRE_TIERS");
                    assert!(
                        required.is_none_or(|value| value != "1"),
                        "{tier:?} is required"
                    );
                    eprintln!("skipped: CPU tier {tier:?} is not on this machine");
                }
            }
        }
        found
    }

    #[test]
    fn every_operation_does_in_each_lane_what_the_rule_does() {
        for kernels in every_tier() {
            // SAFETY: the processor has the tier.
            unsafe { (kernels.check_operations)() };
        }
    }

    #[test]
    fn indices_beyond_32_bits() {
        for kernels in every_tier() {
            // The test harness shows it only if the test fails.
            println!("tier {:?}", kernels.tier);
            for types in all_types() {
                for filter in [Filter::Random, Filter::Momentum] {
                    keys_beyond_32_bits(kernels, types, filter);
                    for scope in [WeightDecayScope::Selected, WeightDecayScope::All] {
                        step_beyond_32_bits(kernels, types, filter, scope);
                    }
                }
                step_with_notes_beyond_32_bits(kernels, types);
            }
        }
    }

    fn keys_beyond_32_bits(kernels: &Kernels, types: Types, filter: Filter) {
        let mut window = Window::new(types);
        let job = window.job(filter, WeightDecayScope::Selected);
        let (expected, sorted) = window.expected(&job);
        let all_keys: Vec<u32> = expected.iter().map(|entry| entry.key).collect();

        let mut keys = [0u32; ENTRIES + MAX_LANES];
        // SAFETY: only the entries of the window are touched, and `keys` has room for them and a group more.
        unsafe { kernels::keys(kernels, &job, FIRST, ENTRIES, keys.as_mut_ptr()) };
        assert_eq!(keys[..ENTRIES], all_keys, "{types:?}");

        let bracket = (sorted[30], sorted[60]);
        // SAFETY: as above.
        let found =
            unsafe { kernels::collect(kernels, &job, FIRST, ENTRIES, bracket, keys.as_mut_ptr()) };
        let from = |key| sorted.partition_point(|&other| other < key);
        let inside = &sorted[from(bracket.0)..from(bracket.1 + 1)];
        let above = ENTRIES - from(bracket.1 + 1);
        assert_eq!(
            (found.above as usize, found.inside),
            (above, inside.len()),
            "{types:?}"
        );
        keys[..found.inside].sort_unstable();
        assert_eq!(&keys[..found.inside], inside, "{types:?}");
    }

    fn step_beyond_32_bits(
        kernels: &Kernels,
        types: Types,
        filter: Filter,
        scope: WeightDecayScope,
    ) {
        let mut window = Window::new(types);
        let job = window.job(filter, scope);
        let (expected, sorted) = window.expected(&job);
        let threshold = sorted[50];
        // SAFETY: only the entries of the window are touched.
        let moved = unsafe { kernels::step(kernels, &job, (FIRST, ENTRIES as u64), threshold) };
        assert_eq!(moved as usize, reaching(&sorted, threshold), "{types:?}");
        window.compare(&expected, |key| key >= threshold);
    }

    fn reaching(keys: &[u32], threshold: u32) -> usize {
        keys.iter().filter(|&&key| key >= threshold).count()
    }

    /// A pass that leaves some entries open; then corrections to a threshold above some of what moved, where old values
    /// are computed back, and to one below.
    fn step_with_notes_beyond_32_bits(kernels: &Kernels, types: Types) {
        let mut window = Window::new(types);
        let job = window.job(Filter::Momentum, WeightDecayScope::Selected);
        let (expected, sorted) = window.expected(&job);
        let bounds = Bounds {
            possible: sorted[30],
            certain: sorted[60],
        };
        let [mut entries, mut keys, mut values] = [[0u32; ENTRIES + MAX_LANES]; 3];
        let mut old = [0u16; ENTRIES + MAX_LANES];
        let places = [&mut entries, &mut keys, &mut values].map(|place| place.as_mut_ptr());
        let mut notes = Notes::at(places, old.as_mut_ptr());
        // SAFETY: only the entries of the window are touched; there is room for their notes and a group more.
        let moved = unsafe {
            kernels::step_and_note(kernels, &job, (FIRST, ENTRIES as u64), bounds, &mut notes)
        };
        let (count, lost, num_old) = (notes.count, notes.lost, notes.num_old);
        assert_eq!(
            moved as usize,
            reaching(&sorted, bounds.certain),
            "{types:?}"
        );
        window.compare(&expected, |key| key >= bounds.certain);

        // Of halves, the upper half of a note does not matter.
        let bits = window.kept().dtype.size() * 8;
        let index = |noted: u32| noted.wrapping_sub(FIRST as u32) as usize;
        let mut open = Vec::new();
        let mut lost_entries = Vec::new();
        for (note, &noted) in entries[..count].iter().enumerate() {
            let i = index(noted);
            let entry = expected[i];
            let has_moved = entry.key >= bounds.certain;
            let (list, value) = if has_moved {
                (&mut lost_entries, entry.stays)
            } else {
                (&mut open, entry.moves)
            };
            list.push(i);
            assert_eq!(keys[note], entry.key, "key of {i} of {types:?}");
            assert_eq!(
                values[note] << (32 - bits),
                value << (32 - bits),
                "value of {i} of {types:?}"
            );
        }
        let is_open = |key: u32| bounds.possible <= key && key < bounds.certain;
        let expected_open: Vec<usize> =
            (0..ENTRIES).filter(|&i| is_open(expected[i].key)).collect();
        assert_eq!(open, expected_open, "{types:?}");
        assert!(lost_entries.is_sorted(), "{lost_entries:?} of {types:?}");
        assert_eq!(lost, lost_entries.len(), "{types:?}");
        let expected_old: Vec<u16> = expected
            .iter()
            .filter(|entry| keeps_old(&job) && entry.key >= bounds.certain)
            .map(|entry| entry.stays as u16)
            .collect();
        assert_eq!(old[..num_old], expected_old, "{types:?}");

        // The moments stay as they are now.
        let stored = job.after_step();
        let settle = |moved_from, threshold| {
            // SAFETY: as above.
            let moves = unsafe {
                kernels::settle(
                    kernels,
                    &stored,
                    (FIRST, ENTRIES as u64),
                    moved_from,
                    threshold,
                )
            };
            assert_eq!(moves as usize, reaching(&sorted, threshold), "{types:?}");
        };
        let mut moved_from = bounds.certain;
        if keeps_old(&job) {
            assert_eq!(lost, 0, "{types:?}");
        } else {
            // Some are lost on both sides, but far from all.
            assert!(lost_entries.iter().any(|&i| i < NEAR) && lost < moved as usize / 2);
            assert!(lost_entries.iter().any(|&i| i >= NEAR));
            let threshold = sorted[90];
            settle(moved_from, threshold);
            for i in lost_entries {
                if expected[i].key < threshold {
                    window.set_kept(i, expected[i].stays);
                }
            }
            window.compare(&expected, |key| key >= threshold);
            moved_from = threshold;
        }
        settle(moved_from, sorted[20]);
        window.compare(&expected, |key| key >= sorted[20]);
    }
}
