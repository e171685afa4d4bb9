//! The optimizer: its tensors, their step counters, and what is asked of the device in each step.

use std::ffi::{CStr, c_void};

use crate::backend::{Backend, GradientRequest, Job, RandomKeys};
use crate::config::{CpuTier, Device, Dtype, Options, StateDtype, TensorSpec, step_count};
use crate::environment::DefaultEnvironment;
use crate::error::{Error, ErrorKind, Result, fail};
use crate::memory::{try_reserve, try_reserve_one};
use crate::overlap::{self, Extent};
use crate::rule::norm;
use crate::rule::random::hash_name;
use crate::rule::scalars::{Hyper, Scalars, gradient_factor};
use crate::rule::select::rank;
use crate::step::{StepArgs, StepReport, TensorBinding};
use crate::tensor::{Brought, Buffers, Progress, Tensor, allocated_bytes, state_sizes};

/// The Momentum-Filtered Optimizer over a set of tensors.
///
/// Parameters and gradients belong to the caller. Either they are lent to each [`Optimizer::step`], or raw
/// pointers are bound once and used by [`Optimizer::step_bound`].
#[derive(Debug)]
pub struct Optimizer {
    pub(crate) options: Options,
    pub(crate) backend: Backend,
    /// By index; removed tensors leave a gap.
    pub(crate) tensors: Vec<Option<Tensor>>,
    /// Numbers the calls that list tensors.
    call: u64,
    /// The bound buffers and the state of all tensors were seen not to overlap.
    bindings_checked: bool,
    /// A checkpoint was checked, but then could not be read to its end: what is in memory is part of each.
    pub(crate) half_loaded: bool,
    participants: Vec<Participant>,
    jobs: Vec<Job>,
    /// Participants with α, for CUDA.
    #[cfg(feature = "cuda")]
    with_fractions: Vec<(usize, f64)>,
    extents: Vec<(Extent, u64)>,
    #[cfg(test)]
    pub(crate) panics_in_step: bool,
}

/// A tensor in a step, with the buffers of this step.
#[derive(Clone, Copy, Debug)]
struct Participant {
    index: usize,
    param: *mut u8,
    grad: *const u8,
}

// SAFETY: participants are rebuilt in every call; between calls their pointers are not used.
unsafe impl Send for Participant {}

/// What a call lists tensors for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Step,
    /// Only the gradients are looked at.
    Norm,
}

/// Whose buffers a step uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The bound ones.
    Bound,
    /// Those lent to the call.
    Lent,
}

/// What the optimizer keeps for a tensor. The pointers are valid until the tensor is removed or the
/// optimizer dropped.
#[derive(Debug)]
pub struct TensorState<'a> {
    /// The name.
    pub name: &'a CStr,
    /// Entries.
    pub numel: u64,
    /// Blocks.
    pub num_blocks: u64,
    /// Steps taken so far.
    pub step_count: u64,
    /// The parameter's type.
    pub param_dtype: Dtype,
    /// The gradient's type.
    pub grad_dtype: Dtype,
    /// The moments' type.
    pub state_dtype: StateDtype,
    /// The first moment, `numel` elements.
    pub exp_avg: *mut c_void,
    /// The second moment, `numel` elements.
    pub exp_avg_sq: *mut c_void,
    /// The master copy, `numel` elements, or null.
    pub master: *mut f32,
    /// Each block's threshold in the last step; empty on CUDA.
    pub thresholds: &'a [f32],
    /// Where these thresholds, `num_blocks` of them, lie; on CUDA in device memory.
    pub thresholds_start: *const f32,
}

/// The memory that an optimizer holds, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Moments and masters that the library allocated, with the distances between them.
    pub state: u64,
    /// Moments and masters in the caller's memory.
    pub caller_state: u64,
    /// Work space of a step.
    pub scratch: u64,
    /// Everything else.
    pub bookkeeping: u64,
    /// Tensors.
    pub num_tensors: u64,
    /// Entries of all tensors.
    pub entries: u64,
}

