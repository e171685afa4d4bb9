//! Collect: updates the moments of a segment, and lists the entries that may move.

use super::Range;
use super::lists::{Lists, Scratch, Segment, Share};
use crate::config::Filter;
use crate::cpu::kernels::{self, Bracket, Kernels};
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
    (lists, share): (&Lists<'_>, &Share),
) -> Segment {
    let values = Listing::for_job(job) == Listing::Candidates;
    let mut candidates = scratch.candidates();
    // SAFETY: the caller's promise; the scratch has room for a segment.
    unsafe {
        let range = (segment.start, segment.len);
        kernels::collect(kernels, job, range, bracket, values, &mut candidates);
        lists.keep(share, &candidates, values)
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
    (lists, share): (&Lists<'_>, &Share),
) -> Segment {
    let values = Listing::for_job(job) == Listing::Candidates;
    let mut candidates = scratch.candidates();
    // SAFETY: the caller's promise; the scratch has room for a segment.
    unsafe {
        let range = (segment.start, segment.len);
        kernels::collect_stored(kernels, job, range, bracket, &mut candidates);
        lists.keep(share, &candidates, values)
    }
}
