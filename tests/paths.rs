//! Every way of stepping a block whose threshold is estimated gives the bits of the rule: estimates that hold and that
//! fail in each direction, no room for notes, entries whose old value is lost; on gradients that mislead an estimate,
//! for all types and settings, in every tier, on any threads.
//!
//! Needs the feature `forced-paths`, because few gradients take most of these ways.

mod harness;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use half::{bf16, f16};
use harness::case::Case;
use harness::data::{Grad, Param, Rng, Tensor};
use harness::device::RandomOrder;
use harness::parallel_for::{backwards, scattered};
use harness::places::{Place, places, tiers};
use harness::toolchain::say_skipped;
use mofo::forced::{Forced, ForcedBracket, force};
use mofo::{
    Dtype, Filter, Options, ParallelFor, Rounding, StateDtype, StepReport, WeightDecayScope,
};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];
/// The type of a parameter, and whether it has a master copy.
const PARAMS: [(Dtype, bool); 5] = [
    (Dtype::F32, false),
    (Dtype::F16, false),
    (Dtype::BF16, false),
    (Dtype::F16, true),
    (Dtype::BF16, true),
];
const STATES: [StateDtype; 2] = [StateDtype::F32, StateDtype::BF16];
const FILTERS: [Filter; 4] = [
    Filter::Momentum,
    Filter::Gradient,
    Filter::Update,
    Filter::Random,
];
const SCOPES: [WeightDecayScope; 2] = [WeightDecayScope::Selected, WeightDecayScope::All];
const ROUNDINGS: [Rounding; 2] = [Rounding::Nearest, Rounding::Stochastic];
const FRACTIONS: [f64; 10] = [1e-9, 0.001, 0.01, 0.03, 0.1, 0.2, 0.5, 0.9, 0.999, 1.0];

const fn path(bracket: ForcedBracket, no_room: bool, digits: bool) -> Forced {
    Forced {
        small_block: Some(1000),
        bracket,
        no_room,
        little_room_for_old: false,
        crowded: None,
        digits,
    }
}

/// The estimate is not even tried.
const fn crowded(digits: bool) -> Forced {
    Forced {
        crowded: Some(true),
        ..path(ForcedBracket::Sampled, false, digits)
    }
}

/// Ways to go on from an estimate.
const PATHS: [Forced; 10] = [
    path(ForcedBracket::Sampled, false, false),
    path(ForcedBracket::TooLow, false, false),
    path(ForcedBracket::TooHigh, false, false),
    path(ForcedBracket::Anywhere, false, false),
    path(ForcedBracket::Exactly, false, false),
    path(ForcedBracket::Sampled, true, false),
    path(ForcedBracket::TooLow, false, true),
    path(ForcedBracket::TooHigh, true, true),
    crowded(false),
    crowded(true),
];

/// True if an estimate of ordinary gradients fails on this way.
fn fails(forced: Forced) -> bool {
    forced.no_room
        || !matches!(
            forced.bracket,
            ForcedBracket::Sampled | ForcedBracket::Anywhere
        )
}

/// How many of these blocks are estimated on this way.
fn estimated(forced: Forced, blocks: u64) -> u64 {
    if forced.crowded == Some(true) {
        0
    } else {
        blocks
    }
}

/// The same on blocks of all sizes that are usual.
fn at_natural_size(forced: Forced) -> Forced {
    Forced {
        small_block: None,
        ..forced
    }
}

/// Forces until it is dropped, also by a panic: other tests may run on this thread.
struct Forcing;

impl Forcing {
    fn start(forced: Forced) -> Self {
        force(forced);
        Self
    }
}

impl Drop for Forcing {
    fn drop(&mut self) {
        force(Forced::default());
    }
}

/// Says which case failed: it is one of hundreds.
fn check(forced: Forced, case: Case) -> Vec<StepReport> {
    // On CUDA the threads make no difference.
    if case.options.num_threads == 1 && places().contains(&Place::Cuda) {
        let mut case = case.clone();
        Place::Cuda.enter_into(&mut case.options);
        check_there(forced, case);
    }
    check_there(forced, case)
}

