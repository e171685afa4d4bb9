//! The loops of a step, each written once over a vector and the buffers' element types.

use super::element::{Moment, Param, Round, Single, load_grad};
use super::vector::{Format, MAX_LANES, Vector, flush, magnitude, random, uniform};
use crate::backend::Job;
use crate::config::{Dtype, Filter, Rounding, WeightDecayScope};
use crate::rule::convert::INFINITE;
use crate::rule::norm::{LANES as NORM_LANES, fold_lanes};
use crate::rule::random::SpanKey;
use crate::rule::scalars::Scalars;

/// The places of one group of lanes in all buffers, or of a copy of its last, incomplete one.
#[derive(Clone, Copy)]
struct Place {
    param: *mut u8,
    grad: *const u8,
    grad_size: usize,
    exp_avg: *mut u8,
    exp_avg_sq: *mut u8,
    master: *mut f32,
}

impl Place {
    /// Where entry `start` lies.
    #[inline(always)]
    fn of<V: Vector, P: Param<V>, S: Moment<V>>(job: &Job, start: u64) -> Self {
        let first = Self {
            param: job.param,
            grad: job.grad,
            grad_size: job.grad_dtype.size(),
            exp_avg: job.exp_avg,
            exp_avg_sq: job.exp_avg_sq,
            master: job.master,
        };
        first.at::<V, P, S>(start as usize)
    }

    /// `entries` further.
    #[inline(always)]
    fn at<V: Vector, P: Param<V>, S: Moment<V>>(self, entries: usize) -> Self {
        Self {
            param: self.param.wrapping_add(entries * P::SIZE),
            grad: self.grad.wrapping_add(entries * self.grad_size),
            grad_size: self.grad_size,
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

    fn place(&mut self, like: Place) -> Place {
        Place {
            param: self.param.as_mut_ptr().cast(),
            grad: self.grad.as_ptr().cast(),
            grad_size: like.grad_size,
            exp_avg: self.exp_avg.as_mut_ptr().cast(),
            exp_avg_sq: self.exp_avg_sq.as_mut_ptr().cast(),
            master: self.master.as_mut_ptr(),
        }
    }
}

/// Which buffers [`copy`] copies.
#[derive(Clone, Copy)]
struct Copied {
    grad: bool,
    moments: bool,
    param: bool,
}

/// Copies `n` entries of some buffers.
///
/// # Safety
///
/// `n` is at most `MAX_LANES`; both places have `n` entries, `from` readable and `to` writable.
#[inline(always)]
unsafe fn copy<V: Vector, P: Param<V>, S: Moment<V>>(
    from: Place,
    to: Place,
    n: usize,
    copied: Copied,
) {
    // SAFETY: the caller's promise; the two places are different memory.
    unsafe {
        if copied.grad {
            to.grad
                .cast_mut()
                .copy_from_nonoverlapping(from.grad, n * from.grad_size);
        }
        if copied.moments {
            to.exp_avg
                .copy_from_nonoverlapping(from.exp_avg, n * S::SIZE);
            to.exp_avg_sq
                .copy_from_nonoverlapping(from.exp_avg_sq, n * S::SIZE);
        }
        if copied.param {
            to.param.copy_from_nonoverlapping(from.param, n * P::SIZE);
            if P::HAS_MASTER {
                to.master.copy_from_nonoverlapping(from.master, n);
            }
        }
    }
}

/// From which keys on entries move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Below this key none moves.
    pub(super) possible: u32,
    /// From this key on all move. What lies between is open.
    pub(super) certain: u32,
}

impl Bounds {
    /// The threshold is known.
    pub(super) fn at(threshold: u32) -> Self {
        Self {
            possible: threshold,
            certain: threshold,
        }
    }
}

/// What a pass that does not know the threshold writes down.
///
/// Entries are noted by the lower half of their index, parameters by the bits in which they are kept.
#[derive(Debug)]
pub(super) struct Notes {
    /// Entries that may have to move: which, their keys, and what they would become.
    pub(super) open: [*mut u32; 3],
    pub(super) num_open: usize,
    /// Entries that moved, and whose old value cannot be computed from the new one: which, and the old value.
    pub(super) lost: [*mut u32; 2],
    pub(super) num_lost: usize,
    /// Nothing moves yet.
    pub(super) holds: bool,
}

impl Notes {
    /// Takes back the notes about lanes of the last group that lie behind the end of a range.
    ///
    /// # Safety
    ///
    /// The lists hold as many notes as they say.
    unsafe fn forget_behind(&mut self, end: u32) {
        let lists = [
            (self.open[0], &mut self.num_open),
            (self.lost[0], &mut self.num_lost),
        ];
        for (entries, count) in lists {
            // SAFETY: the last of `count` notes (the caller's promise).
            let is_behind = |count: usize| unsafe {
                (entries.add(count - 1).read().wrapping_sub(end) as usize) < MAX_LANES
            };
            while *count > 0 && is_behind(*count) {
                *count -= 1;
            }
        }
    }
}

/// What stays the same over a range of entries.
#[derive(Clone, Copy)]
struct Pass {
    scalars: Scalars,
    grad_dtype: Dtype,
    filter: Filter,
    decay_all: bool,
    stochastic: bool,
    bounds: Bounds,
    exp_avg_key: SpanKey,
    exp_avg_sq_key: SpanKey,
    param_key: SpanKey,
    filter_key: SpanKey,
}

impl Pass {
    /// For entries whose upper index half is `high`.
    fn new(job: &Job, high: u32, bounds: Bounds) -> Self {
        Self {
            scalars: job.scalars,
            grad_dtype: job.grad_dtype,
            filter: if job.everything_moves {
                // Then the filters differ in nothing, and this one is the cheapest.
                Filter::Momentum
            } else {
                job.filter
            },
            decay_all: job.weight_decay_scope == WeightDecayScope::All,
            stochastic: job.rounding == Rounding::Stochastic,
            bounds,
            exp_avg_key: job.random.exp_avg.span(high),
            exp_avg_sq_key: job.random.exp_avg_sq.span(high),
            param_key: job.random.param.span(high),
            filter_key: job.random.filter.span(high),
        }
    }

