//! Where entries lie in the buffers of a job.

use crate::cpu::simd::element::{Moment, Param};
use crate::cpu::simd::prefetch;
use crate::cpu::simd::vector::Vector;
use crate::job::Job;

/// How many bytes ahead memory is asked for.
pub(super) const AHEAD: usize = 2048;

/// The places of some consecutive entries in all buffers. The gradient is in f32, widened if it was not.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Pointers {
    pub(super) param: *mut u8,
    pub(super) grad: *const f32,
    pub(super) exp_avg: *mut u8,
    pub(super) exp_avg_sq: *mut u8,
    pub(super) master: *mut f32,
}

/// The sizes of the elements of all buffers; 0 for one that is not used.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) param: usize,
    pub(super) grad: usize,
    pub(super) moment: usize,
    pub(super) master: usize,
}

impl Sizes {
    #[inline(always)]
    fn of_types<V: Vector, P: Param<V>, S: Moment<V>>() -> Self {
        Self {
            param: P::SIZE,
            grad: size_of::<f32>(),
            moment: S::SIZE,
            master: if P::HAS_MASTER { size_of::<f32>() } else { 0 },
        }
    }
}

impl Pointers {
    /// Where an entry of a job lies. Its gradient is for the caller to find.
    #[inline(always)]
    pub(super) fn to_entry(job: &Job, entry: usize) -> Self {
        Self {
            param: job.param.wrapping_add(entry * job.param_dtype.size()),
            grad: std::ptr::null(),
            exp_avg: job.exp_avg.wrapping_add(entry * job.state_dtype.size()),
            exp_avg_sq: job.exp_avg_sq.wrapping_add(entry * job.state_dtype.size()),
            master: job.master.wrapping_add(entry),
        }
    }

    /// `entries` further.
    #[inline(always)]
    pub(super) fn advanced(self, entries: usize, sizes: Sizes) -> Self {
        Self {
            param: self.param.wrapping_add(entries * sizes.param),
            grad: self.grad.wrapping_byte_add(entries * sizes.grad),
            exp_avg: self.exp_avg.wrapping_add(entries * sizes.moment),
            exp_avg_sq: self.exp_avg_sq.wrapping_add(entries * sizes.moment),
            master: self.master.wrapping_byte_add(entries * sizes.master),
        }
    }

    /// Where a group of lanes lies.
    #[inline(always)]
    pub(super) fn group<V: Vector, P: Param<V>, S: Moment<V>>(self, group: usize) -> Self {
        self.advanced(group * V::LANES, Sizes::of_types::<V, P, S>())
    }

    /// Asks for the gradients that come soon.
    #[inline(always)]
    pub(super) fn prefetch_grad(self) {
        prefetch(self.grad.cast::<u8>().wrapping_add(AHEAD));
    }

    /// Asks for the first moments that come soon.
    #[inline(always)]
    pub(super) fn prefetch_exp_avg(self) {
        prefetch(self.exp_avg.wrapping_add(AHEAD));
    }

    /// Asks for the second moments that come soon.
    #[inline(always)]
    pub(super) fn prefetch_exp_avg_sq(self) {
        prefetch(self.exp_avg_sq.wrapping_add(AHEAD));
    }
}
