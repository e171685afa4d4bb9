//! The library's own threads, which the optimizers of a process share.
//!
//! The phases of a step take a tenth of a millisecond to a few, one right after the other. So threads that have nothing to
//! do look for the next job a while before they sleep: a sleeping thread takes 50 to 200 µs to wake in a virtual machine.

use std::any::Any;
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::JoinHandle;

use crate::error::Result;
use crate::memory::{try_reserve_one, try_with_capacity};

/// A thread needs a few tens of kilobytes; the rest is for a panic's trace.
const STACK_BYTES: usize = 1 << 20;
/// Roughly what the standard library allocates for each thread. It does so without a way to fail.
const BYTES_PER_THREAD: usize = 1 << 12;
/// How often a thread looks for what it waits for before it sleeps: 50 to 200 µs.
const LOOKS: usize = 1 << 13;

/// `width - 1` threads, which work together with the calling one.
#[derive(Debug)]
pub(super) struct Pool {
    crew: ManuallyDrop<Arc<Crew>>,
    threads: ManuallyDrop<Vec<JoinHandle<()>>>,
    /// A forked child inherits the object, but not the threads.
    process: u32,
}

/// A pool that optimizers may share.
struct Shared {
    width: usize,
    process: u32,
    pool: Weak<Pool>,
}

/// The pools of the process. Empty, and without memory, when the last one has gone.
static POOLS: Mutex<Vec<Shared>> = Mutex::new(Vec::new());

impl Pool {
    /// The process's pool of this width: as many of its threads as could be started.
    pub(super) fn shared(width: usize) -> Result<Arc<Self>> {
        let mut pools = match POOLS.try_lock() {
            Ok(pools) => pools,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another thread looks for a pool; or did so when this process was forked, and will never be done.
            Err(TryLockError::WouldBlock) => return Ok(Arc::new(Self::new(width)?)),
        };
        let process = std::process::id();
        // Only the one that is returned is held meanwhile: whoever drops a pool needs the list.
        let found = pools
            .iter()
            .filter(|shared| shared.width == width && shared.process == process)
            .find_map(|shared| shared.pool.upgrade());
        if let Some(pool) = found {
            return Ok(pool);
        }
        try_reserve_one(&mut pools, "the thread pool")?;
        let pool = Arc::new(Self::new(width)?);
        pools.push(Shared {
            width,
            process,
            pool: Arc::downgrade(&pool),
        });
        Ok(pool)
    }

    fn new(width: usize) -> Result<Self> {
        // If memory is this short, say so while that is still possible.
        drop(try_with_capacity::<u8>(
            width * BYTES_PER_THREAD,
            "the thread pool",
        )?);
        let mut members = try_with_capacity(width - 1, "the thread pool")?;
        members.resize_with(width - 1, Member::default);
        let crew = Arc::new(Crew {
            members,
            is_busy: AtomicBool::new(false),
            task: Cell::new(None),
            unfinished: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            finished: (Mutex::new(()), Condvar::new()),
            panic: Mutex::new(None),
        });
        let mut threads = try_with_capacity(width - 1, "the thread pool")?;
        for i in 0..width - 1 {
            let crew = Arc::clone(&crew);
            let builder = std::thread::Builder::new()
                .name(format!("mofo-{}", i + 1))
                .stack_size(STACK_BYTES);
            match builder.spawn(move || crew.serve(i)) {
                Ok(thread) => threads.push(thread),
                // What has started will do: a job needs none of them.
                Err(_) => break,
            }
        }
        Ok(Self {
            crew: ManuallyDrop::new(crew),
            threads: ManuallyDrop::new(threads),
            process: std::process::id(),
        })
    }

