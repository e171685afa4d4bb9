//! Status codes, and the text of this thread's last error.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char};

use crate::error::{Error, ErrorKind};

/// The call did what it says.
pub const MOFO_OK: i32 = 0;
/// A normal outcome of `mofo_step`: `skip_nonfinite` is on and a gradient holds a NaN or an infinity, so
/// the step was left out. Parameters, moments and step counters are as before.
pub const MOFO_SKIPPED: i32 = 1;
/// An argument is NULL, not finite, out of its range, of an unknown enum value or of a wrong
/// `struct_size`; or a name is missing, empty, not UTF-8 or already taken.
pub const MOFO_ERROR_INVALID_ARGUMENT: i32 = -1;
/// A buffer is misaligned for its element, overlaps another one, wraps around the address space, or is
/// not bound where the step needs it.
pub const MOFO_ERROR_INVALID_BUFFER: i32 = -2;
/// No tensor has that index or that name (any more).
pub const MOFO_ERROR_NOT_FOUND: i32 = -3;
/// The call makes no sense in the optimizer's present state, for example a step before any tensor was
/// added.
pub const MOFO_ERROR_INVALID_STATE: i32 = -4;
/// The system gave no memory, or no thread.
pub const MOFO_ERROR_OUT_OF_MEMORY: i32 = -5;
/// This build or this machine cannot do it: a CPU tier that the processor lacks, a device that was not
/// compiled in.
pub const MOFO_ERROR_UNSUPPORTED: i32 = -6;
/// A number derived from the hyper-parameters (or from the gradient norm) is not a finite 32-bit float.
pub const MOFO_ERROR_NOT_FINITE: i32 = -7;
/// The engine's `parallel_for` returned before it had run every task.
pub const MOFO_ERROR_PARALLEL_FOR: i32 = -8;
/// A call of the CUDA driver failed; the message has CUDA's own name and text of it. It may be of an earlier kernel,
/// of the engine's, that broke the context.
pub const MOFO_ERROR_CUDA: i32 = -9;
/// What was to be loaded is cut short, damaged, of another version, or no checkpoint of these tensors.
pub const MOFO_ERROR_CHECKPOINT: i32 = -10;
/// The system cannot read or write a file; the message has its reason.
pub const MOFO_ERROR_IO: i32 = -11;
/// A defect in the library. The optimizer refuses every further call, and a step may have been left half
/// done; destroy it.
pub const MOFO_ERROR_INTERNAL: i32 = -100;

/// Every status, its name and, for errors, the kind it stands for: the one table.
const STATUSES: &[(i32, &CStr, Option<ErrorKind>)] = &[
    (MOFO_OK, c"MOFO_OK", None),
    (MOFO_SKIPPED, c"MOFO_SKIPPED", None),
    (
        MOFO_ERROR_INVALID_ARGUMENT,
        c"MOFO_ERROR_INVALID_ARGUMENT",
        Some(ErrorKind::InvalidArgument),
    ),
    (
        MOFO_ERROR_INVALID_BUFFER,
        c"MOFO_ERROR_INVALID_BUFFER",
        Some(ErrorKind::InvalidBuffer),
    ),
    (
        MOFO_ERROR_NOT_FOUND,
        c"MOFO_ERROR_NOT_FOUND",
        Some(ErrorKind::NotFound),
    ),
    (
        MOFO_ERROR_INVALID_STATE,
        c"MOFO_ERROR_INVALID_STATE",
        Some(ErrorKind::InvalidState),
    ),
    (
        MOFO_ERROR_OUT_OF_MEMORY,
        c"MOFO_ERROR_OUT_OF_MEMORY",
        Some(ErrorKind::OutOfMemory),
    ),
    (
        MOFO_ERROR_UNSUPPORTED,
        c"MOFO_ERROR_UNSUPPORTED",
        Some(ErrorKind::Unsupported),
    ),
    (
        MOFO_ERROR_NOT_FINITE,
        c"MOFO_ERROR_NOT_FINITE",
        Some(ErrorKind::NotFinite),
    ),
    (
        MOFO_ERROR_PARALLEL_FOR,
        c"MOFO_ERROR_PARALLEL_FOR",
        Some(ErrorKind::ParallelFor),
    ),
    (MOFO_ERROR_CUDA, c"MOFO_ERROR_CUDA", Some(ErrorKind::Cuda)),
    (
        MOFO_ERROR_CHECKPOINT,
        c"MOFO_ERROR_CHECKPOINT",
        Some(ErrorKind::Checkpoint),
    ),
    (MOFO_ERROR_IO, c"MOFO_ERROR_IO", Some(ErrorKind::Io)),
    (
        MOFO_ERROR_INTERNAL,
        c"MOFO_ERROR_INTERNAL",
        Some(ErrorKind::Internal),
    ),
];

/// The C status of an error.
pub(super) fn status_of(kind: ErrorKind) -> i32 {
    STATUSES
        .iter()
        .find(|entry| entry.2 == Some(kind))
        .map_or(MOFO_ERROR_INTERNAL, |entry| entry.0)
}

/// The name of a status, for example `"MOFO_ERROR_INVALID_ARGUMENT"`; `"unknown status"` for a number
/// that is none. The text is static.
#[unsafe(no_mangle)]
pub extern "C" fn mofo_status_name(status: i32) -> *const c_char {
    STATUSES
        .iter()
        .find(|entry| entry.0 == status)
        .map_or(c"unknown status", |entry| entry.1)
        .as_ptr()
}

/// What went wrong in this thread's last failing call: the tensor's name, the value and the allowed
/// range. Never NULL; empty before the first failure. The text stays valid, and the same, until the next
/// failing call of this thread.
#[unsafe(no_mangle)]
pub extern "C" fn mofo_last_error() -> *const c_char {
    LAST_ERROR.with(|text| text.get().cast::<c_char>().cast_const())
}

/// Room for one message and its terminating NUL; longer ones are cut.
const LAST_ERROR_BYTES: usize = 1024;

thread_local! {
    /// A fixed buffer, because reporting that memory has run out must not need memory.
    static LAST_ERROR: UnsafeCell<[u8; LAST_ERROR_BYTES]> =
        const { UnsafeCell::new([0; LAST_ERROR_BYTES]) };
}

/// Stores the error's message for `mofo_last_error` and returns its status.
pub(super) fn fail(error: &Error) -> i32 {
    let message = error.message();
    let mut length = message.len().min(LAST_ERROR_BYTES - 1);
    while !message.is_char_boundary(length) {
        length -= 1;
    }
    LAST_ERROR.with(|text| {
        // SAFETY: the buffer belongs to this thread alone, and nothing in this closure calls out, so no
        // other reference to it exists; C readers hold a pointer that the next failure may overwrite,
        // which is what `mofo_last_error` promises.
        let text = unsafe { &mut *text.get() };
        for (to, from) in text.iter_mut().zip(&message.as_bytes()[..length]) {
            // A NUL inside the message (it may quote a name) would end the C string early.
            *to = if *from == 0 { b'?' } else { *from };
        }
        text[length] = 0;
    });
    status_of(error.kind())
}
