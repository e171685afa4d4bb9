// Moves entries once their thresholds are known.
#pragma once

#include "group.cuh"

// Moves the entry that a note is about.
__device__ inline void settle_note(const Tensor &tensor, const Work &work, const Target &target, u64 entry) {
    u32 state = size_of(tensor.state_dtype), size = size_of(target.dtype);
    float m = widen(tensor.state_dtype, load_element(tensor.exp_avg, state, entry));
    float v = widen(tensor.state_dtype, load_element(tensor.exp_avg_sq, state, entry));
    float p = widen(target.dtype, load_element(target.base, size, entry));
    Keys keys = keys_at(work, entry);
    u32 random = target.stochastic ? random_bits(random_round(keys, entry), keys.param) : 0;
    u32 now = narrow(target, moved(p, update_of(m, v, work.scalars), work.scalars), random);
    store_element(target.base, size, entry, now);
    if (tensor.master) {
        u32 half = narrow_nearest(tensor.param_dtype, float_of(now));
        store_element(tensor.param, size_of(tensor.param_dtype), entry, half);
    }
}

// Brings a group with stepped moments to where it should be; how many of its entries move. Unless the group is
// untouched, those with keys above `high` have moved already. `threshold_at` says what an entry's key must reach.
template <typename ThresholdAt>
__device__ u32 settle_group(const Step &step, const Tensor &tensor, const Work &work, const Group &group,
                            ThresholdAt threshold_at, u32 high, bool untouched) {
    float g[GROUP], m[GROUP], v[GROUP];
    load_stepped(tensor, work, step.filter, group, g, m, v);
    u32 selected = 0, applied = 0;
#pragma unroll
    for (u32 i = 0; i < GROUP; i++) {
        u32 key = filter_key(step.filter, work, group.first + i, g[i], m[i], v[i]);
        selected |= (group.valid >> i & 1) && key >= threshold_at(group.first + i) ? 1u << i : 0;
        applied |= !untouched && key > high ? 1u << i : 0;
    }
    applied &= group.valid;
    Changes changes;
    changes.move = selected & ~applied;
    changes.undo = applied & ~selected;
    changes.decay = untouched && step.scope == SCOPE_ALL ? group.valid & ~selected : 0;
    u32 changed = changes.move | changes.undo | changes.decay;
    bool starts = untouched && work.starts_master;
    if (changed || (untouched && tensor.master && group.valid)) {
        Target target = target_of(tensor, step.rounding);
        u32 old[GROUP], now[GROUP];
        change_group(tensor, work, target, group, starts, changes, m, v, old, now);
        store_targets(tensor, target, group, starts, untouched, changed, now);
    }
    return __popc(selected);
}
