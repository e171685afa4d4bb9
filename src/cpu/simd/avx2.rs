//! The vector of AVX2 with F16C: eight lanes.

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Sub};

use super::vector::Vector;

/// Lanes of 256 bits. Its functions may only be inlined into code that is compiled for AVX2 and F16C, and run
/// only where the processor has them; see `kernels/table.rs`.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Lanes;

#[derive(Clone, Copy)]
pub(in crate::cpu) struct F(__m256);

#[derive(Clone, Copy)]
pub(in crate::cpu) struct U(__m256i);

/// All bits of a lane set, or none.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Mask(__m256i);

macro_rules! operators {
    ($($vector:ident: $($operator:ident $method:ident $intrinsic:ident),+;)+) => {$($(
        impl $operator for $vector {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the processor has AVX2 (the type's contract).
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )+)+};
}
operators! {
    F: Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps;
    U: Add add _mm256_add_epi32, Sub sub _mm256_sub_epi32, Mul mul _mm256_mullo_epi32,
       BitAnd bitand _mm256_and_si256, BitOr bitor _mm256_or_si256, BitXor bitxor _mm256_xor_si256;
    Mask: BitAnd bitand _mm256_and_si256, BitOr bitor _mm256_or_si256, BitXor bitxor _mm256_xor_si256;
}

/// For each set of lanes, the numbers of its lanes in ascending order, a byte each.
static COMPRESSED: [u64; 256] = {
    let mut table = [0u64; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut place) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 == 1 {
                table[set] |= lane << (8 * place);
                place += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    table
};

#[inline(always)]
fn lanes_set(mask: Mask) -> u32 {
    // SAFETY: the processor has AVX2 (the type's contract).
    unsafe { _mm256_movemask_ps(_mm256_castsi256_ps(mask.0)) as u32 }
}

/// The low halves of all lanes.
#[inline(always)]
fn narrow(x: U) -> __m128i {
    // SAFETY: the processor has AVX2 (the type's contract).
    unsafe {
        let low = _mm256_and_si256(x.0, _mm256_set1_epi32(0xFFFF));
        let packed = _mm256_packus_epi32(low, low);
        _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(packed))
    }
}

impl Vector for Lanes {
    const LANES: usize = 8;
    const BRANCHES: bool = false;
    type F = F;
    type U = U;
    type Mask = Mask;

    // SAFETY, for all blocks below without a note of their own: the processor has AVX2 and F16C (the type's
    // contract), and those intrinsics have no other condition.

    #[inline(always)]
    fn float(x: f32) -> F {
        // SAFETY: see above.
        F(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    fn uint(x: u32) -> U {
        // SAFETY: see above.
        U(unsafe { _mm256_set1_epi32(x as i32) })
    }

    #[inline(always)]
    fn lane_numbers() -> U {
        // SAFETY: see above.
        U(unsafe { _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7) })
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> F {
        // SAFETY: eight elements are readable (the caller's promise).
        F(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store_f32(to: *mut f32, x: F) {
        // SAFETY: eight elements are writable (the caller's promise).
        unsafe { _mm256_storeu_ps(to, x.0) };
    }

    #[inline(always)]
    unsafe fn load_u16(from: *const u16) -> U {
        // SAFETY: eight elements are readable (the caller's promise).
        U(unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())) })
    }

    #[inline(always)]
    unsafe fn store_u16(to: *mut u16, x: U) {
        // SAFETY: eight elements are writable (the caller's promise).
        unsafe { _mm_storeu_si128(to.cast(), narrow(x)) };
    }

    #[inline(always)]
    unsafe fn store_u32(to: *mut u32, x: U) {
        // SAFETY: eight elements are writable (the caller's promise).
        unsafe { _mm256_storeu_si256(to.cast(), x.0) };
    }

    #[inline(always)]
    unsafe fn store_compressed(to: *mut u32, mask: Mask, x: U) {
        // SAFETY: eight elements are writable (the caller's promise); a set of eight lanes is below 256.
        unsafe {
            let order = *COMPRESSED.get_unchecked(lanes_set(mask) as usize);
            let order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(order as i64));
            _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(x.0, order));
        }
    }

    #[inline(always)]
    fn sqrt(x: F) -> F {
        // SAFETY: see above.
        F(unsafe { _mm256_sqrt_ps(x.0) })
    }

    #[inline(always)]
    fn bits(x: F) -> U {
        // SAFETY: see above.
        U(unsafe { _mm256_castps_si256(x.0) })
    }

    #[inline(always)]
    fn from_bits(x: U) -> F {
        // SAFETY: see above.
        F(unsafe { _mm256_castsi256_ps(x.0) })
    }

    #[inline(always)]
    fn to_float(x: U) -> F {
        // SAFETY: see above.
        F(unsafe { _mm256_cvtepi32_ps(x.0) })
    }

    #[inline(always)]
    fn truncate(x: F) -> U {
        // SAFETY: see above.
        U(unsafe { _mm256_cvttps_epi32(x.0) })
    }

    #[inline(always)]
    fn f16_to_float(half: U) -> F {
        // SAFETY: see above.
        F(unsafe { _mm256_cvtph_ps(narrow(half)) })
    }

    #[inline(always)]
    fn float_to_f16(x: F) -> U {
        // SAFETY: see above.
        U(unsafe { _mm256_cvtepu16_epi32(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0)) })
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(x: U) -> U {
        // SAFETY: see above. The shift by a variable count of the same value compiles to one by a constant.
        U(unsafe { _mm256_srl_epi32(x.0, _mm_cvtsi32_si128(BITS as i32)) })
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(x: U) -> U {
        // SAFETY: as for `shift_right`.
        U(unsafe { _mm256_sll_epi32(x.0, _mm_cvtsi32_si128(BITS as i32)) })
    }

    #[inline(always)]
    fn max(x: U, y: U) -> U {
        // SAFETY: see above.
        U(unsafe { _mm256_max_epu32(x.0, y.0) })
    }

    #[inline(always)]
    fn less(x: U, y: U) -> Mask {
        // SAFETY: see above.
        Mask(unsafe { _mm256_cmpgt_epi32(y.0, x.0) })
    }

    #[inline(always)]
    fn at_least(x: U, y: U) -> Mask {
        // SAFETY: see above.
        Mask(unsafe { _mm256_cmpeq_epi32(_mm256_max_epi32(x.0, y.0), x.0) })
    }

    #[inline(always)]
    fn equal(x: U, y: U) -> Mask {
        // SAFETY: see above.
        Mask(unsafe { _mm256_cmpeq_epi32(x.0, y.0) })
    }

    #[inline(always)]
    fn select(mask: Mask, x: U, y: U) -> U {
        // SAFETY: see above.
        U(unsafe { _mm256_blendv_epi8(y.0, x.0, mask.0) })
    }

    #[inline(always)]
    fn number(x: F) -> Mask {
        // SAFETY: see above.
        Mask(unsafe { _mm256_castps_si256(_mm256_cmp_ps::<_CMP_ORD_Q>(x.0, x.0)) })
    }

    #[inline(always)]
    fn tally(counts: U, mask: Mask) -> U {
        counts - U(mask.0)
    }

    #[inline(always)]
    fn any(mask: Mask) -> bool {
        lanes_set(mask) != 0
    }

    #[inline(always)]
    fn mask_bits(mask: Mask) -> u32 {
        lanes_set(mask)
    }

    #[inline(always)]
    fn sum(x: U) -> u32 {
        let mut lanes = [0u32; 8];
        // SAFETY: `lanes` has eight elements.
        unsafe { Self::store_u32(lanes.as_mut_ptr(), x) };
        lanes.iter().sum()
    }
}
