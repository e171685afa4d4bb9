//! The threshold of a block: the k-th largest key, exactly.
//!
//! How it is found changes the time, never the result. Here are the parts that all ways share, and the way for
//! small blocks, which one thread deals with alone while they are in its cache.

use std::sync::atomic::{AtomicU64, Ordering};

use super::kernels::{self, Bracket};
use super::plan::{PIECE, SMALL_BLOCK};
use super::sample;
use super::tier::Kernels;
use super::vector::MAX_LANES;
use crate::job::Job;
use crate::rule::select::kth_largest;

/// Keys that are computed at a time.
const TILE: usize = 1024;
/// Blocks up to this size are a case of their own, because there may be very many of them.
const TINY: usize = 16;
/// Most blocks of a model's vectors, and many blocks of a stacked tensor, are no larger.
const MEDIUM: usize = 1 << 12;
const LARGEST: usize = SMALL_BLOCK as usize;

/// A range of entries of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Range {
    /// The `i`-th piece of it.
    pub(super) fn piece(self, i: u64) -> Self {
        let offset = i * PIECE;
        Self {
            start: self.start + offset,
            len: PIECE.min(self.len - offset),
        }
    }
}

/// The rank of the threshold among the keys that a bracket holds, if it is there: `above` keys lie above the bracket.
pub(super) fn rank_inside(rank: u64, above: u64, inside: usize) -> Option<usize> {
    let rank = rank.checked_sub(above)?;
    (1..=inside as u64).contains(&rank).then_some(rank as usize)
}

/// The threshold of a block that one thread deals with alone; `hint` is about the threshold, or 0.
///
/// # Safety
///
/// As for [`super::kernels::keys`]; the block has at most [`SMALL_BLOCK`] entries.
pub(super) unsafe fn threshold_of_small_block(
    kernels: &Kernels,
    job: &Job,
    range: Range,
    hint: u32,
) -> u32 {
    // Clearing more room than is needed would cost more than the smallest blocks themselves.
    // SAFETY: the caller's promise.
    unsafe {
        if range.len <= TINY as u64 {
            threshold_by_keys(kernels, job, range, &mut [0; TINY + MAX_LANES])
        } else if range.len <= TILE as u64 {
            threshold_by_keys(kernels, job, range, &mut [0; TILE + MAX_LANES])
        } else if range.len <= MEDIUM as u64 {
            threshold_by_bracket(kernels, job, range, hint, &mut [0; room_for(MEDIUM / 4)])
        } else {
            threshold_by_bracket(kernels, job, range, hint, &mut [0; room_for(LARGEST / 8)])
        }
    }
}

/// Words for so many keys inside a bracket; the last tile, and a group more, are written before they are counted.
const fn room_for(inside: usize) -> usize {
    inside + TILE + MAX_LANES
}

/// The threshold of a block whose keys all find room.
///
/// # Safety
///
/// As for [`super::kernels::keys`]; `room` is longer than the range by [`MAX_LANES`].
#[inline(never)]
unsafe fn threshold_by_keys(kernels: &Kernels, job: &Job, range: Range, room: &mut [u32]) -> u32 {
    let len = range.len as usize;
    // SAFETY: the caller's promise.
    unsafe { kernels::keys(kernels, job, range.start, len, room.as_mut_ptr()) };
    kth_largest(&mut room[..len], job.rank as usize)
}

/// The threshold of a block: near the hint, or else by a sample, and if that fails by its digits.
///
/// # Safety
///
/// As for [`super::kernels::keys`]; the block has more than [`TILE`] entries, and `room` is longer than [`TILE`] and
/// [`MAX_LANES`] together.
#[inline(never)]
unsafe fn threshold_by_bracket(
    kernels: &Kernels,
    job: &Job,
    range: Range,
    hint: u32,
    room: &mut [u32],
) -> u32 {
    // SAFETY: the caller's promise; there is room for the sample, too (it checks).
    unsafe {
        if hint > 0 {
            let bracket = sample::around(hint, sample::OCTAVE / 8);
            if let Some(found) = threshold_inside(kernels, job, range, bracket, room) {
                return found;
            }
        }
        let bracket = sample::bracket(kernels, job, range, room);
        if let Some(found) = threshold_inside(kernels, job, range, bracket, room) {
            return found;
        }
    }
    let mut search = DigitSearch::new(job.rank);
    for digit in DIGITS {
        let mut counts: Counts = [0; BUCKETS];
        // SAFETY: the caller's promise.
        unsafe { count_range(kernels, job, range, search.upper, digit, &mut counts) };
        search.narrow(digit, |bucket| u64::from(counts[bucket]));
    }
    search.upper
}

