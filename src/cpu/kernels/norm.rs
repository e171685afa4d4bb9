//! The loop that sums squares of gradients.

use crate::backend::Job;
use crate::cpu::element::load_grad;
use crate::cpu::prefetch;
use crate::cpu::vector::Vector;
use crate::rule::norm::{LANES, fold_lanes};

/// How many bytes ahead memory is asked for: the processor does so by itself, but not across pages.
const AHEAD: usize = 4096;
const CACHE_LINE: usize = 64;

/// The sum of the squares of `len` gradients from entry `start` on: one chunk of the norm.
///
/// # Safety
///
/// As for [`super::keys()`]; only the gradient is read.
#[inline(always)]
pub(in crate::cpu) unsafe fn sum_of_squares<V: Vector>(job: &Job, start: u64, len: usize) -> f64 {
    let dtype = job.grad_dtype;
    let grad = job.grad.wrapping_add(start as usize * dtype.size());
    let mut lanes = [0f64; LANES];
    let mut row = [0f32; LANES];
    let whole = len - len % LANES;
    for i in (0..whole).step_by(LANES) {
        for line in (0..LANES * dtype.size()).step_by(CACHE_LINE) {
            prefetch(grad.wrapping_add(i * dtype.size() + AHEAD + line));
        }
        for j in (0..LANES).step_by(V::LANES) {
            // SAFETY: the entries lie within the range (the caller's promise), and `LANES` divides
            // `LANES`, the length of `row`.
            unsafe {
                let g = load_grad::<V>(dtype, grad.add((i + j) * dtype.size()));
                V::store_f32(row.as_mut_ptr().add(j), g);
            }
        }
        add_squares(&mut lanes, &row);
    }
    if whole < len {
        // The padding must not be read; a copy of what there is ends in zeros.
        let mut tail = [0u32; LANES];
        // SAFETY: `len - whole` entries lie within the range (the caller's promise), fewer than the
        // elements of `tail`, which are at least as wide.
        unsafe {
            let to = tail.as_mut_ptr().cast::<u8>();
            to.copy_from_nonoverlapping(
                grad.add(whole * dtype.size()),
                (len - whole) * dtype.size(),
            );
            for j in (0..LANES).step_by(V::LANES) {
                let g = load_grad::<V>(dtype, to.add(j * dtype.size()));
                V::store_f32(row.as_mut_ptr().add(j), g);
            }
        }
        add_squares(&mut lanes, &row);
    }
    fold_lanes(lanes)
}

#[inline(always)]
fn add_squares(lanes: &mut [f64; LANES], row: &[f32; LANES]) {
    for (lane, &g) in lanes.iter_mut().zip(row) {
        *lane += f64::from(g) * f64::from(g);
    }
}
