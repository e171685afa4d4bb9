//! How the work of a step is cut into pieces for the threads.
//!
//! Work is cut by entries over all tensors, so that one huge tensor and a thousand tiny ones both occupy all
//! threads. The cut never changes a result.

use super::tier::keeps_old;
use crate::config::{Filter, WeightDecayScope};
use crate::error::Result;
use crate::forced;
use crate::job::Job;
use crate::memory::try_reserve;
use crate::rule::norm::CHUNK;

/// Entries of a piece: large against the cost of handing it out, small against a core's cache.
pub(super) const PIECE: u64 = 1 << 14;
/// Blocks up to this size are dealt with by one thread, threshold and all, while they are in its cache;
/// larger ones by all threads together.
pub(super) const SMALL_BLOCK: u64 = 1 << 16;

/// A range of entries of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Piece {
    /// Which of the step's jobs.
    pub(super) job: usize,
    pub(super) start: u64,
    pub(super) len: u64,
    /// Where its chunk sums start.
    pub(super) slot: usize,
    /// It is a part of a block whose threshold is found by all threads together.
    pub(super) is_large: bool,
}

/// True if the thresholds are too much for one thread.
fn is_large(job: &Job) -> bool {
    let most = forced::current().small_block.unwrap_or(SMALL_BLOCK);
    !job.everything_moves && job.block_numel > most
}

/// True if the blocks are stepped before their thresholds are known.
pub(super) fn is_estimated(job: &Job) -> bool {
    // An entry that decays without moving would have two possible values to note. The other filters are there for
    // comparison, and not worth loops of their own.
    let decays_all = job.weight_decay_scope == WeightDecayScope::All && job.scalars.decay != 1.0;
    is_large(job) && !decays_all && job.filter == Filter::Momentum && !keeps_too_much(job)
}

/// True if so many entries move that there is no room for their old values, where these are kept.
fn keeps_too_much(job: &Job) -> bool {
    keeps_old(job) && job.rank > most_kept(job.block_numel)
}

/// How many old values of a block are kept at most, where they are kept.
pub(super) fn most_kept(block_numel: u64) -> u64 {
    block_numel / 4
}

/// True if all threads together search for the threshold of each block before it is stepped.
pub(super) fn is_searched(job: &Job) -> bool {
    is_large(job) && !is_estimated(job)
}

/// The largest ranges that may not be crossed by a piece, and the length of a piece: whole blocks where one
/// thread finds their thresholds.
fn step_cut(job: &Job) -> (u64, u64) {
    if job.everything_moves {
        (job.numel, PIECE)
    } else if is_large(job) {
        (job.block_numel, PIECE)
    } else {
        (
            job.numel,
            (PIECE / job.block_numel).max(1) * job.block_numel,
        )
    }
}

/// Cuts jobs for the pass that updates them, once their thresholds are known or can be found piece by piece.
pub(super) fn cut_for_update(jobs: &[Job], pieces: &mut Vec<Piece>) -> Result<()> {
    pieces.clear();
    let updated = || {
        jobs.iter()
            .enumerate()
            .filter(|(_, job)| !is_estimated(job))
    };
    let pieces_of = |job: &Job| {
        let (range, piece) = step_cut(job);
        (job.numel / range) * range.div_ceil(piece)
    };
    let count: u64 = updated().map(|(_, job)| pieces_of(job)).sum();
    try_reserve(pieces, count as usize, "the work list")?;
    for (job, description) in updated() {
        let (range, piece) = step_cut(description);
        let first = pieces.len();
        for start in (0..description.numel).step_by(range as usize) {
            push_range(pieces, job, start, range, piece, |_| 0);
        }
        if is_large(description) {
            pieces[first..]
                .iter_mut()
                .for_each(|piece| piece.is_large = true);
        }
    }
    Ok(())
}

/// Cuts the jobs whose state starts in this step.
pub(super) fn cut_for_start(jobs: &[Job], pieces: &mut Vec<Piece>) -> Result<()> {
    pieces.clear();
    let starting = || {
        jobs.iter()
            .enumerate()
            .filter(|(_, job)| job.starts_moments || job.starts_master)
    };
    let count: u64 = starting().map(|(_, job)| job.numel.div_ceil(PIECE)).sum();
    try_reserve(pieces, count as usize, "the work list")?;
    for (job, description) in starting() {
        push_range(pieces, job, 0, description.numel, PIECE, |_| 0);
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
        push_range(pieces, job, 0, description.numel, PIECE, |start| {
            chunks + (start / CHUNK as u64) as usize
        });
        chunks += chunks_of(description.numel);
    }
    Ok(chunks)
}

/// At most how many pieces any of these cuts makes of a tensor.
pub(super) fn most_pieces(numel: u64, num_blocks: u64) -> u64 {
    let block_numel = numel / num_blocks;
    if block_numel > SMALL_BLOCK {
        num_blocks * block_numel.div_ceil(PIECE)
    } else {
        // Groups of whole blocks fill at least half a piece.
        numel.div_ceil(PIECE / 2)
    }
}

/// Chunks of the norm in a tensor.
pub(super) fn chunks_of(numel: u64) -> usize {
    numel.div_ceil(CHUNK as u64) as usize
}

fn push_range(
    pieces: &mut Vec<Piece>,
    job: usize,
    start: u64,
    len: u64,
    piece: u64,
    slot: impl Fn(u64) -> usize,
) {
    for offset in (0..len).step_by(piece as usize) {
        pieces.push(Piece {
            job,
            start: start + offset,
            len: piece.min(len - offset),
            slot: slot(offset),
            is_large: false,
        });
    }
}
