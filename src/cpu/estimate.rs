//! Steps of large blocks in one pass over memory, before their thresholds are known.
//!
//! A sample brackets the threshold. The pass moves the entries above the bracket, leaves alone those below it, and
//! notes the few inside it: which they are, their keys, and what they would become. The threshold is then
//! found among these notes, and the entries that reach it get the noted value.
//!
//! The estimate may fail: the threshold lies outside of the bracket, or the bracket holds more than there is room
//! for. Then the threshold is searched for in the stored moments, and a second pass moves what should have moved, and
//! moves back what should not have. The old value of a parameter can be computed from the new one and the moments,
//! nearly always; where it cannot, which the first pass sees, the parameter does not move yet and is noted, too.
//! Where there is no room for notes, nothing of a tile moves until the threshold is known.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::executor::{Executor, Incomplete};
use super::forced::{self, Forced};
use super::kernels::{Bounds, Notes};
use super::plan::is_estimated;
use super::prefetch;
use super::sample;
use super::search;
use super::select::Range;
use super::tier::Kernels;
use super::vector::MAX_LANES;
use crate::backend::Job;
use crate::config::Dtype;
use crate::error::Result;
use crate::memory::{self, try_reserve, try_reserve_one};
use crate::rule::convert::{self, INFINITE};
use crate::rule::scalars::Scalars;
use crate::rule::select::kth_largest;

/// Entries of which one set of notes is kept.
pub(super) const TILE: u64 = 1 << 12;
/// Lines that a thread samples at a time.
const GATHERED: usize = 128;
/// Blocks are stepped in waves that need no more words than this (12 MiB) unless one block alone does, so that the
/// work space stays bounded.
const WAVE_WORDS: usize = 3 << 20;
/// Where very many threads leave less of it, a wave has so many words for the blocks all the same.
const LEAST_WAVE_WORDS: usize = 1 << 19;
/// How many more entries may be open than a good estimate leaves open.
const OPEN_RESERVE: f64 = 3.0;
/// Besides, one of this many may be noted because its old value would be lost.
const LOST_SHARE: u64 = 40;
/// Tiles after which a thread tells the others how many of their entries moved.
const TALLIED_TILES: usize = 32;
/// How many tiles ahead parameters are asked for when notes are settled.
const AHEAD: usize = 8;
/// No key reaches it.
const NEVER: u32 = INFINITE + 1;
/// Words of a note: entry, key and value.
const NOTE_WORDS: usize = 3;

/// The estimates of a step, and their work space.
#[derive(Debug, Default)]
pub(super) struct Estimates {
    blocks: Vec<Block>,
    waves: Vec<Wave>,
    tiles: Vec<Tile>,
    words: memory::Words,
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
    /// Its share of the room for notes.
    most_notes: u64,
    possible: AtomicU32,
    certain: AtomicU32,
    /// Entries that moved, and notes.
    moved: AtomicU64,
    notes: AtomicU64,
    /// The estimate was wrong, or there was no room for all notes.
    failed: AtomicBool,
}

/// What the pass left behind for a tile.
#[derive(Clone, Copy, Debug, Default)]
struct Tile {
    first_note: usize,
    num_notes: u32,
    /// Nothing has moved, and nothing was noted.
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
    note_capacity: usize,
    /// For one search at a time.
    search_words: usize,
}

impl Wave {
    fn words(&self) -> usize {
        self.sample_words + NOTE_WORDS * self.note_capacity + self.search_words
    }

    fn add(&mut self, len: u64) {
        self.num_blocks += 1;
        self.entries += len;
        self.gathers += sample::lines(len).div_ceil(GATHERED);
        self.tiles += len.div_ceil(TILE) as usize;
        self.sample_words += sample::room(len);
        self.note_capacity += note_capacity(len);
        self.search_words = self.search_words.max(search_words(len));
    }

    /// True if a wave for this many threads need not be larger.
    fn is_full(&self, threads: usize) -> bool {
        self.words() > WAVE_WORDS.max(Self::empty(0, threads).words() + LEAST_WAVE_WORDS)
    }