    /// False in a child that was forked after the threads were started.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Runs `task(0)` on the calling thread, and `task(i)` for `i` below `workers` on as many others as there are: none
    /// if they are at another job. So one task must be able to do all the work.
    pub(super) fn run(&self, workers: usize, task: &(dyn Fn(usize) + Sync)) {
        let crew = &**self.crew;
        let others = self.threads.len().min(workers - 1);
        if others == 0 || crew.is_busy.swap(true, Ordering::Acquire) {
            return task(0);
        }
        let job = Job { crew };
        // SAFETY: `job` does not go, by return or by panic, before all members have finished with the task.
        crew.task.set(Some(unsafe {
            std::mem::transmute::<Task<'_>, Task<'static>>(task)
        }));
        crew.unfinished.store(others, Ordering::Relaxed);
        for (member, thread) in crew.members.iter().zip(&self.threads[..others]) {
            member.state.store(CALLED, Ordering::Release);
            thread.thread().unpark();
        }
        task(0);
        drop(job);
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
        let (crew, threads) = unsafe {
            (
                ManuallyDrop::take(&mut self.crew),
                ManuallyDrop::take(&mut self.threads),
            )
        };
        for (member, thread) in crew.members.iter().zip(threads) {
            member.state.store(ENDED, Ordering::Release);
            thread.thread().unpark();
            // A panic has already reached the step that it belonged to.
            let _ = thread.join();
        }
        let mut pools = lock(&POOLS);
        pools.retain(|shared| shared.pool.strong_count() > 0);
        if pools.is_empty() {
            *pools = Vec::new();
        }
    }
}

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// What the threads of a pool and its caller share.
struct Crew {
    members: Vec<Member>,
    /// A caller has a job, which it lets the members help with.
    is_busy: AtomicBool,
    /// Of the job. Written only while no member is called.
    task: Cell<Option<Task<'static>>>,
    /// Members that were called and have not finished.
    unfinished: AtomicUsize,
    caller_sleeps: AtomicBool,
    finished: (Mutex<()>, Condvar),
    /// The first panic of a member in this job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `task` is written only by who has set `is_busy`, while no member is called, and read only by members between
// their call (which acquires what the caller released) and the end of their part (which the caller waits for).
unsafe impl Sync for Crew {}

/// What a thread is told, on a cache line of its own and its neighbour's.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Member {
    state: AtomicU8,
}

const IDLE: u8 = 0;
const CALLED: u8 = 1;
const ENDED: u8 = 2;

impl std::fmt::Debug for Crew {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Crew")
            .field("members", &self.members.len())
            .finish_non_exhaustive()
    }
}

impl Crew {
    /// What the `i`-th thread does all its life.
    fn serve(&self, i: usize) {
        let state = &self.members[i].state;
        loop {
            if !looked(|| state.load(Ordering::Acquire) != IDLE) {
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

    /// Waits until all members that were called have finished.
    fn wait(&self) {
        if looked(|| self.unfinished.load(Ordering::Acquire) == 0) {
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

/// A job at which members may be; when it goes, they have finished.
struct Job<'a> {
    crew: &'a Crew,
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.crew.wait();
        self.crew.task.set(None);
        let panic = lock(&self.crew.panic).take();
        self.crew.is_busy.store(false, Ordering::Release);
        if let Some(panic) = panic
            && !std::thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

/// Whether it became true within a short while.
fn looked(is_true: impl Fn() -> bool) -> bool {
    (0..LOOKS).any(|_| {
        let found = is_true();
        if !found {
            std::hint::spin_loop();
        }
        found
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn pools_of_one_width_are_one_while_anybody_uses_it() {
        // No other test asks for these widths.
        let first = Pool::shared(31).unwrap();
        let second = Pool::shared(31).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        let other = Pool::shared(29).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
        drop(first);
        assert_eq!(ran(&second, 31), 31);
        let ended = Arc::downgrade(&second);
        drop(second);
        assert!(ended.upgrade().is_none());
        assert_eq!(
            lock(&POOLS).iter().filter(|pool| pool.width == 31).count(),
            0
        );
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
    fn a_panic_of_any_strand_reaches_the_caller_when_all_have_finished() {
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
