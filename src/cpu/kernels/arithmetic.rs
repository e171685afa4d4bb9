//! The arithmetic of `docs/numerics.md` on groups of lanes.

use super::pointers::Pointers;
use crate::config::{Filter, Rounding};
use crate::cpu::simd::element::{Moment, Param, Round};
use crate::cpu::simd::vector::{
    Vector, first_round, magnitude, other_rounds, other_rounds_high, uniform,
};
use crate::job::Job;
use crate::rule::scalars::Scalars;

/// What stays the same over a range of entries.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Arithmetic {
    scalars: Scalars,
    filter: Filter,
    stochastic: bool,
    /// Of the first round of random bits, which all streams share.
    first_key: u32,
    moments_key: u32,
    param_key: u32,
    filter_key: u32,
}

impl Arithmetic {
    /// For entries whose upper index half is `high`.
    #[inline(always)]
    pub(super) fn new(job: &Job, high: u32) -> Self {
        let random = job.random.span(high);
        Self {
            scalars: job.scalars,
            filter: job.filter,
            stochastic: job.rounding == Rounding::Stochastic,
            first_key: random.first,
            moments_key: random.moments,
            param_key: random.param,
            filter_key: random.filter,
        }
    }

    pub(super) fn decay(&self) -> f32 {
        self.scalars.decay
    }

    /// The first round of the random bits of some entries. Whoever asks for it again gets the same, which the
    /// compiler sees.
    #[inline(always)]
    fn mixed<V: Vector>(&self, entries: V::U) -> V::U {
        first_round::<V>(entries ^ V::uint(self.first_key))
    }

    /// Random bits in the upper halves for rounding the first and the second moment.
    #[inline(always)]
    fn moment_bits<V: Vector>(&self, entries: V::U) -> (V::U, V::U) {
        let bits = other_rounds::<V>(self.mixed::<V>(entries) ^ V::uint(self.moments_key));
        (bits, V::shift_left::<16>(bits))
    }

    /// Random bits in the upper halves for rounding the parameter; the lower halves are something else than what the
    /// definition says.
    #[inline(always)]
    fn param_bits<V: Vector>(&self, entries: V::U) -> V::U {
        other_rounds_high::<V>(self.mixed::<V>(entries) ^ V::uint(self.param_key))
    }

    /// Random bits for the filter.
    #[inline(always)]
    fn filter_bits<V: Vector>(&self, entries: V::U) -> V::U {
        other_rounds::<V>(self.mixed::<V>(entries) ^ V::uint(self.filter_key))
    }

    /// The scaled gradient.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable at the pointers; likewise below.
    #[inline(always)]
    unsafe fn gradient<V: Vector>(&self, at: Pointers) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { V::load_f32(at.grad) * V::float(self.scalars.s) }
    }

    /// Both moments after this step, in their stored form.
    ///
    /// # Safety
    ///
    /// As above.
    #[inline(always)]
    pub(super) unsafe fn moments<V: Vector, S: Moment<V>>(
        &self,
        at: Pointers,
        entries: V::U,
    ) -> (V::F, V::F) {
        let Scalars { b1, c1, b2, c2, .. } = self.scalars;
        // SAFETY: the caller's promise.
        let (g, m, v) = unsafe {
            (
                self.gradient::<V>(at),
                S::load(at.exp_avg),
                S::load(at.exp_avg_sq),
            )
        };
        let m = V::flush(V::float(b1) * m + V::float(c1) * g);
        let v = V::flush(V::float(b2) * v + (V::float(c2) * g) * g);
        if S::STOCHASTIC {
            let (for_m, for_v) = self.moment_bits::<V>(entries);
            (S::round(m, for_m), S::round(v, for_v))
        } else {
            (m, v)
        }
    }

    /// Both moments as this step has stored them.
    ///
    /// # Safety
    ///
    /// As above.
    #[inline(always)]
    pub(super) unsafe fn stored<V: Vector, S: Moment<V>>(&self, at: Pointers) -> (V::F, V::F) {
        // SAFETY: the caller's promise.
        unsafe { (S::load(at.exp_avg), S::load(at.exp_avg_sq)) }
    }

    #[inline(always)]
    fn update<V: Vector>(&self, m: V::F, v: V::F) -> V::F {
        m / (V::sqrt(v) * V::float(self.scalars.r) + V::float(self.scalars.e))
    }

    /// The keys of the filter; 0 where it cannot select, because what it looks at or the first moment is not finite.
    ///
    /// # Safety
    ///
    /// As above, if the filter looks at the gradient.
    #[inline(always)]
    pub(super) unsafe fn keys<V: Vector>(
        &self,
        at: Pointers,
        m: V::F,
        v: V::F,
        entries: V::U,
    ) -> V::U {
        let filtered = match self.filter {
            Filter::Momentum => m,
            // SAFETY: the caller's promise.
            Filter::Gradient => unsafe { self.gradient::<V>(at) },
            Filter::Update => self.update::<V>(m, v),
            Filter::Random => uniform::<V>(self.filter_bits::<V>(entries)),
        };
        V::keep(V::finite(m) & V::finite(filtered), magnitude::<V>(filtered))
    }

    #[inline(always)]
    fn rounding<V: Vector>(&self, entries: V::U) -> Round<V> {
        if self.stochastic {
            Round::Stochastic(self.param_bits::<V>(entries))
        } else {
            Round::Nearest
        }
    }

    /// The decayed parameter, before it is rounded to its type.
    #[inline(always)]
    pub(super) fn decayed<V: Vector, P: Param<V>>(&self, old: V::U) -> V::F {
        P::decode(old) * V::float(self.scalars.decay)
    }

    /// By how much a parameter that moves does so: a·u.
    #[inline(always)]
    pub(super) fn difference<V: Vector>(&self, m: V::F, v: V::F) -> V::F {
        V::float(self.scalars.a) * self.update::<V>(m, v)
    }

    /// Rounds to the parameter's type.
    #[inline(always)]
    pub(super) fn encode<V: Vector, P: Param<V>>(&self, x: V::F, entries: V::U) -> V::U {
        P::encode(x, self.rounding::<V>(entries))
    }
}
