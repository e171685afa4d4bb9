//! The loops of a step. Each is written once, over a vector and the buffers' element types, as what is done with a tile of
//! entries; `table.rs` compiles that for every instruction set. What leads from tile to tile is compiled once.

mod adamw;
mod apply;
mod arithmetic;
mod collect;
mod decay;
mod keys;
mod norm;
mod pointers;
mod table;
#[cfg(test)]
mod tests;
mod tiles;
mod tiny;

pub(super) use adamw::{Entries, Thresholds, adamw, step_stored};
pub(super) use apply::apply;
pub(super) use collect::{Bracket, Candidates, collect, collect_stored};
pub(super) use decay::decay;
pub(super) use keys::{KeyRange, LINE, Sampled, keys, lines};
pub(super) use norm::sum_of_squares;
pub(super) use table::{Kernels, has_master};
pub(super) use tiny::{TINY, is_tiny};
