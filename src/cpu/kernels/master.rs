//! The loop that starts master copies.

use crate::backend::Job;
use crate::cpu::vector::{Format, MAX_LANES, Vector};

/// Gives the master copy of the entries `start..start + len` the values of the parameter.
///
/// # Safety
///
/// As for [`super::step()`]; the job has a master copy, and its parameter the format `T`.
#[inline(always)]
pub(in crate::cpu) unsafe fn start_master<V: Vector, T: Format<V>>(
    job: &Job,
    start: u64,
    len: u64,
) {
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
