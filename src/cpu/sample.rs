//! Brackets the threshold of a block by a sample of its keys.
//!
//! The block is cut into strata, and two random lines are drawn from each. Entries of a line may be alike (rows of
//! one scale, rows without a gradient), so how far the estimate may be off is itself estimated from how the two lines
//! of each stratum differ.

use super::kernels::{self, Bounds, Bracket, Notes};
use super::prefetch;
use super::select::Range;
use super::tier::Kernels;
use super::vector::MAX_LANES;
use crate::config::Filter;
use crate::job::Job;
use crate::rule::convert::INFINITE;
use crate::rule::random::mix32;
use crate::rule::select::kth_largest;

/// Keys on one cache line of f32 gradients: the grain of the sample.
pub(super) const LINE: usize = 16;
/// Lines whose memory is asked for before the first of them is needed.
pub(super) const BATCH: usize = 32;
/// Half the width of the bracket, in standard deviations of the estimate.
pub(super) const SIGMAS: f64 = 3.5;
/// Lines from which the deviation is estimated.
const MOST_COUNTED_LINES: usize = 4096;

/// How many lines are drawn from a block.
///
/// A sample of n keys costs time in proportion to n; the entries that its bracket leaves open, len · n^(-1/2) in
/// proportion, cost about as much each. The sum is smallest for n in proportion to len^(2/3).
pub(super) fn lines(len: u64) -> usize {
    let keys = 2.5 * (len as f64).powf(2.0 / 3.0);
    2 * ((keys / (2 * LINE) as f64) as usize).max(1)
}

