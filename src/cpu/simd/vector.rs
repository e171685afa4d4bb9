//! The vector that the loops are written over, and the rule's arithmetic on it.

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Sub};

use crate::rule::convert::{
    F16_INFINITE, F16_REBIAS, F16_SMALLEST_NORMAL, INFINITE, MAGNITUDE, SMALLEST_NORMAL,
};
use crate::rule::random::MULTIPLIERS;

/// `LANES` f32 or u32 at a time. Every operation does in each lane exactly what the scalar operator does:
/// IEEE arithmetic rounded on its own, wrapping integers.
pub(in crate::cpu) trait Vector: Copy {
    /// A power of two from [`MIN_LANES`] to [`MAX_LANES`].
    const LANES: usize;
    /// Asking whether any lane is set is cheaper than [`Vector::store_compressed`], however often the processor
    /// guesses wrong.
    const BRANCHES: bool;
    type F: Copy
        + Add<Output = Self::F>
        + Sub<Output = Self::F>
        + Mul<Output = Self::F>
        + Div<Output = Self::F>;
    type U: Copy
        + Add<Output = Self::U>
        + Sub<Output = Self::U>
        + Mul<Output = Self::U>
        + BitAnd<Output = Self::U>
        + BitOr<Output = Self::U>
        + BitXor<Output = Self::U>;
    type Mask: Copy
        + BitAnd<Output = Self::Mask>
        + BitOr<Output = Self::Mask>
        + BitXor<Output = Self::Mask>;

    fn float(x: f32) -> Self::F;
    fn uint(x: u32) -> Self::U;
    /// 0, 1, 2, …
    fn lane_numbers() -> Self::U;

    /// # Safety
    ///
    /// `LANES` elements are readable at `from`; likewise below, and writable at `to`. Any alignment of
    /// the element will do.
    unsafe fn load_f32(from: *const f32) -> Self::F;
    /// # Safety
    ///
    /// As above.
    unsafe fn store_f32(to: *mut f32, x: Self::F);
    /// Zero-extends.
    ///
    /// # Safety
    ///
    /// As above.
    unsafe fn load_u16(from: *const u16) -> Self::U;
    /// Stores the low halves.
    ///
    /// # Safety
    ///
    /// As above.
    unsafe fn store_u16(to: *mut u16, x: Self::U);
    /// # Safety
    ///
    /// As above.
    unsafe fn store_u32(to: *mut u32, x: Self::U);
    /// Stores the lanes that are set, without gaps; what follows them is undefined.
    ///
    /// # Safety
    ///
    /// As above: all `LANES` elements are writable at `to`, however few lanes are set.
    unsafe fn store_compressed(to: *mut u32, mask: Self::Mask, x: Self::U);
    /// The same with the low halves.
    ///
    /// # Safety
    ///
    /// As above.
    #[inline(always)]
    unsafe fn store_compressed_u16(to: *mut u16, mask: Self::Mask, x: Self::U) {
        let mut lanes = [0u32; MAX_LANES];
        // SAFETY: no vector has more lanes; the rest is the caller's promise.
        unsafe {
            Self::store_compressed(lanes.as_mut_ptr(), mask, x);
            Self::store_u16(to, Self::bits(Self::load_f32(lanes.as_ptr().cast())));
        }
    }

