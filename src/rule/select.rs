//! How many entries of a block move, and from which key on.

/// k = clamp(floor(α · block_numel), 1, block_numel).
#[must_use]
pub fn rank(update_fraction: f64, block_numel: u64) -> u64 {
    ((update_fraction * block_numel as f64).floor() as u64).clamp(1, block_numel)
}

/// The k-th largest key, k from 1. Reorders the keys.
///
/// # Panics
///
/// If k is 0 or above the number of keys.
#[must_use]
pub fn kth_largest(keys: &mut [u32], k: usize) -> u32 {
    let position = keys.len() - k;
    *keys.select_nth_unstable(position).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_is_the_floor_within_one_and_the_block() {
        assert_eq!(rank(0.03, 64), 1);
        assert_eq!(rank(0.03, 1000), 30);
        assert_eq!(rank(0.03, 7), 1);
        assert_eq!(rank(1.0, 7), 7);
        assert_eq!(rank(1e-300, 7), 1);
        // A product that rounds up to the whole number counts as the whole number.
        assert_eq!(rank(0.1, 10), 1);
        assert_eq!(rank(0.7, 10), 7);
        assert_eq!(rank(0.999_999, 1 << 40), 1_099_510_528_264);
    }

    #[test]
    fn the_kth_largest_counts_ties() {
        let keys = [5, 1, 5, 3, 0];
        for (k, expected) in [(1, 5), (2, 5), (3, 3), (4, 1), (5, 0)] {
            assert_eq!(kth_largest(&mut keys.clone(), k), expected);
        }
    }
}
