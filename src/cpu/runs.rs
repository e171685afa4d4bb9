//! The k-th largest of very many keys that lie in memory in runs, such as those that the threads of a pass have noted.

use crate::cpu::sample::LINE;
use crate::cpu::tier::Kernels;
use crate::cpu::vector::MAX_LANES;
use crate::rule::select::kth_largest;

/// Keys that are sifted at a time.
const PART: usize = 1024;
/// So many keys need not be narrowed down before one of them is selected.
const FEW: u64 = 4096;
/// Keys that are sampled to narrow down the others.
const SAMPLED: usize = 8192;

/// Keys among which one is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidates {
    /// They lie between these, both included.
    pub(super) low: u32,
    pub(super) high: u32,
    pub(super) count: u64,
    /// Keys above them.
    pub(super) above: u64,
}

/// The `rank`-th largest of keys that are given in runs; it is among the candidates. `room` is work space, for more than
/// [`MAX_LANES`].
pub(super) fn kth_of_runs<'a, I: Iterator<Item = &'a [u32]>>(
    kernels: &Kernels,
    runs: impl Fn() -> I,
    candidates: Candidates,
    rank: u64,
    room: &mut [u32],
) -> u32 {
    let Candidates {
        mut low,
        mut high,
        mut count,
        mut above,
    } = candidates;
    // Each round leaves fewer: by guessing, by sampling them, or else by halving their range.
    let mut guesses = true;
    let mut halves = false;
    let few = FEW.min(room.len() as u64 / 2 - MAX_LANES as u64);
    while low < high {
        let bracket = if count <= few {
            (low, high)
        } else if std::mem::take(&mut guesses) {
            bracket_by_position((low, high), (rank - above) as f64 / count as f64, count)
        } else if halves {
            (low, low + (high - low) / 2)
        } else {
            let most = SAMPLED.min(room.len());
            let sample = stride_sample(runs(), (low, high), count, &mut room[..most]);
            bracket_by(sample, (low, high), (rank - above) as f64 / count as f64)
        };
        let found = sift_runs(kernels, runs(), bracket, room);
        let inside = found.above + found.inside;
        if rank <= found.above {
            low = bracket.1 + 1;
            halves = found.above - above > count / 2;
            count = found.above - above;
        } else if rank <= inside {
            if let Some(keys) = found.keys {
                return kth_largest(keys, (rank - found.above) as usize);
            }
            halves = found.inside > count / 2;
            (low, high) = bracket;
            (above, count) = (found.above, found.inside);
        } else {
            high = bracket.0 - 1;
            let left = count - (inside - above);
            halves = left > count / 2;
            (above, count) = (inside, left);
        }
    }
    low
}

/// How many keys lie above a bracket and inside it.
struct Sifted<'a> {
    above: u64,
    inside: u64,
    /// Those inside, if there was room for all of them.
    keys: Option<&'a mut [u32]>,
}

fn sift_runs<'a, 'b>(
    kernels: &Kernels,
    runs: impl Iterator<Item = &'a [u32]>,
    bracket: (u32, u32),
    room: &'b mut [u32],
) -> Sifted<'b> {
    let most = PART.min((room.len() - MAX_LANES) / 2);
    let (mut above, mut inside, mut kept) = (0, 0, 0);
    let mut fits = true;
    for part in runs.flat_map(|run| run.chunks(most)) {
        if kept + part.len() + MAX_LANES > room.len() {
            (fits, kept) = (false, 0);
        }
        // SAFETY: behind the keys that are kept there is room for the part, and for a group more: checked just
        // now, or so by the choice of `most`.
        let found = unsafe {
            let to = room.as_mut_ptr().add(kept);
            (kernels.sift)(part.as_ptr(), part.len(), bracket, to)
        };
        above += found.above;
        inside += found.inside as u64;
        kept += found.inside;
    }
    Sifted {
        above,
        inside,
        keys: fits.then(|| &mut room[..kept]),
    }
}

