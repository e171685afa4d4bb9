//! The loops of a step, each written once over a vector and the buffers' element types.

mod keys;
mod master;
mod norm;
mod pass;
mod settle;
mod step;
mod walk;

pub(super) use keys::{Bracket, Collected, collect, keys, lines, sift};
pub(super) use master::start_master;
pub(super) use norm::sum_of_squares;
pub(super) use settle::settle;
pub(super) use step::{Bounds, Notes, step, step_and_note};
