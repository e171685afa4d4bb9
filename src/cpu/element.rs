//! How a loop reads and writes each kind of buffer.

use super::vector::{Bf16, F16, Format, Vector, select_f32};
use crate::rule::random::SpanKey;

/// A gradient's element type.
pub(super) trait Grad<V: Vector> {
    const SIZE: usize;

    /// # Safety
    ///
    /// `LANES` elements are readable at `from`.
    unsafe fn load(from: *const u8) -> V::F;
}

/// A moment's element type.
pub(super) trait Moment<V: Vector> {
    const SIZE: usize;

    /// # Safety
    ///
    /// `LANES` elements are readable at `from`.
    unsafe fn load(from: *const u8) -> V::F;

    /// Rounds to the type; the result is what [`Moment::store`] will store.
    fn round(x: V::F, key: SpanKey, entries: V::U) -> V::F;

    /// Stores what [`Moment::round`] gave.
    ///
    /// # Safety
    ///
    /// `LANES` elements are writable at `to`.
    unsafe fn store(to: *mut u8, x: V::F);
}

/// A parameter's element type, and whether it has a master copy.
pub(super) trait Param<V: Vector> {
    const SIZE: usize;
    const HAS_MASTER: bool;

    /// The parameter itself.
    ///
    /// # Safety
    ///
    /// `LANES` elements are readable at `from`.
    unsafe fn load(from: *const u8) -> V::F;

    /// Stores the new value of the lanes in `written`; without a master copy, the others keep their bits.
    ///
    /// # Safety
    ///
    /// `LANES` elements are readable and writable at `to`, and at `master` if there is one.
    unsafe fn store(to: *mut u8, master: *mut f32, x: V::F, written: V::Mask, rounding: Round<V>);
}

/// How a parameter of 16 bits without a master copy is rounded.
#[derive(Clone, Copy)]
pub(super) enum Round<V: Vector> {
    Nearest,
    /// With the random bits of these entries.
    Stochastic(SpanKey, V::U),
}

/// f32.
pub(super) struct Single;
/// A 16-bit format.
pub(super) struct Half<T>(std::marker::PhantomData<T>);
/// A 16-bit format beside an f32 master copy.
pub(super) struct Master<T>(std::marker::PhantomData<T>);

pub(super) type HalfF16 = Half<F16>;
pub(super) type HalfBf16 = Half<Bf16>;
pub(super) type MasterF16 = Master<F16>;
pub(super) type MasterBf16 = Master<Bf16>;

impl<V: Vector> Grad<V> for Single {
    const SIZE: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { V::load_f32(from.cast()) }
    }
}

impl<V: Vector, T: Format<V>> Grad<V> for Half<T> {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> V::F {
        // SAFETY: the caller's promise.
        T::widen(unsafe { V::load_u16(from.cast()) })
    }
}

impl<V: Vector> Moment<V> for Single {
    const SIZE: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { V::load_f32(from.cast()) }
    }

    #[inline(always)]
    fn round(x: V::F, _: SpanKey, _: V::U) -> V::F {
        x
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, x: V::F) {
        // SAFETY: the caller's promise.
        unsafe { V::store_f32(to.cast(), x) };
    }
}

impl<V: Vector> Moment<V> for HalfBf16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> V::F {
        // SAFETY: the caller's promise.
        <Bf16 as Format<V>>::widen(unsafe { V::load_u16(from.cast()) })
    }

    #[inline(always)]
    fn round(x: V::F, key: SpanKey, entries: V::U) -> V::F {
        let random = super::vector::random::<V>(key, entries);
        <Bf16 as Format<V>>::widen(<Bf16 as Format<V>>::stochastic(x, random))
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, x: V::F) {
        // SAFETY: the caller's promise.
        unsafe { V::store_u16(to.cast(), V::shift_right::<16>(V::bits(x))) };
    }
}

impl<V: Vector> Param<V> for Single {
    const SIZE: usize = 4;
    const HAS_MASTER: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { V::load_f32(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, _: *mut f32, x: V::F, written: V::Mask, _: Round<V>) {
        let to = to.cast::<f32>();
        // SAFETY: the caller's promise.
        unsafe { V::store_f32(to, select_f32::<V>(written, x, V::load_f32(to))) };
    }
}

impl<V: Vector, T: Format<V>> Param<V> for Half<T> {
    const SIZE: usize = 2;
    const HAS_MASTER: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> V::F {
        // SAFETY: the caller's promise.
        T::widen(unsafe { V::load_u16(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, _: *mut f32, x: V::F, written: V::Mask, rounding: Round<V>) {
        let to = to.cast::<u16>();
        let rounded = match rounding {
            Round::Nearest => T::nearest(x),
            Round::Stochastic(key, entries) => {
                T::stochastic(x, super::vector::random::<V>(key, entries))
            }
        };
        // SAFETY: the caller's promise.
        unsafe { V::store_u16(to, V::select(written, rounded, V::load_u16(to))) };
    }
}

impl<V: Vector, T: Format<V>> Param<V> for Master<T> {
    const SIZE: usize = 2;
    const HAS_MASTER: bool = true;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> V::F {
        // SAFETY: the caller's promise.
        T::widen(unsafe { V::load_u16(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, master: *mut f32, x: V::F, written: V::Mask, _: Round<V>) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = select_f32::<V>(written, x, V::load_f32(master));
            V::store_f32(master, x);
            V::store_u16(to.cast(), T::nearest(x));
        }
    }
}
