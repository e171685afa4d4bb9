//! The loops of a step, each written once over a vector and the buffers' element types.

use std::mem::MaybeUninit;

use super::element::{Moment, Param, Round, Single, load_grad};
use super::prefetch;
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

/// How many bytes ahead memory is asked for. The processor does so by itself, but not across pages, and less well
/// the more a loop does: without this, the one that takes notes was 5 to 10 % slower.
const AHEAD: usize = 512;

impl Place {
    /// Asks for what comes soon in all buffers.
    #[inline(always)]
    fn prefetch<V: Vector, P: Param<V>>(self) {
        prefetch(self.grad.wrapping_add(AHEAD));
        prefetch(self.exp_avg.wrapping_add(AHEAD));
        prefetch(self.exp_avg_sq.wrapping_add(AHEAD));
        prefetch(self.param.wrapping_add(AHEAD));
        if P::HAS_MASTER {
            prefetch(self.master.cast::<u8>().wrapping_add(AHEAD));
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
    /// Of entries that do not move, whatever the filter: the moment is NaN.
    const EMPTY: Self = Self {
        param: [0; MAX_LANES],
        grad: [0; MAX_LANES],
        exp_avg: [u32::MAX; MAX_LANES],
        exp_avg_sq: [0; MAX_LANES],
        master: [0.0; MAX_LANES],
    };

    fn place(&mut self, like: Place) -> Place {
        Place {
            param: self.param.as_mut_ptr().cast(),
            grad: self.grad.as_mut_ptr().cast_const().cast(),
            grad_size: like.grad_size,
            exp_avg: self.exp_avg.as_mut_ptr().cast(),
            exp_avg_sq: self.exp_avg_sq.as_mut_ptr().cast(),
            master: self.master.as_mut_ptr(),
        }
    }
}

/// Which buffers [`copy`] copies besides the moments.
#[derive(Clone, Copy)]
struct Copied {
    grad: bool,
    param: bool,
}

impl Copied {
    const ALL: Self = Self {
        grad: true,
        param: true,
    };
    /// What a step changes.
    const RESULT: Self = Self {
        grad: false,
        ..Self::ALL
    };
}

/// Copies `n` entries of the moments and of some other buffers.
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
        to.exp_avg
            .copy_from_nonoverlapping(from.exp_avg, n * S::SIZE);
        to.exp_avg_sq
            .copy_from_nonoverlapping(from.exp_avg_sq, n * S::SIZE);
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

/// What a pass that does not know the threshold writes down: entries that may or do have to move, but have not.
#[derive(Debug)]
pub(super) struct Notes {
    /// The lower halves of their indices.
    pub(super) entries: *mut u32,
    pub(super) keys: *mut u32,
    /// What they become if they move, by the bits in which a parameter is kept.
    pub(super) values: *mut u32,
    pub(super) count: usize,
}

/// What stays the same over a range of entries.
#[derive(Clone, Copy)]
struct Pass {
    scalars: Scalars,
    grad_dtype: Dtype,
    filter: Filter,
    decay_all: bool,
    stochastic: bool,
    regrowth: f32,
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
            regrowth: (1.0 / f64::from(job.scalars.decay) - 1.0) as f32,
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
            Round::Stochastic(random::<V>(self.param_key, entries))
        } else {
            Round::Nearest
        }
    }

    /// Steps one group of lanes whose threshold is known; those that move.
    ///
    /// # Safety
    ///
    /// A group of lanes is readable and writable at `place`.
    #[inline(always)]
    unsafe fn step<V: Vector, P: Param<V>, S: Moment<V>>(
        &self,
        place: Place,
        entries: V::U,
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
        let moved = decayed - self.difference::<V>(m, v);
        let (new, written) = if self.decay_all {
            let new = V::select(selected, V::bits(moved), V::bits(decayed));
            (V::from_bits(new), V::at_least(filtered, V::uint(0)))
        } else {
            (moved, selected)
        };
        let new = P::encode(new, self.rounding::<V>(entries));
        // SAFETY: as above.
        unsafe { P::store(place.param, place.master, new, old, written) };
        selected
    }

    /// What the filter looks at, and where it may select, if the moments are already those after the step.
    ///
    /// # Safety
    ///
    /// As for [`Pass::step`].
    #[inline(always)]
    unsafe fn stored_key<V: Vector, S: Moment<V>>(
        &self,
        place: Place,
        entries: V::U,
    ) -> (V::U, V::Mask) {
        // SAFETY: the caller's promise.
        unsafe {
            let (m, v) = (S::load(place.exp_avg), S::load(place.exp_avg_sq));
            let g = if self.filter == Filter::Gradient {
                self.gradient::<V>(place)
            } else {
                V::float(0.0)
            };
            self.filtered::<V>(g, m, v, entries)
        }
    }

