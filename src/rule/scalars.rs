//! The scalars of a step, from hyper-parameters in f64 to the f32 that the entries see.

use crate::error::{Result, fail};

/// A tensor's hyper-parameters for one step.
#[derive(Clone, Copy, Debug)]
pub struct Hyper {
    /// η · scale is this tensor's learning rate.
    pub learning_rate: f64,
    /// The tensor's own factor on η.
    pub learning_rate_scale: f64,
    /// β1.
    pub beta1: f64,
    /// β2.
    pub beta2: f64,
    /// ε.
    pub epsilon: f64,
    /// λ.
    pub weight_decay: f64,
}

/// What the arithmetic of an entry needs, named as in `docs/numerics.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scalars {
    /// f32(grad_scale · clip).
    pub s: f32,
    /// f32(β1).
    pub b1: f32,
    /// f32(1 - β1).
    pub c1: f32,
    /// f32(β2).
    pub b2: f32,
    /// f32(1 - β2).
    pub c2: f32,
    /// f32(1 / sqrt(1 - β2^t)).
    pub r: f32,
    /// f32(ε).
    pub e: f32,
    /// f32(η·scale / (1 - β1^t)).
    pub a: f32,
    /// f32(1 - η·scale·λ).
    pub decay: f32,
}

impl Scalars {
    /// The scalars of step number `t`, from 1, with `grad_scale` 1 and no clipping. Refused if one is not
    /// finite.
    #[inline(never)]
    pub fn new(hyper: &Hyper, t: u64) -> Result<Self> {
        let rate = hyper.learning_rate * hyper.learning_rate_scale;
        let scalars = Self {
            s: 1.0,
            b1: hyper.beta1 as f32,
            c1: (1.0 - hyper.beta1) as f32,
            b2: hyper.beta2 as f32,
            c2: (1.0 - hyper.beta2) as f32,
            r: (1.0 / (1.0 - power(hyper.beta2, t)).sqrt()) as f32,
            e: hyper.epsilon as f32,
            a: (rate / (1.0 - power(hyper.beta1, t))) as f32,
            decay: (1.0 - rate * hyper.weight_decay) as f32,
        };
        let Self { r, e, a, decay, .. } = scalars;
        let derived = [
            ("1 / sqrt(1 - beta2^t)", r),
            ("epsilon", e),
            ("learning_rate * learning_rate_scale / (1 - beta1^t)", a),
            (
                "1 - learning_rate * learning_rate_scale * weight_decay",
                decay,
            ),
        ];
        for (what, value) in derived {
            if !value.is_finite() {
                fail!(
                    NotFinite,
                    "{what} is {value} as f32 in step {t} (learning_rate {}, learning_rate_scale {}, \
                     beta1 {}, beta2 {}, epsilon {}, weight_decay {}); it must be finite",
                    hyper.learning_rate,
                    hyper.learning_rate_scale,
                    hyper.beta1,
                    hyper.beta2,
                    hyper.epsilon,
                    hyper.weight_decay
                );
            }
        }
        Ok(scalars)
    }
}

/// The factor on the gradients, f32(grad_scale · clip); refused if it is not finite.
#[inline(never)]
pub fn gradient_factor(grad_scale: f64, clip: f64) -> Result<f32> {
    let s = (grad_scale * clip) as f32;
    if !s.is_finite() {
        fail!(
            NotFinite,
            "grad_scale * clip is {s} as f32 (grad_scale {grad_scale}, clip {clip}); it must be finite. A clip \
             of NaN means that the gradient norm is NaN: a gradient is"
        );
    }
    Ok(s)
}

/// β^t by binary powering from the low bit, the same on every machine.
#[must_use]
pub fn power(base: f64, mut exponent: u64) -> f64 {
    let mut result = 1.0;
    let mut square = base;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYPER: Hyper = Hyper {
        learning_rate: 1e-3,
        learning_rate_scale: 1.0,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
    };

    #[test]
    fn powers_are_exact_where_they_can_be() {
        assert_eq!(power(0.5, 10), 1.0 / 1024.0);
        assert_eq!(power(0.0, 1), 0.0);
        assert_eq!(power(0.9, 0), 1.0);
        assert!((power(0.999, 1000) / 0.999f64.powi(1000) - 1.0).abs() < 1e-12);
        assert_eq!(power(0.9, u64::MAX), 0.0);
    }

    #[test]
    fn the_first_step_undoes_the_start_at_zero() {
        let scalars = Scalars::new(&HYPER, 1).unwrap();
        assert!((f64::from(scalars.a) - 1e-2).abs() < 1e-8);
        assert!((f64::from(scalars.r) - 1000f64.sqrt()).abs() < 1e-4);
        assert_eq!(scalars.decay, (1.0 - 1e-4) as f32);
    }

    #[test]
    fn what_overflows_f32_is_refused() {
        let overflowing = [
            Hyper {
                learning_rate: 1e300,
                ..HYPER
            },
            Hyper {
                learning_rate_scale: 1e42,
                ..HYPER
            },
            Hyper {
                epsilon: 1e40,
                ..HYPER
            },
            Hyper {
                weight_decay: 1e45,
                ..HYPER
            },
        ];
        for hyper in overflowing {
            assert!(Scalars::new(&hyper, 1).is_err(), "{hyper:?}");
        }
        assert!(gradient_factor(1e39, 1.0).is_err());
        assert!(gradient_factor(1.0, f64::NAN).is_err());
    }
}
