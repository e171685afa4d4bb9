//! How a loop walks over a range of entries: tile by tile, whole groups of lanes first, and the last,
//! incomplete group of a range in a padded copy, through the same code.

use std::mem::MaybeUninit;

use super::pass::Pass;
use crate::config::{Dtype, StateDtype};
use crate::cpu::element::{Moment, Param};
use crate::cpu::prefetch;
use crate::cpu::tier::{Kernels, has_master};
use crate::cpu::vector::{Bf16, F16, Format, MAX_LANES, MIN_LANES, Vector};
use crate::job::Job;

/// Entries that are dealt with before a loop goes on: what is needed twice is still in the nearest cache then.
pub(super) const TILE: usize = 512;
/// Entries of a tile of which nothing is needed twice.
pub(super) const LONG_TILE: usize = 1 << 16;
/// Entries of a tile of which something is widened.
pub(super) const WIDENED: usize = 1024;
/// Groups of a tile, of the vector with the fewest lanes.
pub(super) const TILE_GROUPS: usize = TILE / MIN_LANES;

/// A loop over the groups of a tile, with a body that lasts for a whole walk. Compiled for each tier and the types of
/// parameter and moments; the type of the gradient is none of its business. Given are where some entries lie, the lower
/// half of the first one's index, and how many they are, at most as many as the walk is told. The lanes behind them hold
/// nothing that could be selected.
///
/// # Safety
///
/// The processor has the tier. Whole groups of lanes are readable at the place, and writable where the body writes,
/// enough for all entries. What a body writes elsewhere has room for the results of all entries of its walk, and for a
/// group more.
pub(in crate::cpu) type Tile<B> = unsafe fn(&mut B, &Pass, Place, u32, usize);

/// Widens values of a 16-bit type: [`widen`], compiled for a tier.
pub(in crate::cpu) type Widen = unsafe fn(Dtype, *const u8, usize, *mut f32);

/// The buffers that a body uses besides the moments.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Uses {
    /// It writes nothing, and does not look at the parameter.
    Grad,
    /// It writes the parameter. Moments, which it only reads, are f32 for it.
    Param,
    /// It writes moments and parameter.
    GradAndParam,
}

/// Deals with the entries `start..start + len`. Not compiled for every tier and type, because what it does itself it
/// does once a tile, of `most` entries at most.
///
/// # Safety
///
/// The range lies within the job's tensor; the job's buffers are as large as it says; nobody writes to them in this
/// range meanwhile, and nobody else uses them if the body writes. The tile is for the job's types and of the tier; for
/// bodies that have moments widened, `most` is at most [`WIDENED`].
pub(super) unsafe fn walk<B>(
    kernels: &Kernels,
    job: &Job,
    (start, len): (u64, u64),
    uses: Uses,
    most: usize,
    body: &mut B,
    tile: Tile<B>,
) {
    let most = if job.grad_dtype == Dtype::F32 {
        most
    } else {
        most.min(WIDENED)
    };
    debug_assert!(most <= WIDENED || uses != Uses::Param);
    let sizes = Sizes::of(job, uses);
    let lanes = kernels.lanes;
    debug_assert!((MIN_LANES..=MAX_LANES).contains(&lanes) && lanes.is_power_of_two());
    let state_dtype = dtype_of(job.state_dtype);
    // No body has both gradients and moments widened for it.
    let (mut grads_or_exp_avgs, mut exp_avg_sqs) = (Widened::new(), Widened::new());
    for Span { high, start, len } in spans(start, len) {
        let pass = Pass::new(job, high);
        for first in (0..len).step_by(most) {
            let n = most.min(len - first);
            let index = start as usize + first;
            let mut place = Place::of(job, index);
            // SAFETY: the entries lie within the range (the caller's promise).
            unsafe {
                if sizes.grad > 0 {
                    let from = job.grad.add(index * job.grad_dtype.size());
                    place.grad = grads_or_exp_avgs.of(kernels.widen, job.grad_dtype, from, n);
                }
                if uses == Uses::Param {
                    let (m, v) = (place.exp_avg, place.exp_avg_sq);
                    let (m, v) = (
                        grads_or_exp_avgs.of(kernels.widen, state_dtype, m, n),
                        exp_avg_sqs.of(kernels.widen, state_dtype, v, n),
                    );
                    (place.exp_avg, place.exp_avg_sq) = (m.cast_mut().cast(), v.cast_mut().cast());
                }
            }
            let tail = n & (lanes - 1);
            let whole = n - tail;
            // SAFETY: the entries lie within the range (the caller's promise); a tail has room for a whole group.
            unsafe {
                if whole > 0 {
                    tile(body, &pass, place, index as u32, whole);
                }
                if tail > 0 {
                    let mut padded = Tail::EMPTY;
                    let (from, at) = (place.at(whole, sizes), padded.place());
                    copy(from, at, tail, sizes, Direction::In);
                    tile(body, &pass, at, (index + whole) as u32, tail);
                    copy(at, from, tail, sizes, Direction::Out);
                }
            }
        }
    }
}

