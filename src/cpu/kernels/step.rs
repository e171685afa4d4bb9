//! The loops that take a step.

use std::mem::MaybeUninit;

use super::decay::decay_others;
use super::keys::keys;
use super::pass::Pass;
use super::walk::{LONG_TILE, Place, TILE, TILE_GROUPS, Uses, WIDENED, walk};
use crate::config::{Filter, WeightDecayScope};
use crate::cpu::element::{Moment, Param};
use crate::cpu::tier::Kernels;
use crate::cpu::vector::{MAX_LANES, Vector, magnitude};
use crate::job::Job;
use crate::rule::convert::INFINITE;

/// Steps the entries `start..start + len`: those move whose key reaches `threshold`, which is 0 only where all of them
/// move. How many moved.
///
/// # Safety
///
/// The range lies within the job's tensor; the job's buffers are as large as it says, and nobody else uses
/// them in this range.
pub(in crate::cpu) unsafe fn step(
    kernels: &Kernels,
    job: &Job,
    (start, len): (u64, u64),
    threshold: u32,
) -> u64 {
    // Where everything moves the filters differ in nothing.
    let by_momentum = job.filter == Filter::Momentum || job.everything_moves;
    let decays_all = job.weight_decay_scope == WeightDecayScope::All;
    let same = Aligned([threshold; MAX_LANES]);
    let thresholds = Thresholds {
        next: same.0.as_ptr(),
        advance: 0,
    };
    // SAFETY: the caller's promise; parts of the range.
    unsafe {
        if by_momentum && (!decays_all || job.everything_moves) {
            let moved = step_by(kernels, job, (start, len), thresholds);
            if decays_all && moved < len {
                decay_others(kernels, job, (start, len), thresholds);
            }
            return moved;
        }
        let mut moved = 0;
        let mut each = [0u32; WIDENED + MAX_LANES];
        for done in (0..len).step_by(WIDENED) {
            let part = (start + done, (WIDENED as u64).min(len - done));
            let thresholds = if by_momentum {
                thresholds
            } else {
                thresholds_of(kernels, job, part, threshold, &mut each)
            };
            moved += step_by(kernels, job, part, thresholds);
            if decays_all {
                // While the part is in the nearest cache.
                decay_others(kernels, job, part, thresholds);
            }
        }
        moved
    }
}

/// The keys of another filter than `momentum` as thresholds of the momentum, which it always reaches, or never. These
/// filters are for comparison, and not worth loops of their own for each type of parameter.
///
/// # Safety
///
/// As for [`step`]; at most [`WIDENED`] entries.
unsafe fn thresholds_of(
    kernels: &Kernels,
    job: &Job,
    (start, len): (u64, u64),
    threshold: u32,
    room: &mut [u32; WIDENED + MAX_LANES],
) -> Thresholds {
    // SAFETY: the caller's promise; there is room for the keys and a group more.
    unsafe { keys(kernels, job, start, len as usize, room.as_mut_ptr()) };
    for key in room.iter_mut() {
        *key = if *key >= threshold { 0 } else { NEVER };
    }
    Thresholds {
        next: room.as_ptr(),
        advance: 1,
    }
}

/// No finite number has such a key.
const NEVER: u32 = INFINITE;

/// # Safety
///
/// As for [`step`]; there are thresholds for the range.
unsafe fn step_by(kernels: &Kernels, job: &Job, range: (u64, u64), thresholds: Thresholds) -> u64 {
    let mut body = Step {
        thresholds,
        moved: 0,
    };
    let (uses, tile) = (Uses::GradAndParam, (kernels.step)(job));
    // SAFETY: the caller's promise.
    unsafe { walk(kernels, job, range, uses, LONG_TILE, &mut body, tile) };
    body.moved
}

/// A group of lanes that lies in one cache line.
#[repr(align(64))]
struct Aligned([u32; MAX_LANES]);

/// What the magnitude of the first moment must reach.
#[derive(Clone, Copy)]
pub(super) struct Thresholds {
    /// In each lane of the next group.
    next: *const u32,
    /// Words from an entry to the next: 0 where they are the same for all groups, else 1.
    advance: usize,
}

impl Thresholds {
    /// # Safety
    ///
    /// There are thresholds for so many groups.
    #[inline(always)]
    pub(super) unsafe fn load<V: Vector>(self, group: usize) -> V::U {
        let from = self.next.wrapping_add(group * V::LANES * self.advance);
        // SAFETY: the caller's promise.
        V::bits(unsafe { V::load_f32(from.cast()) })
    }

    #[inline(always)]
    pub(super) fn skip(&mut self, entries: usize) {
        self.next = self.next.wrapping_add(entries * self.advance);
    }
}

/// What [`step`] keeps from tile to tile.
pub(in crate::cpu) struct Step {
    thresholds: Thresholds,
    /// How many entries moved.
    moved: u64,
}

