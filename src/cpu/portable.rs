//! The vector of every target: arrays whose loops the compiler turns into vector instructions, as wide as the
//! function that they are inlined into may use.

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Sub};

use super::vector::Vector;

/// `N` lanes.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<const N: usize>;

#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct F<const N: usize>([f32; N]);

#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct U<const N: usize>([u32; N]);

/// All bits of a lane set, or none.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Mask<const N: usize>([u32; N]);

#[inline(always)]
fn map<A: Copy, B: Copy + Default, const N: usize>(a: [A; N], f: impl Fn(A) -> B) -> [B; N] {
    let mut out = [B::default(); N];
    for i in 0..N {
        out[i] = f(a[i]);
    }
    out
}

#[inline(always)]
fn zip<A: Copy, B: Copy + Default, const N: usize>(
    a: [A; N],
    b: [A; N],
    f: impl Fn(A, A) -> B,
) -> [B; N] {
    let mut out = [B::default(); N];
    for i in 0..N {
        out[i] = f(a[i], b[i]);
    }
    out
}

macro_rules! operators {
    ($($vector:ident: $($operator:ident $method:ident $f:expr),+;)+) => {$($(
        impl<const N: usize> $operator for $vector<N> {
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
    Mask: BitAnd bitand |a, b| a & b, BitOr bitor |a, b| a | b;
}

impl<const N: usize> Vector for Lanes<N> {
    const LANES: usize = N;
    type F = F<N>;
    type U = U<N>;
    type Mask = Mask<N>;

    #[inline(always)]
    fn float(x: f32) -> F<N> {
        F([x; N])
    }

    #[inline(always)]
    fn uint(x: u32) -> U<N> {
        U([x; N])
    }

    #[inline(always)]
    fn lane_numbers() -> U<N> {
        let mut lanes = [0; N];
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = i as u32;
        }
        U(lanes)
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> F<N> {
        // SAFETY: `N` elements are readable (the caller's promise).
        F(unsafe { from.cast::<[f32; N]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store_f32(to: *mut f32, x: F<N>) {
        // SAFETY: `N` elements are writable (the caller's promise).
        unsafe { to.cast::<[f32; N]>().write_unaligned(x.0) };
    }

    #[inline(always)]
    unsafe fn load_u16(from: *const u16) -> U<N> {
        // SAFETY: `N` elements are readable (the caller's promise).
        let halves = unsafe { from.cast::<[u16; N]>().read_unaligned() };
        U(map(halves, u32::from))
    }

    #[inline(always)]
    unsafe fn store_u16(to: *mut u16, x: U<N>) {
        // SAFETY: `N` elements are writable (the caller's promise).
        unsafe {
            to.cast::<[u16; N]>()
                .write_unaligned(map(x.0, |x| x as u16))
        };
    }

    #[inline(always)]
    unsafe fn store_u32(to: *mut u32, x: U<N>) {
        // SAFETY: `N` elements are writable (the caller's promise).
        unsafe { to.cast::<[u32; N]>().write_unaligned(x.0) };
    }

    #[inline(always)]
    fn sqrt(x: F<N>) -> F<N> {
        F(map(x.0, f32::sqrt))
    }

    #[inline(always)]
    fn bits(x: F<N>) -> U<N> {
        U(map(x.0, f32::to_bits))
    }

    #[inline(always)]
    fn from_bits(x: U<N>) -> F<N> {
        F(map(x.0, f32::from_bits))
    }

    #[inline(always)]
    fn to_float(x: U<N>) -> F<N> {
        F(map(x.0, |x| x as i32 as f32))
    }

    #[inline(always)]
    fn truncate(x: F<N>) -> U<N> {
        // SAFETY: the values are in [0, 2^31) (the trait's contract): every caller clamps them first.
        U(map(x.0, |x| unsafe { x.to_int_unchecked::<i32>() } as u32))
    }

    #[inline(always)]
    fn shift_right<const BITS: u32>(x: U<N>) -> U<N> {
        U(map(x.0, |x| x >> BITS))
    }

    #[inline(always)]
    fn shift_left<const BITS: u32>(x: U<N>) -> U<N> {
        U(map(x.0, |x| x << BITS))
    }

    #[inline(always)]
    fn less(x: U<N>, y: U<N>) -> Mask<N> {
        // Signed, because that is what SSE2 can compare.
        Mask(zip(x.0, y.0, |x, y| {
            if (x as i32) < (y as i32) { u32::MAX } else { 0 }
        }))
    }

    #[inline(always)]
    fn at_least(x: U<N>, y: U<N>) -> Mask<N> {
        Mask(zip(x.0, y.0, |x, y| {
            if (x as i32) < (y as i32) { 0 } else { u32::MAX }
        }))
    }

    #[inline(always)]
    fn select(mask: Mask<N>, x: U<N>, y: U<N>) -> U<N> {
        let mut out = y.0;
        for (i, out) in out.iter_mut().enumerate() {
            if mask.0[i] != 0 {
                *out = x.0[i];
            }
        }
        U(out)
    }

    #[inline(always)]
    fn tally(counts: U<N>, mask: Mask<N>) -> U<N> {
        counts - U(mask.0)
    }

    #[inline(always)]
    fn any(mask: Mask<N>) -> bool {
        mask.0.iter().fold(0, |any, lane| any | lane) != 0
    }

    #[inline(always)]
    fn sum(x: U<N>) -> u32 {
        x.0.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
    }
}
