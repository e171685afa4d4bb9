//! The CPU backend.
//!
//! A step is one to three passes over the entries, each a parallel loop over pieces of all tensors: the
//! gradient norm if it is needed, the thresholds of large blocks, and the update. Only the update
//! writes, so whatever can fail fails before it.

mod callback;
mod element;
mod executor;
mod kernels;
mod plan;
mod pool;
mod portable;
mod select;
mod tier;
mod vector;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::backend::{GradientRequest, Job, Outcome};
use crate::config::{CpuTier, Options};
use crate::error::Result;
use crate::memory::try_reserve;
use crate::rule::norm::{self, CHUNK};
use crate::rule::scalars::gradient_factor;
use executor::{Executor, Incomplete};
use plan::{Piece, is_searched_together};
use select::{
    DIGITS, DigitSearch, Keys, Range, SharedCounts, SharedSearch, threshold_of_small_block,
};
use tier::Kernels;

#[derive(Debug)]
pub(crate) struct Cpu {
    kernels: &'static Kernels,
    executor: Executor,
    scratch: Scratch,
}

/// Work space, kept between steps.
#[derive(Debug, Default)]
struct Scratch {
    pieces: Vec<Piece>,
    search_pieces: Vec<Piece>,
    searches: Vec<SharedSearch>,
    /// Collected keys; only the capacity is used.
    keys: Vec<u32>,
    sums: Vec<f64>,
}

/// Large blocks are searched in waves of about this many entries, so that the work space stays bounded.
const WAVE: u64 = 1 << 26;

/// Stands for the threshold of a block until it is found; no key has this value.
const UNSETTLED: u32 = u32::MAX;

