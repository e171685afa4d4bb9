//! The loop that corrects a step whose threshold turned out to be another.

use std::mem::MaybeUninit;

use super::pass::Pass;
use super::walk::{Body, Place, TILE_GROUPS, walk};
use crate::backend::Job;
use crate::cpu::element::{Moment, Param};
use crate::cpu::vector::{Vector, magnitude};

/// Makes the entries `start..start + len`, fewer than 2^28, right after a step that moved those from `moved_from`
/// on, now that it should be those from `threshold` on; how many these are. An entry that moved, whose old value
/// cannot be computed from the new one, and that must move back, becomes something else; where old values are kept, none
/// moves back. The filter is `momentum`, and entries that do not move do not decay.
///
/// # Safety
///
/// As for [`super::step`].
#[inline(always)]
pub(in crate::cpu) unsafe fn settle<V: Vector, P: Param<V>, S: Moment<V>>(
    job: &Job,
    start: u64,
    len: u64,
    moved_from: u32,
    threshold: u32,
) -> u64 {
    let mut body = Settle::<V> {
        moved_from: V::uint(moved_from),
        threshold: V::uint(threshold),
        counts: V::uint(0),
        wrong: [MaybeUninit::uninit(); TILE_GROUPS],
    };
    // SAFETY: the caller's promise.
    unsafe { walk::<V, P, S, _>(job, start, len, &mut body) };
    u64::from(V::sum(body.counts))
}

struct Settle<V: Vector> {
    moved_from: V::U,
    threshold: V::U,
    /// Entries that should move.
    counts: V::U,
    /// Groups of a tile with entries that are wrong. Not initialised, because most of it is never used.
    wrong: [MaybeUninit<u16>; TILE_GROUPS],
}

impl<V: Vector> Settle<V> {
    /// Of a group whose moments are those after the step: the lanes that should move, those of them that did not, and
    /// those that did but should not have.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable at `place`.
    #[inline(always)]
    unsafe fn lanes<S: Moment<V>>(&self, place: Place) -> (V::Mask, V::Mask, V::Mask) {
        // SAFETY: the caller's promise.
        let m = unsafe { S::load(place.exp_avg) };
        let key = V::keep(V::finite(m), magnitude::<V>(m));
        let moves = V::at_least(key, self.threshold);
        let moved = V::at_least(key, self.moved_from);
        (
            moves,
            moves & V::less(key, self.moved_from),
            moved & V::less(key, self.threshold),
        )
    }
}

impl<V: Vector, P: Param<V>, S: Moment<V>> Body<V, P, S> for Settle<V> {
    const READS_GRAD: bool = false;
    const WRITES: bool = true;

    #[inline(always)]
    unsafe fn tile(&mut self, pass: &Pass, place: Place, entries: V::U, len: usize) {
        let wrong = self.wrong.as_mut_ptr().cast::<u16>();
        let mut listed = 0;
        for group in 0..len.div_ceil(V::LANES) {
            let (place, _) = place.group::<V, P, S>(entries, group);
            place.prefetch_result::<V, P>();
            // SAFETY: the caller's promise; the list has room for all groups of a tile.
            unsafe {
                let (moves, advance, retreat) = self.lanes::<S>(place);
                self.counts = V::tally(self.counts, moves);
                wrong.add(listed).write(group as u16);
                listed += usize::from(V::any(advance | retreat));
            }
        }
        for i in 0..listed {
            // SAFETY: the caller's promise; the list is written up to this place.
            unsafe {
                let group = wrong.add(i).read().into();
                let (place, entries) = place.group::<V, P, S>(entries, group);
                let (_, advance, retreat) = self.lanes::<S>(place);
                let old = P::load(place.param, place.master);
                let (m, v) = (S::load(place.exp_avg), S::load(place.exp_avg_sq));
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
