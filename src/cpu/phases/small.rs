//! Small blocks: one thread takes all four phases of a block, while it is in its cache.

use super::apply::apply;
use super::collect::{collect, collect_again};
use super::decide::{Collected, Decision};
use super::estimate::{self, Sample, Target};
use super::lists::{Capacity, Lists, SEGMENT, Scratch, Segment, Share};
use super::order::{BUCKETS, Counts, DIGITS, DigitSearch, OCTAVE};
use super::{Range, forced, segments};
use crate::config::Filter;
use crate::cpu::kernels::{self, Bracket, Entries, Kernels, LINE, TINY, Thresholds, is_tiny};
use crate::cpu::simd::vector::MAX_LANES;
use crate::job::Job;
use crate::rule::convert::INFINITE;
use crate::test_paths::Paths;

/// Blocks up to this size are stepped by one thread.
pub(in crate::cpu) const SMALL_BLOCK: u64 = 1 << 15;
/// Entries of tiny blocks that are stepped together.
const RUN: usize = 2048;
const _: () = assert!(RUN >= TINY);
const MOST_SEGMENTS: usize = (SMALL_BLOCK / SEGMENT) as usize;

/// How many times candidates are collected again before the digits of all keys are counted.
const ATTEMPTS: usize = 3;

/// Nothing is known of the threshold: for blocks that are hardly larger than a sample.
const EVERY_KEY: Bracket = Bracket {
    low: 1,
    high: INFINITE,
};

/// The candidates of a small block that a thread has room for.
pub(super) const CAPACITY: Capacity = Capacity {
    certain: SMALL_BLOCK as usize / 4,
    open: SMALL_BLOCK as usize / 8,
};

fn capacity_on(paths: Paths) -> Capacity {
    Capacity {
        certain: if paths.no_room { 0 } else { CAPACITY.certain },
        ..CAPACITY
    }
}

/// A thread's memory for a small block.
pub(in crate::cpu) struct SmallBlocks<'a> {
    kernels: &'a Kernels,
    scratch: Scratch<'a>,
    lists: Lists<'a>,
    share: Share,
    bracket: Bracket,
    /// What became of those of the present call.
    entries: Entries,
    paths: Paths,
}

impl<'a> SmallBlocks<'a> {
    pub(super) fn new(
        kernels: &'a Kernels,
        scratch: Scratch<'a>,
        lists: Lists<'a>,
        thread: usize,
        paths: Paths,
    ) -> Self {
        let behind = Capacity {
            certain: thread * CAPACITY.certain,
            open: thread * CAPACITY.open,
        };
        Self {
            kernels,
            scratch,
            lists,
            share: Share::new(behind, capacity_on(paths)),
            bracket: Bracket::at(1),
            entries: Entries::default(),
            paths,
        }
    }

    /// Steps consecutive blocks from an entry on; the thresholds are those of the step before, or 0, and become those of this
    /// step.
    ///
    /// # Safety
    ///
    /// The blocks are the job's, of at most [`SMALL_BLOCK`] entries; the job's buffers are as large as it says, and nobody
    /// else uses them in this range.
    pub(in crate::cpu) unsafe fn step(
        &mut self,
        job: &Job,
        start: u64,
        thresholds: &mut [u32],
    ) -> Entries {
        let len = job.block_numel;
        if job.filter == Filter::Momentum && is_tiny(len, job.rank) {
            let run = RUN / len as usize;
            let starts = (start..).step_by(run * len as usize);
            let runs = starts.zip(thresholds.chunks_mut(run));
            for (start, thresholds) in runs {
                // SAFETY: the caller's promise.
                unsafe { self.step_tiny(job, start, thresholds) };
            }
        } else {
            let starts = (start..).step_by(len as usize);
            for (start, threshold) in starts.zip(thresholds) {
                // SAFETY: the caller's promise.
                unsafe { self.step_block(job, Range { start, len }, threshold) };
            }
        }
        std::mem::take(&mut self.entries)
    }

