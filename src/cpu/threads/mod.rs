//! Who runs the tasks of a step.

mod callback;
mod executor;
mod pool;

pub(super) use executor::{Executor, Incomplete, width};
