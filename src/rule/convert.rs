//! Conversions between f32 and the 16-bit formats, by integer arithmetic so that no processor mode or
//! instruction can change a bit.

/// Bits of the magnitude of an f32.
pub const MAGNITUDE: u32 = 0x7FFF_FFFF;
/// The magnitude of infinity; above it are the NaNs.
pub const INFINITE: u32 = 0x7F80_0000;
/// The smallest normal f32, 2^-126.
pub const SMALLEST_NORMAL: u32 = 0x0080_0000;
/// The smallest magnitude that is a normal f16, 2^-14, as an f32.
pub const F16_SMALLEST_NORMAL: u32 = 0x3880_0000;
/// The difference of the exponent biases of f32 and f16, 112, in place.
pub const F16_REBIAS: u32 = 112 << 23;
/// Infinity as an f16.
pub const F16_INFINITE: u32 = 0x7C00;

/// Widens bf16, exactly.
#[must_use]
pub fn bf16_to_f32(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// Rounds to bf16, to nearest even; NaN stays NaN.
#[must_use]
pub fn f32_to_bf16_nearest(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x0040;
    }
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

/// Rounds to bf16 up or down with `random` deciding; a carry may reach infinity. NaN stays NaN.
#[must_use]
pub fn f32_to_bf16_stochastic(x: f32, random: u32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x0040;
    }
    if x.is_infinite() {
        return (bits >> 16) as u16;
    }
    ((bits + (random >> 16)) >> 16) as u16
}

/// Widens f16, exactly.
#[must_use]
pub fn f16_to_f32(half: u16) -> f32 {
    let half = u32::from(half);
    let sign = (half & 0x8000) << 16;
    let magnitude = half & 0x7FFF;
    let widened = if magnitude < 0x0400 {
        // Subnormal: a whole number of 2^-24.
        (magnitude as f32 * f32::from_bits(0x3380_0000)).to_bits()
    } else if magnitude < F16_INFINITE {
        (magnitude << 13) + F16_REBIAS
    } else {
        (magnitude << 13) | INFINITE
    };
    f32::from_bits(sign | widened)
}

/// Rounds to f16, to nearest even; NaN stays NaN.
#[must_use]
pub fn f32_to_f16_nearest(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) & 0x8000;
    let magnitude = x.to_bits() & MAGNITUDE;
    let half = if magnitude > INFINITE {
        (magnitude >> 13) & 0x03FF | 0x7E00
    } else if magnitude < F16_SMALLEST_NORMAL {
        // 0.5 has the unit 2^-24 of the subnormals: adding it rounds to their grid.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()
    } else if magnitude < 0x4780_0000 {
        // Below 2^16; the rounding itself may still carry to infinity.
        (magnitude - F16_REBIAS + 0x0FFF + ((magnitude >> 13) & 1)) >> 13
    } else {
        F16_INFINITE
    };
    (sign | half) as u16
}

