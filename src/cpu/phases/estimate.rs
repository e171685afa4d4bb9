//! Estimate: a bracket for the threshold of a block, by a sample of its keys.
//!
//! The block is cut into strata, and two random lines are drawn from each. Entries of a line may be alike (rows of
//! one scale, rows without a gradient), so how far the estimate may be off is itself estimated from how the two lines
//! of each stratum differ.
//!
//! How many of the sampled momenta reached the threshold of the step before tells in which direction the sample is off,
//! because of all entries that number is known: a regression on it (W. G. Cochran, Sampling Techniques, 3rd edition,
//! chapter 7) makes the bracket narrower.

use super::Range;
use super::decide::Decision;
use super::order::{Near, OCTAVE, around};
use crate::config::Filter;
use crate::cpu::kernels::{self, Bracket, Kernels, LINE, Sampled};
use crate::cpu::simd::prefetch;
use crate::cpu::simd::vector::MAX_LANES;
use crate::job::Job;
use crate::rule::convert::INFINITE;
use crate::rule::random::mix32;

/// Lines whose memory is asked for before the first of them is needed.
const GROUP: usize = 32;
/// Half the width of the bracket, in standard deviations of the estimate.
const SIGMAS: f64 = 4.0;
/// The same where the first bracket did not hold the threshold, or more than there was room for.
const WIDER_SIGMAS: f64 = 6.0;
const NARROWER_SIGMAS: f64 = 1.5;
/// Pairs of lines that are drawn if there are so many.
const LEAST_PAIRS: usize = 20;
/// Pairs of lines from which the deviation is estimated.
const MOST_COUNTED_PAIRS: usize = 1024;
/// More standard deviations than that, and what is known of the step before does not hold any more.
const MOST_SIGMAS_BEFORE: f64 = 5.0;

/// How many lines are drawn from a block.
///
/// A sample of n keys costs time in proportion to n; the entries that its bracket leaves open, len · n^(-1/2) in
/// proportion, cost about as much each. The sum is smallest for n in proportion to len^(2/3).
pub(super) fn lines(len: u64) -> usize {
    let keys = 0.6 * (len as f64).powf(2.0 / 3.0);
    let most = (len / (2 * LINE) as u64).max(1) as usize;
    2 * ((keys / (2 * LINE) as f64) as usize)
        .max(LEAST_PAIRS)
        .min(most)
}

/// Words that the sample of a block takes, work space included.
pub(super) fn sample_words(len: u64) -> usize {
    lines(len) * (2 * LINE + 1) + MAX_LANES
}

/// About how many entries a bracket leaves open at most, where a `share` of the block moves.
pub(super) fn open_at_most(len: u64, share: f64) -> u64 {
    let sampled = (lines(len) * LINE) as f64;
    let deviation = (share * (1.0 - share) / sampled).sqrt();
    (len as f64 * 2.0 * SIGMAS * deviation) as u64
}

/// A sample of a block.
#[derive(Debug)]
pub(super) struct Sample<'a> {
    /// [`LINE`] for each line.
    keys: &'a mut [u32],
    /// One for each line, as [`Sampled::before`] says.
    before: &'a mut [u32],
    /// As long as the keys and a group of lanes more.
    pub(super) work_space: &'a mut [u32],
}

impl<'a> Sample<'a> {
    /// In words as [`sample_words`] says.
    pub(super) fn new(words: &'a mut [u32], lines: usize) -> Self {
        let (keys, rest) = words.split_at_mut(lines * LINE);
        let (before, work_space) = rest.split_at_mut(lines);
        Self {
            keys,
            before,
            work_space,
        }
    }

    /// Where the lines from `first` on go.
    pub(super) fn place_of_line(&mut self, first: usize) -> Sampled {
        Sampled {
            keys: self.keys[first * LINE..].as_mut_ptr(),
            before: self.before[first..].as_mut_ptr(),
        }
    }
}

/// Where the `i`-th of `lines` sampled lines of a range starts: a random place of its stratum, which it shares with one
/// neighbour, so that no period of the data can hide from the sample.
pub(super) fn line(range: Range, lines: usize, i: usize, key: u32) -> u64 {
    let (strata, i) = (lines as u64 / 2, i as u64);
    let total = range.len / LINE as u64;
    let first = i / 2 * total / strata;
    let stratum = (i / 2 + 1) * total / strata - first;
    let draw = u64::from(mix32(i as u32 ^ key));
    range.start + (first + ((draw * stratum) >> 32)) * LINE as u64
}