    /// By how much a parameter moves, if the moments are already those after the step.
    ///
    /// # Safety
    ///
    /// As for [`Pass::step`].
    #[inline(always)]
    unsafe fn stored_difference<V: Vector, S: Moment<V>>(&self, place: Place) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { self.difference::<V>(S::load(place.exp_avg), S::load(place.exp_avg_sq)) }
    }

    /// By how much a parameter moves.
    #[inline(always)]
    fn difference<V: Vector>(&self, m: V::F, v: V::F) -> V::F {
        V::float(self.scalars.a) * self.update::<V>(m, v)
    }

    /// What the parameter becomes.
    #[inline(always)]
    fn moved<V: Vector, P: Param<V>>(&self, old: V::U, difference: V::F, entries: V::U) -> V::U {
        let decayed = P::decode(old) * V::float(self.scalars.decay);
        P::encode(decayed - difference, self.rounding::<V>(entries))
    }

    /// What the parameter was before it became `moved`, most probably.
    #[inline(always)]
    fn undone<V: Vector, P: Param<V>>(&self, moved: V::U, difference: V::F, entries: V::U) -> V::U {
        // 1 / decay as 1 + regrowth: with decay near 1, only so the product is precise enough.
        let decayed = P::decode(moved) + difference;
        let undecayed = decayed + decayed * V::float(self.regrowth);
        // Random bits r rounded x to the multiple of the last place that x + r reaches; so what x was comes back
        // from there with the bits 1 - r.
        let rounding = match self.rounding::<V>(entries) {
            Round::Stochastic(random) => Round::Stochastic(random ^ V::uint(u32::MAX)),
            nearest => nearest,
        };
        P::encode(undecayed, rounding)
    }

    /// Steps the groups of a tile as far as the bounds tell, and notes what is open; how many lanes moved.
    ///
    /// An entry that certainly moves is noted all the same, and does not move yet, if its old value could not be
    /// computed again from the new one.
    ///
    /// Nothing here branches on the data: which groups need a note is listed without a branch, and the list is
    /// walked later. A branch that is often guessed wrong would cost more than all the rest.
    ///
    /// # Safety
    ///
    /// As for [`step`], for `groups` groups of at most [`TILE`] entries together.
    #[inline(always)]
    unsafe fn step_tile<V: Vector, P: Param<V>, S: Moment<V>>(
        &self,
        place: Place,
        lanes: V::U,
        groups: usize,
        notes: &mut Notes,
        lists: &mut Lists,
    ) -> V::U {
        let mut counts = V::uint(0);
        let mut listed = 0;
        for group in 0..groups {
            let (place, entries) = group_at::<V, P, S>(place, lanes, group);
            place.prefetch::<V, P>();
            // SAFETY: the caller's promise; the lists have room for all groups.
            unsafe {
                let (g, m, v) = self.moments::<V, S>(place, entries);
                S::store(place.exp_avg, m);
                S::store(place.exp_avg_sq, v);
                let (filtered, may_move) = self.filtered::<V>(g, m, v, entries);
                let old = P::load(place.param, place.master);
                let difference = self.difference::<V>(m, v);
                let moved = self.moved::<V, P>(old, difference, entries);
                let undone = self.undone::<V, P>(moved, difference, entries);
                let returns = V::equal(undone & V::uint(P::BITS), old & V::uint(P::BITS));
                let possible = may_move & V::at_least(filtered, V::uint(self.bounds.possible));
                let certain = V::at_least(filtered, V::uint(self.bounds.certain));
                let moving = possible & certain & returns;
                P::store(place.param, place.master, moved, old, moving);
                counts = V::tally(counts, moving);
                V::store_u32(lists.moved(group * V::LANES), moved);
                let open = V::mask_bits(possible) ^ V::mask_bits(moving);
                lists.group(listed).write((group as u32) << 16 | open);
                listed += usize::from(open != 0);
            }
        }
        for i in 0..listed {
            // SAFETY: the caller's promise; there is room for a note of every entry. The lists are written up to
            // these places.
            unsafe {
                let group = lists.group(i).read();
                let open = V::mask_of(group & 0xFFFF);
                let group = (group >> 16) as usize;
                let (place, entries) = group_at::<V, P, S>(place, lanes, group);
                let (filtered, _) = self.stored_key::<V, S>(place, entries);
                let moved = V::bits(V::load_f32(lists.moved(group * V::LANES).cast()));
                V::store_compressed(notes.entries.add(notes.count), open, entries);
                V::store_compressed(notes.keys.add(notes.count), open, filtered);
                V::store_compressed(notes.values.add(notes.count), open, moved);
                notes.count += V::count(open);
            }
        }
        counts
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

    /// Which lanes move with the right threshold, which of them did not move, and which moved but should not have.
    #[inline(always)]
    fn wrong<V: Vector>(
        &self,
        key: V::U,
        may_move: V::Mask,
        threshold: u32,
    ) -> (V::Mask, V::Mask, V::Mask) {
        let threshold = V::uint(threshold);
        let moved_from = V::uint(self.bounds.certain);
        let moves = may_move & V::at_least(key, threshold);
        let moved = may_move & V::at_least(key, moved_from);
        (
            moves,
            moves & V::less(key, moved_from),
            moved & V::less(key, threshold),
        )
    }

    /// Moves the entries of a tile that reach `threshold` and did not move, and moves back those that moved
    /// and do not reach it; how many lanes reach it. The moments are those after the step.
    ///
    /// # Safety
    ///
    /// As for [`Pass::step_tile`].
    #[inline(always)]
    unsafe fn settle_tile<V: Vector, P: Param<V>, S: Moment<V>>(
        &self,
        place: Place,
        lanes: V::U,
        groups: usize,
        threshold: u32,
        lists: &mut Lists,
    ) -> V::U {
        let mut counts = V::uint(0);
        let mut num_wrong = 0;
        for group in 0..groups {
            let (place, entries) = group_at::<V, P, S>(place, lanes, group);
            // SAFETY: the caller's promise; the list has room for all groups.
            unsafe {
                let (filtered, may_move) = self.stored_key::<V, S>(place, entries);
                let (moves, advance, retreat) = self.wrong::<V>(filtered, may_move, threshold);
                counts = V::tally(counts, moves);
                lists.group(num_wrong).write(group as u32);
                num_wrong += usize::from(V::any(advance | retreat));
            }
        }
        for i in 0..num_wrong {
            // SAFETY: the caller's promise; the list is written up to this place.
            unsafe {
                let group = lists.group(i).read() as usize;
                let (place, entries) = group_at::<V, P, S>(place, lanes, group);
                let (filtered, may_move) = self.stored_key::<V, S>(place, entries);
                let (_, advance, retreat) = self.wrong::<V>(filtered, may_move, threshold);
                let old = P::load(place.param, place.master);
                let difference = self.stored_difference::<V, S>(place);
                let new = V::select(
                    advance,
                    self.moved::<V, P>(old, difference, entries),
                    self.undone::<V, P>(old, difference, entries),
                );
                P::store(place.param, place.master, new, old, advance | retreat);
            }
        }
        counts
    }
}