    /// The scaled gradient.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable at `place`.
    #[inline(always)]
    unsafe fn gradient<V: Vector>(&self, place: Place) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { load_grad::<V>(self.grad_dtype, place.grad) * V::float(self.scalars.s) }
    }

    /// The scaled gradient and the stored form of both moments after this step.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable at `place`.
    #[inline(always)]
    unsafe fn moments<V: Vector, S: Moment<V>>(
        &self,
        place: Place,
        entries: V::U,
    ) -> (V::F, V::F, V::F) {
        let Scalars { b1, c1, b2, c2, .. } = self.scalars;
        // SAFETY: the caller's promise.
        let (g, m, v) = unsafe {
            (
                self.gradient::<V>(place),
                S::load(place.exp_avg),
                S::load(place.exp_avg_sq),
            )
        };
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

    #[inline(always)]
    fn rounding<V: Vector>(&self, entries: V::U) -> Round<V> {
        if self.stochastic {
            Round::Stochastic(self.param_key, entries)
        } else {
            Round::Nearest
        }
    }

    /// Steps one group of lanes; those that certainly move.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable and writable at `place`; there is room for a group in all `notes`.
    #[inline(always)]
    unsafe fn step<V: Vector, P: Param<V>, S: Moment<V>>(
        &self,
        place: Place,
        entries: V::U,
        notes: &mut Option<&mut Notes>,
    ) -> V::Mask {
        // SAFETY: the caller's promise.
        let (g, m, v) = unsafe { self.moments::<V, S>(place, entries) };
        // SAFETY: as above.
        unsafe {
            S::store(place.exp_avg, m);
            S::store(place.exp_avg_sq, v);
        }
        let (filtered, may_move) = self.filtered::<V>(g, m, v, entries);
        let selected = may_move & V::at_least(filtered, V::uint(self.bounds.certain));

        // SAFETY: as above.
        let old = unsafe { P::load(place.param, place.master) };
        let decayed = P::decode(old) * V::float(self.scalars.decay);
        let difference = V::float(self.scalars.a) * self.update::<V>(m, v);
        let moved = P::encode(decayed - difference, self.rounding::<V>(entries));
        let (new, written) = if self.decay_all {
            let decayed = P::encode(decayed, self.rounding::<V>(entries));
            let everywhere = V::at_least(filtered, V::uint(0));
            (V::select(selected, moved, decayed), everywhere)
        } else {
            (moved, selected)
        };
        if let Some(notes) = notes {
            let open = may_move
                & V::at_least(filtered, V::uint(self.bounds.possible))
                & V::less(filtered, V::uint(self.bounds.certain));
            // SAFETY: there is room for a group (the caller's promise).
            unsafe {
                note::<V, 3>(
                    &notes.open,
                    &mut notes.num_open,
                    open,
                    [entries, filtered, moved],
                )
            };
            if notes.holds {
                return selected;
            }
            let undone = self.undone::<V, P>(moved, difference);
            let bits = V::uint(P::BITS);
            let lost = selected & V::differ(undone & bits, old & bits);
            // SAFETY: as above.
            unsafe { note::<V, 2>(&notes.lost, &mut notes.num_lost, lost, [entries, old]) };
        }
        // SAFETY: a group is writable at `place` (the caller's promise).
        unsafe { P::store(place.param, place.master, new, old, written) };
        selected
    }

    /// What the parameter probably was before it moved by `difference`.
    #[inline(always)]
    fn undone<V: Vector, P: Param<V>>(&self, moved: V::U, difference: V::F) -> V::U {
        let undecayed = V::float(1.0 / self.scalars.decay);
        P::encode((P::decode(moved) + difference) * undecayed, Round::Nearest)
    }

    /// The keys of one group of lanes.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable at `place`.
    #[inline(always)]
    unsafe fn keys<V: Vector, S: Moment<V>>(&self, place: Place, entries: V::U) -> V::U {
        // SAFETY: the caller's promise.
        let (g, m, v) = unsafe { self.moments::<V, S>(place, entries) };
        let (filtered, may_move) = self.filtered::<V>(g, m, v, entries);
        V::select(may_move, filtered, V::uint(0))
    }

    /// Moves the entries of one group that reach `threshold` and did not move, and moves back those that moved
    /// and do not reach it; the ones that reach it. The moments are those after the step.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable and writable at `place`.
    #[inline(always)]
    unsafe fn settle<V: Vector, P: Param<V>, S: Moment<V>>(
        &self,
        place: Place,
        entries: V::U,
        threshold: u32,
    ) -> V::Mask {
        // SAFETY: the caller's promise.
        let (m, v) = unsafe { (S::load(place.exp_avg), S::load(place.exp_avg_sq)) };
        let g = if self.filter == Filter::Gradient {
            // SAFETY: as above.
            unsafe { self.gradient::<V>(place) }
        } else {
            V::float(0.0)
        };
        let (filtered, may_move) = self.filtered::<V>(g, m, v, entries);
        let moves = may_move & V::at_least(filtered, V::uint(threshold));
        let advance = moves & V::less(filtered, V::uint(self.bounds.certain));
        let retreat = may_move
            & V::at_least(filtered, V::uint(self.bounds.certain))
            & V::less(filtered, V::uint(threshold));
        let wrong = advance | retreat;
        if V::any(wrong) {
            // SAFETY: as above.
            let old = unsafe { P::load(place.param, place.master) };
            let p = P::decode(old);
            let difference = V::float(self.scalars.a) * self.update::<V>(m, v);
            let moved = p * V::float(self.scalars.decay) - difference;
            let moved = P::encode(moved, self.rounding::<V>(entries));
            let new = V::select(advance, moved, self.undone::<V, P>(old, difference));
            // SAFETY: as above.
            unsafe { P::store(place.param, place.master, new, old, wrong) };
        }
        moves
    }
}

/// Appends the lanes that are set to `N` lists of the same length.
///
/// # Safety
///
/// Each list has room for a group of lanes behind its `count` elements.
#[inline(always)]
unsafe fn note<V: Vector, const N: usize>(
    lists: &[*mut u32; N],
    count: &mut usize,
    set: V::Mask,
    values: [V::U; N],
) {
    if V::any(set) {
        for (list, values) in lists.iter().zip(values) {
            // SAFETY: the caller's promise.
            unsafe { V::store_compressed(list.add(*count), set, values) };
        }
        *count += V::count(set);
    }
}

/// Cuts a range where the upper half of the index changes.
#[derive(Clone, Copy)]
struct Spans {
    start: u64,
    end: u64,
}

/// Entries with a common upper half of the index.
struct Span {
    high: u32,
    start: u64,
    len: usize,
}

// An iterator, because a closure would not be compiled for the instruction set of its caller.
impl Iterator for Spans {
    type Item = Span;