/// Samples the lines `first..last` of the `lines` of a block.
///
/// # Safety
///
/// As for [`kernels::lines`]; the block has at least one line.
pub(super) unsafe fn gather(
    kernels: &Kernels,
    job: &Job,
    block: Range,
    lines: usize,
    (first, last): (usize, usize),
    threshold_before: u32,
    to: Sampled,
) {
    let key = job.random.span(0).first;
    // While the keys of one group are computed, the memory of the next is on its way.
    let mut groups = [[0u64; GROUP]; 2];
    let ask_for = |starts: &mut [u64; GROUP], first: usize| {
        let count = GROUP.min(last.saturating_sub(first));
        for (i, start) in starts[..count].iter_mut().enumerate() {
            *start = line(block, lines, first + i, key);
            let at = *start as usize;
            prefetch(job.grad.wrapping_add(at * job.grad_dtype.size()));
            prefetch(job.exp_avg.wrapping_add(at * job.state_dtype.size()));
            if job.filter == Filter::Update {
                prefetch(job.exp_avg_sq.wrapping_add(at * job.state_dtype.size()));
            }
        }
        count
    };
    let [mut now, mut next] = groups.each_mut();
    let mut count = ask_for(now, first);
    let mut done = first;
    while count > 0 {
        let next_count = ask_for(next, done + count);
        let to = Sampled {
            keys: to.keys.wrapping_add((done - first) * LINE),
            before: to.before.wrapping_add(done - first),
        };
        // SAFETY: the lines lie within the block, and there is room for their keys (the caller's promise).
        unsafe { kernels::lines(kernels, job, &now[..count], threshold_before, to) };
        done += count;
        count = next_count;
        std::mem::swap(&mut now, &mut next);
    }
}

/// Which key of a block is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// The `rank`-th largest of `len`.
    pub(super) rank: u64,
    pub(super) len: u64,
    /// The rank of the threshold that [`Sampled::before`] counts from; 0 if it is not known.
    pub(super) rank_before: u64,
}

impl Target {
    pub(super) fn for_job(job: &Job) -> Self {
        Self {
            rank: job.rank,
            len: job.block_numel,
            rank_before: job.rank_before,
        }
    }
}

/// Where the sample says that the target lies. `hint` is about the threshold, or 0.
pub(super) fn bracket(
    kernels: &Kernels,
    sample: &mut Sample<'_>,
    target: Target,
    hint: u32,
) -> Bracket {
    bracket_of(kernels, sample, target, hint, SIGMAS)
}

/// Where it probably lies, given what came of an earlier bracket; `None` if nothing is left of it.
pub(super) fn bracket_again(
    kernels: &Kernels,
    sample: &mut Sample<'_>,
    target: Target,
    earlier: Bracket,
    decision: Decision,
) -> Option<Bracket> {
    let mut again = |sigmas| bracket_of(kernels, sample, target, earlier.low, sigmas);
    let Bracket { low, high } = match decision {
        Decision::Above => {
            let wider = again(WIDER_SIGMAS);
            Bracket {
                low: wider.low.max(earlier.high),
                ..wider
            }
        }
        Decision::Below => {
            let wider = again(WIDER_SIGMAS);
            Bracket {
                high: wider.high.min(earlier.low),
                ..wider
            }
        }
        Decision::Inside | Decision::Threshold(_) => again(NARROWER_SIGMAS),
    };
    (low < high).then_some(Bracket { low, high })
}

fn bracket_of(
    kernels: &Kernels,
    sample: &mut Sample<'_>,
    target: Target,
    hint: u32,
    sigmas: f64,
) -> Bracket {
    let Sample {
        keys,
        before,
        work_space,
    } = sample;
    let sampled = keys.len() as u64;
    let expected_of = |rank: u64| sampled as f64 * rank as f64 / target.len as f64;
    let share = target.rank as f64 / target.len as f64;
    let expected = expected_of(target.rank);
    let nearest = |rank: f64| (rank.round() as u64).clamp(1, sampled);
    // Keys far from the threshold do not matter, if it is about where it was.
    let mut near = Near::new(kernels, keys, around(hint, OCTAVE / 16), work_space);
    if !near.holds(nearest(expected)) {
        near = Near::new(kernels, keys, (0, INFINITE), work_space);
    }
    let estimate = near.largest(nearest(expected));
    let mut spread = Spread::of_sample(keys, before, estimate, share);
    let expected_before = expected_of(target.rank_before);
    let expected = expected + spread.correction(before, expected_before);
    let margin = sigmas * spread.deviation(before.len() / 2) + 2.0;
    // The regression may ask for less than nothing, or more than there is.
    let lowest = (expected + margin).ceil().max(1.0) as u64;
    let highest = (expected - margin).floor().clamp(0.0, sampled as f64) as u64;
    let has_lowest = lowest <= sampled;
    near = Near::new(kernels, keys, around(estimate, OCTAVE / 16), work_space);
    if has_lowest && !near.holds(lowest) || highest > 0 && !near.holds(highest) {
        near = Near::new(kernels, keys, (0, INFINITE), work_space);
    }
    let low = if has_lowest { near.largest(lowest) } else { 0 };
    let high = if highest > 0 {
        near.largest(highest)
    } else {
        INFINITE - 1
    };
    // Entries of key zero never move.
    let low = low.max(1);
    Bracket {
        low,
        high: (high + 1).max(low + 1),
    }
}

