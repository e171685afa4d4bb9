//! The loops that look at keys and change nothing.

use super::arithmetic::Arithmetic;
use super::pointers::Pointers;
use super::table::Kernels;
use super::tiles::{Access, Moments, Tile, Widened, for_each_tile};
use crate::cpu::simd::element::{Moment, Single};
use crate::cpu::simd::vector::{MAX_LANES, Vector, magnitude};
use crate::job::Job;
use crate::rule::convert::INFINITE;

/// Entries that are sampled together: two cache lines of f32 gradients, which most processors fetch together.
pub(in crate::cpu) const LINE: usize = 32;
const _: () = assert!(LINE.is_multiple_of(MAX_LANES));

/// Writes the magnitudes that the first moments of the entries `start..start + len` will have in this step to `keys`,
/// 0 for what is not finite. Changes nothing.
///
/// # Safety
///
/// The range lies within the job's tensor; the job's buffers are as large as it says, and nobody writes to them in
/// this range. `keys` has room for `len` and [`MAX_LANES`] more.
pub(in crate::cpu) unsafe fn keys(
    kernels: &Kernels,
    job: &Job,
    (start, len): (u64, usize),
    keys: *mut u32,
) {
    let access = Access {
        grad: true,
        moments: Moments::Read,
        param: false,
    };
    let mut body = Keys { to: keys };
    let run = (kernels.keys)(job);
    // SAFETY: the caller's promise.
    unsafe { for_each_tile(kernels, job, (start, len as u64), access, &mut body, run) };
}

/// What [`keys()`] keeps from tile to tile.
pub(in crate::cpu) struct Keys {
    to: *mut u32,
}

impl Keys {
    /// A [`Loop`](super::tiles::Loop).
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn tile<V: Vector, S: Moment<V>>(&mut self, tile: Tile<'_>) {
        for group in 0..tile.groups::<V>() {
            let at = tile.pointers.group::<V, Single, S>(group);
            // SAFETY: the caller's promise; there is room for all keys and a group more.
            unsafe {
                let (m, _) = tile
                    .arithmetic
                    .moments::<V, S>(at, tile.entries::<V>(group));
                let keys = V::keep(V::finite(m), magnitude::<V>(m));
                V::store_u32(self.to.add(group * V::LANES), keys);
            }
            V::end_group();
        }
        self.to = self.to.wrapping_add(tile.len);
    }
}

/// Where the keys of sampled lines go.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Sampled {
    /// [`LINE`] for each line: those of this step.
    pub(in crate::cpu) keys: *mut u32,
    /// One for each line: how many of its keys reached the threshold in the step before. 0 for other filters than
    /// `momentum`, of whose keys nothing is left.
    pub(in crate::cpu) before: *mut u32,
}

/// Computes the keys of some lines of [`LINE`] entries, for a sample: where a line crosses a multiple of 2^32 entries,
/// random bits behind it are not those of the step.
///
/// # Safety
///
/// As for [`keys()`], for each line; there is room for all lines.
pub(in crate::cpu) unsafe fn lines(
    kernels: &Kernels,
    job: &Job,
    starts: &[u64],
    threshold_before: u32,
    to: Sampled,
) {
    let run = (kernels.lines)(job);
    let mut widened = Widened::new();
    for (i, &start) in starts.iter().enumerate() {
        let index = start as usize;
        let mut pointers = Pointers::to_entry(job, index);
        // SAFETY: the line lies within the tensor (the caller's promise); the loop is for the job's types, and has room.
        unsafe {
            pointers.grad = widened.grads(kernels.widen, job, index, LINE);
            let tile = Tile {
                arithmetic: &Arithmetic::new(job, (start >> 32) as u32),
                pointers,
                first: start as u32,
                len: LINE,
            };
            let reached = run(tile, threshold_before, to.keys.add(i * LINE));
            to.before.add(i).write(reached);
        }
    }
}

/// The keys of one line, for any filter; how many reached the threshold in the step before.
///
/// # Safety
///
/// As for a [`Loop`](super::tiles::Loop).
#[inline(always)]
pub(super) unsafe fn line<V: Vector, S: Moment<V>, const MOMENTUM: bool>(
    tile: Tile<'_>,
    threshold_before: u32,
    keys: *mut u32,
) -> u32 {
    let mut before = V::uint(0);
    let reached_from = V::uint(threshold_before.max(1));
    for group in 0..LINE / V::LANES {
        let at = tile.pointers.group::<V, Single, S>(group);
        let entries = tile.entries::<V>(group);
        // SAFETY: the caller's promise.
        unsafe {
            let (m, v) = tile.arithmetic.moments::<V, S>(at, entries);
            let key = if MOMENTUM {
                let (old, _) = tile.arithmetic.stored::<V, S>(at);
                let reached = V::within(magnitude::<V>(old), reached_from, V::uint(INFINITE));
                before = V::tally(before, reached);
                V::keep(V::finite(m), magnitude::<V>(m))
            } else {
                tile.arithmetic.keys::<V>(at, m, v, entries)
            };
            V::store_u32(keys.add(group * V::LANES), key);
        }
    }
    V::sum(before)
}

/// Keys between two, both included.
pub(in crate::cpu) type KeyRange = (u32, u32);

/// What was found in keys.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Sifted {
    /// Keys above the range.
    pub(in crate::cpu) above: u64,
    /// Keys inside it.
    pub(in crate::cpu) inside: usize,
}

/// Sorts keys into those above a range, which are counted, and those inside it, which are written to `found`.
///
/// # Safety
///
/// `len` keys are readable at `keys`; `found` has room for as many and [`MAX_LANES`] more. It may be the same place.
#[inline(always)]
pub(super) unsafe fn sift<V: Vector>(
    keys: *const u32,
    len: usize,
    range: KeyRange,
    found: *mut u32,
) -> Sifted {
    let mut sift = Sift::<V>::new(range, found);
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
    sift.sifted()
}

/// Sorts keys by a range.
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
    fn new((low, high): KeyRange, found: *mut u32) -> Self {
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
    fn sifted(self) -> Sifted {
        Sifted {
            above: u64::from(V::sum(self.above)),
            inside: self.inside,
        }
    }
}
