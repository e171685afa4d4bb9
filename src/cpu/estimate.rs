//! Steps of large blocks in one pass over memory, before their thresholds are known.
//!
//! A sample brackets the threshold. The pass moves the entries above the bracket, leaves alone those below it, and
//! notes the few inside it: which they are, their keys, and what they would become. The threshold is then
//! found among these notes, and the entries that reach it get the noted value.
//!
//! The estimate may fail: the threshold lies outside of the bracket, or the bracket holds more than there is room
//! for. Then the threshold is searched for in the stored moments, and a second pass moves what should have moved, and
//! moves back what should not have. The old value of a parameter can be computed from the new one and the moments,
//! nearly always; where it cannot, which the first pass sees, it is noted, too. Where there is no room for that,
//! nothing of a tile moves until the threshold is known.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::executor::{Executor, Incomplete};
use super::kernels::{Bounds, Notes};
use super::plan::is_estimated;
use super::sample;
use super::search;
use super::select::Range;
use super::tier::Kernels;
use super::vector::MAX_LANES;
use crate::backend::Job;
use crate::config::Dtype;
use crate::error::Result;
use crate::memory::{ZeroedWords, try_reserve, try_reserve_one};
use crate::rule::convert::{self, INFINITE};
use crate::rule::scalars::Scalars;
use crate::rule::select::kth_largest;

/// Entries of which one set of notes is kept.
pub(super) const TILE: u64 = 1 << 12;
/// Lines that a thread samples at a time.
const GATHERED: usize = 128;
/// Blocks are stepped in waves of about this many words of notes (8 MiB), so that the work space stays bounded.
const WAVE_WORDS: usize = 1 << 21;
/// How many more entries may be open than are in the middle of a good estimate.
const OPEN_RESERVE: f64 = 3.0;
/// Of this many entries, one old value may be lost.
const LOST_SHARE: u64 = 24;
/// Tiles after which a thread tells the others how many of their entries moved.
const TALLIED_TILES: usize = 32;
/// No key reaches it.
const NEVER: u32 = INFINITE + 1;
/// Words of a note: entry, key and value; entry and old value.
const OPEN_WORDS: usize = 3;
const LOST_WORDS: usize = 2;

/// The estimates of a step, and their work space.
#[derive(Debug, Default)]
pub(super) struct Estimates {
    blocks: Vec<Block>,
    waves: Vec<Wave>,
    tiles: Vec<Tile>,
    words: ZeroedWords,
}

/// A block whose threshold is estimated.
#[derive(Debug)]
struct Block {
    /// Which of the step's jobs.
    job: usize,
    range: Range,
    /// Lines of the sample.
    lines: usize,
    /// Among all of the wave.
    first_gather: usize,
    first_tile: usize,
    first_key: usize,
    /// What is left to do until the sample and the pass are complete.
    gathers_left: AtomicUsize,
    tiles_left: AtomicUsize,
    possible: AtomicU32,
    certain: AtomicU32,
    /// Entries that certainly move, and open ones.
    above: AtomicU64,
    open: AtomicU64,
    /// There was no room for all notes.
    spilled: AtomicBool,
    failed: AtomicBool,
}

/// What the pass left behind for a tile.
#[derive(Clone, Copy, Debug, Default)]
struct Tile {
    first_open: usize,
    first_lost: usize,
    num_open: u32,
    num_lost: u32,
    /// Nothing has moved yet.
    held: bool,
}

/// Blocks that are stepped at the same time.
#[derive(Clone, Copy, Debug, Default)]
struct Wave {
    first_block: usize,
    num_blocks: usize,
    entries: u64,
    gathers: usize,
    tiles: usize,
    sample_words: usize,
    open_capacity: usize,
    lost_capacity: usize,
}

impl Wave {
    fn words(&self) -> usize {
        self.sample_words + OPEN_WORDS * self.open_capacity + LOST_WORDS * self.lost_capacity
    }

