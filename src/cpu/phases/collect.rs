//! Collect: updates the moments of a segment, and lists the entries that may move.

use super::Range;
use super::lists::{Lists, Scratch, Segment, Share};
use crate::config::Filter;
use crate::cpu::kernels::{self, Bracket, Candidates, Kernels};
use crate::job::Job;

/// How a block is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    /// Candidates with their values.
    Candidates,
    /// Open keys alone: so many entries move that apply takes less time to compute all values from the stored moments
    /// than to go through lists.
    Keys,
}

/// From this share of a block on, entries are not listed (measured: `docs/performance.md`).
const MOST_LISTED: f64 = 0.15;

impl Listing {
    pub(super) fn for_job(job: &Job) -> Self {
        let share = job.rank as f64 / job.block_numel as f64;
        // The other filters are for comparison, and not worth loops of their own.
        if job.filter == Filter::Momentum && share > MOST_LISTED {
            Self::Keys
        } else {
            Self::Candidates
        }
    }
}

/// Updates the moments of a segment, and lists the entries that the bracket does not rule out.
///
/// # Safety
///
/// As for [`kernels::collect`]; nobody else uses the scratch.
pub(super) unsafe fn collect(
    kernels: &Kernels,
    job: &Job,
    segment: Range,
    bracket: Bracket,
    scratch: &mut Scratch<'_>,
    lists: (&Lists<'_>, &Share),
) -> Segment {
    // SAFETY: the caller's promise; the scratch has room for a segment.
    unsafe {
        list(job, segment, scratch, lists, |range, values, candidates| {
            kernels::collect(kernels, job, range, bracket, values, candidates);
        })
    }
}

/// Lists the same by the moments that [`collect`] has stored.
///
/// # Safety
///
/// As there.
pub(super) unsafe fn collect_again(
    kernels: &Kernels,
    job: &Job,
    segment: Range,
    bracket: Bracket,
    scratch: &mut Scratch<'_>,
    lists: (&Lists<'_>, &Share),
) -> Segment {
    // SAFETY: the caller's promise; the scratch has room for a segment.
    unsafe {
        list(job, segment, scratch, lists, |range, _, candidates| {
            kernels::collect_stored(kernels, job, range, bracket, candidates);
        })
    }
}

/// Lists what `run` finds in a segment, given whether values are wanted.
///
/// # Safety
///
/// As for [`collect`]; `run` leaves the candidates of the range, with values unless they are not wanted.
unsafe fn list(
    job: &Job,
    segment: Range,
    scratch: &mut Scratch<'_>,
    (lists, share): (&Lists<'_>, &Share),
    run: impl FnOnce((u64, u64), bool, &mut Candidates),
) -> Segment {
    let values = Listing::for_job(job) == Listing::Candidates;
    let mut candidates = scratch.candidates();
    run((segment.start, segment.len), values, &mut candidates);
    // SAFETY: the caller's promise.
    unsafe { lists.keep(share, &candidates, values) }
}
