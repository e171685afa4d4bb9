//! Reading a checkpoint: once to check it, and once more to take it.

use std::io::{self, Read, Seek, SeekFrom};

use crc32fast::Hasher;

use super::array::{Array, Part, chunk_buffer};
use super::header::{Entry, Header, LENGTH_BYTES, longest_header};
use super::{Explain, LoadReport};
use crate::config::step_count;
use crate::error::{Error, Result, fail};
use crate::job::Progress;
use crate::memory::try_with_capacity;
use crate::optimizer::{Optimizer, Tensor};

/// Safetensors files have no longer ones. A partial load cannot know how many tensors there are.
const LONGEST_FOREIGN_HEADER: u64 = 100_000_000;

/// Where a checkpoint is read from.
pub(super) trait Source {
    /// How many bytes there are.
    fn bytes(&self) -> u64;

    /// Reads so many, from `offset` on.
    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> io::Result<()>;
}

/// A file or the like, from a position to its end.
pub(super) struct Readable<'a, T> {
    inner: &'a mut T,
    start: u64,
    bytes: u64,
}

impl<'a, T: Read + Seek> Readable<'a, T> {
    pub(super) fn new(inner: &'a mut T) -> io::Result<Self> {
        let start = inner.stream_position()?;
        let end = inner.seek(SeekFrom::End(0))?;
        Ok(Self {
            inner,
            start,
            bytes: end.saturating_sub(start),
        })
    }
}

impl<T: Read + Seek> Source for Readable<'_, T> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.inner.seek(SeekFrom::Start(self.start + offset))?;
        self.inner.read_exact(to)
    }
}

/// Which tensors a load takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All: the checkpoint and the optimizer must have the same.
    Whole,
    /// Those that both have.
    Partial,
}

/// An optimizer's tensor, and what the checkpoint has of it.
struct Match<'a> {
    index: usize,
    entry: &'a Entry<'static>,
    /// With where each begins in the source. In the order in which they are hashed.
    arrays: Vec<(u64, Array)>,
}

pub(super) fn load(
    optimizer: &mut Optimizer,
    source: &mut dyn Source,
    scope: Scope,
    explain: Explain<'_>,
) -> Result<LoadReport> {
    let (header, data) = read_header(optimizer, source, scope, explain)?;
    let matches = match_tensors(optimizer, &header, scope, data)?;
    let report = report(optimizer, &header, &matches)?;
    if let Some(&lost) = report.missing.first()
        && optimizer.half_loaded
    {
        let name = optimizer.tensors[lost as usize].as_ref().map(Tensor::name);
        fail!(
            InvalidState,
            "an earlier load broke off half-way, so that moments are lost; load a checkpoint that has all tensors: this \
             one has no \"{}\"",
            name.unwrap_or_default()
        );
    }
    // On CUDA, waits: no step may still be at work on what is about to change.
    for found in &matches {
        optimizer.backend.progress(found.index)?;
    }
    let arrays = matches.iter().flat_map(|found| &found.arrays);
    let mut buffer = chunk_buffer(arrays.map(|(_, array)| array))?;
    read_arrays(source, &matches, &mut buffer, explain, &mut |_, _| Ok(()))?;

    optimizer.half_loaded = true;
    let backend = &optimizer.backend;
    // SAFETY: within the tensor's state, which is alive as long as the tensor (by itself, or by the promise of whoever brought
    // it), and which nobody else touches during a call.
    let mut take = |start, chunk: &[u8]| unsafe { backend.write_state(start, chunk) };
    read_arrays(source, &matches, &mut buffer, explain, &mut take).map_err(lost)?;
    for Match { index, entry, .. } in matches {
        let progress = Progress {
            step_count: entry.step_count,
            master_started: entry.master,
        };
        optimizer
            .backend
            .set_progress(index, progress)
            .map_err(lost)?;
    }
    optimizer.options.seed = header.description().seed;
    optimizer.half_loaded = false;
    Ok(report)
}

/// The error of a load that has begun to change the state.
fn lost(error: Error) -> Error {
    Error::new(
        error.kind(),
        format_args!(
            "{}; this came when the file, which had been checked, was read again: moments are lost, and only another load \
             brings the optimizer back",
            error.message()
        ),
    )
}

