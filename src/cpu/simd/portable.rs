//! The vector of every target: arrays whose loops the compiler turns into vector instructions, as wide as the
//! function that they are inlined into may use.

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Sub};

use std::sync::atomic::{Ordering, compiler_fence};

use super::vector::Vector;

/// Lanes of the vector.
const N: usize = 4;

/// Lanes of 128 bits, what the baselines of x86-64 and aarch64 have.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Lanes;

#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(in crate::cpu) struct F([f32; N]);

#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(in crate::cpu) struct U([u32; N]);

/// All bits of a lane set, or none.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(in crate::cpu) struct Mask([u32; N]);

// Written out, not looped: loops over lanes would have to be unrolled again before anything else can be
// optimised, in every instance of every kernel.

#[inline(always)]
fn map<A: Copy, B>(a: [A; N], f: impl Fn(A) -> B) -> [B; N] {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

#[inline(always)]
fn zip<A: Copy, B>(a: [A; N], b: [A; N], f: impl Fn(A, A) -> B) -> [B; N] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

macro_rules! operators {
    ($($vector:ident: $($operator:ident $method:ident $f:expr),+;)+) => {$($(
        impl $operator for $vector {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(zip(self.0, other.0, $f))
            }
        }
    )+)+};
}
operators! {
    F: Add add |a, b| a + b, Sub sub |a, b| a - b, Mul mul |a, b| a * b, Div div |a, b| a / b;
    U: Add add u32::wrapping_add, Sub sub u32::wrapping_sub, Mul mul u32::wrapping_mul,
       BitAnd bitand |a, b| a & b, BitOr bitor |a, b| a | b, BitXor bitxor |a, b| a ^ b;
    Mask: BitAnd bitand |a, b| a & b, BitOr bitor |a, b| a | b, BitXor bitxor |a, b| a ^ b;
}

impl Vector for Lanes {
    const LANES: usize = N;
    const BRANCHES: bool = true;
    type F = F;
    type U = U;
    type Mask = Mask;

    #[inline(always)]
    fn float(x: f32) -> F {
        F([x; N])
    }

    #[inline(always)]
    fn uint(x: u32) -> U {
        U([x; N])
    }

    #[inline(always)]
    fn lane_numbers() -> U {
        U([0, 1, 2, 3])
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> F {
        // SAFETY: `N` elements are readable (the caller's promise).
        F(unsafe { from.cast::<[f32; N]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store_f32(to: *mut f32, x: F) {
        // SAFETY: `N` elements are writable (the caller's promise).
        unsafe { to.cast::<[f32; N]>().write_unaligned(x.0) };
    }

    #[inline(always)]
    unsafe fn load_u16(from: *const u16) -> U {
        // SAFETY: `N` elements are readable (the caller's promise).
        let halves = unsafe { from.cast::<[u16; N]>().read_unaligned() };
        U(map(halves, u32::from))
    }

    #[inline(always)]
    unsafe fn store_u16(to: *mut u16, x: U) {
        // SAFETY: `N` elements are writable (the caller's promise).
        unsafe {
            to.cast::<[u16; N]>()
                .write_unaligned(map(x.0, |x| x as u16))
        };
    }

    #[inline(always)]
    unsafe fn store_u32(to: *mut u32, x: U) {
        // SAFETY: `N` elements are writable (the caller's promise).
        unsafe { to.cast::<[u32; N]>().write_unaligned(x.0) };
    }

    #[inline(always)]
    unsafe fn store_compressed(to: *mut u32, mask: Mask, x: U) {
        let mut place = 0;
        for (x, set) in x.0.into_iter().zip(mask.0) {
            // SAFETY: `N` elements are writable (the caller's promise), and at most as many lanes came before.
            unsafe { to.add(place).write(x) };
            place += usize::from(set != 0);
        }
    }

    #[inline(always)]
    fn sqrt(x: F) -> F {
        F(map(x.0, f32::sqrt))
    }

    #[inline(always)]
    fn bits(x: F) -> U {
        U(map(x.0, f32::to_bits))
    }

    #[inline(always)]
    fn from_bits(x: U) -> F {
        F(map(x.0, f32::from_bits))
    }

    #[inline(always)]
    fn to_float(x: U) -> F {
        F(map(x.0, |x| x as i32 as f32))
    }

    #[inline(always)]
    fn truncate(x: F) -> U {
        // SAFETY: the values are in [0, 2^31) (the trait's contract): every caller clamps them first.
        U(map(x.0, |x| unsafe { x.to_int_unchecked::<i32>() } as u32))
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(x: U) -> U {
        U(map(x.0, |x| x >> BITS))
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(x: U) -> U {
        U(map(x.0, |x| x << BITS))
    }

    #[inline(always)]
    fn max(x: U, y: U) -> U {
        U(zip(x.0, y.0, u32::max))
    }

    #[inline(always)]
    fn less(x: U, y: U) -> Mask {
        // Signed, because that is what SSE2 can compare.
        Mask(zip(x.0, y.0, |x, y| {
            if (x as i32) < (y as i32) { u32::MAX } else { 0 }
        }))
    }

    #[inline(always)]
    fn at_least(x: U, y: U) -> Mask {
        Mask(zip(x.0, y.0, |x, y| {
            if (x as i32) < (y as i32) { 0 } else { u32::MAX }
        }))
    }

    #[inline(always)]
    fn equal(x: U, y: U) -> Mask {
        Mask(zip(x.0, y.0, |x, y| if x == y { u32::MAX } else { 0 }))
    }

    #[inline(always)]
    fn select(mask: Mask, x: U, y: U) -> U {
        let pick = |i: usize| if mask.0[i] != 0 { x.0[i] } else { y.0[i] };
        U([pick(0), pick(1), pick(2), pick(3)])
    }

    #[inline(always)]
    fn tally(counts: U, mask: Mask) -> U {
        counts - U(mask.0)
    }

    #[inline(always)]
    fn any(mask: Mask) -> bool {
        let [a, b, c, d] = mask.0;
        a | b | c | d != 0
    }

    #[inline(always)]
    fn mask_bits(mask: Mask) -> u32 {
        let [a, b, c, d] = mask.0;
        a & 1 | b & 2 | c & 4 | d & 8
    }

    #[inline(always)]
    fn end_group() {
        // A group is a vector already. Else the loops become several times as long, and no faster.
        compiler_fence(Ordering::SeqCst);
    }

    #[inline(always)]
    fn sum(x: U) -> u32 {
        let [a, b, c, d] = x.0;
        a + b + c + d
    }
}
