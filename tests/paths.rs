//! Every way of stepping a block whose threshold is estimated gives the bits of the rule: estimates that hold and that
//! fail in each direction, no room for lists; on gradients that mislead an estimate, for all types and settings, in every
//! tier, on any threads.
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
use mofo::test_paths::{BracketPath, Paths, force};
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

const fn path(bracket: BracketPath, no_room: bool, digits: bool) -> Paths {
    Paths {
        small_block: Some(1000),
        bracket,
        no_room,
        digits,
    }
}

/// Ways to go on from an estimate.
const PATHS: [Paths; 9] = [
    path(BracketPath::Sampled, false, false),
    path(BracketPath::TooLow, false, false),
    path(BracketPath::TooHigh, false, false),
    path(BracketPath::Anywhere, false, false),
    path(BracketPath::Exactly, false, false),
    path(BracketPath::Sampled, true, false),
    path(BracketPath::TooLow, false, true),
    path(BracketPath::TooHigh, true, true),
    path(BracketPath::Anywhere, false, true),
];

/// True if an estimate of ordinary gradients fails on this way: there is no room for all keys of a block.
fn fails(paths: Paths) -> bool {
    paths.bracket != BracketPath::Sampled
}

/// The same on blocks of all sizes that are usual.
fn at_natural_size(paths: Paths) -> Paths {
    Paths {
        small_block: None,
        ..paths
    }
}

/// Forces until it is dropped, also by a panic: other tests may run on this thread.
struct Forcing;

impl Forcing {
    fn start(paths: Paths) -> Self {
        force(paths);
        Self
    }
}

impl Drop for Forcing {
    fn drop(&mut self) {
        force(Paths::default());
    }
}

/// Says which case failed: it is one of hundreds.
fn check(paths: Paths, case: Case) -> Vec<StepReport> {
    // On CUDA the threads make no difference.
    if case.options.num_threads == 1 && places().contains(&Place::Cuda) {
        let mut case = case.clone();
        Place::Cuda.enter_into(&mut case.options);
        check_there(paths, case);
    }
    check_there(paths, case)
}

