//! `mofo_save`, `mofo_load`, and the same with memory.

use std::ffi::{CStr, c_char, c_void};
use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::mem::size_of;
use std::path::Path;

use super::enums::Number;
use super::optimizer::{mofo_optimizer, with_optimizer};
use super::panic::guard;
use super::structs::{
    InputStruct, OutputStruct, check_output, check_pointer, initialise, read, write,
};
use crate::checkpoint::{LoadReport, Scope};
use crate::error::{Result, fail};
use crate::optimizer::Optimizer;

/// What a load has found.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct mofo_load_report {
    /// Tensors whose state was taken from the checkpoint.
    pub tensors_loaded: u64,
    /// Tensors of the optimizer that the checkpoint has not: they are as they were.
    pub tensors_missing: u64,
    /// Tensors of the checkpoint that the optimizer has not.
    pub tensors_ignored: u64,
}

// SAFETY: `repr(C)`, `Copy`, no padding: 8 × 3 = 24 bytes (asserted below).
unsafe impl OutputStruct for mofo_load_report {
    const NAME: &'static str = "mofo_load_report";
    const VERSION_1_SIZE: u64 = 24;
}

const _: () = assert!(size_of::<mofo_load_report>() == 24);

/// How to load. Fill it with `mofo_load_args_init`, then change what should differ.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)]
pub struct mofo_load_args {
    /// Set by `mofo_load_args_init`: the size of the struct that the caller was compiled with.
    pub struct_size: u64,
    /// 1: the checkpoint may have tensors more or fewer than the optimizer. Those that both have are loaded; a tensor
    /// that the checkpoint has not stays as it is, and what the optimizer has not is ignored, and not even read. 0
    /// (default): both must have the same tensors.
    pub partial: i32,
    /// Zero.
    pub reserved: i32,
    /// Where to write what was found, or NULL (default).
    pub report: *mut mofo_load_report,
    /// `sizeof *report`; not looked at if `report` is NULL.
    pub report_size: u64,
    /// Where to write which tensors were loaded, or NULL (default): at the index of a tensor 1 if it was, else 0.
    pub loaded: *mut u8,
    /// How many bytes `loaded` has: at least as many as tensors were added, those that were removed included.
    pub num_loaded: u64,
}

// SAFETY: `repr(C)`, starts with a u64, no padding: 8 + 4 × 2 + 8 × 4 = 48 bytes (asserted below). Integers and raw
// pointers have no invalid bit patterns.
unsafe impl InputStruct for mofo_load_args {
    const NAME: &'static str = "mofo_load_args";
    const VERSION_1_SIZE: u64 = 48;

    fn defaults() -> Self {
        Self {
            struct_size: size_of::<Self>() as u64,
            partial: 0,
            reserved: 0,
            report: std::ptr::null_mut(),
            report_size: 0,
            loaded: std::ptr::null_mut(),
            num_loaded: 0,
        }
    }
}

const _: () = assert!(size_of::<mofo_load_args>() == 48);

/// Fills `*args` with the defaults; `size` is `sizeof *args`.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT` if `args` is NULL or `size` is not that of a `mofo_load_args`.
///
/// # Safety
///
/// `args` is NULL or points to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_load_args_init(args: *mut mofo_load_args, size: u64) -> i32 {
    // SAFETY: the caller's promise is that of `initialise`.
    guard(|| unsafe { initialise(args, size) })
}

/// Writes the optimizer's state to a file: moments, master copies, step counts and the seed, as safetensors
/// (docs/checkpoints.md describes the format). Parameters are yours to save. `path` is UTF-8 on Windows, elsewhere as
/// the system has it.
///
/// A file that is already there is replaced as a whole: a new one is written beside it (`.NAME.mofo-0.tmp`), brought to
/// the disk and renamed. If anything before that fails, or the process dies, the old one stays; what a dead process
/// has left beside it, the next save removes. (Last, the folder is synced: if that fails, the message says so, and the
/// new file is there.) What is there and not a regular file is not replaced. No second copy of the state is made. On
/// CUDA this waits for the steps that were taken, but not for those replayed from a graph: wait for these first.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT` for a NULL or an empty path, `MOFO_ERROR_IO` if the system cannot write the
/// file, `MOFO_ERROR_INVALID_STATE` after a load that broke off half-way, `MOFO_ERROR_OUT_OF_MEMORY`,
/// `MOFO_ERROR_CUDA`.
///
/// # Safety
///
/// `optimizer` is NULL or alive, `path` is NULL or ends in a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_save(optimizer: *mut mofo_optimizer, path: *const c_char) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { with_optimizer(optimizer, |optimizer| optimizer.save(read_path(path)?)) }
}

