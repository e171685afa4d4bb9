//! The CPU backend.
//!
//! Blocks are stepped in four phases, estimate, collect, decide, apply: see `docs/architecture.md`. Whatever can fail,
//! checks and allocations, comes before the first write.

mod disjoint;
mod kernels;
mod partition;
mod phases;
mod simd;
mod threads;

use crate::config::{CpuTier, Dtype, Options};
use crate::error::Result;
use crate::job::{GradientRequest, Job, Outcome};
use crate::memory::try_reserve;
use crate::rule::convert::{f32_to_bf16_nearest, f32_to_f16_nearest};
use crate::rule::norm::{self, CHUNK};
use crate::rule::scalars::gradient_factor;
use disjoint::Disjoint;
use kernels::{Entries, Kernels, Thresholds};
use partition::Piece;
use phases::{LargeBlocks, SmallBlocks};
use threads::{Executor, Incomplete};

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
    blocks: LargeBlocks,
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
            blocks,
            sums,
        } = &self.scratch;
        (bytes_of(starting) + bytes_of(pieces) + blocks.bytes() + bytes_of(sums)) as u64
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

        partition::cut_for_start(jobs, &mut self.scratch.starting)?;
        partition::cut_for_step(jobs, &mut self.scratch.pieces)?;
        let threads = self.executor.useful();
        self.scratch.blocks.prepare(jobs, threads)?;
        self.executor.probe(entries)?;
        // From here on nothing fails but by a panic.
        // SAFETY: the caller's promise; each touches what the jobs describe, one after the other.
        let (stepped, mut entries) = unsafe {
            self.start_state(jobs)?;
            let entries = self.step_pieces(jobs)?;
            let Scratch { blocks, .. } = &mut self.scratch;
            let stepped = blocks.step(self.kernels, &mut self.executor, jobs)?;
            (stepped, entries)
        };
        entries += stepped.entries;
        Ok(Outcome {
            grad_norm,
            skipped: false,
            entries_selected: entries.selected,
            entries_nonfinite: entries.nonfinite,
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
        let chunks = partition::cut_for_norm(jobs, pieces)?;
        sums.clear();
        try_reserve(sums, chunks, "the gradient norm")?;
        sums.resize(chunks, 0.0);

        let out = Disjoint::new(&mut sums[..]);
        let (kernels, pieces) = (self.kernels, &*pieces);
        let sum_piece = |i: usize| {
            let piece = &pieces[i];
            let job = &jobs[piece.job];
            for (chunk, offset) in (0..piece.len).step_by(CHUNK).enumerate() {
                let len = (piece.len - offset).min(CHUNK as u64) as usize;
                // SAFETY: a range of the job (the caller's promise); each chunk has a place of its own among
                // the `chunks` ones.
                unsafe {
                    let sum = kernels::sum_of_squares(kernels, job, piece.start + offset, len);
                    out.slice_mut(piece.slot + chunk, 1)[0] = sum;
                }
            }
        };
        self.executor
            .for_each(pieces.len(), entries, Incomplete::Fail, sum_piece)?;

        // The tensors' sums take the places of the first chunks, which were folded by then.
        let mut start = 0;
        for (i, job) in jobs.iter().enumerate() {
            let end = start + partition::chunks_of(job.numel);
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

    /// Steps the tensors in which everything moves, and those of small blocks; what became of the entries.
    ///
    /// # Safety
    ///
    /// As for [`Cpu::step`].
    unsafe fn step_pieces(&mut self, jobs: &[Job]) -> Result<Entries> {
        let kernels = self.kernels;
        let Scratch { pieces, blocks, .. } = &mut self.scratch;
        let pieces = &*pieces;
        let entries = pieces.iter().map(|piece| piece.len).sum();
        let small_blocks = blocks.small_blocks(kernels, self.executor.useful());
        let start = |thread| (small_blocks(thread), Entries::default());
        let step_piece = |(small_blocks, entries): &mut (Option<SmallBlocks<'_>>, Entries),
                          i: usize| {
            let piece = &pieces[i];
            // SAFETY: a range of the job, which no other piece shares.
            *entries +=
                unsafe { step_piece(kernels, &jobs[piece.job], piece, small_blocks.as_mut()) };
        };
        self.executor.for_each_with(
            pieces.len(),
            entries,
            Incomplete::Finish,
            start,
            step_piece,
            |sum: &mut Entries, (_, entries)| *sum += entries,
        )
    }
}

/// Gives one piece what it starts from: moments zero, master from the parameter or the other way round, as far as the job
/// asks for it.
///
/// # Safety
///
/// As for [`kernels::adamw`].
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
    if job.starts_param {
        // SAFETY: as above; parameters with a master copy have 16 bits.
        unsafe {
            let (start, len) = (piece.start as usize, piece.len as usize);
            let master = std::slice::from_raw_parts(job.master.add(start), len);
            let param = std::slice::from_raw_parts_mut(job.param.cast::<u16>().add(start), len);
            let round = match job.param_dtype {
                Dtype::F16 => f32_to_f16_nearest,
                _ => f32_to_bf16_nearest,
            };
            for (param, &master) in param.iter_mut().zip(master) {
                *param = round(master);
            }
        }
    }
}

/// Steps one piece.
///
/// # Safety
///
/// As for [`kernels::adamw`]; a piece consists of whole blocks, unless everything moves.
unsafe fn step_piece(
    kernels: &Kernels,
    job: &Job,
    piece: &Piece,
    small_blocks: Option<&mut SmallBlocks<'_>>,
) -> Entries {
    let first_block = piece.start.div_ceil(job.block_numel);
    let end_block = (piece.start + piece.len).div_ceil(job.block_numel);
    // SAFETY: a job has a threshold for every block; these start in this piece alone.
    let thresholds = unsafe {
        let first = job.thresholds.add(first_block as usize);
        std::slice::from_raw_parts_mut(first, (end_block - first_block) as usize)
    };
    if job.everything_moves {
        thresholds.fill(0);
        // SAFETY: the caller's promise.
        return unsafe {
            kernels::adamw(kernels, job, (piece.start, piece.len), Thresholds::Same(0))
        };
    }
    let small_blocks =
        small_blocks.expect("work space is made for small blocks where there are any");
    // SAFETY: the piece's own blocks (the caller's promise).
    unsafe { small_blocks.step(job, piece.start, thresholds) }
}

/// At most how many bytes of work space a step of one such tensor needs.
pub(crate) fn scratch_bound(options: &Options, numel: u64, num_blocks: u64) -> u64 {
    let threads = threads::width(options);
    let pieces = partition::most_pieces(numel) + numel.div_ceil(partition::PIECE);
    let pieces = pieces * size_of::<Piece>() as u64;
    let sums = (partition::chunks_of(numel) * size_of::<f64>()) as u64;
    pieces + phases::bytes_bound(numel, num_blocks, threads) + sums
}

fn bytes_of<T>(vector: &Vec<T>) -> usize {
    vector.capacity() * size_of::<T>()
}