/// How much the numbers of keys that reach the estimate, and of those that reached the threshold of the step before,
/// differ by chance.
///
/// With two lines from each stratum, the squares of their differences add up to the variance of the sum (Cochran, 5.4);
/// but it is not taken for less than half of what it were if all keys were independent.
#[derive(Clone, Copy, Debug)]
struct Spread {
    /// The variance of the first number, the covariance of both, and the variance of the second.
    now: f64,
    both: f64,
    before: f64,
    /// What the first were if all keys were independent.
    independent: f64,
}

impl Spread {
    fn of_sample(keys: &[u32], before: &[u32], estimate: u32, share: f64) -> Self {
        // Where the estimate is a tie, above all 0, all lines may look alike from there on, but not above it.
        let from = |from| Self::of_keys_from(keys, before, from, share);
        let (at, above) = (from(estimate), from(estimate + 1));
        if at.now >= above.now { at } else { above }
    }

    fn of_keys_from(keys: &[u32], before: &[u32], from: u32, share: f64) -> Self {
        let pairs = before.len() / 2;
        let stride = pairs.div_ceil(MOST_COUNTED_PAIRS).max(1);
        let reach = |line: &[u32]| -> i64 { line.iter().map(|&key| i64::from(key >= from)).sum() };
        let (mut now_sum, mut both_sum, mut before_sum, mut counted) = (0i64, 0i64, 0i64, 0i64);
        let of_pairs = keys.chunks_exact(2 * LINE).zip(before.chunks_exact(2));
        for (keys, before) in of_pairs.step_by(stride) {
            let (one, other) = keys.split_at(LINE);
            let now = reach(one) - reach(other);
            let before = i64::from(before[0]) - i64::from(before[1]);
            now_sum += now * now;
            both_sum += now * before;
            before_sum += before * before;
            counted += 1;
        }
        let scale = pairs as f64 / counted.max(1) as f64;
        Self {
            now: now_sum as f64 * scale,
            both: both_sum as f64 * scale,
            before: before_sum as f64 * scale,
            independent: keys.len() as f64 * share * (1.0 - share),
        }
    }

    /// The share of the variance that the numbers have in common.
    fn explained(&self) -> f64 {
        if self.now > 0.0 && self.before > 0.0 {
            (self.both * self.both / (self.now * self.before)).min(1.0)
        } else {
            0.0
        }
    }

    /// How many more keys of the sample reach the threshold than expected, going by the step before, in which so many were
    /// expected; 0 if that is not known.
    fn correction(&mut self, before: &[u32], expected: f64) -> f64 {
        let reached: u64 = before.iter().map(|&reached| u64::from(reached)).sum();
        let excess = reached as f64 - expected;
        if expected == 0.0
            || self.before == 0.0
            || excess.abs() > MOST_SIGMAS_BEFORE * self.before.sqrt()
        {
            self.both = 0.0;
            return 0.0;
        }
        excess * self.both / self.before
    }

