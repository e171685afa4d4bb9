//! Who runs the tasks of a step.

mod callback;
mod executor;
mod pool;
mod registry;

pub(super) use executor::{Executor, Incomplete, width};
