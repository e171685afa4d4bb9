//! The host as a device: the CPU's loops, and what they need to be told anew in each step.

use std::ffi::c_void;

use super::{State, StateMemory};
use crate::config::{CpuTier, Options, TensorSpec};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::job::{Job, Outcome, Participant, Progress, StepBefore, StepRequest, TensorBuffers};
use crate::memory::{self, PARTS, Placement, try_reserve, try_reserve_one, try_with_capacity};
use crate::rule::norm;
use crate::rule::scalars::Scalars;

/// The CPU. What the backend calls is [`Backend`](super::Backend)'s of the same name.
#[derive(Debug)]
pub(crate) struct Host {
    cpu: Cpu,
    /// By index.
    tensors: Vec<Tensor>,
    /// Kept for its memory.
    jobs: Vec<Job>,
}

/// What is known of a tensor between steps.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    progress: Progress,
    before: StepBefore,
}

impl Tensor {
    fn new(progress: Progress) -> Self {
        Self {
            progress,
            before: StepBefore::NONE,
        }
    }
}

impl Host {
    pub(super) fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            cpu: Cpu::new(options)?,
            tensors: Vec::new(),
            jobs: Vec::new(),
        })
    }

    pub(super) fn tier(&self) -> CpuTier {
        self.cpu.tier()
    }

    pub(super) fn check_memory(&self, _: &str, _: *const c_void, _: u64) -> Result<()> {
        Ok(())
    }

    pub(super) fn allocate_state(&self, sizes: [usize; PARTS], num_blocks: u64) -> Result<State> {
        let mut thresholds = try_with_capacity(num_blocks as usize, "the thresholds")?;
        thresholds.resize(num_blocks as usize, 0);
        let memory = memory::StateMemory::new(place(sizes)?)?;
        let mut parts = [std::ptr::null_mut(); PARTS];
        if let Some(memory) = &memory {
            for (i, part) in parts.iter_mut().enumerate() {
                if sizes[i] > 0 {
                    *part = memory.part(i);
                }
            }
        }
        Ok(State {
            parts,
            thresholds: thresholds.as_mut_ptr(),
            memory: StateMemory::Host {
                _parts: memory,
                thresholds,
            },
        })
    }

    pub(super) fn add(
        &mut self,
        _: &Options,
        _: &TensorSpec<'_>,
        _: &TensorBuffers,
        progress: Progress,
    ) -> Result<()> {
        try_reserve_one(&mut self.tensors, "the tensor list")?;
        self.tensors.push(Tensor::new(progress));
        Ok(())
    }

    pub(super) fn remove(&mut self, _: usize) -> Result<()> {
        Ok(())
    }

    pub(super) fn bind(&mut self, index: usize, param: *mut u8, _: *const u8) {
        if param.is_null() {
            // The next one may lie at the same address, and be another all the same.
            self.tensors[index].before.param = std::ptr::null();
        }
    }

    pub(super) fn wait(&self) -> Result<()> {
        Ok(())
    }

    pub(super) fn progress(&self, index: usize) -> Result<Progress> {
        Ok(self.tensors[index].progress)
    }

    pub(super) fn set_progress(&mut self, index: usize, progress: Progress) -> Result<()> {
        self.tensors[index] = Tensor::new(progress);
        Ok(())
    }

    /// # Safety
    ///
    /// As for [`Backend::step`](super::Backend::step).
    pub(super) unsafe fn step(&mut self, request: &StepRequest<'_>) -> Result<Outcome> {
        self.make_jobs(request, Participant::scalars)?;
        // SAFETY: the caller's promise about the participants, which the jobs are of.
        let outcome = unsafe { self.cpu.step(&mut self.jobs, &request.gradients)? };
        if !outcome.skipped {
            for participant in request.participants {
                let progress = &mut self.tensors[participant.index].progress;
                progress.step_count += 1;
                progress.master_started = true;
            }
            let stepped = request.participants.iter().filter(has_entries);
            for (participant, job) in stepped.zip(&self.jobs) {
                self.tensors[participant.index].before = StepBefore {
                    rank: job.rank,
                    param: job.param,
                };
            }
        }
        Ok(outcome)
    }

    /// # Safety
    ///
    /// As for [`Backend::grad_norm`](super::Backend::grad_norm).
    pub(super) unsafe fn grad_norm(&mut self, request: &StepRequest<'_>) -> Result<f64> {
        // The gradients are looked at, and nothing else: the hyper-parameters need not be usable.
        self.make_jobs(request, |_, _| Ok(Scalars::default()))?;
        // SAFETY: the caller's promise about the participants, which the jobs are of.
        let sum = unsafe { self.cpu.sum_of_squares(&self.jobs)? };
        Ok(norm::norm(sum, request.gradients.grad_scale))
    }

    /// The jobs of the participants that have entries.
    fn make_jobs(
        &mut self,
        request: &StepRequest<'_>,
        scalars: impl Fn(&Participant, Progress) -> Result<Scalars>,
    ) -> Result<()> {
        request.device.check_is_none()?;
        let participants = request.participants;
        self.jobs.clear();
        try_reserve(&mut self.jobs, participants.len(), "the work of a step")?;
        for participant in participants {
            let Tensor { progress, before } = self.tensors[participant.index];
            let scalars = scalars(participant, progress)
                .map_err(|error| error.in_tensor((request.name)(participant.index)))?;
            if has_entries(&participant) {
                self.jobs
                    .push(participant.job(request.options, progress, scalars, before));
            }
        }
        Ok(())
    }

    /// # Safety
    ///
    /// As for [`Backend::read_state`](super::Backend::read_state).
    pub(super) unsafe fn read_state(&self, from: *const u8, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's promise; what is borrowed mutably is not the state.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// # Safety
    ///
    /// As for [`Backend::write_state`](super::Backend::write_state).
    pub(super) unsafe fn write_state(&self, to: *mut u8, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise; what is borrowed is not the state.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    pub(super) fn scratch_bytes(&self) -> u64 {
        self.cpu.scratch_bytes()
    }

    pub(super) fn bookkeeping_bytes(&self) -> u64 {
        let jobs = self.jobs.capacity() * size_of::<Job>();
        (jobs + self.tensors.capacity() * size_of::<Tensor>()) as u64
    }
}

/// The others take part, and there is nothing to do for them.
fn has_entries(participant: &&Participant) -> bool {
    participant.numel > 0
}

pub(super) fn state_bytes(sizes: [usize; PARTS]) -> Result<u64> {
    Ok(place(sizes)?.allocated() as u64)
}

fn place(sizes: [usize; PARTS]) -> Result<Placement> {
    Placement::new(sizes).ok_or_else(|| Error::out_of_memory("the moments", usize::MAX))
}
