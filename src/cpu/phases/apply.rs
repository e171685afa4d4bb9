//! Apply: moves the candidates of a segment that reach the threshold. Only here are parameters and master copies touched.

use super::Range;
use super::collect::Listing;
use super::lists::{Lists, Scratch, Segment};
use crate::config::WeightDecayScope;
use crate::cpu::kernels::{self, Bracket, Kernels, has_master};
use crate::cpu::simd;
use crate::job::Job;

/// Parameters on a cache line, in f32.
const LINE: usize = 16;
/// Open candidates that are sorted out at a time.
const GROUP: usize = 256;

/// Moves the entries of a segment whose key reaches the threshold, and lets the others decay if they should; how many
/// moved. What is not listed is computed again from the stored moments.
///
/// # Safety
///
/// The segment has been collected, and its block has this threshold; nobody else uses it, nor the scratch.
pub(super) unsafe fn apply(
    kernels: &Kernels,
    job: &Job,
    range: Range,
    threshold: u32,
    scratch: &mut Scratch<'_>,
    (lists, segment): (&Lists<'_>, &Segment),
) -> u64 {
    let span = (range.start, range.len);
    // SAFETY: the caller's promise.
    unsafe {
        if Listing::for_job(job) == Listing::Keys {
            return kernels::step_stored(kernels, job, span, threshold.max(1));
        }
        let decays = job.weight_decay_scope == WeightDecayScope::All && job.scalars.decay != 1.0;
        let (certain, open) = if segment.is_listed {
            (lists.certain(segment), Some(lists.open(segment)))
        } else {
            let mut candidates = scratch.candidates();
            let bracket = Bracket::at(threshold);
            kernels::collect_stored(kernels, job, span, bracket, &mut candidates);
            let count = candidates.num_certain;
            let entries = std::slice::from_raw_parts(candidates.certain_entries, count);
            let values = std::slice::from_raw_parts(candidates.certain_values, count);
            ((entries, values), None)
        };
        let mut moved = certain.0.len() as u64;
        if decays {
            decay_others(kernels, job, range, scratch, |visit| {
                certain.0.iter().copied().for_each(&mut *visit);
                if let Some((entries, keys, _)) = open {
                    let reach = |&(_, &key): &(&u16, &u32)| key >= threshold;
                    let entries = entries.iter().zip(keys).filter(reach);
                    entries.for_each(|(&entry, _)| visit(entry));
                }
            });
        }
        kernels::apply(kernels, job, span, certain.0, certain.1);
        if let Some(open) = open {
            moved += apply_open(kernels, job, range, threshold, open);
        }
        moved
    }
}

/// Asks for the parameters of a segment's certain candidates, while those of another one move: where few entries do, the
/// processor does not see which lines are next.
///
/// # Safety
///
/// The segment has been collected, and nobody lists anything meanwhile.
pub(super) unsafe fn prefetch(job: &Job, range: Range, (lists, segment): (&Lists<'_>, &Segment)) {
    if !segment.is_listed {
        return;
    }
    // SAFETY: the caller's promise.
    let (entries, _) = unsafe { lists.certain(segment) };
    // Where several lie on a line, one of them is enough.
    let a_line = entries.len() * LINE / range.len as usize;
    for &entry in entries.iter().step_by(a_line.max(1)) {
        let entry = range.start as usize + usize::from(entry);
        simd::prefetch(job.param.wrapping_add(entry * job.param_dtype.size()));
        if has_master(job) {
            simd::prefetch(job.master.wrapping_add(entry).cast::<u8>());
        }
    }
}

/// Moves those open candidates that reach the threshold.
///
/// # Safety
///
/// As for [`apply`].
unsafe fn apply_open(
    kernels: &Kernels,
    job: &Job,
    range: Range,
    threshold: u32,
    (entries, keys, values): (&[u16], &[u32], &[f32]),
) -> u64 {
    let (mut reaching, mut reaching_values) = ([0u16; GROUP], [0f32; GROUP]);
    let mut moved = 0;
    let groups = entries
        .chunks(GROUP)
        .zip(keys.chunks(GROUP))
        .zip(values.chunks(GROUP));
    for ((entries, keys), values) in groups {
        let mut count = 0;
        for ((&entry, &key), &value) in entries.iter().zip(keys).zip(values) {
            // Written in any case, because a branch would be guessed wrong half of the time.
            reaching[count] = entry;
            reaching_values[count] = value;
            count += usize::from(key >= threshold);
        }
        // SAFETY: the caller's promise.
        unsafe {
            let (entries, values) = (&reaching[..count], &reaching_values[..count]);
            kernels::apply(kernels, job, (range.start, range.len), entries, values);
        }
        moved += count as u64;
    }
    moved
}

/// Lets all entries of a segment decay but some that are given: these keep what they are.
///
/// # Safety
///
/// As for [`apply`]; the given entries lie within the segment, and are given in the same order each time.
unsafe fn decay_others(
    kernels: &Kernels,
    job: &Job,
    range: Range,
    scratch: &mut Scratch<'_>,
    others_of: impl Fn(&mut dyn FnMut(u16)),
) {
    let param = job
        .param
        .wrapping_add(range.start as usize * job.param_dtype.size());
    let master = job.master.wrapping_add(range.start as usize);
    let has_master = has_master(job);
    let [params, masters] = scratch.free_parts();
    // SAFETY: the entries lie within the segment (the caller's promise), which has at most as many as there are words.
    unsafe {
        let mut kept = 0;
        others_of(&mut |entry| {
            let entry = usize::from(entry);
            params[kept] = match job.param_dtype.size() {
                4 => param.cast::<u32>().add(entry).read(),
                _ => param.cast::<u16>().add(entry).read().into(),
            };
            if has_master {
                masters[kept] = master.add(entry).read().to_bits();
            }
            kept += 1;
        });
        kernels::decay(kernels, job, (range.start, range.len));
        let mut restored = 0;
        others_of(&mut |entry| {
            let entry = usize::from(entry);
            match job.param_dtype.size() {
                4 => param.cast::<u32>().add(entry).write(params[restored]),
                _ => param
                    .cast::<u16>()
                    .add(entry)
                    .write(params[restored] as u16),
            }
            if has_master {
                master.add(entry).write(f32::from_bits(masters[restored]));
            }
            restored += 1;
        });
    }
}
