//! The loops that look at keys and change nothing.

use super::pass::Pass;
use super::walk::{LONG_TILE, Place, Uses, walk};
use crate::config::Filter;
use crate::cpu::element::{Moment, Single, load_grad};
use crate::cpu::sample::LINE;
use crate::cpu::tier::Kernels;
use crate::cpu::vector::{MAX_LANES, Vector};
use crate::job::Job;

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
pub(in crate::cpu) unsafe fn keys(
    kernels: &Kernels,
    job: &Job,
    start: u64,
    len: usize,
    keys: *mut u32,
) {
    let mut body = Keys { to: keys };
    let tile = (kernels.keys)(job);
    // SAFETY: the caller's promise.
    unsafe {
        walk(
            kernels,
            job,
            (start, len as u64),
            Uses::Grad,
            LONG_TILE,
            &mut body,
            tile,
        )
    };
}

/// What [`keys()`] keeps from tile to tile.
pub(in crate::cpu) struct Keys {
    to: *mut u32,
}

impl Keys {
    /// A [`Tile`](super::walk::Tile). `MOMENTUM` says that the filter is that one.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn tile<V: Vector, S: Moment<V>, const MOMENTUM: bool>(
        &mut self,
        pass: &Pass,
        place: Place,
        first: u32,
        len: usize,
    ) {
        let entries = V::lane_numbers() + V::uint(first);
        for group in 0..len.div_ceil(V::LANES) {
            let (place, entries) = place.group::<V, Single, S>(entries, group);
            // SAFETY: the caller's promise; there is room for all keys and a group more.
            unsafe {
                let keys = keys_of::<V, S, MOMENTUM>(pass, place, entries);
                V::store_u32(self.to.add(group * V::LANES), keys);
            }
            V::end_group();
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
pub(in crate::cpu) unsafe fn lines(kernels: &Kernels, job: &Job, starts: &[u64], keys: *mut u32) {
    // SAFETY: the caller's promise.
    unsafe {
        if job.filter == Filter::Momentum {
            (kernels.lines)(job)(job, starts, keys);
        } else {
            for (i, &start) in starts.iter().enumerate() {
                super::keys(kernels, job, start, LINE, keys.add(i * LINE));
            }
        }
    }
}

/// [`lines`] by momentum, in one loop: each is so short that a walk over it takes longer than what is done on the way.
///
/// # Safety
///
/// As there.
#[inline(always)]
pub(in crate::cpu) unsafe fn lines_by_momentum<V: Vector, S: Moment<V>>(
    job: &Job,
    starts: &[u64],
    keys: *mut u32,
) {
    const { assert!(LINE.is_multiple_of(MAX_LANES)) };
    let mut grad = [0f32; LINE];
    let mut to = keys;
    for &start in starts {
        let pass = Pass::new(job, (start >> 32) as u32);
        let mut place = Place::of(job, start as usize);
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
                let keys = keys_of::<V, S, true>(&pass, place, entries);
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

/// Sorts the keys of the entries `start..start + len` into those above the bracket, which are
/// counted, and those inside it, which are written to `found`. Changes nothing.
///
/// # Safety
///
/// As for [`keys()`]; `found` has room for `len` keys and [`MAX_LANES`] more.
pub(in crate::cpu) unsafe fn collect(
    kernels: &Kernels,
    job: &Job,
    start: u64,
    len: usize,
    bracket: Bracket,
    found: *mut u32,
) -> Collected {
    if job.filter != Filter::Momentum {
        // SAFETY: the caller's promise.
        return unsafe {
            keys(kernels, job, start, len, found);
            (kernels.sift)(found, len, bracket, found)
        };
    }
    let mut body = Collect {
        bracket,
        found,
        above: 0,
        inside: 0,
    };
    let tile = (kernels.collect)(job);
    // SAFETY: the caller's promise.
    unsafe {
        walk(
            kernels,
            job,
            (start, len as u64),
            Uses::Grad,
            LONG_TILE,
            &mut body,
            tile,
        )
    };
    Collected {
        above: body.above,
        inside: body.inside,
    }
}

/// What [`collect`] by momentum keeps from tile to tile.
pub(in crate::cpu) struct Collect {
    bracket: Bracket,
    found: *mut u32,
    above: u64,
    inside: usize,
}

impl Collect {
    /// A [`Tile`](super::walk::Tile).
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn tile<V: Vector, S: Moment<V>>(
        &mut self,
        pass: &Pass,
        place: Place,
        first: u32,
        len: usize,
    ) {
        let entries = V::lane_numbers() + V::uint(first);
        let mut sift = Sift::<V>::new(self.bracket, self.found.wrapping_add(self.inside));
        for group in 0..len.div_ceil(V::LANES) {
            let (place, entries) = place.group::<V, Single, S>(entries, group);
            place.prefetch_keys();
            // SAFETY: the caller's promise; `found` has room for as many keys as there are entries, and for one more
            // group.
            unsafe {
                let keys = keys_of::<V, S, true>(pass, place, entries);
                // Of an incomplete group, the lanes behind the end do not count.
                sift.add(keys, (len - group * V::LANES).min(V::LANES));
            }
        }
        let Collected { above, inside } = sift.collected();
        self.above += above;
        self.inside += inside;
    }
}

/// Sorts keys like [`collect`].
///
/// # Safety
///
/// `len` keys are readable at `keys`; `found` has room for as many and [`MAX_LANES`] more. It may be the same place.
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
