//! The loop that decays every entry.

use super::table::Kernels;
use super::tiles::{Access, Moments, Tile, for_each_tile};
use crate::cpu::simd::element::{Param, Single};
use crate::cpu::simd::vector::Vector;
use crate::job::Job;

/// Decays the entries `start..start + len`.
///
/// # Safety
///
/// The range lies within the job's tensor; the job's buffers are as large as it says, and nobody else uses parameter
/// and master copy in this range.
pub(in crate::cpu) unsafe fn decay(kernels: &Kernels, job: &Job, range: (u64, u64)) {
    let access = Access {
        grad: false,
        moments: Moments::Unused,
        param: true,
    };
    let run = (kernels.decay)(job);
    // SAFETY: the caller's promise.
    unsafe { for_each_tile(kernels, job, range, access, &mut (), run) };
}

/// A [`Loop`](super::tiles::Loop).
///
/// # Safety
///
/// As there.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, P: Param<V>>(tile: Tile<'_>) {
    let everywhere = V::equal(V::uint(0), V::uint(0));
    for group in 0..tile.groups::<V>() {
        let at = tile.pointers.group::<V, P, Single>(group);
        // SAFETY: the caller's promise.
        unsafe {
            let old = P::load(at.param, at.master);
            let decayed = tile.arithmetic.decayed::<V, P>(old);
            let new = tile
                .arithmetic
                .encode::<V, P>(decayed, tile.entries::<V>(group));
            P::store(at.param, at.master, new, old, everywhere);
        }
        V::end_group();
    }
}
