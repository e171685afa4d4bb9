//! One wave of estimated blocks on its way.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::writes::{self, Writes, entry, write_param};
use super::{
    Block, GATHERED, LOST_RESERVE, NEVER, NOTE_WORDS, Open, Stepped, TALLIED_TILES,
    TALLIED_TILES_IF_KEPT, TILE, Tile, Tiles, Wave, Words, chunk, search_words,
};
use crate::cpu::executor::{Executor, Incomplete};
use crate::cpu::kernels::{self, Bounds, Notes};
use crate::cpu::runs::{Candidates, kth_of_runs};
use crate::cpu::sample;
use crate::cpu::search;
use crate::cpu::select::Range;
use crate::cpu::tier::{Kernels, keeps_old};
use crate::cpu::vector::MAX_LANES;
use crate::error::Result;
use crate::forced::{self, Forced};
use crate::job::Job;

/// One wave on its way.
pub(super) struct WaveRun<'a> {
    kernels: &'a Kernels,
    jobs: &'a [Job],
    wave: &'a Wave,
    blocks: &'a [Block],
    tiles: Tiles,
    threads: usize,
    chunk: usize,
    sample: Words,
    /// Entries, keys and values.
    notes: [Words; NOTE_WORDS],
    /// Old values, two in a word.
    old: Words,
    /// For searches.
    free: Words,
    next_note: AtomicUsize,
    next_old: AtomicUsize,
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
    notes: Chunk,
    /// Whose tiles it is at, and what it has not told the block yet.
    block: usize,
    tiles: usize,
    moved: u64,
    open: u64,
    lost: u64,
}

/// What a thread knows while it settles.
#[derive(Debug)]
struct Settling {
    /// Of whose job parameters wait to be written.
    block: usize,
    writes: Writes,
    /// How many move.
    selected: u64,
}

impl<'a> WaveRun<'a> {
    pub(super) fn new(
        kernels: &'a Kernels,
        jobs: &'a [Job],
        wave: &'a Wave,
        blocks: &'a [Block],
        tiles: &'a mut [Tile],
        words: &'a mut [u32],
        threads: usize,
    ) -> Self {
        let (notes, rest) = words.split_at_mut(NOTE_WORDS * wave.note_capacity);
        let (sample, rest) = rest.split_at_mut(wave.sample_words);
        let (old, free) = rest.split_at_mut(wave.old_capacity.div_ceil(2));
        let mut notes = notes.chunks_exact_mut(wave.note_capacity).map(Words::of);
        let notes = std::array::from_fn(|_| notes.next().expect("as many as it was divided by"));
        Self {
            kernels,
            jobs,
            wave,
            blocks,
            tiles: Tiles(tiles.as_mut_ptr()),
            threads,
            chunk: chunk(threads),
            sample: Words::of(sample),
            notes,
            old: Words::of(old),
            free: Words::of(free),
            next_note: AtomicUsize::new(0),
            next_old: AtomicUsize::new(0),
            forced: forced::current(),
        }
    }