    fn add(&mut self, len: u64) {
        self.num_blocks += 1;
        self.entries += len;
        self.gathers += sample::lines(len).div_ceil(GATHERED);
        self.tiles += len.div_ceil(TILE) as usize;
        self.sample_words += sample::room(len);
        self.open_capacity += open_capacity(len);
        self.lost_capacity += (len / LOST_SHARE) as usize;
    }

    /// Without a block, but with the chunks that threads have not filled.
    fn empty(first_block: usize, threads: usize) -> Self {
        Self {
            first_block,
            open_capacity: threads * chunk(threads),
            lost_capacity: threads * chunk(threads),
            ..Self::default()
        }
    }
}

/// Notes that a thread takes room for at a time.
fn chunk(threads: usize) -> usize {
    (256 / threads).clamp(2, 4) * TILE as usize + MAX_LANES
}

/// How many open entries of a block there is room for.
fn open_capacity(len: u64) -> usize {
    let sampled = (sample::lines(len) * sample::LINE) as f64;
    // Of α = 0.5, where it is largest.
    let expected = len as f64 * 2.0 * sample::SIGMAS * 0.5 / sampled.sqrt();
    ((OPEN_RESERVE * expected) as u64).min(len) as usize
}

/// Words that finding one threshold the long way takes.
fn search_words(len: u64) -> usize {
    search::capacity(len).max(sample::room(len))
}

impl Estimates {
    /// Lists the blocks whose threshold is estimated, and makes room for it, and for the searches of all other
    /// large blocks.
    pub(super) fn prepare(&mut self, jobs: &[Job], threads: usize) -> Result<()> {
        self.blocks.clear();
        self.waves.clear();
        let estimated = || jobs.iter().enumerate().filter(|(_, job)| is_estimated(job));
        let blocks: u64 = estimated()
            .map(|(_, job)| job.numel / job.block_numel)
            .sum();
        try_reserve(&mut self.blocks, blocks as usize, "the estimates")?;
        let mut words = jobs
            .iter()
            .filter(|job| super::plan::is_searched(job))
            .map(|job| search_words(job.block_numel))
            .max()
            .unwrap_or(0);
        let mut tiles = 0;
        let mut wave = Wave::empty(0, threads);
        for (i, job) in estimated() {
            let len = job.block_numel;
            for start in (0..job.numel).step_by(len as usize) {
                let mut next = wave;
                next.add(len);
                if wave.num_blocks > 0 && next.words() > WAVE_WORDS {
                    try_reserve_one(&mut self.waves, "the estimates")?;
                    self.waves.push(wave);
                    wave = Wave::empty(self.blocks.len(), threads);
                    next = wave;
                    next.add(len);
                }
                self.blocks.push(Block::new(i, Range { start, len }, &wave));
                wave = next;
                words = words
                    .max(wave.words())
                    .max(LOST_WORDS * wave.lost_capacity + search_words(len));
                tiles = tiles.max(wave.tiles);
            }
        }
        if wave.num_blocks > 0 {
            try_reserve_one(&mut self.waves, "the estimates")?;
            self.waves.push(wave);
        }
        self.tiles.clear();
        try_reserve(&mut self.tiles, tiles, "the estimates")?;
        self.tiles.resize(tiles, Tile::default());
        self.words.grow(words, "the notes of a step")
    }

    /// Work space of a search.
    pub(super) fn search_space(&mut self) -> &mut [u32] {
        self.words.as_mut_slice()
    }