fn check_there(forced: Forced, case: Case) -> Vec<StepReport> {
    let what = format!("{forced:?}, {:?}", case.options);
    let run = AssertUnwindSafe(|| {
        let _forcing = Forcing::start(forced);
        case.check()
    });
    catch_unwind(run).unwrap_or_else(|panic| {
        eprintln!("in {what}");
        resume_unwind(panic)
    })
}

/// Estimated blocks and failed estimates of all steps.
fn estimates(reports: &[StepReport]) -> (u64, u64) {
    reports.iter().fold((0, 0), |(blocks, failed), report| {
        (
            blocks + report.blocks_estimated,
            failed + report.estimates_failed,
        )
    })
}

/// What the gradients of some steps look like.
#[derive(Clone, Copy, Debug)]
enum Gradients {
    Normal,
    AllEqual,
    AllZero,
    TwoValues,
    SignsFlip,
    Grow,
    Shrink,
    Ascending,
    Descending,
    RowsOfZeros,
    FewHuge,
    HeavyTails,
    NotFinite,
    Subnormal,
    FewNonzero,
    Moving,
}

const GRADIENTS: [Gradients; 16] = [
    Gradients::Normal,
    Gradients::AllEqual,
    Gradients::AllZero,
    Gradients::TwoValues,
    Gradients::SignsFlip,
    Gradients::Grow,
    Gradients::Shrink,
    Gradients::Ascending,
    Gradients::Descending,
    Gradients::RowsOfZeros,
    Gradients::FewHuge,
    Gradients::HeavyTails,
    Gradients::NotFinite,
    Gradients::Subnormal,
    Gradients::FewNonzero,
    Gradients::Moving,
];

impl Gradients {
    /// The value of an entry in a step.
    fn value(self, i: usize, numel: usize, step: usize, rng: &mut Rng) -> f32 {
        let place = i as f32 / numel as f32;
        match self {
            Self::Normal => 0.01 * rng.normal(),
            Self::AllEqual => 0.5,
            Self::AllZero => 0.0,
            Self::TwoValues => [0.5, 0.75][usize::from(i % 10 == 3)],
            // So that moments cancel, and the threshold of the step before is no hint for the next.
            Self::SignsFlip => (if step == 0 { 1.0 } else { -0.9 }) * (0.1 + place),
            Self::Grow => 1e-6 * 1e6f32.powi(step as i32) * rng.normal(),
            Self::Shrink => 1e6 * 1e-6f32.powi(step as i32) * rng.normal(),
            Self::Ascending => place,
            Self::Descending => 1.0 - place,
            Self::RowsOfZeros if i / 64 % 16 != 3 => 0.0,
            Self::RowsOfZeros => rng.normal(),
            Self::FewHuge if rng.below(500) == 0 => 1e4 * rng.normal(),
            Self::FewHuge => 1e-3,
            Self::HeavyTails => rng.normal() / (1e-3 + rng.normal().abs()).powi(3),
            Self::NotFinite => {
                let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
                odd.get(rng.below(40)).copied().unwrap_or(rng.normal())
            }
            Self::Subnormal => f32::from_bits((rng.bits() as u32) & 0x807F_FFFF),
            Self::FewNonzero if i % 997 == 5 => rng.normal(),
            Self::FewNonzero => 0.0,
            // Another part of the block is large in each step.
            Self::Moving if (place * 5.0) as usize % 3 == step % 3 => 100.0 * rng.normal(),
            Self::Moving => 0.01 * rng.normal(),
        }
    }

    fn step(self, numel: usize, dtype: Dtype, step: usize, rng: &mut Rng) -> Grad {
        let values = (0..numel).map(|i| self.value(i, numel, step, rng));
        match dtype {
            Dtype::F32 => Grad::F32(values.collect()),
            Dtype::F16 => Grad::F16(values.map(f16::from_f32).collect()),
            Dtype::BF16 => Grad::BF16(values.map(bf16::from_f32).collect()),
        }
    }
}

