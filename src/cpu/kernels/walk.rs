//! How a loop walks over a range of entries: tile by tile, whole groups of lanes first, and the last,
//! incomplete group of a range in a padded copy, through the same code.

use std::mem::MaybeUninit;

use super::pass::Pass;
use crate::backend::Job;
use crate::config::Dtype;
use crate::cpu::element::{Moment, Param, load_grad};
use crate::cpu::prefetch;
use crate::cpu::vector::{MAX_LANES, MIN_LANES, Vector};

/// Entries that are dealt with before a loop goes on: what is needed twice is still in the nearest cache then.
pub(super) const TILE: usize = 512;
/// Groups of a tile, of the vector with the fewest lanes.
pub(super) const TILE_GROUPS: usize = TILE / MIN_LANES;

/// What is done with the groups of a tile. The type of the gradient is none of its business.
pub(super) trait Body<V: Vector, P: Param<V>, S: Moment<V>> {
    /// The gradient is looked at.
    const READS_GRAD: bool;
    /// Moments and parameter are written. Without it, the parameter is not looked at, either.
    const WRITES: bool;

    /// Deals with `len` entries, at most [`TILE`]; `entries` are the lower halves of the first ones' indices. The lanes
    /// behind them hold nothing that could be selected.
    ///
    /// # Safety
    ///
    /// Whole groups of lanes are readable at `place`, and writable where the body writes, enough for `len` entries. What
    /// a body writes elsewhere has room for the results of all entries of its walk, and for a group more.
    unsafe fn tile(&mut self, pass: &Pass, place: Place, entries: V::U, len: usize);
}

/// Deals with the entries `start..start + len`.
///
/// # Safety
///
/// The range lies within the job's tensor; the job's buffers are as large as it says; nobody writes to them in this
/// range meanwhile, and nobody else uses them if the body writes.
#[inline(always)]
pub(super) unsafe fn walk<V, P, S, B>(job: &Job, start: u64, len: u64, body: &mut B)
where
    V: Vector,
    P: Param<V>,
    S: Moment<V>,
    B: Body<V, P, S>,
{
    const { assert!(V::LANES >= MIN_LANES && V::LANES <= MAX_LANES) };
    let mut gradients = Gradients::new();
    let mut tail: Tail;
    for Span { high, start, len } in spans(start, len) {
        let pass = Pass::new(job, high);
        let lanes = V::lane_numbers() + V::uint(start as u32);
        for first in (0..len).step_by(TILE) {
            let tile = TILE.min(len - first);
            let index = start as usize + first;
            let mut place = Place::of::<V, P, S>(job, index);
            if B::READS_GRAD {
                // SAFETY: the entries lie within the range (the caller's promise).
                place.grad = unsafe { gradients.of::<V>(job, index, tile) };
            }
            let mut first_of_part = 0;
            while first_of_part < tile {
                let left = tile - first_of_part;
                let is_tail = left < V::LANES;
                let len = if is_tail {
                    left
                } else {
                    left - left % V::LANES
                };
                let from = place.at::<V, P, S>(first_of_part);
                let at = if is_tail {
                    tail = Tail::EMPTY;
                    tail.place()
                } else {
                    from
                };
                let entries = lanes + V::uint((first + first_of_part) as u32);
                // SAFETY: the entries lie within the range (the caller's promise); a tail has room for a whole
                // group.
                unsafe {
                    if is_tail {
                        copy::<V, P, S, B>(from, at, len, Direction::In);
                    }
                    body.tile(&pass, at, entries, len);
                    if is_tail {
                        copy::<V, P, S, B>(at, from, len, Direction::Out);
                    }
                }
                first_of_part += len;
            }
        }
    }
}

/// The places of some consecutive entries in all buffers.
#[derive(Clone, Copy)]
pub(super) struct Place {
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
    pub(super) fn of<V: Vector, P: Param<V>, S: Moment<V>>(job: &Job, entry: usize) -> Self {
        let first = Self {
            param: job.param,
            grad: std::ptr::null(),
            exp_avg: job.exp_avg,
            exp_avg_sq: job.exp_avg_sq,
            master: job.master,
        };
        first.at::<V, P, S>(entry)
    }

