//! The loop that decays what did not move.

use super::pass::Pass;
use super::step::Thresholds;
use super::walk::{Place, Uses, WIDENED, walk};
use crate::cpu::element::{Param, Single};
use crate::cpu::tier::Kernels;
use crate::cpu::vector::{Vector, magnitude};
use crate::job::Job;

/// Decays those of the entries `start..start + len` that the step just taken with these thresholds did not move. Not a
/// part of the loop that steps: that would be two loops for each pair of types, or slower.
///
/// # Safety
///
/// As for [`super::step()`]; there are thresholds for the range.
pub(super) unsafe fn decay_others(
    kernels: &Kernels,
    job: &Job,
    (start, len): (u64, u64),
    thresholds: Thresholds,
) {
    let mut body = Decay { thresholds };
    let tile = (kernels.decay)(job);
    // SAFETY: the caller's promise.
    unsafe {
        walk(
            kernels,
            job,
            (start, len),
            Uses::Param,
            WIDENED,
            &mut body,
            tile,
        )
    };
}

/// What [`decay_others`] keeps from tile to tile.
pub(in crate::cpu) struct Decay {
    thresholds: Thresholds,
}

impl Decay {
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
        let everywhere = V::equal(entries, entries);
        for group in 0..len.div_ceil(V::LANES) {
            let (place, entries) = place.group::<V, P, Single>(entries, group);
            // SAFETY: the caller's promise; there are thresholds for all groups.
            unsafe {
                let m = V::load_f32(place.exp_avg.cast());
                let threshold = self.thresholds.load::<V>(group);
                let moved = V::finite(m) & V::at_least(magnitude::<V>(m), threshold);
                let old = P::load(place.param, place.master);
                let new = pass.encode::<V, P>(pass.decayed::<V, P>(old), entries);
                P::store(place.param, place.master, new, old, moved ^ everywhere);
            }
            V::end_group();
        }
        self.thresholds.skip(len);
    }
}
