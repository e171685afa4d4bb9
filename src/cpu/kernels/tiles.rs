//! How a loop goes over a range of entries: tile by tile, whole groups of lanes first, and the last, incomplete group
//! of a range in a padded copy, through the same code.

use std::mem::MaybeUninit;

use super::arithmetic::Arithmetic;
use super::pointers::{AHEAD, Pointers, Sizes};
use super::table::{Kernels, has_master};
use crate::config::Dtype;
use crate::cpu::simd::element::{Moment, Single};
use crate::cpu::simd::prefetch;
use crate::cpu::simd::vector::{Bf16, F16, Format, MAX_LANES, MIN_LANES, Vector, magnitude};
use crate::job::Job;
use crate::rule::convert::INFINITE;

/// Entries of a tile at most: a loop that needs something twice finds it in the nearest cache, and values of 16 bits
/// have a place for their widened form.
pub(super) const TILE: usize = 1024;

/// Some entries that a loop is to deal with.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Tile<'a> {
    pub(super) arithmetic: &'a Arithmetic,
    pub(super) pointers: Pointers,
    /// The lower half of the first entry's index.
    pub(super) first: u32,
    /// At most [`TILE`]. The lanes behind them hold nothing that could be selected.
    pub(super) len: usize,
}

impl Tile<'_> {
    /// Groups of lanes, the last of which may be incomplete.
    #[inline(always)]
    pub(super) fn groups<V: Vector>(&self) -> usize {
        self.len.div_ceil(V::LANES)
    }

    /// How many entries have a moment that is not finite, now that all are stored. `largest` has seen them all
    /// ([`with_moments`]): mostly it tells that there are none, in two operations a group.
    ///
    /// # Safety
    ///
    /// Whole groups of the moments are readable, enough for all entries.
    #[inline(always)]
    pub(super) unsafe fn count_nonfinite<V: Vector, S: Moment<V>>(&self, largest: V::U) -> usize {
        let halved = V::shift_right::<1>(largest);
        if !V::any(V::at_least(halved, V::uint(INFINITE >> 1))) {
            return 0;
        }
        let mut finite_lanes = V::uint(0);
        for group in 0..self.groups::<V>() {
            let at = self.pointers.group::<V, Single, S>(group);
            // SAFETY: the caller's promise.
            let (m, v) = unsafe { self.arithmetic.stored::<V, S>(at) };
            finite_lanes = V::tally(finite_lanes, V::finite(m) & V::finite(v));
        }
        // Behind the entries, moments are NaN.
        self.len - V::sum(finite_lanes) as usize
    }

    /// The lower halves of the indices of a group.
    #[inline(always)]
    pub(super) fn entries<V: Vector>(&self, group: usize) -> V::U {
        V::lane_numbers() + V::uint(self.first.wrapping_add((group * V::LANES) as u32))
    }
}

/// What must be looked at of a group's moments for [`Tile::count_nonfinite`].
#[inline(always)]
pub(super) fn with_moments<V: Vector>(largest: V::U, m: V::F, v: V::F) -> V::U {
    V::max(largest, V::max(magnitude::<V>(m), V::bits(v)))
}

