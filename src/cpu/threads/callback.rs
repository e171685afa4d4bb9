//! The engine's `parallel_for` as an executor.
//!
//! The engine is not trusted to run every task, each once, before it returns: tasks are claimed, so that one
//! that is run twice or late does no harm, and missing ones are noticed.

use std::cell::Cell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::config::ParallelFor;
use crate::error::{Result, fail};
use crate::memory::{try_box, try_with_capacity};

#[derive(Debug)]
pub(super) struct Callback {
    parallel_for: ParallelFor,
    /// Boxed: the engine holds its address.
    control: Box<Control>,
}

/// How much of a job the engine ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    All,
    Some { ran: usize, of: usize },
}

impl Ran {
    /// An error unless all ran.
    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::All => Ok(()),
            Self::Some { ran, of } => fail!(
                ParallelFor,
                "parallel_for returned after {ran} of {of} tasks; it must run all of them before it \
                 returns"
            ),
        }
    }
}

type Body<'a> = &'a (dyn Fn(usize) + Sync);

struct Control {
    tasks: Vec<AtomicU8>,
    /// Set while tasks may be claimed.
    body: Cell<Option<Body<'static>>>,
    panicked: AtomicBool,
}

// SAFETY: `body` is written only while no task can be claimed or is running, and read only by whoever has
// claimed a task; the claim (acquire) follows the offer (release).
unsafe impl Sync for Control {}

/// The states of a task.
const CLOSED: u8 = 0;
const OFFERED: u8 = 1;
const RUNNING: u8 = 2;

impl std::fmt::Debug for Control {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Control")
            .field("tasks", &self.tasks.len())
            .finish()
    }
}

impl Callback {
    /// For jobs of at most `most` tasks.
    pub(super) fn new(parallel_for: ParallelFor, most: usize) -> Result<Self> {
        let mut tasks = try_with_capacity(most, "the tasks of parallel_for")?;
        tasks.resize_with(most, || AtomicU8::new(CLOSED));
        let control = try_box(Control {
            tasks,
            body: Cell::new(None),
            panicked: AtomicBool::new(false),
        })?;
        Ok(Self {
            parallel_for,
            control,
        })
    }

    /// Has the engine run `body(i)` for every `i` below `n`. When it returns, no task is running, and none
    /// will. An error if a task panicked.
    pub(super) fn run(&mut self, n: usize, body: Body<'_>) -> Result<Ran> {
        let control = &*self.control;
        let tasks = &control.tasks[..n];
        // SAFETY: only the lifetime changes; the body is used by running tasks only, all of which have
        // ended when this function returns.
        let body = unsafe { std::mem::transmute::<Body<'_>, Body<'static>>(body) };
        control.body.set(Some(body));
        for task in tasks {
            task.store(OFFERED, Ordering::Release);
        }
        // SAFETY: `ParallelFor::new` asks that the function may be called with its context. `control` is
        // what `run_task` expects, and lives as long as the optimizer.
        unsafe {
            (self.parallel_for.function)(
                self.parallel_for.ctx,
                n as i64,
                run_task,
                (&raw const *control).cast_mut().cast(),
            );
        }
        let mut missing = 0;
        for task in tasks {
            match task.compare_exchange(OFFERED, CLOSED, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => missing += 1,
                // Still running, though the engine's function has returned: its data must outlive it.
                Err(RUNNING) => {
                    while task.load(Ordering::Acquire) == RUNNING {
                        std::thread::yield_now();
                    }
                }
                Err(_) => {}
            }
        }
        control.body.set(None);
        if control.panicked.swap(false, Ordering::Relaxed) {
            fail!(Internal, "a task of the step panicked inside the library");
        }
        Ok(match missing {
            0 => Ran::All,
            _ => Ran::Some {
                ran: n - missing,
                of: n,
            },
        })
    }
}

