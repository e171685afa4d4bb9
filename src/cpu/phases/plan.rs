//! Which blocks are stepped by all threads together, and the memory that this takes.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::batch::BatchRun;
use super::collect::Listing;
use super::lists::{Capacity, Lists, SCRATCH_WORDS, SEGMENT, Scratch, Segment, Share};
use super::small::{CAPACITY, SmallBlocks};
use super::{Range, estimate, segment};
use crate::cpu::disjoint::Disjoint;
use crate::cpu::kernels::{Bracket, Entries, Kernels};
use crate::cpu::partition::{Schedule, schedule};
use crate::cpu::threads::Executor;
use crate::error::Result;
use crate::job::Job;
use crate::memory::{self, try_reserve, try_reserve_one};
use crate::test_paths;

/// Lines that a thread samples at a time.
pub(super) const GATHERED: usize = 128;
/// Words of work space (14 MiB) besides a byte for each entry of the largest block.
const MOST_WORDS: usize = 14 << 18;
/// Where very many threads leave less of them, a batch may have so many all the same.
const LEAST_BATCH_WORDS: usize = 1 << 20;
/// Words of a batch for one thread, whose lists then stay in the caches. Where threads meet after each phase, larger batches
/// cost less.
const CACHED_WORDS: usize = 2 << 18;
/// Entries of a batch at most, so that their moments are still in the caches when apply reads them.
const CACHED_ENTRIES: u64 = 1 << 19;

/// Bytes that are taken elsewhere for so many entries: their segment, a sum of gradients and a piece of work.
const SEGMENT_BYTES: usize = size_of::<Segment>() + 16;

/// Blocks that all threads step together, and the work space of a step.
#[derive(Debug, Default)]
pub(in crate::cpu) struct LargeBlocks {
    blocks: Vec<Block>,
    batches: Vec<Batch>,
    segments: Vec<Segment>,
    words: memory::Words,
}

/// A block that all threads step together.
#[derive(Debug)]
pub(super) struct Block {
    /// Which of the step's jobs.
    pub(super) job: usize,
    pub(super) range: Range,
    /// Lines of the sample.
    pub(super) lines: usize,
    /// Among all of the batch.
    pub(super) first_gather: usize,
    pub(super) first_segment: usize,
    /// Of the batch's words for samples.
    pub(super) first_sample_word: usize,
    /// What is left to do until the sample is complete.
    pub(super) gathers_left: AtomicUsize,
    /// Its room in the lists.
    pub(super) share: Share,
    /// The bracket.
    low: AtomicU32,
    high: AtomicU32,
    /// The threshold is known.
    decided: AtomicBool,
}

/// Blocks that are stepped at the same time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Batch {
    first_block: usize,
    num_blocks: usize,
    pub(super) entries: u64,
    pub(super) gathers: usize,
    pub(super) segments: usize,
    sample_words: usize,
    capacity: Capacity,
    read_again: u64,
}

/// What the step of a block takes; the same for all blocks of a tensor.
#[derive(Clone, Copy, Debug)]
struct Needs {
    len: u64,
    /// Lines of the sample.
    lines: usize,
    sample_words: usize,
    capacity: Capacity,
    /// Entries whose moments apply reads once more.
    read_again: u64,
}

impl Needs {
    fn new(len: u64, rank: u64, listing: Listing, batch_words: usize) -> Self {
        let sample_words = estimate::sample_words(len);
        let open = estimate::open_at_most(len, rank as f64 / len as f64);
        let mut capacity = Capacity {
            certain: 0,
            // Entries of a line are often alike, so that the bracket is wider than if they were not.
            open: (3 * open + 1024).min(len) as usize,
        };
        if listing == Listing::Candidates && !test_paths::current().no_room {
            let left =
                block_words(len, batch_words).saturating_sub(sample_words + capacity.words());
            capacity.certain = rank.min(left as u64 * 2 / 3) as usize;
        }
        Self {
            len,
            lines: estimate::lines(len),
            sample_words,
            capacity,
            read_again: if listing == Listing::Keys { len } else { 0 },
        }
    }

