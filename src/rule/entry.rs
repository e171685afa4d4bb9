//! The arithmetic of one entry.

use super::convert::{INFINITE, MAGNITUDE, SMALLEST_NORMAL};
use super::scalars::Scalars;

/// The moments after this step, flushed but not yet rounded to the state's type. `g` is the scaled
/// gradient.
#[must_use]
pub fn moments(g: f32, exp_avg: f32, exp_avg_sq: f32, scalars: &Scalars) -> (f32, f32) {
    let Scalars { b1, c1, b2, c2, .. } = *scalars;
    (
        flush(b1 * exp_avg + c1 * g),
        flush(b2 * exp_avg_sq + (c2 * g) * g),
    )
}

/// Adam's update without the learning rate, from the stored moments.
#[must_use]
pub fn update(exp_avg: f32, exp_avg_sq: f32, scalars: &Scalars) -> f32 {
    exp_avg / (exp_avg_sq.sqrt() * scalars.r + scalars.e)
}

/// The parameter of a selected entry.
#[must_use]
pub fn moved(param: f32, update: f32, scalars: &Scalars) -> f32 {
    param * scalars.decay - scalars.a * update
}

/// Magnitudes below 2^-126 become +0: a moment that decays for ever would otherwise stay subnormal, where
/// processors are slow.
#[must_use]
pub fn flush(x: f32) -> f32 {
    if magnitude(x) < SMALLEST_NORMAL {
        0.0
    } else {
        x
    }
}

/// The bits of |x|; as integers they are ordered as the magnitudes are.
#[must_use]
pub fn magnitude(x: f32) -> u32 {
    x.to_bits() & MAGNITUDE
}

/// The sorting key of the filters: the magnitude, and 0 for what is not finite.
#[must_use]
pub fn key(x: f32) -> u32 {
    let magnitude = magnitude(x);
    if magnitude < INFINITE { magnitude } else { 0 }
}
