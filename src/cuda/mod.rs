//! The CUDA backend: the same step on device buffers, on the caller's stream.
//!
//! A step is a fixed series of kernel launches, whatever its tensors: see `docs/cuda.md`. All that a step decides is
//! decided on the device, so that nothing is waited for, and a captured step can be replayed.

mod driver;
mod image;
mod layout;
mod request;
mod tables;

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use crate::config::{Options, TensorSpec};
use crate::error::{Error, ErrorKind, Result, fail};
use crate::job::{Outcome, Progress, StepRequest, TensorBuffers, everything_moves};
use driver::{Context, Event, Function, Module, Stream};
use tables::Tables;

pub(crate) use driver::Memory;
pub(crate) use request::scratch_bound;

/// True if there is a device that optimizers can be created for.
pub(crate) fn is_available() -> bool {
    driver::device_count().is_ok()
}

/// The kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Bind,
    Begin,
    Norm,
    Prepare,
    Sample,
    Pass,
    Whole,
    Plan,
    Select,
    Settle,
    Finish,
}

/// In the order of [`Kernel`]: names, and threads of a block.
const KERNELS: [(&CStr, u32); 11] = [
    (c"mofo_bind", layout::THREADS),
    (c"mofo_begin", layout::THREADS_OF_ONE),
    (c"mofo_norm", layout::THREADS),
    (c"mofo_prepare", layout::THREADS_OF_ONE),
    (c"mofo_sample", layout::THREADS),
    (c"mofo_pass", layout::THREADS_OF_PASS),
    (c"mofo_whole", layout::THREADS),
    (c"mofo_plan", layout::THREADS_OF_ONE),
    (c"mofo_select", layout::THREADS),
    (c"mofo_settle", layout::THREADS),
    (c"mofo_finish", layout::THREADS),
];

#[derive(Debug)]
pub(crate) struct Cuda {
    context: Arc<Context>,
    /// Keeps the functions loaded.
    _module: Module,
    /// With the blocks that the device runs at a time.
    functions: [(Function, usize); KERNELS.len()],
    tables: Tables,
    /// The end of the last step that was not captured.
    last: Event,
}

/// What the backend calls is [`Backend`](crate::backend::Backend)'s of the same name.
impl Cuda {
    pub(crate) fn new(index: usize) -> Result<Self> {
        let context = Context::of_device(index)?;
        let module = load(&context)?;
        let mut functions = [None; KERNELS.len()];
        for (function, (name, threads)) in functions.iter_mut().zip(KERNELS) {
            *function = Some(module.function(name, threads)?);
        }
        let Some(functions) = functions.into_iter().collect::<Option<Vec<_>>>() else {
            fail!(Internal, "a kernel was left out");
        };
        let Ok(functions) = functions.try_into() else {
            fail!(Internal, "a kernel was left out");
        };
        Ok(Self {
            tables: Tables::new(&context)?,
            last: Event::new(&context)?,
            _module: module,
            functions,
            context,
        })
    }

    /// Moments, master copy and thresholds in one allocation; where each of them starts, null for none.
    pub(crate) fn allocate_state(&self, sizes: [usize; 4]) -> Result<(Memory, [*mut u8; 4])> {
        let layout = StateLayout::new(sizes);
        let memory = Memory::zeroed(&self.context, layout.bytes.max(1), "the moments")?;
        let mut parts = [std::ptr::null_mut(); 4];
        for (part, (offset, size)) in parts.iter_mut().zip(layout.offsets.into_iter().zip(sizes)) {
            if size > 0 {
                *part = (memory.start() + offset as u64) as *mut u8;
            }
        }
        Ok((memory, parts))
    }

    pub(crate) fn check_memory(&self, what: &str, start: *const c_void, bytes: u64) -> Result<()> {
        self.context.check_memory(what, start, bytes)
    }

    pub(crate) fn wait(&self) -> Result<()> {
        self.last.synchronize()
    }

    pub(crate) fn add(
        &mut self,
        options: &Options,
        spec: &TensorSpec<'_>,
        buffers: &TensorBuffers,
        progress: Progress,
    ) -> Result<()> {
        let mut description = request::describe(options, spec);
        let record = &mut description.record;
        record.param = buffers.param as u64;
        record.grad = buffers.grad as u64;
        record.exp_avg = buffers.exp_avg as u64;
        record.exp_avg_sq = buffers.exp_avg_sq as u64;
        record.master = buffers.master as u64;
        record.thresholds = buffers.thresholds as u64;
        record.step_count = progress.step_count;
        record.master_started = u32::from(progress.master_started);
        self.wait()?;
        self.tables.add(&description)
    }

    pub(crate) fn remove(&mut self, index: usize) -> Result<()> {
        self.wait()?;
        self.tables.remove(index)
    }

