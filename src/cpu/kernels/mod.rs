//! The loops of a step. Each is written once, over a vector and the buffers' element types, as what is done with a tile of
//! entries; `tier.rs` compiles that for every tier. What leads from tile to tile is compiled once.

mod decay;
mod keys;
mod norm;
mod pass;
mod settle;
mod step;
mod walk;

pub(super) use decay::Decay;
pub(super) use keys::{
    Bracket, Collect, Collected, Keys, collect, keys, lines, lines_by_momentum, sift,
};
pub(super) use norm::{add_squares, sum_of_squares};
pub(super) use pass::Pass;
pub(super) use settle::{Settle, settle};
pub(super) use step::{Bounds, Notes, Step, StepAndNote, step, step_and_note};
pub(super) use walk::{Place, Tile, Widen, widen};
