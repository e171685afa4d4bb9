//! The loop that finds the thresholds of many tiny blocks, one block in each lane.

use crate::cpu::simd::vector::MAX_LANES;

/// Entries of a tiny block at most.
pub(in crate::cpu) const TINY: usize = 128;

/// Keys that are kept of a block at most.
const MOST_KEPT: usize = 32;

/// A block is so small, and so few keys must be kept, that this takes less time than lists (measured).
pub(in crate::cpu) fn is_tiny(len: u64, rank: u64) -> bool {
    len <= TINY as u64 && rank.min(len + 1 - rank) <= MOST_KEPT as u64
}

/// Writes the `rank`-th largest of each `len` consecutive keys to `thresholds`, for tiny blocks.
///
/// Each lane inserts the keys of its block one by one into those that it keeps in order: the `rank` largest, or the
/// `len + 1 - rank` smallest, whichever are fewer. That takes no branch on the data, and the compiler makes vectors of it.
#[inline(always)]
pub(super) fn thresholds(keys: &[u32], len: usize, rank: usize, thresholds: &mut [u32]) {
    debug_assert!(keys.len() == len * thresholds.len() && is_tiny(len as u64, rank as u64));
    let from_below = len + 1 - rank;
    // The complement of a key turns the order round.
    let (kept, flip) = if rank <= from_below {
        (rank, 0)
    } else {
        (from_below, u32::MAX)
    };
    let mut largest = [[0; MAX_LANES]; MOST_KEPT];
    let largest = &mut largest[..kept];
    let groups = keys.chunks(len * MAX_LANES);
    for (keys, thresholds) in groups.zip(thresholds.chunks_mut(MAX_LANES)) {
        largest.fill([0; MAX_LANES]);
        for i in 0..len {
            let mut inserted = [0; MAX_LANES];
            for (inserted, block) in inserted.iter_mut().zip(keys.chunks_exact(len)) {
                *inserted = block[i] ^ flip;
            }
            for kept in largest.iter_mut().take(i + 1) {
                for (kept, inserted) in kept.iter_mut().zip(&mut inserted) {
                    (*kept, *inserted) = ((*kept).max(*inserted), (*kept).min(*inserted));
                }
            }
        }
        let last = &largest[largest.len() - 1];
        for (threshold, &key) in thresholds.iter_mut().zip(last) {
            *threshold = key ^ flip;
        }
    }
}
