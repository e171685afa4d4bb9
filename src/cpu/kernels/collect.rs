//! The loop that updates the moments, and collects the entries that may move; and the one that collects them again from
//! the moments as they are stored.

use std::mem::MaybeUninit;

use super::arithmetic::Arithmetic;
use super::table::Kernels;
use super::tiles::{Access, Moments, TILE, Tile, for_each_tile, with_moments};
use crate::config::Filter;
use crate::cpu::simd::element::{Moment, Single};
use crate::cpu::simd::vector::{MAX_LANES, Vector, magnitude};
use crate::job::Job;
use crate::rule::convert::INFINITE;

/// What a threshold is expected to lie between: `low <= threshold < high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct Bracket {
    /// Below this key no entry moves. Not 0.
    pub(in crate::cpu) low: u32,
    /// From this key on all entries move. What lies between is open.
    pub(in crate::cpu) high: u32,
}

impl Bracket {
    /// The threshold is known.
    pub(in crate::cpu) fn at(threshold: u32) -> Self {
        Self {
            low: threshold.max(1),
            high: threshold.max(1),
        }
    }
}

/// Where the entries that may move are listed: those that are certain, and those that are open. Entries are relative to
/// the start of the range, in ascending order; values are a·u.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct Candidates {
    pub(in crate::cpu) certain_entries: *mut u16,
    pub(in crate::cpu) certain_values: *mut f32,
    pub(in crate::cpu) open_entries: *mut u16,
    pub(in crate::cpu) open_keys: *mut u32,
    pub(in crate::cpu) open_values: *mut f32,
    pub(in crate::cpu) num_certain: usize,
    pub(in crate::cpu) num_open: usize,
    /// Entries with a moment that is not finite, where moments were updated.
    pub(in crate::cpu) num_nonfinite: usize,
}

/// Updates the moments of the entries `start..start + len`, and lists those whose keys the bracket does not rule out.
/// Where `values` is false only open keys are listed, and the others counted; the filter is `momentum` then.
///
/// # Safety
///
/// The range lies within the job's tensor, and is no longer than 2^16; the job's buffers are as large as it says, and
/// nobody else uses them in this range. All lists have room for `len` entries and [`MAX_LANES`] more.
pub(in crate::cpu) unsafe fn collect(
    kernels: &Kernels,
    job: &Job,
    range: (u64, u64),
    bracket: Bracket,
    values: bool,
    candidates: &mut Candidates,
) {
    let access = Access {
        grad: true,
        moments: Moments::Written,
        param: false,
    };
    let run = (kernels.collect)(job, values);
    let mut body = Collect::new(range.0, bracket, candidates);
    // SAFETY: the caller's promise.
    unsafe { for_each_tile(kernels, job, range, access, &mut body, run) };
}

/// Lists the same as [`collect`] by the moments that it has stored, and changes nothing.
///
/// # Safety
///
/// As there.
pub(in crate::cpu) unsafe fn collect_stored(
    kernels: &Kernels,
    job: &Job,
    range: (u64, u64),
    bracket: Bracket,
    candidates: &mut Candidates,
) {
    let access = Access {
        grad: job.filter == Filter::Gradient,
        moments: Moments::Read,
        param: false,
    };
    let run = (kernels.collect_stored)(job);
    let mut body = Collect::new(range.0, bracket, candidates);
    // SAFETY: the caller's promise.
    unsafe { for_each_tile(kernels, job, range, access, &mut body, run) };
}

/// What [`collect`] keeps from tile to tile.
pub(in crate::cpu) struct Collect<'a> {
    bracket: Bracket,
    /// The lower half of the index of the range's first entry.
    start: u32,
    candidates: &'a mut Candidates,
}

/// Words for something of each candidate of a tile. Not initialised, because most of it is never used.
type Packed = [MaybeUninit<u32>; TILE + MAX_LANES];

impl<'a> Collect<'a> {
    fn new(start: u64, bracket: Bracket, candidates: &'a mut Candidates) -> Self {
        (candidates.num_certain, candidates.num_open) = (0, 0);
        candidates.num_nonfinite = 0;
        Self {
            bracket,
            start: start as u32,
            candidates,
        }
    }

