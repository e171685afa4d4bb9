//! The k-th largest of many keys.

use crate::cpu::kernels::{Kernels, KeyRange, LINE};
use crate::cpu::simd::vector::MAX_LANES;
use crate::rule::convert::INFINITE;
use crate::rule::select::kth_largest;

/// So many keys need not be narrowed down before one of them is selected.
const FEW: u64 = 4096;
/// Keys that are sampled to narrow down the others.
const SAMPLED: usize = 8192;
/// Keys that are sifted at a time.
const PART: usize = 1024;

/// A factor of two between floats, as a difference of their bits.
pub(super) const OCTAVE: u32 = 1 << 23;

/// The keys from some distance below one up to as much above it.
pub(super) fn around(key: u32, distance: u32) -> KeyRange {
    (
        key.saturating_sub(distance),
        key.saturating_add(distance).min(INFINITE),
    )
}

/// The keys of a sample that lie in some range.
pub(super) struct Near<'a> {
    keys: &'a mut [u32],
    /// Keys above the range.
    above: u64,
}

impl<'a> Near<'a> {
    /// `work_space` is as long as the sample, and [`MAX_LANES`] more.
    pub(super) fn new(
        kernels: &Kernels,
        sample: &[u32],
        range: KeyRange,
        work_space: &'a mut [u32],
    ) -> Self {
        assert!(work_space.len() >= sample.len() + MAX_LANES);
        // SAFETY: there is room for all keys and a group more (asserted above).
        let found = unsafe {
            let (from, to) = (sample.as_ptr(), work_space.as_mut_ptr());
            (kernels.sift)(from, sample.len(), range, to)
        };
        Self {
            keys: &mut work_space[..found.inside],
            above: found.above,
        }
    }

    /// True if the `rank`-th largest key of the sample lies in the range.
    pub(super) fn holds(&self, rank: u64) -> bool {
        self.above < rank && rank <= self.above + self.keys.len() as u64
    }

    /// The `rank`-th largest key of the sample, which lies in the range.
    pub(super) fn largest(&mut self, rank: u64) -> u32 {
        kth_largest(self.keys, (rank - self.above) as usize)
    }
}

/// The `rank`-th largest of some keys, all of which lie in a range. `work_space` is work space, for more than 2 ·
/// [`MAX_LANES`].
pub(super) fn kth_of_many(
    kernels: &Kernels,
    keys: &[u32],
    (mut low, mut high): KeyRange,
    rank: u64,
    work_space: &mut [u32],
) -> u32 {
    let (mut count, mut above) = (keys.len() as u64, 0);
    // Each round leaves fewer: by guessing, by sampling them, or else by halving their range.
    let mut guesses = true;
    let mut halves = false;
    let few = FEW.min(work_space.len() as u64 / 2 - MAX_LANES as u64);
    while low < high {
        let share = (rank - above) as f64 / count as f64;
        let range = if count <= few {
            (low, high)
        } else if std::mem::take(&mut guesses) {
            by_position((low, high), share, count)
        } else if halves {
            (low, low + (high - low) / 2)
        } else {
            let most = SAMPLED.min(work_space.len());
            let sample = stride_sample(keys, (low, high), count, &mut work_space[..most]);
            by_sample(sample, (low, high), share)
        };
        let found = sift(kernels, keys, range, work_space);
        let inside = found.above + found.inside;
        if rank <= found.above {
            low = range.1 + 1;
            halves = found.above - above > count / 2;
            count = found.above - above;
        } else if rank <= inside {
            if let Some(keys) = found.keys {
                return kth_largest(keys, (rank - found.above) as usize);
            }
            halves = found.inside > count / 2;
            (low, high) = range;
            (above, count) = (found.above, found.inside);
        } else {
            high = range.0 - 1;
            let left = count - (inside - above);
            halves = left > count / 2;
            (above, count) = (inside, left);
        }
    }
    low
}

/// How many keys lie above a range and inside it.
struct Found<'a> {
    above: u64,
    inside: u64,
    /// Those inside, if there was room for all of them.
    keys: Option<&'a mut [u32]>,
}