/// The threshold of a block, if it lies inside a bracket that does not hold more than there is room for.
///
/// # Safety
///
/// As for [`threshold_by_bracket`].
unsafe fn threshold_inside(
    kernels: &Kernels,
    job: &Job,
    range: Range,
    bracket: Bracket,
    room: &mut [u32],
) -> Option<u32> {
    let capacity = room.len() - TILE - MAX_LANES;
    let (mut above, mut count, mut done) = (0, 0, 0);
    while done < range.len && count <= capacity {
        let n = (range.len - done).min(TILE as u64);
        // SAFETY: a part of the block; a tile's keys and a group more have room behind `capacity` others.
        let found = unsafe {
            let to = room.as_mut_ptr().add(count);
            kernels::collect(kernels, job, range.start + done, n as usize, bracket, to)
        };
        above += found.above;
        count += found.inside;
        done += n;
    }
    if done < range.len {
        return None;
    }
    let rank = rank_inside(job.rank, above, count)?;
    Some(kth_largest(&mut room[..count], rank))
}

/// The digits of a key, from the top: the lowest bit of each, and its size in bits.
pub(super) const DIGITS: [(u32, u32); 3] = [(20, 11), (9, 11), (0, 9)];
const BUCKETS: usize = 1 << 11;

/// How often each value of a digit occurs.
type Counts = [u32; BUCKETS];