/// Takes the state from a file that `mofo_save` wrote, into an optimizer to which the same tensors were added. With the
/// same parameters, options and gradients, training then goes on with the same bits as if it had never stopped, also
/// on another device.
///
/// Tensors are matched by name, in any order; the file must have all of the optimizer's, with as many entries and
/// moments of the same type, and no others. The seed is taken from the file; hyper-parameters, overrides and numbers of
/// blocks stay as they were set here. Where a tensor has a master copy and the file has none for it, the master starts
/// from the parameter at the next step. Thresholds are those of the next step, once it was taken. On CUDA this waits as
/// `mofo_save` does.
///
/// The whole file is checked before anything is changed, and then read once more. Only if that fails (the disk or the
/// device, or somebody changed the file meanwhile) moments are lost: the message says so, and the optimizer then
/// refuses to step and to save, with `MOFO_ERROR_INVALID_STATE`, until a load succeeds.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT` for a NULL or an empty path, `MOFO_ERROR_IO` if the system cannot read the
/// file, `MOFO_ERROR_CHECKPOINT` if it is damaged or no checkpoint of these tensors, `MOFO_ERROR_OUT_OF_MEMORY`,
/// `MOFO_ERROR_CUDA`.
///
/// # Safety
///
/// `optimizer` is NULL or alive, `path` is NULL or ends in a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_load(optimizer: *mut mofo_optimizer, path: *const c_char) -> i32 {
    // SAFETY: the caller's promise; NULL is fine for the arguments.
    unsafe { mofo_load_with(optimizer, path, std::ptr::null()) }
}

/// As `mofo_load`, as far as `args` says; a NULL `args` is all defaults, and `mofo_load`.
///
/// With `args->partial` the tensors that the file and the optimizer both have are loaded, matched by name; what is
/// wrong with one of these is an error as in `mofo_load`. The seed is taken from the file.
///
/// Errors: as for `mofo_load`; `MOFO_ERROR_CHECKPOINT` also if file and optimizer have tensors, but none in common;
/// `MOFO_ERROR_INVALID_STATE` for a file without all tensors after a load that broke off half-way.
///
/// # Safety
///
/// `optimizer` is NULL or alive, `path` is NULL or ends in a NUL, `args` is NULL or points to an initialised struct
/// whose pointers are valid and to none of the optimizer's buffers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_load_with(
    optimizer: *mut mofo_optimizer,
    path: *const c_char,
    args: *const mofo_load_args,
) -> i32 {
    let load = |optimizer: &mut Optimizer, scope| {
        // SAFETY: the caller's promise about `path`.
        optimizer.load_file(unsafe { read_path(path)? }, scope)
    };
    // SAFETY: the caller's promise.
    unsafe { load_with(optimizer, args, load) }
}

/// Writes to `*bytes` how many bytes `mofo_save_to_memory` would write now. It changes with steps and tensors.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT`, `MOFO_ERROR_INVALID_STATE`, `MOFO_ERROR_OUT_OF_MEMORY`, `MOFO_ERROR_CUDA`.
///
/// # Safety
///
/// `optimizer` is NULL or alive, `bytes` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_save_size(optimizer: *mut mofo_optimizer, bytes: *mut u64) -> i32 {
    // SAFETY: the caller's promise; `bytes` is not NULL and aligned (checked).
    unsafe {
        with_optimizer(optimizer, |optimizer| {
            check_pointer("bytes", bytes)?;
            bytes.write(optimizer.save_size()?);
            Ok(())
        })
    }
}

/// Writes what `mofo_save` writes to `buffer`, which has `size` bytes and overlaps none of the optimizer's buffers, and
/// to `*written` how many bytes that were. On CUDA too the buffer is host memory.
///
/// Errors: `MOFO_ERROR_INVALID_ARGUMENT` also if `size` is below what `mofo_save_size` says: then nothing is written;
/// others as for `mofo_save`.
///
/// # Safety
///
/// `optimizer` is NULL or alive, `buffer` is NULL or has `size` writable bytes, `written` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_save_to_memory(
    optimizer: *mut mofo_optimizer,
    buffer: *mut c_void,
    size: u64,
    written: *mut u64,
) -> i32 {
    // SAFETY: the caller's promise; `written` is not NULL and aligned (checked).
    unsafe {
        with_optimizer(optimizer, |optimizer| {
            let start = buffer.cast::<u8>();
            check_pointer("buffer", start)?;
            check_pointer("written", written)?;
            let mut sink = CallersMemory {
                start,
                size,
                position: 0,
            };
            written.write(optimizer.save_if_it_fits(&mut sink, size)?);
            Ok(())
        })
    }
}

/// As `mofo_load`, from the `size` bytes at `buffer`, which are all of what `mofo_save_to_memory` wrote or `mofo_save`
/// put into a file, and overlap none of the optimizer's buffers.
///
/// Errors: as for `mofo_load`.
///
/// # Safety
///
/// `optimizer` is NULL or alive, `buffer` is NULL or has `size` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_load_from_memory(
    optimizer: *mut mofo_optimizer,
    buffer: *const c_void,
    size: u64,
) -> i32 {
    // SAFETY: the caller's promise; NULL is fine for the arguments.
    unsafe { mofo_load_from_memory_with(optimizer, buffer, size, std::ptr::null()) }
}

