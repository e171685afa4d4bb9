//! `mofo_optimizer`: the handle, and how every call gets at what is behind it.

use std::mem::size_of;

use super::enums::Number;
use super::options::{mofo_options, read_options};
use super::panic::{catch, guard};
use super::status::{MOFO_OK, fail};
use super::structs::{OutputStruct, check_output, check_pointer, write};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::try_box;
use crate::optimizer::Optimizer;

/// An optimizer. It is used by one thread at a time; different optimizers by different threads freely.
#[allow(non_camel_case_types)]
pub struct mofo_optimizer {
    optimizer: Optimizer,
    /// A call panicked: what the optimizer holds can no longer be trusted.
    poisoned: bool,
}

/// The memory that an optimizer holds, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct mofo_memory_info {
    /// Moments and master copies that the library allocated, with the distances kept between them.
    pub state: u64,
    /// Moments and master copies in the caller's memory.
    pub caller_state: u64,
    /// Work space of a step, kept between steps. It grows when a step needs more than any before it.
    pub scratch: u64,
    /// Everything else: tensor records, names, thresholds.
    pub bookkeeping: u64,
    /// Tensors at present.
    pub num_tensors: u64,
    /// Entries of all of them.
    pub entries: u64,
}

// SAFETY: `repr(C)`, `Copy`, no padding: 8 × 6 = 48 bytes (asserted below).
unsafe impl OutputStruct for mofo_memory_info {
    const NAME: &'static str = "mofo_memory_info";
    const VERSION_1_SIZE: u64 = 48;
}

const _: () = assert!(size_of::<mofo_memory_info>() == 48);

/// Creates an optimizer and writes it to `*optimizer`; free it with `mofo_destroy`. The options are copied.
/// No thread is started before the first step.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT` for a value out of range, `MOFO_ERROR_UNSUPPORTED` for a device or
/// CPU tier that is not there, `MOFO_ERROR_OUT_OF_MEMORY`.
///
/// # Safety
///
/// `options` is NULL or points to an initialised struct, `optimizer` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_create(
    options: *const mofo_options,
    optimizer: *mut *mut mofo_optimizer,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise about `options`.
        let options = unsafe { read_options(options)? };
        check_pointer("optimizer", optimizer)?;
        let handle = try_box(mofo_optimizer {
            optimizer: Optimizer::new(options)?,
            poisoned: false,
        })?;
        // SAFETY: `optimizer` is not NULL and aligned (checked above), and writable (the caller's promise).
        unsafe { optimizer.write(Box::into_raw(handle)) };
        Ok(())
    })
}

/// Frees an optimizer, its state and its threads; when it returns, none of them runs any more. NULL is
/// fine. The caller's buffers are not touched.
///
/// # Safety
///
/// `optimizer` is NULL or came from `mofo_create` and was not destroyed yet; no other thread is using it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_destroy(optimizer: *mut mofo_optimizer) {
    if optimizer.is_null() {
        return;
    }
    guard(|| {
        // SAFETY: it came from `Box::into_raw` in `mofo_create`, and is given up here (the caller's
        // promise).
        drop(unsafe { Box::from_raw(optimizer) });
        Ok(())
    });
}

/// Writes how much memory the optimizer holds to `*info`; `size` is `sizeof *info`.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT`.
///
/// # Safety
///
/// `optimizer` is NULL or alive, `info` is NULL or points to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_memory(
    optimizer: *mut mofo_optimizer,
    info: *mut mofo_memory_info,
    size: u64,
) -> i32 {
    let ask = |optimizer: &mut Optimizer| {
        check_output(info, size)?;
        let memory = optimizer.memory();
        let memory = mofo_memory_info {
            state: memory.state,
            caller_state: memory.caller_state,
            scratch: memory.scratch,
            bookkeeping: memory.bookkeeping,
            num_tensors: memory.num_tensors,
            entries: memory.entries,
        };
        // SAFETY: `info` was checked above and has room for `size` bytes (the caller's promise).
        unsafe { write(memory, info, size) };
        Ok(())
    };
    // SAFETY: the caller's promise about `optimizer`.
    unsafe { with_optimizer(optimizer, ask) }
}

