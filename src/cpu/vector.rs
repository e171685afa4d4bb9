//! The vector that the loops are written over, and the rule's arithmetic on it.

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Sub};

use crate::rule::convert::{
    F16_INFINITE, F16_REBIAS, F16_SMALLEST_NORMAL, INFINITE, MAGNITUDE, SMALLEST_NORMAL,
};
use crate::rule::random::{MIX32, SpanKey};

/// `LANES` f32 or u32 at a time. Every operation does in each lane exactly what the scalar operator does:
/// IEEE arithmetic rounded on its own, wrapping integers.
pub(crate) trait Vector: Copy {
    /// A power of two, at most [`MAX_LANES`].
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
    type Mask: Copy + BitAnd<Output = Self::Mask> + BitOr<Output = Self::Mask>;

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
    /// Stores the lanes of `x` that are set, and in the others `old`, which is what is there.
    ///
    /// # Safety
    ///
    /// As above.
    #[inline(always)]
    unsafe fn store_u32_where(to: *mut u32, set: Self::Mask, x: Self::U, old: Self::U) {
        // SAFETY: the caller's promise.
        unsafe { Self::store_u32(to, Self::select(set, x, old)) };
    }
    /// Stores the lanes that are set, without gaps; what follows them is undefined.
    ///
    /// # Safety
    ///
    /// As above: all `LANES` elements are writable at `to`, however few lanes are set.
    unsafe fn store_compressed(to: *mut u32, mask: Self::Mask, x: Self::U);

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
    /// `x < y`, both below 2^31.
    fn less(x: Self::U, y: Self::U) -> Self::Mask;
    /// `x >= y`, both below 2^31.
    fn at_least(x: Self::U, y: Self::U) -> Self::Mask;
    fn equal(x: Self::U, y: Self::U) -> Self::Mask;
    /// `x` where the mask is set, else `y`.
    fn select(mask: Self::Mask, x: Self::U, y: Self::U) -> Self::U;
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
    /// The mask of such bits; there are no others.
    fn mask_of(bits: u32) -> Self::Mask;
    /// The sum of all lanes, each below 2^28.
    fn sum(x: Self::U) -> u32;
}

/// No tier has more lanes.
pub(crate) const MAX_LANES: usize = 16;

#[inline(always)]
pub(super) fn magnitude<V: Vector>(x: V::F) -> V::U {
    V::bits(x) & V::uint(MAGNITUDE)
}

/// Magnitudes below 2^-126 become +0.
#[inline(always)]
pub(super) fn flush<V: Vector>(x: V::F) -> V::F {
    let tiny = V::less(magnitude::<V>(x), V::uint(SMALLEST_NORMAL));
    V::from_bits(V::select(tiny, V::uint(0), V::bits(x)))
}

/// The random bits of the entries whose low index halves are `entries`.
#[inline(always)]
pub(super) fn random<V: Vector>(key: SpanKey, entries: V::U) -> V::U {
    mix32::<V>(mix32::<V>(entries ^ V::uint(key.first)) ^ V::uint(key.second))
}

#[inline(always)]
fn mix32<V: Vector>(x: V::U) -> V::U {
    let x = (x ^ V::shift_right::<16>(x)) * V::uint(MIX32[0]);
    let x = (x ^ V::shift_right::<15>(x)) * V::uint(MIX32[1]);
    x ^ V::shift_right::<16>(x)
}

/// A uniform draw in [0, 1) with 24 bits.
#[inline(always)]
pub(super) fn uniform<V: Vector>(random: V::U) -> V::F {
    V::to_float(V::shift_right::<8>(random)) * V::float(f32::from_bits(0x3380_0000))
}

/// A 16-bit float format. Values travel in the low halves of u32 lanes; what a conversion leaves in the high
/// halves does not matter.
pub(super) trait Format<V: Vector> {
    fn widen(half: V::U) -> V::F;
    fn nearest(x: V::F) -> V::U;
    fn stochastic(x: V::F, random: V::U) -> V::U;
}

pub(super) struct Bf16;

impl<V: Vector> Format<V> for Bf16 {
    #[inline(always)]
    fn widen(half: V::U) -> V::F {
        V::from_bits(V::shift_left::<16>(half))
    }

    #[inline(always)]
    fn nearest(x: V::F) -> V::U {
        let bits = V::bits(x);
        let high = V::shift_right::<16>(bits);
        let rounded = V::shift_right::<16>(bits + V::uint(0x7FFF) + (high & V::uint(1)));
        let number = V::less(magnitude::<V>(x), V::uint(INFINITE + 1));
        V::select(number, rounded, high | V::uint(0x0040))
    }

    #[inline(always)]
    fn stochastic(x: V::F, random: V::U) -> V::U {
        let bits = V::bits(x);
        let magnitude = magnitude::<V>(x);
        let high = V::shift_right::<16>(bits);
        let rounded = V::shift_right::<16>(bits + V::shift_right::<16>(random));
        let finite = V::less(magnitude, V::uint(INFINITE));
        let number = V::less(magnitude, V::uint(INFINITE + 1));
        V::select(
            finite,
            rounded,
            V::select(number, high, high | V::uint(0x0040)),
        )
    }
}

pub(super) struct F16;

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
