//! The arrays of a checkpoint.

use crate::error::Result;
use crate::memory::{PARTS, try_with_capacity};

/// What of a tensor's state an array holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    ExpAvg,
    ExpAvgSq,
    Master,
}

impl Part {
    /// In the order in which a tensor keeps them, and in which they are hashed.
    pub(super) const ALL: [Self; PARTS] = [Self::ExpAvg, Self::ExpAvgSq, Self::Master];

    /// The array's name in the file.
    pub(super) fn key(self, tensor: &str) -> String {
        let suffix = match self {
            Self::ExpAvg => "exp_avg",
            Self::ExpAvgSq => "exp_avg_sq",
            Self::Master => "master",
        };
        format!("{tensor}.{suffix}")
    }
}

/// One array, and where its bytes are in the optimizer's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Array {
    pub part: Part,
    pub start: *mut u8,
    pub bytes: usize,
}

/// How much is copied, hashed, written or read at once.
const CHUNK: usize = 1 << 20;

impl Array {
    /// Its bytes, chunk by chunk: where each begins, and how long it is.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (*mut u8, usize)> + use<> {
        let Self { start, bytes, .. } = *self;
        (0..bytes)
            .step_by(CHUNK)
            .map(move |from| (start.wrapping_add(from), CHUNK.min(bytes - from)))
    }
}

/// As long as the longest chunk of these.
pub(super) fn chunk_buffer<'a>(arrays: impl Iterator<Item = &'a Array>) -> Result<Vec<u8>> {
    let bytes = arrays.map(|array| array.bytes).max().unwrap_or(0);
    let bytes = bytes.min(CHUNK);
    let mut buffer = try_with_capacity(bytes, "a part of the checkpoint")?;
    buffer.resize(bytes, 0);
    Ok(buffer)
}