    /// Steps the blocks that were listed.
    ///
    /// # Safety
    ///
    /// As for [`crate::backend::Backend::step`]; `prepare` was called with these jobs, and state has started.
    pub(super) unsafe fn step(
        &mut self,
        kernels: &Kernels,
        executor: &mut Executor,
        jobs: &[Job],
    ) -> Result<Stepped> {
        let mut stepped = Stepped::default();
        for wave in &self.waves {
            let run = WaveRun::new(
                kernels,
                jobs,
                wave,
                &self.blocks[wave.first_block..][..wave.num_blocks],
                &mut self.tiles[..wave.tiles],
                self.words.as_mut_slice(),
                executor.width(),
            );
            // SAFETY: the caller's promise.
            unsafe { run.run(executor, &mut stepped)? };
        }
        Ok(stepped)
    }

    /// Bytes of the work space at present.
    pub(super) fn bytes(&self) -> usize {
        super::bytes_of(&self.blocks)
            + super::bytes_of(&self.waves)
            + super::bytes_of(&self.tiles)
            + self.words.bytes()
    }
}

/// At most how many bytes the estimates need for one tensor.
pub(super) fn bytes_bound(numel: u64, num_blocks: u64, threads: usize) -> u64 {
    let len = numel / num_blocks;
    if len <= super::plan::SMALL_BLOCK {
        return 0;
    }
    let mut wave = Wave::empty(0, threads);
    let mut words = 0;
    while wave.num_blocks < num_blocks as usize && words <= WAVE_WORDS {
        wave.add(len);
        words = wave
            .words()
            .max(LOST_WORDS * wave.lost_capacity + search_words(len));
    }
    // The list of waves grows by doubling, from a few.
    let waves = 4 + 2 * num_blocks.div_ceil(wave.num_blocks.saturating_sub(1).max(1) as u64);
    num_blocks * size_of::<Block>() as u64
        + waves * size_of::<Wave>() as u64
        + (wave.tiles * size_of::<Tile>()) as u64
        + (words * size_of::<u32>()) as u64
}

/// What became of the blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stepped {
    pub(super) selected: u64,
    pub(super) blocks: u64,
    pub(super) failed: u64,
}

impl Block {
    /// The next one of a wave.
    fn new(job: usize, range: Range, wave: &Wave) -> Self {
        let lines = sample::lines(range.len);
        Self {
            job,
            range,
            lines,
            first_gather: wave.gathers,
            first_tile: wave.tiles,
            first_key: wave.sample_words,
            gathers_left: AtomicUsize::new(lines.div_ceil(GATHERED)),
            tiles_left: AtomicUsize::new(range.len.div_ceil(TILE) as usize),
            possible: AtomicU32::new(0),
            certain: AtomicU32::new(0),
            above: AtomicU64::new(0),
            open: AtomicU64::new(0),
            spilled: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            possible: self.possible.load(Ordering::Relaxed),
            certain: self.certain.load(Ordering::Relaxed),
        }
    }

    fn num_tiles(&self) -> usize {
        self.range.len.div_ceil(TILE) as usize
    }

    /// The entries of a tile of the wave.
    fn tile(&self, tile: usize) -> Range {
        let offset = (tile - self.first_tile) as u64 * TILE;
        Range {
            start: self.range.start + offset,
            len: TILE.min(self.range.len - offset),
        }
    }

    /// Where the block's threshold goes.
    fn threshold(&self, jobs: &[Job]) -> *mut u32 {
        let job = &jobs[self.job];
        job.thresholds
            .wrapping_add((self.range.start / job.block_numel) as usize)
    }
}

/// Words that threads write disjoint parts of.
#[derive(Clone, Copy)]
struct Words {
    start: *mut u32,
    len: usize,
}

// SAFETY: whoever uses it makes sure that no two threads touch the same word.
unsafe impl Sync for Words {}
// SAFETY: as above.
unsafe impl Send for Words {}

impl Words {
    fn of(words: &mut [u32]) -> Self {
        Self {
            start: words.as_mut_ptr(),
            len: words.len(),
        }
    }

