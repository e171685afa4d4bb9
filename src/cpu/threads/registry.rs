//! The pools of the process, by their width.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use super::pool::Pool;
use crate::error::Result;
use crate::memory::try_reserve_one;

/// A pool that optimizers may share.
struct Listed {
    width: usize,
    process: u32,
    pool: Weak<Pool>,
}

/// A list under a lock that knows which process holds it: a child that is forked while a thread holds the lock has that
/// thread no more.
struct Registry {
    /// The process of the thread that holds the lock, or 0.
    holder: AtomicU32,
    /// Empty, and without memory, when the last pool has gone.
    pools: UnsafeCell<Vec<Listed>>,
}

// SAFETY: the list is used only by who holds the lock.
unsafe impl Sync for Registry {}

static REGISTRY: Registry = Registry {
    holder: AtomicU32::new(0),
    pools: UnsafeCell::new(Vec::new()),
};

/// Frees the lock when it goes.
struct Lock<'a>(&'a Registry);

impl Registry {
    /// Runs `body` with the list, one thread at a time. It may not come here again.
    fn with<R>(&self, body: impl FnOnce(&mut Vec<Listed>) -> R) -> R {
        let process = std::process::id();
        loop {
            let take = |from| {
                let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
                self.holder
                    .compare_exchange(from, process, success, failure)
            };
            match take(0) {
                Ok(_) => break,
                Err(holder) if holder != 0 && holder != process => {
                    // Of the parent, in whose thread the list may have been half changed.
                    if take(holder).is_ok() {
                        // SAFETY: this thread holds the lock. What the list held is given up, as a child gives up all that
                        // only its parent has.
                        unsafe { self.pools.get().write(Vec::new()) };
                        break;
                    }
                }
                Err(_) => std::thread::yield_now(),
            }
        }
        let _lock = Lock(self);
        // SAFETY: this thread holds the lock.
        body(unsafe { &mut *self.pools.get() })
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        self.0.holder.store(0, Ordering::Release);
    }
}

/// The process's pool of this width. One whose threads cannot all be started is not shared.
pub(super) fn pool(width: usize) -> Result<Arc<Pool>> {
    let process = std::process::id();
    REGISTRY.with(|pools| {
        // No pool but the one that is returned is held meanwhile: whoever drops a pool needs the list.
        let found = pools
            .iter()
            .filter(|listed| listed.width == width && listed.process == process)
            .find_map(|listed| listed.pool.upgrade());
        if let Some(pool) = found {
            return Ok(pool);
        }
        try_reserve_one(pools, "the thread pool")?;
        let pool = Arc::new(Pool::new(width)?);
        if pool.is_complete() {
            pools.push(Listed {
                width,
                process,
                pool: Arc::downgrade(&pool),
            });
        }
        Ok(pool)
    })
}

/// Forgets pools that have gone.
pub(super) fn clean_up() {
    REGISTRY.with(|pools| {
        pools.retain(|listed| listed.pool.strong_count() > 0);
        if pools.is_empty() {
            *pools = Vec::new();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(width: usize) -> usize {
        REGISTRY.with(|pools| pools.iter().filter(|listed| listed.width == width).count())
    }

    #[test]
    fn pools_of_one_width_are_one_while_anybody_uses_it() {
        // No other test asks for these widths.
        let first = pool(31).unwrap();
        let second = pool(31).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        let other = pool(29).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
        drop(first);
        let ended = Arc::downgrade(&second);
        assert_eq!(count(31), 1);
        drop(second);
        assert!(ended.upgrade().is_none());
        assert_eq!(count(31), 0);
    }

    #[test]
    fn threads_that_ask_at_the_same_time_get_the_same() {
        let start = std::sync::Barrier::new(8);
        let ask = || {
            start.wait();
            pool(27).unwrap()
        };
        let pools: Vec<_> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            asking
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(pools.iter().all(|pool| Arc::ptr_eq(pool, &pools[0])));
        assert_eq!(count(27), 1);
    }

    /// As in a child that was forked while another thread had the lock.
    #[test]
    fn a_lock_of_another_process_is_taken_over() {
        let registry = Registry {
            holder: AtomicU32::new(u32::MAX),
            pools: UnsafeCell::new(vec![Listed {
                width: 2,
                process: u32::MAX,
                pool: Weak::new(),
            }]),
        };
        registry.with(|pools| assert!(pools.is_empty()));
        assert_eq!(registry.holder.into_inner(), 0);
    }
}