/// Words that the sample of a block takes, candidates included.
pub(super) fn room(len: u64) -> usize {
    2 * (lines(len) * LINE + MAX_LANES)
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

/// Computes the keys of the lines `first..last` of the `lines` of a range.
///
/// # Safety
///
/// As for [`super::kernels::lines`]; the range has at least one line, and `keys` has room for the lines'.
pub(super) unsafe fn gather(
    kernels: &Kernels,
    job: &Job,
    range: Range,
    lines: usize,
    (first, last): (usize, usize),
    keys: *mut u32,
) {
    let key = job.random.span(0).first;
    // While the keys of one batch are computed, the memory of the next is on its way.
    let mut batches = [[0u64; BATCH]; 2];
    let ask_for = |starts: &mut [u64; BATCH], first: usize| {
        let count = BATCH.min(last.saturating_sub(first));
        for (i, start) in starts[..count].iter_mut().enumerate() {
            *start = line(range, lines, first + i, key);
            let at = *start as usize;
            prefetch(job.grad.wrapping_add(at * job.grad_dtype.size()));
            prefetch(job.exp_avg.wrapping_add(at * job.state_dtype.size()));
            if job.filter == Filter::Update {
                prefetch(job.exp_avg_sq.wrapping_add(at * job.state_dtype.size()));
            }
        }
        count
    };
    let [mut now, mut next] = batches.each_mut();
    let mut count = ask_for(now, first);
    let mut done = first;
    while count > 0 {
        let next_count = ask_for(next, done + count);
        // SAFETY: the lines lie within the range, and there is room for their keys (the caller's promise).
        unsafe {
            let to = keys.add((done - first) * LINE);
            kernels::lines(kernels, job, &now[..count], to);
        }
        done += count;
        count = next_count;
        std::mem::swap(&mut now, &mut next);
    }
}

/// Brackets the threshold of a range; `room` is work space.
///
/// # Safety
///
/// As for [`gather`]; `keys` is at least as long as [`room`] says.
pub(super) unsafe fn bracket(
    kernels: &Kernels,
    job: &Job,
    range: Range,
    keys: &mut [u32],
) -> Bracket {
    let lines = lines(range.len);
    assert!(keys.len() >= room(range.len));
    let (sample, candidates) = keys.split_at_mut(lines * LINE);
    // SAFETY: the caller's promise; `sample` has room for the lines.
    unsafe { gather(kernels, job, range, lines, (0, lines), sample.as_mut_ptr()) };
    bracket_of(kernels, sample, candidates, job.rank, range.len, 0)
}

/// Brackets the `rank`-th largest of `len` keys, given a sample of them by lines. `candidates` is work space, longer
/// than the sample by [`MAX_LANES`]. `hint` is about the threshold, or 0.
pub(super) fn bracket_of(
    kernels: &Kernels,
    sample: &[u32],
    candidates: &mut [u32],
    rank: u64,
    len: u64,
    hint: u32,
) -> Bracket {
    let n = sample.len() as f64;
    let share = rank as f64 / len as f64;
    let expected = n * share;
    let middle = (expected.round() as u64).clamp(1, sample.len() as u64);
    // Keys far from the threshold do not matter, if it is where it was.
    let mut near = Near::of(kernels, sample, around(hint, OCTAVE / 8), candidates);
    if !near.holds(middle) {
        near = Near::of(kernels, sample, around(hint, OCTAVE), candidates);
    }
    if !near.holds(middle) {
        near = Near::of(kernels, sample, (0, INFINITE), candidates);
    }
    let estimate = near.largest(middle);
    let margin = SIGMAS * deviation(sample, estimate, share) + 2.0;
    let lowest = (expected + margin).ceil() as u64;
    let highest = (expected - margin).floor() as u64;
    let has_lowest = lowest <= sample.len() as u64;
    if has_lowest && !near.holds(lowest) || highest > 0 && !near.holds(highest) {
        near = Near::of(kernels, sample, (0, INFINITE), candidates);
    }
    let low = if has_lowest { near.largest(lowest) } else { 0 };
    let high = if highest > 0 {
        near.largest(highest)
    } else {
        INFINITE
    };
    (low, high)
}

/// About which share of the keys a bracket holds, by a sample of them by lines.
pub(super) fn share(sample: &[u32], (low, high): Bracket) -> f64 {
    let stride = (sample.len() / LINE).div_ceil(MOST_COUNTED_LINES).max(1);
    let (mut held, mut counted) = (0, 0);
    for line in sample.chunks_exact(LINE).step_by(stride) {
        let holds = |&key: &u32| u32::from(low <= key && key <= high);
        held += line.iter().map(holds).sum::<u32>();
        counted += LINE;
    }
    f64::from(held) / counted.max(1) as f64
}

/// About which share of the entries of a range would move, and could not be moved back. A few lines tell, or copies of
/// them.
///
/// # Safety
///
/// As for [`gather`].
pub(super) unsafe fn lost_share(
    kernels: &Kernels,
    job: &Job,
    range: Range,
    lines: usize,
    bounds: Bounds,
) -> f64 {
    let key = job.random.span(0).first;
    let stride = lines.div_ceil(MOST_TRIED_LINES).max(1);
    let mut starts = [0; MOST_TRIED_LINES];
    let tried = lines.div_ceil(stride);
    for (i, start) in starts[..tried].iter_mut().enumerate() {
        *start = line(range, lines, i * stride, key);
        for (from, size) in LineCopy::sources(job) {
            prefetch(from.wrapping_add(*start as usize * size));
        }
    }
    let mut lost = 0;
    for &start in &starts[..tried] {
        // SAFETY: the line lies within the range (the caller's promise).
        lost += unsafe { LineCopy::of(job, start).count_lost(kernels, job, start, bounds) };
    }
    lost as f64 / (tried * LINE) as f64
}

/// Lines of which copies are stepped.
const MOST_TRIED_LINES: usize = 64;

/// A copy of a line of each buffer.
struct LineCopy([[u32; LINE]; 5]);

impl LineCopy {
    /// Where the buffers of a job start, and the sizes of their elements; the master copy may be missing.
    fn sources(job: &Job) -> [(*const u8, usize); 5] {
        let state = job.state_dtype.size();
        let master = if job.master.is_null() { 0 } else { 4 };
        [
            (job.param.cast_const(), job.param_dtype.size()),
            (job.grad, job.grad_dtype.size()),
            (job.exp_avg.cast_const(), state),
            (job.exp_avg_sq.cast_const(), state),
            (job.master.cast_const().cast(), master),
        ]
    }

    /// # Safety
    ///
    /// The line that starts there is readable in all buffers.
    unsafe fn of(job: &Job, start: u64) -> Self {
        let mut copy = Self([[0; LINE]; 5]);
        for (to, (from, size)) in copy.0.iter_mut().zip(Self::sources(job)) {
            if size > 0 {
                // SAFETY: the caller's promise; no element is larger than a word.
                unsafe {
                    let from = from.add(start as usize * size);
                    to.as_mut_ptr()
                        .cast::<u8>()
                        .copy_from_nonoverlapping(from, LINE * size);
                }
            }
        }
        copy
    }

    /// Steps the copy, and says how many of its entries could not be moved back.
    ///
    /// # Safety
    ///
    /// The copy is of the line of this job that starts there.
    unsafe fn count_lost(
        &mut self,
        kernels: &Kernels,
        job: &Job,
        start: u64,
        bounds: Bounds,
    ) -> usize {
        let sizes = Self::sources(job).map(|(_, size)| size);
        let [param, grad, exp_avg, exp_avg_sq, master] = {
            let mut sizes = sizes.into_iter();
            self.0.each_mut().map(|line| {
                let before = start as usize * sizes.next().unwrap_or(0);
                line.as_mut_ptr().cast::<u8>().wrapping_sub(before)
            })
        };
        let copied = Job {
            param,
            grad,
            exp_avg,
            exp_avg_sq,
            master: if job.master.is_null() {
                std::ptr::null_mut()
            } else {
                master.cast()
            },
            ..*job
        };
        let mut places = [[0u32; LINE + MAX_LANES]; 3];
        let mut old = [0u16; LINE + MAX_LANES];
        let places = places.each_mut().map(|place| place.as_mut_ptr());
        let mut notes = Notes::at(places, old.as_mut_ptr());
        // SAFETY: only the entries of the line are touched, which the copies hold; there is room for notes about all of
        // them, and a group more.
        unsafe {
            kernels::step_and_note(kernels, &copied, (start, LINE as u64), bounds, &mut notes)
        };
        notes.lost
    }
}

/// A factor of two between floats, as a difference of their bits.
pub(super) const OCTAVE: u32 = 1 << 23;

/// The keys from some distance below one up to as much above it.
pub(super) fn around(key: u32, distance: u32) -> Bracket {
    (
        key.saturating_sub(distance),
        key.saturating_add(distance).min(INFINITE),
    )
}

/// The keys of a sample that lie in some range.
struct Near<'a> {
    keys: &'a mut [u32],
    /// Keys above the range.
    above: u64,
}

