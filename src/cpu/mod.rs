//! The CPU backend.
//!
//! Large blocks are stepped on an estimated threshold in one pass over memory, everything else once its threshold
//! is known: see `docs/architecture.md`. Whatever can fail, checks and allocations, comes before the first write.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod callback;
mod element;
mod estimate;
mod executor;
mod kernels;
mod plan;
mod pool;
mod portable;
mod runs;
mod sample;
mod search;
mod select;
mod tier;
mod vector;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::{CpuTier, Options};
use crate::error::Result;
use crate::job::{GradientRequest, Job, Outcome};
use crate::memory::try_reserve;
use crate::rule::norm::{self, CHUNK};
use crate::rule::scalars::gradient_factor;
use estimate::Estimates;
use executor::{Executor, Incomplete};
use plan::{Piece, is_searched};
use select::{Range, threshold_of_small_block};
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
    starting: Vec<Piece>,
    pieces: Vec<Piece>,
    estimates: Estimates,
    sums: Vec<f64>,
}

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
        let Scratch {
            starting,
            pieces,
            estimates,
            sums,
        } = &self.scratch;
        (bytes_of(starting) + bytes_of(pieces) + estimates.bytes() + bytes_of(sums)) as u64
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

        let (grad_norm, finite) = if request.needs_norm() {
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
                ..Outcome::default()
            });
        }
        let clip = grad_norm.map_or(1.0, |norm| norm::clip(norm, request.max_grad_norm));
        let s = gradient_factor(request.grad_scale, clip)?;
        for job in jobs.iter_mut() {
            job.scalars.s = s;
        }

        plan::cut_for_start(jobs, &mut self.scratch.starting)?;
        plan::cut_for_update(jobs, &mut self.scratch.pieces)?;
        let threads = self.executor.width();
        self.scratch.estimates.prepare(jobs, threads)?;
        self.executor.probe(entries)?;
        // From here on nothing fails but by a panic.
        // SAFETY: the caller's promise; each touches what the jobs describe, one after the other.
        let (stepped, selected) = unsafe {
            self.start_state(jobs)?;
            self.search(jobs)?;
            let Scratch { estimates, .. } = &mut self.scratch;
            let stepped = estimates.step(self.kernels, &mut self.executor, jobs)?;
            (stepped, self.update(jobs)?)
        };
        Ok(Outcome {
            grad_norm,
            skipped: false,
            entries_selected: stepped.selected + selected,
            blocks_estimated: stepped.blocks,
            estimates_failed: stepped.failed,
        })
    }

    /// See [`crate::backend::Backend::grad_norm`].
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
                    let sum = kernels::sum_of_squares(kernels, job, piece.start + offset, len);
                    out.0.add(piece.slot + chunk).write(sum);
                }
            }
        };
        self.executor
            .for_each(pieces.len(), entries, Incomplete::Fail, sum_piece)?;

        // The tensors' sums take the places of the first chunks, which were folded by then.
        let mut start = 0;
        for (i, job) in jobs.iter().enumerate() {
            let end = start + plan::chunks_of(job.numel);
            sums[i] = norm::fold(&mut sums[start..end]);
            start = end;
        }
        Ok(norm::fold(&mut sums[..jobs.len()]))
    }

    /// Gives moments and masters what they start from, where they have not started yet.
    ///
    /// # Safety
    ///
    /// As for [`Cpu::step`].
    unsafe fn start_state(&mut self, jobs: &[Job]) -> Result<()> {
        let (kernels, pieces) = (self.kernels, &self.scratch.starting);
        let entries = pieces.iter().map(|piece| piece.len).sum();
        let start = |i: usize| {
            let piece = &pieces[i];
            // SAFETY: a range of the job, which no other piece shares.
            unsafe { start_piece(kernels, &jobs[piece.job], piece) };
        };
        self.executor
            .for_each(pieces.len(), entries, Incomplete::Finish, start)
    }

    /// Finds the thresholds of large blocks that must be known before the pass, one block after the other.
    ///
    /// # Safety
    ///
    /// As for [`Cpu::step`].
    unsafe fn search(&mut self, jobs: &[Job]) -> Result<()> {
        let space = self.scratch.estimates.search_space();
        for job in jobs.iter().filter(|job| is_searched(job)) {
            let blocks = (0..job.numel).step_by(job.block_numel as usize);
            for (i, start) in blocks.enumerate() {
                let block = Range {
                    start,
                    len: job.block_numel,
                };
                // SAFETY: the caller's promise; `prepare` made room for every search. A job has a threshold for
                // every block.
                unsafe {
                    let (kernels, executor) = (self.kernels, &mut self.executor);
                    let place = job.thresholds.add(i);
                    let hint = place.read();
                    let found = search::threshold(kernels, executor, job, block, hint, space)?;
                    place.write(found);
                }
            }
        }
        Ok(())
    }

    /// The pass that updates all but the estimated blocks; how many entries moved.
    ///
    /// # Safety
    ///
    /// As for [`Cpu::step`]; the thresholds of large blocks are known.
    unsafe fn update(&mut self, jobs: &[Job]) -> Result<u64> {
        let selected = AtomicU64::new(0);
        let kernels = self.kernels;
        let pieces = &self.scratch.pieces;
        let entries = pieces.iter().map(|piece| piece.len).sum();
        let update_piece = |i: usize| {
            let piece = &pieces[i];
            // SAFETY: a range of the job, which no other piece shares.
            let moved = unsafe { update_piece(kernels, &jobs[piece.job], piece) };
            selected.fetch_add(moved, Ordering::Relaxed);
        };
        self.executor
            .for_each(pieces.len(), entries, Incomplete::Finish, update_piece)?;
        Ok(selected.into_inner())
    }
}

