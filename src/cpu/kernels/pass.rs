//! The arithmetic of `docs/numerics.md` on groups of lanes.

use super::walk::Place;
use crate::config::{Filter, Rounding};
use crate::cpu::element::{Moment, Param, Round};
use crate::cpu::vector::{Vector, magnitude, mix32, mix32_high, uniform};
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
    exp_avg_key: u32,
    exp_avg_sq_key: u32,
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
            exp_avg_key: random.exp_avg,
            exp_avg_sq_key: random.exp_avg_sq,
            param_key: random.param,
            filter_key: random.filter,
        }
    }

    /// The first round of the random bits of some entries. Whoever asks for it again gets the same, which the
    /// compiler sees.
    #[inline(always)]
    fn mixed<V: Vector>(&self, entries: V::U) -> V::U {
        mix32::<V>(entries ^ V::uint(self.first_key))
    }

    /// Random bits for rounding to 16 bits, which looks at the upper ones alone: the lower half is something else than
    /// what the definition says.
    #[inline(always)]
    fn random_high<V: Vector>(&self, key: u32, entries: V::U) -> V::U {
        mix32_high::<V>(self.mixed::<V>(entries) ^ V::uint(key))
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
            let (for_m, for_v) = (
                self.random_high::<V>(self.exp_avg_key, entries),
                self.random_high::<V>(self.exp_avg_sq_key, entries),
            );
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
            Filter::Random => {
                let second_round = self.mixed::<V>(entries) ^ V::uint(self.filter_key);
                uniform::<V>(mix32::<V>(second_round))
            }
        };
        (magnitude::<V>(other), finite & V::finite(other))
    }

    #[inline(always)]
    fn rounding<V: Vector>(&self, entries: V::U) -> Round<V> {
        if self.stochastic {
            Round::Stochastic(self.random_high::<V>(self.param_key, entries))
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