/// Where a group of a tile lies, and its entries.
#[inline(always)]
fn group_at<V: Vector, P: Param<V>, S: Moment<V>>(
    place: Place,
    lanes: V::U,
    group: usize,
) -> (Place, V::U) {
    let entry = group * V::LANES;
    (place.at::<V, P, S>(entry), lanes + V::uint(entry as u32))
}

/// Entries that are stepped before their notes are made: all that is needed for these is still in the nearest
/// cache then.
const TILE: usize = 512;
/// Groups of a tile, of the vector with the fewest lanes.
const TILE_GROUPS: usize = TILE / 4;

/// Groups of a tile that need more work. Not initialised, because most of it is never used.
struct Lists {
    /// Their numbers; in the lower half, which of their lanes.
    groups: [MaybeUninit<u32>; TILE_GROUPS],
    /// What the parameters of all groups become if they move.
    moved: [MaybeUninit<u32>; TILE],
}

impl Lists {
    #[inline(always)]
    fn new() -> Self {
        Self {
            groups: [MaybeUninit::uninit(); TILE_GROUPS],
            moved: [MaybeUninit::uninit(); TILE],
        }
    }

    #[inline(always)]
    fn group(&mut self, i: usize) -> *mut u32 {
        self.groups.as_mut_ptr().cast::<u32>().wrapping_add(i)
    }

    #[inline(always)]
    fn moved(&mut self, i: usize) -> *mut u32 {
        self.moved.as_mut_ptr().cast::<u32>().wrapping_add(i)
    }
}