    /// Samples, passes over the blocks, settles what is open; then deals with the blocks whose estimate failed.
    ///
    /// # Safety
    ///
    /// As for [`super::Estimates::step`].
    pub(super) unsafe fn run(&self, executor: &mut Executor, stepped: &mut Stepped) -> Result<()> {
        let wave = self.wave;
        let sampled = 8 * (GATHERED * sample::LINE * wave.gathers) as u64;
        // SAFETY: the caller's promise; the phases follow each other, and their items are disjoint.
        unsafe {
            executor.for_each(wave.gathers, sampled, Incomplete::Finish, |i| {
                self.gather(i);
            })?;
            for block in self.blocks.iter().filter(|block| block.is_crowded()) {
                self.search(executor, block, &self.jobs[block.job])?;
            }
            executor.for_each_with(
                wave.tiles,
                wave.entries,
                Incomplete::Finish,
                Strand::default,
                |strand, tile| self.pass(strand, tile),
                |mut strand| self.tell(&mut strand),
            )?;
            let selected = AtomicU64::new(0);
            executor.for_each_with(
                wave.tiles,
                wave.entries / 4,
                Incomplete::Finish,
                || Settling {
                    block: 0,
                    writes: Writes::new(),
                    selected: 0,
                },
                |settling, tile| self.settle(settling, tile),
                |mut settling| {
                    let job = self.blocks[settling.block].job;
                    settling.writes.finish(&self.jobs[job]);
                    selected.fetch_add(settling.selected, Ordering::Relaxed);
                },
            )?;
            stepped.selected += selected.into_inner();
            for block in self.blocks {
                stepped.blocks += u64::from(!block.is_crowded());
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
    /// As for [`super::Estimates::step`], and no other thread does the same.
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
        // Entries of key zero never move.
        let low = low.max(1);
        block.possible.store(low, Ordering::Relaxed);
        block.certain.store(high + 1, Ordering::Relaxed);
        let (len, room) = (block.range.len as f64, block.most_notes as f64);
        let open = sample::share(sample, (low, high)) * len;
        let mut noted = open;
        if !keeps_old(job) && open + job.rank as f64 > room {
            // SAFETY: the caller's promise.
            noted += len
                * LOST_RESERVE
                * unsafe {
                    let (lines, bounds) = (block.lines, block.bounds());
                    sample::lost_share(self.kernels, job, block.range, lines, bounds)
                };
        }
        if self.forced.crowded(noted > room) {
            block.crowded.store(true, Ordering::Relaxed);
        }
    }

    /// Finds the threshold of a block by all of its keys, as the job has them: before it is stepped, or after that.
    ///
    /// # Safety
    ///
    /// As for [`super::Estimates::step`]; nobody writes to the block meanwhile.
    unsafe fn search(&self, executor: &mut Executor, block: &Block, job: &Job) -> Result<u32> {
        // SAFETY: the caller's promise; the space is for searches, one at a time. A job has a threshold for every
        // block.
        unsafe {
            let space = self.free.slice(0, search_words(block.range.len));
            let place = block.threshold(self.jobs);
            let (range, hint) = (block.range, place.read());
            let threshold = search::threshold(self.kernels, executor, job, range, hint, space)?;
            place.write(threshold);
            Ok(threshold)
        }
    }

    /// Steps a tile, as far as the bounds tell.
    ///
    /// # Safety
    ///
    /// As for [`super::Estimates::step`], and no other thread does the same; the block has its bounds.
    unsafe fn pass(&self, strand: &mut Strand, tile: usize) {
        let index = self.block_of(strand.block, tile);
        let block = &self.blocks[index];
        let job = &self.jobs[block.job];
        let tallied = if keeps_old(job) {
            TALLIED_TILES_IF_KEPT
        } else {
            TALLIED_TILES
        };
        if index != strand.block || strand.tiles >= tallied {
            self.tell(strand);
            strand.block = index;
        }
        let Range { start, len } = block.tile(tile);
        let done = if block.is_crowded() {
            // SAFETY: the caller's promise; the threshold is known.
            unsafe {
                let threshold = block.threshold(self.jobs).read().max(1);
                strand.moved += kernels::step(self.kernels, job, (start, len), threshold);
            }
            Tile::default()
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.step_and_note(strand, block, Range { start, len }) }
        };
        // SAFETY: nobody else writes to this element (the caller's promise).
        unsafe { self.tiles.0.add(tile).write(done) };
        strand.tiles += 1;
        if done.held && !block.failed.load(Ordering::Relaxed) {
            block.failed.store(true, Ordering::Relaxed);
        }
    }

    /// Steps a tile whose threshold is not known.
    ///
    /// # Safety
    ///
    /// As for [`WaveRun::pass`].
    unsafe fn step_and_note(&self, strand: &mut Strand, block: &Block, tile: Range) -> Tile {
        let job = &self.jobs[block.job];
        let has_room = !self.forced.no_room
            && (strand.notes).reserve(self.chunk, &self.next_note, self.wave.note_capacity)
            && (!keeps_old(job) || self.has_room_for_old());
        // If too many have moved already, the estimate has failed, and to go on would only make it worse. If it
        // leaves too many open, they must not take the room of other blocks.
        let held = !has_room
            || block.moved.load(Ordering::Relaxed) >= job.rank
            || block.notes() > block.most_notes;
        let bounds = if held {
            Bounds::at(NEVER)
        } else {
            block.bounds()
        };
        let first_note = strand.notes.next;
        let places = self
            .notes
            .each_ref()
            .map(|words| words.start.wrapping_add(first_note));
        // Here at first, because it is not known how many there will be.
        let mut old = [MaybeUninit::<u16>::uninit(); TILE as usize + MAX_LANES];
        let mut notes = Notes::at(places, old.as_mut_ptr().cast());
        // SAFETY: the caller's promise; there is room for the notes of a whole tile, or none will be made.
        unsafe {
            let range = (tile.start, tile.len);
            strand.moved += kernels::step_and_note(self.kernels, job, range, bounds, &mut notes);
        }
        strand.notes.next += notes.count;
        // SAFETY: the kernel has written so many, and there is room for those of a tile: checked above.
        let first_old = unsafe { self.keep(old.as_ptr().cast(), notes.num_old) };
        strand.lost += notes.lost as u64;
        strand.open += (notes.count - notes.lost) as u64;
        Tile {
            first_note,
            num_notes: notes.count as u32,
            first_old,
            num_old: notes.num_old as u32,
            held,
        }
    }

    /// True if every thread can keep the old values of a whole tile. Each looks before each tile; so after the last look
    /// that was answered so, no thread keeps more than one tile.
    fn has_room_for_old(&self) -> bool {
        let taken = self.next_old.load(Ordering::Relaxed);
        let capacity = self.forced.old_capacity(self.wave.old_capacity);
        taken + self.threads * TILE as usize <= capacity
    }

    /// Keeps the old values of a tile; where.
    ///
    /// # Safety
    ///
    /// So many values are readable, at most those of a tile; if any, this thread has seen
    /// [`WaveRun::has_room_for_old`] since it kept others.
    unsafe fn keep(&self, values: *const u16, len: usize) -> usize {
        if len == 0 {
            return 0;
        }
        let first = self.next_old.fetch_add(len, Ordering::Relaxed);
        let to = self.old.place_of_halves(first, len);
        // SAFETY: these places were claimed by this thread alone; the rest is the caller's promise.
        unsafe { to.copy_from_nonoverlapping(values, len) };
        first
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
        block.open.fetch_add(strand.open, Ordering::Relaxed);
        block.lost.fetch_add(strand.lost, Ordering::Relaxed);
        let left = block.tiles_left.fetch_sub(strand.tiles, Ordering::AcqRel);
        let done = left == strand.tiles;
        (strand.tiles, strand.moved) = (0, 0);
        (strand.open, strand.lost) = (0, 0);
        if done && !block.is_crowded() {
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
        let lost = block.lost.load(Ordering::Relaxed);
        let open = block.open.load(Ordering::Relaxed);
        let moved = block.moved.load(Ordering::Relaxed);
        let Bounds { possible, certain } = block.bounds();
        if block.failed.load(Ordering::Relaxed) || moved >= rank {
            return None;
        }
        if rank - moved > open {
            // All keys above zero are known, and they are too few.
            return (possible == 1).then_some(0);
        }
        // SAFETY: the caller's promise; the block's sample is of no use any more.
        let room = unsafe {
            let len = sample::room(block.range.len);
            self.sample.slice(block.first_key, len)
        };
        // SAFETY: the caller's promise.
        let runs = || unsafe { self.runs_of_noted_keys(block) };
        let candidates = Candidates {
            low: possible,
            high: certain - 1,
            count: open,
            above: lost,
        };
        Some(kth_of_runs(
            self.kernels,
            runs,
            candidates,
            rank - moved + lost,
            room,
        ))
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

    /// Moves the noted entries of a tile that reach the threshold, and have not moved.
    ///
    /// # Safety
    ///
    /// As for [`super::Estimates::step`], and no other thread does the same; the thresholds are known.
    unsafe fn settle(&self, settling: &mut Settling, tile: usize) {
        let last = &self.blocks[settling.block];
        let index = self.block_of(settling.block, tile);
        let block = &self.blocks[index];
        if block.failed.load(Ordering::Relaxed) || block.is_crowded() {
            return;
        }
        if block.job != last.job {
            // SAFETY: they were pushed as parameters of that job.
            unsafe { settling.writes.finish(&self.jobs[last.job]) };
        }
        settling.block = index;
        let start = block.tile(tile).start;
        // SAFETY: the caller's promise; the pass has written the tile and its notes.
        let (notes, moves) = unsafe { (self.notes_of(tile), block.open(self.jobs)) };
        let moves_now = |&key: &u32| u64::from(moves.holds(key));
        settling.selected += notes.keys.iter().map(moves_now).sum::<u64>();
        let parts = notes
            .entries
            .chunks(writes::MOST)
            .zip(notes.keys.chunks(writes::MOST))
            .zip(notes.values.chunks(writes::MOST));
        for ((entries, keys), values) in parts {
            let candidates = entries
                .iter()
                .zip(keys)
                .zip(values)
                .map(|((&noted, &key), &value)| (entry(start, noted), value, moves.holds(key)));
            // SAFETY: noted entries lie within the tensor, and each is noted once.
            unsafe { settling.writes.push(&self.jobs[block.job], candidates) };
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
                values: self.notes[2].shared(first, len),
                held: tile.held,
            }
        }
    }

    /// Finds the threshold of a block the long way, and makes its parameters right; how many moved.
    ///
    /// # Safety
    ///
    /// As for [`super::Estimates::step`]; the pass is over.
    unsafe fn rescue(&self, executor: &mut Executor, block: &Block) -> Result<u64> {
        let stored = self.jobs[block.job].after_step();
        let selected = AtomicU64::new(0);
        // SAFETY: the caller's promise.
        unsafe {
            let threshold = self.search(executor, block, &stored)?;
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
            if keeps_old(job) {
                self.restore(block, tile, threshold);
            }
            let notes = self.notes_of(tile);
            let certain = block.bounds().certain;
            let moved_from = if notes.held { NEVER } else { certain };
            let selected = kernels::settle(self.kernels, job, (start, len), moved_from, threshold);
            // These cannot be computed back; their old values were noted.
            let moved_back = Open {
                from: certain,
                num_keys: threshold.saturating_sub(certain),
            };
            for i in (0..notes.keys.len()).filter(|&i| moved_back.holds(notes.keys[i])) {
                write_param(job, entry(start, notes.entries[i]), notes.values[i]);
            }
            selected
        }
    }

    /// Gives those entries of a tile that moved, but do not reach the threshold, the old values that were kept.
    ///
    /// # Safety
    ///
    /// As for [`WaveRun::correct`].
    unsafe fn restore(&self, block: &Block, tile: usize, threshold: u32) {
        let job = &self.jobs[block.job];
        let Range { start, len } = block.tile(tile);
        let certain = block.bounds().certain;
        let mut keys = [0u32; TILE as usize + MAX_LANES];
        // SAFETY: the caller's promise; the pass has written the tile, and as many old values as entries moved. There
        // is room for the keys of a tile, and a group more.
        unsafe {
            let Tile {
                first_old, num_old, ..
            } = self.tiles.0.add(tile).read();
            let mut old = self.old.halves(first_old, num_old as usize).iter();
            if old.len() == 0 {
                return;
            }
            kernels::keys(
                self.kernels,
                &job.after_step(),
                start,
                len as usize,
                keys.as_mut_ptr(),
            );
            let moved = (0..len).zip(keys).filter(|(_, key)| *key >= certain);
            for ((i, key), &old) in moved.zip(&mut old) {
                if key < threshold {
                    write_param(job, start + i, old.into());
                }
            }
        }
    }
}

/// The notes about one tile.
struct TileNotes<'a> {
    entries: &'a [u32],
    keys: &'a [u32],
    values: &'a [u32],
    held: bool,
}