/// What is known about the threshold so far: its upper bits, and its rank among the keys that share them.
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

    /// Goes on to the bucket that holds the rank, given how often each value of the digit occurs.
    pub(super) fn narrow(&mut self, (shift, bits): (u32, u32), count: impl Fn(usize) -> u64) {
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

/// Counts of a digit that threads add up together.
#[derive(Debug)]
pub(super) struct SharedCounts([AtomicU64; BUCKETS]);

impl SharedCounts {
    pub(super) fn new() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }

    pub(super) fn get(&self, bucket: usize) -> u64 {
        self.0[bucket].load(Ordering::Relaxed)
    }

    /// Counts a digit of one piece of a block, of at most `u32::MAX` entries.
    ///
    /// # Safety
    ///
    /// As for [`super::kernels::keys`].
    pub(super) unsafe fn add(
        &self,
        kernels: &Kernels,
        job: &Job,
        piece: Range,
        upper: u32,
        digit: (u32, u32),
    ) {
        let mut counts: Counts = [0; BUCKETS];
        // SAFETY: the caller's promise.
        unsafe { count_range(kernels, job, piece, upper, digit, &mut counts) };
        for (total, &here) in self.0.iter().zip(&counts) {
            if here != 0 {
                total.fetch_add(u64::from(here), Ordering::Relaxed);
            }
        }
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
    range: Range,
    upper: u32,
    (shift, bits): (u32, u32),
    counts: &mut Counts,
) {
    let mut keys = [0u32; TILE + MAX_LANES];
    let mut done = 0;
    while done < range.len {
        let n = (range.len - done).min(TILE as u64) as usize;
        // SAFETY: a part of the caller's range; `keys` has room for it and a group more.
        unsafe { kernels::keys(kernels, job, range.start + done, n, keys.as_mut_ptr()) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::random::{Key, Stream, hash_name};
    use crate::{Optimizer, Options, StepArgs, TensorBinding, TensorSpec};

    const NAME: &str = "weight";

    /// Some that one thread deals with, up to the largest, and some that all threads share.
    const LENGTHS: [usize; 6] = [2000, 30_000, LARGEST, LARGEST + 1, 70_001, 300_000];

    /// Steps a tensor once, and checks the threshold against a sort.
    fn check(grads: &[f32], update_fraction: f64) {
        let mut sorted: Vec<f32> = grads.iter().map(|g| g.abs()).collect();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        let k = (update_fraction * grads.len() as f64) as usize;
        // In the first step the first moment is a tenth of the gradient.
        let expected = (1.0 - 0.9f64) as f32 * sorted[k.max(1) - 1];
        for num_threads in [1, 2] {
            let options = Options {
                update_fraction,
                num_threads,
                ..Options::default()
            };
            let mut optimizer = Optimizer::new(options).unwrap();
            let index = optimizer
                .add_tensor(&TensorSpec::new(NAME, grads.len() as u64))
                .unwrap();
            let mut param = vec![0f32; grads.len()];
            let binding = TensorBinding::new(index, &mut param[..], grads);
            optimizer
                .step(&StepArgs::default(), &mut [binding])
                .unwrap();
            assert_eq!(
                optimizer.tensor_state(index).unwrap().thresholds,
                [expected]
            );
            let moved = param.iter().filter(|p| **p != 0.0).count();
            assert_eq!(
                moved,
                grads
                    .iter()
                    .filter(|g| (1.0 - 0.9f64) as f32 * g.abs() >= expected)
                    .count()
            );
        }
    }

    /// Gradients that are large on the lines that the first step's sample reads, or on the others.
    fn misleading(len: usize, large_on_sample: bool) -> Vec<f32> {
        let range = Range {
            start: 0,
            len: len as u64,
        };
        let key = Key::new(0, hash_name(NAME), 1, Stream::Filter)
            .span(0)
            .first;
        let lines = sample::lines(range.len);
        let mut grads: Vec<f32> = (0..len).map(|i| 1.0 + i as f32 / len as f32).collect();
        let mut sampled = vec![false; len];
        for i in 0..lines {
            let start = sample::line(range, lines, i, key) as usize;
            sampled[start..start + sample::LINE].fill(true);
        }
        for (grad, sampled) in grads.iter_mut().zip(sampled) {
            if sampled == large_on_sample {
                *grad *= 100.0;
            }
        }
        grads
    }

    #[test]
    fn two_lines_are_sampled_from_every_stratum() {
        for len in [1025, 4096, 30_001, 1_000_003] {
            let lines = sample::lines(len);
            let range = Range { start: 7, len };
            let key = Key::new(1, 2, 3, Stream::Filter).span(0).first;
            let mut end = range.start;
            for stratum in 0..lines / 2 {
                let [one, other] = [0, 1].map(|i| sample::line(range, lines, 2 * stratum + i, key));
                assert!(one.min(other) >= end);
                end = one.max(other) + sample::LINE as u64;
                assert!(end <= range.start + len);
            }
        }
    }

    #[test]
    fn a_bracket_that_is_too_low_or_too_high_does_no_harm() {
        for len in LENGTHS {
            for fraction in [0.001, 0.03, 0.3, 0.7, 0.99] {
                check(&misleading(len, true), fraction);
                check(&misleading(len, false), fraction);
            }
        }
    }

    #[test]
    fn a_bracket_that_holds_everything_does_no_harm() {
        for len in LENGTHS {
            check(&vec![0.5; len], 0.03);
            // Two values that straddle the threshold.
            check(
                &(0..len)
                    .map(|i| if i % 10 == 3 { 0.75 } else { 0.5 })
                    .collect::<Vec<_>>(),
                0.1,
            );
        }
    }

    #[test]
    fn sorted_blocks() {
        for len in LENGTHS {
            let ascending: Vec<f32> = (0..len).map(|i| i as f32 / 1000.0).collect();
            let descending: Vec<f32> = ascending.iter().rev().copied().collect();
            for fraction in [0.001, 0.1, 0.9] {
                check(&ascending, fraction);
                check(&descending, fraction);
            }
        }
    }
}