    /// The standard deviation of the number of keys that reach the estimate, corrected, and for what it is not known
    /// exactly: of few pairs, the quantiles are those of Student's distribution, here within some percent.
    fn deviation(&self, pairs: usize) -> f64 {
        let unexplained = 1.0 - self.explained();
        let student = 1.0 + 4.0 / pairs as f64;
        student * (unexplained * self.now.max(self.independent / 2.0)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::random::{Key, Stream, mix64};
    use crate::rule::select::kth_largest;

    const STEPS: u64 = 100;

    /// Keys of a block, and what is known of the step before: its keys and its threshold.
    #[derive(Clone, Copy)]
    struct Block<'a> {
        keys: &'a [u32],
        before: Option<(&'a [u32], u32)>,
        rank_before: u64,
    }

    impl Block<'_> {
        /// Draws the lines of a step.
        fn draw<'a>(&self, step: u64, words: &'a mut Vec<u32>) -> Sample<'a> {
            let len = self.keys.len() as u64;
            let range = Range { start: 0, len };
            let key = Key::new(1, 2, step, Stream::Filter).span(0).first;
            let lines = lines(len);
            words.resize(sample_words(len), 0);
            let sample = Sample::new(words, lines);
            for i in 0..lines {
                let start = line(range, lines, i, key) as usize;
                let here = start..start + LINE;
                sample.keys[i * LINE..][..LINE].copy_from_slice(&self.keys[here.clone()]);
                sample.before[i] = self.before.map_or(0, |(keys, threshold)| {
                    keys[here].iter().filter(|&&key| key >= threshold).count() as u32
                });
            }
            sample
        }

