//! The loops of a step, each written once over a vector and the buffers' element types.

use super::element::{Grad, Moment, Param, Round, Single};
use super::vector::{MAX_LANES, Vector, flush, magnitude, random, select_f32, uniform};
use crate::backend::Job;
use crate::config::{Filter, Rounding, WeightDecayScope};
use crate::rule::convert::INFINITE;
use crate::rule::norm::{LANES as NORM_LANES, fold_lanes};
use crate::rule::random::SpanKey;
use crate::rule::scalars::Scalars;

/// The places of one group of lanes in all buffers, or of a copy of its last, incomplete one.
#[derive(Clone, Copy)]
struct Place {
    param: *mut u8,
    grad: *const u8,
    exp_avg: *mut u8,
    exp_avg_sq: *mut u8,
    master: *mut f32,
}

impl Place {
    fn of(job: &Job) -> Self {
        Self {
            param: job.param,
            grad: job.grad,
            exp_avg: job.exp_avg,
            exp_avg_sq: job.exp_avg_sq,
            master: job.master,
        }
    }

    /// `entries` further.
    #[inline(always)]
    fn at<V: Vector, P: Param<V>, G: Grad<V>, S: Moment<V>>(self, entries: usize) -> Self {
        Self {
            param: self.param.wrapping_add(entries * P::SIZE),
            grad: self.grad.wrapping_add(entries * G::SIZE),
            exp_avg: self.exp_avg.wrapping_add(entries * S::SIZE),
            exp_avg_sq: self.exp_avg_sq.wrapping_add(entries * S::SIZE),
            master: if P::HAS_MASTER {
                self.master.wrapping_add(entries)
            } else {
                self.master
            },
        }
    }
}

/// Room for one group of lanes of each buffer.
#[repr(C, align(64))]
struct Tail {
    param: [u32; MAX_LANES],
    grad: [u32; MAX_LANES],
    exp_avg: [u32; MAX_LANES],
    exp_avg_sq: [u32; MAX_LANES],
    master: [f32; MAX_LANES],
}

impl Tail {
    const ZERO: Self = Self {
        param: [0; MAX_LANES],
        grad: [0; MAX_LANES],
        exp_avg: [0; MAX_LANES],
        exp_avg_sq: [0; MAX_LANES],
        master: [0.0; MAX_LANES],
    };

    fn place(&mut self) -> Place {
        Place {
            param: self.param.as_mut_ptr().cast(),
            grad: self.grad.as_ptr().cast(),
            exp_avg: self.exp_avg.as_mut_ptr().cast(),
            exp_avg_sq: self.exp_avg_sq.as_mut_ptr().cast(),
            master: self.master.as_mut_ptr(),
        }
    }
}

/// Copies `n` entries' gradient and moments, and with `PARAM` the parameter and master, too.
///
/// # Safety
///
/// `n` is at most `MAX_LANES`; both places have `n` entries, `from` readable and `to` writable.
#[inline(always)]
unsafe fn copy<V: Vector, P: Param<V>, G: Grad<V>, S: Moment<V>>(
    from: Place,
    to: Place,
    n: usize,
    with_grad: bool,
) {
    // SAFETY: the caller's promise; the two places are different memory.
    unsafe {
        to.param.copy_from_nonoverlapping(from.param, n * P::SIZE);
        to.exp_avg
            .copy_from_nonoverlapping(from.exp_avg, n * S::SIZE);
        to.exp_avg_sq
            .copy_from_nonoverlapping(from.exp_avg_sq, n * S::SIZE);
        if with_grad {
            to.grad
                .cast_mut()
                .copy_from_nonoverlapping(from.grad, n * G::SIZE);
        }
        if P::HAS_MASTER {
            to.master.copy_from_nonoverlapping(from.master, n);
        }
    }
}