impl<'a> Near<'a> {
    fn of(kernels: &Kernels, sample: &[u32], range: (u32, u32), room: &'a mut [u32]) -> Self {
        assert!(room.len() >= sample.len() + MAX_LANES);
        // SAFETY: there is room for all keys and a group more (asserted above).
        let found = unsafe {
            let (from, to) = (sample.as_ptr(), room.as_mut_ptr());
            (kernels.sift)(from, sample.len(), range, to)
        };
        Self {
            keys: &mut room[..found.inside],
            above: found.above,
        }
    }

    /// True if the `rank`-th largest key of the sample lies in the range.
    fn holds(&self, rank: u64) -> bool {
        self.above < rank && rank <= self.above + self.keys.len() as u64
    }

    /// The `rank`-th largest key of the sample, which lies in the range.
    fn largest(&mut self, rank: u64) -> u32 {
        kth_largest(self.keys, (rank - self.above) as usize)
    }
}

/// The standard deviation of the number of sampled keys from `estimate` on, of which there are about `share`.
///
/// With two lines from each stratum, the squares of their differences add up to the variance of the sum (W. G.
/// Cochran, Sampling Techniques, 3rd edition, 5.4); but it is not taken for less than half of what it were if all
/// keys were independent.
fn deviation(sample: &[u32], estimate: u32, share: f64) -> f64 {
    let lines = sample.len() / LINE;
    let pairs = lines / 2;
    let stride = pairs.div_ceil(MOST_COUNTED_LINES / 2).max(1);
    let reach =
        |line: &[u32], from: u32| -> i32 { line.iter().map(|&key| i32::from(key >= from)).sum() };
    // Where the estimate is a tie, above all 0, all lines may look alike from there on, but not above it.
    let (mut sums, mut counted) = ([0u64; 2], 0u64);
    for pair in sample.chunks_exact(2 * LINE).step_by(stride) {
        let (one, other) = pair.split_at(LINE);
        for (sum, from) in sums.iter_mut().zip([estimate, estimate + 1]) {
            let difference = reach(one, from) - reach(other, from);
            *sum += u64::from(difference.unsigned_abs().pow(2));
        }
        counted += 1;
    }
    let sum = sums[0].max(sums[1]);
    let independent = sample.len() as f64 * share * (1.0 - share);
    let by_lines = sum as f64 * lines as f64 / (2 * counted.max(1)) as f64;
    (independent / 2.0).max(by_lines).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::random::{Key, Stream, mix64};

    /// The keys on the lines that a step draws from a block.
    fn draw(keys: &[u32], step: u64) -> Vec<u32> {
        let range = Range {
            start: 0,
            len: keys.len() as u64,
        };
        let key = Key::new(1, 2, step, Stream::Filter).span(0).first;
        let lines = lines(range.len);
        (0..lines)
            .map(|i| line(range, lines, i, key) as usize)
            .flat_map(|start| keys[start..start + LINE].iter().copied())
            .collect()
    }

    /// In how many of `STEPS` samples the bracket holds the `rank`-th largest key, and the largest share of all keys
    /// that a bracket held. A hint, right or wrong, must not matter.
    fn brackets(keys: &[u32], rank: usize) -> (u64, f64) {
        let kernels = Kernels::choose(None).unwrap();
        let threshold = kth_largest(&mut keys.to_vec(), rank);
        let len = keys.len() as u64;
        let (mut hits, mut most) = (0, 0f64);
        for step in 0..STEPS {
            let sample = draw(keys, step);
            let mut room = vec![0; sample.len() + MAX_LANES];
            let hints = [
                0,
                threshold,
                threshold / 2,
                (threshold + OCTAVE - 1).min(INFINITE),
                1,
                INFINITE,
            ];
            let [found, others @ ..] =
                hints.map(|hint| bracket_of(kernels, &sample, &mut room, rank as u64, len, hint));
            assert!(others.iter().all(|&other| other == found));
            let (low, high) = found;
            assert!(low <= high);
            hits += u64::from((low..=high).contains(&threshold));
            let inside = keys.iter().filter(|key| (low..=high).contains(key)).count();
            most = most.max(inside as f64 / len as f64);
        }
        (hits, most)
    }

    const STEPS: u64 = 100;

    #[test]
    fn nearly_every_bracket_holds_the_threshold() {
        let normal = |i: u64| (mix64(i) as f32 / 1e10).to_bits();
        let kinds: [&dyn Fn(u64) -> u32; 7] = [
            &normal,
            // Ascending.
            &|i| (i as f32).to_bits(),
            // Rows of one scale each.
            &|i| (f32::from_bits(normal(i)) * (mix64(i / 256) % 1000) as f32).to_bits(),
            // Rows without a gradient.
            &|i| if i / 64 % 8 == 3 { normal(i) } else { 0 },
            // Ties, with the threshold in the middle of them.
            &|i| [0x3F00_0000, 0x3F40_0000][usize::from(mix64(i).is_multiple_of(5))],
            &|_| 0x3F00_0000,
            &|_| 0,
        ];
        for (number, kind) in kinds.into_iter().enumerate() {
            for len in [40_007, 150_000] {
                let keys: Vec<u32> = (0..len).map(kind).collect();
                for rank in [1, len / 100, len / 10, len / 2, len - 1] {
                    let (hits, _) = brackets(&keys, rank as usize);
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
        let keys: Vec<u32> = (0..len)
            .map(|i| (mix64(i) as f32 / 1e10).to_bits())
            .collect();
        for (fraction, limit) in [(0.01, 0.02), (0.1, 0.05), (0.5, 0.12)] {
            let rank = (fraction * len as f64) as usize;
            let (hits, most) = brackets(&keys, rank);
            assert!(hits + 1 >= STEPS, "{hits}");
            assert!(most < limit, "{fraction}: {most}");
        }
    }
}
