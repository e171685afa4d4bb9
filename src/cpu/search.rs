//! The thresholds of large blocks, which all threads search for together.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::executor::{Executor, Incomplete};
use super::plan::{self, Piece, is_searched_together};
use super::select::{DIGITS, DigitSearch, Keys, Range, SharedCounts, SharedSearch};
use super::tier::Kernels;
use crate::backend::Job;
use crate::error::Result;
use crate::memory::{try_reserve, try_reserve_one};

/// Large blocks are searched in waves of about this many collected keys (8 MiB), so that the work space stays
/// bounded.
const WAVE_KEYS: usize = 1 << 21;

/// Stands for the threshold of a block until it is found; no key has this value.
const UNSETTLED: u32 = u32::MAX;

/// The searches of a step, and their work space.
#[derive(Debug, Default)]
pub(super) struct Search {
    blocks: Vec<SharedSearch>,
    /// The pieces of all blocks, in the order of the blocks.
    pieces: Vec<Piece>,
    waves: Vec<Wave>,
    /// Room for the collected keys of one wave.
    keys: Vec<u32>,
}

/// Blocks that are searched at the same time.
#[derive(Clone, Copy, Debug, Default)]
struct Wave {
    first_block: usize,
    first_piece: usize,
    entries: u64,
    keys: usize,
}

impl Search {
    /// Lists the blocks to search, and makes room for it.
    pub(super) fn prepare(&mut self, jobs: &[Job]) -> Result<()> {
        plan::cut_for_search(jobs, &mut self.pieces)?;
        self.blocks.clear();
        self.waves.clear();
        let searched = || {
            jobs.iter()
                .enumerate()
                .filter(|(_, job)| is_searched_together(job))
        };
        let blocks: u64 = searched().map(|(_, job)| job.numel / job.block_numel).sum();
        try_reserve(&mut self.blocks, blocks as usize, "the threshold search")?;
        let mut wave = Wave::default();
        let mut most_keys = 0;
        let mut pieces = 0;
        for (i, job) in searched() {
            for start in (0..job.numel).step_by(job.block_numel as usize) {
                let capacity = SharedSearch::capacity(job.block_numel);
                if wave.keys > 0 && wave.keys + capacity > WAVE_KEYS {
                    try_reserve_one(&mut self.waves, "the threshold search")?;
                    self.waves.push(wave);
                    wave = Wave {
                        first_block: self.blocks.len(),
                        first_piece: pieces,
                        ..Wave::default()
                    };
                }
                let block = Range {
                    start,
                    len: job.block_numel,
                };
                self.blocks.push(SharedSearch::new(i, block, wave.keys));
                wave.entries += block.len;
                wave.keys += capacity;
                most_keys = most_keys.max(wave.keys);
                pieces += pieces_of(block);
            }
        }
        if wave.entries > 0 {
            try_reserve_one(&mut self.waves, "the threshold search")?;
            self.waves.push(wave);
        }
        if let Some(missing) = most_keys.checked_sub(self.keys.len()) {
            try_reserve(&mut self.keys, missing, "the threshold search")?;
            self.keys.resize(most_keys, 0);
        }
        Ok(())
    }

    /// Finds the thresholds of the blocks of these jobs, for which the search was prepared.
    ///
    /// # Safety
    ///
    /// As for [`crate::backend::Backend::step`].
    pub(super) unsafe fn run(
        &mut self,
        kernels: &Kernels,
        executor: &mut Executor,
        jobs: &[Job],
    ) -> Result<()> {
        let keys = Keys(self.keys.as_mut_ptr());
        for (i, wave) in self.waves.iter().enumerate() {
            let next = self.waves.get(i + 1);
            let end_block = next.map_or(self.blocks.len(), |next| next.first_block);
            let end_piece = next.map_or(self.pieces.len(), |next| next.first_piece);
            let mut search = WaveSearch {
                kernels,
                executor,
                jobs,
                wave,
                blocks: &self.blocks[wave.first_block..end_block],
                pieces: &self.pieces[wave.first_piece..end_piece],
                keys: &keys,
            };
            // SAFETY: the caller's promise; `prepare` has made room for the keys of every wave.
            unsafe { search.run()? };
        }
        Ok(())
    }

    /// Bytes of the work space at present.
    pub(super) fn bytes(&self) -> usize {
        super::bytes_of(&self.blocks)
            + super::bytes_of(&self.pieces)
            + super::bytes_of(&self.waves)
            + super::bytes_of(&self.keys)
    }
}

