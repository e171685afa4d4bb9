//! The loop that sums squares of gradients.

use super::table::Kernels;
use super::tiles::{TILE, Widened};
use crate::config::Dtype;
use crate::cpu::simd::prefetch;
use crate::job::Job;
use crate::rule::norm::{LANES, fold_lanes};

/// How many bytes ahead memory is asked for: the processor does so by itself, but not across pages.
const AHEAD: usize = 4096;
const CACHE_LINE: usize = 64;
const _: () = assert!(TILE.is_multiple_of(LANES));

/// The sum of the squares of `len` gradients from entry `start` on: one chunk of the norm.
///
/// # Safety
///
/// As for [`super::keys()`]; only the gradient is read.
pub(in crate::cpu) unsafe fn sum_of_squares(
    kernels: &Kernels,
    job: &Job,
    start: u64,
    len: usize,
) -> f64 {
    let most = match job.grad_dtype {
        Dtype::F32 => len.max(1),
        _ => TILE,
    };
    let mut lanes = [0f64; LANES];
    let mut widened = Widened::new();
    for first in (0..len).step_by(most) {
        let n = most.min(len - first);
        // SAFETY: the entries lie within the range (the caller's promise).
        unsafe {
            let grad = widened.grads(kernels.widen, job, start as usize + first, n);
            (kernels.add_squares)(&mut lanes, grad, n);
        }
    }
    fold_lanes(lanes)
}

/// Adds the squares of `len` gradients to the sums of their lanes, the first one to that of lane 0. The compiler makes
/// vectors of it, as wide as the tier's.
///
/// # Safety
///
/// So many are readable at `grad`.
#[inline(always)]
pub(super) unsafe fn add_squares(lanes: &mut [f64; LANES], grad: *const f32, len: usize) {
    let mut sums = *lanes;
    let rest = len % LANES;
    for i in (0..len - rest).step_by(LANES) {
        let row = grad.wrapping_add(i);
        for line in (0..size_of::<[f32; LANES]>()).step_by(CACHE_LINE) {
            prefetch(row.cast::<u8>().wrapping_add(AHEAD + line));
        }
        // SAFETY: the row lies within `len`.
        add_row(&mut sums, &unsafe {
            row.cast::<[f32; LANES]>().read_unaligned()
        });
    }
    if rest > 0 {
        let mut row = [0f32; LANES];
        // SAFETY: the rest of `len`, fewer than a row.
        unsafe {
            row.as_mut_ptr()
                .copy_from_nonoverlapping(grad.add(len - rest), rest);
        }
        add_row(&mut sums, &row);
    }
    *lanes = sums;
}

#[inline(always)]
fn add_row(sums: &mut [f64; LANES], row: &[f32; LANES]) {
    for (sum, &g) in sums.iter_mut().zip(row) {
        *sum += f64::from(g) * f64::from(g);
    }
}
