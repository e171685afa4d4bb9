//! Steps of large blocks in one pass over memory, before their thresholds are known.
//!
//! A sample brackets the threshold. The pass moves the entries above the bracket, leaves alone those below it, and
//! notes the few inside it: which they are, their keys, and what they would become. The threshold is then
//! found among these notes, and the entries that reach it get the noted value.
//!
//! The estimate may fail: the threshold lies outside of the bracket, or the bracket holds more than there is room
//! for. Then the threshold is searched for in the stored moments, and a second pass moves what should have moved, and
//! moves back what should not have. The old value of a parameter can be computed from the new one and the moments,
//! nearly always; where it cannot, which the first pass sees, it is noted, too.
//! Where there is no room for notes, nothing of a tile moves until the threshold is known.

mod run;
mod writes;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::executor::Executor;
use super::kernels::Bounds;
use super::plan::{is_estimated, most_kept};
use super::sample;
use super::search;
use super::select::Range;
use super::tier::{Kernels, keeps_old};
use super::vector::MAX_LANES;
use crate::error::Result;
use crate::job::Job;
use crate::memory::{self, try_reserve, try_reserve_one};
use crate::rule::convert::INFINITE;
use run::WaveRun;

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
/// How many more old values may be lost than a few lines say.
const LOST_RESERVE: f64 = 1.25;
/// Tiles after which a thread tells the others how many of their entries moved; sooner, where too many would take the
/// room for the old values of other blocks.
const TALLIED_TILES: usize = 32;
const TALLIED_TILES_IF_KEPT: usize = 4;
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
    /// Entries that moved, those that are noted because they are open, and those because they moved and their old value
    /// would be lost.
    moved: AtomicU64,
    open: AtomicU64,
    lost: AtomicU64,
    /// There would be more to note than there is room for, because of ties, or of parameters that are small against their
    /// updates. The threshold is searched for before the pass.
    crowded: AtomicBool,
    /// The estimate was wrong, or there was no room for all notes.
    failed: AtomicBool,
}

/// What the pass left behind for a tile.
#[derive(Clone, Copy, Debug, Default)]
struct Tile {
    first_note: usize,
    num_notes: u32,
    /// Where old values are kept.
    first_old: usize,
    num_old: u32,
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
    /// Of 16 bits each.
    old_capacity: usize,
    /// For one search at a time.
    search_words: usize,
}

impl Wave {
    fn words(&self) -> usize {
        self.sample_words
            + NOTE_WORDS * self.note_capacity
            + self.old_capacity.div_ceil(2)
            + self.search_words
    }

