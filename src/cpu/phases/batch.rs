//! One batch of blocks on its way through the phases.

use std::sync::atomic::{AtomicU64, Ordering};

use super::apply::{apply, prefetch};
use super::collect::{collect, collect_again};
use super::decide::{Collected, Decision};
use super::estimate::{self, Sample, Target};
use super::forced;
use super::lists::{Lists, SEGMENT, Scratch, Segment};
use super::order::{BUCKETS, Counts, DIGITS, DigitSearch};
use super::plan::{Batch, Block, GATHERED, Stepped};
use super::small::stored_keys;
use crate::cpu::disjoint::Disjoint;
use crate::cpu::kernels::{Entries, Kernels, LINE, Sampled};
use crate::cpu::threads::{Executor, Incomplete};
use crate::error::Result;
use crate::job::Job;
use crate::test_paths::Paths;

/// What it takes to sample a key, or to find one among open keys, in entries that are stepped.
const KEY: u64 = 8;
/// Segments that a thread takes at a time.
const TAKEN: usize = 4;

/// One batch on its way.
pub(super) struct BatchRun<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) jobs: &'a [Job],
    pub(super) batch: &'a Batch,
    pub(super) blocks: &'a [Block],
    pub(super) segments: Disjoint<'a, Segment>,
    pub(super) lists: Lists<'a>,
    pub(super) samples: Disjoint<'a, u32>,
    pub(super) scratch: Disjoint<'a, u32>,
    pub(super) paths: Paths,
}

/// A thread in a phase that goes from segment to segment.
struct Worker<'a> {
    scratch: Scratch<'a>,
    /// Whose segments it is at.
    block: usize,
    /// What became of the entries in this phase.
    entries: Entries,
}

impl<'a> BatchRun<'a> {
    /// Takes all phases.
    ///
    /// # Safety
    ///
    /// As for [`super::LargeBlocks::step`].
    pub(super) unsafe fn run(&self, executor: &mut Executor, stepped: &mut Stepped) -> Result<()> {
        let batch = self.batch;
        let sampled = KEY * (GATHERED * LINE * batch.gathers) as u64;
        let all = 0..batch.segments;
        // SAFETY: the caller's promise; the phases follow each other, and their items are disjoint.
        unsafe {
            executor.for_each(batch.gathers, sampled, Incomplete::Finish, |i| {
                self.estimate(i);
            })?;
            let collected = self.for_each_segment(executor, all.clone(), |worker, block, i| {
                self.collect(worker, block, i);
            })?;
            // What other ranks know of a block that they share would be added up here.
            let open = self.blocks.iter().map(|block| block.share.open.count());
            let open = KEY * open.sum::<usize>() as u64;
            executor.for_each(self.blocks.len(), open, Incomplete::Finish, |i| {
                self.decide(&self.blocks[i]);
            })?;
            stepped.blocks += self.blocks.len() as u64;
            for block in self.blocks.iter().filter(|block| !block.is_decided()) {
                stepped.failed += 1;
                self.decide_again(executor, block)?;
            }
            let applied = self.for_each_segment(executor, all, |worker, block, i| {
                self.apply(worker, block, i);
            })?;
            stepped.entries += collected;
            stepped.entries += applied;
        }
        Ok(())
    }