/// What the parameters look like at first.
#[derive(Clone, Copy, Debug)]
enum Weights {
    Normal,
    /// Against an update, so that their old values cannot be computed from the new ones.
    Tiny,
    Zero,
    /// So that an update is lost.
    Huge,
    /// Of all kinds, zeros of both signs, subnormal and not finite ones included.
    Mixed,
}

const WEIGHTS: [Weights; 5] = [
    Weights::Normal,
    Weights::Tiny,
    Weights::Zero,
    Weights::Huge,
    Weights::Mixed,
];

impl Weights {
    fn value(self, rng: &mut Rng) -> f32 {
        match self {
            Self::Normal => rng.normal(),
            Self::Tiny => 1e-6 * rng.normal(),
            Self::Zero => 0.0,
            Self::Huge => 3e4 * rng.normal(),
            Self::Mixed => {
                let odd = [0.0, -0.0, f32::NAN, f32::INFINITY, -1e-40, 6e-8, f32::MAX];
                odd.get(rng.below(14)).copied().unwrap_or(rng.normal())
            }
        }
    }

    fn param(self, numel: usize, dtype: Dtype, rng: &mut Rng) -> Param {
        let values = (0..numel).map(|_| self.value(rng));
        match dtype {
            Dtype::F32 => Param::F32(values.collect()),
            Dtype::F16 => Param::F16(values.map(f16::from_f32).collect()),
            Dtype::BF16 => Param::BF16(values.map(bf16::from_f32).collect()),
        }
    }
}

/// A tensor with gradients for three steps.
fn tensor(
    numel: usize,
    (param, weights): (Dtype, Weights),
    (grad, gradients): (Dtype, Gradients),
    seed: u64,
) -> Tensor {
    let mut rng = Rng::new(seed);
    Tensor {
        name: format!("weight {seed}"),
        param: weights.param(numel, param, &mut rng),
        grads: (0..3)
            .map(|step| gradients.step(numel, grad, step, &mut rng))
            .collect(),
        num_blocks: 1,
        update_fraction: None,
        weight_decay: None,
        learning_rate_scale: 1.0,
    }
}

/// Of ordinary gradients, no two of which are equal.
fn normal(numel: usize, dtype: Dtype, seed: u64) -> Tensor {
    let grad = (Dtype::F32, Gradients::Normal);
    tensor(numel, (dtype, Weights::Normal), grad, seed)
}

fn on_one_thread() -> Options {
    Options {
        num_threads: 1,
        learning_rate: 0.01,
        ..Options::default()
    }
}

#[test]
fn estimates_that_are_wrong_are_reported_and_others_are_not() {
    for forced in PATHS {
        let case = Case {
            options: on_one_thread(),
            tensors: vec![normal(9001, Dtype::F32, 2)],
            steps: 3,
            ..Case::default()
        };
        let failed = if fails(forced) { 3 } else { 0 };
        let expected = (estimated(forced, 3), failed);
        assert_eq!(estimates(&check(forced, case)), expected, "{forced:?}");
    }
}

#[test]
fn on_cuda_estimates_that_are_wrong_are_reported_and_others_are_not() {
    if !places().contains(&Place::Cuda) {
        return;
    }
    let run = |forced: Forced, numel: usize, gradients: Gradients, options: Options| {
        let (weights, grad) = ((Dtype::F32, Weights::Normal), (Dtype::F32, gradients));
        let mut case = Case {
            options,
            tensors: vec![tensor(numel, weights, grad, 3)],
            steps: 3,
            ..Case::default()
        };
        Place::Cuda.enter_into(&mut case.options);
        estimates(&check_there(forced, case))
    };
    for forced in PATHS {
        // There is room for some of the notes only.
        let fails = fails(forced) || forced.bracket == ForcedBracket::Anywhere;
        let found = run(forced, 9001, Gradients::Normal, on_one_thread());
        assert_eq!(found, (3, if fails { 3 } else { 0 }), "{forced:?}");
    }
    for (gradients, failed) in [
        (Gradients::AllZero, 0),
        (Gradients::FewNonzero, 0),
        (Gradients::AllEqual, 3),
    ] {
        let found = run(PATHS[0], 9001, gradients, on_one_thread());
        assert_eq!(found, (3, failed), "{gradients:?}");
    }
    for update_fraction in [0.03, 0.1, 0.5] {
        let options = Options {
            update_fraction,
            ..on_one_thread()
        };
        let found = run(Forced::default(), 300_007, Gradients::Normal, options);
        assert_eq!(found, (3, 0), "{update_fraction}");
    }
    let found = run(Forced::default(), 9001, Gradients::Normal, on_one_thread());
    assert_eq!(found, (0, 0), "small blocks need no estimate");
}