/// As `mofo_load_with`, from memory as `mofo_load_from_memory`.
///
/// Errors: as for `mofo_load_with`.
///
/// # Safety
///
/// `optimizer` is NULL or alive, `buffer` is NULL or has `size` readable bytes, `args` is as for `mofo_load_with` and
/// points to nothing within the buffer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mofo_load_from_memory_with(
    optimizer: *mut mofo_optimizer,
    buffer: *const c_void,
    size: u64,
    args: *const mofo_load_args,
) -> i32 {
    let load = |optimizer: &mut Optimizer, scope| {
        let start = buffer.cast::<u8>();
        check_pointer("buffer", start)?;
        if size > isize::MAX as u64 {
            fail!(
                InvalidArgument,
                "size is {size}; no buffer has more than {} bytes",
                isize::MAX
            );
        }
        // SAFETY: not NULL (checked above), readable and not written to during the call (the caller's promise).
        let bytes = unsafe { std::slice::from_raw_parts(start, size as usize) };
        optimizer.load_source(&mut Cursor::new(bytes), scope)
    };
    // SAFETY: the caller's promise.
    unsafe { load_with(optimizer, args, load) }
}

/// Loads as the caller's arguments say, and writes what they ask for.
///
/// # Safety
///
/// `optimizer` is NULL or alive; `args` is NULL or points to an initialised struct whose pointers are valid.
unsafe fn load_with(
    optimizer: *mut mofo_optimizer,
    args: *const mofo_load_args,
    load: impl FnOnce(&mut Optimizer, Scope) -> Result<LoadReport>,
) -> i32 {
    let load = |optimizer: &mut Optimizer| {
        let args = if args.is_null() {
            mofo_load_args::defaults()
        } else {
            // SAFETY: the caller's promise about `args`.
            unsafe { read(args)? }
        };
        let scope = if bool::read("partial", args.partial)? {
            Scope::Partial
        } else {
            Scope::Whole
        };
        if args.reserved != 0 {
            fail!(
                InvalidArgument,
                "reserved is {}; it must be 0",
                args.reserved
            );
        }
        if !args.report.is_null() {
            check_output(args.report, args.report_size)?;
        }
        let added = optimizer.tensors.len();
        let bytes = added as u64..=isize::MAX as u64;
        if !args.loaded.is_null() && !bytes.contains(&args.num_loaded) {
            fail!(
                InvalidArgument,
                "num_loaded is {}; {added} tensors were added, and each needs a byte of memory",
                args.num_loaded
            );
        }
        let report = load(optimizer, scope)?;
        if !args.loaded.is_null() {
            // SAFETY: `num_loaded` bytes are writable (the caller's promise); the indices are below it (checked above).
            unsafe {
                args.loaded.write_bytes(0, args.num_loaded as usize);
                for &index in &report.loaded {
                    args.loaded.add(index as usize).write(1);
                }
            }
        }
        if !args.report.is_null() {
            let report = mofo_load_report {
                tensors_loaded: report.loaded.len() as u64,
                tensors_missing: report.missing.len() as u64,
                tensors_ignored: report.ignored.len() as u64,
            };
            // SAFETY: `report` was checked above and has room for `report_size` bytes (the caller's promise).
            unsafe { write(report, args.report, args.report_size) };
        }
        Ok(())
    };
    // SAFETY: the caller's promise about `optimizer`.
    unsafe { with_optimizer(optimizer, load) }
}

/// # Safety
///
/// `path` is NULL or ends in a NUL, and stays as it is as long as the result is used.
unsafe fn read_path<'a>(path: *const c_char) -> Result<&'a Path> {
    check_pointer("path", path)?;
    // SAFETY: not NULL (checked above); the rest is the caller's promise.
    let path = unsafe { CStr::from_ptr(path) };
    if path.is_empty() {
        fail!(InvalidArgument, "path is empty");
    }
    #[cfg(unix)]
    {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        Ok(Path::new(OsStr::from_bytes(path.to_bytes())))
    }
    #[cfg(not(unix))]
    match path.to_str() {
        Ok(path) => Ok(Path::new(path)),
        Err(_) => fail!(InvalidArgument, "path is not UTF-8"),
    }
}

/// A buffer of the caller's, which need not hold any values yet.
struct CallersMemory {
    /// `size` writable bytes.
    start: *mut u8,
    size: u64,
    position: u64,
}

impl Write for CallersMemory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.size.saturating_sub(self.position);
        let count = (bytes.len() as u64).min(room) as usize;
        // SAFETY: `count` bytes from `position` on are within the buffer. It overlaps nothing of ours (the caller's promise).
        unsafe {
            let to = self.start.add(self.position as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, count);
        }
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for CallersMemory {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
        };
        match to {
            Some(to) if to <= self.size => self.position = to,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(self.position)
    }
}