    fn sqrt(x: Self::F) -> Self::F;
    fn bits(x: Self::F) -> Self::U;
    fn from_bits(x: Self::U) -> Self::F;
    /// The value as a float; `x` is below 2^24.
    fn to_float(x: Self::U) -> Self::F;
    /// Rounds towards zero; `x` is in [0, 2^31).
    fn truncate(x: Self::F) -> Self::U;
    /// Widens the low half of each lane; the high half is zero.
    #[inline(always)]
    fn f16_to_float(half: Self::U) -> Self::F {
        widen_f16::<Self>(half)
    }
    /// Rounds to nearest even; what is in the high halves does not matter.
    #[inline(always)]
    fn float_to_f16(x: Self::F) -> Self::U {
        round_to_f16::<Self>(x)
    }
    fn shift_right<const BITS: u32>(x: Self::U) -> Self::U;
    fn shift_left<const BITS: u32>(x: Self::U) -> Self::U;
    /// The larger one, of any.
    fn max(x: Self::U, y: Self::U) -> Self::U;
    /// `x < y`, both below 2^31.
    fn less(x: Self::U, y: Self::U) -> Self::Mask;
    /// `x >= y`, both below 2^31.
    fn at_least(x: Self::U, y: Self::U) -> Self::Mask;
    fn equal(x: Self::U, y: Self::U) -> Self::Mask;
    /// `low <= x && x < high`, all below 2^31, and `low <= high`.
    #[inline(always)]
    fn within(x: Self::U, low: Self::U, high: Self::U) -> Self::Mask {
        Self::at_least(x, low) & Self::less(x, high)
    }
    /// `x` where the mask is set, else `y`.
    fn select(mask: Self::Mask, x: Self::U, y: Self::U) -> Self::U;
    /// `x` where the mask is set, else 0.
    #[inline(always)]
    fn keep(mask: Self::Mask, x: Self::U) -> Self::U {
        Self::select(mask, x, Self::uint(0))
    }
    /// Where `x` is neither infinite nor NaN.
    #[inline(always)]
    fn finite(x: Self::F) -> Self::Mask {
        Self::less(magnitude::<Self>(x), Self::uint(INFINITE))
    }
    /// Where `x` is not NaN.
    #[inline(always)]
    fn number(x: Self::F) -> Self::Mask {
        Self::less(magnitude::<Self>(x), Self::uint(INFINITE + 1))
    }
    /// Magnitudes below 2^-126 become +0.
    #[inline(always)]
    fn flush(x: Self::F) -> Self::F {
        let normal = Self::at_least(magnitude::<Self>(x), Self::uint(SMALLEST_NORMAL));
        Self::from_bits(Self::keep(normal, Self::bits(x)))
    }
    /// Adds 1 to the lanes that are set.
    fn tally(counts: Self::U, mask: Self::Mask) -> Self::U;
    /// True if a lane is set.
    fn any(mask: Self::Mask) -> bool;
    /// How many lanes are set.
    #[inline(always)]
    fn count(mask: Self::Mask) -> usize {
        Self::mask_bits(mask).count_ones() as usize
    }
    /// A bit for each lane, from the lowest.
    fn mask_bits(mask: Self::Mask) -> u32;
    /// The sum of all lanes, each below 2^28.
    fn sum(x: Self::U) -> u32;
    /// Ends a group of a loop whose groups the compiler might take several of at a time.
    #[inline(always)]
    fn end_group() {}
}

/// No tier has more lanes.
pub(in crate::cpu) const MAX_LANES: usize = 16;
/// Nor fewer.
pub(in crate::cpu) const MIN_LANES: usize = 4;

#[inline(always)]
pub(in crate::cpu) fn magnitude<V: Vector>(x: V::F) -> V::U {
    V::bits(x) & V::uint(MAGNITUDE)
}

/// The first round of random bits.
#[inline(always)]
pub(in crate::cpu) fn first_round<V: Vector>(x: V::U) -> V::U {
    let x = (x ^ V::shift_right::<17>(x)) * V::uint(MULTIPLIERS[0]);
    x ^ V::shift_right::<11>(x)
}

/// The other rounds, once the stream's key has been mixed in.
#[inline(always)]
pub(in crate::cpu) fn other_rounds<V: Vector>(x: V::U) -> V::U {
    let x = other_rounds_high::<V>(x);
    x ^ V::shift_right::<16>(x)
}

/// The upper half is that of [`other_rounds`], which its last line does not change.
#[inline(always)]
pub(in crate::cpu) fn other_rounds_high<V: Vector>(x: V::U) -> V::U {
    let x = x * V::uint(MULTIPLIERS[1]);
    (x ^ V::shift_right::<15>(x)) * V::uint(MULTIPLIERS[2])
}

/// A uniform draw in [0, 1) with 24 bits.
#[inline(always)]
pub(in crate::cpu) fn uniform<V: Vector>(random: V::U) -> V::F {
    V::to_float(V::shift_right::<8>(random)) * V::float(f32::from_bits(0x3380_0000))
}

/// A 16-bit float format. Values travel in the low halves of u32 lanes; what a conversion leaves in the high
/// halves does not matter.
pub(in crate::cpu) trait Format<V: Vector> {
    fn widen(half: V::U) -> V::F;
    fn nearest(x: V::F) -> V::U;
    /// `x` is no signalling NaN, as no result of an operation is. The upper half of `random` is used.
    fn stochastic(x: V::F, random: V::U) -> V::U;
}

