//! The loops that look at keys and change nothing.

use super::pass::Pass;
use super::walk::{Body, Place, walk};
use crate::backend::Job;
use crate::config::Filter;
use crate::cpu::element::{Moment, Single, load_grad};
use crate::cpu::sample::LINE;
use crate::cpu::vector::{MAX_LANES, Vector};

/// The keys of one group of lanes.
///
/// # Safety
///
/// A group of lanes is readable at `place`.
#[inline(always)]
unsafe fn keys_of<V: Vector, S: Moment<V>, const MOMENTUM: bool>(
    pass: &Pass,
    place: Place,
    entries: V::U,
) -> V::U {
    // SAFETY: the caller's promise.
    let (g, m, v) = unsafe { pass.moments::<V, S>(place, entries) };
    let (filtered, may_move) = pass.filtered::<V, MOMENTUM>(g, m, v, entries);
    V::keep(may_move, filtered)
}

/// Writes the keys that the entries `start..start + len` will have in this step to `keys`. Changes nothing.
///
/// # Safety
///
/// The range lies within the job's tensor; the job's buffers are as large as it says, and nobody writes to them in
/// this range. `keys` has room for `len` and [`MAX_LANES`] more.
#[inline(always)]
pub(in crate::cpu) unsafe fn keys<V: Vector, S: Moment<V>>(
    job: &Job,
    start: u64,
    len: usize,
    keys: *mut u32,
) {
    // SAFETY: the caller's promise. The parameter is not looked at, so any type will do for it.
    unsafe {
        if job.filter == Filter::Momentum {
            walk::<V, Single, S, _>(job, start, len as u64, &mut Keys::<true> { to: keys });
        } else {
            walk::<V, Single, S, _>(job, start, len as u64, &mut Keys::<false> { to: keys });
        }
    }
}

struct Keys<const MOMENTUM: bool> {
    to: *mut u32,
}

impl<V: Vector, S: Moment<V>, const MOMENTUM: bool> Body<V, Single, S> for Keys<MOMENTUM> {
    const READS_GRAD: bool = true;
    const WRITES: bool = false;

    #[inline(always)]
    unsafe fn tile(&mut self, pass: &Pass, place: Place, entries: V::U, len: usize) {
        for group in 0..len.div_ceil(V::LANES) {
            let (place, entries) = place.group::<V, Single, S>(entries, group);
            // SAFETY: the caller's promise; there is room for all keys and a group more.
            unsafe {
                let keys = keys_of::<V, S, MOMENTUM>(pass, place, entries);
                V::store_u32(self.to.add(group * V::LANES), keys);
            }
        }
        self.to = self.to.wrapping_add(len);
    }
}

/// Writes the keys of some lines of [`LINE`] entries to `keys`, for a sample: where a line crosses a multiple of 2^32
/// entries, random bits behind it are not those of the step.
///
/// # Safety
///
/// As for [`keys()`], for each line; `keys` has room for all lines.
#[inline(always)]
pub(in crate::cpu) unsafe fn lines<V: Vector, S: Moment<V>>(
    job: &Job,
    starts: &[u64],
    keys: *mut u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if job.filter == Filter::Momentum {
            lines_by::<V, S, true>(job, starts, keys);
        } else {
            lines_by::<V, S, false>(job, starts, keys);
        }
    }
}

/// # Safety
///
/// As for [`lines`].
#[inline(always)]
unsafe fn lines_by<V: Vector, S: Moment<V>, const MOMENTUM: bool>(
    job: &Job,
    starts: &[u64],
    keys: *mut u32,
) {
    const { assert!(LINE.is_multiple_of(MAX_LANES)) };
    let mut grad = [0f32; LINE];
    let mut to = keys;
    for &start in starts {
        let pass = Pass::new(job, (start >> 32) as u32);
        let mut place = Place::of::<V, Single, S>(job, start as usize);
        place.grad = grad.as_ptr();
        let size = job.grad_dtype.size();
        let from = job.grad.wrapping_add(start as usize * size);
        let entries = V::lane_numbers() + V::uint(start as u32);
        for i in (0..LINE).step_by(V::LANES) {
            // SAFETY: the line lies within the tensor (the caller's promise), and is a multiple of a group.
            unsafe {
                let widened = load_grad::<V>(job.grad_dtype, from.add(i * size));
                V::store_f32(grad.as_mut_ptr().add(i), widened);
            }
        }
        for group in 0..LINE / V::LANES {
            let (place, entries) = place.group::<V, Single, S>(entries, group);
            // SAFETY: as above; there is room for the line's keys.
            unsafe {
                let keys = keys_of::<V, S, MOMENTUM>(&pass, place, entries);
                V::store_u32(to, keys);
                to = to.add(V::LANES);
            }
        }
    }
}

/// Keys that a threshold is expected to lie between, both included.
pub(in crate::cpu) type Bracket = (u32, u32);

/// What [`collect`] found.
pub(in crate::cpu) struct Collected {
    /// Keys above the bracket.
    pub(in crate::cpu) above: u64,
    /// Keys inside it.
    pub(in crate::cpu) inside: usize,
}