/// Reads the header; with it, where the data begins.
fn read_header(
    optimizer: &Optimizer,
    source: &mut dyn Source,
    scope: Scope,
    explain: Explain<'_>,
) -> Result<(Header, u64)> {
    let explain = |error: io::Error| explain(&error);
    let bytes = source.bytes();
    if bytes < LENGTH_BYTES {
        fail!(
            Checkpoint,
            "{bytes} bytes are no checkpoint, which begins with the {LENGTH_BYTES} bytes of a length"
        );
    }
    let mut length = [0; LENGTH_BYTES as usize];
    source.read_at(0, &mut length).map_err(explain)?;
    let length = u64::from_le_bytes(length);
    // Others are not even read: parsing one takes several times its memory.
    let names = optimizer.tensors.iter().flatten().map(Tensor::name);
    let most = match scope {
        Scope::Whole => longest_header(names),
        Scope::Partial => longest_header(names).max(LONGEST_FOREIGN_HEADER),
    };
    let most = most.min(bytes - LENGTH_BYTES);
    if length > most {
        fail!(
            Checkpoint,
            "its header should be {length} bytes long; of {bytes} bytes in all, and for these tensors, it can be {most} \
             at most: cut short, damaged, or no safetensors file"
        );
    }
    let mut json = try_with_capacity(length as usize, "the checkpoint's header")?;
    json.resize(length as usize, 0);
    source.read_at(LENGTH_BYTES, &mut json).map_err(explain)?;
    let data = LENGTH_BYTES + length;
    Ok((Header::parse(&json, bytes - data)?, data))
}

/// Checks a checkpoint against the optimizer's tensors.
fn match_tensors<'a>(
    optimizer: &Optimizer,
    header: &'a Header,
    scope: Scope,
    data: u64,
) -> Result<Vec<Match<'a>>> {
    let state_dtype = header.description().state_dtype;
    if state_dtype != optimizer.options.state_dtype {
        fail!(
            Checkpoint,
            "its moments are {state_dtype:?}; those of the optimizer are {:?}",
            optimizer.options.state_dtype
        );
    }
    let found = entries_of(optimizer, header, scope)?;
    let mut matches = Vec::new();
    for (index, (tensor, entry)) in optimizer.tensors.iter().zip(found).enumerate() {
        let Some(tensor) = tensor else { continue };
        let entry = match entry {
            Some(entry) => entry,
            None if scope == Scope::Partial => continue,
            None => fail!(Checkpoint, "it has no tensor \"{}\"", tensor.name()),
        };
        let arrays = match_tensor(header, data, tensor, entry)
            .map_err(|error| error.in_tensor(tensor.name()))?;
        matches.push(Match {
            index,
            entry,
            arrays,
        });
    }
    let entries = &header.description().tensors;
    if let (true, Some(entry), Some(tensor)) = (
        matches.is_empty(),
        entries.first(),
        optimizer.tensors.iter().flatten().next(),
    ) {
        fail!(
            Checkpoint,
            "it has none of the optimizer's tensors: \"{}\" is one of its, \"{}\" one of the optimizer's",
            entry.name,
            tensor.name()
        );
    }
    let expected: usize = entries.iter().map(num_arrays).sum();
    if header.num_arrays() != expected {
        fail!(
            Checkpoint,
            "it has {} arrays; those of its tensors are {expected}",
            header.num_arrays()
        );
    }
    Ok(matches)
}

/// How many arrays the checkpoint has of a tensor.
fn num_arrays(entry: &Entry<'_>) -> usize {
    let moments = if entry.step_count > 0 { 2 } else { 0 };
    moments + usize::from(entry.master)
}

