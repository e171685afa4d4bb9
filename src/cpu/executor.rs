//! Who runs the tasks of a step: the calling thread alone, a pool of the optimizer's own, or the engine's
//! `parallel_for`.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::callback::{Callback, Ran};
use super::pool::Pool;
use crate::config::Options;
use crate::environment::DefaultEnvironment;
use crate::error::Result;

/// Below this many entries a job is not worth waking a thread for.
const ENTRIES_PER_THREAD: u64 = 1 << 15;

#[derive(Debug)]
pub(super) struct Executor {
    /// How many strands of work there may be, the calling thread's included.
    width: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Started by the first step that has enough work.
    Own(Option<Pool>),
    Engine(Callback),
}

/// What to do when the engine's `parallel_for` leaves tasks out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Incomplete {
    /// Report it: nothing has been changed yet.
    Fail,
    /// Run them on the calling thread: a step that has begun to write must end.
    Finish,
}

impl Executor {
    pub(super) fn new(options: &Options) -> Result<Self> {
        let width = match options.num_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let kind = match options.parallel_for {
            Some(parallel_for) => Kind::Engine(Callback::new(parallel_for, width)?),
            None => Kind::Own(None),
        };
        Ok(Self { width, kind })
    }

    /// Starts the threads that a job of this many entries needs, so that it cannot fail for want of them.
    pub(super) fn prepare(&mut self, entries: u64) -> Result<()> {
        let strands = self.strands(usize::MAX, entries);
        if let Kind::Own(pool) = &mut self.kind
            && strands > 1
        {
            if let Some(inherited) = pool.take_if(|pool| !pool.is_of_this_process()) {
                drop(inherited);
            }
            if pool.is_none() {
                *pool = Some(Pool::new(self.width)?);
            }
        }
        Ok(())
    }

    /// Asks the engine's `parallel_for` to run tasks that do nothing, to learn whether it runs all of them
    /// before anything is written.
    pub(super) fn probe(&mut self, items: usize, entries: u64) -> Result<()> {
        if matches!(self.kind, Kind::Engine(_)) {
            let strands = self.strands(items, entries);
            let ran = self.run(strands, &|_| {})?;
            return ran.check();
        }
        Ok(())
    }

    /// Runs `body(i)` for every `i` below `items`, together about `entries` entries of work, in no
    /// particular order. Idle strands take the next item, so uneven items balance out.
    pub(super) fn for_each(
        &mut self,
        items: usize,
        entries: u64,
        incomplete: Incomplete,
        body: &(dyn Fn(usize) + Sync),
    ) -> Result<()> {
        if items == 0 {
            return Ok(());
        }
        let next = AtomicUsize::new(0);
        let strand = |_: usize| {
            let _environment = DefaultEnvironment::enter();
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= items {
                    break;
                }
                body(item);
            }
        };
        let strands = self.strands(items, entries);
        let ran = self.run(strands, &strand)?;
        match incomplete {
            Incomplete::Fail => ran.check(),
            Incomplete::Finish => {
                if ran != Ran::All {
                    strand(0);
                }
                Ok(())
            }
        }
    }

    fn strands(&self, items: usize, entries: u64) -> usize {
        let worthwhile = match self.kind {
            Kind::Own(_) => entries.div_ceil(ENTRIES_PER_THREAD),
            // The engine decides what is worth waking its threads for.
            Kind::Engine(_) => u64::MAX,
        };
        self.width
            .min(items)
            .min(usize::try_from(worthwhile).unwrap_or(usize::MAX))
            .max(1)
    }

    fn run(&mut self, strands: usize, strand: &(dyn Fn(usize) + Sync)) -> Result<Ran> {
        match &mut self.kind {
            Kind::Engine(callback) => callback.run(strands, strand),
            Kind::Own(Some(pool)) if strands > 1 && pool.is_of_this_process() => {
                pool.run(strands, strand);
                Ok(Ran::All)
            }
            Kind::Own(_) => {
                strand(0);
                Ok(Ran::All)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
                .for_each(runs.len(), ENTRIES, Incomplete::Fail, &body)
                .unwrap();
            assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_in_any_thread_reaches_the_caller_and_the_threads_still_end() {
        for num_threads in [1, 4] {
            let mut executor = executor(num_threads);
            let body = |i: usize| assert_ne!(i, 700, "a test asked for it");
            let ran = catch_unwind(AssertUnwindSafe(|| {
                executor.for_each(1000, ENTRIES, Incomplete::Fail, &body)
            }));
            assert!(ran.is_err(), "{num_threads} threads");
            // Joins the threads.
            drop(executor);
        }
    }
}
