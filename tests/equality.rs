//! Every way of running a step gives the bits of the rule: all types, filters and settings, thread counts,
//! the engine's own threads, tensors cut differently, subsets in any order, any floating-point mode. All of it in every
//! CPU tier.

mod harness;

use std::rc::Rc;

use harness::case::Case;
use harness::data::{Grad, Param, Rng, Tensor, awkward_values};
use harness::parallel_for::{backwards, scattered};
use harness::places::places;
use mofo::{Dtype, Filter, Options, ParallelFor, Rounding, StateDtype, StepArgs, WeightDecayScope};

/// Lengths around the lanes of every tier, the tiles of the loops, segments, the chunk of the norm, and the sizes
/// above which a block has lists, and the threads share it.
const LENGTHS: [usize; 16] = [
    1, 2, 7, 8, 9, 15, 17, 63, 64, 65, 1025, 4096, 4097, 32_768, 32_769, 70_035,
];

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];
const STATES: [StateDtype; 2] = [StateDtype::F32, StateDtype::BF16];
const FILTERS: [Filter; 4] = [
    Filter::Momentum,
    Filter::Gradient,
    Filter::Update,
    Filter::Random,
];
const SCOPES: [WeightDecayScope; 2] = [WeightDecayScope::Selected, WeightDecayScope::All];
const ROUNDINGS: [Rounding; 2] = [Rounding::Nearest, Rounding::Stochastic];

fn one_tensor(numel: usize, param: Dtype, grad: Dtype, seed: u64) -> Tensor {
    Tensor::random("weight", numel, param, grad, seed)
}