    fn gathers(&self) -> usize {
        self.lines.div_ceil(GATHERED)
    }
}

impl Batch {
    fn starting_at(first_block: usize) -> Self {
        Self {
            first_block,
            ..Self::default()
        }
    }

    fn words(&self) -> usize {
        self.capacity.words() + self.sample_words
    }

    fn add(&mut self, needs: &Needs) {
        self.num_blocks += 1;
        self.entries += needs.len;
        self.gathers += needs.gathers();
        self.segments += needs.len.div_ceil(SEGMENT) as usize;
        self.sample_words += needs.sample_words;
        self.read_again += needs.read_again;
        self.capacity = self.capacity.plus(needs.capacity);
    }
}

/// Words that a batch of several blocks may take.
fn batch_words(threads: usize) -> usize {
    MOST_WORDS
        .saturating_sub(threads * SCRATCH_WORDS)
        .max(LEAST_BATCH_WORDS)
}

/// Words that a block may take for certain candidates, the others included.
fn block_words(len: u64, batch_words: usize) -> usize {
    let elsewhere = len.div_ceil(SEGMENT) as usize * SEGMENT_BYTES;
    (len / 4) as usize + batch_words - elsewhere / size_of::<u32>()
}

impl LargeBlocks {
    /// Lists the blocks that all threads step together, and makes room for the steps of all blocks.
    pub(in crate::cpu) fn prepare(&mut self, jobs: &[Job], threads: usize) -> Result<()> {
        self.blocks.clear();
        self.batches.clear();
        let large = || {
            let jobs = jobs.iter().enumerate();
            jobs.filter(|(_, job)| schedule(job) == Schedule::AllThreads)
        };
        let blocks: u64 = large().map(|(_, job)| job.numel / job.block_numel).sum();
        try_reserve(&mut self.blocks, blocks as usize, "the blocks of a step")?;
        let most_words = batch_words(threads);
        let full = if threads == 1 {
            CACHED_WORDS
        } else {
            most_words
        };
        let mut words = if jobs.iter().any(|job| schedule(job) == Schedule::OneThread) {
            threads * CAPACITY.words()
        } else {
            0
        };
        let mut segments = 0;
        let mut batch = Batch::default();
        for (i, job) in large() {
            let len = job.block_numel;
            let needs = Needs::new(len, job.rank, Listing::for_job(job), most_words);
            for start in (0..job.numel).step_by(len as usize) {
                let mut next = batch;
                next.add(&needs);
                if batch.num_blocks > 0 && (next.words() > full || next.read_again > CACHED_ENTRIES)
                {
                    try_reserve_one(&mut self.batches, "the blocks of a step")?;
                    self.batches.push(batch);
                    batch = Batch::starting_at(self.blocks.len());
                    next = batch;
                    next.add(&needs);
                }
                self.blocks.push(Block::new(i, start, &needs, &batch));
                batch = next;
                words = words.max(batch.words());
                segments = segments.max(batch.segments);
            }
        }
        if batch.num_blocks > 0 {
            try_reserve_one(&mut self.batches, "the blocks of a step")?;
            self.batches.push(batch);
        }
        // What they hold is of no use any more, but need not be cleared.
        if self.segments.len() < segments {
            self.segments.clear();
            try_reserve(&mut self.segments, segments, "the blocks of a step")?;
            self.segments.resize(segments, Segment::default());
        }
        if words > 0 {
            words += threads * SCRATCH_WORDS;
        }
        self.words.grow(words, "the lists of a step")
    }

