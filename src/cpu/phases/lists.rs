//! Where the candidates of a step are listed.
//!
//! Each thread collects the candidates of one segment in memory of its own, and then takes exactly as much of the room
//! of the segment's block as they need. Where there is no room left, the segment has no lists, and apply collects its
//! candidates again from the stored moments.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu::disjoint::Disjoint;
use crate::cpu::kernels::Candidates;
use crate::cpu::simd::vector::MAX_LANES;

/// Entries that are listed together.
pub(super) const SEGMENT: u64 = 1 << 12;

/// Candidates of a segment, with a group of lanes more.
const MOST: usize = SEGMENT as usize + MAX_LANES;

/// The words that a thread needs to collect a segment.
pub(in crate::cpu) const SCRATCH_WORDS: usize = 4 * MOST;

/// A thread's memory for the candidates of one segment.
pub(in crate::cpu) struct Scratch<'a> {
    words: Disjoint<'a, u32>,
}

impl<'a> Scratch<'a> {
    /// The memory of one thread among [`SCRATCH_WORDS`] for each.
    ///
    /// # Safety
    ///
    /// No other thread of that number has it.
    pub(super) unsafe fn for_thread(words: Disjoint<'a, u32>, thread: usize) -> Self {
        // SAFETY: the caller's promise.
        let own = unsafe { words.slice_mut(thread * SCRATCH_WORDS, SCRATCH_WORDS) };
        Self {
            words: Disjoint::new(own),
        }
    }

    /// Room for a segment's candidates, and none yet.
    pub(super) fn candidates(&mut self) -> Candidates {
        let [values, keys, open_values, entries] = self.parts().map(<[u32]>::as_mut_ptr);
        Candidates {
            certain_entries: entries.cast(),
            certain_values: values.cast(),
            open_entries: entries.cast::<u16>().wrapping_add(MOST),
            open_keys: keys,
            open_values: open_values.cast(),
            num_certain: 0,
            num_open: 0,
            num_nonfinite: 0,
        }
    }

    /// Two parts that hold no certain candidate, each with a word for every entry of a segment.
    pub(super) fn free_parts(&mut self) -> [&mut [u32]; 2] {
        // SAFETY: disjoint parts of this thread's memory, which certain candidates do not lie in.
        [1, 2].map(|i| unsafe { self.words.slice_mut(i * MOST, MOST) })
    }

    /// All of it, for something else than candidates.
    pub(super) fn all_words(&mut self) -> &mut [u32] {
        // SAFETY: this thread's memory; the borrow keeps others away.
        unsafe { self.words.slice_mut(0, SCRATCH_WORDS) }
    }

    fn parts(&mut self) -> [&mut [u32]; 4] {
        // SAFETY: disjoint parts of this thread's memory; the borrow keeps others away.
        std::array::from_fn(|i| unsafe { self.words.slice_mut(i * MOST, MOST) })
    }
}

/// The lists of all blocks that are stepped at the same time.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Lists<'a> {
    certain_entries: Disjoint<'a, u16>,
    certain_values: Disjoint<'a, f32>,
    open_entries: Disjoint<'a, u16>,
    open_keys: Disjoint<'a, u32>,
    open_values: Disjoint<'a, f32>,
}

/// How many candidates there is room for.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cpu) struct Capacity {
    pub(super) certain: usize,
    pub(super) open: usize,
}

impl Capacity {
    pub(super) fn words(self) -> usize {
        self.certain + self.certain.div_ceil(2) + 2 * self.open + self.open.div_ceil(2)
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            certain: self.certain + other.certain,
            open: self.open + other.open,
        }
    }
}

impl<'a> Lists<'a> {
    /// Lists of this capacity in the first [`Capacity::words`] of some words, and the other words.
    pub(super) fn carve(words: &'a mut [u32], capacity: Capacity) -> (Self, &'a mut [u32]) {
        let Capacity { certain, open } = capacity;
        let (certain_values, rest) = words.split_at_mut(certain);
        let (open_keys, rest) = rest.split_at_mut(open);
        let (open_values, rest) = rest.split_at_mut(open);
        let (certain_entries, rest) = rest.split_at_mut(certain.div_ceil(2));
        let (open_entries, rest) = rest.split_at_mut(open.div_ceil(2));
        let lists = Self {
            certain_entries: Disjoint::new(halves(certain_entries)),
            certain_values: Disjoint::new(floats(certain_values)),
            open_entries: Disjoint::new(halves(open_entries)),
            open_keys: Disjoint::new(open_keys),
            open_values: Disjoint::new(floats(open_values)),
        };
        (lists, rest)
    }

