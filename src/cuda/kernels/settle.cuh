// Moves entries once their thresholds are known.
#pragma once

#include "group.cuh"

// Moves the entry that a note is about.
template <class View> __device__ void settle_note(const View &view, const Target &target, u64 entry) {
    u32 state = size_of(view.state_dtype()), size = size_of(target.dtype);
    float m = widen(view.state_dtype(), load_element(view.exp_avg(), state, entry));
    float v = widen(view.state_dtype(), load_element(view.exp_avg_sq(), state, entry));
    float p = widen(target.dtype, load_element(target.base, size, entry));
    Keys keys = keys_at(view, entry);
    u32 random = target.stochastic ? random_bits(random_round(keys, entry), keys.param) : 0;
    u32 now = narrow(target, moved(p, update_of(m, v, view.scalars()), view.scalars()), random);
    store_element(target.base, size, entry, now);
    if (view.master()) {
        u32 half = narrow_nearest(view.param_dtype(), float_of(now));
        store_element(view.param(), size_of(view.param_dtype()), entry, half);
    }
}

// Brings a group with stepped moments to where it should be; how many of its entries move. Unless the group is
// untouched, those with keys above `high` have moved already. `threshold_at` says what an entry's key must reach.
template <class View, typename ThresholdAt>
__device__ u32 settle_group(const Step &step, const View &view, const Group &group, ThresholdAt threshold_at, u32 high,
                            bool untouched) {
    float g[GROUP], m[GROUP], v[GROUP];
    load_stepped(view, step.filter, group, g, m, v);
    u32 selected = 0, applied = 0;
#pragma unroll
    for (u32 i = 0; i < GROUP; i++) {
        u32 key = filter_key(step.filter, view.work(), group.first + i, g[i], m[i], v[i]);
        selected |= (group.valid >> i & 1) && key >= threshold_at(group.first + i) ? 1u << i : 0;
        applied |= !untouched && key > high ? 1u << i : 0;
    }
    applied &= group.valid;
    Changes changes;
    changes.move = selected & ~applied;
    changes.undo = applied & ~selected;
    changes.decay = untouched && step.scope == SCOPE_ALL ? group.valid & ~selected : 0;
    u32 changed = changes.move | changes.undo | changes.decay;
    bool starts = untouched && view.starts_master();
    if (changed || (untouched && view.master() && group.valid)) {
        Target target = target_of(view, step.rounding);
        u32 old[GROUP], now[GROUP];
        change_group(view, target, group, starts, changes, m, v, old, now);
        store_targets(view, target, group, starts, untouched, changed, now);
    }
    return __popc(selected);
}