/// Appends the lanes that are set to a list of `count` keys.
///
/// # Safety
///
/// The list has room for a group of lanes behind its elements.
#[inline(always)]
unsafe fn append<V: Vector>(list: *mut u32, count: &mut usize, set: V::Mask, keys: V::U) {
    if !V::BRANCHES || V::any(set) {
        // SAFETY: the caller's promise.
        unsafe { V::store_compressed(list.add(*count), set, keys) };
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

/// Steps the entries `start..start + len`, fewer than 2^28; how many moved. Without `notes` the threshold is known,
/// and is the upper bound.
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
    let mut lists = Lists::new();
    for Span { high, start, len } in spans(start, len) {
        let mut tail = Tail::EMPTY;
        let pass = Pass::new(job, high, bounds);
        let place = Place::of::<V, P, S>(job, start);
        let lanes = V::lane_numbers() + V::uint(start as u32);
        let mut counts = V::uint(0);
        // The last, incomplete group goes through the same code, in a copy.
        let rest = len % V::LANES;
        let whole = len - rest;
        let copied = tail.place(place);
        for (first, len) in [(0, whole), (whole, rest)] {
            let is_rest = first != 0 || whole == 0;
            let entries = lanes + V::uint(first as u32);
            let from = place.at::<V, P, S>(first);
            let at = if is_rest { copied } else { from };
            let groups = len.div_ceil(V::LANES);
            // SAFETY: the entries lie within the range, and there is room for as many notes (the caller's
            // promise); a tail has room for a whole group.
            unsafe {
                if is_rest {
                    copy::<V, P, S>(from, copied, len, Copied::ALL);
                }
                if let Some(notes) = &mut notes {
                    for tile in (0..groups).step_by(TILE / V::LANES) {
                        let entry = tile * V::LANES;
                        let groups = (groups - tile).min(TILE / V::LANES);
                        let entries = entries + V::uint(entry as u32);
                        let at = at.at::<V, P, S>(entry);
                        let moved =
                            pass.step_tile::<V, P, S>(at, entries, groups, notes, &mut lists);
                        counts = counts + moved;
                    }
                } else {
                    for group in 0..groups {
                        let (at, entries) = group_at::<V, P, S>(at, entries, group);
                        let moved = pass.step::<V, P, S>(at, entries);
                        counts = V::tally(counts, moved);
                    }
                }
                if is_rest {
                    copy::<V, P, S>(copied, from, len, Copied::RESULT);
                }
            }
        }
        selected += u64::from(V::sum(counts));
    }
    selected
}

/// Makes the entries `start..start + len`, fewer than 2^28, right after a step that moved those from `moved_from`
/// on, now that it should be those from `threshold` on; how many these are. An entry that moved, whose old value
/// cannot be computed from the new one, and that must move back, becomes something else.
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
    let mut lists = Lists::new();
    for Span { high, start, len } in spans(start, len) {
        let mut tail = Tail::EMPTY;
        let pass = Pass::new(job, high, Bounds::at(moved_from));
        let place = Place::of::<V, P, S>(job, start);
        let lanes = V::lane_numbers() + V::uint(start as u32);
        let mut counts = V::uint(0);
        let rest = len % V::LANES;
        let whole = len - rest;
        let copied = tail.place(place);
        for (first, len) in [(0, whole), (whole, rest)] {
            let is_rest = first != 0 || whole == 0;
            let entries = lanes + V::uint(first as u32);
            let from = place.at::<V, P, S>(first);
            let at = if is_rest { copied } else { from };
            let groups = len.div_ceil(V::LANES);
            // SAFETY: as in `step`.
            unsafe {
                if is_rest {
                    copy::<V, P, S>(from, copied, len, Copied::ALL);
                }
                for tile in (0..groups).step_by(TILE / V::LANES) {
                    let entry = tile * V::LANES;
                    let groups = (groups - tile).min(TILE / V::LANES);
                    let entries = entries + V::uint(entry as u32);
                    let at = at.at::<V, P, S>(entry);
                    let moved =
                        pass.settle_tile::<V, P, S>(at, entries, groups, threshold, &mut lists);
                    counts = counts + moved;
                }
                if is_rest {
                    copy::<V, P, S>(copied, from, len, Copied::RESULT);
                }
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
            let mut tail = Tail::EMPTY;
            let place = place.at::<V, Single, S>(whole);
            let copied = tail.place(place);
            let mut group = [0u32; MAX_LANES];
            let read = Copied {
                grad: true,
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
                append::<V>(found, &mut inside, between, keys);
            }
        }
        above += u64::from(V::sum(counts));
        let rest = len - whole;
        if rest > 0 {
            // SAFETY: the last entries of the range; `group` has room for them.
            unsafe { keys::<V, S>(job, start + whole as u64, rest, group.as_mut_ptr()) };
            // SAFETY: as above; at most as many keys are found as there are entries.
            let last = unsafe { sift::<V>(group.as_ptr(), rest, (low, high), found.add(inside)) };
            above += last.above;
            inside += last.inside;
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
            append::<V>(found, &mut inside, between, keys);
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
