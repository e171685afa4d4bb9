//! `mofo_step` and its arguments.

use std::ffi::c_void;
use std::mem::size_of;

use super::optimizer::{mofo_optimizer, with_optimizer, with_optimizer_status};
use super::options::MOFO_INHERIT;
use super::panic::guard;
use super::status::{MOFO_OK, MOFO_SKIPPED};
use super::structs::{
    InputStruct, OutputStruct, check_output, check_pointer, initialise, read, write,
};
use super::tensor::unless_inherited;
use crate::config::Device;
use crate::error::{Result, fail};
use crate::job::{DeviceArgs, STEP_REPORT_BYTES};
use crate::optimizer::{Optimizer, StepArgs};

/// What a step did.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct mofo_step_report {
    /// The global norm of the gradients, times |grad_scale|, before clipping; `MOFO_INHERIT` where the step
    /// had no use for it: no clipping, no `skip_nonfinite` and none passed in.
    pub grad_norm: f64,
    /// Entries of the tensors that took part, or would have, had the step not been skipped.
    pub entries: u64,
    /// How many of them moved: were selected by the filter. 0 if the step was skipped.
    pub entries_selected: u64,
    /// 1 if the step was skipped, else 0.
    pub skipped: i32,
    /// The step's status. On the CPU that which `mofo_step` returned, if that was not an error: `MOFO_OK` or
    /// `MOFO_SKIPPED`. On CUDA, where `mofo_step` has returned before the step runs, also what else kept it from being
    /// taken: `MOFO_ERROR_NOT_FINITE`, or `MOFO_ERROR_INVALID_ARGUMENT` if a step counter was at its end. Nothing but
    /// the report was changed then.
    pub status: i32,
    /// Blocks whose threshold was bracketed by a sample before the pass over them.
    pub blocks_estimated: u64,
    /// Those of them whose estimate was wrong, or left so much open that there was no room for it. The result is
    /// exact all the same, but took longer. On CUDA, of all that a step reports only
    /// this may depend on the threads.
    pub estimates_failed: u64,
    /// Tensors that took part, or would have: of all, or of those listed, the ones that have a gradient. 0 where
    /// the step had nothing to do, which is often a mistake of the caller's.
    pub tensors: u64,
    /// Entries of which a moment is infinite or NaN after the step. Above 0, something is wrong: a gradient that is not
    /// finite was taken, `skip_nonfinite` being off, or one so large that its square is not. An entry whose first moment is
    /// not finite never moves again, and nothing else tells, for the loss stays finite. 0 if the step was skipped.
    pub entries_nonfinite: u64,
}

// SAFETY: `repr(C)`, `Copy`, no padding: 8 × 7 + 4 × 2 = 64 bytes (asserted below).
unsafe impl OutputStruct for mofo_step_report {
    const NAME: &'static str = "mofo_step_report";
    const VERSION_1_SIZE: u64 = 64;
}

const _: () = assert!(size_of::<mofo_step_report>() as u64 == STEP_REPORT_BYTES);

/// What is particular to one step. Fill it with `mofo_step_args_init`, then change what should differ.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct mofo_step_args {
    /// Set by `mofo_step_args_init`: the size of the struct that the caller was compiled with.
    pub struct_size: u64,
    /// The learning rate of this step: finite, at least 0, or `MOFO_INHERIT` (default).
    pub learning_rate: f64,
    /// The update fraction of this step, in (0, 1], for the tensors that have none of their own; or `MOFO_INHERIT` (default).
    pub update_fraction: f64,
    /// Multiplies every gradient: 1 / loss scale, 1 / accumulation steps. Finite. Default 1.
    pub grad_scale: f64,
    /// The global gradient norm, |grad_scale| included, if the engine knows it: at least 0; NaN or infinite
    /// says that some gradient is. It then serves for clipping and for `skip_nonfinite`, and the gradients
    /// are not read for either. `MOFO_INHERIT`
    /// (default): the library computes it, over the tensors of this call, where it needs it.
    pub grad_norm: f64,
    /// The indices of the tensors to step, each at most once, in any order; NULL (default): all. To step
    /// none, a pointer that is not NULL and a `num_tensors` of 0.
    pub tensors: *const u64,
    /// How many indices `tensors` has.
    pub num_tensors: u64,
    /// The CUDA stream to work on: a CUstream or cudaStream_t of the device's primary context, NULL (default) the
    /// legacy default stream. NULL on the CPU.
    pub stream: *mut c_void,
    /// Where to write what the step did, or NULL (default). On CUDA it is the device that writes, when the step has
    /// run: to device, managed or page-locked memory, which is yours to read after `mofo_wait`, or once
    /// you have waited for the stream.
    pub report: *mut mofo_step_report,
    /// `sizeof *report`; not looked at if `report` is NULL.
    pub report_size: u64,
    /// CUDA: where in device, managed or page-locked memory the learning rate of this step is, in place of `learning_rate`; read when
    /// the step runs, so that a step captured in a graph can follow a schedule. Not finite or negative: the step is
    /// not taken (see `mofo_step_report.status`). NULL (default): as `learning_rate` says. NULL on the CPU.
    pub device_learning_rate: *const f64,
    /// beta1 of this step: in [0, 1), or `MOFO_INHERIT` (default).
    pub beta1: f64,
    /// beta2 of this step, likewise.
    pub beta2: f64,
    /// epsilon of this step: finite, at least 0, or `MOFO_INHERIT` (default).
    pub epsilon: f64,
    /// The weight decay of this step, for the tensors that have none of their own: finite, at least 0, or `MOFO_INHERIT` (default).
    pub weight_decay: f64,
    /// CUDA: where beta1 of this step is, in place of `beta1`, as with `device_learning_rate`. Out of its range: the step is
    /// not taken.
    pub device_beta1: *const f64,
    /// CUDA: likewise beta2.
    pub device_beta2: *const f64,
    /// CUDA: likewise epsilon.
    pub device_epsilon: *const f64,
    /// CUDA: likewise the weight decay, of the tensors that have none of their own.
    pub device_weight_decay: *const f64,
}

