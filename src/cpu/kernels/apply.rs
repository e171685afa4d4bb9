//! The loop that moves listed entries.

use super::arithmetic::Arithmetic;
use super::pointers::Pointers;
use super::table::Kernels;
use super::tiles::spans;
use crate::cpu::simd::element::Param;
use crate::cpu::simd::vector::{MAX_LANES, Vector};
use crate::job::Job;

/// Moves the listed entries of the `len` from `start` on, each by its value: p·decay - a·u.
///
/// # Safety
///
/// The range lies within the job's tensor, and is no longer than 2^16; the job's buffers are as large as it says, and
/// nobody else uses parameter and master copy in this range. The entries lie within the range, in ascending order, and
/// there are as many values.
pub(in crate::cpu) unsafe fn apply(
    kernels: &Kernels,
    job: &Job,
    (start, len): (u64, u64),
    entries: &[u16],
    values: &[f32],
) {
    debug_assert_eq!(entries.len(), values.len());
    let run = (kernels.apply)(job);
    let mut done = 0;
    for span in spans(start, len) {
        let end = span.start + span.len as u64 - start;
        let here = if end == len {
            entries.len() - done
        } else {
            entries[done..].partition_point(|&entry| u64::from(entry) < end)
        };
        let pointers = Pointers::to_entry(job, start as usize);
        let body = Apply {
            arithmetic: &Arithmetic::new(job, span.high),
            param: pointers.param,
            master: pointers.master,
            start: start as u32,
            entries: &entries[done..done + here],
            values: &values[done..done + here],
        };
        // SAFETY: the caller's promise.
        unsafe { run(&body) };
        done += here;
    }
}

/// Entries of a range to be moved, with a common upper half of the index.
pub(in crate::cpu) struct Apply<'a> {
    arithmetic: &'a Arithmetic,
    /// Of the range.
    param: *mut u8,
    master: *mut f32,
    /// The lower half of the index of the range's first entry.
    start: u32,
    entries: &'a [u16],
    values: &'a [f32],
}

impl Apply<'_> {
    /// # Safety
    ///
    /// The processor has the instruction set, and the entries are readable and writable.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn run<V: Vector, P: Param<V>>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            if P::SIZE == size_of::<f32>() {
                self.run_scalar();
            } else {
                self.run_vectors::<V, P>();
            }
        }
    }

    /// For f32: there are two operations an entry, and to bring entries together for vectors would take longer.
    ///
    /// # Safety
    ///
    /// As for [`Apply::run`].
    #[inline(always)]
    unsafe fn run_scalar(&self) {
        const UNROLLED: usize = 4;
        let decay = self.arithmetic.decay();
        let param = self.param.cast::<f32>();
        let step = |entry: u16, value: f32| {
            // SAFETY: the caller's promise.
            unsafe {
                let param = param.add(entry.into());
                param.write(param.read() * decay - value);
            }
        };
        let (entries, last_entries) = self.entries.as_chunks::<UNROLLED>();
        let (values, last_values) = self.values.as_chunks::<UNROLLED>();
        for (entries, values) in entries.iter().zip(values) {
            for i in 0..UNROLLED {
                step(entries[i], values[i]);
            }
        }
        for (&entry, &value) in last_entries.iter().zip(last_values) {
            step(entry, value);
        }
    }

    /// # Safety
    ///
    /// As for [`Apply::run`].
    #[inline(always)]
    unsafe fn run_vectors<V: Vector, P: Param<V>>(&self) {
        let whole = self.entries.len() - self.entries.len() % V::LANES;
        for i in (0..whole).step_by(V::LANES) {
            // SAFETY: the caller's promise; a group of each list is readable.
            unsafe {
                let entries = self.entries.as_ptr().add(i);
                self.step::<V, P>(entries, self.values.as_ptr().add(i), V::LANES);
            }
        }
        let rest = self.entries.len() - whole;
        if rest > 0 {
            let (mut entries, mut values) = ([0u16; MAX_LANES], [0f32; MAX_LANES]);
            entries[..rest].copy_from_slice(&self.entries[whole..]);
            values[..rest].copy_from_slice(&self.values[whole..]);
            // SAFETY: as above.
            unsafe { self.step::<V, P>(entries.as_ptr(), values.as_ptr(), rest) };
        }
    }

    /// Moves `count` entries, at most a group.
    ///
    /// # Safety
    ///
    /// As for [`Apply::run`]; a group of lanes is readable of both lists.
    #[inline(always)]
    unsafe fn step<V: Vector, P: Param<V>>(
        &self,
        entries: *const u16,
        values: *const f32,
        count: usize,
    ) {
        // SAFETY: the caller's promise; no vector has more lanes.
        unsafe {
            let mut kept = [0u32; MAX_LANES];
            for (lane, kept) in kept[..count].iter_mut().enumerate() {
                *kept = P::load_entry(self.param, self.master, entries.add(lane).read().into());
            }
            let old = V::bits(V::load_f32(kept.as_ptr().cast()));
            let moved = self.arithmetic.decayed::<V, P>(old) - V::load_f32(values);
            let numbers = V::load_u16(entries) + V::uint(self.start);
            let new = self.arithmetic.encode::<V, P>(moved, numbers);
            let mut bits = [0u32; MAX_LANES];
            V::store_u32(kept.as_mut_ptr(), new);
            V::store_u32(bits.as_mut_ptr(), P::param_bits(new));
            for lane in 0..count {
                let entry = entries.add(lane).read().into();
                P::store_entry(self.param, self.master, entry, kept[lane], bits[lane]);
            }
        }
    }
}