fn sift<'a>(
    kernels: &Kernels,
    keys: &[u32],
    range: KeyRange,
    work_space: &'a mut [u32],
) -> Found<'a> {
    let most = PART.min((work_space.len() - MAX_LANES) / 2);
    let (mut above, mut inside, mut kept) = (0, 0, 0);
    let mut fits = true;
    for part in keys.chunks(most) {
        if kept + part.len() + MAX_LANES > work_space.len() {
            (fits, kept) = (false, 0);
        }
        // SAFETY: behind the keys that are kept there is room for the part, and for a group more: checked just
        // now, or so by the choice of `most`.
        let found = unsafe {
            let to = work_space.as_mut_ptr().add(kept);
            (kernels.sift)(part.as_ptr(), part.len(), range, to)
        };
        above += found.above;
        inside += found.inside as u64;
        kept += found.inside;
    }
    Found {
        above,
        inside,
        keys: fits.then(|| &mut work_space[..kept]),
    }
}

/// Some of the `count` keys in a range, by short runs that are evenly spread.
fn stride_sample<'a>(
    keys: &[u32],
    (low, high): KeyRange,
    count: u64,
    work_space: &'a mut [u32],
) -> &'a mut [u32] {
    let most = work_space.len() / 2;
    let stride = count.div_ceil(most as u64) as usize * LINE;
    let mut n = 0;
    for run in keys.chunks(stride) {
        for &key in &run[..run.len().min(LINE)] {
            if n < work_space.len() {
                work_space[n] = key;
                n += usize::from((low..=high).contains(&key));
            }
        }
    }
    &mut work_space[..n]
}

/// Where the key that a `share` of the `count` keys in a range reach probably lies, if they are spread evenly.
fn by_position((low, high): KeyRange, share: f64, count: u64) -> KeyRange {
    let width = f64::from(high - low);
    let centre = f64::from(high) - share * width;
    let margin = width * (1.0 / 32.0 + 2.0 * (share * (1.0 - share) / count as f64).sqrt());
    (
        ((centre - margin) as u32).clamp(low, high),
        ((centre + margin) as u32).clamp(low, high),
    )
}

/// Where the key that a `share` of all keys in a range reach probably lies, by a sample of them.
fn by_sample(sample: &mut [u32], (low, high): KeyRange, share: f64) -> KeyRange {
    let n = sample.len();
    let expected = n as f64 * share;
    let margin = 2.0 * (n as f64).sqrt();
    let lowest = (expected + margin) as usize;
    let highest = (expected - margin) as usize;
    let inner_low = if lowest < n {
        kth_largest(sample, lowest.max(1))
    } else {
        low
    };
    let inner_high = if highest >= 1 {
        kth_largest(sample, highest)
    } else {
        high
    };
    (inner_low, inner_high)
}

/// The digits of a key, from the top: the lowest bit of each, and its size in bits.
pub(super) const DIGITS: [Digit; 3] = [(20, 11), (9, 11), (0, 9)];
pub(super) const BUCKETS: usize = 1 << 11;

pub(super) type Digit = (u32, u32);

/// How often each value of a digit occurs.
pub(super) type Counts = [u32; BUCKETS];

/// What is known about a threshold so far: its upper bits, and its rank among the keys that share them.
#[derive(Clone, Copy, Debug)]
pub(super) struct DigitSearch {
    /// The threshold, once all digits are known.
    pub(super) upper: u32,
    rank: u64,
}

impl DigitSearch {
    pub(super) fn new(rank: u64) -> Self {
        Self { upper: 0, rank }
    }

    /// Counts a digit of those of some keys that share the upper bits.
    pub(super) fn count(&self, (shift, bits): Digit, keys: &[u32], counts: &mut Counts) {
        let mask = (1u32 << bits) - 1;
        for &key in keys {
            // Both sides lack the bits below the digit; above it they must agree.
            let digit = (key >> shift) ^ (self.upper >> shift);
            if digit <= mask {
                counts[digit as usize] += 1;
            }
        }
    }

