//! The arithmetic of `docs/numerics.md` on groups of lanes.

use super::walk::Place;
use crate::config::{Filter, Rounding};
use crate::cpu::element::{Moment, Param, Round};
use crate::cpu::vector::{
    Vector, first_round, magnitude, other_rounds, other_rounds_high, uniform,
};
use crate::job::Job;
use crate::rule::scalars::Scalars;

/// What stays the same over a range of entries.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Pass {
    scalars: Scalars,
    filter: Filter,
    stochastic: bool,
    /// Of the first round of random bits, which all streams share.
    first_key: u32,
    moments_key: u32,
    param_key: u32,
    filter_key: u32,
}

impl Pass {
    /// For entries whose upper index half is `high`.
    #[inline(always)]
    pub(super) fn new(job: &Job, high: u32) -> Self {
        let random = job.random.span(high);
        Self {
            scalars: job.scalars,
            filter: if job.everything_moves {
                // Then the filters differ in nothing, and this one is the cheapest.
                Filter::Momentum
            } else {
                job.filter
            },
            stochastic: job.rounding == Rounding::Stochastic,
            first_key: random.first,
            moments_key: random.moments,
            param_key: random.param,
            filter_key: random.filter,
        }
    }

    /// The first round of the random bits of some entries. Whoever asks for it again gets the same, which the
    /// compiler sees.
    #[inline(always)]
    fn mixed<V: Vector>(&self, entries: V::U) -> V::U {
        first_round::<V>(entries ^ V::uint(self.first_key))
    }

    /// The random bits that round the moments: in the upper halves those for the first one, and those for the second one.
    #[inline(always)]
    fn moment_bits<V: Vector>(&self, entries: V::U) -> (V::U, V::U) {
        let bits = other_rounds::<V>(self.mixed::<V>(entries) ^ V::uint(self.moments_key));
        (bits, V::shift_left::<16>(bits))
    }

    /// The random bits that round the parameter, in the upper half: the lower one is something else than what the
    /// definition says.
    #[inline(always)]
    fn param_bits<V: Vector>(&self, entries: V::U) -> V::U {
        other_rounds_high::<V>(self.mixed::<V>(entries) ^ V::uint(self.param_key))
    }

    /// The random bits of the filter.
    #[inline(always)]
    fn filter_bits<V: Vector>(&self, entries: V::U) -> V::U {
        other_rounds::<V>(self.mixed::<V>(entries) ^ V::uint(self.filter_key))
    }

    /// The scaled gradient and the stored form of both moments after this step.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable at `place`.
    #[inline(always)]
    pub(super) unsafe fn moments<V: Vector, S: Moment<V>>(
        &self,
        place: Place,
        entries: V::U,
    ) -> (V::F, V::F, V::F) {
        let Scalars {
            s, b1, c1, b2, c2, ..
        } = self.scalars;
        // SAFETY: the caller's promise.
        let (g, m, v) = unsafe {
            (
                V::load_f32(place.grad) * V::float(s),
                S::load(place.exp_avg),
                S::load(place.exp_avg_sq),
            )
        };
        let m = V::flush(V::float(b1) * m + V::float(c1) * g);
        let v = V::flush(V::float(b2) * v + (V::float(c2) * g) * g);
        if S::STOCHASTIC {
            let (for_m, for_v) = self.moment_bits::<V>(entries);
            (g, S::round(m, for_m), S::round(v, for_v))
        } else {
            (g, m, v)
        }
    }

    #[inline(always)]
    fn update<V: Vector>(&self, m: V::F, v: V::F) -> V::F {
        m / (V::sqrt(v) * V::float(self.scalars.r) + V::float(self.scalars.e))
    }

    /// The magnitude that the filter looks at; and where it may select at all: both that and the first
    /// moment are finite. `MOMENTUM` says that the filter is that one.
    #[inline(always)]
    pub(super) fn filtered<V: Vector, const MOMENTUM: bool>(
        &self,
        g: V::F,
        m: V::F,
        v: V::F,
        entries: V::U,
    ) -> (V::U, V::Mask) {
        let finite = V::finite(m);
        if MOMENTUM {
            return (magnitude::<V>(m), finite);
        }
        let other = match self.filter {
            Filter::Momentum => m,
            Filter::Gradient => g,
            Filter::Update => self.update::<V>(m, v),
            Filter::Random => uniform::<V>(self.filter_bits::<V>(entries)),
        };
        (magnitude::<V>(other), finite & V::finite(other))
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

    /// By how much a parameter moves.
    #[inline(always)]
    pub(super) fn difference<V: Vector>(&self, m: V::F, v: V::F) -> V::F {
        V::float(self.scalars.a) * self.update::<V>(m, v)
    }

    /// Rounds to the parameter's type.
    #[inline(always)]
    pub(super) fn encode<V: Vector, P: Param<V>>(&self, x: V::F, entries: V::U) -> V::U {
        P::encode(x, self.rounding::<V>(entries))
    }

    /// What the parameter becomes if it moves.
    #[inline(always)]
    pub(super) fn moved<V: Vector, P: Param<V>>(
        &self,
        old: V::U,
        difference: V::F,
        entries: V::U,
    ) -> V::U {
        self.encode::<V, P>(self.decayed::<V, P>(old) - difference, entries)
    }

    /// What the parameter was before it became `moved`, most probably. Not for types whose old values are kept.
    #[inline(always)]
    pub(super) fn undone<V: Vector, P: Param<V>>(&self, moved: V::U, difference: V::F) -> V::U {
        // 1 / decay as 1 + regrowth: with decay near 1, only so the product is precise enough. The compiler divides once a
        // tile; where it is not needed, not at all.
        let regrowth = (1.0 / f64::from(self.scalars.decay) - 1.0) as f32;
        let decayed = P::decode(moved) + difference;
        let undecayed = V::mul_add(decayed, V::float(regrowth), decayed);
        P::encode(undecayed, Round::Nearest)
    }
}
