//! How a loop reads and writes each kind of buffer.

use super::vector::{Bf16, F16, Format, Vector};

/// A moment's element type.
pub(in crate::cpu) trait Moment<V: Vector> {
    const SIZE: usize;
    /// Rounding takes random bits.
    const STOCHASTIC: bool;

    /// # Safety
    ///
    /// `LANES` elements are readable at `from`.
    unsafe fn load(from: *const u8) -> V::F;

    /// Rounds the result of an operation to the type; [`Moment::store`] will store that. The upper half of `random` is
    /// used where the rounding takes random bits.
    fn round(x: V::F, random: V::U) -> V::F;

    /// Stores what [`Moment::round`] gave.
    ///
    /// # Safety
    ///
    /// `LANES` elements are writable at `to`.
    unsafe fn store(to: *mut u8, x: V::F);
}

/// A parameter's element type, and whether it has a master copy.
///
/// Values travel as the bits in which they are kept: those of the master copy where there is one. Halves are
/// in the low bits, and what is above them does not matter.
pub(in crate::cpu) trait Param<V: Vector> {
    const SIZE: usize;
    const HAS_MASTER: bool;

    /// # Safety
    ///
    /// `LANES` elements are readable at `param`, and at `master` if there is one.
    unsafe fn load(param: *const u8, master: *const f32) -> V::U;

    fn decode(bits: V::U) -> V::F;

    /// Rounds the result of an operation to the type.
    fn encode(x: V::F, rounding: Round<V>) -> V::U;

    /// Stores `new` in the lanes that are `written`. `old` is what [`Param::load`] gave; without a master copy,
    /// the other lanes keep their bits. A parameter with a master copy becomes its rounding in all lanes.
    ///
    /// # Safety
    ///
    /// `LANES` elements are writable at `param`, and at `master` if there is one.
    unsafe fn store(param: *mut u8, master: *mut f32, new: V::U, old: V::U, written: V::Mask);

    /// One entry, as [`Param::load`] gives it.
    ///
    /// # Safety
    ///
    /// The entry is readable at `param`, and at `master` if there is one.
    unsafe fn load_entry(param: *const u8, master: *const f32, entry: usize) -> u32;

    /// What the parameter itself becomes, given the bits in which its value is kept.
    fn param_bits(kept: V::U) -> V::U;

    /// Stores one entry: the bits in which its value is kept, and those of the parameter itself.
    ///
    /// # Safety
    ///
    /// The entry is writable at `param`, and at `master` if there is one.
    unsafe fn store_entry(param: *mut u8, master: *mut f32, entry: usize, kept: u32, bits: u32);
}

/// How a parameter of 16 bits without a master copy is rounded.
#[derive(Clone, Copy)]
pub(in crate::cpu) enum Round<V: Vector> {
    Nearest,
    /// With these random bits, of which the upper half matters.
    Stochastic(V::U),
}

/// f32.
pub(in crate::cpu) struct Single;
/// A 16-bit format.
pub(in crate::cpu) struct Half<T>(std::marker::PhantomData<T>);
/// A 16-bit format beside an f32 master copy.
pub(in crate::cpu) struct Master<T>(std::marker::PhantomData<T>);

pub(in crate::cpu) type HalfF16 = Half<F16>;
pub(in crate::cpu) type HalfBf16 = Half<Bf16>;
pub(in crate::cpu) type MasterF16 = Master<F16>;
pub(in crate::cpu) type MasterBf16 = Master<Bf16>;

