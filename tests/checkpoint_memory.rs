//! Saving and loading make no second copy of the state.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use mofo::{Optimizer, Options, StepArgs, TensorBinding, TensorSpec};

/// Counts the bytes that are allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator, with counters.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that is allocated during a call, beyond what was before.
fn most_during(call: impl FnOnce()) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    call();
    MOST.load(Ordering::Relaxed) - before
}

/// Counts what is written, and keeps nothing.
#[derive(Default)]
struct Nowhere {
    position: u64,
    end: u64,
}

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.position += bytes.len() as u64;
        self.end = self.end.max(self.position);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Nowhere {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = match to {
            SeekFrom::Start(offset) => offset,
            SeekFrom::Current(offset) => self.position.wrapping_add_signed(offset),
            SeekFrom::End(offset) => self.end.wrapping_add_signed(offset),
        };
        Ok(self.position)
    }
}

/// Counts what is read.
struct Watched<R> {
    inner: R,
    longest_read: usize,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.longest_read = self.longest_read.max(bytes.len());
        self.inner.read(bytes)
    }
}

impl<R: Seek> Seek for Watched<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[test]
fn a_few_megabytes_are_enough_for_any_state() {
    const NUMEL: usize = 4 << 20;
    const TENSORS: usize = 4;
    const ENOUGH: usize = 2 << 20;
    let mut optimizer = Optimizer::new(Options {
        num_threads: 1,
        ..Options::default()
    })
    .unwrap();
    let (mut param, grad) = (vec![1.0f32; NUMEL], vec![1.0f32; NUMEL]);
    for i in 0..TENSORS {
        let name = format!("w{i}");
        let index = optimizer
            .add_tensor(&TensorSpec::new(&name, NUMEL as u64))
            .unwrap();
        let binding = TensorBinding::new(index, &mut param, &grad);
        optimizer
            .step(&StepArgs::default(), &mut [binding])
            .unwrap();
    }
    let state = (2 * 4 * NUMEL * TENSORS) as u64;

    let mut nowhere = Nowhere::default();
    let most = most_during(|| {
        optimizer.save_to(&mut nowhere).unwrap();
    });
    assert!(nowhere.end > state, "{} bytes written", nowhere.end);
    assert!(most < ENOUGH, "saving took {most} bytes");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    let most = most_during(|| optimizer.save(&path).unwrap());
    assert!(most < ENOUGH, "saving a file took {most} bytes");

    let mut file = Watched {
        inner: std::fs::File::open(&path).unwrap(),
        longest_read: 0,
    };
    let most = most_during(|| optimizer.load_from(&mut file).unwrap());
    assert!(most < ENOUGH, "loading took {most} bytes");
    assert!(file.longest_read < ENOUGH);
}