/// The `MOFO_CPU_TIER_...` that the optimizer uses, or a negative status if `optimizer` is NULL or works on CUDA.
///
/// # Safety
///
/// `optimizer` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_cpu_tier(optimizer: *mut mofo_optimizer) -> i32 {
    // SAFETY: the caller's promise about `optimizer`.
    unsafe {
        with_optimizer_status(optimizer, |optimizer| match optimizer.cpu_tier() {
            tier @ Some(_) => Ok(tier.number()),
            None => Err(Error::new(
                ErrorKind::InvalidState,
                format_args!("the optimizer works on CUDA; only on the CPU has it a tier"),
            )),
        })
    }
}

/// Runs a call on an optimizer behind the wall; after a panic the optimizer refuses further calls.
///
/// # Safety
///
/// `optimizer` is NULL or alive, and no other thread is using it.
pub(super) unsafe fn with_optimizer(
    optimizer: *mut mofo_optimizer,
    call: impl FnOnce(&mut Optimizer) -> Result<()>,
) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        with_optimizer_status(optimizer, |optimizer| {
            call(optimizer)?;
            Ok(MOFO_OK)
        })
    }
}

/// As [`with_optimizer`], for calls with more than one good outcome.
///
/// # Safety
///
/// As for [`with_optimizer`].
pub(super) unsafe fn with_optimizer_status(
    optimizer: *mut mofo_optimizer,
    call: impl FnOnce(&mut Optimizer) -> Result<i32>,
) -> i32 {
    let mut call = Some(call);
    // It is called once.
    let mut call =
        |optimizer: &mut Optimizer| call.take().map_or(Ok(MOFO_OK), |call| call(optimizer));
    // SAFETY: the caller's promise.
    unsafe { call_optimizer(optimizer, &mut call) }
}

/// As [`with_optimizer_status`], compiled once for all calls.
///
/// # Safety
///
/// As there.
#[inline(never)]
unsafe fn call_optimizer(
    optimizer: *mut mofo_optimizer,
    call: &mut dyn FnMut(&mut Optimizer) -> Result<i32>,
) -> i32 {
    if let Err(error) = check_pointer("optimizer", optimizer) {
        return fail(&error);
    }
    // SAFETY: not NULL and aligned (checked above), alive and used by this thread alone (the caller's
    // promise).
    let handle = unsafe { &mut *optimizer };
    if handle.poisoned {
        return fail(&Error::new(
            ErrorKind::Internal,
            format_args!("an earlier call on this optimizer failed inside the library; destroy it"),
        ));
    }
    // After a panic the optimizer is never used again, so no broken invariant is seen.
    catch(&mut || call(&mut handle.optimizer)).unwrap_or_else(|error| {
        handle.poisoned = error.kind() == ErrorKind::Internal;
        fail(&error)
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::super::*;
    use super::*;

    #[test]
    fn a_panic_becomes_a_status_and_the_optimizer_refuses_further_calls() {
        // SAFETY: every pointer below is to a local of the right type and size.
        unsafe {
            let mut options = std::mem::zeroed::<mofo_options>();
            assert_eq!(
                mofo_options_init(&mut options, size_of::<mofo_options>() as u64),
                MOFO_OK
            );
            let mut optimizer = std::ptr::null_mut();
            assert_eq!(mofo_create(&options, &mut optimizer), MOFO_OK);
            let mut tensor = std::mem::zeroed::<mofo_tensor>();
            assert_eq!(
                mofo_tensor_init(&mut tensor, size_of::<mofo_tensor>() as u64),
                MOFO_OK
            );
            let (mut param, grad) = ([1f32; 8], [1f32; 8]);
            tensor.name = c"weight".as_ptr();
            tensor.numel = 8;
            tensor.param = param.as_mut_ptr().cast();
            tensor.grad = grad.as_ptr().cast();
            let mut index = 0;
            assert_eq!(mofo_add_tensor(optimizer, &tensor, &mut index), MOFO_OK);

            (*optimizer).optimizer.panics_in_step = true;
            assert_eq!(mofo_step(optimizer, std::ptr::null()), MOFO_ERROR_INTERNAL);
            assert!(
                CStr::from_ptr(mofo_last_error())
                    .to_str()
                    .unwrap()
                    .contains("panic")
            );
            (*optimizer).optimizer.panics_in_step = false;
            assert_eq!(mofo_step(optimizer, std::ptr::null()), MOFO_ERROR_INTERNAL);
            assert_eq!(
                mofo_set_step_count(optimizer, index, 3),
                MOFO_ERROR_INTERNAL
            );
            assert_eq!(param, [1f32; 8]);
            mofo_destroy(optimizer);
        }
    }
}