/// What stays the same over a range of entries.
#[derive(Clone, Copy)]
struct Pass {
    scalars: Scalars,
    filter: Filter,
    decay_all: bool,
    stochastic: bool,
    /// The smallest magnitude that moves.
    lowest: u32,
    exp_avg_key: SpanKey,
    exp_avg_sq_key: SpanKey,
    param_key: SpanKey,
    filter_key: SpanKey,
}

impl Pass {
    /// For entries whose upper index half is `high`.
    fn new(job: &Job, high: u32, lowest: u32) -> Self {
        Self {
            scalars: job.scalars,
            filter: if job.everything_moves {
                // Then the filters differ in nothing, and this one is the cheapest.
                Filter::Momentum
            } else {
                job.filter
            },
            decay_all: job.weight_decay_scope == WeightDecayScope::All,
            stochastic: job.rounding == Rounding::Stochastic,
            lowest,
            exp_avg_key: job.random.exp_avg.span(high),
            exp_avg_sq_key: job.random.exp_avg_sq.span(high),
            param_key: job.random.param.span(high),
            filter_key: job.random.filter.span(high),
        }
    }

    /// The scaled gradient and the stored form of both moments after this step.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable at `place`.
    #[inline(always)]
    unsafe fn moments<V: Vector, G: Grad<V>, S: Moment<V>>(
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
                G::load(place.grad),
                S::load(place.exp_avg),
                S::load(place.exp_avg_sq),
            )
        };
        let g = g * V::float(s);
        let m = flush::<V>(V::float(b1) * m + V::float(c1) * g);
        let v = flush::<V>(V::float(b2) * v + (V::float(c2) * g) * g);
        (
            g,
            S::round(m, self.exp_avg_key, entries),
            S::round(v, self.exp_avg_sq_key, entries),
        )
    }

    #[inline(always)]
    fn update<V: Vector>(&self, m: V::F, v: V::F) -> V::F {
        m / (V::sqrt(v) * V::float(self.scalars.r) + V::float(self.scalars.e))
    }

    /// The magnitude that the filter looks at; and where it may select at all: both that and the first
    /// moment are finite.
    #[inline(always)]
    fn filtered<V: Vector>(&self, g: V::F, m: V::F, v: V::F, entries: V::U) -> (V::U, V::Mask) {
        let momentum = magnitude::<V>(m);
        let finite = V::less(momentum, V::uint(INFINITE));
        let other = match self.filter {
            Filter::Momentum => return (momentum, finite),
            Filter::Gradient => magnitude::<V>(g),
            Filter::Update => magnitude::<V>(self.update::<V>(m, v)),
            Filter::Random => magnitude::<V>(uniform::<V>(random::<V>(self.filter_key, entries))),
        };
        (other, finite & V::less(other, V::uint(INFINITE)))
    }

    /// Steps one group of lanes; the selected ones.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable and writable at `place`.
    #[inline(always)]
    unsafe fn step<V: Vector, P: Param<V>, G: Grad<V>, S: Moment<V>>(
        &self,
        place: Place,
        entries: V::U,
    ) -> V::Mask {
        // SAFETY: the caller's promise.
        let (g, m, v) = unsafe { self.moments::<V, G, S>(place, entries) };
        // SAFETY: as above.
        unsafe {
            S::store(place.exp_avg, m);
            S::store(place.exp_avg_sq, v);
        }
        let (filtered, may_move) = self.filtered::<V>(g, m, v, entries);
        let selected = may_move & V::at_least(filtered, V::uint(self.lowest));

        // SAFETY: as above.
        let p = unsafe {
            if P::HAS_MASTER {
                V::load_f32(place.master)
            } else {
                P::load(place.param)
            }
        };
        let decayed = p * V::float(self.scalars.decay);
        let moved = decayed - V::float(self.scalars.a) * self.update::<V>(m, v);
        let (new, written) = if self.decay_all {
            let everywhere = V::at_least(filtered, V::uint(0));
            (select_f32::<V>(selected, moved, decayed), everywhere)
        } else {
            (moved, selected)
        };
        let rounding = if self.stochastic {
            Round::Stochastic(self.param_key, entries)
        } else {
            Round::Nearest
        };
        // SAFETY: as above.
        unsafe { P::store(place.param, place.master, new, written, rounding) };
        selected
    }

    /// The keys of one group of lanes.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable at `place`.
    #[inline(always)]
    unsafe fn keys<V: Vector, G: Grad<V>, S: Moment<V>>(
        &self,
        place: Place,
        entries: V::U,
    ) -> V::U {
        // SAFETY: the caller's promise.
        let (g, m, v) = unsafe { self.moments::<V, G, S>(place, entries) };
        let (filtered, may_move) = self.filtered::<V>(g, m, v, entries);
        V::select(may_move, filtered, V::uint(0))
    }
}

