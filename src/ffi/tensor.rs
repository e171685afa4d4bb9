//! `mofo_tensor`: one parameter buffer with its gradient.

use std::ffi::{CStr, c_char, c_void};
use std::mem::size_of;

use super::enums::Number;
use super::optimizer::{mofo_optimizer, with_optimizer};
use super::options::{MOFO_DTYPE_F32, MOFO_INHERIT};
use super::panic::guard;
use super::structs::{InputStruct, check_pointer, initialise, read};
use crate::config::TensorSpec;
use crate::error::{Error, ErrorKind, Result, fail};
use crate::optimizer::{Buffers, Optimizer};

/// A parameter tensor. Fill it with `mofo_tensor_init`, then set at least `name` and `numel`.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct mofo_tensor {
    /// Set by `mofo_tensor_init`: the size of the struct that the caller was compiled with.
    pub struct_size: u64,
    /// UTF-8, not empty, unique within the optimizer; copied. The key of the tensor's random bits, and in
    /// checkpoints.
    pub name: *const c_char,
    /// Entries. Only their number matters, not the shape; they are contiguous. A tensor of 0, as a shard or an expert
    /// may be, takes part in every step that does not leave it out of its list, and nothing happens but that the step is
    /// counted: it has no buffers, and its pointers are not looked at. Default 0.
    pub numel: u64,
    /// Cuts the tensor into this many equal contiguous blocks, each with a share of its own that moves: for a buffer
    /// that stacks the matrices of several layers or heads. Must divide `numel`; of 0 any number from 1 on will do. Default 1.
    pub num_blocks: u64,
    /// `MOFO_DTYPE_F32` (default), `MOFO_DTYPE_F16` or `MOFO_DTYPE_BF16`.
    pub param_dtype: i32,
    /// Likewise, and independent of `param_dtype`.
    pub grad_dtype: i32,
    /// The parameter: `numel` elements that the caller owns and keeps alive until the tensor is removed,
    /// rebound or the optimizer destroyed. May be NULL (default) until `mofo_bind_tensor`.
    pub param: *mut c_void,
    /// The gradient, likewise; only read. NULL (default): no gradient, the tensor is left alone.
    pub grad: *const c_void,
    /// The update fraction of this tensor, in (0, 1], or `MOFO_INHERIT` (default). Biases and norm weights are usually given
    /// 1; the library never guesses from names.
    pub update_fraction: f64,
    /// The weight decay of this tensor, finite and at least 0, or `MOFO_INHERIT` (default).
    pub weight_decay: f64,
    /// Multiplies the learning rate for this tensor: finite, at least 0. Default 1.
    pub learning_rate_scale: f64,
    /// Steps that the caller's `exp_avg` and `exp_avg_sq` have already seen, at most 2^63 - 1. Default 0.
    pub step_count: u64,
    /// The caller's memory for the first moment, `numel` elements of `state_dtype`. NULL (default): the
    /// library allocates it. While `step_count` is 0 its content does not matter: moments start at zero.
    pub exp_avg: *mut c_void,
    /// Likewise for the second moment.
    pub exp_avg_sq: *mut c_void,
    /// Likewise for the f32 master copy, `numel` floats; only where `master_weights` is 1 and the parameter
    /// has 16 bits. While `step_count` is 0 its content does not matter: it starts as the parameter. So does
    /// a master copy that the library allocates, whatever `step_count` is. Once it has started, the
    /// parameter is its rounding: what else the engine writes to the parameter is lost, at the latest when the entry moves.
    pub master: *mut c_void,
}

// SAFETY: `repr(C)`, starts with a u64, and the fields fill it without padding: 8 × 4 + 4 × 2 + 8 × 9 = 112
// bytes (asserted below). Integers, floats and raw pointers have no invalid bit patterns.
unsafe impl InputStruct for mofo_tensor {
    const NAME: &'static str = "mofo_tensor";
    const VERSION_1_SIZE: u64 = 112;

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>() as u64,
            name: std::ptr::null(),
            numel: 0,
            num_blocks: 1,
            param_dtype: MOFO_DTYPE_F32,
            grad_dtype: MOFO_DTYPE_F32,
            param: std::ptr::null_mut(),
            grad: std::ptr::null(),
            update_fraction: MOFO_INHERIT,
            weight_decay: MOFO_INHERIT,
            learning_rate_scale: 1.0,
            step_count: 0,
            exp_avg: std::ptr::null_mut(),
            exp_avg_sq: std::ptr::null_mut(),
            master: std::ptr::null_mut(),
        }
    }
}

const _: () = assert!(size_of::<mofo_tensor>() == 112);

/// Fills `*tensor` with the defaults; `size` is `sizeof *tensor`.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT` if `tensor` is NULL or `size` is not that of a `mofo_tensor`.
///
/// # Safety
///
/// `tensor` is NULL or points to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_tensor_init(tensor: *mut mofo_tensor, size: u64) -> i32 {
    // SAFETY: the caller's promise is that of `initialise`.
    guard(|| unsafe { initialise(tensor, size) })
}