impl Cpu {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            kernels: Kernels::choose(options.cpu_tier)?,
            executor: Executor::new(options)?,
            scratch: Scratch::default(),
        })
    }

    pub(crate) fn tier(&self) -> CpuTier {
        self.kernels.tier
    }

    pub(crate) fn scratch_bytes(&self) -> u64 {
        let scratch = &self.scratch;
        (bytes_of(&scratch.pieces)
            + bytes_of(&scratch.search_pieces)
            + bytes_of(&scratch.searches)
            + bytes_of(&scratch.keys)
            + bytes_of(&scratch.sums)) as u64
    }

    /// See [`crate::backend::Backend::step`].
    ///
    /// # Safety
    ///
    /// As there.
    pub(crate) unsafe fn step(
        &mut self,
        jobs: &mut [Job],
        request: &GradientRequest,
    ) -> Result<Outcome> {
        let entries = jobs.iter().map(|job| job.numel).sum();
        self.executor.prepare(entries)?;

        let clips = request.max_grad_norm > 0.0;
        let needs_sum = request.grad_norm.is_none() && (clips || request.skip_nonfinite);
        let (grad_norm, finite) = if needs_sum {
            // SAFETY: the caller's promise.
            let sum = unsafe { self.sum_of_squares(jobs)? };
            (Some(norm::norm(sum, request.grad_scale)), sum.is_finite())
        } else {
            let known = request.grad_norm;
            (known, known.is_none_or(f64::is_finite))
        };
        if request.skip_nonfinite && !finite {
            return Ok(Outcome {
                grad_norm,
                skipped: true,
                entries_selected: 0,
            });
        }
        let clip = grad_norm.map_or(1.0, |norm| norm::clip(norm, request.max_grad_norm));
        let s = gradient_factor(request.grad_scale, clip)?;
        for job in jobs.iter_mut() {
            job.scalars.s = s;
        }

        plan::cut_for_step(jobs, &mut self.scratch.pieces)?;
        self.reserve_searches(jobs)?;
        if !needs_sum {
            self.executor.probe(self.scratch.pieces.len(), entries)?;
        }
        // From here on nothing fails.
        // SAFETY: the caller's promise; all three touch what the jobs describe, one after the other.
        let entries_selected = unsafe {
            self.start_first_steps(jobs)?;
            self.search(jobs)?;
            self.update(jobs, entries)?
        };
        Ok(Outcome {
            grad_norm,
            skipped: false,
            entries_selected,
        })
    }

    /// See [`crate::backend::Backend::sum_of_squares`].
    ///
    /// # Safety
    ///
    /// As there.
    pub(crate) unsafe fn sum_of_squares(&mut self, jobs: &[Job]) -> Result<f64> {
        let entries = jobs.iter().map(|job| job.numel).sum();
        self.executor.prepare(entries)?;
        let Scratch { pieces, sums, .. } = &mut self.scratch;
        let chunks = plan::cut_for_norm(jobs, pieces)?;
        sums.clear();
        try_reserve(sums, chunks, "the gradient norm")?;
        sums.resize(chunks, 0.0);

        let out = SharedSlice(sums.as_mut_ptr());
        let (kernels, pieces) = (self.kernels, &*pieces);
        let sum_piece = |i: usize| {
            let out = &out;
            let piece = &pieces[i];
            let job = &jobs[piece.job];
            for (chunk, offset) in (0..piece.len).step_by(CHUNK).enumerate() {
                let len = (piece.len - offset).min(CHUNK as u64) as usize;
                // SAFETY: a range of the job (the caller's promise); each chunk has a place of its own among
                // the `chunks` ones.
                unsafe {
                    let sum = (kernels.sum_of_squares)(job, piece.start + offset, len);
                    out.0.add(piece.slot + chunk).write(sum);
                }
            }
        };
        self.executor
            .for_each(pieces.len(), entries, Incomplete::Fail, &sum_piece)?;

        // The tensors' sums take the places of the first chunks, which were folded by then.
        let mut start = 0;
        for (i, job) in jobs.iter().enumerate() {
            let end = start + plan::chunks_of(job.numel);
            sums[i] = norm::fold(&mut sums[start..end]);
            start = end;
        }
        Ok(norm::fold(&mut sums[..jobs.len()]))
    }

    /// Makes room for the searches for the thresholds of large blocks, and lists them.
    fn reserve_searches(&mut self, jobs: &[Job]) -> Result<()> {
        let Scratch {
            search_pieces,
            searches,
            keys,
            ..
        } = &mut self.scratch;
        plan::cut_for_search(jobs, search_pieces)?;
        searches.clear();
        keys.clear();
        let searched = || {
            jobs.iter()
                .enumerate()
                .filter(|(_, job)| is_searched_together(job))
        };
        let blocks: u64 = searched().map(|(_, job)| job.numel / job.block_numel).sum();
        try_reserve(searches, blocks as usize, "the threshold search")?;
        let (mut wave_entries, mut wave_keys, mut most_keys) = (0, 0, 0);
        for (i, job) in searched() {
            for start in (0..job.numel).step_by(job.block_numel as usize) {
                let block = Range {
                    start,
                    len: job.block_numel,
                };
                if wave_entries + block.len > WAVE {
                    (wave_entries, wave_keys) = (0, 0);
                }
                searches.push(SharedSearch::new(i, block, wave_keys));
                wave_entries += block.len;
                wave_keys += SharedSearch::capacity(block.len);
                most_keys = most_keys.max(wave_keys);
            }
        }
        try_reserve(keys, most_keys, "the threshold search")
    }

    /// Prepares the state of tensors in their first step.
    ///
    /// # Safety
    ///
    /// As for [`Cpu::step`].
    unsafe fn start_first_steps(&mut self, jobs: &[Job]) -> Result<()> {
        let entries: u64 = jobs
            .iter()
            .filter(|job| job.first_step)
            .map(|job| job.numel)
            .sum();
        if entries == 0 {
            return Ok(());
        }
        let (kernels, pieces) = (self.kernels, &self.scratch.pieces);
        let start_piece = |i: usize| {
            let piece = &pieces[i];
            let job = &jobs[piece.job];
            if job.first_step {
                // SAFETY: a range of the job, which no other piece shares.
                unsafe { (kernels.start)(job, piece.start, piece.len) };
            }
        };
        self.executor
            .for_each(pieces.len(), entries, Incomplete::Finish, &start_piece)
    }

    /// Finds the thresholds of large blocks, wave by wave.
    ///
    /// # Safety
    ///
    /// As for [`Cpu::step`].
    unsafe fn search(&mut self, jobs: &[Job]) -> Result<()> {
        let Scratch {
            search_pieces,
            searches,
            keys,
            ..
        } = &mut self.scratch;
        let keys = Keys(keys.as_mut_ptr());
        let (mut searches, mut pieces) = (&searches[..], &search_pieces[..]);
        let mut first = 0;
        while !searches.is_empty() {
            let (mut waves_searches, mut waves_pieces, mut entries) = (0, 0, 0);
            for search in searches {
                // A part that starts at 0 belongs to the next wave: as `reserve_searches` laid them out.
                if waves_searches > 0 && search.first_key() == 0 {
                    break;
                }
                waves_searches += 1;
                waves_pieces += search.block.len.div_ceil(plan::PIECE) as usize;
                entries += search.block.len;
            }
            let (wave, later) = searches.split_at(waves_searches);
            let (wave_pieces, later_pieces) = pieces.split_at(waves_pieces);
            // SAFETY: the caller's promise; `keys` has room for a wave's parts.
            unsafe {
                search_wave(
                    self.kernels,
                    &mut self.executor,
                    jobs,
                    wave,
                    wave_pieces,
                    first,
                    entries,
                    &keys,
                )?;
            }
            first += waves_searches;
            (searches, pieces) = (later, later_pieces);
        }
        Ok(())
    }

    /// The pass that updates moments, masters and parameters; how many entries moved.
    ///
    /// # Safety
    ///
    /// As for [`Cpu::step`]; the thresholds of large blocks are known.
    unsafe fn update(&mut self, jobs: &[Job], entries: u64) -> Result<u64> {
        let selected = AtomicU64::new(0);
        let (kernels, pieces) = (self.kernels, &self.scratch.pieces);
        let update_piece = |i: usize| {
            let piece = &pieces[i];
            // SAFETY: a range of the job, which no other piece shares.
            let moved = unsafe { update_piece(kernels, &jobs[piece.job], piece) };
            selected.fetch_add(moved, Ordering::Relaxed);
        };
        self.executor
            .for_each(pieces.len(), entries, Incomplete::Finish, &update_piece)?;
        Ok(selected.into_inner())
    }
}