/// The memory that a tensor will need, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSize {
    /// The first moment.
    pub exp_avg: u64,
    /// The second moment.
    pub exp_avg_sq: u64,
    /// The master copy; 0 if the tensor needs none.
    pub master: u64,
    /// What adding the tensor allocates.
    pub allocated: u64,
    /// What a step of this tensor alone needs besides, at most.
    pub scratch: u64,
}

/// How much memory a tensor will need, if the caller brings these of first moment, second moment and master
/// copy.
///
/// # Errors
///
/// If a setting is out of range.
pub fn state_size(options: &Options, spec: &TensorSpec<'_>, brought: Brought) -> Result<StateSize> {
    options.validate()?;
    spec.validate()?;
    let (sizes, allocated) = state_sizes(options, spec, brought);
    let (_, allocated) = allocated_bytes(options.device, allocated, spec.num_blocks)?;
    let scratch = match options.device {
        #[cfg(feature = "cuda")]
        Device::Cuda { .. } => crate::cuda::space_bytes(&describe(options, spec)),
        _ => crate::cpu::scratch_bound(options, spec.numel, spec.num_blocks),
    };
    Ok(StateSize {
        exp_avg: sizes[0] as u64,
        exp_avg_sq: sizes[1] as u64,
        master: sizes[2] as u64,
        allocated: allocated.saturating_add(spec.name.len() as u64 + 1),
        scratch,
    })
}

/// A tensor without buffers, as the CUDA backend is told of it.
#[cfg(feature = "cuda")]
fn describe(options: &Options, spec: &TensorSpec<'_>) -> crate::cuda::Description {
    use crate::cuda::{dtype_number, state_dtype_number};
    let has_master = options.master_weights && spec.param_dtype != Dtype::F32;
    let entry_bytes = spec.param_dtype.size()
        + spec.grad_dtype.size()
        + 2 * options.state_dtype.size()
        + if has_master { 4 } else { 0 };
    crate::cuda::Description {
        record: crate::cuda::Record {
            numel: spec.numel,
            block_numel: spec.block_numel(),
            name_hash: hash_name(spec.name),
            step_count: spec.step_count,
            update_fraction: spec.update_fraction.unwrap_or(-1.0),
            weight_decay: spec.weight_decay.unwrap_or(-1.0),
            learning_rate_scale: spec.learning_rate_scale,
            param_dtype: dtype_number(spec.param_dtype),
            grad_dtype: dtype_number(spec.grad_dtype),
            state_dtype: state_dtype_number(options.state_dtype),
            ..crate::cuda::Record::default()
        },
        update_fraction: spec.update_fraction.unwrap_or(options.update_fraction),
        always_everything: spec.update_fraction == Some(1.0),
        entry_bytes: entry_bytes as u64,
    }
}

impl Optimizer {
    /// An optimizer without tensors. Starts no thread.
    ///
    /// # Errors
    ///
    /// If a setting is out of range, the CPU tier is not there, or memory is short.
    pub fn new(options: Options) -> Result<Self> {
        options.validate()?;
        let backend = Backend::new(&options)?;
        Ok(Self {
            options,
            backend,
            tensors: Vec::new(),
            call: 0,
            bindings_checked: false,
            half_loaded: false,
            participants: Vec::new(),
            jobs: Vec::new(),
            #[cfg(feature = "cuda")]
            with_fractions: Vec::new(),
            extents: Vec::new(),
            #[cfg(test)]
            panics_in_step: false,
        })
    }

    /// Adds a tensor and allocates its state; its index. Indices count up from 0 and are not used again.
    ///
    /// # Errors
    ///
    /// If a setting is out of range, the name is taken, or memory is short.
    pub fn add_tensor(&mut self, spec: &TensorSpec<'_>) -> Result<u64> {
        // SAFETY: there are no buffers to promise anything about.
        unsafe { self.add_tensor_with_buffers(spec, Buffers::default()) }
    }

