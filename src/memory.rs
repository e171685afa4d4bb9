//! Allocation that can fail, and the memory of the moments.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// `Box::new` that reports a lack of memory instead of aborting.
pub(crate) fn try_box<T>(value: T) -> Result<Box<T>> {
    let layout = Layout::new::<T>();
    assert!(layout.size() > 0);
    // SAFETY: the layout is not empty (asserted above).
    let pointer = unsafe { alloc(layout) }.cast::<T>();
    if pointer.is_null() {
        return Err(Error::out_of_memory("a record", layout.size()));
    }
    // SAFETY: freshly allocated by the global allocator with the layout of `T`, as `Box` asks, and
    // initialised here.
    unsafe {
        pointer.write(value);
        Ok(Box::from_raw(pointer))
    }
}

/// Makes room for one more element, growing by more than that at a time, or reports a lack of memory.
pub(crate) fn try_reserve_one<T>(vector: &mut Vec<T>, what: &str) -> Result<()> {
    vector
        .try_reserve(1)
        .map_err(|_| Error::out_of_memory(what, size_of::<T>()))
}

/// Makes room for `additional` more elements and no more, or reports a lack of memory.
pub(crate) fn try_reserve<T>(vector: &mut Vec<T>, additional: usize, what: &str) -> Result<()> {
    vector
        .try_reserve_exact(additional)
        .map_err(|_| Error::out_of_memory(what, additional.saturating_mul(size_of::<T>())))
}

/// A vector with room for `capacity` elements, or a report that memory is lacking.
pub(crate) fn try_with_capacity<T>(capacity: usize, what: &str) -> Result<Vec<T>> {
    let mut vector = Vec::new();
    try_reserve(&mut vector, capacity, what)?;
    Ok(vector)
}

/// Where the parts of a tensor's state lie within one allocation.
///
/// A step reads and writes four to six buffers in lock-step. When all of them start at the same place
/// modulo a large power of two, as page-aligned buffers of power-of-two sizes do, they compete for the same
/// cache sets. So large parts start at different offsets, of each other and of what the system's
/// allocator gives the caller: a page boundary, or just above it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Placement {
    offsets: [usize; PARTS],
    /// From the start of the first part to the end of the last.
    bytes: usize,
    /// The parts start at different offsets of a period.
    staggered: bool,
}

/// First moment, second moment, master copy.
pub(crate) const PARTS: usize = 3;

/// What a large part's start is aligned to before its own offset is added.
const PERIOD: usize = 1 << 16;
/// Distance between the offsets of two parts within a period; not a multiple of a page.
const STAGGER: usize = PERIOD / 4 + 1344;
/// Smaller parts are only aligned to a cache line.
const LARGE: usize = 1 << 20;
const CACHE_LINE: usize = 64;

impl Placement {
    /// Places parts of these sizes; a part of no bytes takes no place. `None` if the sum overflows.
    pub(crate) fn new(sizes: [usize; PARTS]) -> Option<Self> {
        let mut placement = Self {
            staggered: sizes.iter().any(|&size| size >= LARGE),
            ..Self::default()
        };
        for (part, &size) in sizes.iter().enumerate() {
            if size == 0 {
                continue;
            }
            let offset = if placement.staggered {
                placement
                    .bytes
                    .checked_next_multiple_of(PERIOD)?
                    .checked_add((part + 1) * STAGGER % PERIOD / CACHE_LINE * CACHE_LINE)?
            } else {
                placement.bytes.checked_next_multiple_of(CACHE_LINE)?
            };
            placement.offsets[part] = offset;
            placement.bytes = offset.checked_add(size)?;
        }
        Some(placement)
    }

    fn alignment(&self) -> usize {
        if self.staggered { PERIOD } else { CACHE_LINE }
    }

    /// Bytes to ask the system for: the allocation is aligned by hand.
    pub(crate) fn allocated(&self) -> usize {
        if self.bytes == 0 {
            0
        } else {
            self.bytes.saturating_add(self.alignment())
        }
    }
}

/// One zeroed allocation with a tensor's moments and master copy.
#[derive(Debug)]
pub(crate) struct StateMemory {
    base: NonNull<u8>,
    /// Freed when this is dropped.
    _memory: Zeroed,
    placement: Placement,
}

// SAFETY: it owns its memory like a `Box<[u8]>`.
unsafe impl Send for StateMemory {}

impl StateMemory {
    /// Allocates, or returns `None` where the placement is empty.
    pub(crate) fn new(placement: Placement) -> Result<Option<Self>> {
        let bytes = placement.allocated();
        if bytes == 0 {
            return Ok(None);
        }
        let memory = Zeroed::new(bytes, "the moments")?;
        let shift = memory.start.as_ptr().align_offset(placement.alignment());
        assert!(shift < placement.alignment());
        // SAFETY: `allocated` has room for `alignment` bytes more than the placement, and the shift is
        // less than that (asserted above).
        let base = unsafe { memory.start.add(shift) };
        Ok(Some(Self {
            base,
            _memory: memory,
            placement,
        }))
    }

