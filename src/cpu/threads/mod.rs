//! Who runs the tasks of a step.

mod callback;
mod executor;
mod pool;
mod registry;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) use executor::{Executor, Incomplete, width};

/// A panic of a task reaches the step that it belongs to in another way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