    /// The certain candidates of a segment: entries and values.
    ///
    /// # Safety
    ///
    /// They have been listed, and nobody lists anything there meanwhile; likewise below.
    pub(super) unsafe fn certain(&self, segment: &Segment) -> (&'a [u16], &'a [f32]) {
        let (first, len) = (segment.first_certain, segment.num_certain as usize);
        // SAFETY: the caller's promise.
        unsafe {
            (
                self.certain_entries.slice(first, len),
                self.certain_values.slice(first, len),
            )
        }
    }

    /// The open candidates of a segment: entries, keys and values.
    ///
    /// # Safety
    ///
    /// As above.
    pub(super) unsafe fn open(&self, segment: &Segment) -> (&'a [u16], &'a [u32], &'a [f32]) {
        let (first, len) = (segment.first_open, segment.num_open as usize);
        // SAFETY: the caller's promise.
        unsafe {
            (
                self.open_entries.slice(first, len),
                self.open_keys.slice(first, len),
                self.open_values.slice(first, len),
            )
        }
    }

    /// All open keys of a block, if there was room for them.
    ///
    /// # Safety
    ///
    /// As above.
    pub(super) unsafe fn open_keys(&self, share: &Share) -> Option<&'a [u32]> {
        let count = share.open.count();
        // SAFETY: the caller's promise; where all have found room, they lie behind each other.
        (count <= share.open.capacity)
            .then(|| unsafe { self.open_keys.slice(share.open.first, count) })
    }

    /// Lists the candidates of a segment as far as its block's share has room.
    ///
    /// # Safety
    ///
    /// The candidates are there, with values unless `values` is false.
    pub(super) unsafe fn keep(
        &self,
        share: &Share,
        candidates: &Candidates,
        values: bool,
    ) -> Segment {
        let (num_certain, num_open) = (candidates.num_certain, candidates.num_open);
        let certain = share.certain.take(num_certain);
        let open = share.open.take(num_open);
        // SAFETY: these places were taken by this thread alone; the rest is the caller's promise.
        unsafe {
            if let Some(first) = certain
                && values
            {
                copy(
                    candidates.certain_entries,
                    &self.certain_entries,
                    first,
                    num_certain,
                );
                copy(
                    candidates.certain_values,
                    &self.certain_values,
                    first,
                    num_certain,
                );
            }
            if let Some(first) = open {
                copy(candidates.open_keys, &self.open_keys, first, num_open);
                if values {
                    copy(candidates.open_entries, &self.open_entries, first, num_open);
                    copy(candidates.open_values, &self.open_values, first, num_open);
                }
            }
        }
        Segment {
            first_certain: certain.unwrap_or(0),
            first_open: open.unwrap_or(0),
            num_certain: num_certain as u32,
            num_open: num_open as u32,
            num_nonfinite: candidates.num_nonfinite as u32,
            is_listed: values && certain.is_some() && open.is_some(),
        }
    }
}

/// # Safety
///
/// `len` elements are readable at `from`; no other thread touches those from `first` on.
unsafe fn copy<T: Copy>(from: *const T, to: &Disjoint<'_, T>, first: usize, len: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        to.slice_mut(first, len)
            .as_mut_ptr()
            .copy_from_nonoverlapping(from, len);
    }
}

fn floats(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: floats have the size and alignment of words, and all bit patterns are floats.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

fn halves(words: &mut [u32]) -> &mut [u16] {
    // SAFETY: a word is two halves, and all bit patterns are halves.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 2 * words.len()) }
}

/// What became of a segment.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cpu) struct Segment {
    first_certain: usize,
    first_open: usize,
    num_certain: u32,
    num_open: u32,
    /// Of its entries, if it was collected once.
    pub(super) num_nonfinite: u32,
    /// There was room for all of its candidates.
    pub(super) is_listed: bool,
}

/// A block's share of the room, and how many candidates there are.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) certain: Taken,
    pub(super) open: Taken,
}

impl Share {
    /// Behind what others have.
    pub(super) fn new(behind: Capacity, capacity: Capacity) -> Self {
        let taken = |first, capacity| Taken {
            first,
            capacity,
            count: AtomicUsize::new(0),
        };
        Self {
            certain: taken(behind.certain, capacity.certain),
            open: taken(behind.open, capacity.open),
        }
    }

    /// Forgets all candidates.
    pub(super) fn clear(&self) {
        self.certain.count.store(0, Ordering::Relaxed);
        self.open.count.store(0, Ordering::Relaxed);
    }
}

/// Places that threads take, one after the other.
#[derive(Debug)]
pub(super) struct Taken {
    first: usize,
    capacity: usize,
    count: AtomicUsize,
}

