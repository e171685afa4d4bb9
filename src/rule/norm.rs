//! The shape of the gradient norm's sum, so that it is the same however the work is cut.

/// Entries that are summed before their sum is passed on.
pub const CHUNK: usize = 4096;
/// Accumulators of a chunk.
pub const LANES: usize = 64;

/// The sum of the squares of at most [`CHUNK`] gradients, widened to f32 and not scaled.
#[must_use]
pub fn chunk_sum_of_squares(grads: impl Iterator<Item = f32>) -> f64 {
    chunk_sum(grads.map(|g| f64::from(g) * f64::from(g)))
}

/// The sum over many tensors or chunks, from their own sums. Uses `sums` as work space.
#[must_use]
#[inline(never)]
pub fn fold(sums: &mut [f64]) -> f64 {
    let mut n = sums.len();
    while n > 1 {
        let chunks = n.div_ceil(CHUNK);
        for chunk in 0..chunks {
            let end = n.min((chunk + 1) * CHUNK);
            sums[chunk] = chunk_sum(sums[chunk * CHUNK..end].iter().copied());
        }
        n = chunks;
    }
    sums.first().copied().unwrap_or(0.0)
}

/// Adds the lanes up, halves upon halves.
#[must_use]
pub fn fold_lanes(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

fn chunk_sum(values: impl Iterator<Item = f64>) -> f64 {
    let mut lanes = [0.0; LANES];
    for (i, value) in values.enumerate() {
        lanes[i % LANES] += value;
    }
    fold_lanes(lanes)
}

/// The norm of scaled gradients from the sum of squares of unscaled ones.
#[must_use]
#[inline(never)]
pub fn norm(sum: f64, grad_scale: f64) -> f64 {
    grad_scale.abs() * sum.sqrt()
}

/// min(1, max_grad_norm / (norm + 1e-6)), as in `torch.nn.utils.clip_grad_norm_`; 1 if clipping is off.
/// NaN if the norm is.
#[must_use]
#[inline(never)]
pub fn clip(norm: f64, max_grad_norm: f64) -> f64 {
    if max_grad_norm == 0.0 {
        return 1.0;
    }
    let ratio = max_grad_norm / (norm + 1e-6);
    if ratio > 1.0 { 1.0 } else { ratio }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_its_own_sum_and_none_sum_to_zero() {
        assert_eq!(fold(&mut [0.1]), 0.1);
        assert_eq!(fold(&mut []), 0.0);
    }

    #[test]
    fn sums_of_whole_numbers_are_exact_at_every_length() {
        for n in [1usize, 2, 63, 64, 65, 4095, 4096, 4097, 300_000] {
            let mut values: Vec<f64> = (0..n).map(|i| (i % 1000) as f64).collect();
            let expected: f64 = values.iter().sum();
            assert_eq!(fold(&mut values), expected, "{n} values");
        }
    }

    #[test]
    fn clipping_only_shrinks() {
        assert_eq!(clip(10.0, 0.0), 1.0);
        assert_eq!(clip(0.5, 1.0), 1.0);
        assert!((clip(10.0, 1.0) - 0.1).abs() < 1e-7);
        assert_eq!(clip(f64::INFINITY, 1.0), 0.0);
        assert!(clip(f64::NAN, 1.0).is_nan());
    }
}
