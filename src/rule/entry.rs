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

#[cfg(test)]
mod tests {
    use super::super::scalars::Hyper;
    use super::*;

    /// Where an entry of 0 goes in its first step with this gradient.
    fn first_move(epsilon: f64, g: f32) -> f32 {
        let hyper = Hyper {
            learning_rate: 1e-3,
            learning_rate_scale: 1.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon,
            weight_decay: 0.0,
        };
        let scalars = Scalars::new(&hyper, 1).unwrap();
        let (m, v) = moments(g, 0.0, 0.0, &scalars);
        moved(0.0, update(m, v, &scalars), &scalars)
    }

    /// What `docs/numerics.md` says of them.
    #[test]
    fn gradients_whose_squares_are_flushed_are_divided_by_epsilon_alone() {
        let is_about_the_learning_rate = |x: f32| (-1.01e-3..-0.99e-3).contains(&x);
        assert!(is_about_the_learning_rate(first_move(0.0, 3.43e-18)));
        assert_eq!(first_move(0.0, 3.42e-18), f32::NEG_INFINITY);
        assert_eq!(first_move(0.0, 1e-20), f32::NEG_INFINITY);
        // Lifted by 2^40.
        assert!(is_about_the_learning_rate(first_move(
            0.0,
            3.2e-30 * (1u64 << 40) as f32
        )));
        for g in [2e-37, 1e-30, 1e-20, 3.42e-18] {
            let x = first_move(3.43e-18, g);
            assert!((-1e-3..0.0).contains(&x), "{g}: {x}");
            assert!(first_move(1e-8, g) > -1e-12);
        }
    }
}
