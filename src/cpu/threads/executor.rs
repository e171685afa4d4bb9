//! Who runs the tasks of a step: the calling thread alone, the library's own threads, or the engine's
//! `parallel_for`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::callback::{Callback, Ran};
use super::pool::Pool;
use super::{lock, registry};
use crate::config::Options;
use crate::error::Result;
use crate::float_environment::DefaultEnvironment;
use crate::memory::try_with_capacity;

/// Below this many entries a job is not worth waking a thread for.
const ENTRIES_PER_THREAD: u64 = 1 << 15;

#[derive(Debug)]
pub(in crate::cpu) struct Executor {
    /// How many workers there may be at most, the calling thread included.
    width: usize,
    /// How many of them the present step is worth.
    useful: usize,
    kind: Kind,
    /// One for each worker.
    runs: Vec<Run>,
}

/// The consecutive items that a worker begins with. On a cache line of its own, and its neighbour's.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Run {
    next: AtomicUsize,
}

#[derive(Debug)]
enum Kind {
    /// Started by the first step that has enough work.
    Own(Option<Arc<Pool>>),
    Engine(Callback),
}

/// What to do when the engine's `parallel_for` leaves tasks out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) enum Incomplete {
    /// Report it: nothing has been changed yet.
    Fail,
    /// Run them on the calling thread: a step that has begun to write must end.
    Finish,
}