    /// Goes on to the bucket that holds the rank, given how often each value of the digit occurs. Where the keys are fewer
    /// than the rank, those that are missing are 0.
    pub(super) fn narrow(&mut self, (shift, bits): Digit, count: impl Fn(usize) -> u64) {
        for bucket in (0..1usize << bits).rev() {
            let here = count(bucket);
            if self.rank <= here || bucket == 0 {
                self.upper |= (bucket as u32) << shift;
                return;
            }
            self.rank -= here;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::random::mix64;

    const KINDS: [fn(u64) -> u32; 7] = [
        |i| mix64(i) as u32 % INFINITE,
        |i| 1_000_000 + mix64(i) as u32 % 1000,
        |i| [3, 5, 7][mix64(i) as usize % 3],
        |i| u32::from(mix64(i).is_multiple_of(100)),
        |i| i as u32,
        |i| INFINITE - i as u32,
        |_| 12345,
    ];

    /// Some ranks, with the key that a sort finds for each.
    fn ranks(keys: &[u32]) -> Vec<(u64, u32)> {
        let mut sorted = keys.to_vec();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let count = keys.len() as u64;
        let drawn = (0..6).map(|i| 1 + mix64(count + i) % count);
        [1, 2, count / 2, count - 1, count]
            .into_iter()
            .chain(drawn)
            .map(|rank| rank.clamp(1, count))
            .map(|rank| (rank, sorted[rank as usize - 1]))
            .collect()
    }

    #[test]
    fn the_kth_of_many_keys_is_that_of_a_sort() {
        let kernels = Kernels::choose(None).unwrap();
        for kind in KINDS {
            for count in [1, 2, 17, 1000, 5000, 40_000] {
                let keys: Vec<u32> = (0..count).map(kind).collect();
                let ends = (*keys.iter().min().unwrap(), *keys.iter().max().unwrap());
                for (rank, expected) in ranks(&keys) {
                    for range in [(0, INFINITE), ends] {
                        for words in [64, 200, 3000, 50_000] {
                            let mut work_space = vec![0; words];
                            let found = kth_of_many(kernels, &keys, range, rank, &mut work_space);
                            assert_eq!(found, expected, "{rank} of {count}, {words} words");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn keys_near_another_hold_what_a_sort_finds_there() {
        let kernels = Kernels::choose(None).unwrap();
        for kind in KINDS {
            let keys: Vec<u32> = (0..1003).map(kind).collect();
            let mut work_space = vec![0; keys.len() + MAX_LANES];
            for (rank, expected) in ranks(&keys) {
                for range in [
                    around(expected, 0),
                    around(expected, 100),
                    (0, INFINITE),
                    (0, expected),
                    (expected, INFINITE),
                ] {
                    let mut near = Near::new(kernels, &keys, range, &mut work_space);
                    assert!(near.holds(rank), "{rank} in {range:?}");
                    assert_eq!(near.largest(rank), expected, "{rank} in {range:?}");
                }
                for range in [(expected + 1, INFINITE), (0, expected.saturating_sub(1))] {
                    let holds = Near::new(kernels, &keys, range, &mut work_space).holds(rank);
                    assert_eq!(holds, expected == 0 && range.0 == 0, "{rank} in {range:?}");
                }
            }
        }
    }

    /// Keys of 0 may be left out.
    #[test]
    fn digits_find_what_a_sort_finds() {
        for kind in KINDS {
            for count in [1, 17, 5000] {
                let keys: Vec<u32> = (0..count).map(kind).collect();
                let above_zero: Vec<u32> = keys.iter().copied().filter(|&key| key > 0).collect();
                for (rank, expected) in ranks(&keys) {
                    let mut search = DigitSearch::new(rank);
                    for digit in DIGITS {
                        let mut counts = [0; BUCKETS];
                        let (some, others) = above_zero.split_at(above_zero.len() / 3);
                        search.count(digit, some, &mut counts);
                        search.count(digit, others, &mut counts);
                        search.narrow(digit, |bucket| counts[bucket].into());
                    }
                    assert_eq!(search.upper, expected, "{rank} of {count}");
                }
            }
        }
    }
}