    /// Adds a tensor that is bound to the caller's buffers from the start, or whose state lies in the caller's
    /// memory.
    ///
    /// # Safety
    ///
    /// Until the tensor is removed, bound to others or the optimizer dropped, every buffer that is not null
    /// is alive, holds `numel` elements, and is not touched by others during a call.
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::add_tensor`], and if the buffers are misaligned or overlap each other.
    pub unsafe fn add_tensor_with_buffers(
        &mut self,
        spec: &TensorSpec<'_>,
        buffers: Buffers,
    ) -> Result<u64> {
        spec.validate()?;
        let name = spec.name;
        if name.is_empty() || name.contains('\0') {
            fail!(
                InvalidArgument,
                "tensor \"{name}\": the name must not be empty nor contain NUL"
            );
        }
        if let Some(index) = self.position(name) {
            fail!(
                InvalidArgument,
                "tensor \"{name}\": the name is taken by tensor {index}; names must be unique"
            );
        }
        try_reserve_one(&mut self.tensors, "the tensor list")?;
        let tensor = Tensor::new(&self.options, spec, &buffers, &self.backend)
            .map_err(|error| error.in_tensor(name))?;
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = &mut self.backend {
            let mut description = describe(&self.options, spec);
            let record = &mut description.record;
            record.param = tensor.param as u64;
            record.grad = tensor.grad as u64;
            record.exp_avg = tensor.exp_avg as u64;
            record.exp_avg_sq = tensor.exp_avg_sq as u64;
            record.master = tensor.master as u64;
            record.thresholds = tensor.thresholds as u64;
            record.master_started = u32::from(tensor.master_started);
            cuda.add(&description)
                .map_err(|error| error.in_tensor(name))?;
        }
        self.tensors.push(Some(tensor));
        self.bindings_checked = false;
        Ok(self.tensors.len() as u64 - 1)
    }

    /// Removes a tensor and frees its state.
    ///
    /// # Errors
    ///
    /// If there is no tensor of that index.
    pub fn remove_tensor(&mut self, index: u64) -> Result<()> {
        self.tensor(index)?;
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = &mut self.backend {
            cuda.remove(index as usize)?;
        }
        self.tensors[index as usize] = None;
        Ok(())
    }

    /// The index of the tensor of that name.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn find_tensor(&self, name: &str) -> Result<u64> {
        match self.position(name) {
            Some(index) => Ok(index as u64),
            None => fail!(NotFound, "no tensor has the name \"{name}\""),
        }
    }

    fn position(&self, name: &str) -> Option<usize> {
        let name_hash = hash_name(name);
        self.tensors.iter().position(|tensor| {
            tensor
                .as_ref()
                .is_some_and(|tensor| tensor.name_hash == name_hash && tensor.name() == name)
        })
    }

    /// Binds a tensor to these buffers from now on; null unbinds.
    ///
    /// # Safety
    ///
    /// As for [`Optimizer::add_tensor_with_buffers`].
    ///
    /// # Errors
    ///
    /// If there is no tensor of that index, or the buffers are misaligned or overlap each other or the
    /// tensor's state.
    pub unsafe fn bind_tensor(
        &mut self,
        index: u64,
        param: *mut c_void,
        grad: *const c_void,
    ) -> Result<()> {
        let tensor = self.tensor(index)?;
        let (param, grad) = (param.cast(), grad.cast());
        let check = || {
            tensor.check_own_buffers(param, grad)?;
            for extent in tensor.param_and_grad(param, grad) {
                if let Some(extent) = extent? {
                    extent.check_memory(&self.backend)?;
                }
            }
            Ok(())
        };
        check().map_err(|error: Error| error.in_tensor(tensor.name()))?;
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = &mut self.backend {
            cuda.bind(index as usize, param, grad);
        }
        let tensor = self.tensor_mut(index)?;
        tensor.param = param;
        tensor.grad = grad;
        self.bindings_checked = false;
        Ok(())
    }

    /// Sets how many steps a tensor's moments have seen. With 0 the next step starts moments and master copy
    /// anew; otherwise both are taken as they now lie in memory.
    ///
    /// # Errors
    ///
    /// If there is no tensor of that index, or the count is above 2^63 - 1.
    pub fn set_step_count(&mut self, index: u64, count: u64) -> Result<()> {
        let tensor = self.tensor(index)?;
        step_count(count).map_err(|error| error.in_tensor(tensor.name()))?;
        let progress = Progress {
            step_count: count,
            master_started: count > 0,
        };
        self.set_progress(index as usize, progress)
    }

    /// How far a tensor that is there has come. On CUDA this waits.
    pub(crate) fn progress(&self, index: usize) -> Result<Progress> {
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = &self.backend {
            return cuda.progress(index);
        }
        let tensor = self.tensor(index as u64)?;
        Ok(Progress {
            step_count: tensor.step_count,
            master_started: tensor.master_started,
        })
    }

    /// Sets how far a tensor has come. On CUDA this waits.
    pub(crate) fn set_progress(&mut self, index: usize, progress: Progress) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Backend::Cuda(cuda) = &mut self.backend {
            cuda.set_progress(index, progress)?;
        }
        let tensor = self.tensor_mut(index as u64)?;
        tensor.step_count = progress.step_count;
        tensor.master_started = progress.master_started;
        Ok(())
    }

    /// Refuses to go on with state of which a part was loaded.
    pub(crate) fn check_state_is_whole(&self) -> Result<()> {
        if self.half_loaded {
            fail!(
                InvalidState,
                "an earlier load broke off half-way, so that moments are lost; load a checkpoint again"
            );
        }
        Ok(())
    }

    /// What is kept for a tensor. On CUDA this waits for the steps that were taken, but not for those replayed from a
    /// graph, which the caller must have waited for.
    ///
    /// # Errors
    ///
    /// If there is no tensor of that index, or a step on CUDA has failed.
    pub fn tensor_state(&self, index: u64) -> Result<TensorState<'_>> {
        let tensor = self.tensor(index)?;
        Ok(TensorState {
            name: tensor.c_name(),
            numel: tensor.numel,
            num_blocks: tensor.num_blocks,
            step_count: self.progress(index as usize)?.step_count,
            param_dtype: tensor.param_dtype,
            grad_dtype: tensor.grad_dtype,
            state_dtype: tensor.state_dtype,
            exp_avg: tensor.exp_avg.cast(),
            exp_avg_sq: tensor.exp_avg_sq.cast(),
            master: tensor.master,
            thresholds: match &self.backend {
                Backend::Cpu(_) => tensor.host_thresholds(),
                #[cfg(feature = "cuda")]
                Backend::Cuda(_) => &[],
            },
            thresholds_start: tensor.thresholds.cast::<f32>(),
        })
    }

    /// How much memory the optimizer holds.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let mut memory = Memory {
            state: 0,
            caller_state: 0,
            scratch: self.backend.scratch_bytes(),
            bookkeeping: (size_of::<Self>()
                + self.tensors.capacity() * size_of::<Option<Tensor>>()
                + self.participants.capacity() * size_of::<Participant>()
                + self.jobs.capacity() * size_of::<Job>()
                + self.extents.capacity() * size_of::<(Extent, u64)>())
                as u64,
            num_tensors: 0,
            entries: 0,
        };
        for tensor in self.tensors.iter().flatten() {
            let (owned, caller) = tensor.state_memory();
            memory.state += owned;
            memory.caller_state += caller;
            memory.bookkeeping += tensor.bookkeeping();
            memory.num_tensors += 1;
            memory.entries += tensor.numel;
        }
        memory
    }

    /// Where the optimizer works.
    #[must_use]
    pub fn device(&self) -> Device {
        self.options.device
    }

    /// The instruction set in use; `None` on CUDA.
    #[must_use]
    pub fn cpu_tier(&self) -> Option<CpuTier> {
        match &self.backend {
            Backend::Cpu(cpu) => Some(cpu.tier()),
            #[cfg(feature = "cuda")]
            Backend::Cuda(_) => None,
        }
    }

    /// Takes a step of the tensors that are lent here.
    ///
    /// # Errors
    ///
    /// If an argument is out of range, a tensor is unknown or listed twice, a slice has another length or
    /// type than its tensor, or a derived scalar is not finite. Nothing has changed then.
    pub fn step(
        &mut self,
        args: &StepArgs<'_>,
        bindings: &mut [TensorBinding<'_>],
    ) -> Result<StepReport> {
        self.backend.cpu("lending slices to a step")?;
        self.list_bindings(args, bindings)?;
        // SAFETY: slices are alive, valid, of the tensors' lengths and types (checked in `list_bindings`),
        // and borrowed for this call.
        unsafe { self.step_participants(args, Source::Lent) }
    }

    /// Takes a step of the bound tensors, or of those listed in `args`. On CUDA, launches it.
    ///
    /// # Safety
    ///
    /// The bound buffers keep the promise of [`Optimizer::add_tensor_with_buffers`]; on CUDA until the step has ended
    /// on the device.
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::step`], and if no tensor is bound, one has a gradient but no parameter, or
    /// buffers overlap.
    pub unsafe fn step_bound(&mut self, args: &StepArgs<'_>) -> Result<StepReport> {
        self.list_bound(args, Purpose::Step)?;
        // SAFETY: the caller's promise.
        unsafe { self.step_participants(args, Source::Bound) }
    }

    /// The global norm of the gradients of the bound tensors, or of those listed in `args`, times
    /// |grad_scale|.
    ///
    /// # Safety
    ///
    /// As for [`Optimizer::step_bound`].
    ///
    /// # Errors
    ///
    /// As for [`Optimizer::step_bound`].
    pub unsafe fn grad_norm_bound(&mut self, args: &StepArgs<'_>) -> Result<f64> {
        self.list_bound(args, Purpose::Norm)?;
        let _environment = DefaultEnvironment::enter();
        args.validate()?;
        #[cfg(feature = "cuda")]
        if !self.backend.is_cpu() {
            self.check_for_cuda(args, Purpose::Norm)?;
            // SAFETY: the caller's promise.
            return unsafe {
                self.ask_cuda(args, |cuda, options, request| {
                    cuda.grad_norm(options, request)
                })
            };
        }
        args.device.check_is_none()?;
        self.make_jobs(args, Purpose::Norm)?;
        // SAFETY: the caller's promise.
        let sum = unsafe { self.backend.cpu("the norm")?.sum_of_squares(&self.jobs)? };
        Ok(norm::norm(sum, args.grad_scale))
    }

    /// Takes the step of `self.participants`.
    ///
    /// # Safety
    ///
    /// Their buffers are alive, as large as the tensors, and used by nobody else.
    unsafe fn step_participants(
        &mut self,
        args: &StepArgs<'_>,
        source: Source,
    ) -> Result<StepReport> {
        #[cfg(test)]
        assert!(!self.panics_in_step, "a test asked for it");
        self.check_state_is_whole()?;
        let _environment = DefaultEnvironment::enter();
        args.validate()?;
        self.check_overlaps(source)?;
        #[cfg(feature = "cuda")]
        if !self.backend.is_cpu() {
            self.check_for_cuda(args, Purpose::Step)?;
            // SAFETY: the caller's promise; null, alignment and overlap were checked, and when the buffers were bound
            // also that they are in the device's memory.
            unsafe { self.ask_cuda(args, |cuda, options, request| cuda.step(options, request))? };
            return Ok(StepReport {
                entries: self.entries(),
                ..StepReport::default()
            });
        }
        args.device.check_is_none()?;
        self.make_jobs(args, Purpose::Step)?;
        let request = GradientRequest {
            grad_scale: args.grad_scale,
            grad_norm: args.grad_norm,
            max_grad_norm: self.options.max_grad_norm,
            skip_nonfinite: self.options.skip_nonfinite,
        };
        // SAFETY: the caller's promise; null, alignment and overlap were checked.
        let outcome = unsafe { self.backend.cpu("a step")?.step(&mut self.jobs, &request)? };
        if !outcome.skipped {
            for participant in &self.participants {
                if let Some(tensor) = &mut self.tensors[participant.index] {
                    tensor.step_count += 1;
                    tensor.master_started = true;
                }
            }
        }
        Ok(StepReport {
            grad_norm: outcome.grad_norm,
            entries: self.entries(),
            entries_selected: outcome.entries_selected,
            skipped: outcome.skipped,
            blocks_estimated: outcome.blocks_estimated,
            estimates_failed: outcome.estimates_failed,
        })
    }

    fn tensor(&self, index: u64) -> Result<&Tensor> {
        let slot = usize::try_from(index)
            .ok()
            .and_then(|index| self.tensors.get(index));
        match slot {
            Some(Some(tensor)) => Ok(tensor),
            Some(None) => fail!(NotFound, "tensor {index} was removed"),
            None => fail!(
                NotFound,
                "tensor {index} does not exist; {} were added",
                self.tensors.len()
            ),
        }
    }

    fn tensor_mut(&mut self, index: u64) -> Result<&mut Tensor> {
        self.tensor(index)?;
        // `tensor` has seen that it is there.
        self.tensors[index as usize].as_mut().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format_args!("tensor {index} was removed"),
            )
        })
    }

    /// Lists a tensor; refuses one that is listed twice in a call.
    fn list(
        &mut self,
        index: u64,
        param: *mut u8,
        grad: *const u8,
        purpose: Purpose,
    ) -> Result<()> {
        let call = self.call;
        let tensor = self.tensor_mut(index)?;
        if tensor.listed_in == call {
            fail!(
                InvalidArgument,
                "tensor \"{}\" (index {index}) is listed twice; each may be listed once",
                tensor.name()
            );
        }
        tensor.listed_in = call;
        if grad.is_null() {
            return Ok(());
        }
        if param.is_null() && purpose == Purpose::Step {
            fail!(
                InvalidBuffer,
                "tensor \"{}\": a gradient is bound, but param is NULL",
                tensor.name()
            );
        }
        try_reserve_one(&mut self.participants, "the list of tensors")?;
        self.participants.push(Participant {
            index: index as usize,
            param,
            grad,
        });
        Ok(())
    }

    /// Makes `self.participants` the bound tensors of a call, in ascending order.
    fn list_bound(&mut self, args: &StepArgs<'_>, purpose: Purpose) -> Result<()> {
        self.call += 1;
        self.participants.clear();
        let is_bound = |tensor: &Tensor| !tensor.param.is_null() || !tensor.grad.is_null();
        if !self.tensors.iter().flatten().any(is_bound) {
            fail!(
                InvalidState,
                "no tensor is bound: add tensors, and bind their parameters and gradients, before a step"
            );
        }
        match args.tensors {
            None => {
                for index in 0..self.tensors.len() {
                    if let Some(tensor) = &self.tensors[index] {
                        let (param, grad) = (tensor.param, tensor.grad);
                        self.list(index as u64, param, grad, purpose)?;
                    }
                }
            }
            Some(indices) => {
                for &index in indices {
                    let tensor = self.tensor(index)?;
                    let (param, grad) = (tensor.param, tensor.grad);
                    self.list(index, param, grad, purpose)?;
                }
                self.participants
                    .sort_unstable_by_key(|participant| participant.index);
            }
        }
        Ok(())
    }

    /// Makes `self.participants` the lent tensors of a call, in ascending order.
    fn list_bindings(
        &mut self,
        args: &StepArgs<'_>,
        bindings: &mut [TensorBinding<'_>],
    ) -> Result<()> {
        if args.tensors.is_some() {
            fail!(
                InvalidArgument,
                "tensors must be None where the tensors are lent to the step"
            );
        }
        self.call += 1;
        self.participants.clear();
        for binding in bindings {
            let tensor = self.tensor(binding.index)?;
            let (param, grad) = (&mut binding.param, &binding.grad);
            let expected = (
                tensor.numel,
                tensor.param_dtype,
                tensor.numel,
                tensor.grad_dtype,
            );
            let lent = (
                param.len() as u64,
                param.dtype(),
                grad.len() as u64,
                grad.dtype(),
            );
            if lent != expected {
                fail!(
                    InvalidBuffer,
                    "tensor \"{}\": the parameter and gradient lent are {} × {:?} and {} × {:?}; they must \
                     be {} × {:?} and {} × {:?}",
                    tensor.name(),
                    lent.0,
                    lent.1,
                    lent.2,
                    lent.3,
                    expected.0,
                    expected.1,
                    expected.2,
                    expected.3
                );
            }
            let (param, grad) = (param.as_mut_ptr(), grad.as_ptr());
            self.list(binding.index, param, grad, Purpose::Step)?;
        }
        self.participants
            .sort_unstable_by_key(|participant| participant.index);
        Ok(())
    }

    /// Refuses writable buffers that overlap each other or a gradient: the state of all tensors, and the
    /// parameters and gradients of this step (if they are lent) or of all tensors that have a gradient.
    fn check_overlaps(&mut self, source: Source) -> Result<()> {
        if source == Source::Bound && self.bindings_checked {
            return Ok(());
        }
        self.extents.clear();
        try_reserve(
            &mut self.extents,
            5 * self.tensors.len(),
            "the overlap check",
        )?;
        let mut participants = self.participants.iter().peekable();
        for (index, tensor) in self.tensors.iter().enumerate() {
            let lent = participants.next_if(|participant| participant.index == index);
            let Some(tensor) = tensor else {
                continue;
            };
            let (param, grad) = match (source, lent) {
                (Source::Lent, Some(lent)) => (lent.param, lent.grad),
                (Source::Bound, _) if !tensor.grad.is_null() => (tensor.param, tensor.grad),
                _ => (std::ptr::null_mut(), std::ptr::null()),
            };
            for extent in tensor.extents(param, grad) {
                let extent = extent.map_err(|error| error.in_tensor(tensor.name()))?;
                if let Some(extent) = extent {
                    self.extents.push((extent, index as u64));
                }
            }
        }
        if let Some([one, other]) = overlap::find(&mut self.extents) {
            let name = |index| self.tensor(index).map_or("", Tensor::name);
            fail!(
                InvalidBuffer,
                "tensor \"{}\": {} overlaps {} of tensor \"{}\"",
                name(other.1),
                other.0,
                one.0,
                name(one.1)
            );
        }
        self.bindings_checked |= source == Source::Bound;
        Ok(())
    }

    /// Entries of the tensors that take part.
    fn entries(&self) -> u64 {
        let tensors = self.participants.iter().map(|one| &self.tensors[one.index]);
        tensors.flatten().map(|tensor| tensor.numel).sum()
    }

    /// A tensor's hyper-parameters in this step.
    fn hyper(&self, args: &StepArgs<'_>, tensor: &Tensor) -> Hyper {
        let options = &self.options;
        Hyper {
            learning_rate: args.learning_rate.unwrap_or(options.learning_rate),
            learning_rate_scale: tensor.learning_rate_scale,
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            weight_decay: tensor.weight_decay.unwrap_or(options.weight_decay),
        }
    }

    /// What of a step on CUDA can be refused before it is launched.
    #[cfg(feature = "cuda")]
    fn check_for_cuda(&self, args: &StepArgs<'_>, purpose: Purpose) -> Result<()> {
        gradient_factor(args.grad_scale, 1.0)?;
        args.device.validate()?;
        if purpose == Purpose::Norm || !args.device.learning_rate.is_null() {
            return Ok(());
        }
        let tensors = || {
            let all = self.participants.iter().map(|one| &self.tensors[one.index]);
            all.flatten()
                .map(|tensor| (tensor, self.hyper(args, tensor)))
        };
        // Far from the limit, one look at the extremes is enough.
        let (mut rate, mut decay) = (0f64, 0f64);
        for (_, hyper) in tensors() {
            rate = rate.max(hyper.learning_rate * hyper.learning_rate_scale);
            decay = decay.max(hyper.weight_decay);
        }
        let largest = (rate / (1.0 - self.options.beta1))
            .max(rate * decay)
            .max(self.options.epsilon);
        if largest < f64::from(f32::MAX) / 2.0 {
            return Ok(());
        }
        for (tensor, hyper) in tensors() {
            // The device counts the steps. What is too large even in the last one is refused here, the rest there.
            Scalars::new(&hyper, i64::MAX as u64)
                .map_err(|error| error.in_tensor(tensor.name()))?;
        }
        Ok(())
    }

    /// Hands the step of `self.participants` to the CUDA backend.
    ///
    /// # Safety
    ///
    /// As for [`Optimizer::step_participants`], and whatever `ask` asks for.
    #[cfg(feature = "cuda")]
    unsafe fn ask_cuda<T>(
        &mut self,
        args: &StepArgs<'_>,
        ask: impl FnOnce(&mut crate::cuda::Cuda, &Options, &crate::cuda::Request<'_>) -> Result<T>,
    ) -> Result<T> {
        let default_fraction = args.update_fraction.unwrap_or(self.options.update_fraction);
        self.with_fractions.clear();
        try_reserve(
            &mut self.with_fractions,
            self.participants.len(),
            "the work of a step",
        )?;
        for participant in &self.participants {
            if let Some(tensor) = &self.tensors[participant.index] {
                let fraction = tensor.update_fraction.unwrap_or(default_fraction);
                self.with_fractions.push((participant.index, fraction));
            }
        }
        let Backend::Cuda(cuda) = &mut self.backend else {
            fail!(Internal, "the optimizer does not work on CUDA");
        };
        let request = crate::cuda::Request {
            participants: &self.with_fractions,
            listed: args.tensors.is_some(),
            learning_rate: args.learning_rate.unwrap_or(self.options.learning_rate),
            update_fraction: default_fraction,
            grad_scale: args.grad_scale,
            grad_norm: args.grad_norm,
            device: args.device,
        };
        ask(cuda, &self.options, &request)
    }

    /// Makes `self.jobs` of `self.participants`.
    fn make_jobs(&mut self, args: &StepArgs<'_>, purpose: Purpose) -> Result<()> {
        // An unusable factor is found here even where clipping would not reach it.
        gradient_factor(args.grad_scale, 1.0)?;
        self.jobs.clear();
        try_reserve(
            &mut self.jobs,
            self.participants.len(),
            "the work of a step",
        )?;
        let options = &self.options;
        let default_fraction = args.update_fraction.unwrap_or(options.update_fraction);
        for participant in &self.participants {
            let Some(tensor) = &self.tensors[participant.index] else {
                continue;
            };
            let hyper = self.hyper(args, tensor);
            let t = tensor.step_count + 1;
            let scalars = match purpose {
                Purpose::Norm => Scalars::default(),
                Purpose::Step => step_count(t)
                    .and_then(|()| Scalars::new(&hyper, t))
                    .map_err(|error| error.in_tensor(tensor.name()))?,
            };
            let update_fraction = tensor.update_fraction.unwrap_or(default_fraction);
            let block_numel = tensor.numel / tensor.num_blocks;
            self.jobs.push(Job {
                param: participant.param,
                grad: participant.grad,
                exp_avg: tensor.exp_avg,
                exp_avg_sq: tensor.exp_avg_sq,
                master: tensor.master,
                thresholds: tensor.thresholds,
                param_dtype: tensor.param_dtype,
                grad_dtype: tensor.grad_dtype,
                state_dtype: tensor.state_dtype,
                numel: tensor.numel,
                block_numel,
                rank: rank(update_fraction, block_numel),
                everything_moves: update_fraction == 1.0,
                starts_moments: t == 1,
                starts_master: !tensor.master.is_null() && (t == 1 || !tensor.master_started),
                scalars,
                filter: options.filter,
                weight_decay_scope: options.weight_decay_scope,
                rounding: options.rounding,
                random: RandomKeys::new(options.seed, tensor.name_hash, t),
            });
        }
        Ok(())
    }
}