/// Cuts a range where the upper half of the index changes, and passes on: the upper half, the start and the
/// length.
#[inline(always)]
fn for_spans(mut start: u64, len: u64, mut body: impl FnMut(u32, u64, usize)) {
    let end = start + len;
    while start < end {
        let span_end = end.min((start | u64::from(u32::MAX)) + 1);
        body((start >> 32) as u32, start, (span_end - start) as usize);
        start = span_end;
    }
}

/// Steps the entries `start..start + len`, fewer than 2^28, where magnitudes from `lowest` on move; how many did.
///
/// # Safety
///
/// The range lies within the job's tensor; the job's buffers are as large as it says, and nobody else uses
/// them in this range.
#[inline(always)]
pub(super) unsafe fn step<V: Vector, P: Param<V>, G: Grad<V>, S: Moment<V>>(
    job: &Job,
    start: u64,
    len: u64,
    lowest: u32,
) -> u64 {
    let mut selected = 0u64;
    for_spans(start, len, |high, start, len| {
        let pass = Pass::new(job, high, lowest);
        let place = Place::of(job).at::<V, P, G, S>(start as usize);
        let lanes = V::lane_numbers() + V::uint(start as u32);
        let whole = len - len % V::LANES;
        let mut counts = V::uint(0);
        for i in (0..whole).step_by(V::LANES) {
            let entries = lanes + V::uint(i as u32);
            // SAFETY: `LANES` entries from `start + i` on lie within the range (the caller's promise).
            let moved = unsafe { pass.step::<V, P, G, S>(place.at::<V, P, G, S>(i), entries) };
            counts = V::tally(counts, moved);
        }
        let rest = len - whole;
        if rest > 0 {
            let mut tail = Tail::ZERO;
            let copied = tail.place();
            let place = place.at::<V, P, G, S>(whole);
            // SAFETY: `rest` entries lie within the range (the caller's promise), and a tail has room for
            // a whole group.
            unsafe {
                copy::<V, P, G, S>(place, copied, rest, true);
                let moved = pass.step::<V, P, G, S>(copied, lanes + V::uint(whole as u32));
                copy::<V, P, G, S>(copied, place, rest, false);
                let real = V::less(V::lane_numbers(), V::uint(rest as u32));
                counts = V::tally(counts, moved & real);
            }
        }
        selected += u64::from(V::sum(counts));
    });
    selected
}

