//! The library's own threads, which the optimizers of a process share.
//!
//! The phases of a step take a tenth of a millisecond to a few, one right after the other. So threads that have nothing to
//! do look for the next job a while before they sleep: a sleeping thread takes 50 to 200 µs to wake in a virtual machine.

use std::any::Any;
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::{lock, registry};
use crate::error::Result;
use crate::memory::try_with_capacity;

/// A thread needs a few tens of kilobytes; the rest is for a panic's trace.
const STACK_BYTES: usize = 1 << 20;
/// Roughly what the standard library allocates for each thread. It does so without a way to fail.
const BYTES_PER_THREAD: usize = 1 << 12;
/// How often a thread looks for what it waits for before it sleeps: 50 to 200 µs.
const SPINS: usize = 1 << 13;

/// `width - 1` threads, which work together with the calling one.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) width: usize,
    shared: ManuallyDrop<Arc<Shared>>,
    threads: ManuallyDrop<Vec<JoinHandle<()>>>,
    /// A forked child inherits the object, but not the threads.
    process: u32,
}

impl Pool {
    /// As many of the threads as can be started.
    pub(super) fn new(width: usize) -> Result<Self> {
        // If memory is this short, say so while that is still possible.
        drop(try_with_capacity::<u8>(
            width * BYTES_PER_THREAD,
            "the thread pool",
        )?);
        let mut workers = try_with_capacity(width - 1, "the thread pool")?;
        workers.resize_with(width - 1, Worker::default);
        let shared = Arc::new(Shared {
            workers,
            is_busy: AtomicBool::new(false),
            task: Cell::new(None),
            unfinished: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            finished: (Mutex::new(()), Condvar::new()),
            panic: Mutex::new(None),
        });
        let mut threads = try_with_capacity(width - 1, "the thread pool")?;
        for i in 0..width - 1 {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new()
                .name(format!("mofo-{}", i + 1))
                .stack_size(STACK_BYTES);
            match builder.spawn(move || shared.serve(i)) {
                Ok(thread) => threads.push(thread),
                // What has started will do: a job needs none of them.
                Err(_) => break,
            }
        }
        Ok(Self {
            width,
            shared: ManuallyDrop::new(shared),
            threads: ManuallyDrop::new(threads),
            process: std::process::id(),
        })
    }

    /// All threads could be started.
    pub(super) fn is_complete(&self) -> bool {
        self.threads.len() == self.width - 1
    }

    /// False in a child that was forked after the threads were started.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Runs `task(0)` on the calling thread, and `task(i)` for `i` below `workers` on as many others as there are: none
    /// if they are at another job. So one task must be able to do all the work.
    pub(super) fn run(&self, workers: usize, task: &(dyn Fn(usize) + Sync)) {
        let shared = &**self.shared;
        let others = self.threads.len().min(workers - 1);
        if others == 0 || shared.is_busy.swap(true, Ordering::Acquire) {
            return task(0);
        }
        let job = Job { shared };
        // SAFETY: `job` does not go, by return or by panic, before all workers have finished with the task.
        shared.task.set(Some(unsafe {
            std::mem::transmute::<Task<'_>, Task<'static>>(task)
        }));
        shared.unfinished.store(others, Ordering::Relaxed);
        for (worker, thread) in shared.workers.iter().zip(&self.threads[..others]) {
            worker.state.store(CALLED, Ordering::Release);
            thread.thread().unpark();
        }
        task(0);
        if let Some(panic) = job.finish() {
            resume_unwind(panic);
        }
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
        let (shared, threads) = unsafe {
            (
                ManuallyDrop::take(&mut self.shared),
                ManuallyDrop::take(&mut self.threads),
            )
        };
        for (worker, thread) in shared.workers.iter().zip(threads) {
            worker.state.store(ENDED, Ordering::Release);
            thread.thread().unpark();
            // A panic has already reached the step that it belonged to.
            let _ = thread.join();
        }
        registry::clean_up();
    }
}

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// What the threads of a pool and its caller share.
struct Shared {
    workers: Vec<Worker>,
    /// A caller has a job.
    is_busy: AtomicBool,
    /// Of the job. Written only while no worker is called.
    task: Cell<Option<Task<'static>>>,
    /// Workers that were called and have not finished.
    unfinished: AtomicUsize,
    caller_sleeps: AtomicBool,
    finished: (Mutex<()>, Condvar),
    /// The first panic of a worker in this job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `task` is written only by who has set `is_busy`, while no worker is called, and read only by workers between
// their call (which acquires what the caller released) and the end of their part (which the caller waits for).
unsafe impl Sync for Shared {}

/// What a thread is told, on a cache line of its own and its neighbour's.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Worker {
    state: AtomicU8,
}

