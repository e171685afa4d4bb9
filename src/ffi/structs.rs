//! How versioned structs cross the border.
//!
//! An input struct says its own size in its first field, an output struct's size is passed beside it. So a
//! program and a library of different versions can still talk: fields that one side does not know are zero.

use std::mem::{align_of, size_of};

use crate::error::{Result, fail};

/// No version of any struct is larger; a greater `struct_size` is garbage, and is not followed.
const MAX_STRUCT_SIZE: u64 = 4096;

/// A `repr(C)` struct that C programs fill in, of integers, floats and raw pointers only.
///
/// # Safety
///
/// The type is `repr(C)`, has no padding, starts with a `u64` that holds the struct's size, and every bit
/// pattern is a valid value of it.
pub(super) unsafe trait InputStruct: Copy {
    /// The C name.
    const NAME: &'static str;
    /// The size in the first published version.
    const VERSION_1_SIZE: u64;
    /// The defaults; `struct_size` is that of this version.
    fn defaults() -> Self;
}

/// A `repr(C)` struct that the library fills in.
///
/// # Safety
///
/// The type is `repr(C)`, `Copy` and has no padding.
pub(super) unsafe trait OutputStruct: Copy {
    /// The C name.
    const NAME: &'static str;
    /// The size in the first published version.
    const VERSION_1_SIZE: u64;
}

fn check_size(name: &str, size: u64, smallest: u64) -> Result<()> {
    if size < smallest || size > MAX_STRUCT_SIZE {
        fail!(
            InvalidArgument,
            "{name}: the struct's size is {size}; it must be at least {smallest} and at most \
             {MAX_STRUCT_SIZE} bytes"
        );
    }
    Ok(())
}

/// Refuses NULL and misaligned pointers to a value of type `T`.
pub(super) fn check_pointer<T>(name: &str, pointer: *const T) -> Result<()> {
    if pointer.is_null() {
        fail!(InvalidArgument, "{name} is NULL");
    }
    if !pointer.is_aligned() {
        fail!(
            InvalidArgument,
            "{name} is {pointer:p}; it must be a multiple of {}",
            align_of::<T>()
        );
    }
    Ok(())
}

/// Writes the defaults to `*out`, with `size` as its `struct_size`; what lies beyond this version's fields
/// becomes zero.
///
/// # Safety
///
/// `out` is NULL or points to `size` writable bytes.
pub(super) unsafe fn initialise<T: InputStruct>(out: *mut T, size: u64) -> Result<()> {
    check_pointer(T::NAME, out)?;
    check_size(T::NAME, size, T::VERSION_1_SIZE)?;
    let defaults = T::defaults();
    // SAFETY: `out` is not NULL (checked above) and has room for `size` bytes (the caller's promise), of
    // which at most `size` are written; every `InputStruct` starts with its size, a u64.
    unsafe {
        write_prefix(&defaults, out.cast(), size);
        out.cast::<u64>().write(size);
    }
    Ok(())
}

/// Reads a caller's struct. Fields that its version lacks get their defaults; bytes that this version does
/// not know must be zero.
///
/// # Safety
///
/// `pointer` is NULL or points to a readable `T` of some version, of which `struct_size` bytes are readable.
pub(super) unsafe fn read<T: InputStruct>(pointer: *const T) -> Result<T> {
    check_pointer(T::NAME, pointer)?;
    // SAFETY: not NULL and aligned (checked above), and readable (the caller's promise).
    let size = unsafe { pointer.cast::<u64>().read() };
    check_size(T::NAME, size, T::VERSION_1_SIZE)?;
    let known = size_of::<T>() as u64;
    for offset in known..size {
        // SAFETY: `offset` is below `struct_size`, and that many bytes are readable (the caller's promise).
        if unsafe { pointer.cast::<u8>().add(offset as usize).read() } != 0 {
            fail!(
                InvalidArgument,
                "{}: the byte at offset {offset} is set, but this version of the library knows only \
                 {known} bytes of the struct",
                T::NAME
            );
        }
    }
    let mut value = T::defaults();
    // SAFETY: at most `size_of::<T>()` bytes are copied into `value`, and at most `struct_size` read; every
    // bit pattern is a valid `T` (the trait's promise).
    unsafe {
        std::ptr::copy_nonoverlapping(
            pointer.cast::<u8>(),
            (&raw mut value).cast::<u8>(),
            size.min(known) as usize,
        );
    }
    Ok(value)
}

/// Refuses an output struct that is NULL or smaller than its first version. Called before the work starts.
pub(super) fn check_output<T: OutputStruct>(out: *mut T, size: u64) -> Result<()> {
    check_pointer(T::NAME, out)?;
    check_size(T::NAME, size, T::VERSION_1_SIZE)
}

/// Writes `value` to `*out`, as far as the caller's version goes; bytes beyond this version become zero.
///
/// # Safety
///
/// `check_output(out, size)` succeeded, and `out` points to `size` writable bytes.
pub(super) unsafe fn write<T: OutputStruct>(value: T, out: *mut T, size: u64) {
    // SAFETY: the caller's promise is that of `write_prefix`.
    unsafe { write_prefix(&value, out.cast(), size) };
}

/// Copies as much of `value` as fits into `size` bytes, and zeroes the rest.
///
/// # Safety
///
/// `out` points to `size` writable bytes.
unsafe fn write_prefix<T: Copy>(value: &T, out: *mut u8, size: u64) {
    let size = size as usize;
    let known = size_of::<T>().min(size);
    // SAFETY: `known` is at most the size of both sides, and `known + (size - known)` bytes are writable.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const *value).cast::<u8>(), out, known);
        out.add(known).write_bytes(0, size - known);
    }
}