/// The threshold is zero; what is noted tells as much. Or it is the value of all entries; then there would be too much to
/// note, and the sample tells so.
#[test]
fn fewer_gradients_than_may_move_and_equal_ones_fail_no_estimate() {
    for (gradients, blocks) in [
        (Gradients::AllZero, 3),
        (Gradients::FewNonzero, 3),
        (Gradients::AllEqual, 0),
    ] {
        let weights = (Dtype::F32, Weights::Normal);
        let case = Case {
            options: on_one_thread(),
            tensors: vec![tensor(9001, weights, (Dtype::F32, gradients), 1)],
            steps: 3,
            ..Case::default()
        };
        assert_eq!(
            estimates(&check(PATHS[0], case)),
            (blocks, 0),
            "{gradients:?}"
        );
    }
}

#[test]
fn small_blocks_decay_of_every_entry_and_other_filters_need_no_estimate() {
    use WeightDecayScope::{All, Selected};
    for (forced, weight_decay_scope, update_fraction, filter) in [
        (Forced::default(), Selected, 0.1, Filter::Momentum),
        (PATHS[1], All, 0.1, Filter::Momentum),
        (PATHS[1], Selected, 1.0, Filter::Momentum),
        (PATHS[1], Selected, 0.1, Filter::Gradient),
        (PATHS[1], Selected, 0.1, Filter::Update),
        (PATHS[1], Selected, 0.1, Filter::Random),
    ] {
        let case = Case {
            options: Options {
                weight_decay_scope,
                update_fraction,
                filter,
                weight_decay: 0.1,
                ..on_one_thread()
            },
            tensors: vec![normal(9001, Dtype::F32, 1)],
            steps: 3,
            ..Case::default()
        };
        assert_eq!(estimates(&check(forced, case)), (0, 0));
    }
}

#[test]
fn all_gradients_in_every_way() {
    let mut seed = 0;
    for forced in PATHS {
        for gradients in GRADIENTS {
            for update_fraction in [0.01, 0.2, 0.9] {
                seed += 1;
                let (dtype, master_weights) = PARAMS[seed as usize % PARAMS.len()];
                let weights = WEIGHTS[seed as usize / 3 % WEIGHTS.len()];
                let grad = (Dtype::F32, gradients);
                check(
                    forced,
                    Case {
                        options: Options {
                            update_fraction,
                            master_weights,
                            state_dtype: STATES[seed as usize / 5 % 2],
                            ..on_one_thread()
                        },
                        tensors: vec![tensor(9001, (dtype, weights), grad, seed)],
                        steps: 3,
                        ..Case::default()
                    },
                );
            }
        }
    }
}