    /// The memory of threads for small blocks, by the number that the executor gives each; `prepare` was called for so
    /// many. None may be where it has seen no small block.
    pub(in crate::cpu) fn small_blocks<'a>(
        &'a mut self,
        kernels: &'a Kernels,
        threads: usize,
    ) -> impl Fn(usize) -> Option<SmallBlocks<'a>> + Sync {
        let words = self.words.as_mut_slice();
        let needed = threads * (SCRATCH_WORDS + CAPACITY.words());
        let memory = (words.len() >= needed).then(|| {
            let (scratch, rest) = words.split_at_mut(threads * SCRATCH_WORDS);
            let capacity = Capacity {
                certain: threads * CAPACITY.certain,
                open: threads * CAPACITY.open,
            };
            (Disjoint::new(scratch), Lists::carve(rest, capacity).0)
        });
        let paths = test_paths::current();
        move |thread| {
            let (scratch, lists) = memory?;
            // SAFETY: the executor runs no two threads of the same number at a time.
            let scratch = unsafe { Scratch::for_thread(scratch, thread) };
            Some(SmallBlocks::new(kernels, scratch, lists, thread, paths))
        }
    }

    /// Steps the blocks that were listed.
    ///
    /// # Safety
    ///
    /// As for [`crate::cpu::Cpu::step`]; `prepare` was called with these jobs, and state has started.
    pub(in crate::cpu) unsafe fn step(
        &mut self,
        kernels: &Kernels,
        executor: &mut Executor,
        jobs: &[Job],
    ) -> Result<Stepped> {
        let mut stepped = Stepped::default();
        for batch in &self.batches {
            let words = self.words.as_mut_slice();
            let (scratch, rest) = words.split_at_mut(executor.useful() * SCRATCH_WORDS);
            let (lists, rest) = Lists::carve(rest, batch.capacity);
            let run = BatchRun {
                kernels,
                jobs,
                batch,
                blocks: &self.blocks[batch.first_block..][..batch.num_blocks],
                segments: Disjoint::new(&mut self.segments[..batch.segments]),
                lists,
                samples: Disjoint::new(&mut rest[..batch.sample_words]),
                scratch: Disjoint::new(scratch),
                paths: test_paths::current(),
            };
            // SAFETY: the caller's promise.
            unsafe { run.run(executor, &mut stepped)? };
        }
        Ok(stepped)
    }

    /// Bytes of the work space at present.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        crate::cpu::bytes_of(&self.blocks)
            + crate::cpu::bytes_of(&self.batches)
            + crate::cpu::bytes_of(&self.segments)
            + self.words.bytes()
    }
}

/// At most how many bytes one tensor needs here.
pub(in crate::cpu) fn bytes_bound(numel: u64, num_blocks: u64, threads: usize) -> u64 {
    let len = numel / num_blocks;
    let scratch = threads * SCRATCH_WORDS * size_of::<u32>();
    if len <= super::SMALL_BLOCK {
        return (scratch + threads * CAPACITY.words() * size_of::<u32>()) as u64;
    }
    let most_words = batch_words(threads);
    // Whatever α is: all may be certain, and most are open where α is a half.
    let most_open = Capacity {
        certain: 0,
        ..Needs::new(len, len / 2, Listing::Keys, most_words).capacity
    };
    let all = Capacity {
        certain: len as usize,
        ..most_open
    };
    // What certain candidates may take of an odd number of words besides.
    let limit = block_words(len, most_words) + 2;
    let sample_words = estimate::sample_words(len);
    let most_block_words = (sample_words + all.words())
        .min(limit)
        .max(sample_words + most_open.words());
    // A batch of several blocks takes no more than it may; how many these are is not known, because it depends on α.
    let words = if num_blocks > 1 {
        most_block_words.max(most_words)
    } else {
        most_block_words
    };
    let smallest = Needs::new(len, 1, Listing::Candidates, most_words);
    let blocks_of_a_batch = (most_words / (smallest.sample_words + smallest.capacity.words()))
        .max(1)
        .min(num_blocks as usize) as u64;
    let segments = blocks_of_a_batch * len.div_ceil(SEGMENT);
    // The list of batches grows by doubling, from a few.
    let batches = 4 + 2 * num_blocks;
    num_blocks * size_of::<Block>() as u64
        + batches * size_of::<Batch>() as u64
        + segments * size_of::<Segment>() as u64
        + (words * size_of::<u32>() + scratch) as u64
}