    /// `entries` further.
    #[inline(always)]
    fn at<V: Vector, P: Param<V>, S: Moment<V>>(self, entries: usize) -> Self {
        Self {
            param: self.param.wrapping_add(entries * P::SIZE),
            grad: self.grad.wrapping_add(entries),
            exp_avg: self.exp_avg.wrapping_add(entries * S::SIZE),
            exp_avg_sq: self.exp_avg_sq.wrapping_add(entries * S::SIZE),
            master: if P::HAS_MASTER {
                self.master.wrapping_add(entries)
            } else {
                self.master
            },
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
        (self.at::<V, P, S>(first), entries + V::uint(first as u32))
    }
}

/// The gradients of a tile as f32, where they are of another type. Not initialised, because most of the time it is
/// not used.
#[repr(C, align(64))]
struct Gradients([MaybeUninit<f32>; TILE]);

impl Gradients {
    #[inline(always)]
    fn new() -> Self {
        Self([MaybeUninit::uninit(); TILE])
    }

    /// Where the gradients of a tile's entries are as f32. The last group may be incomplete.
    ///
    /// # Safety
    ///
    /// The entries `first..first + len` lie within the job's tensor; at most [`TILE`] of them.
    #[inline(always)]
    unsafe fn of<V: Vector>(&mut self, job: &Job, first: usize, len: usize) -> *const f32 {
        let size = job.grad_dtype.size();
        let from = job.grad.wrapping_add(first * size);
        let to = self.0.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's promise.
        unsafe {
            match job.grad_dtype {
                Dtype::F32 => return from.cast(),
                Dtype::F16 => widen::<V>(Dtype::F16, from, len, to),
                Dtype::BF16 => widen::<V>(Dtype::BF16, from, len, to),
            }
        }
        to
    }
}

/// Widens gradients of a 16-bit type.
///
/// # Safety
///
/// `len` elements of the type are readable at `from`, and writable at `to`.
#[inline(always)]
unsafe fn widen<V: Vector>(dtype: Dtype, from: *const u8, len: usize, to: *mut f32) {
    let whole = len - len % V::LANES;
    for i in (0..whole).step_by(V::LANES) {
        let from = from.wrapping_add(i * size_of::<u16>());
        prefetch(from.wrapping_add(AHEAD));
        // SAFETY: a group within the caller's range.
        unsafe { V::store_f32(to.add(i), load_grad::<V>(dtype, from)) };
    }
    let rest = len - whole;
    if rest > 0 {
        let (mut halves, mut floats) = ([0u16; MAX_LANES], [0f32; MAX_LANES]);
        // SAFETY: the rest of the caller's range, fewer than a group; both arrays have room for one.
        unsafe {
            halves
                .as_mut_ptr()
                .copy_from_nonoverlapping(from.cast::<u16>().add(whole), rest);
            let widened = load_grad::<V>(dtype, halves.as_ptr().cast());
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

/// Copies `n` entries of the buffers that a body uses.
///
/// # Safety
///
/// `n` is at most `MAX_LANES`; both places have `n` entries, `from` readable and `to` writable.
#[inline(always)]
unsafe fn copy<V, P, S, B>(from: Place, to: Place, n: usize, direction: Direction)
where
    V: Vector,
    P: Param<V>,
    S: Moment<V>,
    B: Body<V, P, S>,
{
    if direction == Direction::Out && !B::WRITES {
        return;
    }
    // SAFETY: the caller's promise; the two places are different memory.
    unsafe {
        if direction == Direction::In && B::READS_GRAD {
            to.grad.cast_mut().copy_from_nonoverlapping(from.grad, n);
        }
        to.exp_avg
            .copy_from_nonoverlapping(from.exp_avg, n * S::SIZE);
        to.exp_avg_sq
            .copy_from_nonoverlapping(from.exp_avg_sq, n * S::SIZE);
        if B::WRITES {
            to.param.copy_from_nonoverlapping(from.param, n * P::SIZE);
            if P::HAS_MASTER {
                to.master.copy_from_nonoverlapping(from.master, n);
            }
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

// An iterator, because a closure would not be compiled for the instruction set of its caller.
impl Iterator for Spans {
    type Item = Span;

    #[inline(always)]
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

#[inline(always)]
fn spans(start: u64, len: u64) -> Spans {
    Spans {
        start,
        end: start + len,
    }
}