/// What the engine calls. Claims task `i`, unless it is already claimed, closed or no task at all.
unsafe extern "C" fn run_task(control: *mut c_void, i: i64) {
    // SAFETY: the engine passes on the pointer that it was given, to a `Control` that lives as long as the
    // optimizer.
    let control = unsafe { &*control.cast::<Control>() };
    let Some(task) = usize::try_from(i).ok().and_then(|i| control.tasks.get(i)) else {
        return;
    };
    let claim = task.compare_exchange(OFFERED, RUNNING, Ordering::AcqRel, Ordering::Relaxed);
    if claim.is_err() {
        return;
    }
    if let Some(body) = control.body.get() {
        // The optimizer is not used again after a panic.
        if catch_unwind(AssertUnwindSafe(|| body(i as usize))).is_err() {
            control.panicked.store(true, Ordering::Relaxed);
        }
    }
    task.store(CLOSED, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Task;
    use std::sync::atomic::AtomicUsize;

    unsafe extern "C" fn in_order(_: *mut c_void, n: i64, task: Task, task_ctx: *mut c_void) {
        for i in 0..n {
            // SAFETY: the library's own task and context.
            unsafe { task(task_ctx, i) };
        }
    }

    /// Each task twice, and numbers that are no tasks.
    unsafe extern "C" fn confused(_: *mut c_void, n: i64, task: Task, task_ctx: *mut c_void) {
        for i in (-3..n + 3).chain(0..n).chain([i64::MIN, i64::MAX]) {
            // SAFETY: as above.
            unsafe { task(task_ctx, i) };
        }
    }

    /// Leaves out the last task.
    unsafe extern "C" fn lazy(_: *mut c_void, n: i64, task: Task, task_ctx: *mut c_void) {
        // SAFETY: as above.
        unsafe { in_order(std::ptr::null_mut(), n - 1, task, task_ctx) };
    }

    /// Returns while its tasks are still running.
    unsafe extern "C" fn hasty(_: *mut c_void, n: i64, task: Task, task_ctx: *mut c_void) {
        let task_ctx = task_ctx as usize;
        let (started, starting) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for i in 0..n {
                // SAFETY: the test keeps the callback alive until this thread is done with it.
                unsafe { task(task_ctx as *mut c_void, i) };
                let _ = started.send(());
            }
        });
        let _ = starting.recv();
    }

    fn run(function: crate::ParallelForFunction, n: usize) -> (Result<Ran>, Vec<usize>) {
        // SAFETY: none of the functions looks at its context.
        let parallel_for = unsafe { ParallelFor::new(function, std::ptr::null_mut()) };
        let mut callback = Callback::new(parallel_for, n).unwrap();
        let runs: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
        let ran = callback.run(n, &|i| {
            runs[i].fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(2));
        });
        let counted = runs
            .iter()
            .map(|runs| runs.load(Ordering::Relaxed))
            .collect();
        // A late thread finds every task closed; give it the time to do so.
        std::thread::sleep(std::time::Duration::from_millis(20));
        (ran, counted)
    }

    #[test]
    fn each_task_runs_exactly_once_even_if_the_engine_repeats_itself() {
        for function in [in_order, confused as crate::ParallelForFunction] {
            let (ran, counted) = run(function, 5);
            assert_eq!(ran.unwrap(), Ran::All);
            assert_eq!(counted, [1; 5]);
        }
    }

    #[test]
    fn tasks_that_are_left_out_are_noticed() {
        let (ran, counted) = run(lazy, 5);
        assert_eq!(ran.unwrap(), Ran::Some { ran: 4, of: 5 });
        assert_eq!(counted, [1, 1, 1, 1, 0]);
    }

    #[test]
    fn tasks_that_are_running_when_the_engine_returns_are_waited_for() {
        let (ran, counted) = run(hasty, 4);
        let finished: usize = counted.iter().sum();
        match ran.unwrap() {
            Ran::All => assert_eq!(finished, 4),
            Ran::Some { ran, of } => assert_eq!((ran, of), (finished, 4)),
        }
        assert!(finished >= 1);
    }

    #[test]
    fn a_panic_in_a_task_becomes_an_error() {
        // SAFETY: `in_order` does not look at its context.
        let parallel_for = unsafe { ParallelFor::new(in_order, std::ptr::null_mut()) };
        let mut callback = Callback::new(parallel_for, 3).unwrap();
        let ran = callback.run(3, &|i| assert_ne!(i, 1, "a test asked for it"));
        assert_eq!(ran.unwrap_err().kind(), crate::ErrorKind::Internal);
        assert_eq!(callback.run(3, &|_| {}).unwrap(), Ran::All);
    }
}