/// What became of the blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cpu) struct Stepped {
    pub(in crate::cpu) entries: Entries,
    pub(in crate::cpu) blocks: u64,
    pub(in crate::cpu) failed: u64,
}

impl Block {
    /// The next one of a batch.
    fn new(job: usize, start: u64, needs: &Needs, batch: &Batch) -> Self {
        Self {
            job,
            range: Range {
                start,
                len: needs.len,
            },
            lines: needs.lines,
            first_gather: batch.gathers,
            first_segment: batch.segments,
            first_sample_word: batch.sample_words,
            gathers_left: AtomicUsize::new(needs.gathers()),
            share: Share::new(batch.capacity, needs.capacity),
            low: AtomicU32::new(1),
            high: AtomicU32::new(1),
            decided: AtomicBool::new(false),
        }
    }

    /// Its segments among all of the batch.
    pub(super) fn segments(&self) -> std::ops::Range<usize> {
        self.first_segment..self.first_segment + self.range.len.div_ceil(SEGMENT) as usize
    }

    /// The entries of a segment of the batch.
    pub(super) fn segment(&self, i: usize) -> Range {
        segment(self.range, (i - self.first_segment) as u64)
    }

    pub(super) fn bracket(&self) -> Bracket {
        Bracket {
            low: self.low.load(Ordering::Relaxed),
            high: self.high.load(Ordering::Relaxed),
        }
    }

    pub(super) fn set_bracket(&self, bracket: Bracket) {
        self.low.store(bracket.low, Ordering::Relaxed);
        self.high.store(bracket.high, Ordering::Relaxed);
    }

    pub(super) fn is_decided(&self) -> bool {
        self.decided.load(Ordering::Relaxed)
    }

    pub(super) fn set_decided(&self) {
        self.decided.store(true, Ordering::Relaxed);
    }

    /// Where the block's threshold goes; that of the step before is there until then.
    pub(super) fn threshold(&self, jobs: &[Job]) -> *mut u32 {
        let job = &jobs[self.job];
        job.thresholds
            .wrapping_add((self.range.start / job.block_numel) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [u64; 9] = [
        super::super::SMALL_BLOCK + 1,
        40_000,
        66_000,
        1_000_003,
        5_000_000,
        20_000_000,
        300_000_000,
        3_000_000_000,
        1 << 36,
    ];

    /// For each length and number of threads, the bytes of a block at any α, whatever the filter.
    fn each(mut check: impl FnMut(u64, usize, u64)) {
        for len in LENGTHS {
            for threads in [1, 2, 16, 64, 65, 500] {
                let most_words = batch_words(threads);
                for thousandths in (1..1000).step_by(3) {
                    for listing in [Listing::Candidates, Listing::Keys] {
                        let needs = Needs::new(len, len / 1000 * thousandths, listing, most_words);
                        let words =
                            needs.sample_words + needs.capacity.words() + threads * SCRATCH_WORDS;
                        let bytes = words * size_of::<u32>()
                            + len.div_ceil(SEGMENT) as usize * size_of::<Segment>();
                        check(len, threads, bytes as u64);
                    }
                }
            }
        }
    }

    #[test]
    fn one_block_takes_no_more_than_its_bound() {
        each(|len, threads, bytes| {
            let bound = bytes_bound(len, 1, threads);
            assert!(bytes <= bound, "{len} on {threads}: {bytes}, not {bound}");
        });
    }

    /// A byte for each entry, and 16 MiB or 200 kB a thread.
    #[test]
    fn one_block_takes_no_more_than_documented() {
        each(|len, threads, bytes| {
            let constant = (16u64 << 20).max(200_000 * threads as u64);
            // Sums of gradients, and pieces.
            let bytes = bytes + 16 * len.div_ceil(SEGMENT);
            assert!(bytes <= len + constant, "{len} on {threads}: {bytes}");
        });
    }
}