#[test]
fn every_combination_of_types_and_settings() {
    let mut combinations = 0;
    for param in DTYPES {
        for grad in DTYPES {
            for state_dtype in STATES {
                for filter in FILTERS {
                    for weight_decay_scope in SCOPES {
                        for rounding in ROUNDINGS {
                            for master_weights in [false, true] {
                                for update_fraction in [0.07, 1.0] {
                                    combinations += 1;
                                    Case {
                                        options: Options {
                                            state_dtype,
                                            filter,
                                            weight_decay_scope,
                                            rounding,
                                            master_weights,
                                            update_fraction,
                                            weight_decay: 0.3,
                                            learning_rate: 0.02,
                                            num_threads: 1,
                                            ..Options::default()
                                        },
                                        tensors: vec![one_tensor(333, param, grad, combinations)],
                                        steps: 3,
                                        ..Case::default()
                                    }
                                    .check_in(places());
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    assert_eq!(combinations, 3 * 3 * 2 * 4 * 2 * 2 * 2 * 2);
}

#[test]
fn awkward_lengths_fractions_and_blocks() {
    for numel in LENGTHS {
        for update_fraction in [1e-9, 0.001, 0.03, 0.5, 0.999, 1.0] {
            for num_blocks in [1, 7, numel] {
                if numel % num_blocks != 0 || numel / num_blocks > 1 && num_blocks > 1000 {
                    continue;
                }
                let mut tensor = one_tensor(numel, Dtype::F32, Dtype::F32, numel as u64);
                tensor.num_blocks = num_blocks;
                Case {
                    options: Options {
                        update_fraction,
                        num_threads: 2,
                        ..Options::default()
                    },
                    tensors: vec![tensor],
                    steps: 2,
                    ..Case::default()
                }
                .check_in(places());
            }
        }
    }
}

#[test]
fn large_blocks_that_threads_share() {
    for filter in FILTERS {
        for num_threads in [1, 2, 3, 8] {
            let mut tensor = one_tensor(3 * 70_001, Dtype::BF16, Dtype::F16, 5);
            tensor.num_blocks = 3;
            Case {
                options: Options {
                    filter,
                    num_threads,
                    state_dtype: StateDtype::BF16,
                    update_fraction: 0.02,
                    ..Options::default()
                },
                tensors: vec![tensor],
                steps: 2,
                ..Case::default()
            }
            .check_in(places());
        }
    }
}

#[test]
fn ties_zeros_subnormals_infinities_and_nan() {
    for filter in FILTERS {
        for (i, values) in awkward_values().into_iter().enumerate() {
            for numel in [5, 64, 1000, 5000, 70_001] {
                for update_fraction in [0.1, 1.0] {
                    let mut tensor = one_tensor(numel, Dtype::F32, Dtype::F32, 9);
                    let mut rng = Rng::new(i as u64);
                    tensor.grads = (0..3)
                        .map(|_| {
                            Grad::F32(
                                (0..numel)
                                    .map(|_| values[rng.below(values.len())])
                                    .collect(),
                            )
                        })
                        .collect();
                    Case {
                        options: Options {
                            filter,
                            update_fraction,
                            num_threads: 2,
                            weight_decay: 0.1,
                            ..Options::default()
                        },
                        tensors: vec![tensor],
                        steps: 3,
                        ..Case::default()
                    }
                    .check_in(places());
                }
            }
        }
    }
}

/// Of blocks that are stepped many at a time, and those just above.
#[test]
fn every_size_of_tiny_blocks() {
    for (i, block) in [1, 2, 3, 16, 31, 64, 65, 128, 129, 200]
        .into_iter()
        .enumerate()
    {
        for update_fraction in [0.01, 0.4, 0.9] {
            let numel = (5000 / block + 1) * block;
            let (param, grad) = (DTYPES[i % 3], DTYPES[i / 3 % 3]);
            let mut tensor = Tensor::random("weight", numel, param, grad, i as u64);
            tensor.num_blocks = numel / block;
            // Some blocks have fewer keys above zero than may move.
            for grad in &mut tensor.grads {
                if let Grad::F32(grad) = grad {
                    grad[numel / 3..numel / 2].fill(0.0);
                }
            }
            Case {
                options: Options {
                    update_fraction,
                    weight_decay: 0.1,
                    state_dtype: [StateDtype::F32, StateDtype::BF16][i % 2],
                    num_threads: 2,
                    ..Options::default()
                },
                tensors: vec![tensor],
                steps: 3,
                ..Case::default()
            }
            .check_in(places());
        }
    }
}

/// A mixture of huge, small and tiny tensors of all types.
fn mixture() -> Vec<Tensor> {
    let mut tensors: Vec<Tensor> = (0..40)
        .map(|i| {
            let (param, grad) = (DTYPES[i % 3], DTYPES[i / 3 % 3]);
            let numel = LENGTHS[i % LENGTHS.len()];
            Tensor::random(&format!("tensor {i}"), numel, param, grad, i as u64)
        })
        .collect();
    tensors[15].num_blocks = tensors[15].numel() / 3;
    tensors[5].update_fraction = Some(1.0);
    tensors[6].weight_decay = Some(0.5);
    tensors[7].learning_rate_scale = 0.25;
    tensors
}

fn mixture_options() -> Options {
    Options {
        state_dtype: StateDtype::BF16,
        master_weights: false,
        weight_decay: 0.01,
        update_fraction: 0.05,
        max_grad_norm: 1.0,
        skip_nonfinite: true,
        seed: 77,
        ..Options::default()
    }
}

#[test]
fn every_number_of_threads() {
    for num_threads in [1, 2, 3, 8] {
        Case {
            options: Options {
                num_threads,
                ..mixture_options()
            },
            tensors: mixture(),
            steps: 3,
            ..Case::default()
        }
        .check_in(places());
    }
}

#[test]
fn the_engines_own_threads() {
    for function in [backwards, scattered as mofo::ParallelForFunction] {
        for num_threads in [0, 1, 5] {
            Case {
                options: Options {
                    num_threads,
                    // SAFETY: both functions may be called from any thread, and return after all tasks.
                    parallel_for: Some(unsafe { ParallelFor::new(function, std::ptr::null_mut()) }),
                    ..mixture_options()
                },
                tensors: mixture(),
                steps: 2,
                ..Case::default()
            }
            .check_in(places());
        }
    }
}

#[test]
fn hyper_parameters_that_change_from_step_to_step() {
    let schedule = [
        (Some(0.95), None, None, None),
        (Some(0.0), Some(0.9), Some(0.1), Some(0.5)),
        (None, Some(0.0), Some(0.0), Some(0.0)),
        (Some(0.85), Some(0.9999), None, Some(2.0)),
        (None, None, None, None),
    ]
    .map(|(beta1, beta2, epsilon, weight_decay)| StepArgs {
        learning_rate: Some(0.01),
        update_fraction: beta1.map(|beta1| 0.02 + 0.1 * beta1),
        beta1,
        beta2,
        epsilon,
        weight_decay,
        ..StepArgs::default()
    });
    for filter in FILTERS {
        for weight_decay_scope in SCOPES {
            Case {
                options: Options {
                    filter,
                    weight_decay_scope,
                    num_threads: 2,
                    ..mixture_options()
                },
                tensors: mixture(),
                steps: 7,
                schedule: schedule.to_vec(),
                ..Case::default()
            }
            .check_in(places());
        }
    }
}

#[test]
fn a_hundred_steps() {
    for (master_weights, state_dtype) in [(false, StateDtype::F32), (true, StateDtype::BF16)] {
        let mut tensors: Vec<Tensor> = DTYPES
            .into_iter()
            .enumerate()
            .map(|(i, dtype)| Tensor::random(&i.to_string(), 2500, dtype, dtype, i as u64))
            .collect();
        tensors[1].num_blocks = 5;
        Case {
            options: Options {
                master_weights,
                state_dtype,
                num_threads: 2,
                update_fraction: 0.1,
                max_grad_norm: 0.5,
                weight_decay: 0.01,
                ..Options::default()
            },
            tensors,
            steps: 100,
            ..Case::default()
        }
        .check_in(places());
    }
}

#[test]
fn subsets_in_any_order() {
    // Without clipping, a step of each half, in whatever order, is a step of the whole.
    let options = Options {
        max_grad_norm: 0.0,
        skip_nonfinite: false,
        ..mixture_options()
    };
    let mut rng = Rng::new(3);
    for _ in 0..3 {
        let mut order: Vec<usize> = (0..40).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i + 1));
        }
        let (one, other) = order.split_at(rng.below(40));
        Case {
            options: options.clone(),
            tensors: mixture(),
            steps: 2,
            subsets: vec![one.to_vec(), other.to_vec()],
            ..Case::default()
        }
        .check_in(places());
    }
}

#[test]
fn gradients_scaled_clipped_and_with_a_known_norm() {
    for grad_scale in [1.0, 1.0 / 128.0, -2.5, 0.0] {
        for grad_norm in [None, Some(0.5), Some(1e30)] {
            for max_grad_norm in [0.0, 1e-3, 1e3] {
                Case {
                    options: Options {
                        max_grad_norm,
                        num_threads: 2,
                        ..Options::default()
                    },
                    tensors: vec![
                        one_tensor(5000, Dtype::F32, Dtype::BF16, 1),
                        Tensor::random("other", 300_000, Dtype::F32, Dtype::F32, 2),
                    ],
                    steps: 2,
                    args: StepArgs {
                        grad_scale,
                        grad_norm,
                        ..StepArgs::default()
                    },
                    ..Case::default()
                }
                .check_in(places());
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_callers_floating_point_mode_does_not_matter() {
    /// Flush to zero, denormals are zero, round up.
    const ODD_MODE: u32 = 0x1F80 | 0x8040 | 0x4000;
    let set = |mode: u32| {
        // SAFETY: a valid MXCSR value from a local.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const mode) };
    };
    let mut tensor = one_tensor(70_000, Dtype::F16, Dtype::F32, 1);
    tensor.grads = (0..3)
        .map(|i| {
            Grad::F32(
                (0..70_000)
                    .map(|j| f32::from_bits(0x0080_0000 + i * 1000 + j))
                    .collect(),
            )
        })
        .collect();
    tensor.param = Param::F16(
        (0..70_000u32)
            .map(|i| half::f16::from_bits((i % 0x0400) as u16))
            .collect(),
    );
    let mut case = Case {
        options: Options {
            num_threads: 2,
            learning_rate: 1e-7,
            ..Options::default()
        },
        tensors: vec![tensor],
        steps: 3,
        ..Case::default()
    };
    case.before_step = Some(Rc::new(move || set(ODD_MODE)));
    case.after_step = Some(Rc::new(move || {
        let mut mode = 0u32;
        // SAFETY: stores MXCSR into a local.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mode) };
        set(0x1F80);
        assert_eq!(mode & !0x3F, ODD_MODE, "the caller's mode is restored");
    }));
    case.check_in(places());
}