    /// Without a block, but with the chunks that threads have not filled.
    fn empty(first_block: usize, threads: usize) -> Self {
        Self {
            first_block,
            note_capacity: threads * chunk(threads),
            ..Self::default()
        }
    }
}

/// Notes that a thread takes room for at a time.
fn chunk(threads: usize) -> usize {
    (256 / threads).clamp(2, 4) * TILE as usize + MAX_LANES
}

/// How many notes about a block there is room for.
fn note_capacity(len: u64) -> usize {
    let sampled = (sample::lines(len) * sample::LINE) as f64;
    // Of α = 0.5, where it is largest.
    let expected = len as f64 * 2.0 * sample::SIGMAS * 0.5 / sampled.sqrt();
    ((OPEN_RESERVE * expected) as u64 + len / LOST_SHARE).min(len) as usize
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
                if wave.num_blocks > 0 && next.is_full(threads) {
                    try_reserve_one(&mut self.waves, "the estimates")?;
                    self.waves.push(wave);
                    wave = Wave::empty(self.blocks.len(), threads);
                    next = wave;
                    next.add(len);
                }
                self.blocks.push(Block::new(i, Range { start, len }, &wave));
                wave = next;
                words = words.max(wave.words());
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
    while wave.num_blocks < num_blocks as usize && !wave.is_full(threads) {
        wave.add(len);
        words = wave.words();
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
            most_notes: note_capacity(range.len) as u64,
            possible: AtomicU32::new(0),
            certain: AtomicU32::new(0),
            moved: AtomicU64::new(0),
            notes: AtomicU64::new(0),
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
    /// No thread writes to these words meanwhile.
    unsafe fn shared(&self, first: usize, len: usize) -> &[u32] {
        assert!(first <= self.len && len <= self.len - first);
        // SAFETY: within the words (asserted above), which outlive the wave; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.add(first), len) }
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
    /// Entries, keys and values.
    notes: [Words; NOTE_WORDS],
    /// For searches.
    free: Words,
    next_note: AtomicUsize,
    forced: Forced,
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
    chunk: Chunk,
    /// Whose tiles it is at, and what it has not told the block yet.
    block: usize,
    tiles: usize,
    moved: u64,
    notes: u64,
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
        let (notes, rest) = words.split_at_mut(NOTE_WORDS * wave.note_capacity);
        let (sample, free) = rest.split_at_mut(wave.sample_words);
        let mut notes = notes.chunks_exact_mut(wave.note_capacity).map(Words::of);
        let notes = std::array::from_fn(|_| notes.next().expect("as many as it was divided by"));
        Self {
            kernels,
            jobs,
            wave,
            blocks,
            tiles: Tiles(tiles.as_mut_ptr()),
            chunk: chunk(threads),
            sample: Words::of(sample),
            notes,
            free: Words::of(free),
            next_note: AtomicUsize::new(0),
            forced: forced::current(),
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
                    stepped.selected += block.moved.load(Ordering::Relaxed);
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
        let sampled = sample::bracket_of(
            self.kernels,
            sample,
            candidates,
            job.rank,
            block.range.len,
            hint,
        );
        let (low, high) = self.forced.bracket(sampled);
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
        let has_room = !self.forced.no_room
            && strand
                .chunk
                .reserve(self.chunk, &self.next_note, self.wave.note_capacity);
        // If too many have moved already, the estimate has failed, and to go on would only make it worse. If it
        // leaves too many open, they must not take the room of other blocks.
        let held = !has_room
            || block.moved.load(Ordering::Relaxed) >= job.rank
            || block.notes.load(Ordering::Relaxed) > block.most_notes;
        if held {
            bounds = Bounds::at(NEVER);
        }
        let [entries, keys, values] = self
            .notes
            .each_ref()
            .map(|words| words.start.wrapping_add(strand.chunk.next));
        let mut notes = Notes {
            entries,
            keys,
            values,
            count: 0,
        };
        let Range { start, len } = block.tile(tile);
        // SAFETY: the caller's promise; there is room for the notes of a whole tile, or none will be made.
        unsafe {
            strand.moved += (self.kernels.step)(job, start, len, bounds, Some(&mut notes));
            self.tiles.0.add(tile).write(Tile {
                first_note: strand.chunk.next,
                num_notes: notes.count as u32,
                held,
            });
        }
        strand.chunk.next += notes.count;
        strand.notes += notes.count as u64;
        strand.tiles += 1;
        if held && !block.failed.load(Ordering::Relaxed) {
            block.failed.store(true, Ordering::Relaxed);
        }
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
        block.moved.fetch_add(strand.moved, Ordering::Relaxed);
        block.notes.fetch_add(strand.notes, Ordering::Relaxed);
        let left = block.tiles_left.fetch_sub(strand.tiles, Ordering::AcqRel);
        let done = left == strand.tiles;
        (strand.tiles, strand.moved, strand.notes) = (0, 0, 0);
        if done {
            // SAFETY: all tiles of the block are done.
            match unsafe { self.found_threshold(block) } {
                // SAFETY: a job has a threshold for every block; one thread gets here for each.
                Some(threshold) => unsafe { block.threshold(self.jobs).write(threshold) },
                None => block.failed.store(true, Ordering::Relaxed),
            }
        }
    }

    /// The threshold of a block, if it is among the notes.
    ///
    /// # Safety
    ///
    /// The pass is over for this block.
    unsafe fn found_threshold(&self, block: &Block) -> Option<u32> {
        let rank = self.jobs[block.job].rank;
        let moved = block.moved.load(Ordering::Relaxed);
        let notes = block.notes.load(Ordering::Relaxed);
        let bounds = block.bounds();
        if block.failed.load(Ordering::Relaxed) || moved >= rank {
            return None;
        }
        if rank - moved > notes {
            // All keys above zero are known, and they are too few.
            return (bounds.possible == 1).then_some(0);
        }
        // SAFETY: the caller's promise; the block's sample is of no use any more.
        let room = unsafe {
            let len = sample::room(block.range.len);
            self.sample.slice(block.first_key, len)
        };
        // SAFETY: the caller's promise.
        let runs = || unsafe { self.runs_of_noted_keys(block) };
        let found = kth_of_runs(self.kernels, runs, notes, rank - moved, room);
        // From there on some have moved whose keys are not noted.
        (found < bounds.certain).then_some(found)
    }

    /// The noted keys of a block, in as few slices as possible.
    ///
    /// # Safety
    ///
    /// As for [`WaveRun::found_threshold`].
    unsafe fn runs_of_noted_keys<'b>(
        &'b self,
        block: &'b Block,
    ) -> impl Iterator<Item = &'b [u32]> {
        let mut tiles = (block.first_tile..block.first_tile + block.num_tiles())
            // SAFETY: the caller's promise: the tiles are written.
            .map(|tile| unsafe { self.tiles.0.add(tile).read() })
            .peekable();
        std::iter::from_fn(move || {
            let first = tiles.next()?;
            let mut end = first.first_note + first.num_notes as usize;
            while let Some(next) = tiles.next_if(|next| next.first_note == end) {
                end += next.num_notes as usize;
            }
            // SAFETY: the notes were written (the caller's promise).
            Some(unsafe { self.notes[1].shared(first.first_note, end - first.first_note) })
        })
    }

    /// Moves the noted entries of a tile that reach the threshold; how many.
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
        let start = block.tile(tile).start;
        // SAFETY: the caller's promise; the pass has written the tile and its notes.
        unsafe {
            let notes = self.notes_of(tile);
            let threshold = block.threshold(self.jobs).read().max(1);
            self.prefetch_params(tile + AHEAD);
            if !job.master.is_null() {
                let moves = |i: &usize| notes.keys[*i] >= threshold;
                for i in (0..notes.keys.len()).filter(moves) {
                    write_param(job, entry(start, notes.entries[i]), notes.values[i]);
                }
            } else if job.param_dtype == Dtype::F32 {
                write_some(job.param.cast::<u32>(), start, &notes, threshold, |bits| {
                    bits
                });
            } else {
                write_some(job.param.cast::<u16>(), start, &notes, threshold, |bits| {
                    bits as u16
                });
            }
            let moved = |key: &u32| u64::from(*key >= threshold);
            notes.keys.iter().map(moved).sum()
        }
    }

    /// Asks for the noted parameters of a tile that will move, if there is such a tile: they are far apart, and to
    /// wait for each of them takes longer than all the rest.
    ///
    /// # Safety
    ///
    /// The pass is over, and the thresholds are known.
    unsafe fn prefetch_params(&self, tile: usize) {
        if tile >= self.wave.tiles {
            return;
        }
        let block = &self.blocks[self.block_of(0, tile)];
        let (job, start) = (&self.jobs[block.job], block.tile(tile).start);
        // SAFETY: the tile was written (the caller's promise); its entries and keys are not written any more.
        let (entries, keys, threshold) = unsafe {
            let tile = self.tiles.0.add(tile).read();
            let (first, len) = (tile.first_note, tile.num_notes as usize);
            let threshold = block.threshold(self.jobs).read();
            (
                self.notes[0].shared(first, len),
                self.notes[1].shared(first, len),
                threshold,
            )
        };
        for (&noted, &key) in entries.iter().zip(keys) {
            let places = [
                entries.as_ptr().cast(),
                param_at(job, entry(start, noted)).cast_const(),
            ];
            prefetch(places[usize::from(key >= threshold)]);
        }
    }

    /// The notes about a tile.
    ///
    /// # Safety
    ///
    /// The pass has written them, and no other thread asks for the same tile's meanwhile.
    unsafe fn notes_of(&self, tile: usize) -> TileNotes<'_> {
        // SAFETY: the caller's promise.
        unsafe {
            let tile = self.tiles.0.add(tile).read();
            let (first, len) = (tile.first_note, tile.num_notes as usize);
            TileNotes {
                entries: self.notes[0].shared(first, len),
                keys: self.notes[1].shared(first, len),
                values: self.notes[2].slice(first, len),
                held: tile.held,
            }
        }
    }

    /// Finds the threshold of a block the long way, and makes its parameters right; how many moved.
    ///
    /// # Safety
    ///
    /// As for [`Estimates::step`]; the pass is over.
    unsafe fn rescue(&self, executor: &mut Executor, block: &Block) -> Result<u64> {
        let job = &self.jobs[block.job];
        let stored = job_after_step(job);
        let selected = AtomicU64::new(0);
        // SAFETY: the caller's promise; the space is for searches, one at a time.
        unsafe {
            let space = self.free.slice(0, search_words(block.range.len));
            let threshold = search::threshold(self.kernels, executor, &stored, block.range, space)?;
            block.threshold(self.jobs).write(threshold);
            let tiles = block.num_tiles();
            executor.for_each(tiles, block.range.len, Incomplete::Finish, |i| {
                let moved = self.correct(block, block.first_tile + i, threshold.max(1));
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
    unsafe fn correct(&self, block: &Block, tile: usize, threshold: u32) -> u64 {
        let job = &self.jobs[block.job];
        let Range { start, len } = block.tile(tile);
        // SAFETY: the caller's promise; the pass has written the tile and its notes.
        unsafe {
            let notes = self.notes_of(tile);
            let certain = block.bounds().certain;
            let moved_from = if notes.held { NEVER } else { certain };
            // Those that should have moved and were noted instead have their old value still; it must be saved from
            // being taken for a new one.
            for i in (0..notes.keys.len()).filter(|&i| notes.keys[i] >= certain) {
                if notes.keys[i] < threshold {
                    notes.values[i] = read_param(job, entry(start, notes.entries[i]));
                }
            }
            let selected = (self.kernels.settle)(job, start, len, moved_from, threshold);
            for i in (0..notes.keys.len()).filter(|&i| notes.keys[i] >= certain) {
                write_param(job, entry(start, notes.entries[i]), notes.values[i]);
            }
            selected
        }
    }
}

/// The notes about one tile.
struct TileNotes<'a> {
    entries: &'a [u32],
    keys: &'a [u32],
    values: &'a mut [u32],
    held: bool,
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

/// Writes the noted parameters that reach the threshold. About every other one does, so that the processor would guess
/// wrong half of the time: instead of a branch, the others are written to a place of no importance.
///
/// # Safety
///
/// The noted entries lie within the tensor whose parameters these are, and nobody else uses them.
unsafe fn write_some<T>(
    params: *mut T,
    start: u64,
    notes: &TileNotes<'_>,
    threshold: u32,
    value: impl Fn(u32) -> T,
) {
    let mut unimportant = MaybeUninit::<T>::uninit();
    let values = notes.values.iter();
    for ((&noted, &key), &bits) in notes.entries.iter().zip(notes.keys.iter()).zip(values) {
        let places = [
            unimportant.as_mut_ptr(),
            params.wrapping_add(entry(start, noted) as usize),
        ];
        // SAFETY: either the caller's promise, or a local.
        unsafe { places[usize::from(key >= threshold)].write(value(bits)) };
    }
}

/// Where a parameter is, the master copy if there is one.
fn param_at(job: &Job, entry: u64) -> *mut u8 {
    if job.master.is_null() {
        job.param
            .wrapping_add(entry as usize * job.param_dtype.size())
    } else {
        job.master.wrapping_add(entry as usize).cast()
    }
}

/// The bits of a parameter, the master copy if there is one.
///
/// # Safety
///
/// The entry lies within the job's tensor, and nobody else writes to it.
unsafe fn read_param(job: &Job, entry: u64) -> u32 {
    let from = param_at(job, entry);
    // SAFETY: the caller's promise.
    unsafe {
        if job.master.is_null() && job.param_dtype != Dtype::F32 {
            from.cast::<u16>().read().into()
        } else {
            from.cast::<u32>().read()
        }
    }
}

/// Writes a parameter, and the master copy if there is one, given its bits.
///
/// # Safety
///
/// The entry lies within the job's tensor, and nobody else uses it.
unsafe fn write_param(job: &Job, entry: u64, bits: u32) {
    let to = param_at(job, entry);
    // SAFETY: the caller's promise.
    unsafe {
        if job.master.is_null() {
            match job.param_dtype {
                Dtype::F32 => to.cast::<u32>().write(bits),
                Dtype::F16 | Dtype::BF16 => to.cast::<u16>().write(bits as u16),
            }
        } else {
            to.cast::<u32>().write(bits);
            let value = f32::from_bits(bits);
            let rounded = match job.param_dtype {
                Dtype::F16 => convert::f32_to_f16_nearest(value),
                _ => convert::f32_to_bf16_nearest(value),
            };
            job.param.cast::<u16>().add(entry as usize).write(rounded);
        }
    }
}

/// Keys that are sifted at a time.
const PART: usize = 1024;
/// So many keys need not be narrowed down before one of them is selected.
const FEW: u64 = 4096;
/// Keys that are sampled to narrow down the others.
const SAMPLED: usize = 8192;

/// The `rank`-th largest of `count` keys that are given in runs. `room` is work space, for more than [`MAX_LANES`].
fn kth_of_runs<'a, I: Iterator<Item = &'a [u32]>>(
    kernels: &Kernels,
    runs: impl Fn() -> I,
    mut count: u64,
    rank: u64,
    room: &mut [u32],
) -> u32 {
    // What is in question: the keys between these bounds, and how many lie above.
    let (mut low, mut high, mut above) = (0u32, INFINITE, 0u64);
    // Each round leaves fewer: by sampling them, or else by halving their range.
    let mut halves = false;
    let few = FEW.min(room.len() as u64 / 2 - MAX_LANES as u64);
    while low < high {
        let bracket = if count <= few {
            (low, high)
        } else if halves {
            (low, low + (high - low) / 2)
        } else {
            let most = SAMPLED.min(room.len());
            let sample = stride_sample(runs(), (low, high), count, &mut room[..most]);
            bracket_by(sample, (low, high), (rank - above) as f64 / count as f64)
        };
        let found = sift_runs(kernels, runs(), bracket, room);
        let inside = found.above + found.inside;
        if rank <= found.above {
            low = bracket.1 + 1;
            halves = found.above - above > count / 2;
            count = found.above - above;
        } else if rank <= inside {
            if let Some(keys) = found.keys {
                return kth_largest(keys, (rank - found.above) as usize);
            }
            halves = found.inside > count / 2;
            (low, high) = bracket;
            (above, count) = (found.above, found.inside);
        } else {
            high = bracket.0 - 1;
            let left = count - (inside - above);
            halves = left > count / 2;
            (above, count) = (inside, left);
        }
    }
    low
}

/// How many keys lie above a bracket and inside it.
struct Sifted<'a> {
    above: u64,
    inside: u64,
    /// Those inside, if there was room for all of them.
    keys: Option<&'a mut [u32]>,
}

fn sift_runs<'a, 'b>(
    kernels: &Kernels,
    runs: impl Iterator<Item = &'a [u32]>,
    bracket: (u32, u32),
    room: &'b mut [u32],
) -> Sifted<'b> {
    let most = PART.min((room.len() - MAX_LANES) / 2);
    let (mut above, mut inside, mut kept) = (0, 0, 0);
    let mut fits = true;
    for part in runs.flat_map(|run| run.chunks(most)) {
        if kept + part.len() + MAX_LANES > room.len() {
            (fits, kept) = (false, 0);
        }
        // SAFETY: behind the keys that are kept there is room for the part, and for a group more: checked just
        // now, or so by the choice of `most`.
        let found = unsafe {
            let to = room.as_mut_ptr().add(kept);
            (kernels.sift)(part.as_ptr(), part.len(), bracket, to)
        };
        above += found.above;
        inside += found.inside as u64;
        kept += found.inside;
    }
    Sifted {
        above,
        inside,
        keys: fits.then(|| &mut room[..kept]),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::random::mix64;

    /// Cuts keys into runs of up to `longest`, some of them empty.
    fn cut(keys: &[u32], longest: u64) -> Vec<&[u32]> {
        let (mut runs, mut rest) = (Vec::new(), keys);
        while !rest.is_empty() {
            let len = mix64(rest.len() as u64) % (longest + 1);
            let (run, others) = rest.split_at(rest.len().min(len as usize));
            runs.push(run);
            rest = others;
            if len == 0 {
                let (run, others) = rest.split_at(1);
                runs.push(run);
                rest = others;
            }
        }
        runs
    }

    /// Compares some ranks with a sort.
    fn check(keys: &[u32], longest_run: u64, room: usize) {
        let kernels = Kernels::choose(None).unwrap();
        let mut sorted = keys.to_vec();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let runs = cut(keys, longest_run);
        let count = keys.len() as u64;
        let drawn = (0..6).map(|i| 1 + mix64(count + i) % count);
        for rank in [1, 2, count / 2, count - 1, count].into_iter().chain(drawn) {
            let rank = rank.clamp(1, count);
            let mut room = vec![0; room];
            let found = kth_of_runs(kernels, || runs.iter().copied(), count, rank, &mut room);
            let expected = sorted[rank as usize - 1];
            assert_eq!(
                found,
                expected,
                "rank {rank} of {count}, room for {}",
                room.len()
            );
        }
    }

    #[test]
    fn the_kth_key_of_runs_is_that_of_a_sort() {
        let kinds: [fn(u64) -> u32; 7] = [
            |i| mix64(i) as u32 % INFINITE,
            |i| 1_000_000 + mix64(i) as u32 % 1000,
            |i| [3, 5, 7][mix64(i) as usize % 3],
            |i| u32::from(mix64(i).is_multiple_of(100)),
            |i| i as u32,
            |i| INFINITE - i as u32,
            |_| 12345,
        ];
        for kind in kinds {
            for count in [1, 2, 17, 1000, 5000, 40_000] {
                let keys: Vec<u32> = (0..count).map(kind).collect();
                for (longest_run, room) in [(3, 64), (100, 200), (5000, 3000), (100_000, 30_000)] {
                    check(&keys, longest_run, room);
                }
            }
        }
    }
}