/// Rounds to f16 up or down with `random` deciding; a carry may reach infinity. NaN stays NaN.
#[must_use]
pub fn f32_to_f16_stochastic(x: f32, random: u32) -> u16 {
    let sign = (x.to_bits() >> 16) & 0x8000;
    let magnitude = x.to_bits() & MAGNITUDE;
    let random = random >> 19;
    let half = if magnitude > INFINITE {
        (magnitude >> 13) & 0x03FF | 0x7E00
    } else if magnitude < F16_SMALLEST_NORMAL {
        // Units of 2^-37: 13 bits below the grid of the subnormals.
        let fixed = (f32::from_bits(magnitude) * f32::from_bits(0x5200_0000)) as u32;
        (fixed + random) >> 13
    } else if magnitude < 0x4780_0000 {
        ((magnitude - F16_REBIAS + random) >> 13).min(F16_INFINITE)
    } else {
        F16_INFINITE
    };
    (sign | half) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// Every 16-bit pattern, its neighbourhood in f32, and the midpoints between patterns.
    fn interesting() -> impl Iterator<Item = f32> {
        (0..=u16::MAX).flat_map(|high| {
            [0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
                .map(|low| f32::from_bits(u32::from(high) << 16 | low))
        })
    }

    #[test]
    fn widening_is_that_of_an_independent_library() {
        for half in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(half), f16::from_bits(half).to_f32_const());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan());
            let (ours, theirs) = (bf16_to_f32(half), bf16::from_bits(half).to_f32_const());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan());
        }
    }

    #[test]
    fn rounding_to_nearest_is_that_of_an_independent_library() {
        for x in interesting() {
            let (ours, theirs) = (f32_to_f16_nearest(x), f16::from_f32_const(x));
            assert!(
                ours == theirs.to_bits() || x.is_nan() && f16::from_bits(ours).is_nan(),
                "{x:e} ({:#x}): {ours:#x}, not {theirs:?}",
                x.to_bits()
            );
            let (ours, theirs) = (f32_to_bf16_nearest(x), bf16::from_f32_const(x));
            assert!(
                ours == theirs.to_bits() || x.is_nan() && bf16::from_bits(ours).is_nan(),
                "{x:e}: {ours:#x}, not {theirs:?}"
            );
        }
    }

    #[test]
    fn stochastic_rounding_gives_a_neighbour_and_keeps_what_fits() {
        for x in interesting().filter(|x| x.is_finite()) {
            for random in [0, u32::MAX, 0x1234_5678, 0x8000_0000] {
                let bf16 = bf16_to_f32(f32_to_bf16_stochastic(x, random));
                let truncated = f32::from_bits(x.to_bits() & 0xFFFF_0000);
                let next = f32::from_bits(truncated.to_bits() + 0x0001_0000);
                assert!(bf16 == truncated || bf16 == next, "{x:e} became {bf16:e}");
                if truncated == x {
                    assert_eq!(bf16.to_bits(), x.to_bits());
                }
                let f16 = f32_to_f16_stochastic(x, random);
                let nearest = f32_to_f16_nearest(x);
                assert!(
                    f16.abs_diff(nearest) <= 1,
                    "{x:e} became {f16:#x}, not {nearest:#x}"
                );
                if f16_to_f32(nearest) == x {
                    assert_eq!(f16, nearest);
                }
            }
        }
    }

    #[test]
    fn stochastic_rounding_is_unbiased() {
        // A fixed equidistant set of draws stands for the average over random ones.
        let draws = 1 << 13;
        for x in [
            1.0001f32, -3.3e-3, 6.1e-5, 3.3e-5, -1.2e-7, 4.0e-8, 60_000.5, -17.77,
        ] {
            let mean = |round: &dyn Fn(u32) -> f32| {
                (0..draws).map(|i| f64::from(round(i << 19))).sum::<f64>() / f64::from(draws)
            };
            let f16 = mean(&|random| f16_to_f32(f32_to_f16_stochastic(x, random)));
            let unit = f64::from(x.abs() / 1024.0).max(2f64.powi(-24));
            assert!(
                (f16 - f64::from(x)).abs() <= unit / 4096.0,
                "{x:e}: mean {f16:e}"
            );
            let bf16 = mean(&|random| bf16_to_f32(f32_to_bf16_stochastic(x, random)));
            assert!((bf16 - f64::from(x)).abs() <= f64::from(x.abs()) / 128.0 / 4096.0);
        }
    }

    #[test]
    fn infinities_stay_and_nan_stays_nan() {
        for random in [0, u32::MAX] {
            for sign in [1.0, -1.0] {
                let infinity = f32::INFINITY * sign;
                assert_eq!(
                    f16_to_f32(f32_to_f16_stochastic(infinity, random)),
                    infinity
                );
                assert_eq!(
                    bf16_to_f32(f32_to_bf16_stochastic(infinity, random)),
                    infinity
                );
            }
            for bits in [0x7F80_0001, 0x7FFF_FFFF, 0xFF80_0001, 0x7FC0_0000] {
                let nan = f32::from_bits(bits);
                assert!(f16_to_f32(f32_to_f16_stochastic(nan, random)).is_nan());
                assert!(bf16_to_f32(f32_to_bf16_stochastic(nan, random)).is_nan());
                assert!(f16_to_f32(f32_to_f16_nearest(nan)).is_nan());
                assert!(bf16_to_f32(f32_to_bf16_nearest(nan)).is_nan());
            }
        }
    }
}
