//! The CUDA backend: the same step on device buffers, on the caller's stream.
//!
//! A step is a fixed series of kernel launches, whatever its tensors: see `docs/cuda.md`. All that a step decides is
//! decided on the device, so that nothing is waited for, and a captured step can be replayed.

mod driver;
mod image;
mod layout;
mod tables;

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use crate::config::{Dtype, Filter, Options, Rounding, StateDtype, WeightDecayScope};
use crate::error::{Error, ErrorKind, Result, fail};
use crate::forced::{self, ForcedBracket};
use crate::job::Progress;
use driver::{Context, Event, Function, Module};
use tables::Tables;

pub(crate) use driver::{Memory, Stream};
pub(crate) use tables::{Description, Record, space_bytes};

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

/// A step, as the optimizer asks for it; every participant has a gradient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// The tensors that take part, with α of this step.
    pub participants: &'a [(usize, f64)],
    /// They are fewer than all that have a gradient.
    pub listed: bool,
    pub learning_rate: f64,
    pub update_fraction: f64,
    pub grad_scale: f64,
    pub grad_norm: Option<f64>,
    pub device: crate::job::DeviceArgs,
}

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

    /// Device memory for a tensor's moments, master copy and thresholds; where each of them starts, null for none.
    pub(crate) fn allocate_state(&self, sizes: [usize; 4]) -> Result<(Memory, [*mut u8; 4])> {
        let layout = StateLayout::of(sizes);
        let memory = Memory::zeroed(&self.context, layout.bytes.max(1), "the moments")?;
        let mut parts = [std::ptr::null_mut(); 4];
        for (part, (offset, size)) in parts.iter_mut().zip(layout.offsets.into_iter().zip(sizes)) {
            if size > 0 {
                *part = (memory.start() + offset as u64) as *mut u8;
            }
        }
        Ok((memory, parts))
    }

    /// Refuses a buffer that is not all in this device's memory.
    pub(crate) fn check_memory(&self, what: &str, start: *const c_void, bytes: u64) -> Result<()> {
        self.context.check_memory(what, start, bytes)
    }

    /// Waits for the steps that were not captured. What else of the optimizer runs is the caller's to wait for.
    fn wait(&self) -> Result<()> {
        self.last.synchronize()
    }

    /// Adds a tensor at the next index.
    pub(crate) fn add(&mut self, description: &Description) -> Result<()> {
        self.wait()?;
        self.tables.add(description)
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
    /// As for `Backend::read_state`.
    pub(crate) unsafe fn read_state(&self, from: *const u8, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.context.read(from as u64, to) }
    }

    /// # Safety
    ///
    /// As for `Backend::write_state`.
    pub(crate) unsafe fn write_state(&self, to: *mut u8, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.context.write(to as u64, from) }
    }

    pub(crate) fn scratch_bytes(&self) -> u64 {
        self.tables.scratch_bytes()
    }

    /// Launches a step.
    ///
    /// # Safety
    ///
    /// Until the step has ended on the device, the buffers of its tensors are alive, as large as they should be, and
    /// used by nobody else.
    pub(crate) unsafe fn step(&mut self, options: &Options, request: &Request<'_>) -> Result<()> {
        let needs_sum =
            request.grad_norm.is_none() && (options.max_grad_norm > 0.0 || options.skip_nonfinite);
        let mut step = self.step_of(options, request, needs_sum);
        let device = &request.device;
        if !device.learning_rate.is_null() {
            let (start, bytes) = (device.learning_rate.cast(), size_of::<f64>() as u64);
            step.device_learning_rate = self.context.reach("device_learning_rate", start, bytes)?;
        }
        if !device.report.is_null() {
            let start = device.report.cast_const();
            step.report = self.context.reach("report", start, device.report_size)?;
            step.report_size = device.report_size;
        }
        // SAFETY: the caller's promise.
        unsafe { self.run(&step, request, |cuda| cuda.launch_step(&step, request)) }
    }

    /// The norm of the gradients, times |grad_scale|. Waits for it.
    ///
    /// # Safety
    ///
    /// The gradients are alive, and as large as they should be.
    pub(crate) unsafe fn grad_norm(
        &mut self,
        options: &Options,
        request: &Request<'_>,
    ) -> Result<f64> {
        let mut step = self.step_of(options, request, true);
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

    /// What the kernels are given.
    fn step_of(&self, options: &Options, request: &Request<'_>, needs_sum: bool) -> layout::Step {
        let forced = forced::current();
        let mut step = layout::Step {
            tensors: 0,
            works: 0,
            blocks: 0,
            control: 0,
            sums: 0,
            device_learning_rate: 0,
            report: 0,
            report_size: 0,
            num_tensors: 0,
            num_blocks: 0,
            seed: options.seed,
            learning_rate: request.learning_rate,
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            weight_decay: options.weight_decay,
            update_fraction: request.update_fraction,
            grad_scale: request.grad_scale,
            grad_norm: request.grad_norm.unwrap_or(-1.0),
            max_grad_norm: options.max_grad_norm,
            filter: match options.filter {
                Filter::Momentum => 0,
                Filter::Gradient => 1,
                Filter::Update => 2,
                Filter::Random => 3,
            },
            scope: match options.weight_decay_scope {
                WeightDecayScope::Selected => 0,
                WeightDecayScope::All => 1,
            },
            rounding: match options.rounding {
                Rounding::Nearest => 0,
                Rounding::Stochastic => 1,
            },
            skip_nonfinite: u32::from(options.skip_nonfinite),
            needs_sum: u32::from(needs_sum),
            only_norm: 0,
            forced_bracket: match forced.bracket {
                ForcedBracket::Sampled => 0,
                ForcedBracket::TooLow => 1,
                ForcedBracket::TooHigh => 2,
                ForcedBracket::Anywhere => 3,
                ForcedBracket::Exactly => 4,
            },
            no_room: u32::from(forced.no_room),
            digit: 0,
            reserved: 0,
        };
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
        request: &Request<'_>,
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
    unsafe fn launch_begin(&self, step: &layout::Step, request: &Request<'_>) -> Result<()> {
        let window = layout::Begin::LISTED;
        let last = if request.listed {
            (self.tables.len().max(1) - 1) / window
        } else {
            0
        };
        let mut listed = request
            .participants
            .iter()
            .map(|(index, _)| *index)
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

    fn launch_norm(&self, step: &layout::Step, request: &Request<'_>) -> Result<()> {
        let stream = request.device.stream;
        let chunks = self.units_of(request).chunks;
        // SAFETY: the promise of whoever called `run`.
        unsafe {
            self.launch(Kernel::Norm, chunks, stream, step)?;
            self.launch(Kernel::Prepare, 1, stream, step)
        }
    }

    fn launch_step(&self, step: &layout::Step, request: &Request<'_>) -> Result<()> {
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
    fn units_of(&self, request: &Request<'_>) -> tables::Units {
        let mut total = tables::Units::default();
        for (index, update_fraction) in request.participants {
            let units = self.tables.units(*index);
            total.chunks += units.chunks;
            if *update_fraction == 1.0 {
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

    fn of(sizes: [usize; 4]) -> Self {
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
    StateLayout::of(sizes).bytes.max(1) as u64
}

/// The kernels' number of a type.
pub(crate) fn dtype_number(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 2,
    }
}

/// The kernels' number of the moments' type.
pub(crate) fn state_dtype_number(dtype: StateDtype) -> u32 {
    match dtype {
        StateDtype::F32 => 0,
        StateDtype::BF16 => 2,
    }
}