    /// Runs `body` for some segments of the batch; what became of the entries.
    fn for_each_segment(
        &self,
        executor: &mut Executor,
        which: std::ops::Range<usize>,
        body: impl Fn(&mut Worker<'_>, &Block, usize) + Sync,
    ) -> Result<Entries> {
        let entries = which.len() as u64 * SEGMENT;
        executor.for_each_with(
            which.len().div_ceil(TAKEN),
            entries,
            Incomplete::Finish,
            |thread| Worker {
                // SAFETY: the executor runs no two threads of the same number at a time.
                scratch: unsafe { Scratch::for_thread(self.scratch, thread) },
                block: 0,
                entries: Entries::default(),
            },
            |worker, item| {
                let first = which.start + item * TAKEN;
                for i in first..(first + TAKEN).min(which.end) {
                    worker.block = self.block_of(worker.block, i);
                    body(worker, &self.blocks[worker.block], i);
                }
            },
            |sum: &mut Entries, worker| *sum += worker.entries,
        )
    }

    /// Which block a segment belongs to; probably this one.
    fn block_of(&self, guess: usize, segment: usize) -> usize {
        if self.blocks[guess].segments().contains(&segment) {
            return guess;
        }
        let starts_by_then = |block: &Block| block.first_segment <= segment;
        self.blocks.partition_point(starts_by_then) - 1
    }

    /// Samples some lines of a block; who is last brackets its threshold.
    ///
    /// # Safety
    ///
    /// As for [`BatchRun::run`], and no other thread does the same.
    unsafe fn estimate(&self, gather: usize) {
        let after = self
            .blocks
            .partition_point(|block| block.first_gather <= gather);
        let block = &self.blocks[after - 1];
        let job = &self.jobs[block.job];
        let first = (gather - block.first_gather) * GATHERED;
        let last = block.lines.min(first + GATHERED);
        // SAFETY: a job has a threshold for every block, that of the step before until another is found.
        let before = unsafe { block.threshold(self.jobs).read() };
        // SAFETY: these lines' places are written by this thread alone.
        unsafe {
            let lines = (first, last);
            let to = self.sampled(block, lines);
            estimate::gather(
                self.kernels,
                job,
                block.range,
                block.lines,
                lines,
                before,
                to,
            );
        }
        if block.gathers_left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        // SAFETY: all lines of the block have been gathered, and nobody else looks at them.
        let mut sample = unsafe { self.sample(block) };
        let target = Target::for_job(job);
        let sampled = estimate::bracket(self.kernels, &mut sample, target, before);
        block.set_bracket(forced(sampled, self.paths));
    }

    /// Where the sampled lines `first..last` of a block go.
    ///
    /// # Safety
    ///
    /// No other thread has these lines.
    unsafe fn sampled(&self, block: &Block, (first, last): (usize, usize)) -> Sampled {
        let keys = block.first_sample_word + first * LINE;
        let before = block.first_sample_word + block.lines * LINE + first;
        let len = last - first;
        // SAFETY: within the block's words; the rest is the caller's promise.
        unsafe {
            Sampled {
                keys: self.samples.slice_mut(keys, len * LINE).as_mut_ptr(),
                before: self.samples.slice_mut(before, len).as_mut_ptr(),
            }
        }
    }

    /// # Safety
    ///
    /// No other thread uses the block's sample.
    unsafe fn sample(&self, block: &Block) -> Sample<'a> {
        let words = estimate::sample_words(block.range.len);
        // SAFETY: the block's own words; the rest is the caller's promise.
        let words = unsafe { self.samples.slice_mut(block.first_sample_word, words) };
        Sample::new(words, block.lines)
    }

    /// # Safety
    ///
    /// As for [`BatchRun::run`], and no other thread does the same; the block has its bracket.
    unsafe fn collect(&self, worker: &mut Worker<'_>, block: &Block, i: usize) {
        let job = &self.jobs[block.job];
        let lists = (&self.lists, &block.share);
        let (range, bracket) = (block.segment(i), block.bracket());
        // SAFETY: the caller's promise.
        unsafe {
            let collected = collect(
                self.kernels,
                job,
                range,
                bracket,
                &mut worker.scratch,
                lists,
            );
            worker.entries.nonfinite += u64::from(collected.num_nonfinite);
            self.set_segment(i, collected);
        }
    }

    /// # Safety
    ///
    /// No other thread uses the segment's description.
    unsafe fn set_segment(&self, i: usize, segment: Segment) {
        // SAFETY: the caller's promise.
        unsafe { self.segments.slice_mut(i, 1)[0] = segment };
    }