/// Some of the `count` keys between two bounds, by short runs that are evenly spread.
fn stride_sample<'a, 'b>(
    runs: impl Iterator<Item = &'a [u32]>,
    (low, high): (u32, u32),
    count: u64,
    room: &'b mut [u32],
) -> &'b mut [u32] {
    let most = room.len() / 2;
    let stride = count.div_ceil(most as u64) as usize * LINE;
    let mut n = 0;
    let mut skip = 0;
    for run in runs {
        while skip < run.len() {
            for &key in &run[skip..run.len().min(skip + LINE)] {
                if n < room.len() {
                    room[n] = key;
                    n += usize::from((low..=high).contains(&key));
                }
            }
            skip += stride;
        }
        skip -= run.len();
    }
    &mut room[..n]
}

/// Bounds between which the key that a `share` of the `count` keys between `low` and `high` reach probably lies, if
/// they are spread evenly.
fn bracket_by_position((low, high): (u32, u32), share: f64, count: u64) -> (u32, u32) {
    let width = f64::from(high - low);
    let centre = f64::from(high) - share * width;
    let margin = width * (1.0 / 32.0 + 2.0 * (share * (1.0 - share) / count as f64).sqrt());
    (
        ((centre - margin) as u32).clamp(low, high),
        ((centre + margin) as u32).clamp(low, high),
    )
}

/// Bounds between which the key that a `share` of all reach probably lies, by a sample of the keys between `low`
/// and `high`.
fn bracket_by(sample: &mut [u32], (low, high): (u32, u32), share: f64) -> (u32, u32) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::convert::INFINITE;
    use crate::rule::random::mix64;

    /// Cuts keys into runs of up to `longest`, some of them empty.
    fn cut(keys: &[u32], longest: u64) -> Vec<&[u32]> {
        let (mut runs, mut rest) = (Vec::new(), keys);
        while !rest.is_empty() {
            let len = mix64(rest.len() as u64) % (longest + 1);
            let (run, others) = rest.split_at(rest.len().min(len as usize));
            runs.push(run);
            rest = others;
            if len == 0 {
                let (run, others) = rest.split_at(1);
                runs.push(run);
                rest = others;
            }
        }
        runs
    }

    /// Compares some ranks with a sort.
    fn check(keys: &[u32], longest_run: u64, room: usize) {
        let kernels = Kernels::choose(None).unwrap();
        let mut sorted = keys.to_vec();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let runs = cut(keys, longest_run);
        let count = keys.len() as u64;
        let drawn = (0..6).map(|i| 1 + mix64(count + i) % count);
        for rank in [1, 2, count / 2, count - 1, count].into_iter().chain(drawn) {
            let rank = rank.clamp(1, count);
            let mut room = vec![0; room];
            let candidates = Candidates {
                low: 0,
                high: INFINITE,
                count,
                above: 0,
            };
            let found = kth_of_runs(
                kernels,
                || runs.iter().copied(),
                candidates,
                rank,
                &mut room,
            );
            let expected = sorted[rank as usize - 1];
            assert_eq!(
                found,
                expected,
                "rank {rank} of {count}, room for {}",
                room.len()
            );
        }
    }

    #[test]
    fn the_kth_key_of_runs_is_that_of_a_sort() {
        let kinds: [fn(u64) -> u32; 7] = [
            |i| mix64(i) as u32 % INFINITE,
            |i| 1_000_000 + mix64(i) as u32 % 1000,
            |i| [3, 5, 7][mix64(i) as usize % 3],
            |i| u32::from(mix64(i).is_multiple_of(100)),
            |i| i as u32,
            |i| INFINITE - i as u32,
            |_| 12345,
        ];
        for kind in kinds {
            for count in [1, 2, 17, 1000, 5000, 40_000] {
                let keys: Vec<u32> = (0..count).map(kind).collect();
                for (longest_run, room) in [(3, 64), (100, 200), (5000, 3000), (100_000, 30_000)] {
                    check(&keys, longest_run, room);
                }
            }
        }
    }
}