fn dtype_of(state: StateDtype) -> Dtype {
    match state {
        StateDtype::F32 => Dtype::F32,
        StateDtype::BF16 => Dtype::BF16,
    }
}

/// The places of some consecutive entries in all buffers.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Place {
    pub(super) param: *mut u8,
    pub(super) grad: *const f32,
    pub(super) exp_avg: *mut u8,
    pub(super) exp_avg_sq: *mut u8,
    pub(super) master: *mut f32,
}

/// How many bytes ahead memory is asked for.
const AHEAD: usize = 2048;

impl Place {
    /// Asks for what comes soon in the buffers of a step.
    #[inline(always)]
    pub(super) fn prefetch<V: Vector, P: Param<V>>(self) {
        self.prefetch_keys();
        self.prefetch_result::<V, P>();
    }

    /// Asks for the gradients and first moments that come soon.
    #[inline(always)]
    pub(super) fn prefetch_keys(self) {
        prefetch(self.grad.cast::<u8>().wrapping_add(AHEAD));
        prefetch(self.exp_avg.wrapping_add(AHEAD));
    }

    /// Asks for the second moments and parameters that come soon.
    #[inline(always)]
    pub(super) fn prefetch_result<V: Vector, P: Param<V>>(self) {
        prefetch(self.exp_avg_sq.wrapping_add(AHEAD));
        prefetch(self.param.wrapping_add(AHEAD));
        if P::HAS_MASTER {
            prefetch(self.master.cast::<u8>().wrapping_add(AHEAD));
        }
    }

    /// Where an entry of a job lies. Its gradient is for the caller to find.
    #[inline(always)]
    pub(super) fn of(job: &Job, entry: usize) -> Self {
        let first = Self {
            param: job.param,
            grad: std::ptr::null(),
            exp_avg: job.exp_avg,
            exp_avg_sq: job.exp_avg_sq,
            master: job.master,
        };
        first.at(
            entry,
            Sizes {
                param: job.param_dtype.size(),
                grad: 0,
                moment: job.state_dtype.size(),
                master: size_of::<f32>(),
            },
        )
    }

    /// `entries` further.
    #[inline(always)]
    pub(super) fn at(self, entries: usize, sizes: Sizes) -> Self {
        Self {
            param: self.param.wrapping_add(entries * sizes.param),
            grad: self.grad.wrapping_byte_add(entries * sizes.grad),
            exp_avg: self.exp_avg.wrapping_add(entries * sizes.moment),
            exp_avg_sq: self.exp_avg_sq.wrapping_add(entries * sizes.moment),
            master: self.master.wrapping_byte_add(entries * sizes.master),
        }
    }

    /// Where a group of lanes lies, and its entries.
    #[inline(always)]
    pub(super) fn group<V: Vector, P: Param<V>, S: Moment<V>>(
        self,
        entries: V::U,
        group: usize,
    ) -> (Self, V::U) {
        let first = group * V::LANES;
        (
            self.at(first, Sizes::of_types::<V, P, S>()),
            entries + V::uint(first as u32),
        )
    }
}

/// Values of a tile as f32, where they are of another type. Not initialised, because most of the time it is not used.
#[repr(C, align(64))]
pub(super) struct Widened([MaybeUninit<f32>; WIDENED]);