fn check_there(paths: Paths, case: Case) -> Vec<StepReport> {
    let what = format!("{paths:?}, {:?}", case.options);
    let run = AssertUnwindSafe(|| {
        let _forcing = Forcing::start(paths);
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
    /// Against an update.
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
    for paths in PATHS {
        let case = Case {
            options: on_one_thread(),
            tensors: vec![normal(9001, Dtype::F32, 2)],
            steps: 3,
            ..Case::default()
        };
        let failed = if fails(paths) { 3 } else { 0 };
        let expected = (3, failed);
        assert_eq!(estimates(&check(paths, case)), expected, "{paths:?}");
    }
}

#[test]
fn on_cuda_estimates_that_are_wrong_are_reported_and_others_are_not() {
    if !places().contains(&Place::Cuda) {
        return;
    }
    let run = |paths: Paths, numel: usize, gradients: Gradients, options: Options| {
        let (weights, grad) = ((Dtype::F32, Weights::Normal), (Dtype::F32, gradients));
        let mut case = Case {
            options,
            tensors: vec![tensor(numel, weights, grad, 3)],
            steps: 3,
            ..Case::default()
        };
        Place::Cuda.enter_into(&mut case.options);
        estimates(&check_there(paths, case))
    };
    for paths in PATHS {
        // Without notes there is no way on.
        let fails = fails(paths) || paths.no_room;
        let found = run(paths, 9001, Gradients::Normal, on_one_thread());
        assert_eq!(found, (3, if fails { 3 } else { 0 }), "{paths:?}");
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
        let found = run(Paths::default(), 300_007, Gradients::Normal, options);
        assert_eq!(found, (3, 0), "{update_fraction}");
    }
    let found = run(Paths::default(), 9001, Gradients::Normal, on_one_thread());
    assert_eq!(found, (0, 0), "small blocks need no estimate");
}

/// The threshold is zero, and candidates are few; or it is the value of all entries, of which there are too many to list,
/// but a bracket of that one value.
#[test]
fn fewer_gradients_than_may_move_and_equal_ones_fail_no_estimate() {
    for gradients in [
        Gradients::AllZero,
        Gradients::FewNonzero,
        Gradients::AllEqual,
    ] {
        let weights = (Dtype::F32, Weights::Normal);
        let case = Case {
            options: on_one_thread(),
            tensors: vec![tensor(9001, weights, (Dtype::F32, gradients), 1)],
            steps: 3,
            ..Case::default()
        };
        assert_eq!(estimates(&check(PATHS[0], case)), (3, 0), "{gradients:?}");
    }
}

/// Nobody asks for blocks that one thread steps, and all of α = 1.
#[test]
fn every_scope_and_filter_is_estimated_but_small_blocks_and_all_entries_are_not() {
    let run = |paths, options| {
        let case = Case {
            options: Options {
                weight_decay: 0.1,
                ..options
            },
            tensors: vec![normal(9001, Dtype::F32, 2)],
            steps: 3,
            ..Case::default()
        };
        estimates(&check(paths, case))
    };
    for filter in FILTERS {
        for weight_decay_scope in SCOPES {
            let options = |update_fraction| Options {
                filter,
                weight_decay_scope,
                update_fraction,
                ..on_one_thread()
            };
            let what = format!("{filter:?} {weight_decay_scope:?}");
            assert_eq!(run(PATHS[0], options(0.1)), (3, 0), "{what}");
            assert_eq!(run(PATHS[1], options(0.1)), (3, 3), "{what}");
            assert_eq!(run(PATHS[1], options(1.0)), (0, 0), "{what}");
            let small = at_natural_size(PATHS[1]);
            assert_eq!(run(small, options(0.1)), (0, 0), "{what}");
        }
    }
}

/// Each way in all tiers, for blocks that all threads step and for those that one does.
#[test]
fn every_way_of_every_filter_scope_and_type_in_every_tier_on_any_threads() {
    let mut seed = 0;
    let mut good_failed = 0;
    for paths in PATHS {
        let paths = Paths {
            small_block: Some(4600),
            ..paths
        };
        for &cpu_tier in tiers() {
            for (dtype, master_weights) in PARAMS {
                for weight_decay_scope in SCOPES {
                    for filter in FILTERS {
                        for num_threads in [1, 2, 3] {
                            seed += 1;
                            let of = |numel, seed| {
                                let weights = (dtype, WEIGHTS[seed % WEIGHTS.len()]);
                                let grad = (DTYPES[seed / 2 % 3], Gradients::Normal);
                                tensor(numel, weights, grad, seed as u64)
                            };
                            let options = Options {
                                cpu_tier: Some(cpu_tier),
                                num_threads,
                                master_weights,
                                weight_decay_scope,
                                filter,
                                weight_decay: 0.1,
                                state_dtype: STATES[seed / 3 % 2],
                                rounding: ROUNDINGS[seed / 6 % 2],
                                update_fraction: [0.05, 0.2, 0.4][seed / 5 % 3],
                                ..on_one_thread()
                            };
                            let case = Case {
                                options,
                                tensors: vec![of(4999, seed), of(4311, seed + 1)],
                                steps: 2,
                                ..Case::default()
                            };
                            let (blocks, failed) = estimates(&check_there(paths, case));
                            assert_eq!(blocks, 2);
                            if fails(paths) {
                                assert_eq!(failed, 2, "{paths:?}");
                            }
                            good_failed += if fails(paths) { 0 } else { failed };
                        }
                    }
                }
            }
        }
    }
    // Of about a thousand blocks, all of them as small as none is that is really estimated.
    assert!(good_failed <= 20, "{good_failed}");
}

#[test]
fn all_gradients_in_every_way() {
    let mut seed = 0;
    for paths in PATHS {
        for gradients in GRADIENTS {
            for update_fraction in [0.01, 0.2, 0.9] {
                seed += 1;
                let (dtype, master_weights) = PARAMS[seed as usize % PARAMS.len()];
                let weights = WEIGHTS[seed as usize / 3 % WEIGHTS.len()];
                let grad = (Dtype::F32, gradients);
                check(
                    paths,
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
                        for paths in [PATHS[0], PATHS[1], PATHS[2], PATHS[5], PATHS[8]] {
                            seed += 1;
                            let weights = WEIGHTS[seed as usize % WEIGHTS.len()];
                            let grad = (grad, Gradients::Normal);
                            // Not a whole number of lanes, and blocks that start at any of them.
                            let mut tensor = tensor(2 * 4111, (dtype, weights), grad, seed);
                            tensor.num_blocks = 2;
                            check(
                                paths,
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
    for paths in PATHS {
        for filter in FILTERS {
            for weight_decay_scope in SCOPES {
                for update_fraction in FRACTIONS {
                    seed += 1;
                    let dtypes = (DTYPES[seed as usize % 3], DTYPES[seed as usize / 3 % 3]);
                    let weights = (dtypes.0, WEIGHTS[seed as usize / 2 % WEIGHTS.len()]);
                    let grad = (dtypes.1, Gradients::Normal);
                    check(
                        paths,
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
    for paths in PATHS {
        for numel in [1001usize, 4096, 4097, 10_000] {
            for k in [1, 2, numel - 1] {
                let mut tensor = normal(numel, Dtype::F32, numel as u64);
                tensor.update_fraction = Some((k as f64 + 0.5) / numel as f64);
                let reports = check(
                    paths,
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
fn old_values_of_which_nothing_is_left() {
    let mut seed = 0;
    for paths in PATHS {
        for weights in WEIGHTS {
            for (dtype, master_weights) in PARAMS {
                for (learning_rate, weight_decay) in [(1.0, 0.0), (1.0, 1.0), (0.5, 1.0)] {
                    seed += 1;
                    let grad = (Dtype::F32, Gradients::Normal);
                    check(
                        paths,
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

/// Tensors of all sizes and types: several share a batch, and some of their blocks are not estimated at all.
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
    for paths in PATHS {
        for num_threads in [1, 2, 3, 8] {
            check(
                paths,
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
    for paths in [PATHS[0], PATHS[1], PATHS[2], PATHS[5]] {
        for (function, num_threads) in [(0, 1), (0, 5), (1, 5), (0, 64)] {
            // SAFETY: both functions may be called from any thread, and return after all tasks.
            let parallel_for =
                unsafe { ParallelFor::new(functions[function], std::ptr::null_mut()) };
            check(
                paths,
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
fn blocks_of_more_than_one_batch() {
    // SAFETY: the function may be called from any thread, and returns after all tasks.
    let engine = unsafe { ParallelFor::new(backwards, std::ptr::null_mut()) };
    // Where there are many threads, what they take for themselves leaves a batch fewer blocks.
    for (paths, num_threads, parallel_for, num_blocks) in [
        (PATHS[0], 2, None, 900),
        (PATHS[0], 64, Some(engine), 600),
        (PATHS[1], 64, Some(engine), 600),
        (PATHS[4], 64, Some(engine), 600),
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
        let (blocks, failed) = estimates(&check(paths, case));
        assert_eq!(blocks, 2 * (num_blocks as u64 + 1));
        if fails(paths) {
            assert_eq!(failed, blocks, "{paths:?}");
        } else {
            // Or a good estimate be wrong.
            assert!(failed < 5, "{paths:?}: {failed}");
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
        let reports = check_there(path(BracketPath::TooLow, false, false), case);
        assert_eq!(estimates(&reports), (16, 16), "seed {seed}");
    }
}

/// Blocks that are large by themselves: where everything is open, not all keys find room.
#[test]
fn blocks_of_natural_size() {
    for (i, paths) in PATHS.into_iter().enumerate() {
        for (numel, num_threads) in [(70_000, 1), (70_001, 2), (300_000, 3)] {
            let (dtype, master_weights) = PARAMS[i % PARAMS.len()];
            let reports = check(
                at_natural_size(paths),
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
            assert_eq!(blocks, 2);
            assert_eq!(failed, if fails(paths) { 2 } else { 0 }, "{paths:?}");
        }
    }
}

/// There is room for all open keys, whatever the type and α are.
#[test]
fn good_estimates_of_all_types_hold() {
    for (dtype, master_weights) in PARAMS {
        for update_fraction in [0.001, 0.1, 0.2, 0.25, 0.5] {
            for (numel, num_threads) in [(70_000, 2), (500_001, 1), (500_001, 4)] {
                let reports = check(
                    Paths::default(),
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
                assert_eq!(estimates(&reports), (2, 0), "{dtype:?}");
            }
        }
    }
}

/// Keys over many orders of magnitude, those of the step before included.
#[test]
fn heavy_tails_fail_no_estimate() {
    for filter in [Filter::Momentum, Filter::Gradient] {
        let weights = (Dtype::F32, Weights::Normal);
        let grad = (Dtype::F32, Gradients::HeavyTails);
        let case = Case {
            options: Options {
                filter,
                num_threads: 2,
                ..on_one_thread()
            },
            tensors: vec![tensor(300_001, weights, grad, 5)],
            steps: 3,
            ..Case::default()
        };
        let found = estimates(&check(Paths::default(), case));
        assert_eq!(found, (3, 0), "{filter:?}");
    }
}

#[test]
fn more_open_entries_than_there_is_room_for() {
    let paths = at_natural_size(path(BracketPath::Anywhere, false, false));
    for num_threads in [1, 3] {
        let reports = check(
            paths,
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
        assert_eq!(estimates(&reports), (4, 4));
    }
}

#[test]
fn gradients_that_mislead_an_estimate_of_a_large_block() {
    for (i, gradients) in GRADIENTS.into_iter().enumerate() {
        for update_fraction in [0.02, 0.6] {
            let weights = (DTYPES[i % 3], Weights::Normal);
            check(
                Paths::default(),
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
        let paths = Paths {
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
            paths,
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