/// At most how many bytes the search needs for one tensor.
pub(super) fn bytes_bound(numel: u64, num_blocks: u64) -> u64 {
    let block_numel = numel / num_blocks;
    if block_numel <= plan::SMALL_BLOCK {
        return 0;
    }
    let capacity = SharedSearch::capacity(block_numel) as u64;
    let blocks_at_once = num_blocks.min((WAVE_KEYS as u64 / capacity).max(1));
    // The list of waves grows by doubling, from a few.
    let waves = 4 + 2 * num_blocks.div_ceil(blocks_at_once);
    num_blocks * size_of::<SharedSearch>() as u64
        + plan::most_pieces(numel, num_blocks) * size_of::<Piece>() as u64
        + waves * size_of::<Wave>() as u64
        + blocks_at_once * capacity * size_of::<u32>() as u64
}

/// How many pieces a block is cut into.
fn pieces_of(block: Range) -> usize {
    block.len.div_ceil(plan::PIECE) as usize
}

/// The search for the thresholds of one wave.
struct WaveSearch<'a> {
    kernels: &'a Kernels,
    executor: &'a mut Executor,
    jobs: &'a [Job],
    wave: &'a Wave,
    blocks: &'a [SharedSearch],
    pieces: &'a [Piece],
    keys: &'a Keys,
}

impl WaveSearch<'_> {
    /// Samples, collects and settles; then deals with the blocks whose bracket was no good.
    ///
    /// # Safety
    ///
    /// As for [`Search::run`]; `keys` has room for the wave's.
    unsafe fn run(&mut self) -> Result<()> {
        let Self {
            kernels,
            jobs,
            wave,
            blocks,
            pieces,
            keys,
            ..
        } = *self;
        let bracket_block = |i: usize| {
            // SAFETY: nobody writes to the jobs during the search; one item, one block.
            unsafe { blocks[i].bracket(kernels, &jobs[blocks[i].job], keys) };
        };
        self.for_each(blocks.len(), wave.entries, &bracket_block)?;
        let collect_piece = |i: usize| {
            let piece = &pieces[i];
            let block = &blocks[piece.slot - wave.first_block];
            // SAFETY: as above; all samples have been used up.
            unsafe { block.collect(kernels, &jobs[piece.job], piece.range(), keys) };
        };
        self.for_each(pieces.len(), wave.entries, &collect_piece)?;
        let unsettled = AtomicUsize::new(0);
        let settle_block = |i: usize| {
            // SAFETY: one item, one block; all its keys have been collected.
            let threshold = unsafe { blocks[i].settle(&jobs[blocks[i].job], keys) };
            if threshold.is_none() {
                unsettled.fetch_add(1, Ordering::Relaxed);
            }
            // SAFETY: a job has a threshold for every block.
            unsafe { threshold_of(jobs, &blocks[i]).write(threshold.unwrap_or(UNSETTLED)) };
        };
        self.for_each(blocks.len(), wave.entries, &settle_block)?;
        if unsettled.into_inner() == 0 {
            return Ok(());
        }
        let mut pieces = pieces;
        for block in blocks {
            let (own, later) = pieces.split_at(pieces_of(block.block));
            pieces = later;
            // SAFETY: as above; no thread is at work here.
            unsafe {
                if threshold_of(jobs, block).read() == UNSETTLED {
                    let threshold = self.count_digits(block, own)?;
                    threshold_of(jobs, block).write(threshold);
                }
            }
        }
        Ok(())
    }

    /// The threshold of a block, without a bracket.
    ///
    /// # Safety
    ///
    /// As for [`WaveSearch::run`]; `pieces` are those of the block.
    unsafe fn count_digits(&mut self, block: &SharedSearch, pieces: &[Piece]) -> Result<u32> {
        let (kernels, job) = (self.kernels, &self.jobs[block.job]);
        let mut found = DigitSearch::new(job.rank);
        for digit in DIGITS {
            let counts = SharedCounts::new();
            let count_piece = |i: usize| {
                // SAFETY: a range of the job; nobody writes to it during the search.
                unsafe { counts.add(kernels, job, pieces[i].range(), found.upper, digit) };
            };
            self.for_each(pieces.len(), block.block.len, &count_piece)?;
            found.narrow(digit, |bucket| counts.get(bucket));
        }
        Ok(found.upper)
    }

    fn for_each(
        &mut self,
        items: usize,
        entries: u64,
        body: &(dyn Fn(usize) + Sync),
    ) -> Result<()> {
        self.executor
            .for_each(items, entries, Incomplete::Finish, body)
    }
}

/// Where the threshold of a block goes.
fn threshold_of(jobs: &[Job], search: &SharedSearch) -> *mut u32 {
    let job = &jobs[search.job];
    let block = search.block.start / job.block_numel;
    job.thresholds.wrapping_add(block as usize)
}
