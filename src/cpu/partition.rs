//! How the work of a step is cut into pieces for the threads.
//!
//! Work is cut by entries over all tensors, so that one huge tensor and a thousand tiny ones both occupy all
//! threads. The cut never changes a result.

use super::kernels::LINE;
use super::phases::SMALL_BLOCK;
use crate::error::Result;
use crate::job::Job;
use crate::memory::try_reserve;
use crate::rule::norm::CHUNK;
use crate::test_paths;

/// Entries of a piece: large against the cost of handing it out, small against a core's cache.
pub(super) const PIECE: u64 = 1 << 14;

/// A range of entries of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Piece {
    /// Which of the step's jobs.
    pub(super) job: usize,
    pub(super) start: u64,
    pub(super) len: u64,
    /// Where its chunk sums start.
    pub(super) slot: usize,
}

/// Smaller blocks are never stepped by all threads: a sample of them would read beyond their end.
const LEAST_SHARED_BLOCK: u64 = 64;
const _: () = assert!(LEAST_SHARED_BLOCK >= LINE as u64);

/// Who steps the blocks of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    /// Everything moves; where blocks start does not matter.
    Everything,
    /// One thread steps a block, all phases, while it is in its cache.
    OneThread,
    /// All threads together take one phase after the other.
    AllThreads,
}

pub(super) fn schedule(job: &Job) -> Schedule {
    let most = test_paths::current().small_block.unwrap_or(SMALL_BLOCK);
    if job.everything_moves {
        Schedule::Everything
    } else if job.block_numel <= most.clamp(LEAST_SHARED_BLOCK, SMALL_BLOCK) {
        Schedule::OneThread
    } else {
        Schedule::AllThreads
    }
}

/// The length of a piece for one thread: whole blocks, where it finds their thresholds.
fn piece_len(job: &Job) -> u64 {
    if job.everything_moves {
        PIECE
    } else {
        (PIECE / job.block_numel).max(1) * job.block_numel
    }
}

/// Cuts the jobs that are stepped piece by piece.
pub(super) fn cut_for_step(jobs: &[Job], pieces: &mut Vec<Piece>) -> Result<()> {
    pieces.clear();
    let stepped = || {
        jobs.iter()
            .enumerate()
            .filter(|(_, job)| schedule(job) != Schedule::AllThreads)
    };
    let count: u64 = stepped()
        .map(|(_, job)| job.numel.div_ceil(piece_len(job)))
        .sum();
    try_reserve(pieces, count as usize, "the work list")?;
    for (job, description) in stepped() {
        push_range(pieces, job, description, piece_len(description), |_| 0);
    }
    Ok(())
}

/// Cuts the jobs whose state starts in this step.
pub(super) fn cut_for_start(jobs: &[Job], pieces: &mut Vec<Piece>) -> Result<()> {
    pieces.clear();
    let starting = || {
        jobs.iter()
            .enumerate()
            .filter(|(_, job)| job.starts_moments || job.starts_master || job.starts_param)
    };
    let count: u64 = starting().map(|(_, job)| job.numel.div_ceil(PIECE)).sum();
    try_reserve(pieces, count as usize, "the work list")?;
    for (job, description) in starting() {
        push_range(pieces, job, description, PIECE, |_| 0);
    }
    Ok(())
}

/// Cuts jobs into pieces of whole chunks of the norm; `slot` is a piece's first chunk among all. Returns the
/// number of chunks.
pub(super) fn cut_for_norm(jobs: &[Job], pieces: &mut Vec<Piece>) -> Result<usize> {
    const { assert!(PIECE.is_multiple_of(CHUNK as u64)) };
    pieces.clear();
    let count: u64 = jobs.iter().map(|job| job.numel.div_ceil(PIECE)).sum();
    try_reserve(pieces, count as usize, "the work list")?;
    let mut chunks = 0;
    for (job, description) in jobs.iter().enumerate() {
        push_range(pieces, job, description, PIECE, |start| {
            chunks + (start / CHUNK as u64) as usize
        });
        chunks += chunks_of(description.numel);
    }
    Ok(chunks)
}

/// At most how many pieces any of these cuts makes of a tensor.
pub(super) fn most_pieces(numel: u64) -> u64 {
    // Groups of whole blocks fill at least half a piece.
    numel.div_ceil(PIECE / 2)
}

/// Chunks of the norm in a tensor.
pub(super) fn chunks_of(numel: u64) -> usize {
    numel.div_ceil(CHUNK as u64) as usize
}

fn push_range(
    pieces: &mut Vec<Piece>,
    job: usize,
    description: &Job,
    piece: u64,
    slot: impl Fn(u64) -> usize,
) {
    for start in (0..description.numel).step_by(piece as usize) {
        pieces.push(Piece {
            job,
            start,
            len: piece.min(description.numel - start),
            slot: slot(start),
        });
    }
}