/// Sorts the keys of the entries `start..start + len`, fewer than 2^28, into those above the bracket, which are
/// counted, and those inside it, which are written to `found`. Changes nothing.
///
/// # Safety
///
/// As for [`keys()`]; `found` has room for `len` keys and [`MAX_LANES`] more.
#[inline(always)]
pub(in crate::cpu) unsafe fn collect<V: Vector, S: Moment<V>>(
    job: &Job,
    start: u64,
    len: usize,
    bracket: Bracket,
    found: *mut u32,
) -> Collected {
    // SAFETY: the caller's promise.
    unsafe {
        if job.filter == Filter::Momentum {
            collect_by::<V, S, true>(job, start, len, bracket, found)
        } else {
            collect_by::<V, S, false>(job, start, len, bracket, found)
        }
    }
}

/// # Safety
///
/// As for [`collect`].
#[inline(always)]
unsafe fn collect_by<V: Vector, S: Moment<V>, const MOMENTUM: bool>(
    job: &Job,
    start: u64,
    len: usize,
    bracket: Bracket,
    found: *mut u32,
) -> Collected {
    let mut body = Collect::<V, MOMENTUM> {
        sift: Sift::new(bracket, found),
    };
    // SAFETY: the caller's promise. The parameter is not looked at, so any type will do for it.
    unsafe { walk::<V, Single, S, _>(job, start, len as u64, &mut body) };
    body.sift.collected()
}

struct Collect<V: Vector, const MOMENTUM: bool> {
    sift: Sift<V>,
}

impl<V: Vector, S: Moment<V>, const MOMENTUM: bool> Body<V, Single, S> for Collect<V, MOMENTUM> {
    const READS_GRAD: bool = true;
    const WRITES: bool = false;

    #[inline(always)]
    unsafe fn tile(&mut self, pass: &Pass, place: Place, entries: V::U, len: usize) {
        let mut sift = self.sift;
        for group in 0..len.div_ceil(V::LANES) {
            let (place, entries) = place.group::<V, Single, S>(entries, group);
            place.prefetch_keys();
            // SAFETY: the caller's promise; `found` has room for as many keys as there are entries, and for one more
            // group.
            unsafe {
                let keys = keys_of::<V, S, MOMENTUM>(pass, place, entries);
                // Of an incomplete group, the lanes behind the end do not count.
                sift.add(keys, (len - group * V::LANES).min(V::LANES));
            }
        }
        self.sift = sift;
    }
}

/// Sorts keys like [`collect`].
///
/// # Safety
///
/// `len` keys are readable at `keys`; `found` has room for as many and [`MAX_LANES`] more.
#[inline(always)]
pub(in crate::cpu) unsafe fn sift<V: Vector>(
    keys: *const u32,
    len: usize,
    bracket: Bracket,
    found: *mut u32,
) -> Collected {
    let mut sift = Sift::<V>::new(bracket, found);
    let rest = len % V::LANES;
    for i in (0..len - rest).step_by(V::LANES) {
        // SAFETY: the group lies within `len`; at most as many keys are found as were read.
        unsafe { sift.add(V::bits(V::load_f32(keys.add(i).cast())), V::LANES) };
    }
    if rest > 0 {
        let mut group = [0u32; MAX_LANES];
        // SAFETY: as above; `group` has room for any.
        unsafe {
            group
                .as_mut_ptr()
                .copy_from_nonoverlapping(keys.add(len - rest), rest);
            sift.add(V::bits(V::load_f32(group.as_ptr().cast())), rest);
        }
    }
    sift.collected()
}

/// Sorts keys by a bracket.
#[derive(Clone, Copy)]
struct Sift<V: Vector> {
    low: V::U,
    high: V::U,
    above: V::U,
    found: *mut u32,
    inside: usize,
}

impl<V: Vector> Sift<V> {
    #[inline(always)]
    fn new((low, high): Bracket, found: *mut u32) -> Self {
        Self {
            low: V::uint(low),
            high: V::uint(high),
            above: V::uint(0),
            found,
            inside: 0,
        }
    }

    /// Sorts the first `count` lanes of a group.
    ///
    /// # Safety
    ///
    /// `found` has room for a group behind the keys that were found so far.
    #[inline(always)]
    unsafe fn add(&mut self, keys: V::U, count: usize) {
        let mut above = V::less(self.high, keys);
        let mut inside = V::at_least(keys, self.low) & V::at_least(self.high, keys);
        if count < V::LANES {
            let valid = V::less(V::lane_numbers(), V::uint(count as u32));
            (above, inside) = (above & valid, inside & valid);
        }
        self.above = V::tally(self.above, above);
        if !V::BRANCHES || V::any(inside) {
            // SAFETY: the caller's promise.
            unsafe { V::store_compressed(self.found.add(self.inside), inside, keys) };
            self.inside += V::count(inside);
        }
    }

    #[inline(always)]
    fn collected(self) -> Collected {
        Collected {
            above: u64::from(V::sum(self.above)),
            inside: self.inside,
        }
    }
}