/// Finds the thresholds of the blocks of one wave, of which the first is number `first` of all; each has
/// `wave_pieces` of its own, in order.
///
/// # Safety
///
/// As for [`Cpu::step`]; `keys` has room for the parts of these searches.
#[allow(clippy::too_many_arguments)]
unsafe fn search_wave(
    kernels: &Kernels,
    executor: &mut Executor,
    jobs: &[Job],
    wave: &[SharedSearch],
    wave_pieces: &[Piece],
    first: usize,
    entries: u64,
    keys: &Keys,
) -> Result<()> {
    let bracket_block = |i: usize| {
        // SAFETY: nobody writes to the job during the search; one item, one search.
        unsafe { wave[i].bracket(kernels, &jobs[wave[i].job], keys) };
    };
    executor.for_each(wave.len(), entries, Incomplete::Finish, &bracket_block)?;
    let collect_piece = |i: usize| {
        let piece = &wave_pieces[i];
        // SAFETY: as above; all samples have been used up.
        unsafe { wave[piece.slot - first].collect(kernels, &jobs[piece.job], piece.range(), keys) };
    };
    executor.for_each(
        wave_pieces.len(),
        entries,
        Incomplete::Finish,
        &collect_piece,
    )?;
    let threshold_of = |search: &SharedSearch| {
        let job = &jobs[search.job];
        job.thresholds
            .wrapping_add((search.block.start / job.block_numel) as usize)
    };
    let unsettled = AtomicUsize::new(0);
    let settle_block = |i: usize| {
        // SAFETY: one item, one search; all keys have been collected. A job has a threshold for every block.
        unsafe {
            match wave[i].settle(&jobs[wave[i].job], keys) {
                Some(threshold) => threshold_of(&wave[i]).write(threshold),
                None => {
                    threshold_of(&wave[i]).write(UNSETTLED);
                    unsettled.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    executor.for_each(wave.len(), entries, Incomplete::Finish, &settle_block)?;
    if unsettled.into_inner() == 0 {
        return Ok(());
    }

    let mut pieces = wave_pieces;
    for search in wave {
        let (own, later) = pieces.split_at(search.block.len.div_ceil(plan::PIECE) as usize);
        pieces = later;
        // SAFETY: as above.
        if unsafe { threshold_of(search).read() } != UNSETTLED {
            continue;
        }
        let mut found = DigitSearch::new(jobs[search.job].rank);
        for digit in DIGITS {
            let counts = SharedCounts::new();
            let count_piece = |i: usize| {
                // SAFETY: a range of the job; nobody writes to it during the search.
                unsafe {
                    counts.add(
                        kernels,
                        &jobs[search.job],
                        own[i].range(),
                        found.upper,
                        digit,
                    )
                };
            };
            executor.for_each(
                own.len(),
                search.block.len,
                Incomplete::Finish,
                &count_piece,
            )?;
            found.narrow(digit, |bucket| counts.get(bucket));
        }
        // SAFETY: as above.
        unsafe { threshold_of(search).write(found.upper) };
    }
    Ok(())
}

/// Updates one piece, finding the thresholds of small blocks on the way.
///
/// # Safety
///
/// As for [`kernels::step`]; a piece of small blocks consists of whole blocks.
unsafe fn update_piece(kernels: &Kernels, job: &Job, piece: &Piece) -> u64 {
    let step = |start, len, threshold: u32| {
        // SAFETY: the caller's promise.
        unsafe { (kernels.step)(job, start, len, threshold) }
    };
    let threshold_of = |block: u64| job.thresholds.wrapping_add(block as usize);
    let first_block = piece.start.div_ceil(job.block_numel);
    if job.everything_moves {
        let end_block = (piece.start + piece.len).div_ceil(job.block_numel);
        for block in first_block..end_block {
            // SAFETY: a job has a threshold for every block; this one starts in this piece alone.
            unsafe { threshold_of(block).write(0) };
        }
        return step(piece.start, piece.len, 0);
    }
    if is_searched_together(job) {
        // SAFETY: as above; a piece of a large block lies within that block.
        let threshold = unsafe { threshold_of(piece.start / job.block_numel).read() };
        return step(piece.start, piece.len, threshold.max(1));
    }
    let mut selected = 0;
    for block in first_block..first_block + piece.len / job.block_numel {
        let start = block * job.block_numel;
        // SAFETY: the block lies within the piece (the caller's promise), and has a threshold.
        let threshold = unsafe {
            let range = Range {
                start,
                len: job.block_numel,
            };
            let threshold = threshold_of_small_block(kernels, job, range);
            threshold_of(block).write(threshold);
            threshold
        };
        selected += step(start, job.block_numel, threshold.max(1));
    }
    selected
}

/// At most how many bytes of work space a step of one such tensor needs.
pub(crate) fn scratch_bound(numel: u64, num_blocks: u64) -> u64 {
    let pieces = plan::most_pieces(numel, num_blocks) * size_of::<Piece>() as u64;
    let block_numel = numel / num_blocks;
    let searches = if block_numel > plan::SMALL_BLOCK {
        let blocks_at_once = num_blocks.min((WAVE / block_numel).max(1));
        let keys = blocks_at_once * SharedSearch::capacity(block_numel) as u64;
        num_blocks * size_of::<SharedSearch>() as u64 + keys * size_of::<u32>() as u64
    } else {
        0
    };
    let sums = (plan::chunks_of(numel) * size_of::<f64>()) as u64;
    2 * pieces + searches + sums
}

/// A vector that threads write disjoint elements of.
struct SharedSlice(*mut f64);

// SAFETY: whoever uses it makes sure that no two threads touch the same element.
unsafe impl Sync for SharedSlice {}

fn bytes_of<T>(vector: &Vec<T>) -> usize {
    vector.capacity() * size_of::<T>()
}
