//! The threshold of a large block before the pass that updates it: all threads search together.
//!
//! A sample brackets the threshold. One pass then counts the keys above the bracket and collects those inside it,
//! a small share of all; the threshold is among them, at a rank that is now known. Where the bracket turns out
//! to be wrong or to hold too much (adversarial order, clusters, ties), the keys' digits are counted instead,
//! from the top: three passes, and no assumption.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::executor::{Executor, Incomplete};
use super::kernels::{self, Bracket};
use super::plan::PIECE;
use super::runs::{Candidates, kth_of_runs};
use super::sample;
use super::select::{DIGITS, DigitSearch, Range, SharedCounts, rank_inside};
use super::tier::Kernels;
use super::vector::MAX_LANES;
use crate::error::Result;
use crate::job::Job;
use crate::rule::select::kth_largest;

/// Keys that are computed at a time.
const TILE: usize = 1024;
/// Words that it takes to narrow down the collected keys, instead of ordering all of them.
const LEAST_ROOM: usize = 1024;

/// How many keys of a block of this length may be collected: many times what a good bracket holds.
pub(super) fn capacity(len: u64) -> usize {
    (len / 16).max(len.min(1 << 16)) as usize
}

/// The threshold of a block; `hint` is about the threshold, or 0. Changes nothing; keys are recomputed in every pass.
///
/// # Safety
///
/// As for [`crate::backend::Backend::step`]; `keys` is as long as [`capacity`] and [`sample::room`] say.
pub(super) unsafe fn threshold(
    kernels: &Kernels,
    executor: &mut Executor,
    job: &Job,
    block: Range,
    hint: u32,
    keys: &mut [u32],
) -> Result<u32> {
    let mut search = Search {
        kernels,
        executor,
        job,
        block,
        hint,
    };
    // SAFETY: the caller's promise.
    unsafe {
        if crate::forced::current().digits {
            return search.by_digits();
        }
        match search.by_bracket(keys)? {
            Some(threshold) => Ok(threshold),
            None => search.by_digits(),
        }
    }
}

struct Search<'a> {
    kernels: &'a Kernels,
    executor: &'a mut Executor,
    job: &'a Job,
    block: Range,
    hint: u32,
}

/// Memory that threads write disjoint elements of.
struct Shared(*mut u32);

// SAFETY: whoever uses it makes sure that no two threads touch the same element.
unsafe impl Sync for Shared {}

impl Search<'_> {
    fn pieces(&self) -> usize {
        self.block.len.div_ceil(PIECE) as usize
    }

    /// The threshold, unless the bracket was wrong or held too much.
    ///
    /// # Safety
    ///
    /// As for [`threshold`].
    unsafe fn by_bracket(&mut self, keys: &mut [u32]) -> Result<Option<u32>> {
        let (kernels, job, block) = (self.kernels, self.job, self.block);
        let capacity = keys.len();
        // SAFETY: the caller's promise.
        let bracket = unsafe { self.bracket(keys)? };
        // If all keys inside are the same, it is enough to count them.
        let keeps = bracket.0 < bracket.1;
        let (above, inside) = (AtomicU64::new(0), AtomicUsize::new(0));
        let collected = Shared(keys.as_mut_ptr());
        let collect = |piece: usize| {
            let collected = &collected;
            let piece = block.piece(piece as u64);
            // SAFETY: nobody writes to the jobs during a search.
            let here = unsafe {
                collect_piece(kernels, job, piece, bracket, |keys| {
                    let place = inside.fetch_add(keys.len(), Ordering::Relaxed);
                    let fits = place + keys.len() <= capacity;
                    if !keeps {
                        return true;
                    }
                    if fits {
                        // SAFETY: these places were claimed by this thread alone.
                        let to = collected.0.add(place);
                        to.copy_from_nonoverlapping(keys.as_ptr(), keys.len());
                    }
                    fits
                })
            };
            above.fetch_add(here, Ordering::Relaxed);
        };
        self.executor
            .for_each(self.pieces(), block.len, Incomplete::Finish, collect)?;
        let (above, inside) = (above.into_inner(), inside.into_inner());
        let Some(rank) = rank_inside(job.rank, above, inside) else {
            return Ok(None);
        };
        if !keeps {
            return Ok(Some(bracket.0));
        }
        if inside > capacity {
            return Ok(None);
        }
        let (found, room) = keys.split_at_mut(inside);
        if room.len() < LEAST_ROOM {
            return Ok(Some(kth_largest(found, rank)));
        }
        let candidates = Candidates {
            low: bracket.0,
            high: bracket.1,
            count: inside as u64,
            above: 0,
        };
        let runs = || std::iter::once(&*found);
        Ok(Some(kth_of_runs(
            kernels,
            runs,
            candidates,
            rank as u64,
            room,
        )))
    }

    /// Brackets the threshold by a sample; `room` is work space.
    ///
    /// # Safety
    ///
    /// As for [`threshold`].
    unsafe fn bracket(&mut self, room: &mut [u32]) -> Result<Bracket> {
        let (kernels, job, block) = (self.kernels, self.job, self.block);
        let lines = sample::lines(block.len);
        let (keys, candidates) = room.split_at_mut(lines * sample::LINE);
        let gathers = lines.div_ceil(sample::BATCH);
        let shared = Shared(keys.as_mut_ptr());
        let gather = |i: usize| {
            let shared = &shared;
            let first = i * sample::BATCH;
            let last = lines.min(first + sample::BATCH);
            // SAFETY: the caller's promise; every item has lines of its own, and `keys` has room for all.
            unsafe {
                let to = shared.0.add(first * sample::LINE);
                sample::gather(kernels, job, block, lines, (first, last), to);
            }
        };
        self.executor
            .for_each(gathers, block.len / 16, Incomplete::Finish, gather)?;
        Ok(sample::bracket_of(
            kernels, keys, candidates, job.rank, block.len, self.hint,
        ))
    }

    /// The threshold, without any assumption.
    ///
    /// # Safety
    ///
    /// As for [`threshold`].
    unsafe fn by_digits(&mut self) -> Result<u32> {
        let (kernels, job, block) = (self.kernels, self.job, self.block);
        let mut found = DigitSearch::new(job.rank);
        for digit in DIGITS {
            let counts = SharedCounts::new();
            let count = |piece: usize| {
                let piece = block.piece(piece as u64);
                // SAFETY: a range of the job; nobody writes to it during the search.
                unsafe { counts.add(kernels, job, piece, found.upper, digit) };
            };
            self.executor
                .for_each(self.pieces(), block.len, Incomplete::Finish, count)?;
            found.narrow(digit, |bucket| counts.get(bucket));
        }
        Ok(found.upper)
    }
}

/// Passes the keys of a piece that are inside the bracket to `keep`, some at a time, until it refuses; the number of
/// those above the bracket.
///
/// # Safety
///
/// As for [`super::kernels::keys`].
unsafe fn collect_piece(
    kernels: &Kernels,
    job: &Job,
    piece: Range,
    bracket: Bracket,
    keep: impl Fn(&[u32]) -> bool,
) -> u64 {
    let mut found = [0u32; TILE + MAX_LANES];
    let (mut above, mut done) = (0, 0);
    while done < piece.len {
        let n = (piece.len - done).min(TILE as u64);
        // SAFETY: a part of the piece; a tile's keys and a group more have room in `found`.
        let collected = unsafe {
            let start = piece.start + done;
            kernels::collect(kernels, job, start, n as usize, bracket, found.as_mut_ptr())
        };
        above += collected.above;
        if collected.inside > 0 && !keep(&found[..collected.inside]) {
            break;
        }
        done += n;
    }
    above
}