/// Writes the keys that the entries `start..start + len` will have in this step to `keys`. Changes nothing.
///
/// # Safety
///
/// As for [`step`], but the buffers are only read; `keys` has room for `len`.
#[inline(always)]
pub(super) unsafe fn keys<V: Vector, G: Grad<V>, S: Moment<V>>(
    job: &Job,
    start: u64,
    len: usize,
    keys: *mut u32,
) {
    let mut out = keys;
    for_spans(start, len as u64, |high, start, len| {
        let pass = Pass::new(job, high, 0);
        // The parameter is not looked at, so any type will do for it.
        let place = Place::of(job).at::<V, Single, G, S>(start as usize);
        let lanes = V::lane_numbers() + V::uint(start as u32);
        let whole = len - len % V::LANES;
        for i in (0..whole).step_by(V::LANES) {
            let entries = lanes + V::uint(i as u32);
            // SAFETY: `LANES` entries from `start + i` on lie within the range, and `keys` has room for
            // them (the caller's promise).
            unsafe {
                let found = pass.keys::<V, G, S>(place.at::<V, Single, G, S>(i), entries);
                V::store_u32(out.add(i), found);
            }
        }
        let rest = len - whole;
        if rest > 0 {
            let mut tail = Tail::ZERO;
            let copied = tail.place();
            let from = place.at::<V, Single, G, S>(whole);
            let mut group = [0u32; MAX_LANES];
            // SAFETY: `rest` entries lie within the range, and `keys` has room for them (the caller's
            // promise); a tail and `group` have room for a whole group.
            unsafe {
                copied
                    .grad
                    .cast_mut()
                    .copy_from_nonoverlapping(from.grad, rest * G::SIZE);
                copied
                    .exp_avg
                    .copy_from_nonoverlapping(from.exp_avg, rest * S::SIZE);
                copied
                    .exp_avg_sq
                    .copy_from_nonoverlapping(from.exp_avg_sq, rest * S::SIZE);
                let found = pass.keys::<V, G, S>(copied, lanes + V::uint(whole as u32));
                V::store_u32(group.as_mut_ptr(), found);
                out.add(whole)
                    .copy_from_nonoverlapping(group.as_ptr(), rest);
            }
        }
        // SAFETY: `keys` has room for `len`, so this is at most its end.
        out = unsafe { out.add(len) };
    });
}

/// Keys that a threshold is expected to lie between, both included.
pub(super) type Bracket = (u32, u32);

/// What [`collect`] found.
pub(super) struct Collected {
    /// Keys above the bracket.
    pub(super) above: u64,
    /// Keys inside it.
    pub(super) inside: usize,
}

/// Sorts the keys of the entries `start..start + len` into those above the bracket, which are counted, and
/// those inside it, which are written to `found`. Changes nothing.
///
/// # Safety
///
/// As for [`keys`]; `found` has room for `len`.
#[inline(always)]
pub(super) unsafe fn collect<V: Vector, G: Grad<V>, S: Moment<V>>(
    job: &Job,
    start: u64,
    len: usize,
    (low, high): Bracket,
    found: *mut u32,
) -> Collected {
    let mut above = 0u64;
    let mut inside = 0;
    let mut group = [0u32; MAX_LANES];
    let mut sort = |keys: &[u32]| {
        for &key in keys {
            // SAFETY: `inside` is at most the number of keys seen so far, less than `len`.
            unsafe { found.add(inside).write(key) };
            inside += usize::from(low <= key && key <= high);
        }
    };
    for_spans(start, len as u64, |high_index, start, len| {
        let pass = Pass::new(job, high_index, 0);
        let place = Place::of(job).at::<V, Single, G, S>(start as usize);
        let lanes = V::lane_numbers() + V::uint(start as u32);
        let whole = len - len % V::LANES;
        let mut counts = V::uint(0);
        for i in (0..whole).step_by(V::LANES) {
            let entries = lanes + V::uint(i as u32);
            // SAFETY: `LANES` entries from `start + i` on lie within the range (the caller's promise), and
            // `group` has room for them.
            unsafe {
                let keys = pass.keys::<V, G, S>(place.at::<V, Single, G, S>(i), entries);
                counts = V::tally(counts, V::less(V::uint(high), keys));
                let between = V::at_least(keys, V::uint(low)) & V::at_least(V::uint(high), keys);
                if V::any(between) {
                    V::store_u32(group.as_mut_ptr(), keys);
                    sort(&group[..V::LANES]);
                }
            }
        }
        above += u64::from(V::sum(counts));
        let rest = len - whole;
        if rest > 0 {
            // SAFETY: the last entries of the range; `group` has room for them.
            unsafe { keys::<V, G, S>(job, start + whole as u64, rest, group.as_mut_ptr()) };
            above += group[..rest]
                .iter()
                .map(|&key| u64::from(key > high))
                .sum::<u64>();
            sort(&group[..rest]);
        }
    });
    Collected { above, inside }
}