/// Adds a tensor, allocates the state that the caller does not bring, and writes its index to `*index`.
/// Indices count up from 0 and are never used again. The struct and the name may be freed afterwards; the
/// buffers are used by every step.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT` for a value out of range or a name that is taken,
/// `MOFO_ERROR_INVALID_BUFFER` for buffers that are misaligned or overlap each other (buffers of different
/// tensors are compared at the step), `MOFO_ERROR_OUT_OF_MEMORY`.
///
/// # Safety
///
/// `optimizer` is NULL or alive, `tensor` is NULL or points to an initialised struct whose buffers hold
/// `numel` elements each, `index` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_add_tensor(
    optimizer: *mut mofo_optimizer,
    tensor: *const mofo_tensor,
    index: *mut u64,
) -> i32 {
    let add = |optimizer: &mut Optimizer| {
        // SAFETY: the caller's promise about `tensor`.
        let c = unsafe { read(tensor)? };
        check_pointer("index", index)?;
        // SAFETY: a name, if not NULL, is a NUL-terminated string (the caller's promise).
        let name = unsafe { read_name("mofo_tensor.name", c.name)? };
        let spec = tensor_spec(name, &c).map_err(|error| error.in_tensor(name))?;
        let buffers = Buffers {
            param: c.param.cast(),
            grad: c.grad.cast(),
            exp_avg: c.exp_avg.cast(),
            exp_avg_sq: c.exp_avg_sq.cast(),
            master: c.master.cast(),
        };
        // SAFETY: the caller's promise about the buffers.
        let added = unsafe { optimizer.add_tensor_with_buffers(&spec, buffers)? };
        // SAFETY: `index` is not NULL and aligned (checked above), and writable (the caller's promise).
        unsafe { index.write(added) };
        Ok(())
    };
    // SAFETY: the caller's promise about `optimizer`.
    unsafe { with_optimizer(optimizer, add) }
}

/// Removes a tensor and frees what the library allocated for it. Its index is not used again.
///
/// Errors: `MOFO_ERROR_NOT_FOUND`.
///
/// # Safety
///
/// `optimizer` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_remove_tensor(optimizer: *mut mofo_optimizer, index: u64) -> i32 {
    // SAFETY: the caller's promise about `optimizer`.
    unsafe { with_optimizer(optimizer, |optimizer| optimizer.remove_tensor(index)) }
}

/// Writes the index of the tensor of that name to `*index`.
///
/// Errors: `MOFO_ERROR_NOT_FOUND`; `MOFO_ERROR_INVALID_ARGUMENT` for a NULL, empty or not UTF-8 name.
///
/// # Safety
///
/// `optimizer` is NULL or alive, `name` is NULL or a NUL-terminated string, `index` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_find_tensor(
    optimizer: *mut mofo_optimizer,
    name: *const c_char,
    index: *mut u64,
) -> i32 {
    let find = |optimizer: &mut Optimizer| {
        check_pointer("index", index)?;
        // SAFETY: the caller's promise about `name`.
        let name = unsafe { read_name("name", name)? };
        let found = optimizer.find_tensor(name)?;
        // SAFETY: `index` is not NULL and aligned (checked above), and writable (the caller's promise).
        unsafe { index.write(found) };
        Ok(())
    };
    // SAFETY: the caller's promise about `optimizer`.
    unsafe { with_optimizer(optimizer, find) }
}

/// Binds a tensor to these buffers from now on. A NULL `grad` means that there is no gradient: steps leave
/// the tensor and its step counter alone. A NULL `param` unbinds the parameter.
///
/// Errors: `MOFO_ERROR_NOT_FOUND`, `MOFO_ERROR_INVALID_BUFFER` for a buffer that is misaligned or overlaps
/// another one of this tensor. Buffers of different tensors are compared at the step, so that they may be
/// moved one after the other.
///
/// # Safety
///
/// `optimizer` is NULL or alive; the buffers are NULL or hold as many elements as the tensor, as long as
/// they are bound.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_bind_tensor(
    optimizer: *mut mofo_optimizer,
    index: u64,
    param: *mut c_void,
    grad: *const c_void,
) -> i32 {
    // SAFETY: the caller's promise about the buffers.
    let bind = |optimizer: &mut Optimizer| unsafe {
        optimizer.bind_tensor(index, param.cast(), grad.cast())
    };
    // SAFETY: the caller's promise about `optimizer`.
    unsafe { with_optimizer(optimizer, bind) }
}

pub(super) fn tensor_spec<'a>(name: &'a str, c: &mofo_tensor) -> Result<TensorSpec<'a>> {
    Ok(TensorSpec {
        name,
        numel: c.numel,
        num_blocks: c.num_blocks,
        param_dtype: Number::read("param_dtype", c.param_dtype)?,
        grad_dtype: Number::read("grad_dtype", c.grad_dtype)?,
        update_fraction: unless_inherited(c.update_fraction),
        weight_decay: unless_inherited(c.weight_decay),
        learning_rate_scale: c.learning_rate_scale,
        step_count: c.step_count,
    })
}

/// `None` for `MOFO_INHERIT`.
pub(super) fn unless_inherited(value: f64) -> Option<f64> {
    (value != MOFO_INHERIT).then_some(value)
}

/// Borrows a C string as a name.
///
/// # Safety
///
/// `name` is NULL or a NUL-terminated string that outlives the result.
pub(super) unsafe fn read_name<'a>(what: &str, name: *const c_char) -> Result<&'a str> {
    check_pointer(what, name)?;
    // SAFETY: not NULL (checked above) and NUL-terminated (the caller's promise).
    let name = unsafe { CStr::from_ptr(name) };
    let name = name.to_str().map_err(|error| {
        Error::new(
            ErrorKind::InvalidArgument,
            format_args!("{what} is not UTF-8: {error}"),
        )
    })?;
    if name.is_empty() {
        fail!(InvalidArgument, "{what} is empty");
    }
    Ok(name)
}