    /// Finds the threshold of a block, if what was collected tells it.
    ///
    /// # Safety
    ///
    /// The block has been collected, and no other thread does the same.
    unsafe fn decide(&self, block: &Block) -> Decision {
        // SAFETY: the caller's promise.
        let decision = unsafe {
            let collected = Collected {
                bracket: block.bracket(),
                num_certain: block.share.certain.count() as u64,
                num_open: block.share.open.count() as u64,
                open_keys: self.lists.open_keys(&block.share),
            };
            let rank = self.jobs[block.job].rank;
            collected.decide(self.kernels, rank, self.sample(block).work_space)
        };
        if let Decision::Threshold(threshold) = decision {
            block.set_decided();
            // SAFETY: a job has a threshold for every block; the rest is the caller's promise.
            unsafe { block.threshold(self.jobs).write(threshold) };
        }
        decision
    }

    /// Finds the threshold of a block whose estimate has failed, by the stored moments.
    ///
    /// # Safety
    ///
    /// As for [`BatchRun::run`]; the block has been collected.
    unsafe fn decide_again(&self, executor: &mut Executor, block: &Block) -> Result<()> {
        let job = &self.jobs[block.job];
        // SAFETY: the caller's promise; nothing else runs.
        unsafe {
            let failed = self.decide(block);
            let again = estimate::bracket_again(
                self.kernels,
                &mut self.sample(block),
                Target::for_job(job),
                block.bracket(),
                failed,
            );
            if let Some(bracket) = again
                && !self.paths.digits
            {
                block.share.clear();
                block.set_bracket(bracket);
                self.for_each_segment(executor, block.segments(), |worker, block, i| {
                    let (range, lists) = (block.segment(i), (&self.lists, &block.share));
                    let scratch = &mut worker.scratch;
                    let collected =
                        collect_again(self.kernels, job, range, bracket, scratch, lists);
                    self.set_segment(i, collected);
                })?;
                if let Decision::Threshold(_) = self.decide(block) {
                    return Ok(());
                }
            }
            for i in block.segments() {
                self.set_segment(i, Segment::default());
            }
            let threshold = self.by_digits(executor, block)?;
            block.threshold(self.jobs).write(threshold);
        }
        Ok(())
    }

    /// The threshold of a block by the digits of all stored keys, without any assumption.
    ///
    /// # Safety
    ///
    /// As for [`BatchRun::decide_again`].
    unsafe fn by_digits(&self, executor: &mut Executor, block: &Block) -> Result<u32> {
        let job = &self.jobs[block.job];
        let mut search = DigitSearch::new(job.rank);
        for digit in DIGITS {
            let totals = [const { AtomicU64::new(0) }; BUCKETS];
            self.for_each_segment(executor, block.segments(), |worker, block, i| {
                let (range, scratch) = (block.segment(i), &mut worker.scratch);
                // SAFETY: the caller's promise.
                let keys = unsafe { stored_keys(self.kernels, job, range, scratch) };
                let mut counts: Counts = [0; BUCKETS];
                search.count(digit, keys, &mut counts);
                for (total, &here) in totals.iter().zip(&counts) {
                    if here != 0 {
                        total.fetch_add(here.into(), Ordering::Relaxed);
                    }
                }
            })?;
            search.narrow(digit, |bucket| totals[bucket].load(Ordering::Relaxed));
        }
        Ok(search.upper)
    }

    /// # Safety
    ///
    /// As for [`BatchRun::run`], and no other thread does the same; the block's threshold is known.
    unsafe fn apply(&self, worker: &mut Worker<'_>, block: &Block, i: usize) {
        let job = &self.jobs[block.job];
        // SAFETY: the caller's promise; a job has a threshold for every block.
        unsafe {
            let threshold = block.threshold(self.jobs).read();
            let lists = (&self.lists, &self.segments.slice(i, 1)[0]);
            if i + 1 < block.segments().end {
                let next = (&self.lists, &self.segments.slice(i + 1, 1)[0]);
                prefetch(job, block.segment(i + 1), next);
            }
            let (range, scratch) = (block.segment(i), &mut worker.scratch);
            worker.entries.selected += apply(self.kernels, job, range, threshold, scratch, lists);
        }
    }
}
