//! Decide: the exact threshold of a block, from the number of entries that are certain to move and the keys of those that
//! are open.
//!
//! Counts and keys may have been summed over parts of the block that lie elsewhere: nothing here looks at a buffer.

use super::order::kth_of_many;
use crate::cpu::kernels::{Bracket, Kernels};

/// What collect has found of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Collected<'a> {
    pub(super) bracket: Bracket,
    /// Keys from the upper end of the bracket on.
    pub(super) num_certain: u64,
    /// Keys inside the bracket.
    pub(super) num_open: u64,
    /// All of these keys, if there was room for them.
    pub(super) open_keys: Option<&'a [u32]>,
}

/// What is known of the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Threshold(u32),
    /// It lies below the bracket.
    Below,
    /// It lies above the bracket.
    Above,
    /// It lies inside, but there are more keys than there was room for.
    Inside,
}

impl Collected<'_> {
    /// The `rank`-th largest key, as far as it is known. `work_space` is work space.
    pub(super) fn decide(&self, kernels: &Kernels, rank: u64, work_space: &mut [u32]) -> Decision {
        let Bracket { low, high } = self.bracket;
        let Some(rank) = rank.checked_sub(self.num_certain).filter(|&rank| rank > 0) else {
            return Decision::Above;
        };
        if rank > self.num_open {
            return if low == 1 {
                // All keys above zero are known, and they are too few.
                Decision::Threshold(0)
            } else {
                Decision::Below
            };
        }
        if high - low == 1 {
            return Decision::Threshold(low);
        }
        match self.open_keys {
            Some(keys) => Decision::Threshold(kth_of_many(
                kernels,
                keys,
                (low, high - 1),
                rank,
                work_space,
            )),
            None => Decision::Inside,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::convert::INFINITE;

    const HIGHEST: u32 = INFINITE - 1;

    #[test]
    fn every_decision() {
        use Decision::{Above, Below, Inside, Threshold};
        let kernels = Kernels::choose(None).unwrap();
        let keys: &[u32] = &[14, 11, 19, 11, 10, 14];
        // The bracket, how many keys are certain and open, the open keys if they had room, the rank, and what comes of it.
        type Row<'a> = ((u32, u32), u64, u64, Option<&'a [u32]>, u64, Decision);
        let table: &[Row<'_>] = &[
            // Each rank in turn, ties included.
            ((10, 20), 3, 6, Some(keys), 2, Above),
            ((10, 20), 3, 6, Some(keys), 3, Above),
            ((10, 20), 3, 6, Some(keys), 4, Threshold(19)),
            ((10, 20), 3, 6, Some(keys), 5, Threshold(14)),
            ((10, 20), 3, 6, Some(keys), 6, Threshold(14)),
            ((10, 20), 3, 6, Some(keys), 7, Threshold(11)),
            ((10, 20), 3, 6, Some(keys), 8, Threshold(11)),
            ((10, 20), 3, 6, Some(keys), 9, Threshold(10)),
            ((10, 20), 3, 6, Some(keys), 10, Below),
            // Nothing is certain.
            ((10, 20), 0, 6, Some(keys), 1, Threshold(19)),
            // Nothing is open.
            ((10, 20), 3, 0, Some(&[]), 3, Above),
            ((10, 20), 3, 0, Some(&[]), 4, Below),
            ((10, 20), 0, 0, Some(&[]), 1, Below),
            // All keys above zero are known.
            ((1, 20), 3, 6, Some(keys), 9, Threshold(10)),
            ((1, 20), 3, 6, Some(keys), 10, Threshold(0)),
            ((1, 20), 3, 6, None, 10, Threshold(0)),
            ((1, 20), 3, 6, Some(keys), 3, Above),
            ((1, 2), 0, 0, Some(&[]), 1, Threshold(0)),
            ((1, HIGHEST), 0, 0, Some(&[]), 1, Threshold(0)),
            // One key, which need not be listed.
            ((10, 11), 3, 6, None, 3, Above),
            ((10, 11), 3, 6, None, 4, Threshold(10)),
            ((10, 11), 3, 6, None, 9, Threshold(10)),
            ((10, 11), 3, 6, None, 10, Below),
            ((1, 2), 3, 6, None, 9, Threshold(1)),
            // No key at all.
            ((10, 10), 3, 0, Some(&[]), 3, Above),
            ((10, 10), 3, 0, Some(&[]), 4, Below),
            ((1, 1), 3, 0, Some(&[]), 3, Above),
            ((1, 1), 3, 0, Some(&[]), 4, Threshold(0)),
            // Too many.
            ((10, 20), 3, 6, None, 3, Above),
            ((10, 20), 3, 6, None, 4, Inside),
            ((10, 20), 3, 6, None, 9, Inside),
            ((10, 20), 3, 6, None, 10, Below),
            // More than 32 bits count.
            ((10, 20), 5 << 32, 6, Some(keys), 5 << 32, Above),
            (
                (10, 20),
                5 << 32,
                6,
                Some(keys),
                (5 << 32) + 6,
                Threshold(10),
            ),
            ((10, 20), 5 << 32, 7 << 32, None, 12 << 32, Inside),
            ((10, 11), 5 << 32, 7 << 32, None, 12 << 32, Threshold(10)),
            ((10, 20), 5 << 32, 7 << 32, None, (12 << 32) + 1, Below),
        ];
        for row in table {
            let &((low, high), num_certain, num_open, open_keys, rank, expected) = row;
            let collected = Collected {
                bracket: Bracket { low, high },
                num_certain,
                num_open,
                open_keys,
            };
            let found = collected.decide(kernels, rank, &mut [0; 64]);
            assert_eq!(found, expected, "{row:?}");
        }
    }

    /// Of a block whose parts were collected one by one, only sums and the keys behind each other are known.
    #[test]
    fn parts_of_a_block_add_up() {
        let kernels = Kernels::choose(None).unwrap();
        let keys: Vec<u32> = (0..3000u32)
            .map(|i| i.wrapping_mul(0x9E37_79B9) >> 1)
            .collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        for (low, high) in [(1, INFINITE), (1 << 28, 1 << 30), (1 << 29, (1 << 29) + 1)] {
            let parts = [&keys[..7], &keys[7..7], &keys[7..2000], &keys[2000..]];
            let count = |part: &[u32], from: u32, to: u32| {
                part.iter().filter(|&&key| from <= key && key < to).count() as u64
            };
            let inside = |&key: &u32| low <= key && key < high;
            let open: Vec<u32> = parts
                .iter()
                .flat_map(|part| part.iter().copied().filter(inside))
                .collect();
            let collected = Collected {
                bracket: Bracket { low, high },
                num_certain: parts.iter().map(|part| count(part, high, u32::MAX)).sum(),
                num_open: parts.iter().map(|part| count(part, low, high)).sum(),
                open_keys: Some(&open),
            };
            for rank in 1..=3000 {
                let expected = match sorted[rank as usize - 1] {
                    key if key >= high => Decision::Above,
                    key if key >= low => Decision::Threshold(key),
                    _ if low == 1 => Decision::Threshold(0),
                    _ => Decision::Below,
                };
                let found = collected.decide(kernels, rank, &mut [0; 200]);
                assert_eq!(found, expected, "{rank}");
            }
        }
    }
}
