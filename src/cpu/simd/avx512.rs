//! The vector of AVX-512 (F, BW, DQ and VL): sixteen lanes.

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Sub};

use super::vector::Vector;
use crate::rule::convert::INFINITE;

/// Lanes of 512 bits. Its functions may only be inlined into code that is compiled for AVX-512 F, BW, DQ and
/// VL, and run only where the processor has them; see `kernels/table.rs`.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Lanes;

#[derive(Clone, Copy)]
pub(in crate::cpu) struct F(__m512);

#[derive(Clone, Copy)]
pub(in crate::cpu) struct U(__m512i);

/// A bit for each lane.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Mask(__mmask16);

macro_rules! operators {
    ($($vector:ident: $($operator:ident $method:ident $intrinsic:ident),+;)+) => {$($(
        impl $operator for $vector {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the processor has AVX-512 (the type's contract).
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )+)+};
}
operators! {
    F: Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps;
    U: Add add _mm512_add_epi32, Sub sub _mm512_sub_epi32, Mul mul _mm512_mullo_epi32,
       BitAnd bitand _mm512_and_si512, BitOr bitor _mm512_or_si512, BitXor bitxor _mm512_xor_si512;
    Mask: BitAnd bitand _kand_mask16, BitOr bitor _kor_mask16, BitXor bitxor _kxor_mask16;
}

impl Vector for Lanes {
    const LANES: usize = 16;
    const BRANCHES: bool = false;
    type F = F;
    type U = U;
    type Mask = Mask;

    // SAFETY, for all blocks below without a note of their own: the processor has AVX-512 (the type's
    // contract), and those intrinsics have no other condition.

    #[inline(always)]
    fn float(x: f32) -> F {
        // SAFETY: see above.
        F(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    fn uint(x: u32) -> U {
        // SAFETY: see above.
        U(unsafe { _mm512_set1_epi32(x as i32) })
    }

    #[inline(always)]
    fn lane_numbers() -> U {
        // SAFETY: see above.
        U(unsafe { _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) })
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> F {
        // SAFETY: sixteen elements are readable (the caller's promise).
        F(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store_f32(to: *mut f32, x: F) {
        // SAFETY: sixteen elements are writable (the caller's promise).
        unsafe { _mm512_storeu_ps(to, x.0) };
    }

    #[inline(always)]
    unsafe fn load_u16(from: *const u16) -> U {
        // SAFETY: sixteen elements are readable (the caller's promise).
        U(unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) })
    }

    #[inline(always)]
    unsafe fn store_u16(to: *mut u16, x: U) {
        // SAFETY: sixteen elements are writable (the caller's promise).
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(x.0)) };
    }

    #[inline(always)]
    unsafe fn store_u32(to: *mut u32, x: U) {
        // SAFETY: sixteen elements are writable (the caller's promise).
        unsafe { _mm512_storeu_si512(to.cast(), x.0) };
    }

    #[inline(always)]
    unsafe fn store_compressed(to: *mut u32, mask: Mask, x: U) {
        // Compressed in a register: a store that compresses is many times slower on some processors.
        // SAFETY: sixteen elements are writable (the caller's promise).
        unsafe { _mm512_storeu_si512(to.cast(), _mm512_maskz_compress_epi32(mask.0, x.0)) };
    }

    #[inline(always)]
    unsafe fn store_compressed_u16(to: *mut u16, mask: Mask, x: U) {
        // SAFETY: sixteen elements are writable (the caller's promise).
        unsafe { Self::store_u16(to, U(_mm512_maskz_compress_epi32(mask.0, x.0))) };
    }

    #[inline(always)]
    fn sqrt(x: F) -> F {
        // SAFETY: see above.
        F(unsafe { _mm512_sqrt_ps(x.0) })
    }

    #[inline(always)]
    fn bits(x: F) -> U {
        // SAFETY: see above.
        U(unsafe { _mm512_castps_si512(x.0) })
    }

    #[inline(always)]
    fn from_bits(x: U) -> F {
        // SAFETY: see above.
        F(unsafe { _mm512_castsi512_ps(x.0) })
    }

    #[inline(always)]
    fn to_float(x: U) -> F {
        // SAFETY: see above.
        F(unsafe { _mm512_cvtepi32_ps(x.0) })
    }

    #[inline(always)]
    fn truncate(x: F) -> U {
        // SAFETY: see above.
        U(unsafe { _mm512_cvttps_epi32(x.0) })
    }

    #[inline(always)]
    fn f16_to_float(half: U) -> F {
        // SAFETY: see above.
        F(unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(half.0)) })
    }

    #[inline(always)]
    fn float_to_f16(x: F) -> U {
        // SAFETY: see above.
        U(unsafe { _mm512_cvtepu16_epi32(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0)) })
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(x: U) -> U {
        // SAFETY: see above.
        U(unsafe { _mm512_srli_epi32::<BITS>(x.0) })
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(x: U) -> U {
        // SAFETY: see above.
        U(unsafe { _mm512_slli_epi32::<BITS>(x.0) })
    }

    #[inline(always)]
    fn max(x: U, y: U) -> U {
        // SAFETY: see above.
        U(unsafe { _mm512_max_epu32(x.0, y.0) })
    }

    #[inline(always)]
    fn less(x: U, y: U) -> Mask {
        // SAFETY: see above.
        Mask(unsafe { _mm512_cmplt_epu32_mask(x.0, y.0) })
    }

    #[inline(always)]
    fn at_least(x: U, y: U) -> Mask {
        // SAFETY: see above.
        Mask(unsafe { _mm512_cmpge_epu32_mask(x.0, y.0) })
    }

    #[inline(always)]
    fn equal(x: U, y: U) -> Mask {
        // SAFETY: see above.
        Mask(unsafe { _mm512_cmpeq_epu32_mask(x.0, y.0) })
    }

    #[inline(always)]
    fn within(x: U, low: U, high: U) -> Mask {
        // Below `low` the difference wraps around.
        // SAFETY: see above.
        Mask(unsafe {
            let (x, width) = (
                _mm512_sub_epi32(x.0, low.0),
                _mm512_sub_epi32(high.0, low.0),
            );
            _mm512_cmplt_epu32_mask(x, width)
        })
    }

    #[inline(always)]
    fn select(mask: Mask, x: U, y: U) -> U {
        // SAFETY: see above.
        U(unsafe { _mm512_mask_blend_epi32(mask.0, y.0, x.0) })
    }

    #[inline(always)]
    fn keep(mask: Mask, x: U) -> U {
        // SAFETY: see above.
        U(unsafe { _mm512_maskz_mov_epi32(mask.0, x.0) })
    }

    #[inline(always)]
    fn number(x: F) -> Mask {
        // SAFETY: see above.
        Mask(unsafe { _mm512_cmp_ps_mask::<_CMP_ORD_Q>(x.0, x.0) })
    }

    #[inline(always)]
    fn flush(x: F) -> F {
        // The exponent of what is kept is not zero.
        // SAFETY: see above.
        F(unsafe {
            let exponent = _mm512_set1_epi32(INFINITE as i32);
            let kept = _mm512_test_epi32_mask(_mm512_castps_si512(x.0), exponent);
            _mm512_maskz_mov_ps(kept, x.0)
        })
    }

    #[inline(always)]
    fn tally(counts: U, mask: Mask) -> U {
        // SAFETY: see above.
        U(unsafe { _mm512_mask_add_epi32(counts.0, mask.0, counts.0, _mm512_set1_epi32(1)) })
    }

    #[inline(always)]
    fn any(mask: Mask) -> bool {
        mask.0 != 0
    }

    #[inline(always)]
    fn mask_bits(mask: Mask) -> u32 {
        u32::from(mask.0)
    }

    #[inline(always)]
    fn sum(x: U) -> u32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_add_epi32(x.0) as u32 }
    }
}