// SAFETY: `repr(C)`, starts with a u64, no padding: 8 × 19 = 152 bytes (asserted below). Integers, floats and
// raw pointers have no invalid bit patterns.
unsafe impl InputStruct for mofo_step_args {
    const NAME: &'static str = "mofo_step_args";
    const VERSION_1_SIZE: u64 = 152;

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>() as u64,
            learning_rate: MOFO_INHERIT,
            update_fraction: MOFO_INHERIT,
            grad_scale: 1.0,
            grad_norm: MOFO_INHERIT,
            tensors: std::ptr::null(),
            num_tensors: 0,
            stream: std::ptr::null_mut(),
            report: std::ptr::null_mut(),
            report_size: 0,
            device_learning_rate: std::ptr::null(),
            beta1: MOFO_INHERIT,
            beta2: MOFO_INHERIT,
            epsilon: MOFO_INHERIT,
            weight_decay: MOFO_INHERIT,
            device_beta1: std::ptr::null(),
            device_beta2: std::ptr::null(),
            device_epsilon: std::ptr::null(),
            device_weight_decay: std::ptr::null(),
        }
    }
}

const _: () = assert!(size_of::<mofo_step_args>() == 152);

/// Fills `*args` with the defaults; `size` is `sizeof *args`.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT` if `args` is NULL or `size` is not that of a `mofo_step_args`.
///
/// # Safety
///
/// `args` is NULL or points to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_step_args_init(args: *mut mofo_step_args, size: u64) -> i32 {
    // SAFETY: the caller's promise is that of `initialise`.
    guard(|| unsafe { initialise(args, size) })
}

/// Takes one step: reads the gradients, updates moments, masters and parameters of all tensors that have a
/// gradient, or of those in `args->tensors`. A NULL `args` is all defaults. If none of them has a gradient
/// the step does nothing, and that is fine; an engine that does not expect it looks whether `tensors` of the
/// report is 0.
///
/// Returns `MOFO_OK`, or `MOFO_SKIPPED` if `skip_nonfinite` left the step out. On an error nothing has
/// changed: `MOFO_ERROR_INVALID_STATE` if no tensor was added or none is bound,
/// `MOFO_ERROR_INVALID_BUFFER` if a tensor of the step has a gradient but no parameter, or if buffers overlap
/// (of the state of all tensors and of the parameters and gradients of those that have a gradient, only
/// gradients may overlap gradients), `MOFO_ERROR_NOT_FINITE` if a derived number is not finite, among them
/// the clipping factor of a NaN gradient, `MOFO_ERROR_PARALLEL_FOR`, and those of the arguments. Only
/// `MOFO_ERROR_INTERNAL` may leave a step half done.
///
/// # Safety
///
/// `optimizer` is NULL or alive; `args` is NULL or points to an initialised struct whose pointers are valid;
/// the bound buffers of the tensors of this step are alive and not touched by others during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_step(
    optimizer: *mut mofo_optimizer,
    args: *const mofo_step_args,
) -> i32 {
    let step = |optimizer: &mut Optimizer| {
        // SAFETY: the caller's promise about `args`.
        let (c, mut args) = unsafe { read_args(args)? };
        if !c.report.is_null() {
            check_output(c.report, c.report_size)?;
        }
        let on_device = optimizer.device() != Device::Cpu;
        if on_device {
            args.device.report = c.report.cast();
            args.device.report_size = c.report_size;
        }
        // SAFETY: the caller's promise about the bound buffers.
        let report = unsafe { optimizer.step_bound(&args)? };
        if !c.report.is_null() && !on_device {
            let report = mofo_step_report {
                grad_norm: report.grad_norm.unwrap_or(MOFO_INHERIT),
                entries: report.entries,
                entries_selected: report.entries_selected,
                skipped: i32::from(report.skipped),
                status: if report.skipped {
                    MOFO_SKIPPED
                } else {
                    MOFO_OK
                },
                blocks_estimated: report.blocks_estimated,
                estimates_failed: report.estimates_failed,
                tensors: report.tensors,
                entries_nonfinite: report.entries_nonfinite,
            };
            // SAFETY: `report` was checked above and has room for `report_size` bytes (the caller's
            // promise).
            unsafe { write(report, c.report, c.report_size) };
        }
        Ok(if report.skipped {
            MOFO_SKIPPED
        } else {
            MOFO_OK
        })
    };
    // SAFETY: the caller's promise about `optimizer`.
    unsafe { with_optimizer_status(optimizer, step) }
}

