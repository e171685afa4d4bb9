//! The wall that no panic passes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::status::{MOFO_OK, fail};
use crate::error::{Error, ErrorKind, Result};

/// Runs a call; its error, or a panic, becomes a status and this thread's last error.
pub(super) fn guard(call: impl FnOnce() -> Result<()>) -> i32 {
    let mut call = Some(call);
    catch(&mut || {
        if let Some(call) = call.take() {
            call()?;
        }
        Ok(MOFO_OK)
    })
    .unwrap_or_else(|error| fail(&error))
}

/// What a call gives; a panic becomes an error. A function of its own, not a part of each call, because it is long.
///
/// Whoever calls it makes sure that nothing which the call borrows is used after a panic.
#[inline(never)]
pub(super) fn catch(call: &mut dyn FnMut() -> Result<i32>) -> Result<i32> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Internal,
            format_args!("a panic inside the library; please report it"),
        ))
    })
}