    fn add(&mut self, needs: &Needs, threads: usize) {
        self.num_blocks += 1;
        self.entries += needs.len;
        self.gathers += needs.gathers();
        self.tiles += needs.tiles();
        self.sample_words += needs.sample_words;
        self.note_capacity += needs.notes;
        self.search_words = self.search_words.max(needs.search_words);
        if let Some(kept) = needs.kept {
            if self.old_capacity == 0 {
                // So that every thread can begin a tile as long as not all are kept.
                self.old_capacity = threads * TILE as usize;
            }
            // Somewhat more, because the threads do not know at once when too many have moved.
            self.old_capacity += (kept + kept / 16) as usize;
        }
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

/// What the step of a block takes; the same for all blocks of a tensor.
#[derive(Clone, Copy, Debug)]
struct Needs {
    len: u64,
    /// Lines of the sample.
    lines: usize,
    sample_words: usize,
    notes: usize,
    search_words: usize,
    /// How many entries move, if their old values are kept.
    kept: Option<u64>,
}

impl Needs {
    fn of(len: u64, kept: Option<u64>) -> Self {
        Self {
            len,
            lines: sample::lines(len),
            sample_words: sample::room(len),
            notes: note_capacity(len, kept.is_some()),
            search_words: search_words(len),
            kept,
        }
    }

    fn gathers(&self) -> usize {
        self.lines.div_ceil(GATHERED)
    }

    fn tiles(&self) -> usize {
        self.len.div_ceil(TILE) as usize
    }
}

/// Notes that a thread takes room for at a time.
fn chunk(threads: usize) -> usize {
    (128 / threads).clamp(2, 4) * TILE as usize + MAX_LANES
}

/// How many notes about a block there is room for. None is about an old value where these are kept.
fn note_capacity(len: u64, keeps_old: bool) -> usize {
    let sampled = (sample::lines(len) * sample::LINE) as f64;
    // Of α = 0.5, where it is largest.
    let expected = len as f64 * 2.0 * sample::SIGMAS * 0.5 / sampled.sqrt();
    let lost = if keeps_old { 0 } else { len / LOST_SHARE };
    ((OPEN_RESERVE * expected) as u64 + lost).min(len) as usize
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
            let needs = Needs::of(len, keeps_old(job).then_some(job.rank));
            for start in (0..job.numel).step_by(len as usize) {
                let mut next = wave;
                next.add(&needs, threads);
                if wave.num_blocks > 0 && next.is_full(threads) {
                    try_reserve_one(&mut self.waves, "the estimates")?;
                    self.waves.push(wave);
                    wave = Wave::empty(self.blocks.len(), threads);
                    next = wave;
                    next.add(&needs, threads);
                }
                self.blocks.push(Block::new(i, start, &needs, &wave));
                wave = next;
                words = words.max(wave.words());
                tiles = tiles.max(wave.tiles);
            }
        }
        if wave.num_blocks > 0 {
            try_reserve_one(&mut self.waves, "the estimates")?;
            self.waves.push(wave);
        }
        // What they hold is of no use any more, but need not be cleared.
        if self.tiles.len() < tiles {
            self.tiles.clear();
            try_reserve(&mut self.tiles, tiles, "the estimates")?;
            self.tiles.resize(tiles, Tile::default());
        }
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
    // Whichever takes more, depending on the types, which may be anything here.
    let [wave, other] = [None, Some(most_kept(len))].map(|kept| {
        let needs = Needs::of(len, kept);
        let mut wave = Wave::empty(0, threads);
        while wave.num_blocks < num_blocks as usize && !wave.is_full(threads) {
            wave.add(&needs, threads);
        }
        wave
    });
    let words = wave.words().max(other.words());
    let tiles = wave.tiles.max(other.tiles);
    let blocks = wave.num_blocks.min(other.num_blocks);
    // The list of waves grows by doubling, from a few.
    let waves = 4 + 2 * num_blocks.div_ceil(blocks.saturating_sub(1).max(1) as u64);
    num_blocks * size_of::<Block>() as u64
        + waves * size_of::<Wave>() as u64
        + (tiles * size_of::<Tile>()) as u64
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
    fn new(job: usize, start: u64, needs: &Needs, wave: &Wave) -> Self {
        Self {
            job,
            range: Range {
                start,
                len: needs.len,
            },
            lines: needs.lines,
            first_gather: wave.gathers,
            first_tile: wave.tiles,
            first_key: wave.sample_words,
            gathers_left: AtomicUsize::new(needs.gathers()),
            tiles_left: AtomicUsize::new(needs.tiles()),
            most_notes: needs.notes as u64,
            possible: AtomicU32::new(0),
            certain: AtomicU32::new(0),
            moved: AtomicU64::new(0),
            open: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            crowded: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            possible: self.possible.load(Ordering::Relaxed),
            certain: self.certain.load(Ordering::Relaxed),
        }
    }

    fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    fn notes(&self) -> u64 {
        self.open.load(Ordering::Relaxed) + self.lost.load(Ordering::Relaxed)
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

    /// The keys of the noted entries that are still to move.
    ///
    /// # Safety
    ///
    /// The threshold is known.
    unsafe fn open(&self, jobs: &[Job]) -> Open {
        // SAFETY: a job has a threshold for every block; the rest is the caller's promise.
        let from = unsafe { self.threshold(jobs).read() }.max(1);
        Open {
            from,
            num_keys: self.bounds().certain.saturating_sub(from),
        }
    }

    /// Where the block's threshold goes.
    fn threshold(&self, jobs: &[Job]) -> *mut u32 {
        let job = &jobs[self.job];
        job.thresholds
            .wrapping_add((self.range.start / job.block_numel) as usize)
    }
}

/// The keys from a threshold up to those of entries that have moved already.
#[derive(Clone, Copy)]
struct Open {
    from: u32,
    num_keys: u32,
}

impl Open {
    fn holds(self, key: u32) -> bool {
        key.wrapping_sub(self.from) < self.num_keys
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

    /// The words as halves.
    ///
    /// # Safety
    ///
    /// No thread writes to these halves meanwhile.
    unsafe fn halves(&self, first: usize, len: usize) -> &[u16] {
        // SAFETY: within the words, which outlive the wave; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.place_of_halves(first, len), len) }
    }

    /// Where halves lie, all of them within the words.
    fn place_of_halves(&self, first: usize, len: usize) -> *mut u16 {
        let total = 2 * self.len;
        assert!(first <= total && len <= total - first);
        self.start.cast::<u16>().wrapping_add(first)
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