    pub(crate) fn bind(&mut self, index: usize, param: *mut u8, grad: *const u8) {
        self.tables.bind(index, param as u64, grad as u64);
    }

    pub(crate) fn progress(&self, index: usize) -> Result<Progress> {
        self.wait()?;
        self.tables.progress(index)
    }

    pub(crate) fn set_progress(&mut self, index: usize, progress: Progress) -> Result<()> {
        self.wait()?;
        self.tables.set_progress(index, progress)
    }

    /// # Safety
    ///
    /// As for [`Backend::read_state`](crate::backend::Backend::read_state).
    pub(crate) unsafe fn read_state(&self, from: *const u8, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.context.read(from as u64, to) }
    }

    /// # Safety
    ///
    /// As for [`Backend::write_state`](crate::backend::Backend::write_state).
    pub(crate) unsafe fn write_state(&self, to: *mut u8, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.context.write(to as u64, from) }
    }

    pub(crate) fn scratch_bytes(&self) -> u64 {
        self.tables.scratch_bytes()
    }

    /// # Safety
    ///
    /// As for [`Backend::step`](crate::backend::Backend::step).
    pub(crate) unsafe fn step(&mut self, request: &StepRequest<'_>) -> Result<Outcome> {
        request.device.validate()?;
        request::check_scalars(request)?;
        let mut step = self.step_with_tables(request);
        let device = &request.device;
        for (place, (what, pointer)) in step.device_hyper.iter_mut().zip(device.hyper()) {
            if !pointer.is_null() {
                *place = self
                    .context
                    .reach(what, pointer.cast(), size_of::<f64>() as u64)?;
            }
        }
        if !device.report.is_null() {
            let start = device.report.cast_const();
            step.report = self.context.reach("report", start, device.report_size)?;
            step.report_size = device.report_size;
        }
        // SAFETY: the caller's promise.
        unsafe { self.run(&step, request, |cuda| cuda.launch_step(&step, request))? };
        Ok(Outcome::default())
    }

    /// # Safety
    ///
    /// As for [`Backend::grad_norm`](crate::backend::Backend::grad_norm).
    pub(crate) unsafe fn grad_norm(&mut self, request: &StepRequest<'_>) -> Result<f64> {
        request.device.validate()?;
        let mut step = self.step_with_tables(request);
        step.needs_sum = 1;
        step.only_norm = 1;
        let stream = request.device.stream;
        {
            let _current = self.context.enter()?;
            if self.context.check_stream(stream)? {
                fail!(
                    InvalidState,
                    "the norm waits for the device, which a stream that is being captured does not allow"
                );
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.run(&step, request, |cuda| cuda.launch_norm(&step, request))? };
        self.context.synchronize(stream)?;
        self.tables.grad_norm()
    }

    fn step_with_tables(&self, request: &StepRequest<'_>) -> layout::Step {
        let mut step = request::step(request);
        self.tables.enter_into(&mut step);
        step
    }

    /// Runs launches on the caller's stream: after the steps before them, on whichever stream those were.
    ///
    /// # Safety
    ///
    /// As for [`Cuda::step`].
    unsafe fn run(
        &mut self,
        step: &layout::Step,
        request: &StepRequest<'_>,
        launches: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let context = self.context.clone();
        let _current = context.enter()?;
        let stream = request.device.stream;
        let captured = context.check_stream(stream)?;
        if !captured {
            self.last.hold_back(stream)?;
        }
        if self.tables.any_unbound {
            for bind in self.tables.binds() {
                // SAFETY: the tables are alive, and the pointers are of tensors that are in them.
                unsafe { self.launch(Kernel::Bind, 1, stream, &bind)? };
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.launch_begin(step, request)? };
        launches(self)?;
        if !captured {
            self.tables.all_bound();
            self.last.record(stream)?;
        }
        Ok(())
    }

    /// # Safety
    ///
    /// As for [`Cuda::step`].
    unsafe fn launch_begin(&self, step: &layout::Step, request: &StepRequest<'_>) -> Result<()> {
        let window = layout::Begin::LISTED;
        let last = if request.listed {
            (self.tables.len().max(1) - 1) / window
        } else {
            0
        };
        let mut listed = request
            .participants
            .iter()
            .map(|participant| participant.index)
            .peekable();
        for i in 0..=last {
            let first = i * window;
            let mut begin = layout::Begin {
                step: *step,
                first: first as u64,
                listed: u32::from(request.listed),
                is_last: u32::from(i == last),
                mask: [0; layout::Begin::LISTED / 32],
            };
            if request.listed {
                // They are in ascending order.
                while let Some(index) = listed.next_if(|&index| index < first + window) {
                    let place = index - first;
                    begin.mask[place / 32] |= 1 << (place % 32);
                }
            }
            // SAFETY: the caller's promise.
            unsafe { self.launch(Kernel::Begin, 1, request.device.stream, &begin)? };
        }
        Ok(())
    }

    fn launch_norm(&self, step: &layout::Step, request: &StepRequest<'_>) -> Result<()> {
        let stream = request.device.stream;
        let chunks = self.units_of(request).chunks;
        // SAFETY: the promise of whoever called `run`.
        unsafe {
            self.launch(Kernel::Norm, chunks, stream, step)?;
            self.launch(Kernel::Prepare, 1, stream, step)
        }
    }

    fn launch_step(&self, step: &layout::Step, request: &StepRequest<'_>) -> Result<()> {
        let stream = request.device.stream;
        let units = self.units_of(request);
        let large = units.tiles > 0;
        if step.needs_sum == 1 {
            self.launch_norm(step, request)?;
        }
        // SAFETY: the promise of whoever called `run`.
        unsafe {
            self.launch(Kernel::Sample, units.gathers, stream, step)?;
            let strips = units.strips + units.all_strips;
            let passes = strips.div_ceil(layout::STRIPS_AT_A_TIME);
            self.launch(Kernel::Pass, passes, stream, step)?;
            self.launch(Kernel::Whole, units.runs, stream, step)?;
            if large {
                self.launch(Kernel::Plan, 1, stream, step)?;
                for digit in 0..layout::DIGITS {
                    let step = layout::Step { digit, ..*step };
                    self.launch(Kernel::Select, units.tiles, stream, &step)?;
                }
                self.launch(Kernel::Settle, units.tiles, stream, step)?;
            }
            if large || step.report != 0 {
                self.launch(Kernel::Finish, step.num_blocks.max(1), stream, step)?;
            }
        }
        Ok(())
    }

    /// The units of work of all participants.
    fn units_of(&self, request: &StepRequest<'_>) -> tables::Units {
        let mut total = tables::Units::default();
        for participant in request.participants {
            let units = self.tables.units(participant.index);
            total.chunks += units.chunks;
            if everything_moves(participant.update_fraction) {
                total.all_strips += units.all_strips;
            } else {
                total.strips += units.strips;
                total.tiles += units.tiles;
                total.runs += units.runs;
                total.gathers += units.gathers;
            }
        }
        total
    }

    /// Launches a kernel for so many units of work; not at all if there are none.
    ///
    /// # Safety
    ///
    /// As for [`Cuda::step`]; the kernel takes a `T`.
    unsafe fn launch<T: Copy>(
        &self,
        kernel: Kernel,
        units: u64,
        stream: Stream,
        parameter: &T,
    ) -> Result<()> {
        if units == 0 {
            return Ok(());
        }
        let (function, at_a_time) = self.functions[kernel as usize];
        let (_, threads) = KERNELS[kernel as usize];
        let blocks = units.min(at_a_time as u64) as u32;
        // SAFETY: the caller's promise.
        unsafe { function.launch(blocks, threads, stream, parameter) }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // A context that is broken has stopped already.
        let _ = self.wait();
    }
}

/// Loads the kernels in the form that suits the device best.
fn load(context: &Arc<Context>) -> Result<Module> {
    let (major, minor) = context.compute_capability()?;
    let mut failure = None;
    for image in image::candidates(major, minor) {
        let loaded = image
            .bytes()
            .and_then(|bytes| Module::load(context, &bytes));
        match loaded {
            Ok(module) => return Ok(module),
            Err(error) => failure = failure.or(Some((image.name(), error))),
        }
    }
    match failure {
        Some((name, error)) => Err(Error::new(
            ErrorKind::Unsupported,
            format_args!("{name} cannot be loaded: {}", error.message()),
        )),
        None => fail!(
            Unsupported,
            "the device is of compute capability {major}.{minor}; at least 7.0 is needed"
        ),
    }
}

/// Where moments, master copy and thresholds lie within one allocation.
#[derive(Clone, Copy, Debug)]
struct StateLayout {
    offsets: [usize; 4],
    bytes: usize,
}

impl StateLayout {
    const ALIGNMENT: usize = 256;

    fn new(sizes: [usize; 4]) -> Self {
        let mut layout = Self {
            offsets: [0; 4],
            bytes: 0,
        };
        for (offset, size) in layout.offsets.iter_mut().zip(sizes) {
            *offset = layout.bytes.next_multiple_of(Self::ALIGNMENT);
            if size > 0 {
                layout.bytes = *offset + size;
            }
        }
        layout
    }
}

/// Bytes that the state of a tensor takes on a device.
pub(crate) fn state_bytes(sizes: [usize; 4]) -> u64 {
    StateLayout::new(sizes).bytes.max(1) as u64
}