        /// In how many of `STEPS` samples the bracket holds the `rank`-th largest key, and which share of all keys it
        /// held, in the mean and at most. A hint, right or wrong, must not matter.
        fn brackets(&self, rank: u64) -> (u64, f64, f64) {
            let kernels = Kernels::choose(None).unwrap();
            let len = self.keys.len() as u64;
            let mut sorted = self.keys.to_vec();
            sorted.sort_unstable();
            let threshold = sorted[(len - rank) as usize];
            let (mut hits, mut sum, mut most) = (0, 0.0, 0f64);
            let mut words = Vec::new();
            let target = Target {
                rank,
                len,
                rank_before: self.rank_before,
            };
            for step in 0..STEPS {
                let mut sample = self.draw(step, &mut words);
                let hints = [
                    0,
                    threshold,
                    threshold / 2,
                    (threshold + OCTAVE - 1).min(INFINITE),
                    1,
                    INFINITE,
                ];
                let [found, others @ ..] =
                    hints.map(|hint| bracket(kernels, &mut sample, target, hint));
                assert!(others.iter().all(|&other| other == found));
                let Bracket { low, high } = found;
                assert!(0 < low && low < high && high <= INFINITE);
                let from_low = threshold >= low || low == 1;
                hits += u64::from(from_low && threshold < high);
                let below = |end| sorted.partition_point(|&key| key < end);
                let inside = (below(high) - below(low)) as f64 / len as f64;
                sum += inside;
                most = most.max(inside);
            }
            (hits, sum / STEPS as f64, most)
        }
    }

    fn target(rank: u64, len: u64) -> Target {
        Target {
            rank,
            len,
            rank_before: 0,
        }
    }

    fn alone(keys: &[u32]) -> Block<'_> {
        Block {
            keys,
            before: None,
            rank_before: 0,
        }
    }

    fn normal(i: u64) -> f32 {
        let sum: u64 = (0..4).map(|part| mix64(4 * i + part) >> 32).sum();
        (sum as f64 / f64::from(u32::MAX) - 2.0) as f32
    }

    #[test]
    fn nearly_every_bracket_holds_the_threshold() {
        let uniform = |i: u64| (mix64(i) as f32 / 1e10).to_bits();
        let kinds: [&dyn Fn(u64) -> u32; 7] = [
            &uniform,
            // Ascending.
            &|i| (i as f32).to_bits(),
            // Rows of one scale each.
            &|i| (f32::from_bits(uniform(i)) * (mix64(i / 256) % 1000) as f32).to_bits(),
            // Rows without a gradient.
            &|i| if i / 64 % 8 == 3 { uniform(i) } else { 0 },
            // Ties, with the threshold in the middle of them.
            &|i| [0x3F00_0000, 0x3F40_0000][usize::from(mix64(i).is_multiple_of(5))],
            &|_| 0x3F00_0000,
            &|_| 0,
        ];
        for (number, kind) in kinds.into_iter().enumerate() {
            for len in [40_007, 150_000] {
                let keys: Vec<u32> = (0..len).map(kind).collect();
                for rank in [1, len / 100, len / 10, len / 2, len - 1] {
                    let (hits, ..) = alone(&keys).brackets(rank);
                    assert!(
                        hits + STEPS / 20 >= STEPS,
                        "kind {number}, rank {rank} of {len}: {hits} of {STEPS}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_bracket_of_ordinary_keys_holds_few_of_them() {
        let len = 300_000;
        let keys: Vec<u32> = (0..len).map(|i| normal(i).abs().to_bits()).collect();
        for (fraction, limit) in [(0.01, 0.03), (0.1, 0.08), (0.5, 0.16)] {
            let rank = (fraction * len as f64) as u64;
            let (hits, _, most) = alone(&keys).brackets(rank);
            assert!(hits + 1 >= STEPS, "{hits}");
            assert!(most < limit, "{fraction}: {most}");
        }
    }

    #[test]
    fn the_step_before_makes_a_bracket_narrower_or_does_no_harm() {
        let len = 300_000;
        let old: Vec<f32> = (0..len).map(normal).collect();
        let bits =
            |values: &[f32]| -> Vec<u32> { values.iter().map(|x| x.abs().to_bits()).collect() };
        let new = |i: usize| 0.9 * old[i] + 0.43 * normal(len + i as u64);
        let now: Vec<f32> = (0..len as usize).map(new).collect();
        let replaced: Vec<f32> = (0..len).map(|i| normal(3 * len + i)).collect();
        let [old, now, replaced] = [&old, &now, &replaced].map(|values| bits(values));
        for fraction in [0.03, 0.1, 0.2] {
            let rank = (fraction * len as f64) as u64;
            let (_, without, _) = alone(&now).brackets(rank);
            let with = |before: &[u32], rank_before: u64| {
                let threshold = kth_largest(&mut before.to_vec(), rank_before as usize);
                let block = Block {
                    keys: &now,
                    before: Some((before, threshold)),
                    rank_before,
                };
                let (hits, mean, _) = block.brackets(rank);
                (hits, mean / without)
            };
            let (hits, width) = with(&old, rank);
            assert!(
                hits + 2 >= STEPS && width < 0.9,
                "{fraction}: {hits}, {width}"
            );
            // Another α in the step before: far more entries reached the threshold then, or far fewer.
            for rank_before in [rank / 3, 2 * rank, len - 1] {
                let (hits, width) = with(&old, rank_before);
                assert!(
                    hits + 2 >= STEPS && width < 1.01,
                    "{rank_before}: {hits}, {width}"
                );
            }
            // Moments that have nothing to do with those now.
            let (hits, width) = with(&replaced, rank);
            assert!(
                hits + 2 >= STEPS && width < 1.01,
                "{fraction}: {hits}, {width}"
            );
            // A schedule that changes α a little from step to step.
            let (hits, _) = with(&old, rank * 51 / 50);
            assert!(hits + 2 >= STEPS, "{fraction}: {hits}");
        }
    }

    /// In these pairs, one key more or less that reached the threshold of the step before goes with a whole line that
    /// reaches it now.
    #[test]
    fn a_step_before_that_asks_for_less_than_nothing_or_more_than_there_is() {
        let kernels = Kernels::choose(None).unwrap();
        let len = 9001;
        let lines = lines(len);
        let mut words = vec![0; sample_words(len)];
        for (tall, others) in (0..lines / 2).flat_map(|tall| (0..16).map(move |n| (tall, n))) {
            let mut sample = Sample::new(&mut words, lines);
            for i in 0..lines {
                let is_tall = i % 2 == 0 && i / 2 <= tall;
                sample.before[i] = others + u32::from(is_tall);
                let keys = &mut sample.keys[i * LINE..][..LINE];
                keys.fill(if is_tall { 200 } else { 100 });
            }
            for rank in (1..len).step_by(100) {
                let Bracket { low, high } = bracket(kernels, &mut sample, target(rank, len), 0);
                assert!(0 < low && low < high, "{tall}, {others}, {rank}");
            }
        }
    }

    /// What is known of the failure is kept.
    #[test]
    fn brackets_that_are_tried_next() {
        let keys: Vec<u32> = (0..100_000).map(|i| normal(i).abs().to_bits()).collect();
        let kernels = Kernels::choose(None).unwrap();
        let (len, rank) = (keys.len() as u64, 10_000);
        let mut words = Vec::new();
        let mut sample = alone(&keys).draw(1, &mut words);
        let first = bracket(kernels, &mut sample, target(rank, len), 0);
        let mut again = |earlier, decision| {
            bracket_again(kernels, &mut sample, target(rank, len), earlier, decision)
        };
        let wider = again(first, Decision::Above).unwrap();
        assert!(wider.low == first.high && wider.high > wider.low);
        let wider = again(first, Decision::Below).unwrap();
        assert!(wider.high == first.low && wider.low < wider.high);
        let narrower = again(first, Decision::Inside).unwrap();
        assert!(first.low < narrower.low && narrower.high < first.high);
        let at = |low, high| Bracket { low, high };
        assert_eq!(again(at(1, INFINITE - 1), Decision::Above), None);
        assert_eq!(again(at(1, 2), Decision::Below), None);
    }
}