impl Step {
    /// A [`Tile`](super::walk::Tile).
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn tile<V: Vector, P: Param<V>, S: Moment<V>>(
        &mut self,
        pass: &Pass,
        place: Place,
        first: u32,
        len: usize,
    ) {
        let entries = V::lane_numbers() + V::uint(first);
        let mut moved_lanes = V::uint(0);
        for group in 0..len.div_ceil(V::LANES) {
            let (place, entries) = place.group::<V, P, S>(entries, group);
            // SAFETY: the caller's promise; there are thresholds for all groups.
            unsafe {
                let (_, m, v) = pass.moments::<V, S>(place, entries);
                S::store(place.exp_avg, m);
                S::store(place.exp_avg_sq, v);
                let threshold = self.thresholds.load::<V>(group);
                let selected = V::finite(m) & V::at_least(magnitude::<V>(m), threshold);

                let old = P::load(place.param, place.master);
                let new = pass.moved::<V, P>(old, pass.difference::<V>(m, v), entries);
                P::store(place.param, place.master, new, old, selected);
                moved_lanes = V::tally(moved_lanes, selected);
            }
            V::end_group();
        }
        self.thresholds.skip(len);
        self.moved += u64::from(V::sum(moved_lanes));
    }
}

/// From which keys on entries move, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct Bounds {
    /// Below this key none moves. Not 0.
    pub(in crate::cpu) possible: u32,
    /// From this key on all move. What lies between is open.
    pub(in crate::cpu) certain: u32,
}

impl Bounds {
    /// The threshold is known.
    pub(in crate::cpu) fn at(threshold: u32) -> Self {
        Self {
            possible: threshold,
            certain: threshold,
        }
    }
}

/// What a pass that does not know the threshold writes down: the entries that are open, and have not moved; and the old
/// values of those that moved, as far as they cannot be computed from the new ones.
#[derive(Debug)]
pub(in crate::cpu) struct Notes {
    /// The lower halves of their indices.
    pub(in crate::cpu) entries: *mut u32,
    pub(in crate::cpu) keys: *mut u32,
    /// What an open entry becomes if it moves; what one that moved was. By the bits in which a parameter is kept.
    pub(in crate::cpu) values: *mut u32,
    pub(in crate::cpu) count: usize,
    /// How many of these moved.
    pub(in crate::cpu) lost: usize,
    /// Where old values are kept ([`Param::KEEPS_OLD`]), those of all entries that moved, in ascending order.
    pub(in crate::cpu) old: *mut u16,
    pub(in crate::cpu) num_old: usize,
}

impl Notes {
    /// None yet; these places are where they go.
    pub(in crate::cpu) fn at([entries, keys, values]: [*mut u32; 3], old: *mut u16) -> Self {
        Self {
            entries,
            keys,
            values,
            count: 0,
            lost: 0,
            old,
            num_old: 0,
        }
    }
}

/// Steps entries like [`step`], as far as the bounds tell, and makes notes; how many moved. The filter is
/// `momentum`, and entries that do not move do not decay.
///
/// # Safety
///
/// As for [`step`]. All `notes` have room for `len` entries and [`MAX_LANES`] more; `old`
/// only where old values are kept.
pub(in crate::cpu) unsafe fn step_and_note(
    kernels: &Kernels,
    job: &Job,
    (start, len): (u64, u64),
    bounds: Bounds,
    notes: &mut Notes,
) -> u64 {
    let mut body = StepAndNote {
        bounds,
        moved: 0,
        notes,
    };
    let tile = (kernels.step_and_note)(job);
    // SAFETY: the caller's promise.
    unsafe {
        walk(
            kernels,
            job,
            (start, len),
            Uses::GradAndParam,
            TILE,
            &mut body,
            tile,
        )
    };
    body.moved
}

/// What [`step_and_note`] keeps from tile to tile.
pub(in crate::cpu) struct StepAndNote<'a> {
    bounds: Bounds,
    /// Entries that moved, with a note or without.
    moved: u64,
    notes: &'a mut Notes,
}

/// What is known about the groups of a tile. Not initialised, because most of it is never used.
struct Lists {
    /// Groups with entries that move: their numbers, and in the lower half which of their lanes.
    moving: [MaybeUninit<u32>; TILE_GROUPS],
    /// Likewise, groups with entries to note.
    noted: [MaybeUninit<u32>; TILE_GROUPS],
    /// What the parameters of all groups become if they move; with a master copy, what is noted about them.
    values: [MaybeUninit<u32>; TILE],
}

impl Lists {
    #[inline(always)]
    fn new() -> Self {
        Self {
            moving: [MaybeUninit::uninit(); TILE_GROUPS],
            noted: [MaybeUninit::uninit(); TILE_GROUPS],
            values: [MaybeUninit::uninit(); TILE],
        }
    }
}

/// Puts a group on a list if any of its lanes are meant; how many groups the list grows by.
///
/// # Safety
///
/// The list has room for it.
#[inline(always)]
unsafe fn list(to: *mut u32, number: u32, lanes: u32) -> usize {
    // SAFETY: the caller's promise.
    unsafe { to.write(number | lanes) };
    // A comparison with zero would be made where the lanes come from, besides bringing them here.
    ((lanes + 0xFFFF) >> 16) as usize
}

