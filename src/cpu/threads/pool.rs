//! The optimizer's own threads.

use std::mem::ManuallyDrop;
use std::thread::JoinHandle;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, ErrorKind, Result};
use crate::memory::try_with_capacity;

/// A thread needs a few tens of kilobytes; the rest is for a panic's trace.
const STACK_BYTES: usize = 1 << 20;

/// Roughly what rayon allocates for each thread. It does so without a way to fail.
const RAYON_BYTES_PER_THREAD: usize = 1 << 16;

/// `width - 1` threads, which work together with the calling one.
#[derive(Debug)]
pub(super) struct Pool {
    pool: ManuallyDrop<ThreadPool>,
    threads: ManuallyDrop<Vec<JoinHandle<()>>>,
    /// A forked child inherits the object, but not the threads.
    process: u32,
}

impl Pool {
    pub(super) fn new(width: usize) -> Result<Self> {
        // If memory is this short, say so while that is still possible.
        drop(try_with_capacity::<u8>(
            width * RAYON_BYTES_PER_THREAD,
            "the thread pool",
        )?);
        let mut threads = try_with_capacity(width - 1, "the thread pool")?;
        let built = ThreadPoolBuilder::new()
            .num_threads(width - 1)
            .spawn_handler(|thread| {
                let name = format!("mofo-{}", thread.index() + 1);
                let builder = std::thread::Builder::new()
                    .name(name)
                    .stack_size(STACK_BYTES);
                threads.push(builder.spawn(|| thread.run())?);
                Ok(())
            })
            .build();
        match built {
            Ok(pool) => Ok(Self {
                pool: ManuallyDrop::new(pool),
                threads: ManuallyDrop::new(threads),
                process: std::process::id(),
            }),
            Err(error) => {
                // rayon has told those that did start to stop.
                join(threads);
                Err(Error::new(
                    ErrorKind::OutOfMemory,
                    format_args!("could not start {} threads: {error}", width - 1),
                ))
            }
        }
    }

    /// False in a child that was forked after the threads were started.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Runs `strand(i)` for every `i` below `strands`: the first on the calling thread.
    pub(super) fn run(&self, strands: usize, strand: &(dyn Fn(usize) + Sync)) {
        self.pool.in_place_scope(|scope| {
            // Not a task for each strand, which any thread might take: a strand stays with its thread, and so does
            // the memory that it touches.
            scope.spawn_broadcast(move |_, thread| {
                let i = thread.index() + 1;
                if i < strands {
                    strand(i);
                }
            });
            strand(0);
        });
    }
}

impl Drop for Pool {
    /// Ends the threads and waits until they are gone, so that the library may be unloaded.
    fn drop(&mut self) {
        if !self.is_of_this_process() {
            // The threads live in the parent only; there is nothing to end, and nothing to wait for.
            return;
        }
        // SAFETY: neither field is used again.
        let (pool, threads) = unsafe {
            (
                ManuallyDrop::take(&mut self.pool),
                ManuallyDrop::take(&mut self.threads),
            )
        };
        drop(pool);
        join(threads);
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        // A panic of a task has already reached the step that it belonged to.
        let _ = thread.join();
    }
}
