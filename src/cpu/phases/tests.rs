//! Whole steps of blocks whose estimates mislead, of all sizes, against a sort.

use super::lists::SEGMENT;
use super::small::SMALL_BLOCK;
use super::{Range, estimate, segments};
use crate::cpu::kernels::LINE;
use crate::rule::random::{Key, Stream, hash_name};
use crate::{Optimizer, Options, StepArgs, TensorBinding, TensorSpec};

const NAME: &str = "weight";

/// Around the sizes up to which keys are sorted, one segment is listed, and one thread steps a block.
const LENGTHS: [usize; 12] = [
    2,
    63,
    64,
    65,
    2000,
    SEGMENT as usize,
    SEGMENT as usize + 1,
    30_000,
    SMALL_BLOCK as usize,
    SMALL_BLOCK as usize + 1,
    70_001,
    300_000,
];

/// Steps a tensor twice, and checks the thresholds, and what moves, against a sort.
fn check(grads: &[f32], update_fraction: f64) {
    let k = ((update_fraction * grads.len() as f64) as usize).max(1);
    for num_threads in [1, 2] {
        let options = Options {
            update_fraction,
            num_threads,
            ..Options::default()
        };
        let mut optimizer = Optimizer::new(options).unwrap();
        let spec = TensorSpec::new(NAME, grads.len() as u64);
        let index = optimizer.add_tensor(&spec).unwrap();
        let mut momenta = vec![0f32; grads.len()];
        for step in 0..2 {
            for (m, g) in momenta.iter_mut().zip(grads) {
                *m = 0.9 * *m + (1.0 - 0.9f64) as f32 * g;
            }
            let mut sorted: Vec<f32> = momenta.iter().map(|m| m.abs()).collect();
            sorted.sort_unstable_by(|a, b| b.total_cmp(a));
            let mut param = vec![0f32; grads.len()];
            let binding = TensorBinding::new(index, &mut param[..], grads);
            let report = optimizer
                .step(&StepArgs::default(), &mut [binding])
                .unwrap();
            let what = format!("{} entries, {update_fraction}, step {step}", grads.len());
            let thresholds = optimizer.tensor_state(index).unwrap().thresholds;
            assert_eq!(thresholds, [sorted[k - 1]], "{what}");
            let reaches = |m: &f32| *m != 0.0 && m.abs() >= sorted[k - 1];
            assert!(
                param
                    .iter()
                    .zip(&momenta)
                    .all(|(p, m)| (*p != 0.0) == reaches(m)),
                "{what}"
            );
            let count = momenta.iter().filter(|m| reaches(m)).count();
            assert_eq!(report.entries_selected, count as u64, "{what}");
        }
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
    let mut grads: Vec<f32> = (0..len).map(|i| 1.0 + i as f32 / len as f32).collect();
    if len < LINE {
        return grads;
    }
    let mut sampled = vec![false; len];
    let lines = estimate::lines(range.len);
    for i in 0..lines {
        let start = estimate::line(range, lines, i, key) as usize;
        sampled[start..start + LINE].fill(true);
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
    for len in [65, 1025, 4096, 30_001, 1_000_003] {
        let lines = estimate::lines(len);
        let range = Range { start: 7, len };
        let key = Key::new(1, 2, 3, Stream::Filter).span(0).first;
        let mut end = range.start;
        for stratum in 0..lines / 2 {
            let [one, other] = [0, 1].map(|i| estimate::line(range, lines, 2 * stratum + i, key));
            assert!(one.min(other) >= end);
            end = one.max(other) + LINE as u64;
            assert!(end <= range.start + len);
        }
    }
}

#[test]
fn segments_cover_a_block() {
    for len in [1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 5 * SEGMENT + 7] {
        let block = Range { start: 12_345, len };
        let mut end = block.start;
        for segment in segments(block) {
            assert!(segment.start == end && 0 < segment.len && segment.len <= SEGMENT);
            end += segment.len;
        }
        assert_eq!(end, block.start + len);
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
        check(&vec![0.0; len], 0.03);
        // Two values that straddle the threshold.
        let two: Vec<f32> = (0..len)
            .map(|i| if i % 10 == 3 { 0.75 } else { 0.5 })
            .collect();
        check(&two, 0.1);
        // Fewer that are not zero than may move.
        let few: Vec<f32> = (0..len)
            .map(|i| if i % 100 == 3 { i as f32 } else { 0.0 })
            .collect();
        check(&few, 0.1);
        check(&few, 0.5);
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