/// Gives one piece what it starts from: moments zero, master from the parameter, as far as the job asks for it.
///
/// # Safety
///
/// As for [`kernels::step()`].
unsafe fn start_piece(kernels: &Kernels, job: &Job, piece: &Piece) {
    if job.starts_moments {
        let size = job.state_dtype.size();
        let (start, len) = (piece.start as usize * size, piece.len as usize * size);
        for moments in [job.exp_avg, job.exp_avg_sq] {
            // SAFETY: the range lies within the buffers (the caller's promise).
            unsafe { moments.add(start).write_bytes(0, len) };
        }
    }
    if job.starts_master {
        // SAFETY: the caller's promise; only jobs with a master copy start one.
        unsafe {
            let (start, len) = (piece.start as usize, piece.len as usize);
            let from = job.param.add(start * job.param_dtype.size());
            (kernels.widen)(job.param_dtype, from, len, job.master.add(start));
        }
    }
}

/// Updates one piece, finding the thresholds of small blocks on the way.
///
/// # Safety
///
/// As for [`kernels::step()`]; a piece of small blocks consists of whole blocks.
unsafe fn update_piece(kernels: &Kernels, job: &Job, piece: &Piece) -> u64 {
    let step = |start, len, threshold: u32| {
        // SAFETY: the caller's promise.
        unsafe { kernels::step(kernels, job, (start, len), threshold) }
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
    if piece.is_large {
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
            let hint = threshold_of(block).read();
            let threshold = threshold_of_small_block(kernels, job, range, hint);
            threshold_of(block).write(threshold);
            threshold
        };
        selected += step(start, job.block_numel, threshold.max(1));
    }
    selected
}

/// At most how many bytes of work space a step of one such tensor needs.
pub(crate) fn scratch_bound(options: &Options, numel: u64, num_blocks: u64) -> u64 {
    let threads = executor::width(options);
    let pieces = plan::most_pieces(numel, num_blocks) + numel.div_ceil(plan::PIECE);
    let pieces = pieces * size_of::<Piece>() as u64;
    let sums = (plan::chunks_of(numel) * size_of::<f64>()) as u64;
    pieces + estimate::bytes_bound(numel, num_blocks, threads) + sums
}

/// Asks for the cache line of an address, which need not be valid.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults; every x86-64 processor has it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A vector that threads write disjoint elements of.
struct SharedSlice(*mut f64);

// SAFETY: whoever uses it makes sure that no two threads touch the same element.
unsafe impl Sync for SharedSlice {}

fn bytes_of<T>(vector: &Vec<T>) -> usize {
    vector.capacity() * size_of::<T>()
}