/// Which tensors both have, and which only one of them.
fn report(optimizer: &Optimizer, header: &Header, matches: &[Match<'_>]) -> Result<LoadReport> {
    const WHAT: &str = "the report of a load";
    let entries = &header.description().tensors;
    let mut report = LoadReport {
        loaded: try_with_capacity(matches.len(), WHAT)?,
        missing: try_with_capacity(optimizer.tensors.len() - matches.len(), WHAT)?,
        ignored: try_with_capacity(entries.len() - matches.len(), WHAT)?,
    };
    let mut matches = matches.iter().map(|found| found.index).peekable();
    for (index, tensor) in optimizer.tensors.iter().enumerate() {
        if matches.next_if_eq(&index).is_some() {
            report.loaded.push(index as u64);
        } else if tensor.is_some() {
            report.missing.push(index as u64);
        }
    }
    if report.ignored.capacity() > 0 {
        for entry in entries {
            if optimizer.find_tensor(&entry.name).is_err() {
                let mut name = String::new();
                name.try_reserve_exact(entry.name.len())
                    .map_err(|_| Error::out_of_memory(WHAT, entry.name.len()))?;
                name.push_str(&entry.name);
                report.ignored.push(name);
            }
        }
    }
    Ok(report)
}

/// What the checkpoint has for each of the optimizer's tensors.
fn entries_of<'a>(
    optimizer: &Optimizer,
    header: &'a Header,
    scope: Scope,
) -> Result<Vec<Option<&'a Entry<'static>>>> {
    let mut found = vec![None; optimizer.tensors.len()];
    // Most often they are in the same order.
    let mut expected = 0;
    for entry in &header.description().tensors {
        let is_there = |index: usize| {
            let tensor = optimizer.tensors.get(index).and_then(Option::as_ref);
            tensor.is_some_and(|tensor| tensor.name() == entry.name)
        };
        let index = if is_there(expected) {
            expected
        } else if let Ok(index) = optimizer.find_tensor(&entry.name) {
            index as usize
        } else if scope == Scope::Partial {
            continue;
        } else {
            fail!(
                Checkpoint,
                "it has a tensor \"{}\", which the optimizer has not",
                entry.name
            );
        };
        if found[index].replace(entry).is_some() {
            fail!(Checkpoint, "tensor \"{}\" is there twice", entry.name);
        }
        expected = index + 1;
    }
    Ok(found)
}

fn match_tensor(
    header: &Header,
    data: u64,
    tensor: &Tensor,
    entry: &Entry<'_>,
) -> Result<Vec<(u64, Array)>> {
    if entry.numel != tensor.numel {
        fail!(
            Checkpoint,
            "it has {} entries there; the optimizer's has {}",
            entry.numel,
            tensor.numel
        );
    }
    if step_count(entry.step_count).is_err() {
        fail!(
            Checkpoint,
            "its step_count is {}, above 2^63 - 1",
            entry.step_count
        );
    }
    let takes_master = !tensor.buffers.master.is_null() || tensor.numel == 0;
    if entry.master && (!takes_master || entry.step_count == 0) {
        fail!(
            Checkpoint,
            "it has a master copy there, after {} steps; the optimizer's tensor can take none{}",
            entry.step_count,
            if !takes_master {
                ": that takes master_weights and a parameter of 16 bits"
            } else {
                " before the first step"
            }
        );
    }
    let mut arrays = Vec::new();
    for (part, (start, bytes)) in Part::ALL.into_iter().zip(tensor.state()) {
        let is_there = match part {
            Part::Master => entry.master,
            Part::ExpAvg | Part::ExpAvgSq => entry.step_count > 0,
        };
        if is_there {
            let offset = header.offset_of(entry, part)?;
            arrays.push((data + offset, Array { part, start, bytes }));
        }
    }
    Ok(arrays)
}

/// Reads all arrays, hands them on chunk by chunk, and compares the checksums. `buffer` is as long as a chunk.
fn read_arrays(
    source: &mut dyn Source,
    matches: &[Match<'_>],
    buffer: &mut [u8],
    explain: Explain<'_>,
    take: &mut dyn FnMut(*mut u8, &[u8]) -> Result<()>,
) -> Result<()> {
    let explain = |error: io::Error| explain(&error);
    for Match { entry, arrays, .. } in matches {
        let mut hasher = Hasher::new();
        for (offset, array) in arrays {
            let mut offset = *offset;
            for (start, bytes) in array.chunks() {
                let chunk = &mut buffer[..bytes];
                source.read_at(offset, chunk).map_err(explain)?;
                offset += bytes as u64;
                hasher.update(chunk);
                take(start, chunk)?;
            }
        }
        let crc32 = hasher.finalize();
        if crc32 != entry.crc32 {
            fail!(
                Checkpoint,
                "tensor \"{}\": its data is damaged: the CRC-32 is {crc32:08x}, and should be {:08x}",
                entry.name,
                entry.crc32
            );
        }
    }
    Ok(())
}
