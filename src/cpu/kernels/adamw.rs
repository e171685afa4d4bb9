//! The loop that takes a step of all entries whose threshold is known: AdamW where all move; and its second half, for
//! moments that have been updated.

use std::ops::AddAssign;

use super::table::Kernels;
use super::tiles::{Access, Moments, Tile, for_each_tile, with_moments};
use crate::config::WeightDecayScope;
use crate::cpu::simd::element::{Moment, Param};
use crate::cpu::simd::vector::{MAX_LANES, Vector, magnitude};
use crate::job::Job;

/// What the magnitude of an entry's first moment must reach. 0 lets all move whose first moment is finite.
#[derive(Clone, Copy)]
pub(in crate::cpu) enum Thresholds<'a> {
    /// The same for all entries.
    Same(u32),
    /// One for each entry of the range, and [`MAX_LANES`] more that mean nothing.
    Each(&'a [u32]),
}

/// What became of some entries.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::cpu) struct Entries {
    /// How many moved.
    pub(in crate::cpu) selected: u64,
    /// How many have a moment that is not finite.
    pub(in crate::cpu) nonfinite: u64,
}

impl AddAssign for Entries {
    fn add_assign(&mut self, other: Self) {
        self.selected += other.selected;
        self.nonfinite += other.nonfinite;
    }
}

/// Steps the entries `start..start + len`: those move that reach their threshold.
///
/// # Safety
///
/// The range lies within the job's tensor; the job's buffers are as large as it says, and nobody else uses
/// them in this range.
pub(in crate::cpu) unsafe fn adamw(
    kernels: &Kernels,
    job: &Job,
    range: (u64, u64),
    thresholds: Thresholds<'_>,
) -> Entries {
    let access = Access {
        grad: true,
        moments: Moments::Written,
        param: true,
    };
    let same;
    let mut body = match thresholds {
        Thresholds::Same(threshold) => {
            same = [threshold; MAX_LANES];
            Step::new(job, &same, false)
        }
        Thresholds::Each(each) => {
            assert!(each.len() as u64 >= range.1 + MAX_LANES as u64);
            Step::new(job, each, true)
        }
    };
    let run = (kernels.adamw)(job);
    // SAFETY: the caller's promise.
    unsafe { for_each_tile(kernels, job, range, access, &mut body, run) };
    body.entries
}

/// Moves the entries `start..start + len` like [`adamw`], after their moments have been updated. How many moved.
///
/// # Safety
///
/// As there.
pub(in crate::cpu) unsafe fn step_stored(
    kernels: &Kernels,
    job: &Job,
    range: (u64, u64),
    threshold: u32,
) -> u64 {
    let access = Access {
        grad: false,
        moments: Moments::Read,
        param: true,
    };
    let same = [threshold; MAX_LANES];
    let mut body = Step::new(job, &same, false);
    let run = (kernels.step_stored)(job);
    // SAFETY: the caller's promise.
    unsafe { for_each_tile(kernels, job, range, access, &mut body, run) };
    body.entries.selected
}

/// What [`adamw`] keeps from tile to tile.
pub(in crate::cpu) struct Step {
    thresholds: *const u32,
    /// There is a threshold for each entry; else for each lane.
    has_each: bool,
    decays_all: bool,
    /// None are known not to be finite where the moments were updated before.
    entries: Entries,
}

impl Step {
    fn new(job: &Job, thresholds: &[u32], has_each: bool) -> Self {
        Self {
            thresholds: thresholds.as_ptr(),
            has_each,
            decays_all: job.weight_decay_scope == WeightDecayScope::All,
            entries: Entries::default(),
        }
    }

    /// A [`Loop`](super::tiles::Loop). `STORED` says that the moments are those after the step already.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn tile<V: Vector, P: Param<V>, S: Moment<V>, const STORED: bool>(
        &mut self,
        tile: Tile<'_>,
    ) {
        let stride = if self.has_each { V::LANES } else { 0 };
        let decays_all = V::equal(V::uint(self.decays_all.into()), V::uint(1));
        let (mut moved_lanes, mut largest) = (V::uint(0), V::uint(0));
        for group in 0..tile.groups::<V>() {
            let at = tile.pointers.group::<V, P, S>(group);
            let entries = tile.entries::<V>(group);
            // SAFETY: the caller's promise.
            unsafe {
                let (m, v) = if STORED {
                    tile.arithmetic.stored::<V, S>(at)
                } else {
                    let (m, v) = tile.arithmetic.moments::<V, S>(at, entries);
                    S::store(at.exp_avg, m);
                    S::store(at.exp_avg_sq, v);
                    (m, v)
                };
                if !STORED {
                    largest = with_moments::<V>(largest, m, v);
                }
                let threshold = V::load_f32(self.thresholds.add(group * stride).cast());
                let selected = V::finite(m) & V::at_least(magnitude::<V>(m), V::bits(threshold));
                let old = P::load(at.param, at.master);
                let difference = V::bits(tile.arithmetic.difference::<V>(m, v));
                let difference = V::from_bits(V::keep(selected, difference));
                let moved = tile.arithmetic.decayed::<V, P>(old) - difference;
                let new = tile.arithmetic.encode::<V, P>(moved, entries);
                P::store(at.param, at.master, new, old, selected | decays_all);
                moved_lanes = V::tally(moved_lanes, selected);
            }
            V::end_group();
        }
        self.entries.selected += u64::from(V::sum(moved_lanes));
        if !STORED {
            // SAFETY: the caller's promise.
            self.entries.nonfinite += unsafe { tile.count_nonfinite::<V, S>(largest) } as u64;
        }
        if self.has_each {
            self.thresholds = self.thresholds.wrapping_add(tile.len);
        }
    }
}