/// The sum of the squares of `len` gradients from entry `start` on: one chunk of the norm.
///
/// # Safety
///
/// As for [`step`], but only the gradient is read.
#[inline(always)]
pub(super) unsafe fn sum_of_squares<V: Vector, G: Grad<V>>(
    job: &Job,
    start: u64,
    len: usize,
) -> f64 {
    let grad = job.grad.wrapping_add(start as usize * G::SIZE);
    let mut lanes = [0f64; NORM_LANES];
    let mut row = [0f32; NORM_LANES];
    let mut add = |row: &[f32; NORM_LANES]| {
        for (lane, &g) in lanes.iter_mut().zip(row) {
            *lane += f64::from(g) * f64::from(g);
        }
    };
    let whole = len - len % NORM_LANES;
    for i in (0..whole).step_by(NORM_LANES) {
        for j in (0..NORM_LANES).step_by(V::LANES) {
            // SAFETY: the entries lie within the range (the caller's promise), and `LANES` divides
            // `NORM_LANES`, the length of `row`.
            unsafe {
                let g = G::load(grad.add((i + j) * G::SIZE));
                V::store_f32(row.as_mut_ptr().add(j), g);
            }
        }
        add(&row);
    }
    if whole < len {
        // The padding must not be read; a copy of what there is ends in zeros.
        let mut tail = [0u32; NORM_LANES];
        // SAFETY: `len - whole` entries lie within the range (the caller's promise), fewer than the
        // elements of `tail`, which are at least as wide.
        unsafe {
            let to = tail.as_mut_ptr().cast::<u8>();
            to.copy_from_nonoverlapping(grad.add(whole * G::SIZE), (len - whole) * G::SIZE);
            for j in (0..NORM_LANES).step_by(V::LANES) {
                V::store_f32(row.as_mut_ptr().add(j), G::load(to.add(j * G::SIZE)));
            }
        }
        add(&row);
    }
    fold_lanes(lanes)
}

/// Gives the entries `start..start + len` what they start from: moments zero, master from the parameter, as far
/// as the job asks for it.
///
/// # Safety
///
/// As for [`step`].
#[inline(always)]
pub(super) unsafe fn start<V: Vector, P: Param<V>, S: Moment<V>>(job: &Job, start: u64, len: u64) {
    let (start, len) = (start as usize, len as usize);
    if job.starts_moments {
        // SAFETY: the range lies within the buffers (the caller's promise).
        unsafe {
            job.exp_avg
                .add(start * S::SIZE)
                .write_bytes(0, len * S::SIZE);
            job.exp_avg_sq
                .add(start * S::SIZE)
                .write_bytes(0, len * S::SIZE);
        }
    }
    if !(P::HAS_MASTER && job.starts_master) {
        return;
    }
    let whole = len - len % V::LANES;
    for i in (start..start + whole).step_by(V::LANES) {
        // SAFETY: as above.
        unsafe { V::store_f32(job.master.add(i), P::load(job.param.add(i * P::SIZE))) };
    }
    let rest = len - whole;
    if rest > 0 {
        let mut from = [0u32; MAX_LANES];
        let mut to = [0f32; MAX_LANES];
        // SAFETY: as above; `from` and `to` have room for a whole group.
        unsafe {
            let end = start + whole;
            let bytes = from.as_mut_ptr().cast::<u8>();
            bytes.copy_from_nonoverlapping(job.param.add(end * P::SIZE), rest * P::SIZE);
            V::store_f32(to.as_mut_ptr(), P::load(bytes));
            job.master
                .add(end)
                .copy_from_nonoverlapping(to.as_ptr(), rest);
        }
    }
}