/// A loop over the groups of a tile, with a body that lasts for a whole range. Compiled for each instruction set and the
/// types of parameter and moments; the type of the gradient is none of its business.
///
/// # Safety
///
/// The processor has the instruction set. Whole groups of lanes are readable at the pointers, and writable where the
/// body writes, enough for all entries. What a body writes elsewhere has room for the results of all entries, and for a
/// group more.
pub(in crate::cpu) type Loop<B> = unsafe fn(&mut B, Tile<'_>);

/// Widens values of a 16-bit type: [`widen`], compiled for an instruction set.
pub(in crate::cpu) type Widen = unsafe fn(Dtype, *const u8, usize, *mut f32);

/// The buffers that a loop uses.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) grad: bool,
    pub(super) moments: Moments,
    /// It writes the parameter, and the master copy if there is one.
    pub(super) param: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Moments {
    Unused,
    Read,
    Written,
}

/// Deals with the entries `start..start + len`. Not compiled for every instruction set and type, because what it does
/// itself it does once a tile.
///
/// # Safety
///
/// The range lies within the job's tensor; the job's buffers are as large as it says; nobody writes to them in this
/// range meanwhile, and nobody else uses them if the loop writes. The loop is for the job's types, and of the kernels.
pub(super) unsafe fn for_each_tile<B>(
    kernels: &Kernels,
    job: &Job,
    (start, len): (u64, u64),
    access: Access,
    body: &mut B,
    run: Loop<B>,
) {
    let lanes = kernels.lanes;
    debug_assert!((MIN_LANES..=MAX_LANES).contains(&lanes) && lanes.is_power_of_two());
    let sizes = access.sizes(job);
    let mut widened = Widened::new();
    for Span { high, start, len } in spans(start, len) {
        let arithmetic = &Arithmetic::new(job, high);
        for offset in (0..len).step_by(TILE) {
            let n = TILE.min(len - offset);
            let index = start as usize + offset;
            let mut pointers = Pointers::to_entry(job, index);
            if access.grad {
                // SAFETY: the entries lie within the range (the caller's promise).
                pointers.grad = unsafe { widened.grads(kernels.widen, job, index, n) };
            }
            let tail = n & (lanes - 1);
            let whole = n - tail;
            let tile = |pointers, first: usize, len| Tile {
                arithmetic,
                pointers,
                first: first as u32,
                len,
            };
            // SAFETY: the entries lie within the range (the caller's promise); a tail has room for a whole group.
            unsafe {
                if whole > 0 {
                    run(body, tile(pointers, index, whole));
                }
                if tail > 0 {
                    let mut padded = Tail::EMPTY;
                    let (from, at) = (pointers.advanced(whole, sizes), padded.pointers());
                    copy_in(from, at, tail, sizes);
                    run(body, tile(at, index + whole, tail));
                    copy_out(at, from, tail, sizes, access);
                }
            }
        }
    }
}

impl Access {
    fn sizes(self, job: &Job) -> Sizes {
        let if_used = |used: bool, size: usize| if used { size } else { 0 };
        Sizes {
            param: if_used(self.param, job.param_dtype.size()),
            grad: if_used(self.grad, size_of::<f32>()),
            moment: if_used(self.moments != Moments::Unused, job.state_dtype.size()),
            master: if_used(self.param && has_master(job), size_of::<f32>()),
        }
    }
}

/// Gradients of a tile as f32, where they are of another type. Not initialised, because most of the time it is not used.
#[repr(C, align(64))]
pub(super) struct Widened([MaybeUninit<f32>; TILE]);

impl Widened {
    pub(super) fn new() -> Self {
        Self([MaybeUninit::uninit(); TILE])
    }

    /// Where the gradients of `len` entries from `index` on are as f32.
    ///
    /// # Safety
    ///
    /// They lie within the job's tensor, and are at most [`TILE`] unless they are f32.
    pub(super) unsafe fn grads(
        &mut self,
        widen: Widen,
        job: &Job,
        index: usize,
        len: usize,
    ) -> *const f32 {
        // SAFETY: an entry of the tensor (the caller's promise).
        let from = unsafe { job.grad.add(index * job.grad_dtype.size()) };
        if job.grad_dtype == Dtype::F32 {
            return from.cast();
        }
        let to = self.0.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's promise.
        unsafe { widen(job.grad_dtype, from, len, to) };
        to
    }
}

/// Widens `len` values of a 16-bit type.
///
/// # Safety
///
/// `len` elements of the type are readable at `from`, and writable at `to`.
#[inline(always)]
pub(super) unsafe fn widen<V: Vector>(dtype: Dtype, from: *const u8, len: usize, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            Dtype::F16 => widen_from::<V, F16>(from.cast(), len, to),
            _ => widen_from::<V, Bf16>(from.cast(), len, to),
        }
    }
}

/// # Safety
///
/// As for [`widen`].
#[inline(always)]
unsafe fn widen_from<V: Vector, T: Format<V>>(from: *const u16, len: usize, to: *mut f32) {
    let whole = len - len % V::LANES;
    for i in (0..whole).step_by(V::LANES) {
        let from = from.wrapping_add(i);
        prefetch(from.cast::<u8>().wrapping_add(AHEAD));
        // SAFETY: a group within the caller's range.
        unsafe { V::store_f32(to.add(i), T::widen(V::load_u16(from))) };
    }
    let rest = len - whole;
    if rest > 0 {
        let (mut halves, mut floats) = ([0u16; MAX_LANES], [0f32; MAX_LANES]);
        // SAFETY: the rest of the caller's range, fewer than a group; both arrays have room for one.
        unsafe {
            halves
                .as_mut_ptr()
                .copy_from_nonoverlapping(from.add(whole), rest);
            let widened = T::widen(V::load_u16(halves.as_ptr()));
            V::store_f32(floats.as_mut_ptr(), widened);
            to.add(whole)
                .copy_from_nonoverlapping(floats.as_ptr(), rest);
        }
    }
}