    /// # Safety
    ///
    /// No other thread touches these words meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, first: usize, len: usize) -> &mut [u32] {
        assert!(first <= self.len && len <= self.len - first);
        // SAFETY: within the words (asserted above), which outlive the wave; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}

/// Tiles that threads write disjoint elements of.
struct Tiles(*mut Tile);

// SAFETY: as for `Words`.
unsafe impl Sync for Tiles {}

/// One wave on its way.
struct WaveRun<'a> {
    kernels: &'a Kernels,
    jobs: &'a [Job],
    wave: &'a Wave,
    blocks: &'a [Block],
    tiles: Tiles,
    chunk: usize,
    sample: Words,
    open: [Words; OPEN_WORDS],
    lost: [Words; LOST_WORDS],
    /// Sample and open notes, for what comes after them.
    free: Words,
    next_open: AtomicUsize,
    next_lost: AtomicUsize,
}

/// Room for notes that one thread has taken.
#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    next: usize,
    end: usize,
}

impl Chunk {
    /// Makes sure that there is room for the notes of a tile, if there is any.
    fn reserve(&mut self, size: usize, next: &AtomicUsize, capacity: usize) -> bool {
        let needed = TILE as usize + MAX_LANES;
        if self.end - self.next >= needed {
            return true;
        }
        let first = next.fetch_add(size, Ordering::Relaxed);
        let fits = first.saturating_add(size) <= capacity;
        if fits {
            (self.next, self.end) = (first, first + size);
        }
        fits
    }
}

/// What a thread knows during the pass.
#[derive(Debug, Default)]
struct Strand {
    open: Chunk,
    lost: Chunk,
    /// Whose tiles it is at, and what it has not told the block yet.
    block: usize,
    tiles: usize,
    above: u64,
    num_open: u64,
}

impl<'a> WaveRun<'a> {
    fn new(
        kernels: &'a Kernels,
        jobs: &'a [Job],
        wave: &'a Wave,
        blocks: &'a [Block],
        tiles: &'a mut [Tile],
        words: &'a mut [u32],
        threads: usize,
    ) -> Self {
        let (lost, free) = words.split_at_mut(LOST_WORDS * wave.lost_capacity);
        let mut lost = lost.chunks_exact_mut(wave.lost_capacity).map(Words::of);
        let lost = std::array::from_fn(|_| lost.next().expect("there are as many as divided by"));
        let all = Words::of(free);
        let (sample, open) = free.split_at_mut(wave.sample_words);
        let mut open = open.chunks_exact_mut(wave.open_capacity).map(Words::of);
        let open = std::array::from_fn(|_| open.next().expect("`prepare` made room"));
        Self {
            kernels,
            jobs,
            wave,
            blocks,
            tiles: Tiles(tiles.as_mut_ptr()),
            chunk: chunk(threads),
            sample: Words::of(sample),
            open,
            lost,
            free: all,
            next_open: AtomicUsize::new(0),
            next_lost: AtomicUsize::new(0),
        }
    }

