//! What the library keeps for a tensor, and how much memory that takes.

use std::ffi::{c_char, c_void};
use std::mem::size_of;

use super::enums::Number;
use super::optimizer::{mofo_optimizer, with_optimizer};
use super::options::{mofo_options, read_options};
use super::panic::guard;
use super::structs::{OutputStruct, check_output, read, write};
use super::tensor::{mofo_tensor, read_name, tensor_spec};
use crate::optimizer::{Optimizer, state_size};

/// What the library keeps for a tensor. The pointers stay valid until the tensor is removed or the
/// optimizer destroyed; reading or writing through them is allowed between calls on the optimizer.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct mofo_tensor_info {
    /// The tensor's name, NUL-terminated.
    pub name: *const c_char,
    /// Entries.
    pub numel: u64,
    /// Blocks.
    pub num_blocks: u64,
    /// Steps taken so far: t of the last one.
    pub step_count: u64,
    /// The first moment: `numel` elements of `state_dtype`; NULL if there are none.
    pub exp_avg: *mut c_void,
    /// The second moment, likewise.
    pub exp_avg_sq: *mut c_void,
    /// The f32 master copy, `numel` elements, or NULL if the tensor has none.
    pub master: *mut f32,
    /// `num_blocks` values: each block's threshold in its last step, of what the filter looks at (|first
    /// moment| for `MOFO_FILTER_MOMENTUM`). Magnitudes from there on moved, zeros never. 0 where fewer were
    /// not zero than should move, where `update_fraction` is 1, and before the first step.
    pub thresholds: *const f32,
    /// The parameter's type.
    pub param_dtype: i32,
    /// The gradient's type.
    pub grad_dtype: i32,
    /// The moments' type.
    pub state_dtype: i32,
    /// Zero.
    pub reserved: i32,
}

// SAFETY: `repr(C)`, `Copy`, no padding: 8 × 8 + 4 × 4 = 80 bytes (asserted below).
unsafe impl OutputStruct for mofo_tensor_info {
    const NAME: &'static str = "mofo_tensor_info";
    const VERSION_1_SIZE: u64 = 80;
}

const _: () = assert!(size_of::<mofo_tensor_info>() == 80);

/// The memory that a tensor will need, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct mofo_state_sizes {
    /// Of the first moment: what `mofo_tensor.exp_avg` must have room for.
    pub exp_avg: u64,
    /// Of the second moment.
    pub exp_avg_sq: u64,
    /// Of the master copy; 0 if the tensor needs none.
    pub master: u64,
    /// What `mofo_add_tensor` will allocate: the buffers above that the caller does not bring, the
    /// distances kept between them, thresholds and the name.
    pub allocated: u64,
    /// What a step of this tensor alone needs besides, at most: shared by all tensors of an optimizer.
    pub scratch: u64,
}

// SAFETY: `repr(C)`, `Copy`, no padding: 8 × 5 = 40 bytes (asserted below).
unsafe impl OutputStruct for mofo_state_sizes {
    const NAME: &'static str = "mofo_state_sizes";
    const VERSION_1_SIZE: u64 = 40;
}

const _: () = assert!(size_of::<mofo_state_sizes>() == 40);

/// Writes how much memory a tensor will need in an optimizer with these options, before anything is
/// allocated. The tensor's name is not looked at, nor are `param` and `grad`; of `exp_avg`, `exp_avg_sq`
/// and `master` only whether they are NULL.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT` for a value out of range.
///
/// # Safety
///
/// `options` and `tensor` are NULL or point to initialised structs, `sizes` is NULL or points to `size`
/// writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_state_size(
    options: *const mofo_options,
    tensor: *const mofo_tensor,
    sizes: *mut mofo_state_sizes,
    size: u64,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise about `options`.
        let options = unsafe { read_options(options)? };
        // SAFETY: the caller's promise about `tensor`.
        let c = unsafe { read(tensor)? };
        check_output(sizes, size)?;
        let name = if c.name.is_null() {
            ""
        } else {
            // SAFETY: NUL-terminated, as `tensor` is initialised (the caller's promise).
            unsafe { read_name("name", c.name)? }
        };
        let spec = tensor_spec(name, &c)?;
        let caller = [
            !c.exp_avg.is_null(),
            !c.exp_avg_sq.is_null(),
            !c.master.is_null(),
        ];
        let found = state_size(&options, &spec, caller)?;
        let found = mofo_state_sizes {
            exp_avg: found.exp_avg,
            exp_avg_sq: found.exp_avg_sq,
            master: found.master,
            allocated: found.allocated,
            scratch: found.scratch,
        };
        // SAFETY: `sizes` was checked above and has room for `size` bytes (the caller's promise).
        unsafe { write(found, sizes, size) };
        Ok(())
    })
}

/// Writes what the library keeps for a tensor to `*info`; `size` is `sizeof *info`.
///
/// Errors: `MOFO_ERROR_NOT_FOUND`.
///
/// # Safety
///
/// `optimizer` is NULL or alive, `info` is NULL or points to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_tensor_state(
    optimizer: *mut mofo_optimizer,
    index: u64,
    info: *mut mofo_tensor_info,
    size: u64,
) -> i32 {
    let ask = |optimizer: &mut Optimizer| {
        check_output(info, size)?;
        let state = optimizer.tensor_state(index)?;
        let found = mofo_tensor_info {
            name: state.name.as_ptr(),
            numel: state.numel,
            num_blocks: state.num_blocks,
            step_count: state.step_count,
            exp_avg: state.exp_avg.cast(),
            exp_avg_sq: state.exp_avg_sq.cast(),
            master: state.master,
            thresholds: state.thresholds_start,
            param_dtype: state.param_dtype.number(),
            grad_dtype: state.grad_dtype.number(),
            state_dtype: state.state_dtype.number(),
            reserved: 0,
        };
        // SAFETY: `info` was checked above and has room for `size` bytes (the caller's promise).
        unsafe { write(found, info, size) };
        Ok(())
    };
    // SAFETY: the caller's promise about `optimizer`.
    unsafe { with_optimizer(optimizer, ask) }
}

/// Sets how many steps a tensor's moments have seen: the next step is number `step_count + 1`. With 0 the
/// next step starts the moments at zero and the master copy from the parameter. Otherwise the moments, and
/// the master copy if there is one, are taken as they now lie in memory: restore all of them through the
/// pointers of `mofo_tensor_state` first.
///
/// Errors: `MOFO_ERROR_NOT_FOUND`, `MOFO_ERROR_INVALID_ARGUMENT` above 2^63 - 1.
///
/// # Safety
///
/// `optimizer` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_set_step_count(
    optimizer: *mut mofo_optimizer,
    index: u64,
    step_count: u64,
) -> i32 {
    // SAFETY: the caller's promise about `optimizer`.
    unsafe {
        with_optimizer(optimizer, |optimizer| {
            optimizer.set_step_count(index, step_count)
        })
    }
}
