//! One tensor's step, from beginning to end, entry by entry: the definition that every backend is compared
//! with.

use half::{bf16, f16};

use super::convert;
use super::entry::{key, magnitude, moments, moved, update};
use super::random::{Key, Stream, for_exp_avg, for_exp_avg_sq, uniform};
use super::scalars::{Hyper, Scalars};
use super::select::{kth_largest, rank};
use crate::buffer::{GradRef, ParamMut};
use crate::config::{Filter, Rounding, WeightDecayScope};
use crate::error::Result;

/// The settings of one tensor's step.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The hyper-parameters.
    pub hyper: Hyper,
    /// α.
    pub update_fraction: f64,
    /// Equal blocks that the tensor is cut into.
    pub num_blocks: usize,
    /// Which magnitudes decide.
    pub filter: Filter,
    /// Which entries decay.
    pub weight_decay_scope: WeightDecayScope,
    /// For 16-bit parameters without a master copy.
    pub rounding: Rounding,
    /// The optimizer's seed.
    pub seed: u64,
    /// [`super::random::hash_name`] of the tensor's name.
    pub name_hash: u64,
    /// The number of this step, from 1.
    pub t: u64,
    /// s: grad_scale times clip.
    pub gradient_factor: f32,
}

/// A tensor's stored moments.
#[derive(Debug)]
pub enum StateMut<'a> {
    /// As they are.
    F32(&'a mut [f32]),
    /// Rounded stochastically.
    BF16(&'a mut [bf16]),
}

/// What a step found.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// T of each block as the bits of a float; 0 where α is 1.
    pub thresholds: Vec<u32>,
    /// Entries that moved.
    pub selected: u64,
    /// Entries of which a moment is not finite after the step.
    pub nonfinite: u64,
}

/// Steps a tensor. All slices have the same length, a multiple of `num_blocks`; `master` belongs to 16-bit
/// parameters only.
///
/// # Errors
///
/// If a derived scalar is not finite.
///
/// # Panics
///
/// If the lengths do not agree.
pub fn step(
    setup: &Setup,
    mut param: ParamMut<'_>,
    grad: GradRef<'_>,
    mut exp_avg: StateMut<'_>,
    mut exp_avg_sq: StateMut<'_>,
    mut master: Option<&mut [f32]>,
) -> Result<Outcome> {
    let mut scalars = Scalars::new(&setup.hyper, setup.t)?;
    scalars.s = setup.gradient_factor;
    let random = |stream, entry: usize| {
        Key::new(setup.seed, setup.name_hash, setup.t, stream).bits(entry as u64)
    };
    let numel = param.len();

    if setup.t == 1 {
        for i in 0..numel {
            exp_avg.store(i, 0.0, 0);
            exp_avg_sq.store(i, 0.0, 0);
            if let Some(master) = &mut master {
                master[i] = load_param(&param, i);
            }
        }
    }

    // The moments, and each entry's key.
    let mut keys = Vec::with_capacity(numel);
    for i in 0..numel {
        let g = load_grad(&grad, i) * scalars.s;
        let (m, v) = moments(g, exp_avg.load(i), exp_avg_sq.load(i), &scalars);
        let bits = random(Stream::Moments, i);
        exp_avg.store(i, m, for_exp_avg(bits));
        exp_avg_sq.store(i, v, for_exp_avg_sq(bits));
        let (m, v) = (exp_avg.load(i), exp_avg_sq.load(i));
        let filtered = match setup.filter {
            Filter::Momentum => m,
            Filter::Gradient => g,
            Filter::Update => update(m, v, &scalars),
            Filter::Random => uniform(random(Stream::Filter, i)),
        };
        keys.push(if m.is_finite() { key(filtered) } else { 0 });
    }

    // The parameters, block by block.
    let mut outcome = Outcome {
        thresholds: Vec::with_capacity(setup.num_blocks),
        selected: 0,
        nonfinite: 0,
    };
    let block_numel = numel / setup.num_blocks;
    let k = rank(setup.update_fraction, block_numel as u64) as usize;
    let everything_moves = setup.update_fraction == 1.0;
    for block in 0..setup.num_blocks {
        let entries = block * block_numel..(block + 1) * block_numel;
        let threshold = if everything_moves {
            0
        } else {
            kth_largest(&mut keys[entries.clone()].to_vec(), k)
        };
        outcome.thresholds.push(threshold);
        for i in entries {
            let (m, v) = (exp_avg.load(i), exp_avg_sq.load(i));
            outcome.nonfinite += u64::from(!(m.is_finite() && v.is_finite()));
            let selected = if everything_moves {
                magnitude(m) < convert::INFINITE
            } else {
                keys[i] >= threshold.max(1)
            };
            outcome.selected += u64::from(selected);
            let p = match &master {
                Some(master) => master[i],
                None => load_param(&param, i),
            };
            let new = if selected {
                moved(p, update(m, v, &scalars), &scalars)
            } else if setup.weight_decay_scope == WeightDecayScope::All {
                p * scalars.decay
            } else {
                p
            };
            if let Some(master) = &mut master {
                master[i] = new;
                store_param(&mut param, i, new, None);
            } else if selected || setup.weight_decay_scope == WeightDecayScope::All {
                let bits =
                    (setup.rounding == Rounding::Stochastic).then(|| random(Stream::Param, i));
                store_param(&mut param, i, new, bits);
            }
        }
    }
    Ok(outcome)
}

impl StateMut<'_> {
    fn load(&self, i: usize) -> f32 {
        match self {
            Self::F32(slice) => slice[i],
            Self::BF16(slice) => convert::bf16_to_f32(slice[i].to_bits()),
        }
    }

    fn store(&mut self, i: usize, x: f32, random: u32) {
        match self {
            Self::F32(slice) => slice[i] = x,
            Self::BF16(slice) => {
                slice[i] = bf16::from_bits(convert::f32_to_bf16_stochastic(x, random));
            }
        }
    }
}

fn load_param(param: &ParamMut<'_>, i: usize) -> f32 {
    match param {
        ParamMut::F32(slice) => slice[i],
        ParamMut::F16(slice) => convert::f16_to_f32(slice[i].to_bits()),
        ParamMut::BF16(slice) => convert::bf16_to_f32(slice[i].to_bits()),
    }
}

fn load_grad(grad: &GradRef<'_>, i: usize) -> f32 {
    match grad {
        GradRef::F32(slice) => slice[i],
        GradRef::F16(slice) => convert::f16_to_f32(slice[i].to_bits()),
        GradRef::BF16(slice) => convert::bf16_to_f32(slice[i].to_bits()),
    }
}

/// Rounds stochastically with these bits, or to nearest without.
fn store_param(param: &mut ParamMut<'_>, i: usize, x: f32, random: Option<u32>) {
    match param {
        ParamMut::F32(slice) => slice[i] = x,
        ParamMut::F16(slice) => {
            slice[i] = f16::from_bits(match random {
                Some(bits) => convert::f32_to_f16_stochastic(x, bits),
                None => convert::f32_to_f16_nearest(x),
            });
        }
        ParamMut::BF16(slice) => {
            slice[i] = bf16::from_bits(match random {
                Some(bits) => convert::f32_to_bf16_stochastic(x, bits),
                None => convert::f32_to_bf16_nearest(x),
            });
        }
    }
}