/// Room for one group of lanes of each buffer.
#[repr(C, align(64))]
struct Tail {
    param: [u32; MAX_LANES],
    grad: [f32; MAX_LANES],
    exp_avg: [u32; MAX_LANES],
    exp_avg_sq: [u32; MAX_LANES],
    master: [f32; MAX_LANES],
}

impl Tail {
    /// Of entries that do not move, whatever the filter: the moment is NaN.
    const EMPTY: Self = Self {
        param: [0; MAX_LANES],
        grad: [0.0; MAX_LANES],
        exp_avg: [u32::MAX; MAX_LANES],
        exp_avg_sq: [0; MAX_LANES],
        master: [0.0; MAX_LANES],
    };

    fn pointers(&mut self) -> Pointers {
        Pointers {
            param: self.param.as_mut_ptr().cast(),
            grad: self.grad.as_mut_ptr(),
            exp_avg: self.exp_avg.as_mut_ptr().cast(),
            exp_avg_sq: self.exp_avg_sq.as_mut_ptr().cast(),
            master: self.master.as_mut_ptr(),
        }
    }
}

/// Copies `n` entries of the buffers that a loop uses.
///
/// # Safety
///
/// `n` is at most [`MAX_LANES`]; both places have `n` entries of these sizes, `from` readable and `to` writable, of
/// different memory.
#[inline(never)]
unsafe fn copy_in(from: Pointers, to: Pointers, n: usize, sizes: Sizes) {
    // SAFETY: the caller's promise; an unused buffer has elements of no bytes.
    unsafe {
        if sizes.grad > 0 {
            let grad = to.grad.cast_mut().cast::<u8>();
            grad.copy_from_nonoverlapping(from.grad.cast(), n * sizes.grad);
        }
        copy_moments(from, to, n, sizes);
        copy_param(from, to, n, sizes);
    }
}

/// Copies back what a loop has written.
///
/// # Safety
///
/// As for [`copy_in`].
#[inline(never)]
unsafe fn copy_out(from: Pointers, to: Pointers, n: usize, sizes: Sizes, access: Access) {
    // SAFETY: the caller's promise.
    unsafe {
        if access.moments == Moments::Written {
            copy_moments(from, to, n, sizes);
        }
        copy_param(from, to, n, sizes);
    }
}

/// # Safety
///
/// As for [`copy_in`].
unsafe fn copy_moments(from: Pointers, to: Pointers, n: usize, sizes: Sizes) {
    // SAFETY: the caller's promise.
    unsafe {
        to.exp_avg
            .copy_from_nonoverlapping(from.exp_avg, n * sizes.moment);
        to.exp_avg_sq
            .copy_from_nonoverlapping(from.exp_avg_sq, n * sizes.moment);
    }
}

/// # Safety
///
/// As for [`copy_in`].
unsafe fn copy_param(from: Pointers, to: Pointers, n: usize, sizes: Sizes) {
    // SAFETY: the caller's promise.
    unsafe {
        if sizes.param > 0 {
            to.param
                .copy_from_nonoverlapping(from.param, n * sizes.param);
        }
        if sizes.master > 0 {
            let master = to.master.cast::<u8>();
            master.copy_from_nonoverlapping(from.master.cast(), n * sizes.master);
        }
    }
}

/// Cuts a range where the upper half of the index changes.
#[derive(Clone, Copy)]
pub(super) struct Spans {
    start: u64,
    end: u64,
}

/// Entries with a common upper half of the index.
pub(super) struct Span {
    pub(super) high: u32,
    pub(super) start: u64,
    pub(super) len: usize,
}

impl Iterator for Spans {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        let start = self.start;
        self.start = self.end.min((start | u64::from(u32::MAX)) + 1);
        (start < self.end).then(|| Span {
            high: (start >> 32) as u32,
            start,
            len: (self.start - start) as usize,
        })
    }
}

pub(super) fn spans(start: u64, len: u64) -> Spans {
    Spans {
        start,
        end: start + len,
    }
}