    #[inline(always)]
    fn next(&mut self) -> Option<Span> {
        let start = self.start;
        self.start = self.end.min((start | u64::from(u32::MAX)) + 1);
        (start < self.end).then(|| Span {
            high: (start >> 32) as u32,
            start,
            len: (self.start - start) as usize,
        })
    }
}

#[inline(always)]
fn spans(start: u64, len: u64) -> Spans {
    Spans {
        start,
        end: start + len,
    }
}

/// Steps the entries `start..start + len`, fewer than 2^28; how many certainly move. Without `notes` the
/// threshold is known: the bounds are equal.
///
/// # Safety
///
/// The range lies within the job's tensor; the job's buffers are as large as it says, and nobody else uses
/// them in this range. All `notes` have room for `len` entries and [`MAX_LANES`] more.
#[inline(always)]
pub(super) unsafe fn step<V: Vector, P: Param<V>, S: Moment<V>>(
    job: &Job,
    start: u64,
    len: u64,
    bounds: Bounds,
    mut notes: Option<&mut Notes>,
) -> u64 {
    let mut selected = 0u64;
    for Span { high, start, len } in spans(start, len) {
        let pass = Pass::new(job, high, bounds);
        let place = Place::of::<V, P, S>(job, start);
        let lanes = V::lane_numbers() + V::uint(start as u32);
        let whole = len - len % V::LANES;
        let mut counts = V::uint(0);
        for i in (0..whole).step_by(V::LANES) {
            let entries = lanes + V::uint(i as u32);
            // SAFETY: `LANES` entries from `start + i` on lie within the range, and there is room for as many
            // notes as there are entries (the caller's promise).
            let moved =
                unsafe { pass.step::<V, P, S>(place.at::<V, P, S>(i), entries, &mut notes) };
            counts = V::tally(counts, moved);
        }
        let rest = len - whole;
        if rest > 0 {
            let mut tail = Tail::ZERO;
            let place = place.at::<V, P, S>(whole);
            let copied = tail.place(place);
            let entries = lanes + V::uint(whole as u32);
            let mut all = Copied {
                grad: true,
                moments: true,
                param: true,
            };
            // SAFETY: `rest` entries lie within the range (the caller's promise), and a tail has room for
            // a whole group.
            unsafe {
                copy::<V, P, S>(place, copied, rest, all);
                let moved = pass.step::<V, P, S>(copied, entries, &mut notes);
                if let Some(notes) = &mut notes {
                    notes.forget_behind((start as u32).wrapping_add(len as u32));
                }
                all.grad = false;
                copy::<V, P, S>(copied, place, rest, all);
                let real = V::less(V::lane_numbers(), V::uint(rest as u32));
                counts = V::tally(counts, moved & real);
            }
        }
        selected += u64::from(V::sum(counts));
    }
    selected
}

/// Makes the entries `start..start + len`, fewer than 2^28, right after a step that took those from
/// `moved_from` on for the ones that move: now it is those from `threshold` on; how many these are. Where the old value of an entry
/// that must move back was noted as lost, it is wrong then.
///
/// # Safety
///
/// As for [`step`].
#[inline(always)]
pub(super) unsafe fn settle<V: Vector, P: Param<V>, S: Moment<V>>(
    job: &Job,
    start: u64,
    len: u64,
    moved_from: u32,
    threshold: u32,
) -> u64 {
    let mut selected = 0u64;
    for Span { high, start, len } in spans(start, len) {
        let pass = Pass::new(job, high, Bounds::at(moved_from));
        let place = Place::of::<V, P, S>(job, start);
        let lanes = V::lane_numbers() + V::uint(start as u32);
        let whole = len - len % V::LANES;
        let mut counts = V::uint(0);
        for i in (0..whole).step_by(V::LANES) {
            let entries = lanes + V::uint(i as u32);
            // SAFETY: `LANES` entries from `start + i` on lie within the range (the caller's promise).
            let moved =
                unsafe { pass.settle::<V, P, S>(place.at::<V, P, S>(i), entries, threshold) };
            counts = V::tally(counts, moved);
        }
        let rest = len - whole;
        if rest > 0 {
            let mut tail = Tail::ZERO;
            let place = place.at::<V, P, S>(whole);
            let copied = tail.place(place);
            let entries = lanes + V::uint(whole as u32);
            let mut all = Copied {
                grad: true,
                moments: true,
                param: true,
            };
            // SAFETY: as in `step`.
            unsafe {
                copy::<V, P, S>(place, copied, rest, all);
                let moved = pass.settle::<V, P, S>(copied, entries, threshold);
                (all.grad, all.moments) = (false, false);
                copy::<V, P, S>(copied, place, rest, all);
                let real = V::less(V::lane_numbers(), V::uint(rest as u32));
                counts = V::tally(counts, moved & real);
            }
        }
        selected += u64::from(V::sum(counts));
    }
    selected
}

/// Writes the keys that the entries `start..start + len` will have in this step to `keys`. Changes nothing.
///
/// # Safety
///
/// As for [`step`], but the buffers are only read; `keys` has room for `len`.
#[inline(always)]
pub(super) unsafe fn keys<V: Vector, S: Moment<V>>(
    job: &Job,
    start: u64,
    len: usize,
    keys: *mut u32,
) {
    let mut out = keys;
    for Span { high, start, len } in spans(start, len as u64) {
        let pass = Pass::new(job, high, Bounds::at(0));
        // The parameter is not looked at, so any type will do for it.
        let place = Place::of::<V, Single, S>(job, start);
        let lanes = V::lane_numbers() + V::uint(start as u32);
        let whole = len - len % V::LANES;
        for i in (0..whole).step_by(V::LANES) {
            let entries = lanes + V::uint(i as u32);
            // SAFETY: `LANES` entries from `start + i` on lie within the range, and `keys` has room for
            // them (the caller's promise).
            unsafe {
                let found = pass.keys::<V, S>(place.at::<V, Single, S>(i), entries);
                V::store_u32(out.add(i), found);
            }
        }
        let rest = len - whole;
        if rest > 0 {
            let mut tail = Tail::ZERO;
            let place = place.at::<V, Single, S>(whole);
            let copied = tail.place(place);
            let mut group = [0u32; MAX_LANES];
            let read = Copied {
                grad: true,
                moments: true,
                param: false,
            };
            // SAFETY: `rest` entries lie within the range, and `keys` has room for them (the caller's
            // promise); a tail and `group` have room for a whole group.
            unsafe {
                copy::<V, Single, S>(place, copied, rest, read);
                let found = pass.keys::<V, S>(copied, lanes + V::uint(whole as u32));
                V::store_u32(group.as_mut_ptr(), found);
                out.add(whole)
                    .copy_from_nonoverlapping(group.as_ptr(), rest);
            }
        }
        // SAFETY: `keys` has room for `len`, so this is at most its end.
        out = unsafe { out.add(len) };
    }
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
/// As for [`keys`]; `found` has room for `len` keys and [`MAX_LANES`] more.
#[inline(always)]
pub(super) unsafe fn collect<V: Vector, S: Moment<V>>(
    job: &Job,
    start: u64,
    len: usize,
    (low, high): Bracket,
    found: *mut u32,
) -> Collected {
    let mut above = 0u64;
    let mut inside = 0;
    let mut group = [0u32; MAX_LANES];
    for Span {
        high: high_index,
        start,
        len,
    } in spans(start, len as u64)
    {
        let pass = Pass::new(job, high_index, Bounds::at(0));
        let place = Place::of::<V, Single, S>(job, start);
        let lanes = V::lane_numbers() + V::uint(start as u32);
        let whole = len - len % V::LANES;
        let mut counts = V::uint(0);
        for i in (0..whole).step_by(V::LANES) {
            let entries = lanes + V::uint(i as u32);
            // SAFETY: `LANES` entries from `start + i` on lie within the range, and `found` has room for as many
            // keys as there are entries, and for one more group (the caller's promise).
            unsafe {
                let keys = pass.keys::<V, S>(place.at::<V, Single, S>(i), entries);
                counts = V::tally(counts, V::less(V::uint(high), keys));
                let between = V::at_least(keys, V::uint(low)) & V::at_least(V::uint(high), keys);
                note::<V, 1>(&[found], &mut inside, between, [keys]);
            }
        }
        above += u64::from(V::sum(counts));
        let rest = len - whole;
        if rest > 0 {
            // SAFETY: the last entries of the range; `group` has room for them.
            unsafe { keys::<V, S>(job, start + whole as u64, rest, group.as_mut_ptr()) };
            for &key in &group[..rest] {
                above += u64::from(key > high);
                // SAFETY: at most as many keys as entries are written.
                unsafe { found.add(inside).write(key) };
                inside += usize::from(low <= key && key <= high);
            }
        }
    }
    Collected { above, inside }
}

/// Sorts keys like [`collect`].
///
/// # Safety
///
/// `len` keys are readable at `keys`; `found` has room for as many and [`MAX_LANES`] more.
#[inline(always)]
pub(super) unsafe fn sift<V: Vector>(
    keys: *const u32,
    len: usize,
    (low, high): Bracket,
    found: *mut u32,
) -> Collected {
    let mut above = 0u64;
    let mut inside = 0;
    let whole = len - len % V::LANES;
    let mut counts = V::uint(0);
    for i in (0..whole).step_by(V::LANES) {
        // SAFETY: the group lies within `len`; at most as many keys are found as were read.
        unsafe {
            let keys = V::bits(V::load_f32(keys.add(i).cast()));
            counts = V::tally(counts, V::less(V::uint(high), keys));
            let between = V::at_least(keys, V::uint(low)) & V::at_least(V::uint(high), keys);
            note::<V, 1>(&[found], &mut inside, between, [keys]);
        }
    }
    above += u64::from(V::sum(counts));
    for i in whole..len {
        // SAFETY: as above.
        unsafe {
            let key = keys.add(i).read();
            above += u64::from(key > high);
            found.add(inside).write(key);
            inside += usize::from(low <= key && key <= high);
        }
    }
    Collected { above, inside }
}

/// The sum of the squares of `len` gradients from entry `start` on: one chunk of the norm.
///
/// # Safety
///
/// As for [`step`], but only the gradient is read.
#[inline(always)]
pub(super) unsafe fn sum_of_squares<V: Vector>(job: &Job, start: u64, len: usize) -> f64 {
    let dtype = job.grad_dtype;
    let grad = job.grad.wrapping_add(start as usize * dtype.size());
    let mut lanes = [0f64; NORM_LANES];
    let mut row = [0f32; NORM_LANES];
    let whole = len - len % NORM_LANES;
    for i in (0..whole).step_by(NORM_LANES) {
        for j in (0..NORM_LANES).step_by(V::LANES) {
            // SAFETY: the entries lie within the range (the caller's promise), and `LANES` divides
            // `NORM_LANES`, the length of `row`.
            unsafe {
                let g = load_grad::<V>(dtype, grad.add((i + j) * dtype.size()));
                V::store_f32(row.as_mut_ptr().add(j), g);
            }
        }
        add_squares(&mut lanes, &row);
    }
    if whole < len {
        // The padding must not be read; a copy of what there is ends in zeros.
        let mut tail = [0u32; NORM_LANES];
        // SAFETY: `len - whole` entries lie within the range (the caller's promise), fewer than the
        // elements of `tail`, which are at least as wide.
        unsafe {
            let to = tail.as_mut_ptr().cast::<u8>();
            to.copy_from_nonoverlapping(
                grad.add(whole * dtype.size()),
                (len - whole) * dtype.size(),
            );
            for j in (0..NORM_LANES).step_by(V::LANES) {
                let g = load_grad::<V>(dtype, to.add(j * dtype.size()));
                V::store_f32(row.as_mut_ptr().add(j), g);
            }
        }
        add_squares(&mut lanes, &row);
    }
    fold_lanes(lanes)
}

#[inline(always)]
fn add_squares(lanes: &mut [f64; NORM_LANES], row: &[f32; NORM_LANES]) {
    for (lane, &g) in lanes.iter_mut().zip(row) {
        *lane += f64::from(g) * f64::from(g);
    }
}

/// Gives the master copy of the entries `start..start + len` the values of the parameter.
///
/// # Safety
///
/// As for [`step`]; the job has a master copy, and its parameter the format `T`.
#[inline(always)]
pub(super) unsafe fn start_master<V: Vector, T: Format<V>>(job: &Job, start: u64, len: u64) {
    let (start, len) = (start as usize, len as usize);
    let param = job.param.cast::<u16>();
    let whole = len - len % V::LANES;
    for i in (start..start + whole).step_by(V::LANES) {
        // SAFETY: the range lies within the buffers (the caller's promise).
        unsafe { V::store_f32(job.master.add(i), T::widen(V::load_u16(param.add(i)))) };
    }
    let rest = len - whole;
    if rest > 0 {
        let mut from = [0u16; MAX_LANES];
        let mut to = [0f32; MAX_LANES];
        let end = start + whole;
        // SAFETY: as above; `from` and `to` have room for a whole group.
        unsafe {
            from.as_mut_ptr()
                .copy_from_nonoverlapping(param.add(end), rest);
            V::store_f32(to.as_mut_ptr(), T::widen(V::load_u16(from.as_ptr())));
            job.master
                .add(end)
                .copy_from_nonoverlapping(to.as_ptr(), rest);
        }
    }
}