const IDLE: u8 = 0;
const CALLED: u8 = 1;
const ENDED: u8 = 2;

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// What the `i`-th thread does all its life.
    fn serve(&self, i: usize) {
        let state = &self.workers[i].state;
        loop {
            if !spin_until(|| state.load(Ordering::Acquire) != IDLE) {
                while state.load(Ordering::Acquire) == IDLE {
                    std::thread::park();
                }
            }
            if state.load(Ordering::Acquire) == ENDED {
                return;
            }
            state.store(IDLE, Ordering::Relaxed);
            let task = self.task.get();
            let ran = catch_unwind(AssertUnwindSafe(|| {
                task.expect("a job has a task")(i + 1);
            }));
            if let Err(panic) = ran {
                lock(&self.panic).get_or_insert(panic);
            }
            // In one order with the caller's look at `unfinished` after it has said that it sleeps.
            if self.unfinished.fetch_sub(1, Ordering::SeqCst) == 1
                && self.caller_sleeps.load(Ordering::SeqCst)
            {
                let (mutex, condition) = &self.finished;
                drop(lock(mutex));
                condition.notify_one();
            }
        }
    }

    /// Waits until all workers that were called have finished.
    fn wait(&self) {
        if spin_until(|| self.unfinished.load(Ordering::Acquire) == 0) {
            return;
        }
        self.caller_sleeps.store(true, Ordering::SeqCst);
        let (mutex, condition) = &self.finished;
        let mut guard = lock(mutex);
        while self.unfinished.load(Ordering::SeqCst) != 0 {
            guard = condition
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_sleeps.store(false, Ordering::Relaxed);
    }
}

/// A job at which workers may be; when it goes, they have finished.
struct Job<'a> {
    shared: &'a Shared,
}

impl Job<'_> {
    /// Waits for the workers; what one of them panicked with.
    fn finish(self) -> Option<Box<dyn Any + Send>> {
        let panic = self.end();
        std::mem::forget(self);
        panic
    }

    fn end(&self) -> Option<Box<dyn Any + Send>> {
        self.shared.wait();
        self.shared.task.set(None);
        let panic = lock(&self.shared.panic).take();
        self.shared.is_busy.store(false, Ordering::Release);
        panic
    }
}

impl Drop for Job<'_> {
    /// While the calling thread's own panic goes on.
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// Whether it became true within a short while.
fn spin_until(is_true: impl Fn() -> bool) -> bool {
    (0..SPINS).any(|_| {
        let found = is_true();
        if !found {
            std::hint::spin_loop();
        }
        found
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ran(pool: &Pool, workers: usize) -> usize {
        let count = AtomicUsize::new(0);
        pool.run(workers, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        count.into_inner()
    }

    #[test]
    fn a_job_runs_on_as_many_threads_as_asked_for_awake_or_asleep() {
        let pool = Pool::new(4).unwrap();
        for pause in [Duration::ZERO, Duration::from_millis(20)] {
            for workers in [1, 2, 4, 9, 4, 1] {
                std::thread::sleep(pause);
                assert_eq!(ran(&pool, workers), workers.min(4));
            }
        }
    }

    #[test]
    fn who_finds_the_threads_busy_works_alone() {
        let pool = Pool::new(3).unwrap();
        pool.run(3, &|task| {
            if task == 0 {
                assert_eq!(ran(&pool, 3), 1);
            }
        });
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        assert!([1, 3].contains(&ran(&pool, 3)));
                    }
                });
            }
        });
        assert_eq!(ran(&pool, 3), 3);
    }

    #[test]
    fn a_panic_of_any_task_reaches_the_caller_when_all_have_finished() {
        let pool = Pool::new(3).unwrap();
        for panicking in 0..3 {
            let finished = AtomicUsize::new(0);
            let run = catch_unwind(AssertUnwindSafe(|| {
                pool.run(3, &|task| {
                    assert_ne!(task, panicking, "a test asked for it");
                    std::thread::sleep(Duration::from_millis(5));
                    finished.fetch_add(1, Ordering::Relaxed);
                });
            }));
            assert!(run.is_err() && finished.into_inner() == 2);
            assert_eq!(ran(&pool, 3), 3);
        }
    }
}
