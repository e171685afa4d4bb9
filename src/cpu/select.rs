//! The threshold of a block: the k-th largest key, exactly.
//!
//! Keys have 31 bits. A histogram of their upper digits tells which bucket holds the k-th largest; the next
//! digit is then counted in that bucket alone, and so on until every bit is known. Keys are recomputed from
//! the gradient and the moments in every round: nothing is written before all thresholds are known, and no
//! memory is needed but the histograms.

use std::sync::atomic::{AtomicU64, Ordering};

use super::tier::Kernels;
use crate::backend::Job;
use crate::rule::select::kth_largest;

/// The digits of a key, from the top: the lowest bit of each, and its size in bits.
pub(super) const DIGITS: [(u32, u32); 3] = [(20, 11), (9, 11), (0, 9)];
const BUCKETS: usize = 1 << 11;
/// Keys that are computed at a time.
const TILE: usize = 1024;

/// How often each value of a digit occurs.
type Counts = [u32; BUCKETS];

/// What is known about the threshold so far: its upper bits, and its rank among the keys that share them.
#[derive(Clone, Copy, Debug)]
struct Search {
    upper: u32,
    rank: u64,
}

impl Search {
    /// Goes on to the bucket that holds the rank, given how often each value of the digit occurs.
    fn narrow(&mut self, (shift, bits): (u32, u32), count: impl Fn(usize) -> u64) {
        for bucket in (0..1usize << bits).rev() {
            let here = count(bucket);
            if self.rank <= here {
                self.upper |= (bucket as u32) << shift;
                return;
            }
            self.rank -= here;
        }
        unreachable!("the rank is at most the number of keys");
    }
}

/// Counts a digit of the keys of a range that share the upper bits.
///
/// # Safety
///
/// As for [`super::kernels::keys`].
unsafe fn count_range(
    kernels: &Kernels,
    job: &Job,
    start: u64,
    len: u64,
    upper: u32,
    (shift, bits): (u32, u32),
    counts: &mut Counts,
) {
    let mut keys = [0u32; TILE];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(TILE as u64) as usize;
        // SAFETY: a part of the caller's range, and `keys` has room for it.
        unsafe { (kernels.keys)(job, start + done, n, keys.as_mut_ptr()) };
        let mask = (1u32 << bits) - 1;
        for &key in &keys[..n] {
            // Both sides lack the bits below the digit; above it they must agree.
            let digit = (key >> shift) ^ (upper >> shift);
            if digit <= mask {
                counts[digit as usize] += 1;
            }
        }
        done += n as u64;
    }
}

/// The threshold of a block that one thread deals with alone.
///
/// # Safety
///
/// As for [`super::kernels::keys`]; the block has at most `u32::MAX` entries.
pub(super) unsafe fn threshold_of_small_block(
    kernels: &Kernels,
    job: &Job,
    start: u64,
    len: u64,
) -> u32 {
    if len <= TILE as u64 {
        let mut keys = [0u32; TILE];
        // SAFETY: the caller's promise, and `keys` has room for `len`.
        unsafe { (kernels.keys)(job, start, len as usize, keys.as_mut_ptr()) };
        return kth_largest(&mut keys[..len as usize], job.rank as usize);
    }
    let mut search = Search {
        upper: 0,
        rank: job.rank,
    };
    for digit in DIGITS {
        let mut counts: Counts = [0; BUCKETS];
        // SAFETY: the caller's promise.
        unsafe { count_range(kernels, job, start, len, search.upper, digit, &mut counts) };
        search.narrow(digit, |bucket| u64::from(counts[bucket]));
    }
    search.upper
}

/// The search for the threshold of a block that all threads work on together.
#[derive(Debug)]
pub(super) struct SharedSearch {
    search: Search,
    counts: [AtomicU64; BUCKETS],
}

impl SharedSearch {
    pub(super) fn new(rank: u64) -> Self {
        Self {
            search: Search { upper: 0, rank },
            counts: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// Counts a digit in one piece of the block, of at most `u32::MAX` entries. Any number of threads may do
    /// so at once.
    ///
    /// # Safety
    ///
    /// As for [`super::kernels::keys`].
    pub(super) unsafe fn count(
        &self,
        kernels: &Kernels,
        job: &Job,
        start: u64,
        len: u64,
        digit: (u32, u32),
    ) {
        let mut counts: Counts = [0; BUCKETS];
        // SAFETY: the caller's promise.
        unsafe {
            count_range(
                kernels,
                job,
                start,
                len,
                self.search.upper,
                digit,
                &mut counts,
            )
        };
        for (total, &here) in self.counts.iter().zip(&counts) {
            if here != 0 {
                total.fetch_add(u64::from(here), Ordering::Relaxed);
            }
        }
    }

    /// Ends a round: every piece was counted.
    pub(super) fn narrow(&mut self, digit: (u32, u32)) {
        let counts = &mut self.counts;
        self.search
            .narrow(digit, |bucket| counts[bucket].load(Ordering::Relaxed));
        for count in counts {
            *count.get_mut() = 0;
        }
    }

    /// The threshold, once all digits are known.
    pub(super) fn threshold(&self) -> u32 {
        self.search.upper
    }
}
