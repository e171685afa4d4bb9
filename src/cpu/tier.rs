//! The loops as compiled for each instruction set, and the choice among them.

use super::element::{HalfBf16, HalfF16, MasterBf16, MasterF16, Moment, Param, Single};
use super::kernels::{Bounds, Bracket, Collected, Notes};
use super::vector::{Bf16, F16};
use crate::backend::Job;
use crate::config::{CpuTier, Dtype, StateDtype};
use crate::error::{Error, ErrorKind, Result, fail};

/// One tier's loops. Their contracts are those of the functions of the same name in [`super::kernels`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub(super) tier: CpuTier,
    pub(super) step: unsafe fn(&Job, u64, u64, u32) -> u64,
    pub(super) step_and_note: unsafe fn(&Job, u64, u64, Bounds, &mut Notes) -> u64,
    pub(super) settle: unsafe fn(&Job, u64, u64, u32, u32) -> u64,
    pub(super) keys: unsafe fn(&Job, u64, usize, *mut u32),
    pub(super) lines: unsafe fn(&Job, &[u64], *mut u32),
    pub(super) collect: unsafe fn(&Job, u64, usize, Bracket, *mut u32) -> Collected,
    pub(super) sift: unsafe fn(*const u32, usize, Bracket, *mut u32) -> Collected,
    pub(super) sum_of_squares: unsafe fn(&Job, u64, usize) -> f64,
    pub(super) start_master: unsafe fn(&Job, u64, u64),
    #[cfg(test)]
    check_operations: unsafe fn(),
}

/// Calls `$function::<Param, Moment>` for the types of a job.
macro_rules! for_types {
    ($job:ident, $function:ident $arguments:tt) => {
        match ($job.param_dtype, $job.master.is_null()) {
            (Dtype::F32, _) => for_types!(@moment $job, $function, Single, $arguments),
            (Dtype::F16, true) => for_types!(@moment $job, $function, HalfF16, $arguments),
            (Dtype::F16, false) => for_types!(@moment $job, $function, MasterF16, $arguments),
            (Dtype::BF16, true) => for_types!(@moment $job, $function, HalfBf16, $arguments),
            (Dtype::BF16, false) => for_types!(@moment $job, $function, MasterBf16, $arguments),
        }
    };
    (@moment $job:ident, $function:ident, $param:ty, ($($argument:expr),*)) => {
        match $job.state_dtype {
            StateDtype::F32 => $function::<$param, Single>($($argument),*),
            StateDtype::BF16 => $function::<$param, HalfBf16>($($argument),*),
        }
    };
}

