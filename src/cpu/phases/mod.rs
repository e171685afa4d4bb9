//! The four phases of a step: estimate, collect, decide, apply.
//!
//! A sample brackets the threshold of each block. One pass over gradients and moments updates the moments, lists the
//! entries that may move, and counts those that certainly do. From that the exact threshold is found; and only then the
//! listed entries that reach it move. Nothing ever moves back.
//!
//! The estimate may fail: the threshold lies outside of the bracket, or the bracket holds more than there is room for.
//! Then candidates are collected again, from the stored moments, by a better bracket; and if that fails, too, the digits
//! of all keys are counted, which assumes nothing.

mod apply;
mod batch;
mod collect;
mod decide;
mod estimate;
mod lists;
mod order;
mod plan;
mod small;
#[cfg(test)]
mod tests;

pub(super) use plan::{LargeBlocks, bytes_bound};
pub(super) use small::{SMALL_BLOCK, SmallBlocks};

use super::kernels::Bracket;
use crate::test_paths::Paths;

/// A range of entries of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// The segments of a block.
fn segments(block: Range) -> impl Iterator<Item = Range> {
    (0..block.len.div_ceil(lists::SEGMENT)).map(move |i| segment(block, i))
}

/// The `i`-th segment of a block.
fn segment(block: Range, i: u64) -> Range {
    let offset = i * lists::SEGMENT;
    Range {
        start: block.start + offset,
        len: lists::SEGMENT.min(block.len - offset),
    }
}

/// The bracket that is used in place of a sampled one.
fn forced(bracket: Bracket, paths: Paths) -> Bracket {
    let (low, high) = paths.bracket((bracket.low, bracket.high));
    Bracket { low, high }
}
