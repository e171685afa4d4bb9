//! `mofo_save`, `mofo_load`, and the same with memory.

use std::ffi::{CStr, c_char, c_void};
use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::path::Path;

use super::optimizer::{mofo_optimizer, with_optimizer};
use super::structs::check_pointer;
use crate::error::{Result, fail};

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
    // SAFETY: the caller's promise.
    unsafe { with_optimizer(optimizer, |optimizer| optimizer.load(read_path(path)?)) }
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
    // SAFETY: the caller's promise about `optimizer`.
    unsafe {
        with_optimizer(optimizer, |optimizer| {
            let start = buffer.cast::<u8>();
            check_pointer("buffer", start)?;
            if size > isize::MAX as u64 {
                fail!(
                    InvalidArgument,
                    "size is {size}; no buffer has more than {} bytes",
                    isize::MAX
                );
            }
            // Not NULL (checked above), readable and not written to during the call (the caller's promise).
            let bytes = std::slice::from_raw_parts(start, size as usize);
            optimizer.load_from(&mut Cursor::new(bytes))
        })
    }
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