impl Taken {
    /// How many have been asked for, whether there was room or not.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn take(&self, count: usize) -> Option<usize> {
        let before = self.count.fetch_add(count, Ordering::Relaxed);
        (before + count <= self.capacity).then_some(self.first + before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists so many certain and open candidates of a segment, whose values tell which they are.
    fn keep(
        lists: &Lists<'_>,
        share: &Share,
        scratch: &mut Scratch<'_>,
        (certain, open): (usize, usize),
        first: u32,
    ) -> Segment {
        let mut candidates = scratch.candidates();
        (candidates.num_certain, candidates.num_open) = (certain, open);
        // SAFETY: the scratch has room for a segment.
        unsafe {
            for i in 0..certain {
                candidates
                    .certain_entries
                    .add(i)
                    .write(first as u16 + i as u16);
                candidates
                    .certain_values
                    .add(i)
                    .write(first as f32 + i as f32);
            }
            for i in 0..open {
                candidates
                    .open_entries
                    .add(i)
                    .write(first as u16 + i as u16);
                candidates.open_keys.add(i).write(first + i as u32);
                candidates
                    .open_values
                    .add(i)
                    .write(-(first as f32) - i as f32);
            }
            lists.keep(share, &candidates, true)
        }
    }

    fn is_there(lists: &Lists<'_>, segment: &Segment, (certain, open): (usize, usize), first: u32) {
        assert!(segment.is_listed);
        let number = |i: usize| first + i as u32;
        // SAFETY: they are listed, and nobody lists anything now.
        let ((entries, values), of_open) = unsafe { (lists.certain(segment), lists.open(segment)) };
        assert!(
            entries
                .iter()
                .copied()
                .eq((0..certain).map(|i| number(i) as u16))
        );
        assert!(
            values
                .iter()
                .copied()
                .eq((0..certain).map(|i| number(i) as f32))
        );
        let (entries, keys, values) = of_open;
        assert!(
            entries
                .iter()
                .copied()
                .eq((0..open).map(|i| number(i) as u16))
        );
        assert!(keys.iter().copied().eq((0..open).map(number)));
        assert!(
            values
                .iter()
                .copied()
                .eq((0..open).map(|i| -(number(i) as f32)))
        );
    }

    #[test]
    fn a_segment_is_listed_where_its_block_has_room_for_all_of_it() {
        let capacity = |certain, open| Capacity { certain, open };
        let (before, own, after) = (capacity(5, 3), capacity(11, 7), capacity(9, 9));
        let whole = before.plus(own).plus(after);
        let mut words = vec![u32::MAX; whole.words() + 2];
        let (lists, rest) = Lists::carve(&mut words, whole);
        assert_eq!(rest.len(), 2);
        let mut scratch = vec![0; 2 * SCRATCH_WORDS];
        // SAFETY: no other thread has it.
        let mut scratch = unsafe { Scratch::for_thread(Disjoint::new(&mut scratch), 1) };
        let shares = [
            (capacity(0, 0), before),
            (before, own),
            (before.plus(own), after),
        ];
        let [one, share, other] = shares.map(|(behind, capacity)| Share::new(behind, capacity));
        for round in 0..2 {
            // Up to the last place.
            let first = keep(&lists, &share, &mut scratch, (4, 3), 100);
            let second = keep(&lists, &share, &mut scratch, (7, 4), 200);
            // Neighbours fill theirs.
            let neighbours = [
                keep(&lists, &one, &mut scratch, (5, 3), 300),
                keep(&lists, &other, &mut scratch, (9, 9), 400),
            ];
            is_there(&lists, &first, (4, 3), 100);
            is_there(&lists, &second, (7, 4), 200);
            is_there(&lists, &neighbours[0], (5, 3), 300);
            is_there(&lists, &neighbours[1], (9, 9), 400);
            // SAFETY: as above.
            let keys = unsafe { lists.open_keys(&share) }.unwrap();
            assert_eq!(keys, [100, 101, 102, 200, 201, 202, 203]);
            // Nothing more of either kind; all are counted all the same.
            assert!(keep(&lists, &share, &mut scratch, (0, 0), 0).is_listed);
            assert!(!keep(&lists, &share, &mut scratch, (1, 0), 0).is_listed);
            // SAFETY: as above.
            assert!(unsafe { lists.open_keys(&share) }.is_some());
            assert!(!keep(&lists, &share, &mut scratch, (0, 1), 0).is_listed);
            // SAFETY: as above.
            assert!(unsafe { lists.open_keys(&share) }.is_none());
            assert_eq!(
                (share.certain.count(), share.open.count()),
                (12, 8),
                "{round}"
            );
            [&one, &share, &other].into_iter().for_each(Share::clear);
            assert_eq!((share.certain.count(), share.open.count()), (0, 0));
        }
        // Where certain candidates alone find no room, all open keys are known.
        assert!(!keep(&lists, &share, &mut scratch, (12, 2), 500).is_listed);
        // SAFETY: as above.
        assert_eq!(unsafe { lists.open_keys(&share) }, Some(&[500, 501][..]));
    }
}