    /// Samples, passes over the blocks, settles what is open; then deals with the blocks whose estimate failed.
    ///
    /// # Safety
    ///
    /// As for [`Estimates::step`].
    unsafe fn run(&self, executor: &mut Executor, stepped: &mut Stepped) -> Result<()> {
        let wave = self.wave;
        let sampled = 8 * (GATHERED * sample::LINE * wave.gathers) as u64;
        // SAFETY: the caller's promise; the phases follow each other, and their items are disjoint.
        unsafe {
            executor.for_each(wave.gathers, sampled, Incomplete::Finish, |i| {
                self.gather(i);
            })?;
            executor.for_each_with(
                wave.tiles,
                wave.entries,
                Incomplete::Finish,
                Strand::default,
                |strand, tile| self.pass(strand, tile),
                |mut strand| self.tell(&mut strand),
            )?;
            let selected = AtomicU64::new(0);
            executor.for_each(wave.tiles, wave.entries / 4, Incomplete::Finish, |tile| {
                selected.fetch_add(self.settle(tile), Ordering::Relaxed);
            })?;
            stepped.selected += selected.into_inner();
            stepped.blocks += self.blocks.len() as u64;
            for block in self.blocks {
                if block.failed.load(Ordering::Relaxed) {
                    stepped.failed += 1;
                    stepped.selected += self.rescue(executor, block)?;
                } else {
                    stepped.selected += block.above.load(Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Samples some lines of a block; who is last brackets its threshold.
    ///
    /// # Safety
    ///
    /// As for [`Estimates::step`], and no other thread does the same.
    unsafe fn gather(&self, gather: usize) {
        let after = self
            .blocks
            .partition_point(|block| block.first_gather <= gather);
        let block = &self.blocks[after - 1];
        let job = &self.jobs[block.job];
        let first = (gather - block.first_gather) * GATHERED;
        let last = block.lines.min(first + GATHERED);
        // SAFETY: these lines' words are written by this thread alone.
        unsafe {
            let first_key = block.first_key + first * sample::LINE;
            let keys = self
                .sample
                .slice(first_key, (last - first) * sample::LINE)
                .as_mut_ptr();
            sample::gather(
                self.kernels,
                job,
                block.range,
                block.lines,
                (first, last),
                keys,
            );
        }
        if block.gathers_left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        // SAFETY: all lines of the block have been gathered, and nobody else looks at them.
        let (sample, candidates) = unsafe {
            self.sample
                .slice(block.first_key, sample::room(block.range.len))
                .split_at_mut(block.lines * sample::LINE)
        };
        // SAFETY: a job has a threshold for every block, that of the step before.
        let hint = unsafe { block.threshold(self.jobs).read() };
        let (low, high) = sample::bracket_of(
            self.kernels,
            sample,
            candidates,
            job.rank,
            block.range.len,
            hint,
        );
        block.possible.store(low.max(1), Ordering::Relaxed);
        block.certain.store(high + 1, Ordering::Relaxed);
    }

    /// Steps a tile, as far as the bounds tell.
    ///
    /// # Safety
    ///
    /// As for [`Estimates::step`], and no other thread does the same; the block has its bounds.
    unsafe fn pass(&self, strand: &mut Strand, tile: usize) {
        let index = self.block_of(strand.block, tile);
        if index != strand.block || strand.tiles == TALLIED_TILES {
            self.tell(strand);
            strand.block = index;
        }
        let block = &self.blocks[index];
        let job = &self.jobs[block.job];
        let mut bounds = block.bounds();
        // Too many have moved already: the estimate has failed, and to go on would only make it worse.
        let failed = block.above.load(Ordering::Relaxed) >= job.rank;
        let held = failed
            || !strand
                .lost
                .reserve(self.chunk, &self.next_lost, self.wave.lost_capacity);
        if !strand
            .open
            .reserve(self.chunk, &self.next_open, self.wave.open_capacity)
        {
            block.spilled.store(true, Ordering::Relaxed);
            bounds.possible = bounds.certain;
        }
        let at = |words: &Words, next: usize| words.start.wrapping_add(next);
        let mut notes = Notes {
            open: self
                .open
                .each_ref()
                .map(|words| at(words, strand.open.next)),
            num_open: 0,
            lost: self
                .lost
                .each_ref()
                .map(|words| at(words, strand.lost.next)),
            num_lost: 0,
            holds: held,
        };
        let Range { start, len } = block.tile(tile);
        // SAFETY: the caller's promise; there is room for the notes of a whole tile, or none will be made.
        unsafe {
            strand.above += (self.kernels.step)(job, start, len, bounds, Some(&mut notes));
            self.tiles.0.add(tile).write(Tile {
                first_open: strand.open.next,
                first_lost: strand.lost.next,
                num_open: notes.num_open as u32,
                num_lost: notes.num_lost as u32,
                held,
            });
        }
        strand.open.next += notes.num_open;
        strand.lost.next += notes.num_lost;
        strand.num_open += notes.num_open as u64;
        strand.tiles += 1;
    }

    /// Which block a tile belongs to; probably this one.
    fn block_of(&self, guess: usize, tile: usize) -> usize {
        let block = &self.blocks[guess];
        if (block.first_tile..block.first_tile + block.num_tiles()).contains(&tile) {
            return guess;
        }
        self.blocks
            .partition_point(|block| block.first_tile <= tile)
            - 1
    }

    /// Adds what a thread has counted to its block; who is last finds the threshold.
    fn tell(&self, strand: &mut Strand) {
        if strand.tiles == 0 {
            return;
        }
        let block = &self.blocks[strand.block];
        block.above.fetch_add(strand.above, Ordering::Relaxed);
        block.open.fetch_add(strand.num_open, Ordering::Relaxed);
        let left = block.tiles_left.fetch_sub(strand.tiles, Ordering::AcqRel);
        let done = left == strand.tiles;
        (strand.tiles, strand.above, strand.num_open) = (0, 0, 0);
        if done {
            // SAFETY: all tiles of the block are done.
            match unsafe { self.found_threshold(block) } {
                // SAFETY: a job has a threshold for every block; one thread gets here for each.
                Some(threshold) => unsafe { block.threshold(self.jobs).write(threshold) },
                None => block.failed.store(true, Ordering::Relaxed),
            }
        }
    }

    /// The threshold of a block, if it is among the open entries.
    ///
    /// # Safety
    ///
    /// The pass is over for this block.
    unsafe fn found_threshold(&self, block: &Block) -> Option<u32> {
        let rank = self.jobs[block.job].rank;
        let above = block.above.load(Ordering::Relaxed);
        let open = block.open.load(Ordering::Relaxed);
        if block.spilled.load(Ordering::Relaxed) || above >= rank {
            return None;
        }
        if rank - above > open {
            // All keys above zero are known, and they are too few.
            return (block.bounds().possible == 1).then_some(0);
        }
        // SAFETY: the caller's promise.
        let runs = || unsafe { self.runs_of_open_keys(block) };
        Some(kth_of_runs(self.kernels, runs, open, rank - above))
    }

    /// The open keys of a block, in as few slices as possible.
    ///
    /// # Safety
    ///
    /// As for [`WaveRun::found_threshold`].
    unsafe fn runs_of_open_keys<'b>(&'b self, block: &'b Block) -> impl Iterator<Item = &'b [u32]> {
        let mut tiles = (block.first_tile..block.first_tile + block.num_tiles())
            // SAFETY: the caller's promise: the tiles are written.
            .map(|tile| unsafe { self.tiles.0.add(tile).read() })
            .peekable();
        std::iter::from_fn(move || {
            let first = tiles.next()?;
            let mut end = first.first_open + first.num_open as usize;
            while let Some(next) = tiles.next_if(|next| next.first_open == end) {
                end += next.num_open as usize;
            }
            // SAFETY: the notes were written (the caller's promise).
            Some(unsafe { &*self.open[1].slice(first.first_open, end - first.first_open) })
        })
    }

    /// Moves the open entries of a tile that reach the threshold; how many.
    ///
    /// # Safety
    ///
    /// As for [`Estimates::step`], and no other thread does the same; the thresholds are known.
    unsafe fn settle(&self, tile: usize) -> u64 {
        let block = &self.blocks[self.block_of(0, tile)];
        if block.failed.load(Ordering::Relaxed) {
            return 0;
        }
        let job = &self.jobs[block.job];
        let Range { start, len } = block.tile(tile);
        // SAFETY: the caller's promise; the pass has written the tile and its notes.
        unsafe {
            let notes = self.tiles.0.add(tile).read();
            let threshold = block.threshold(self.jobs).read().max(1);
            let [entries, keys, values] = self
                .open
                .each_ref()
                .map(|words| &*words.slice(notes.first_open, notes.num_open as usize));
            if notes.held {
                (self.kernels.settle)(job, start, len, NEVER, threshold);
            } else {
                write_params(job, start, entries, values, |i| keys[i] >= threshold);
            }
            keys.iter().map(|&key| u64::from(key >= threshold)).sum()
        }
    }

    /// Finds the threshold of a block the long way, and makes its parameters right; how many moved.
    ///
    /// # Safety
    ///
    /// As for [`Estimates::step`]; the pass is over, and all other blocks of the wave are settled.
    unsafe fn rescue(&self, executor: &mut Executor, block: &Block) -> Result<u64> {
        let job = &self.jobs[block.job];
        let stored = job_after_step(job);
        let selected = AtomicU64::new(0);
        // SAFETY: the caller's promise; the sample and the open notes are of no use any more.
        unsafe {
            let space = self.free.slice(0, search_words(block.range.len));
            let threshold = search::threshold(self.kernels, executor, &stored, block.range, space)?;
            block.threshold(self.jobs).write(threshold);
            let tiles = block.num_tiles();
            executor.for_each(tiles, block.range.len, Incomplete::Finish, |i| {
                let tile = block.first_tile + i;
                let moved = self.correct(block, &stored, tile, threshold.max(1));
                selected.fetch_add(moved, Ordering::Relaxed);
            })?;
        }
        Ok(selected.into_inner())
    }

    /// Makes the parameters of a tile right, now that the threshold turned out to be another; how many entries
    /// moved.
    ///
    /// # Safety
    ///
    /// As for [`WaveRun::rescue`], and no other thread does the same.
    unsafe fn correct(&self, block: &Block, stored: &Job, tile: usize, threshold: u32) -> u64 {
        let job = &self.jobs[block.job];
        let Range { start, len } = block.tile(tile);
        // SAFETY: the caller's promise; the pass has written the tile and its notes.
        unsafe {
            let notes = self.tiles.0.add(tile).read();
            let moved_from = if notes.held {
                NEVER
            } else {
                block.bounds().certain
            };
            let selected = (self.kernels.settle)(job, start, len, moved_from, threshold);
            let [entries, values] = self
                .lost
                .each_ref()
                .map(|words| &*words.slice(notes.first_lost, notes.num_lost as usize));
            write_params(job, start, entries, values, |i| {
                let mut key = 0;
                (self.kernels.keys)(stored, entry(start, entries[i]), 1, &raw mut key);
                key < threshold
            });
            selected
        }
    }
}

/// The same job, but a step of it leaves the moments as they are: keys are those of the stored moments.
fn job_after_step(job: &Job) -> Job {
    Job {
        scalars: Scalars {
            b1: 1.0,
            c1: 0.0,
            b2: 1.0,
            c2: 0.0,
            ..job.scalars
        },
        ..*job
    }
}

/// The index of a noted entry of the tile that starts at `start`.
fn entry(start: u64, noted: u32) -> u64 {
    start + u64::from(noted.wrapping_sub(start as u32))
}

/// Writes the noted values of the chosen entries of a tile that starts at `start`.
///
/// # Safety
///
/// The entries lie within the job's tensor, and nobody else uses them.
unsafe fn write_params(
    job: &Job,
    start: u64,
    entries: &[u32],
    values: &[u32],
    chosen: impl Fn(usize) -> bool,
) {
    for (i, (&noted, &bits)) in entries.iter().zip(values).enumerate() {
        if !chosen(i) {
            continue;
        }
        let entry = entry(start, noted) as usize;
        // SAFETY: the entry lies within the buffers (the caller's promise).
        unsafe {
            if !job.master.is_null() {
                let value = f32::from_bits(bits);
                job.master.add(entry).write(value);
                let rounded = match job.param_dtype {
                    Dtype::F16 => convert::f32_to_f16_nearest(value),
                    _ => convert::f32_to_bf16_nearest(value),
                };
                job.param.cast::<u16>().add(entry).write(rounded);
            } else if job.param_dtype == Dtype::F32 {
                job.param.cast::<u32>().add(entry).write(bits);
            } else {
                job.param.cast::<u16>().add(entry).write(bits as u16);
            }
        }
    }
}

/// Keys that fit on the stack.
const FEW: usize = 1 << 12;

/// The `rank`-th largest of `count` keys that are given in runs.
fn kth_of_runs<'a, I: Iterator<Item = &'a [u32]>>(
    kernels: &Kernels,
    runs: impl Fn() -> I,
    mut count: u64,
    rank: u64,
) -> u32 {
    let mut room = [0u32; FEW + MAX_LANES];
    // What is in question: the keys between these bounds, and how many lie above.
    let (mut low, mut high, mut above) = (0u32, INFINITE, 0u64);
    // Each round leaves fewer: by sampling them, or else by halving their range.
    let mut halves = false;
    while count > FEW as u64 && low < high {
        let bracket = if halves {
            (low, low + (high - low) / 2)
        } else {
            let sample = stride_sample(runs(), (low, high), count, &mut room);
            bracket_by(sample, (low, high), (rank - above) as f64 / count as f64)
        };
        let (mut above_bracket, mut inside) = (0, 0);
        for part in runs().flat_map(|run| run.chunks(FEW)) {
            // SAFETY: `room` has room for `FEW` keys and a group more.
            let found =
                unsafe { (kernels.sift)(part.as_ptr(), part.len(), bracket, room.as_mut_ptr()) };
            above_bracket += found.above;
            inside += found.inside as u64;
        }
        let before = count;
        if rank <= above_bracket {
            low = bracket.1 + 1;
            count = above_bracket - above;
        } else if rank <= above_bracket + inside {
            (low, high) = bracket;
            above = above_bracket;
            count = inside;
        } else {
            high = bracket.0 - 1;
            count -= above_bracket + inside - above;
            above = above_bracket + inside;
        }
        halves = count > before / 2;
    }
    if low == high {
        return low;
    }
    let mut found = 0;
    for part in runs().flat_map(|run| run.chunks(FEW)) {
        // SAFETY: at most `count` keys are inside, which is at most `FEW`, and there is room for a group more.
        let inside = unsafe {
            let to = room.as_mut_ptr().add(found);
            (kernels.sift)(part.as_ptr(), part.len(), (low, high), to).inside
        };
        found += inside;
    }
    kth_largest(&mut room[..found], (rank - above) as usize)
}

/// Some of the `count` keys between two bounds, evenly spread.
fn stride_sample<'a, 'b>(
    runs: impl Iterator<Item = &'a [u32]>,
    (low, high): (u32, u32),
    count: u64,
    room: &'b mut [u32],
) -> &'b mut [u32] {
    let most = room.len() / 2;
    let stride = count.div_ceil(most as u64) as usize;
    let mut n = 0;
    let mut skip = 0;
    for run in runs {
        while skip < run.len() && n < room.len() {
            let key = run[skip];
            room[n] = key;
            n += usize::from((low..=high).contains(&key));
            skip += stride;
        }
        skip = skip.saturating_sub(run.len());
    }
    &mut room[..n]
}

/// Bounds between which the key that a `share` of all reach probably lies, by a sample of the keys between `low`
/// and `high`.
fn bracket_by(sample: &mut [u32], (low, high): (u32, u32), share: f64) -> (u32, u32) {
    let n = sample.len();
    let expected = n as f64 * share;
    let margin = 2.0 * (n as f64).sqrt();
    let lowest = (expected + margin) as usize;
    let highest = (expected - margin) as usize;
    let inner_low = if lowest < n {
        kth_largest(sample, lowest.max(1))
    } else {
        low
    };
    let inner_high = if highest >= 1 {
        kth_largest(sample, highest)
    } else {
        high
    };
    (inner_low, inner_high)
}