    /// A [`Loop`](super::tiles::Loop). `MOMENTUM` says that the filter is that one, `STORED` that the moments are those
    /// after the step already.
    ///
    /// The candidates of a tile are packed without a branch on the data, and only these are divided: square root and
    /// division for all entries would take as long as everything else.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn tile<
        V: Vector,
        S: Moment<V>,
        const MOMENTUM: bool,
        const STORED: bool,
    >(
        &mut self,
        tile: Tile<'_>,
    ) {
        let (low, infinite) = (V::uint(self.bracket.low), V::uint(INFINITE));
        let mut packed = [const { [MaybeUninit::uninit(); TILE + MAX_LANES] }; 4];
        let [ms, vs, entries, keys] = &mut packed;
        let [ms, vs, entries, keys] =
            [ms, vs, entries, keys].map(|packed: &mut Packed| packed.as_mut_ptr().cast::<u32>());
        let mut largest = V::uint(0);
        let mut count = 0;
        for group in 0..tile.groups::<V>() {
            let at = tile.pointers.group::<V, Single, S>(group);
            let numbers = tile.entries::<V>(group);
            // SAFETY: the caller's promise; there is room for all entries of a tile and a group more.
            unsafe {
                let (m, v) = moments::<V, S, STORED>(tile.arithmetic, at, numbers);
                if !STORED {
                    largest = with_moments::<V>(largest, m, v);
                }
                let key = if MOMENTUM {
                    magnitude::<V>(m)
                } else {
                    tile.arithmetic.keys::<V>(at, m, v, numbers)
                };
                let possible = V::within(key, low, infinite);
                if !V::BRANCHES || V::any(possible) {
                    V::store_compressed(ms.add(count), possible, V::bits(m));
                    V::store_compressed(vs.add(count), possible, V::bits(v));
                    V::store_compressed(entries.add(count), possible, numbers);
                    if !MOMENTUM {
                        V::store_compressed(keys.add(count), possible, key);
                    }
                    count += V::count(possible);
                }
            }
        }
        if !STORED {
            // SAFETY: the caller's promise.
            self.candidates.num_nonfinite += unsafe { tile.count_nonfinite::<V, S>(largest) };
        }
        // SAFETY: so many are packed, and behind them there is room for a group; the rest is the caller's promise.
        unsafe {
            let keys = if MOMENTUM { ms } else { keys };
            for packed in [ms, vs, entries, keys] {
                // The lanes of the last group that hold nothing are read as well.
                V::store_u32(packed.add(count), V::uint(0));
            }
            self.sort::<V>(tile.arithmetic, count, [ms, vs, entries, keys]);
        }
    }

    /// Computes the values of packed candidates, and sorts them into certain and open ones.
    ///
    /// # Safety
    ///
    /// `count` moments, entries and keys are readable, and a group more; the lists have room for as many.
    #[inline(always)]
    unsafe fn sort<V: Vector>(
        &mut self,
        arithmetic: &Arithmetic,
        count: usize,
        [ms, vs, entries, keys]: [*mut u32; 4],
    ) {
        let (start, high) = (V::uint(self.start), V::uint(self.bracket.high));
        let mut lists = *self.candidates;
        for i in (0..count).step_by(V::LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let load = |from: *mut u32| V::load_f32(from.add(i).cast());
                let value = V::bits(arithmetic.difference::<V>(load(ms), load(vs)));
                let entry = V::bits(load(entries)) - start;
                // Of momenta, the sign is in the way.
                let key = magnitude::<V>(load(keys));
                let packed = V::less(V::lane_numbers(), V::uint((count - i) as u32));
                let certain = V::at_least(key, high) & packed;
                let open = certain ^ packed;
                let n = lists.num_certain;
                V::store_compressed_u16(lists.certain_entries.add(n), certain, entry);
                V::store_compressed(lists.certain_values.add(n).cast(), certain, value);
                lists.num_certain += V::count(certain);
                if V::any(open) {
                    let n = lists.num_open;
                    V::store_compressed_u16(lists.open_entries.add(n), open, entry);
                    V::store_compressed(lists.open_keys.add(n), open, key);
                    V::store_compressed(lists.open_values.add(n).cast(), open, value);
                    lists.num_open += V::count(open);
                }
            }
        }
        *self.candidates = lists;
    }

    /// The [`Loop`](super::tiles::Loop) without values, by momentum.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn tile_of_keys<V: Vector, S: Moment<V>>(&mut self, tile: Tile<'_>) {
        let (low, high) = (V::uint(self.bracket.low), V::uint(self.bracket.high));
        let (mut certain_lanes, mut largest) = (V::uint(0), V::uint(0));
        let (mut open_keys, mut num_open) = (self.candidates.open_keys, self.candidates.num_open);
        open_keys = open_keys.wrapping_add(num_open);
        for group in 0..tile.groups::<V>() {
            let at = tile.pointers.group::<V, Single, S>(group);
            // SAFETY: the caller's promise; there is room for the keys of all entries and a group more.
            unsafe {
                let (m, v) = moments::<V, S, false>(tile.arithmetic, at, tile.entries::<V>(group));
                largest = with_moments::<V>(largest, m, v);
                let key = magnitude::<V>(m);
                certain_lanes = V::tally(certain_lanes, V::within(key, high, V::uint(INFINITE)));
                let open = V::within(key, low, high);
                if !V::BRANCHES || V::any(open) {
                    V::store_compressed(open_keys, open, key);
                    let count = V::count(open);
                    open_keys = open_keys.wrapping_add(count);
                    num_open += count;
                }
            }
        }
        self.candidates.num_open = num_open;
        // SAFETY: the caller's promise.
        self.candidates.num_nonfinite += unsafe { tile.count_nonfinite::<V, S>(largest) };
        self.candidates.num_certain += V::sum(certain_lanes) as usize;
    }
}

/// The moments of a group after this step, stored.
///
/// # Safety
///
/// A group of lanes is readable at the pointers; the moments are writable, unless they are `STORED` already.
#[inline(always)]
unsafe fn moments<V: Vector, S: Moment<V>, const STORED: bool>(
    arithmetic: &Arithmetic,
    at: super::pointers::Pointers,
    entries: V::U,
) -> (V::F, V::F) {
    at.prefetch_exp_avg();
    at.prefetch_exp_avg_sq();
    // SAFETY: the caller's promise.
    unsafe {
        if STORED {
            return arithmetic.stored::<V, S>(at);
        }
        at.prefetch_grad();
        let (m, v) = arithmetic.moments::<V, S>(at, entries);
        S::store(at.exp_avg, m);
        S::store(at.exp_avg_sq, v);
        (m, v)
    }
}