/// Waits until every step that `mofo_step` has launched has ended: parameters, state and reports are then as those steps
/// leave them. On CUDA this is how an engine that does not call CUDA itself waits; of steps replayed from a graph the
/// optimizer does not know. On the CPU there is nothing to wait for.
///
/// Errors: `MOFO_ERROR_CUDA`, also of an earlier kernel of anybody's that broke the context.
///
/// # Safety
///
/// `optimizer` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_wait(optimizer: *mut mofo_optimizer) -> i32 {
    // SAFETY: the caller's promise about `optimizer`.
    unsafe { with_optimizer(optimizer, |optimizer| optimizer.wait()) }
}

/// Computes the global norm of the gradients, times |grad_scale|, of all tensors that have one, or of those
/// in `args->tensors`, and writes it to `*norm`. A NULL `args` is all defaults. The norm is infinite or NaN
/// exactly if some gradient is. Nothing else changes.
///
/// Errors: as for `mofo_step`, but parameters need not be bound, nor hyper-parameters be usable.
///
/// # Safety
///
/// As for `mofo_step`; `norm` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_grad_norm(
    optimizer: *mut mofo_optimizer,
    args: *const mofo_step_args,
    norm: *mut f64,
) -> i32 {
    let compute = |optimizer: &mut Optimizer| {
        // SAFETY: the caller's promise about `args`.
        let (_, args) = unsafe { read_args(args)? };
        check_pointer("norm", norm)?;
        // SAFETY: the caller's promise about the bound buffers.
        let computed = unsafe { optimizer.grad_norm_bound(&args)? };
        // SAFETY: `norm` is not NULL and aligned (checked above), and writable (the caller's promise).
        unsafe { norm.write(computed) };
        Ok(MOFO_OK)
    };
    // SAFETY: the caller's promise about `optimizer`.
    unsafe { with_optimizer_status(optimizer, compute) }
}

/// Reads and translates the caller's arguments; NULL is all defaults.
///
/// # Safety
///
/// `args` is NULL or points to an initialised struct; `tensors` has `num_tensors` elements.
unsafe fn read_args<'a>(args: *const mofo_step_args) -> Result<(mofo_step_args, StepArgs<'a>)> {
    let c = if args.is_null() {
        mofo_step_args::defaults()
    } else {
        // SAFETY: the caller's promise.
        unsafe { read(args)? }
    };
    let tensors = if c.tensors.is_null() {
        if c.num_tensors != 0 {
            fail!(
                InvalidArgument,
                "tensors is NULL, but num_tensors is {}",
                c.num_tensors
            );
        }
        None
    } else {
        check_pointer("tensors", c.tensors)?;
        if c.num_tensors > isize::MAX as u64 / 8 {
            fail!(
                InvalidArgument,
                "num_tensors is {}: more than memory can hold",
                c.num_tensors
            );
        }
        // SAFETY: not NULL and aligned (checked above), small enough for a slice (checked above), and
        // readable (the caller's promise).
        Some(unsafe { std::slice::from_raw_parts(c.tensors, c.num_tensors as usize) })
    };
    let device = DeviceArgs {
        stream: c.stream,
        learning_rate: c.device_learning_rate,
        beta1: c.device_beta1,
        beta2: c.device_beta2,
        epsilon: c.device_epsilon,
        weight_decay: c.device_weight_decay,
        ..DeviceArgs::default()
    };
    for (what, pointer) in device.hyper() {
        if !pointer.is_null() {
            check_pointer(what, pointer)?;
        }
    }
    let args = StepArgs {
        learning_rate: unless_inherited(c.learning_rate),
        update_fraction: unless_inherited(c.update_fraction),
        beta1: unless_inherited(c.beta1),
        beta2: unless_inherited(c.beta2),
        epsilon: unless_inherited(c.epsilon),
        weight_decay: unless_inherited(c.weight_decay),
        grad_scale: c.grad_scale,
        grad_norm: unless_inherited(c.grad_norm),
        tensors,
        device,
    };
    Ok((c, args))
}