/// A group of a list: which one it is, and which of its lanes are meant.
#[inline(always)]
fn unpack(listed: u32) -> (usize, u32) {
    ((listed >> 16) as usize, listed & 0xFFFF)
}

impl StepAndNote<'_> {
    /// A [`Tile`](super::walk::Tile).
    ///
    /// Nothing in the first loop branches on the data: which groups have something to store or to note is listed
    /// without a branch, and the lists are walked later. A branch that is often guessed wrong would cost more than all
    /// the rest. And a line of parameters of which nothing is stored stays clean, and need not go back to memory; a
    /// store under an empty mask would not leave it so on every processor.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn tile<V: Vector, P: Param<V>, S: Moment<V>>(
        &mut self,
        pass: &Pass,
        place: Place,
        first: u32,
        len: usize,
    ) {
        let entries = V::lane_numbers() + V::uint(first);
        let possible_from = V::uint(self.bounds.possible);
        let certain_from = V::uint(self.bounds.certain);
        let mut lists = Lists::new();
        let moving_groups = lists.moving.as_mut_ptr().cast::<u32>();
        let noted_groups = lists.noted.as_mut_ptr().cast::<u32>();
        let values = lists.values.as_mut_ptr().cast::<u32>();
        let (mut num_moving, mut num_noted, mut num_moved) = (0, 0, 0);
        for group in 0..len.div_ceil(V::LANES) {
            let (place, entries) = place.group::<V, P, S>(entries, group);
            // SAFETY: the caller's promise; the lists have room for all groups of a tile.
            unsafe {
                place.prefetch::<V, P>();
                let (_, m, v) = pass.moments::<V, S>(place, entries);
                S::store(place.exp_avg, m);
                S::store(place.exp_avg_sq, v);
                let key = magnitude::<V>(m);
                let possible = V::finite(m) & V::at_least(key, possible_from);
                let moving = possible & V::at_least(key, certain_from);

                let old = P::load(place.param, place.master);
                let difference = pass.difference::<V>(m, v);
                let moved = pass.moved::<V, P>(old, difference, entries);
                let noted = if P::KEEPS_OLD {
                    possible ^ moving
                } else {
                    let undone = pass.undone::<V, P>(moved, difference);
                    possible ^ (moving & V::equal(undone, old))
                };

                let number = (group as u32) << 16;
                let moving_lanes = V::mask_bits(moving);
                if P::HAS_MASTER {
                    // The parameter becomes the rounding of its master copy everywhere, so that nothing is gained by
                    // storing some groups only.
                    let value = V::select(moving, old, moved);
                    V::store_u32(values.add(group * V::LANES), value);
                    P::store(place.param, place.master, moved, old, moving);
                    num_moved += moving_lanes.count_ones();
                } else {
                    V::store_u32(values.add(group * V::LANES), moved);
                    num_moving += list(moving_groups.add(num_moving), number, moving_lanes);
                }
                num_noted += list(noted_groups.add(num_noted), number, V::mask_bits(noted));
            }
        }
        let (mut count, mut lost) = (self.notes.count, V::uint(0));
        for i in 0..num_noted {
            // SAFETY: the caller's promise; there is room for a note of every entry. The lists are written up to
            // these places.
            unsafe {
                let (group, noted) = unpack(noted_groups.add(i).read());
                let noted = V::mask_of(noted);
                let (place, entries) = place.group::<V, P, S>(entries, group);
                let key = magnitude::<V>(S::load(place.exp_avg));
                let mut value = V::bits(V::load_f32(values.add(group * V::LANES).cast()));
                if !P::KEEPS_OLD {
                    let has_moved = V::at_least(key, certain_from);
                    lost = V::tally(lost, noted & has_moved);
                    if !P::HAS_MASTER {
                        let old = P::load(place.param, place.master);
                        value = V::select(has_moved, old, value);
                    }
                }
                V::store_compressed(self.notes.entries.add(count), noted, entries);
                V::store_compressed(self.notes.keys.add(count), noted, key);
                V::store_compressed(self.notes.values.add(count), noted, value);
                count += V::count(noted);
            }
        }
        self.notes.count = count;
        self.notes.lost += V::sum(lost) as usize;
        for i in 0..num_moving {
            // SAFETY: as above.
            unsafe {
                let (group, moving) = unpack(moving_groups.add(i).read());
                num_moved += moving.count_ones();
                let (place, _) = place.group::<V, P, S>(entries, group);
                let moved = V::bits(V::load_f32(values.add(group * V::LANES).cast()));
                let old = P::load(place.param, place.master);
                let moving = V::mask_of(moving);
                if P::KEEPS_OLD {
                    let to = self.notes.old.add(self.notes.num_old);
                    V::store_compressed_u16(to, moving, old);
                    self.notes.num_old += V::count(moving);
                }
                P::store(place.param, place.master, moved, old, moving);
            }
        }
        self.moved += u64::from(num_moved);
    }
}
