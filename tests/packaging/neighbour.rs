//! Another Rust library in the same program: it allocates, spawns a thread, panics and catches, and has a thread-local
//! value with a destructor, all of which need Rust's run time.

use std::cell::RefCell;

thread_local! {
    static SEEN: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The sum of 1 to `count`, computed in the clumsiest way; 0 if something is not as it should be.
#[unsafe(no_mangle)]
pub extern "C" fn neighbour_sum(count: u64) -> u64 {
    std::panic::set_hook(Box::new(|_| {}));
    let caught = std::panic::catch_unwind(|| {
        let values: Vec<u64> = (1..=count).collect();
        let sum = std::thread::spawn(move || {
            values.into_iter().for_each(|value| SEEN.with_borrow_mut(|seen| seen.push(value)));
            SEEN.with_borrow(|seen| seen.iter().sum::<u64>())
        })
        .join()
        .unwrap();
        std::panic::panic_any(sum);
    });
    let _ = std::panic::take_hook();
    match caught {
        Ok(()) => 0,
        Err(payload) => payload.downcast::<u64>().map_or(0, |sum| *sum),
    }
}