    /// Steps one block.
    ///
    /// # Safety
    ///
    /// As for [`SmallBlocks::step`].
    unsafe fn step_block(&mut self, job: &Job, block: Range, threshold: &mut u32) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut listed = [Segment::default(); MOST_SEGMENTS];
            let found = self.collect(job, block, *threshold, &mut listed);
            *threshold = found;
            for (segment, range) in listed.iter().zip(segments(block)) {
                let lists = (&self.lists, segment);
                let moved = apply(self.kernels, job, range, found, &mut self.scratch, lists);
                self.entries.selected += moved;
            }
        }
    }

    /// Finds the thresholds of tiny blocks by all of their keys, and steps the blocks like AdamW.
    ///
    /// # Safety
    ///
    /// As for [`SmallBlocks::step`]; the blocks have at most [`TINY`] entries, and [`RUN`] together.
    unsafe fn step_tiny(&mut self, job: &Job, start: u64, thresholds: &mut [u32]) {
        // Words for a group more are needed by both.
        let (mut keys, mut each) = ([0; RUN + MAX_LANES], [0; RUN + MAX_LANES]);
        let block = job.block_numel as usize;
        let len = block * thresholds.len();
        // SAFETY: the caller's promise; there is room for the keys and a group more; the kernels are for this processor.
        unsafe {
            kernels::keys(self.kernels, job, (start, len), keys.as_mut_ptr());
            (self.kernels.thresholds)(&keys[..len], block, job.rank as usize, thresholds);
            for (each, &mut threshold) in each.chunks_mut(block).zip(thresholds) {
                // A key of 0 never moves.
                each.fill(threshold.max(1));
            }
            self.entries += kernels::adamw(
                self.kernels,
                job,
                (start, len as u64),
                Thresholds::Each(&each),
            );
        }
    }

    /// Collects a block until its threshold is found.
    ///
    /// # Safety
    ///
    /// As for [`SmallBlocks::step`].
    unsafe fn collect(
        &mut self,
        job: &Job,
        block: Range,
        hint: u32,
        listed: &mut [Segment; MOST_SEGMENTS],
    ) -> u32 {
        let distance = OCTAVE / 8;
        let bracket = if block.len <= 2 * LINE as u64 {
            EVERY_KEY
        } else if hint > 0 {
            Bracket {
                low: hint.saturating_sub(distance).max(1),
                high: (hint + distance).min(INFINITE),
            }
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.sampled(job, block) }
        };
        self.bracket = forced(bracket, self.paths);
        self.share.clear();
        for (segment, range) in listed.iter_mut().zip(segments(block)) {
            // SAFETY: the caller's promise; the segment is a part of the block.
            *segment = unsafe {
                let lists = (&self.lists, &self.share);
                collect(
                    self.kernels,
                    job,
                    range,
                    self.bracket,
                    &mut self.scratch,
                    lists,
                )
            };
            self.entries.nonfinite += u64::from(segment.num_nonfinite);
        }
        let attempts = if self.paths.digits { 0 } else { ATTEMPTS };
        let mut distance = OCTAVE / 2;
        for _ in 0..attempts {
            let Bracket { low, high } = self.bracket;
            let (low, high) = match self.decide(job) {
                Decision::Threshold(found) => return found,
                Decision::Above => (high, (high + distance).min(INFINITE)),
                Decision::Below => (low.saturating_sub(distance).max(1), low),
                Decision::Inside => (low + (high - low) / 2, high),
            };
            if low >= high {
                break;
            }
            distance *= 4;
            self.bracket = Bracket { low, high };
            self.share.clear();
            for (segment, range) in listed.iter_mut().zip(segments(block)) {
                let (lists, scratch) = ((&self.lists, &self.share), &mut self.scratch);
                // SAFETY: the caller's promise; the segment is a part of the block.
                *segment = unsafe {
                    collect_again(self.kernels, job, range, self.bracket, scratch, lists)
                };
            }
        }
        if let Decision::Threshold(found) = self.decide(job) {
            return found;
        }
        *listed = [Segment::default(); MOST_SEGMENTS];
        // SAFETY: the caller's promise.
        unsafe { self.by_digits(job, block) }
    }

    fn decide(&mut self, job: &Job) -> Decision {
        let collected = Collected {
            bracket: self.bracket,
            num_certain: self.share.certain.count() as u64,
            num_open: self.share.open.count() as u64,
            // SAFETY: only this thread lists anything there.
            open_keys: unsafe { self.lists.open_keys(&self.share) },
        };
        let [work_space, _] = self.scratch.free_parts();
        collected.decide(self.kernels, job.rank, work_space)
    }

    /// # Safety
    ///
    /// As for [`SmallBlocks::step`]; the block has not been collected, and has at least a line.
    unsafe fn sampled(&mut self, job: &Job, block: Range) -> Bracket {
        let lines = estimate::lines(block.len);
        // SAFETY: the caller's promise; the parts lie behind each other in this thread's memory.
        unsafe {
            let words = self.scratch.all_words();
            let mut sample = Sample::new(&mut words[..estimate::sample_words(block.len)], lines);
            let to = sample.place_of_line(0);
            estimate::gather(self.kernels, job, block, lines, (0, lines), 0, to);
            estimate::bracket(self.kernels, &mut sample, Target::for_job(job), 0)
        }
    }

    /// The threshold by the digits of all stored keys, without any assumption.
    ///
    /// # Safety
    ///
    /// As for [`SmallBlocks::step`]; the block has been collected.
    unsafe fn by_digits(&mut self, job: &Job, block: Range) -> u32 {
        let mut search = DigitSearch::new(job.rank);
        for digit in DIGITS {
            let mut counts: Counts = [0; BUCKETS];
            for range in segments(block) {
                // SAFETY: the caller's promise.
                let keys = unsafe { stored_keys(self.kernels, job, range, &mut self.scratch) };
                search.count(digit, keys, &mut counts);
            }
            search.narrow(digit, |bucket| counts[bucket].into());
        }
        search.upper
    }
}

/// The keys above 0 of a segment that has been collected.
///
/// # Safety
///
/// As for [`kernels::collect_stored`]; the keys are there until the scratch is used for something else.
pub(super) unsafe fn stored_keys<'a>(
    kernels: &Kernels,
    job: &Job,
    segment: Range,
    scratch: &mut Scratch<'a>,
) -> &'a [u32] {
    let mut candidates = scratch.candidates();
    // SAFETY: the caller's promise; the scratch has room for a segment.
    unsafe {
        let range = (segment.start, segment.len);
        kernels::collect_stored(kernels, job, range, EVERY_KEY, &mut candidates);
        std::slice::from_raw_parts(candidates.open_keys, candidates.num_open)
    }
}