impl Widened {
    pub(super) fn new() -> Self {
        Self([MaybeUninit::uninit(); WIDENED])
    }

    /// Where the first `len` values of a type from `from` on are as f32.
    ///
    /// # Safety
    ///
    /// So many are readable there; at most [`WIDENED`] of them, unless they are f32.
    pub(super) unsafe fn of(
        &mut self,
        widen: Widen,
        dtype: Dtype,
        from: *const u8,
        len: usize,
    ) -> *const f32 {
        if dtype == Dtype::F32 {
            return from.cast();
        }
        let to = self.0.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's promise.
        unsafe { widen(dtype, from, len, to) };
        to
    }
}

/// Widens `len` values of a 16-bit type.
///
/// # Safety
///
/// `len` elements of the type are readable at `from`, and writable at `to`.
#[inline(always)]
pub(in crate::cpu) unsafe fn widen<V: Vector>(
    dtype: Dtype,
    from: *const u8,
    len: usize,
    to: *mut f32,
) {
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

    fn place(&mut self) -> Place {
        Place {
            param: self.param.as_mut_ptr().cast(),
            grad: self.grad.as_mut_ptr(),
            exp_avg: self.exp_avg.as_mut_ptr().cast(),
            exp_avg_sq: self.exp_avg_sq.as_mut_ptr().cast(),
            master: self.master.as_mut_ptr(),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    /// Into the padded copy: what the body reads.
    In,
    /// Back again: what it writes.
    Out,
}

/// The sizes of the elements of all buffers; 0 for one that is not used.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    param: usize,
    /// Of gradients, widened to f32.
    grad: usize,
    moment: usize,
    master: usize,
}

impl Sizes {
    fn of(job: &Job, uses: Uses) -> Self {
        let (grad, param) = match uses {
            Uses::Grad => (true, false),
            Uses::Param => (false, true),
            Uses::GradAndParam => (true, true),
        };
        let float = |used: bool| if used { size_of::<f32>() } else { 0 };
        Self {
            param: if param { job.param_dtype.size() } else { 0 },
            grad: float(grad),
            moment: if uses == Uses::Param {
                size_of::<f32>()
            } else {
                job.state_dtype.size()
            },
            master: float(param && has_master(job)),
        }
    }

    #[inline(always)]
    pub(super) fn of_types<V: Vector, P: Param<V>, S: Moment<V>>() -> Self {
        Self {
            param: P::SIZE,
            grad: size_of::<f32>(),
            moment: S::SIZE,
            master: if P::HAS_MASTER { size_of::<f32>() } else { 0 },
        }
    }
}

/// Copies `n` entries of the buffers that a body uses: all inwards, those that it writes outwards.
///
/// # Safety
///
/// `n` is at most `MAX_LANES`; both places have `n` entries of these sizes, `from` readable and `to` writable, of
/// different memory.
#[inline(never)]
unsafe fn copy(from: Place, to: Place, n: usize, sizes: Sizes, direction: Direction) {
    if direction == Direction::Out && sizes.param == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        if direction == Direction::In && sizes.grad > 0 {
            let grad = to.grad.cast_mut().cast::<u8>();
            grad.copy_from_nonoverlapping(from.grad.cast(), n * sizes.grad);
        }
        if sizes.param > 0 {
            to.param
                .copy_from_nonoverlapping(from.param, n * sizes.param);
        }
        to.exp_avg
            .copy_from_nonoverlapping(from.exp_avg, n * sizes.moment);
        to.exp_avg_sq
            .copy_from_nonoverlapping(from.exp_avg_sq, n * sizes.moment);
        if sizes.master > 0 {
            let master = to.master.cast::<u8>();
            master.copy_from_nonoverlapping(from.master.cast(), n * sizes.master);
        }
    }
}

/// Cuts a range where the upper half of the index changes.
#[derive(Clone, Copy)]
struct Spans {
    start: u64,
    end: u64,
}

/// Entries with a common upper half of the index.
struct Span {
    high: u32,
    start: u64,
    len: usize,
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

fn spans(start: u64, len: u64) -> Spans {
    Spans {
        start,
        end: start + len,
    }
}