/// Calls `$function::<Moment>` for the types of a job.
macro_rules! for_moment_types {
    ($job:ident, $function:ident $arguments:tt) => {
        match $job.state_dtype {
            StateDtype::F32 => $function::<Single> $arguments,
            StateDtype::BF16 => $function::<HalfBf16> $arguments,
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
                step_and_note,
                settle,
                keys,
                lines,
                collect,
                sift,
                sum_of_squares,
                start_master,
                #[cfg(test)]
                check_operations,
            };

            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn step_of<P: Param<V>, S: Moment<V>>(
                job: &Job, start: u64, len: u64, threshold: u32,
            ) -> u64 {
                // SAFETY: the caller's promise.
                unsafe { kernels::step::<V, P, S>(job, start, len, threshold) }
            }

            unsafe fn step(job: &Job, start: u64, len: u64, threshold: u32) -> u64 {
                // SAFETY: the caller's promise; `Kernels::choose` has seen that the processor has the features.
                unsafe { for_types!(job, step_of(job, start, len, threshold)) }
            }

            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn step_and_note_of<P: Param<V>, S: Moment<V>>(
                job: &Job, start: u64, len: u64, bounds: Bounds, notes: &mut Notes,
            ) -> u64 {
                // SAFETY: the caller's promise.
                unsafe { kernels::step_and_note::<V, P, S>(job, start, len, bounds, notes) }
            }

            unsafe fn step_and_note(
                job: &Job, start: u64, len: u64, bounds: Bounds, notes: &mut Notes,
            ) -> u64 {
                // SAFETY: as for `step`.
                unsafe { for_types!(job, step_and_note_of(job, start, len, bounds, notes)) }
            }

            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn settle_of<P: Param<V>, S: Moment<V>>(
                job: &Job, start: u64, len: u64, moved_from: u32, threshold: u32,
            ) -> u64 {
                // SAFETY: the caller's promise.
                unsafe { kernels::settle::<V, P, S>(job, start, len, moved_from, threshold) }
            }

            unsafe fn settle(
                job: &Job, start: u64, len: u64, moved_from: u32, threshold: u32,
            ) -> u64 {
                // SAFETY: as for `step`.
                unsafe { for_types!(job, settle_of(job, start, len, moved_from, threshold)) }
            }

            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn keys_of<S: Moment<V>>(job: &Job, start: u64, len: usize, keys: *mut u32) {
                // SAFETY: the caller's promise.
                unsafe { kernels::keys::<V, S>(job, start, len, keys) };
            }

            unsafe fn keys(job: &Job, start: u64, len: usize, keys: *mut u32) {
                // SAFETY: as for `step`.
                unsafe { for_moment_types!(job, keys_of(job, start, len, keys)) }
            }

            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn lines_of<S: Moment<V>>(job: &Job, starts: &[u64], keys: *mut u32) {
                // SAFETY: the caller's promise.
                unsafe { kernels::lines::<V, S>(job, starts, keys) };
            }

            unsafe fn lines(job: &Job, starts: &[u64], keys: *mut u32) {
                // SAFETY: as for `step`.
                unsafe { for_moment_types!(job, lines_of(job, starts, keys)) }
            }

            $(#[target_feature(enable = $features)])?
            #[inline(never)]
            unsafe fn collect_of<S: Moment<V>>(
                job: &Job, start: u64, len: usize, bracket: Bracket, found: *mut u32,
            ) -> Collected {
                // SAFETY: the caller's promise.
                unsafe { kernels::collect::<V, S>(job, start, len, bracket, found) }
            }

            unsafe fn collect(
                job: &Job, start: u64, len: usize, bracket: Bracket, found: *mut u32,
            ) -> Collected {
                // SAFETY: as for `step`.
                unsafe { for_moment_types!(job, collect_of(job, start, len, bracket, found)) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn sift(
                keys: *const u32, len: usize, bracket: Bracket, found: *mut u32,
            ) -> Collected {
                // SAFETY: the caller's promise.
                unsafe { kernels::sift::<V>(keys, len, bracket, found) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn sum_of_squares(job: &Job, start: u64, len: usize) -> f64 {
                // SAFETY: the caller's promise.
                unsafe { kernels::sum_of_squares::<V>(job, start, len) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn start_master(job: &Job, start: u64, len: u64) {
                // SAFETY: the caller's promise; a parameter with a master copy is in one of these formats.
                unsafe {
                    match job.param_dtype {
                        Dtype::BF16 => kernels::start_master::<V, Bf16>(job, start, len),
                        _ => kernels::start_master::<V, F16>(job, start, len),
                    }
                }
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
    use half::bf16;

    use super::super::vector::MAX_LANES;
    use super::*;
    use crate::backend::RandomKeys;
    use crate::config::{Filter, Rounding, WeightDecayScope};
    use crate::rule::random::{Key, Stream};
    use crate::rule::scalars::{Hyper, Scalars};
    use crate::rule::{convert, entry, random};

    /// Entries of the window around index 2^32 that the test looks at.
    const ENTRIES: usize = 100;
    const FIRST: u64 = (1 << 32) - 37;

    /// The bits of an entry's moments and parameter after a step that moves it, and its key.
    type Stepped = (u16, u16, u16, u32);

    /// Buffers of which only the entries from `FIRST` on exist: nobody has memory for the others.
    struct Window {
        param: Vec<bf16>,
        grad: Vec<f32>,
        exp_avg: Vec<bf16>,
        exp_avg_sq: Vec<bf16>,
        threshold: u32,
    }

    impl Window {
        fn new() -> Self {
            let values =
                |scale: f32| (0..ENTRIES).map(move |i| bf16::from_f32(scale * (1.0 + i as f32)));
            Self {
                param: values(0.1).collect(),
                grad: (0..ENTRIES).map(|i| 0.01 * (i as f32 - 40.0)).collect(),
                exp_avg: values(1e-3).collect(),
                exp_avg_sq: values(1e-5).collect(),
                threshold: 0,
            }
        }

        fn job(&mut self) -> Job {
            fn before<T>(start: *mut T) -> *mut u8 {
                start.wrapping_sub(FIRST as usize).cast()
            }
            let hyper = Hyper {
                learning_rate: 0.01,
                learning_rate_scale: 1.0,
                beta1: 0.9,
                beta2: 0.99,
                epsilon: 1e-8,
                weight_decay: 0.1,
            };
            Job {
                param: before(self.param.as_mut_ptr()),
                grad: before(self.grad.as_mut_ptr()),
                exp_avg: before(self.exp_avg.as_mut_ptr()),
                exp_avg_sq: before(self.exp_avg_sq.as_mut_ptr()),
                master: std::ptr::null_mut(),
                thresholds: &mut self.threshold,
                param_dtype: Dtype::BF16,
                grad_dtype: Dtype::F32,
                state_dtype: StateDtype::BF16,
                numel: FIRST + ENTRIES as u64,
                block_numel: FIRST + ENTRIES as u64,
                rank: 1,
                everything_moves: false,
                starts_moments: false,
                starts_master: false,
                scalars: Scalars::new(&hyper, 3).unwrap(),
                filter: Filter::Random,
                weight_decay_scope: WeightDecayScope::Selected,
                rounding: Rounding::Stochastic,
                random: RandomKeys::new(1, 2, 3),
            }
        }

        /// The rule's moments, parameter and key of the `i`-th entry, if it moves.
        fn expected(&self, job: &Job, i: usize) -> Stepped {
            let index = FIRST + i as u64;
            let (m, v) = entry::moments(
                self.grad[i],
                self.exp_avg[i].to_f32(),
                self.exp_avg_sq[i].to_f32(),
                &job.scalars,
            );
            let draw = |stream| Key::new(1, 2, 3, stream).bits(index);
            let m = convert::f32_to_bf16_stochastic(m, draw(Stream::ExpAvg));
            let v = convert::f32_to_bf16_stochastic(v, draw(Stream::ExpAvgSq));
            let [wide_m, wide_v] = [m, v].map(convert::bf16_to_f32);
            let update = entry::update(wide_m, wide_v, &job.scalars);
            let p = entry::moved(self.param[i].to_f32(), update, &job.scalars);
            let p = convert::f32_to_bf16_stochastic(p, draw(Stream::Param));
            let key = entry::key(match job.filter {
                Filter::Random => random::uniform(draw(Stream::Filter)),
                _ => wide_m,
            });
            (m, v, p, key)
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
            keys_beyond_32_bits(kernels);
            step_beyond_32_bits(kernels);
            step_with_notes_beyond_32_bits(kernels);
        }
    }

    fn keys_beyond_32_bits(kernels: &Kernels) {
        let mut window = Window::new();
        let job = window.job();
        let all_keys: Vec<u32> = (0..ENTRIES).map(|i| window.expected(&job, i).3).collect();

        let mut keys = [0u32; ENTRIES + MAX_LANES];
        // SAFETY: only the entries of the window are touched, and `keys` has room for them and a group more.
        unsafe { (kernels.keys)(&job, FIRST, ENTRIES, keys.as_mut_ptr()) };
        assert_eq!(keys[..ENTRIES], all_keys);

        let mut sorted = all_keys;
        sorted.sort_unstable();
        let bracket = (sorted[30], sorted[60]);
        // SAFETY: as above.
        let found = unsafe { (kernels.collect)(&job, FIRST, ENTRIES, bracket, keys.as_mut_ptr()) };
        assert_eq!((found.above, found.inside), (39, 31));
        keys[..31].sort_unstable();
        assert_eq!(keys[..31], sorted[30..=60]);
    }

    /// The rule's entries, and their keys in ascending order.
    fn expected_entries(window: &Window, job: &Job) -> (Vec<Stepped>, Vec<u32>) {
        let expected: Vec<_> = (0..ENTRIES).map(|i| window.expected(job, i)).collect();
        let mut sorted: Vec<u32> = expected.iter().map(|entry| entry.3).collect();
        sorted.sort_unstable();
        (expected, sorted)
    }

    /// Checks moments, and parameters of which those with these keys have moved.
    fn compare(
        window: &Window,
        before: &[bf16],
        expected: &[Stepped],
        moves: impl Fn(u32) -> bool,
    ) {
        for (i, &(m, v, p, key)) in expected.iter().enumerate() {
            assert_eq!(window.exp_avg[i].to_bits(), m, "exp_avg {i}");
            assert_eq!(window.exp_avg_sq[i].to_bits(), v, "exp_avg_sq {i}");
            let p = if moves(key) { p } else { before[i].to_bits() };
            assert_eq!(window.param[i].to_bits(), p, "param {i}");
        }
    }

    fn step_beyond_32_bits(kernels: &Kernels) {
        let mut window = Window::new();
        let job = window.job();
        let (expected, sorted) = expected_entries(&window, &job);
        let threshold = sorted[50];
        let before = window.param.clone();
        // SAFETY: only the entries of the window are touched.
        let moved = unsafe { (kernels.step)(&job, FIRST, ENTRIES as u64, threshold) };
        assert_eq!(moved, 50);
        compare(&window, &before, &expected, |key| key >= threshold);
    }

    /// A pass that leaves some entries open; then a correction to a threshold below what moved.
    fn step_with_notes_beyond_32_bits(kernels: &Kernels) {
        let mut window = Window::new();
        let job = Job {
            filter: Filter::Momentum,
            ..window.job()
        };
        let (expected, sorted) = expected_entries(&window, &job);
        let before = window.param.clone();
        let bounds = Bounds {
            possible: sorted[30],
            certain: sorted[60],
        };
        let [mut entries, mut keys, mut values] = [[0u32; ENTRIES + MAX_LANES]; 3];
        let mut old = [0u16; ENTRIES + MAX_LANES];
        let mut notes = Notes {
            entries: entries.as_mut_ptr(),
            keys: keys.as_mut_ptr(),
            values: values.as_mut_ptr(),
            count: 0,
            lost: 0,
            old: old.as_mut_ptr(),
            num_old: 0,
        };
        // SAFETY: only the entries of the window are touched; there is room for their notes and a group more.
        let moved =
            unsafe { (kernels.step_and_note)(&job, FIRST, ENTRIES as u64, bounds, &mut notes) };
        let (count, lost, num_old) = (notes.count, notes.lost, notes.num_old);
        let index = |noted: u32| noted.wrapping_sub(FIRST as u32) as usize;
        let noted: Vec<usize> = entries[..count].iter().map(|&entry| index(entry)).collect();
        let open = |key: u32| bounds.possible <= key && key < bounds.certain;
        let expected_notes: Vec<usize> = (0..ENTRIES).filter(|&i| open(expected[i].3)).collect();
        assert_eq!((noted, lost), (expected_notes.clone(), 0));
        for (note, &i) in expected_notes.iter().enumerate() {
            let (_, _, p, key) = expected[i];
            assert_eq!(keys[note], key, "key of {i}");
            assert_eq!(values[note] as u16, p, "value of {i}");
        }
        let expected_old: Vec<u16> = (0..ENTRIES)
            .filter(|&i| expected[i].3 >= bounds.certain)
            .map(|i| before[i].to_bits())
            .collect();
        assert_eq!(old[..num_old], expected_old);
        assert_eq!(moved as usize, expected_old.len());
        compare(&window, &before, &expected, |key| key >= bounds.certain);

        // The moments stay as they are now.
        let stored = Job {
            scalars: Scalars {
                b1: 1.0,
                c1: 0.0,
                b2: 1.0,
                c2: 0.0,
                ..job.scalars
            },
            ..job
        };
        let (moved_from, threshold) = (bounds.certain, sorted[20]);
        // SAFETY: as above.
        let moves =
            unsafe { (kernels.settle)(&stored, FIRST, ENTRIES as u64, moved_from, threshold) };
        let reach = sorted.iter().filter(|&&key| key >= threshold).count();
        assert_eq!(moves as usize, reach);
        compare(&window, &before, &expected, |key| key >= threshold);
    }
}
