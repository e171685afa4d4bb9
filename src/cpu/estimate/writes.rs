//! Writes to single parameters, which are far apart.

use crate::config::Dtype;
use crate::cpu::prefetch;
use crate::job::Job;
use crate::rule::convert;

/// Parameters that are on their way to being written. To wait for the memory of each would take longer than all the rest
/// of settling; so it is asked for when a parameter comes in, and written to when many others have come.
#[derive(Debug)]
pub(super) struct Writes {
    entries: [u64; RING],
    values: [u32; RING],
    /// How many have come in and gone out so far.
    pushed: usize,
    written: usize,
}

/// A power of two.
const RING: usize = 256;
/// Parameters that wait for their memory, about as many as a processor can ask for at a time.
const WAITING: usize = 96;
/// Parameters that come in at a time.
pub(super) const MOST: usize = 64;

const _: () = assert!(RING.is_power_of_two() && WAITING + MOST <= RING);

impl Writes {
    pub(super) fn new() -> Self {
        Self {
            entries: [0; RING],
            values: [0; RING],
            pushed: 0,
            written: 0,
        }
    }

    /// Takes in those of up to [`MOST`] entries of a job that are wanted, and writes others.
    ///
    /// # Safety
    ///
    /// The entries lie within the job's tensor, and nobody else uses their parameters until they are written. All
    /// that wait are of the same job.
    pub(super) unsafe fn push(
        &mut self,
        job: &Job,
        candidates: impl Iterator<Item = (u64, u32, bool)>,
    ) {
        let first = self.pushed;
        for (entry, value, wanted) in candidates {
            // About every other one is wanted, so that a branch would be guessed wrong half of the time.
            self.entries[self.pushed % RING] = entry;
            self.values[self.pushed % RING] = value;
            self.pushed += usize::from(wanted);
        }
        for i in first..self.pushed {
            prefetch(param_at(job, self.entries[i % RING]));
        }
        // SAFETY: the caller's promise.
        unsafe { self.write(job, WAITING) };
    }

    /// Writes all that wait.
    ///
    /// # Safety
    ///
    /// As for [`Writes::push`].
    pub(super) unsafe fn finish(&mut self, job: &Job) {
        // SAFETY: the caller's promise.
        unsafe { self.write(job, 0) };
    }

    /// # Safety
    ///
    /// As for [`Writes::push`].
    unsafe fn write(&mut self, job: &Job, waiting: usize) {
        while self.pushed - self.written > waiting {
            let i = self.written % RING;
            // SAFETY: the caller's promise.
            unsafe { write_param(job, self.entries[i], self.values[i]) };
            self.written += 1;
        }
    }
}

/// The index of a noted entry of the tile that starts at `start`.
pub(super) fn entry(start: u64, noted: u32) -> u64 {
    start + u64::from(noted.wrapping_sub(start as u32))
}

/// Where a parameter is, the master copy if there is one.
fn param_at(job: &Job, entry: u64) -> *mut u8 {
    if job.master.is_null() {
        job.param
            .wrapping_add(entry as usize * job.param_dtype.size())
    } else {
        job.master.wrapping_add(entry as usize).cast()
    }
}

/// Writes a parameter, and the master copy if there is one, given its bits.
///
/// # Safety
///
/// The entry lies within the job's tensor, and nobody else uses it.
pub(super) unsafe fn write_param(job: &Job, entry: u64, bits: u32) {
    let to = param_at(job, entry);
    // SAFETY: the caller's promise.
    unsafe {
        if job.master.is_null() {
            match job.param_dtype {
                Dtype::F32 => to.cast::<u32>().write(bits),
                Dtype::F16 | Dtype::BF16 => to.cast::<u16>().write(bits as u16),
            }
        } else {
            to.cast::<u32>().write(bits);
            let value = f32::from_bits(bits);
            let rounded = match job.param_dtype {
                Dtype::F16 => convert::f32_to_f16_nearest(value),
                _ => convert::f32_to_bf16_nearest(value),
            };
            job.param.cast::<u16>().add(entry as usize).write(rounded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_a_tile_that_crosses_a_multiple_of_two_to_the_32() {
        let start = (3 << 32) - 10;
        for offset in [0, 9, 10, 4095] {
            assert_eq!(entry(start, (start + offset) as u32), start + offset);
        }
    }
}