/// How many workers an optimizer of these options has.
pub(in crate::cpu) fn width(options: &Options) -> usize {
    match options.num_threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

impl Executor {
    pub(in crate::cpu) fn new(options: &Options) -> Result<Self> {
        let width = width(options);
        let kind = match options.parallel_for {
            Some(parallel_for) => Kind::Engine(Callback::new(parallel_for, width)?),
            None => Kind::Own(None),
        };
        let mut runs = try_with_capacity(width, "the threads' work lists")?;
        runs.resize_with(width, Run::default);
        Ok(Self {
            width,
            useful: 1,
            kind,
            runs,
        })
    }

    /// Gets ready for the jobs of a step of this many entries, so that none can fail: decides how many workers they have at
    /// most, and starts threads.
    pub(in crate::cpu) fn prepare(&mut self, entries: u64) -> Result<()> {
        self.useful = self.width;
        self.useful = self.workers(usize::MAX, entries);
        if let Kind::Own(pool) = &mut self.kind
            && self.useful > 1
        {
            if let Some(inherited) = pool.take_if(|pool| !pool.is_of_this_process()) {
                drop(inherited);
            }
            if pool.is_none() {
                *pool = Some(registry::pool(self.width)?);
            }
        }
        Ok(())
    }

    /// Asks the engine's `parallel_for` to run tasks that do nothing, to learn whether it runs all of them
    /// before anything is written.
    pub(in crate::cpu) fn probe(&mut self, entries: u64) -> Result<()> {
        if entries > 0 && matches!(self.kind, Kind::Engine(_)) {
            return self.kind.run(self.useful, &|_| {})?.check();
        }
        Ok(())
    }

    /// Runs `body(i)` for every `i` below `items`, together about `entries` entries of work; see
    /// [`Executor::for_each_with`].
    pub(in crate::cpu) fn for_each(
        &mut self,
        items: usize,
        entries: u64,
        incomplete: Incomplete,
        body: impl Fn(usize) + Sync,
    ) -> Result<()> {
        self.for_each_with(
            items,
            entries,
            incomplete,
            |_| (),
            |(), i| body(i),
            |(), ()| (),
        )
    }

    /// Runs `body(state, i)` for every `i` below `items`, together about `entries` entries of work. Each
    /// worker has a state of its own, made of its number below [`Executor::useful`], which is added to the result when it
    /// runs out of items. No two workers of the same number run at the same time.
    ///
    /// Every worker begins with a run of consecutive items, the same ones whenever the work is the same, so that
    /// a thread mostly meets memory that it has used before. A worker that is done helps the others.
    pub(in crate::cpu) fn for_each_with<S, R: Default + Send>(
        &mut self,
        items: usize,
        entries: u64,
        incomplete: Incomplete,
        state: impl Fn(usize) -> S + Sync,
        body: impl Fn(&mut S, usize) + Sync,
        add: impl Fn(&mut R, S) + Sync,
    ) -> Result<R> {
        if items == 0 {
            return Ok(R::default());
        }
        let result = Mutex::new(R::default());
        let workers = self.workers(items, entries);
        let first = |run: usize| (items as u128 * run as u128 / workers as u128) as usize;
        let Self { kind, runs, .. } = self;
        for (i, run) in runs[..workers].iter().enumerate() {
            run.next.store(first(i), Ordering::Relaxed);
        }
        let task = |own: usize| {
            let _environment = DefaultEnvironment::enter();
            let mut state = state(own);
            for run in (own..workers).chain(0..own) {
                let end = first(run + 1);
                loop {
                    let item = runs[run].next.fetch_add(1, Ordering::Relaxed);
                    if item >= end {
                        break;
                    }
                    body(&mut state, item);
                }
            }
            add(&mut lock(&result), state);
        };
        let ran = kind.run(workers, &task)?;
        match incomplete {
            Incomplete::Fail => ran.check()?,
            Incomplete::Finish => {
                if ran != Ran::All {
                    task(0);
                }
            }
        }
        Ok(std::mem::take(&mut *lock(&result)))
    }

    /// How many workers a job of the present step has at most.
    pub(in crate::cpu) fn useful(&self) -> usize {
        self.useful
    }

    fn workers(&self, items: usize, entries: u64) -> usize {
        let worthwhile = match self.kind {
            Kind::Own(_) => entries.div_ceil(ENTRIES_PER_THREAD),
            // The engine decides what is worth waking its threads for.
            Kind::Engine(_) => u64::MAX,
        };
        self.useful
            .min(items)
            .min(usize::try_from(worthwhile).unwrap_or(usize::MAX))
            .max(1)
    }
}

impl Kind {
    fn run(&mut self, workers: usize, task: &(dyn Fn(usize) + Sync)) -> Result<Ran> {
        match self {
            Self::Engine(callback) => callback.run(workers, task),
            Self::Own(Some(pool)) if workers > 1 && pool.is_of_this_process() => {
                pool.run(workers, task);
                Ok(Ran::All)
            }
            Self::Own(_) => {
                task(0);
                Ok(Ran::All)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ParallelFor;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const ENTRIES: u64 = 1 << 20;

    fn executor(num_threads: usize) -> Executor {
        let mut executor = Executor::new(&Options {
            num_threads,
            ..Options::default()
        })
        .unwrap();
        executor.prepare(ENTRIES).unwrap();
        executor
    }

    #[test]
    fn every_item_runs_once_on_any_number_of_threads() {
        for num_threads in [1, 2, 5] {
            let runs: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
            let body = |i: usize| {
                runs[i].fetch_add(1, Ordering::Relaxed);
            };
            executor(num_threads)
                .for_each(runs.len(), ENTRIES, Incomplete::Fail, body)
                .unwrap();
            assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
        }
    }

    /// A worker's state: how many items it ran.
    fn workers_of(executor: &mut Executor) -> Vec<usize> {
        const ITEMS: usize = 1000;
        let runs: Vec<AtomicUsize> = (0..ITEMS).map(|_| AtomicUsize::new(0)).collect();
        let started = AtomicUsize::new(0);
        let finished: Vec<usize> = executor
            .for_each_with(
                ITEMS,
                ENTRIES,
                Incomplete::Finish,
                |_| {
                    started.fetch_add(1, Ordering::Relaxed);
                    0
                },
                |ran, i| {
                    *ran += 1;
                    runs[i].fetch_add(1, Ordering::Relaxed);
                },
                |finished: &mut Vec<usize>, ran| finished.push(ran),
            )
            .unwrap();
        assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
        assert_eq!(finished.len(), started.into_inner());
        assert_eq!(finished.iter().sum::<usize>(), ITEMS);
        finished
    }

    #[test]
    fn every_worker_finishes_once_with_what_it_ran() {
        for num_threads in [1, 2, 5] {
            let workers = workers_of(&mut executor(num_threads));
            // Other tests may have these threads at the time.
            assert!([1, num_threads].contains(&workers.len()));
        }
    }

    #[test]
    fn the_calling_thread_is_a_worker_for_the_tasks_that_an_engine_leaves_out() {
        /// Every other task.
        unsafe extern "C" fn lazy(
            _: *mut std::ffi::c_void,
            n: i64,
            task: crate::config::Task,
            task_ctx: *mut std::ffi::c_void,
        ) {
            for i in (0..n).step_by(2) {
                // SAFETY: the library's own task and context.
                unsafe { task(task_ctx, i) };
            }
        }
        let options = Options {
            num_threads: 5,
            // SAFETY: the function may be called from any thread, and keeps nothing.
            parallel_for: Some(unsafe { ParallelFor::new(lazy, std::ptr::null_mut()) }),
            ..Options::default()
        };
        let mut executor = Executor::new(&options).unwrap();
        executor.prepare(ENTRIES).unwrap();
        let workers = workers_of(&mut executor);
        assert_eq!(workers.len(), 3 + 1);
    }

    #[test]
    fn a_panic_in_any_thread_reaches_the_caller_and_the_threads_still_end() {
        for num_threads in [1, 4] {
            let mut executor = executor(num_threads);
            let body = |i: usize| assert_ne!(i, 700, "a test asked for it");
            let ran = catch_unwind(AssertUnwindSafe(|| {
                executor.for_each(1000, ENTRIES, Incomplete::Fail, body)
            }));
            assert!(ran.is_err(), "{num_threads} threads");
            // Joins the threads.
            drop(executor);
        }
    }
}