#[test]
fn all_types_in_every_tier() {
    let mut seed = 0;
    for &tier in tiers() {
        for (dtype, master_weights) in PARAMS {
            for state_dtype in STATES {
                for grad in DTYPES {
                    for rounding in ROUNDINGS {
                        for forced in [PATHS[0], PATHS[1], PATHS[2], PATHS[5], PATHS[8]] {
                            seed += 1;
                            let weights = WEIGHTS[seed as usize % WEIGHTS.len()];
                            let grad = (grad, Gradients::Normal);
                            // Not a whole number of lanes, and blocks that start at any of them.
                            let mut tensor = tensor(2 * 4111, (dtype, weights), grad, seed);
                            tensor.num_blocks = 2;
                            check(
                                forced,
                                Case {
                                    options: Options {
                                        cpu_tier: Some(tier),
                                        master_weights,
                                        state_dtype,
                                        rounding,
                                        weight_decay: [0.0, 0.5][seed as usize / 7 % 2],
                                        update_fraction: [0.05, 0.25][seed as usize / 11 % 2],
                                        ..on_one_thread()
                                    },
                                    tensors: vec![tensor],
                                    steps: 3,
                                    ..Case::default()
                                },
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn all_filters_scopes_and_fractions_in_every_way() {
    let mut seed = 0;
    for forced in PATHS {
        for filter in FILTERS {
            for weight_decay_scope in SCOPES {
                for update_fraction in FRACTIONS {
                    seed += 1;
                    let dtypes = (DTYPES[seed as usize % 3], DTYPES[seed as usize / 3 % 3]);
                    let weights = (dtypes.0, WEIGHTS[seed as usize / 2 % WEIGHTS.len()]);
                    let grad = (dtypes.1, Gradients::Normal);
                    check(
                        forced,
                        Case {
                            options: Options {
                                filter,
                                weight_decay_scope,
                                update_fraction,
                                weight_decay: [0.0, 0.1][seed as usize / 7 % 2],
                                ..on_one_thread()
                            },
                            tensors: vec![tensor(5003, weights, grad, seed)],
                            steps: 3,
                            ..Case::default()
                        },
                    );
                }
            }
        }
    }
}

#[test]
fn all_but_one_entry_and_one_entry_alone() {
    for forced in PATHS {
        for numel in [1001usize, 4096, 4097, 10_000] {
            for k in [1, 2, numel - 1] {
                let mut tensor = normal(numel, Dtype::F32, numel as u64);
                tensor.update_fraction = Some((k as f64 + 0.5) / numel as f64);
                let reports = check(
                    forced,
                    Case {
                        options: on_one_thread(),
                        tensors: vec![tensor],
                        steps: 3,
                        ..Case::default()
                    },
                );
                assert!(
                    reports
                        .iter()
                        .all(|report| report.entries_selected == k as u64)
                );
            }
        }
    }
}

/// A learning rate of 1 and a weight decay of 1 leave nothing of the old value; half of it is left of the others.
#[test]
fn old_values_that_cannot_be_computed_again() {
    let mut seed = 0;
    for forced in PATHS {
        for weights in WEIGHTS {
            for (dtype, master_weights) in PARAMS {
                for (learning_rate, weight_decay) in [(1.0, 0.0), (1.0, 1.0), (0.5, 1.0)] {
                    seed += 1;
                    let grad = (Dtype::F32, Gradients::Normal);
                    check(
                        forced,
                        Case {
                            options: Options {
                                learning_rate,
                                weight_decay,
                                master_weights,
                                update_fraction: [0.03, 0.25][seed as usize % 2],
                                rounding: ROUNDINGS[seed as usize / 2 % 2],
                                ..on_one_thread()
                            },
                            tensors: vec![tensor(5003, (dtype, weights), grad, seed)],
                            steps: 3,
                            ..Case::default()
                        },
                    );
                }
            }
        }
    }
}

/// Tensors of all sizes and types: several share a wave, and some of their blocks are not estimated at all.
fn mixture() -> Vec<Tensor> {
    let sizes = [
        1, 4097, 70, 12_291, 999, 1001, 40_000, 5003, 16, 8192, 50_001,
    ];
    let mut tensors: Vec<Tensor> = (0..22)
        .map(|i| {
            let weights = (DTYPES[i % 3], WEIGHTS[i % WEIGHTS.len()]);
            let grad = (DTYPES[i / 3 % 3], GRADIENTS[i % GRADIENTS.len()]);
            tensor(sizes[i % sizes.len()], weights, grad, i as u64)
        })
        .collect();
    tensors[3].num_blocks = 3;
    tensors[6].num_blocks = 20;
    tensors[7].update_fraction = Some(1.0);
    tensors[14].weight_decay = Some(0.3);
    tensors[17].learning_rate_scale = 0.25;
    tensors[21].num_blocks = 3;
    tensors
}

fn mixed(options: Options) -> Case<'static> {
    Case {
        options: Options {
            state_dtype: StateDtype::BF16,
            learning_rate: 0.01,
            update_fraction: 0.05,
            seed: 7,
            ..options
        },
        tensors: mixture(),
        steps: 3,
        ..Case::default()
    }
}

#[test]
fn every_number_of_threads() {
    for forced in PATHS {
        for num_threads in [1, 2, 3, 8] {
            check(
                forced,
                mixed(Options {
                    num_threads,
                    ..Options::default()
                }),
            );
        }
    }
}

#[test]
fn the_engines_own_threads() {
    let functions = [backwards, scattered as mofo::ParallelForFunction];
    for forced in [PATHS[0], PATHS[1], PATHS[2], PATHS[5]] {
        for (function, num_threads) in [(0, 1), (0, 5), (1, 5), (0, 64)] {
            // SAFETY: both functions may be called from any thread, and return after all tasks.
            let parallel_for =
                unsafe { ParallelFor::new(functions[function], std::ptr::null_mut()) };
            check(
                forced,
                mixed(Options {
                    num_threads,
                    parallel_for: Some(parallel_for),
                    ..Options::default()
                }),
            );
        }
    }
}

#[test]
fn blocks_of_more_than_one_wave() {
    // SAFETY: the function may be called from any thread, and returns after all tasks.
    let engine = unsafe { ParallelFor::new(backwards, std::ptr::null_mut()) };
    // Where there are many threads, what they have taken for notes leaves a wave fewer blocks.
    for (forced, num_threads, parallel_for, num_blocks) in [
        (PATHS[0], 2, None, 450),
        (PATHS[0], 64, Some(engine), 200),
        (PATHS[1], 64, Some(engine), 200),
        (PATHS[4], 64, Some(engine), 200),
    ] {
        let mut one = normal(num_blocks * 4099, Dtype::BF16, 1);
        one.num_blocks = num_blocks;
        let case = Case {
            options: Options {
                num_threads,
                parallel_for,
                update_fraction: 0.25,
                ..on_one_thread()
            },
            tensors: vec![one, normal(5003, Dtype::F32, 2)],
            steps: 2,
            ..Case::default()
        };
        let (blocks, failed) = estimates(&check(forced, case));
        assert_eq!(blocks, 2 * (num_blocks as u64 + 1));
        if fails(forced) {
            // One of hundreds of blocks may be guessed exactly.
            assert!(failed + 10 > blocks, "{forced:?}: {failed}");
        } else {
            // Or a good estimate be wrong.
            assert!(failed < 5, "{forced:?}: {failed}");
        }
    }
}

/// Warps that take places for notes at the same time, until some find no room: what one takes must not be another's.
#[test]
fn on_cuda_warps_that_take_places_at_the_same_time() {
    for seed in 1..=12 {
        let Some(_order) = RandomOrder::start(seed) else {
            say_skipped("random orders of threads: the CUDA device is not the emulated one");
            return;
        };
        let (num_blocks, numel) = (16, 16 * 10_000);
        let mut rng = Rng::new(seed);
        let mut moves = 0;
        let gradients = (0..numel).map(|i| {
            // From strip to strip the numbers of entries that move differ much.
            if i % 128 == 0 {
                moves = [0, 1, 3, 10, 30, 100][rng.below(6)];
            }
            let value = (1 + rng.below(1 << 20)) as f32 / (1 << 20) as f32;
            if i % 128 < moves {
                0.3 + value
            } else {
                1e-3 * value
            }
        });
        let gradients = Grad::F32(gradients.collect());
        // No old value can be computed from the new one, so each takes a place.
        let values = (0..numel).map(|_| 1e-9 * rng.normal());
        let mut case = Case {
            options: Options {
                update_fraction: 0.05,
                weight_decay: 0.1,
                ..on_one_thread()
            },
            tensors: vec![Tensor {
                param: Param::F32(values.collect()),
                grads: vec![gradients],
                num_blocks,
                ..normal(numel, Dtype::F32, seed)
            }],
            steps: 1,
            ..Case::default()
        };
        Place::Cuda.enter_into(&mut case.options);
        let reports = check_there(path(ForcedBracket::TooLow, false, false), case);
        assert_eq!(estimates(&reports), (16, 16), "seed {seed}");
    }
}

/// Blocks that are large by themselves: their notes do not all find room where everything is open.
#[test]
fn blocks_of_natural_size() {
    for (i, forced) in PATHS.into_iter().enumerate() {
        for (numel, num_threads) in [(70_000, 1), (70_001, 2), (300_000, 3)] {
            let (dtype, master_weights) = PARAMS[i % PARAMS.len()];
            let reports = check(
                at_natural_size(forced),
                Case {
                    options: Options {
                        num_threads,
                        master_weights,
                        ..on_one_thread()
                    },
                    tensors: vec![normal(numel, dtype, 3)],
                    steps: 2,
                    ..Case::default()
                },
            );
            let (blocks, failed) = estimates(&reports);
            assert_eq!(blocks, estimated(forced, 2));
            if fails(forced) {
                assert_eq!(failed, 2, "{forced:?}");
            } else if forced.bracket == ForcedBracket::Sampled {
                assert_eq!(failed, 0, "{forced:?}");
            }
        }
    }
}

/// There is room for all notes and old values of every type, and no estimate is spoilt by a lack of it.
#[test]
fn good_estimates_of_all_types_hold() {
    for (dtype, master_weights) in PARAMS {
        for update_fraction in [0.001, 0.1, 0.2, 0.25, 0.5] {
            for (numel, num_threads) in [(70_000, 2), (500_001, 1), (500_001, 4)] {
                let reports = check(
                    Forced::default(),
                    Case {
                        options: Options {
                            num_threads,
                            master_weights,
                            update_fraction,
                            ..on_one_thread()
                        },
                        tensors: vec![normal(numel, dtype, 3)],
                        steps: 2,
                        ..Case::default()
                    },
                );
                let keeps_old = dtype != Dtype::F32 && !master_weights;
                let blocks = if keeps_old && update_fraction > 0.25 {
                    0
                } else {
                    2
                };
                assert_eq!(estimates(&reports), (blocks, 0), "{dtype:?}");
            }
        }
    }
}

/// Parameters that are small against their updates, as those of an adapter are at first, cannot be moved back; a sample
/// tells so before the pass.
#[test]
fn small_parameters_fail_no_estimate() {
    for (dtype, master_weights) in PARAMS {
        for gradients in [Gradients::Normal, Gradients::HeavyTails] {
            let weights = (dtype, Weights::Tiny);
            let case = Case {
                options: Options {
                    master_weights,
                    // More than there is room to note.
                    update_fraction: 0.2,
                    num_threads: 2,
                    ..on_one_thread()
                },
                tensors: vec![tensor(300_001, weights, (Dtype::F32, gradients), 5)],
                steps: 3,
                ..Case::default()
            };
            let (_, failed) = estimates(&check(Forced::default(), case));
            assert_eq!(failed, 0, "{dtype:?} {gradients:?}");
        }
    }
}

#[test]
fn too_little_room_for_old_values() {
    let forced = Forced {
        little_room_for_old: true,
        ..Forced::default()
    };
    for (dtype, master_weights) in PARAMS {
        for num_threads in [1, 3] {
            let case = Case {
                options: Options {
                    master_weights,
                    num_threads,
                    update_fraction: 0.2,
                    ..on_one_thread()
                },
                tensors: vec![normal(400_001, dtype, 3), normal(70_000, Dtype::BF16, 4)],
                steps: 2,
                ..Case::default()
            };
            let (_, failed) = estimates(&check(forced, case));
            // Both in both steps, or the second, or none because all have master copies.
            let expected = match (dtype, master_weights) {
                (Dtype::F32, _) => 2..=2,
                (_, false) => 2..=4,
                (_, true) => 0..=0,
            };
            assert!(expected.contains(&failed), "{dtype:?}: {failed}");
        }
    }
}

#[test]
fn more_open_entries_than_there_is_room_for() {
    let forced = at_natural_size(path(ForcedBracket::Anywhere, false, false));
    for num_threads in [1, 3] {
        let reports = check(
            forced,
            Case {
                options: Options {
                    num_threads,
                    ..on_one_thread()
                },
                tensors: vec![
                    normal(400_001, Dtype::F32, 3),
                    normal(70_000, Dtype::BF16, 4),
                ],
                steps: 2,
                ..Case::default()
            },
        );
        assert!(estimates(&reports).1 >= 2);
    }
}

#[test]
fn nearly_no_old_value_of_a_large_block_can_be_computed_again() {
    for forced in [PATHS[0], PATHS[1], PATHS[2], PATHS[3]] {
        for dtype in DTYPES {
            let weights = (dtype, Weights::Tiny);
            let grad = (Dtype::F32, Gradients::Normal);
            check(
                at_natural_size(forced),
                Case {
                    options: Options {
                        update_fraction: 0.25,
                        learning_rate: 0.1,
                        num_threads: 2,
                        ..Options::default()
                    },
                    tensors: vec![tensor(200_003, weights, grad, 5)],
                    steps: 2,
                    ..Case::default()
                },
            );
        }
    }
}

#[test]
fn gradients_that_mislead_an_estimate_of_a_large_block() {
    for (i, gradients) in GRADIENTS.into_iter().enumerate() {
        for update_fraction in [0.02, 0.6] {
            let weights = (DTYPES[i % 3], Weights::Normal);
            check(
                Forced::default(),
                Case {
                    options: Options {
                        update_fraction,
                        num_threads: 2,
                        ..on_one_thread()
                    },
                    tensors: vec![tensor(80_003, weights, (Dtype::F32, gradients), i as u64)],
                    steps: 3,
                    ..Case::default()
                },
            );
        }
    }
}

#[test]
fn settings_drawn_at_random() {
    let mut rng = Rng::new(2024);
    for seed in 0..400u64 {
        let mut pick = |n: usize| rng.below(n);
        let forced = Forced {
            small_block: Some(64 + pick(3000) as u64),
            ..PATHS[pick(PATHS.len())]
        };
        let tensors = (0..1 + pick(4) as u64)
            .map(|i| {
                let numel = 1 + pick(9000);
                let weights = (DTYPES[pick(3)], WEIGHTS[pick(WEIGHTS.len())]);
                let grad = (DTYPES[pick(3)], GRADIENTS[pick(GRADIENTS.len())]);
                let mut tensor = tensor(numel, weights, grad, 1000 * seed + i);
                let num_blocks = 1 + pick(5);
                if numel % num_blocks == 0 {
                    tensor.num_blocks = num_blocks;
                }
                tensor.update_fraction = [None, Some(FRACTIONS[pick(FRACTIONS.len())])][pick(2)];
                tensor
            })
            .collect();
        let num_threads = 1 + pick(4);
        let parallel_for = (num_threads > 1)
            // SAFETY: the function may be called from any thread, and returns after all tasks.
            .then(|| unsafe { ParallelFor::new(backwards, std::ptr::null_mut()) });
        check(
            forced,
            Case {
                options: Options {
                    learning_rate: [1e-4, 0.01, 1.0][pick(3)],
                    beta1: [0.0, 0.9][pick(2)],
                    weight_decay: [0.0, 0.1, 1.0][pick(3)],
                    weight_decay_scope: SCOPES[pick(2)],
                    update_fraction: FRACTIONS[pick(FRACTIONS.len())],
                    filter: FILTERS[pick(4)],
                    state_dtype: STATES[pick(2)],
                    master_weights: pick(2) == 1,
                    rounding: ROUNDINGS[pick(2)],
                    cpu_tier: Some(tiers()[pick(tiers().len())]),
                    seed,
                    num_threads,
                    parallel_for,
                    ..Options::default()
                },
                tensors,
                steps: 4,
                ..Case::default()
            },
        );
    }
}