pub(in crate::cpu) struct Bf16;

impl<V: Vector> Format<V> for Bf16 {
    #[inline(always)]
    fn widen(half: V::U) -> V::F {
        V::from_bits(V::shift_left::<16>(half))
    }

    #[inline(always)]
    fn nearest(x: V::F) -> V::U {
        let bits = V::bits(x);
        let odd = V::shift_right::<16>(bits) & V::uint(1);
        let rounded = bits + (V::uint(0x7FFF) + odd);
        let quiet = bits | V::uint(0x0040_0000);
        V::shift_right::<16>(V::select(V::number(x), rounded, quiet))
    }

    #[inline(always)]
    fn stochastic(x: V::F, random: V::U) -> V::U {
        // Infinity stays what it is in any case: its lower half is zero.
        let added = V::keep(V::number(x), V::shift_right::<16>(random));
        V::shift_right::<16>(V::bits(x) + added)
    }
}

pub(in crate::cpu) struct F16;

impl<V: Vector> Format<V> for F16 {
    #[inline(always)]
    fn widen(half: V::U) -> V::F {
        V::f16_to_float(half)
    }

    #[inline(always)]
    fn nearest(x: V::F) -> V::U {
        V::float_to_f16(x)
    }

    #[inline(always)]
    fn stochastic(x: V::F, random: V::U) -> V::U {
        let magnitude = magnitude::<V>(x);
        let random = V::shift_right::<19>(random);
        let normal = V::shift_right::<13>(magnitude - V::uint(F16_REBIAS) + random);
        // Clamped, because a large x has no fixed-point form; it is not used there.
        let tiny = V::less(magnitude, V::uint(F16_SMALLEST_NORMAL));
        let small = V::from_bits(V::select(tiny, magnitude, V::uint(0)));
        let fixed = V::truncate(small * V::float(f32::from_bits(0x5200_0000)));
        let subnormal = V::shift_right::<13>(fixed + random);
        assemble::<V>(x, magnitude, subnormal, normal)
    }
}

/// Chooses the rounding that fits an f16's magnitude, and adds the sign.
#[inline(always)]
fn assemble<V: Vector>(x: V::F, magnitude: V::U, subnormal: V::U, normal: V::U) -> V::U {
    let sign = V::shift_right::<16>(V::bits(x)) & V::uint(0x8000);
    let infinite = V::uint(F16_INFINITE);
    // From 2^16 on; below it the rounding may carry to infinity, but not further.
    let in_range = V::less(magnitude, V::uint(0x4780_0000));
    let number = V::less(magnitude, V::uint(INFINITE + 1));
    let nan = (V::shift_right::<13>(magnitude) & V::uint(0x03FF)) | V::uint(0x7E00);
    let large = V::select(in_range, normal, V::select(number, infinite, nan));
    let tiny = V::less(magnitude, V::uint(F16_SMALLEST_NORMAL));
    sign | V::select(tiny, subnormal, large)
}

#[inline(always)]
fn widen_f16<V: Vector>(half: V::U) -> V::F {
    let sign = V::shift_left::<16>(half & V::uint(0x8000));
    let magnitude = half & V::uint(0x7FFF);
    let shifted = V::shift_left::<13>(magnitude);
    let subnormal = V::bits(V::to_float(magnitude) * V::float(f32::from_bits(0x3380_0000)));
    let finite = V::less(magnitude, V::uint(F16_INFINITE));
    let normal = V::select(
        finite,
        shifted + V::uint(F16_REBIAS),
        shifted | V::uint(INFINITE),
    );
    let widened = V::select(V::less(magnitude, V::uint(0x0400)), subnormal, normal);
    V::from_bits(sign | widened)
}

#[inline(always)]
fn round_to_f16<V: Vector>(x: V::F) -> V::U {
    let magnitude = magnitude::<V>(x);
    let odd = V::shift_right::<13>(magnitude) & V::uint(1);
    let normal = V::shift_right::<13>(magnitude - V::uint(F16_REBIAS) + V::uint(0x0FFF) + odd);
    let half = V::float(0.5);
    let subnormal = V::bits(V::from_bits(magnitude) + half) - V::bits(half);
    assemble::<V>(x, magnitude, subnormal, normal)
}