impl<V: Vector> Moment<V> for Single {
    const SIZE: usize = 4;
    const STOCHASTIC: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { V::load_f32(from.cast()) }
    }

    #[inline(always)]
    fn round(x: V::F, _: V::U) -> V::F {
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
    const STOCHASTIC: bool = true;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> V::F {
        // SAFETY: the caller's promise.
        <Bf16 as Format<V>>::widen(unsafe { V::load_u16(from.cast()) })
    }

    #[inline(always)]
    fn round(x: V::F, random: V::U) -> V::F {
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
    unsafe fn load(param: *const u8, _: *const f32) -> V::U {
        // SAFETY: the caller's promise.
        V::bits(unsafe { V::load_f32(param.cast()) })
    }

    #[inline(always)]
    fn decode(bits: V::U) -> V::F {
        V::from_bits(bits)
    }

    #[inline(always)]
    fn encode(x: V::F, _: Round<V>) -> V::U {
        V::bits(x)
    }

    #[inline(always)]
    unsafe fn store(param: *mut u8, _: *mut f32, new: V::U, old: V::U, written: V::Mask) {
        // SAFETY: the caller's promise.
        unsafe { V::store_u32(param.cast(), V::select(written, new, old)) };
    }

    #[inline(always)]
    unsafe fn load_entry(param: *const u8, _: *const f32, entry: usize) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { param.cast::<u32>().add(entry).read() }
    }

    #[inline(always)]
    fn param_bits(kept: V::U) -> V::U {
        kept
    }

    #[inline(always)]
    unsafe fn store_entry(param: *mut u8, _: *mut f32, entry: usize, kept: u32, _: u32) {
        // SAFETY: the caller's promise.
        unsafe { param.cast::<u32>().add(entry).write(kept) };
    }
}

impl<V: Vector, T: Format<V>> Param<V> for Half<T> {
    const SIZE: usize = 2;
    const HAS_MASTER: bool = false;

    #[inline(always)]
    unsafe fn load(param: *const u8, _: *const f32) -> V::U {
        // SAFETY: the caller's promise.
        unsafe { V::load_u16(param.cast()) }
    }

    #[inline(always)]
    fn decode(bits: V::U) -> V::F {
        T::widen(bits)
    }

    #[inline(always)]
    fn encode(x: V::F, rounding: Round<V>) -> V::U {
        match rounding {
            Round::Nearest => T::nearest(x),
            Round::Stochastic(random) => T::stochastic(x, random),
        }
    }

    #[inline(always)]
    unsafe fn store(param: *mut u8, _: *mut f32, new: V::U, old: V::U, written: V::Mask) {
        // SAFETY: the caller's promise.
        unsafe { V::store_u16(param.cast(), V::select(written, new, old)) };
    }

    #[inline(always)]
    unsafe fn load_entry(param: *const u8, _: *const f32, entry: usize) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { param.cast::<u16>().add(entry).read() }.into()
    }

    #[inline(always)]
    fn param_bits(kept: V::U) -> V::U {
        kept
    }

    #[inline(always)]
    unsafe fn store_entry(param: *mut u8, _: *mut f32, entry: usize, kept: u32, _: u32) {
        // SAFETY: the caller's promise.
        unsafe { param.cast::<u16>().add(entry).write(kept as u16) };
    }
}

impl<V: Vector, T: Format<V>> Param<V> for Master<T> {
    const SIZE: usize = 2;
    const HAS_MASTER: bool = true;

    #[inline(always)]
    unsafe fn load(_: *const u8, master: *const f32) -> V::U {
        // SAFETY: the caller's promise.
        V::bits(unsafe { V::load_f32(master) })
    }

    #[inline(always)]
    fn decode(bits: V::U) -> V::F {
        V::from_bits(bits)
    }

    #[inline(always)]
    fn encode(x: V::F, _: Round<V>) -> V::U {
        V::bits(x)
    }

    #[inline(always)]
    unsafe fn store(param: *mut u8, master: *mut f32, new: V::U, old: V::U, written: V::Mask) {
        let kept = V::select(written, new, old);
        // SAFETY: the caller's promise.
        unsafe {
            V::store_u32(master.cast(), kept);
            V::store_u16(param.cast(), T::nearest(V::from_bits(kept)));
        }
    }

    #[inline(always)]
    unsafe fn load_entry(_: *const u8, master: *const f32, entry: usize) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { master.add(entry).read() }.to_bits()
    }

    #[inline(always)]
    fn param_bits(kept: V::U) -> V::U {
        T::nearest(V::from_bits(kept))
    }

    #[inline(always)]
    unsafe fn store_entry(param: *mut u8, master: *mut f32, entry: usize, kept: u32, bits: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            master.cast::<u32>().add(entry).write(kept);
            param.cast::<u16>().add(entry).write(bits as u16);
        }
    }
}