    /// The start of a part. Aligned to a cache line.
    pub(crate) fn part(&self, part: usize) -> *mut u8 {
        // SAFETY: the offsets of a placement lie within its bytes, all of which were allocated.
        unsafe { self.base.as_ptr().add(self.placement.offsets[part]) }
    }
}

/// Memory that is zero, untouched until it is used, and on huge pages where that pays and the system has them.
#[derive(Debug)]
struct Zeroed {
    start: NonNull<u8>,
    bytes: usize,
    /// As the global allocator knows it, or `None` if it was mapped.
    layout: Option<Layout>,
}

/// From this size on memory is mapped by itself.
#[cfg(target_os = "linux")]
const MAPPED: usize = 4 << 20;

impl Zeroed {
    /// `bytes` is not 0.
    fn new(bytes: usize, what: &str) -> Result<Self> {
        #[cfg(target_os = "linux")]
        if bytes >= MAPPED {
            let start = map(bytes).ok_or_else(|| Error::out_of_memory(what, bytes))?;
            return Ok(Self {
                start,
                bytes,
                layout: None,
            });
        }
        // A small alignment lets the system hand out fresh zero pages, untouched; a large one would make the
        // allocator write all of them here, in one thread.
        let layout =
            Layout::from_size_align(bytes, 16).map_err(|_| Error::out_of_memory(what, bytes))?;
        assert!(bytes > 0);
        // SAFETY: the layout is not empty (asserted above).
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })
            .ok_or_else(|| Error::out_of_memory(what, bytes))?;
        Ok(Self {
            start,
            bytes,
            layout: Some(layout),
        })
    }
}

/// Maps private memory, and asks for huge pages: the buffers of a step are walked in lock-step, and with small
/// pages the processor spends a good part of it on looking up where they are.
#[cfg(target_os = "linux")]
fn map(bytes: usize) -> Option<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the system's choice touches nothing that exists.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the whole mapping, which is ours. Where there are no huge pages this fails, and does no harm.
    unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
    NonNull::new(start.cast())
}

impl Drop for Zeroed {
    fn drop(&mut self) {
        match self.layout {
            // SAFETY: allocated in `new` with this layout, and not given away.
            Some(layout) => unsafe { dealloc(self.start.as_ptr(), layout) },
            #[cfg(target_os = "linux")]
            // SAFETY: mapped in `new` with this size, and not given away.
            None => unsafe {
                libc::munmap(self.start.as_ptr().cast(), self.bytes);
            },
            #[cfg(not(target_os = "linux"))]
            None => {}
        }
    }
}

/// Words of work space.
#[derive(Debug, Default)]
pub(crate) struct Words {
    memory: Option<Zeroed>,
}

// SAFETY: it owns its memory like a `Vec<u32>`.
unsafe impl Send for Words {}

impl Words {
    /// Makes room for `len` words, and forgets what they hold.
    pub(crate) fn grow(&mut self, len: usize, what: &str) -> Result<()> {
        if len <= self.bytes() / size_of::<u32>() {
            return Ok(());
        }
        // The old words are of no use, and need not stay while there are new ones.
        self.memory = None;
        let bytes = len.saturating_mul(size_of::<u32>());
        self.memory = Some(Zeroed::new(bytes, what)?);
        Ok(())
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u32] {
        match &mut self.memory {
            // SAFETY: that many bytes were allocated, aligned for words, and all bit patterns are words. The
            // lifetime is that of the borrow.
            Some(memory) => unsafe {
                let words = memory.start.as_ptr().cast();
                std::slice::from_raw_parts_mut(words, memory.bytes / size_of::<u32>())
            },
            None => &mut [],
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_parts_start_at_different_offsets_of_a_page_and_of_a_period() {
        let size = 1 << 26;
        let memory = StateMemory::new(Placement::new([size; PARTS]).unwrap())
            .unwrap()
            .unwrap();
        for period in [4096, PERIOD] {
            let mut starts: Vec<usize> = (0..PARTS)
                .map(|i| memory.part(i) as usize % period)
                .collect();
            starts.push(0);
            starts.push(16);
            starts.sort_unstable();
            starts.dedup();
            assert_eq!(starts.len(), PARTS + 2, "{starts:?} modulo {period}");
        }
    }

    #[test]
    fn parts_do_not_overlap_and_absent_parts_take_no_place() {
        for sizes in [
            [1, 1, 1],
            [0, 100, 4],
            [1 << 20, 0, 3],
            [5 << 20, 5 << 20, 5 << 20],
        ] {
            let placement = Placement::new(sizes).unwrap();
            let mut end = 0;
            for (offset, size) in placement
                .offsets
                .iter()
                .zip(sizes)
                .filter(|(_, size)| *size > 0)
            {
                assert!(*offset >= end && offset % CACHE_LINE == 0);
                end = offset + size;
            }
            assert!(placement.allocated() >= end);
        }
        assert_eq!(Placement::new([0; PARTS]).unwrap().allocated(), 0);
        assert!(Placement::new([usize::MAX, usize::MAX, 0]).is_none());
    }
}
