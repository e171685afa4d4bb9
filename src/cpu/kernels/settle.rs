//! The loop that corrects a step whose threshold turned out to be another.

use std::mem::MaybeUninit;

use super::pass::Pass;
use super::walk::{Place, TILE, TILE_GROUPS, Uses, walk};
use crate::cpu::element::{Param, Single};
use crate::cpu::tier::Kernels;
use crate::cpu::vector::{Vector, magnitude};
use crate::job::Job;

/// Makes the entries `start..start + len` right after a step that moved those from `moved_from`
/// on, now that it should be those from `threshold` on; how many these are. An entry that moved, whose old value
/// cannot be computed from the new one, and that must move back, becomes something else; where old values are kept, none
/// moves back. The filter is `momentum`, and entries that do not move do not decay.
///
/// # Safety
///
/// As for [`super::step()`].
pub(in crate::cpu) unsafe fn settle(
    kernels: &Kernels,
    job: &Job,
    (start, len): (u64, u64),
    moved_from: u32,
    threshold: u32,
) -> u64 {
    let mut body = Settle {
        moved_from,
        threshold,
        count: 0,
    };
    let tile = (kernels.settle)(job);
    // SAFETY: the caller's promise.
    unsafe {
        walk(
            kernels,
            job,
            (start, len),
            Uses::Param,
            TILE,
            &mut body,
            tile,
        )
    };
    body.count
}

/// What [`settle`] keeps from tile to tile.
pub(in crate::cpu) struct Settle {
    moved_from: u32,
    threshold: u32,
    /// Entries that should move.
    count: u64,
}

impl Settle {
    /// Of a group whose moments are those after the step: the lanes that should move, those of them that did not, and
    /// those that did but should not have.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable at `place`.
    #[inline(always)]
    unsafe fn lanes<V: Vector>(&self, place: Place) -> (V::Mask, V::Mask, V::Mask) {
        // SAFETY: the caller's promise.
        let m = unsafe { V::load_f32(place.exp_avg.cast()) };
        let key = V::keep(V::finite(m), magnitude::<V>(m));
        let (threshold, moved_from) = (V::uint(self.threshold), V::uint(self.moved_from));
        let moves = V::at_least(key, threshold);
        let moved = V::at_least(key, moved_from);
        (
            moves,
            moves & V::less(key, moved_from),
            moved & V::less(key, threshold),
        )
    }

    /// A [`Tile`](super::walk::Tile).
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn tile<V: Vector, P: Param<V>>(
        &mut self,
        pass: &Pass,
        place: Place,
        first: u32,
        len: usize,
    ) {
        let entries = V::lane_numbers() + V::uint(first);
        let mut counts = V::uint(0);
        // Groups with entries that are wrong. Not initialised, because most of it is never used.
        let mut wrong = [MaybeUninit::<u16>::uninit(); TILE_GROUPS];
        let wrong = wrong.as_mut_ptr().cast::<u16>();
        let mut listed = 0;
        for group in 0..len.div_ceil(V::LANES) {
            let (place, _) = place.group::<V, P, Single>(entries, group);
            place.prefetch_result::<V, P>();
            // SAFETY: the caller's promise; the list has room for all groups of a tile.
            unsafe {
                let (moves, advance, retreat) = self.lanes::<V>(place);
                counts = V::tally(counts, moves);
                wrong.add(listed).write(group as u16);
                listed += usize::from(V::any(advance | retreat));
            }
        }
        self.count += u64::from(V::sum(counts));
        for i in 0..listed {
            // SAFETY: the caller's promise; the list is written up to this place.
            unsafe {
                let group = wrong.add(i).read().into();
                let (place, entries) = place.group::<V, P, Single>(entries, group);
                let (_, advance, retreat) = self.lanes::<V>(place);
                let old = P::load(place.param, place.master);
                let m = V::load_f32(place.exp_avg.cast());
                let v = V::load_f32(place.exp_avg_sq.cast());
                let difference = pass.difference::<V>(m, v);
                let moved = pass.moved::<V, P>(old, difference, entries);
                if P::KEEPS_OLD {
                    P::store(place.param, place.master, moved, old, advance);
                } else {
                    let new = V::select(advance, moved, pass.undone::<V, P>(old, difference));
                    P::store(place.param, place.master, new, old, advance | retreat);
                }
            }
        }
    }
}
