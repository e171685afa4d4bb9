//! Engines' own loops.

use std::ffi::c_void;

use mofo::Task;

/// An engine's `parallel_for`: tasks from last to first, on the calling thread.
pub unsafe extern "C" fn backwards(_: *mut c_void, n: i64, task: Task, task_ctx: *mut c_void) {
    for i in (0..n).rev() {
        // SAFETY: the library's own task and context, each number once.
        unsafe { task(task_ctx, i) };
    }
}

/// Another one: a thread for every task.
pub unsafe extern "C" fn scattered(_: *mut c_void, n: i64, task: Task, task_ctx: *mut c_void) {
    let task_ctx = task_ctx as usize;
    std::thread::scope(|scope| {
        for i in 0..n {
            // SAFETY: as above; the scope ends before the function returns.
            scope.spawn(move || unsafe { task(task_ctx as *mut c_void, i) });
        }
    });
}
