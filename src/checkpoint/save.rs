//! Writing a checkpoint.

use std::borrow::Cow;
use std::io::{self, Seek, SeekFrom, Write};

use crc32fast::Hasher;

use super::Explain;
use super::array::{Array, Part, chunk_buffer};
use super::header::{Description, Entry};
use crate::backend::Backend;
use crate::error::Result;
use crate::memory::try_with_capacity;
use crate::optimizer::Optimizer;

/// What memory is asked for.
const WHAT: &str = "the checkpoint's list of tensors";

/// Where a checkpoint is written to.
pub(super) trait Sink {
    /// Writes all of these, from `offset` on.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Nothing more comes: the end is at `offset`.
    fn finish(&mut self, offset: u64) -> io::Result<()>;
}

/// A file or the like, from a position on.
pub(super) struct Writable<'a, T> {
    inner: &'a mut T,
    start: u64,
}

impl<'a, T: Write + Seek> Writable<'a, T> {
    pub(super) fn new(inner: &'a mut T) -> io::Result<Self> {
        let start = inner.stream_position()?;
        Ok(Self { inner, start })
    }
}

impl<T: Write + Seek> Sink for Writable<'_, T> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.seek(SeekFrom::Start(self.start + offset))?;
        self.inner.write_all(bytes)
    }

    fn finish(&mut self, offset: u64) -> io::Result<()> {
        self.inner.seek(SeekFrom::Start(self.start + offset))?;
        self.inner.flush()
    }
}

/// The state of an optimizer as a checkpoint will have it.
pub(super) struct Snapshot<'a> {
    backend: &'a Backend,
    description: Description<'a>,
    /// With the number of the entry that each is of; in the order of the file.
    arrays: Vec<(usize, Array)>,
}

impl<'a> Snapshot<'a> {
    pub(super) fn new(optimizer: &'a Optimizer) -> Result<Self> {
        optimizer.check_state_is_whole()?;
        let count = optimizer.tensors.len();
        let mut entries = try_with_capacity(count, WHAT)?;
        let mut masters = try_with_capacity(Part::ALL.len() * count, WHAT)?;
        let mut moments = try_with_capacity(2 * count, WHAT)?;
        for (index, tensor) in optimizer.tensors.iter().enumerate() {
            let Some(tensor) = tensor else { continue };
            let progress = optimizer.backend.progress(index)?;
            // Before the first step memory holds nothing yet.
            let has_moments = progress.step_count > 0;
            let has_master =
                has_moments && progress.master_started && !tensor.buffers.master.is_null();
            for (part, (start, bytes)) in Part::ALL.into_iter().zip(tensor.state()) {
                let array = (entries.len(), Array { part, start, bytes });
                match part {
                    Part::Master if has_master => masters.push(array),
                    Part::ExpAvg | Part::ExpAvgSq if has_moments => moments.push(array),
                    _ => {}
                }
            }
            entries.push(Entry {
                name: Cow::Borrowed(tensor.name()),
                numel: tensor.numel,
                step_count: progress.step_count,
                master: has_master,
                // Keeps the place of the longest.
                crc32: u32::MAX,
                num_blocks: tensor.num_blocks,
                param_dtype: Some(tensor.param_dtype),
                update_fraction: tensor.update_fraction,
                weight_decay: tensor.weight_decay,
                learning_rate_scale: tensor.learning_rate_scale,
            });
        }
        // The larger elements first, so that all are aligned if the data is.
        masters.append(&mut moments);
        Ok(Self {
            backend: &optimizer.backend,
            description: Description::new(&optimizer.options, entries),
            arrays: masters,
        })
    }

    /// The header, whose size does not depend on the checksums; a multiple of 8 bytes.
    fn header_bytes(&self) -> Result<usize> {
        Ok(self.description.to_header(&self.arrays, None)?.len())
    }

    pub(super) fn bytes(&self) -> Result<u64> {
        let data: u64 = self
            .arrays
            .iter()
            .map(|(_, array)| array.bytes as u64)
            .sum();
        Ok(self.header_bytes()? as u64 + data)
    }

    /// Writes the data, and then before it the header, with the checksums; how many bytes.
    pub(super) fn write(mut self, sink: &mut dyn Sink, explain: Explain<'_>) -> Result<u64> {
        let explain = |error: io::Error| explain(&error);
        let header_bytes = self.header_bytes()?;
        let mut offset = header_bytes as u64;
        let mut buffer = chunk_buffer(self.arrays.iter().map(|(_, array)| array))?;
        // Master copies come first in the file, and last in the checksum.
        let count = self.description.tensors.len();
        let mut moments = try_with_capacity(count, WHAT)?;
        let mut masters = try_with_capacity(count, WHAT)?;
        moments.resize(count, Hasher::new());
        masters.resize(count, Hasher::new());
        for (entry, array) in &self.arrays {
            let hashers = match array.part {
                Part::Master => &mut masters,
                Part::ExpAvg | Part::ExpAvgSq => &mut moments,
            };
            for (start, bytes) in array.chunks() {
                let chunk = &mut buffer[..bytes];
                // SAFETY: within the tensor's state, which is alive as long as the tensor (by itself, or by the promise of
                // whoever brought it), and holds values: a step has written them, or the caller has said so.
                unsafe { self.backend.read_state(start, chunk)? };
                hashers[*entry].update(chunk);
                sink.write_at(offset, chunk).map_err(explain)?;
                offset += bytes as u64;
            }
        }
        let hashers = moments.into_iter().zip(masters);
        for (entry, (mut moments, master)) in self.description.tensors.iter_mut().zip(hashers) {
            moments.combine(&master);
            entry.crc32 = moments.finalize();
        }

        let header = self
            .description
            .to_header(&self.arrays, Some(header_bytes))?;
        sink.write_at(0, &header).map_err(explain)?;
        sink.finish(offset).map_err(explain)?;
        Ok(offset)
    }
}
