// Groups: the four consecutive entries that a thread loads, steps and stores at a time.
#pragma once

#include "view.cuh"

// Entries from `first`, a multiple of GROUP; those that count are set in `valid`.
struct Group {
    u64 first;
    u32 valid;
    // All count, and the buffers are aligned for vectors.
    bool is_vector;
};

// The `number`-th group that reaches into the entries from `start` to `end`; none of its entries may count.
__device__ __forceinline__ Group group_of(u64 start, u64 end, u64 number, bool aligned) {
    Group group;
    group.first = (start / GROUP + number) * GROUP;
    u32 from = start > group.first ? (u32)(start - group.first) : 0;
    u32 to = end > group.first ? (u32)min(end - group.first, (u64)GROUP) : 0;
    group.valid = from < to ? (1u << to) - (1u << from) : 0;
    group.is_vector = group.valid == (1u << GROUP) - 1 && aligned;
    return group;
}

__device__ __forceinline__ u32 load_element(const void *base, u32 size, u64 entry) {
    return size == 4 ? ((const u32 *)base)[entry] : ((const u16 *)base)[entry];
}

__device__ __forceinline__ void store_element(void *base, u32 size, u64 entry, u32 element) {
    if (size == 4) {
        ((u32 *)base)[entry] = element;
    } else {
        ((u16 *)base)[entry] = (u16)element;
    }
}

// Bytes that the memory is read by.
constexpr u32 SECTOR = 32;

// Brings the sector of an address to the second-level cache; nobody waits for it.
__device__ __forceinline__ void fetch_to_l2(const void *address) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
    (void)address;
#endif
}

// Loads elements of `size` bytes; those that do not count become 0.
__device__ __forceinline__ void load_group(const void *base, u32 size, const Group &group, u32 (&elements)[GROUP]) {
    if (group.is_vector && size == 4) {
        uint4 all = *(const uint4 *)((const u32 *)base + group.first);
        elements[0] = all.x;
        elements[1] = all.y;
        elements[2] = all.z;
        elements[3] = all.w;
    } else if (group.is_vector) {
        uint2 all = *(const uint2 *)((const u16 *)base + group.first);
        elements[0] = all.x & 0xFFFF;
        elements[1] = all.x >> 16;
        elements[2] = all.y & 0xFFFF;
        elements[3] = all.y >> 16;
    } else {
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            elements[i] = group.valid >> i & 1 ? load_element(base, size, group.first + i) : 0;
        }
    }
}

// Stores the elements in `which`, and where that saves time the others, too, which are as they were loaded.
__device__ __forceinline__ void store_group(void *base, u32 size, const Group &group, u32 which,
                                            const u32 (&elements)[GROUP]) {
    if (which == 0) {
        return;
    }
    if (group.is_vector && size == 4) {
        *(uint4 *)((u32 *)base + group.first) = make_uint4(elements[0], elements[1], elements[2], elements[3]);
    } else if (group.is_vector) {
        *(uint2 *)((u16 *)base + group.first) =
            make_uint2(elements[0] | elements[1] << 16, elements[2] | elements[3] << 16);
    } else {
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            if (which >> i & 1) {
                store_element(base, size, group.first + i, elements[i]);
            }
        }
    }
}

__device__ __forceinline__ void widen_group(u32 dtype, const u32 (&elements)[GROUP], float (&values)[GROUP]) {
    if (dtype == F32) {
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            values[i] = float_of(elements[i]);
        }
    } else if (dtype == BF16) {
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            values[i] = float_of(elements[i] << 16);
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            values[i] = f16_to_f32(elements[i]);
        }
    }
}

// The keys of the random streams at an entry.
template <class View>
__device__ __forceinline__ Keys keys_at(const View &view, u64 entry) {
    u32 high = (u32)(entry >> 32);
    return high == 0 ? view.keys() : keys_of(view.random(), high);
}

// The moments of one entry after this step, as stored; `round` is its random round, needed for bf16 only.
__device__ __forceinline__ void step_moments(u32 state_dtype, const Scalars &c, const Keys &keys, u32 round, float g,
                                             float &m, float &v, u32 &m_element, u32 &v_element) {
    float m_new = flush(c.b1 * m + c.c1 * g);
    float v_new = flush(c.b2 * v + (c.c2 * g) * g);
    if (state_dtype == F32) {
        m_element = bits_of(m_new);
        v_element = bits_of(v_new);
        m = m_new;
        v = v_new;
    } else {
        // The upper half is for the first moment, the lower one for the second.
        u32 random = random_bits(round, keys.moments);
        m_element = f32_to_bf16_stochastic(m_new, random);
        v_element = f32_to_bf16_stochastic(v_new, random << 16);
        m = float_of(m_element << 16);
        v = float_of(v_element << 16);
    }
}

// The key of an entry with a finite moment, by a filter other than the momentum. These are for comparisons, and take up no
// more room than that.
__device__ __noinline__ u32 other_key(u32 filter, const Work &work, u64 entry, float g, float m, float v) {
    if (filter == GRADIENT) {
        return key_of(g);
    }
    if (filter == UPDATE) {
        return key_of(update_of(m, v, work.scalars));
    }
    Keys keys = keys_of(work.random, (u32)(entry >> 32));
    return key_of(uniform(random_bits(random_round(keys, entry), keys.filter)));
}

// The filter's key of an entry, from its stored moments and scaled gradient.
__device__ __forceinline__ u32 filter_key(u32 filter, const Work &work, u64 entry, float g, float m, float v) {
    return filter == MOMENTUM || magnitude(m) >= INFINITE ? key_of(m) : other_key(filter, work, entry, g, m, v);
}

// Steps the moments of a group and stores them; leaves gradients (scaled) and stored moments as floats.
template <class View>
__device__ __forceinline__ void step_group(const View &view, const Group &group,
                                           float (&g)[GROUP], float (&m)[GROUP], float (&v)[GROUP]) {
    u32 state = size_of(view.state_dtype());
    u32 of_g[GROUP], of_m[GROUP] = {}, of_v[GROUP] = {};
    load_group(view.grad(), size_of(view.grad_dtype()), group, of_g);
    if (!view.starts_moments()) {
        load_group(view.exp_avg(), state, group, of_m);
        load_group(view.exp_avg_sq(), state, group, of_v);
    }
    widen_group(view.grad_dtype(), of_g, g);
    widen_group(view.state_dtype(), of_m, m);
    widen_group(view.state_dtype(), of_v, v);
    Keys keys = keys_at(view, group.first);
#pragma unroll
    for (u32 i = 0; i < GROUP; i++) {
        g[i] *= view.scalars().s;
        u32 round = view.state_dtype() == F32 ? 0 : random_round(keys, group.first + i);
        step_moments(view.state_dtype(), view.scalars(), keys, round, g[i], m[i], v[i], of_m[i], of_v[i]);
    }
    store_group(view.exp_avg(), state, group, group.valid, of_m);
    store_group(view.exp_avg_sq(), state, group, group.valid, of_v);
}

// How many of a group's entries have a moment that is not finite.
__device__ __forceinline__ u32 count_nonfinite(const Group &group, const float (&m)[GROUP], const float (&v)[GROUP]) {
    u32 nonfinite = 0;
#pragma unroll
    for (u32 i = 0; i < GROUP; i++) {
        nonfinite |= max(magnitude(m[i]), magnitude(v[i])) >= INFINITE ? 1u << i : 0;
    }
    return __popc(nonfinite & group.valid);
}

// Loads what `step_group` left in memory; the gradients only where a filter asks for them.
template <class View>
__device__ __forceinline__ void load_stepped(const View &view, u32 filter, const Group &group,
                                             float (&g)[GROUP], float (&m)[GROUP], float (&v)[GROUP]) {
    u32 state = size_of(view.state_dtype());
    u32 elements[GROUP];
    load_group(view.exp_avg(), state, group, elements);
    widen_group(view.state_dtype(), elements, m);
    load_group(view.exp_avg_sq(), state, group, elements);
    widen_group(view.state_dtype(), elements, v);
#pragma unroll
    for (u32 i = 0; i < GROUP; i++) {
        g[i] = 0.0f;
    }
    if (filter == GRADIENT) {
        load_group(view.grad(), size_of(view.grad_dtype()), group, elements);
        widen_group(view.grad_dtype(), elements, g);
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            g[i] *= view.scalars().s;
        }
    }
}

// The key of one entry whose moments have been stepped and stored.
template <class View>
__device__ __forceinline__ u32 stored_key(const View &view, u32 filter, u64 entry) {
    u32 state = size_of(view.state_dtype());
    float m = widen(view.state_dtype(), load_element(view.exp_avg(), state, entry));
    float g = 0.0f, v = 0.0f;
    if (filter == GRADIENT) {
        g = widen(view.grad_dtype(), load_element(view.grad(), size_of(view.grad_dtype()), entry)) * view.scalars().s;
    } else if (filter == UPDATE) {
        v = widen(view.state_dtype(), load_element(view.exp_avg_sq(), state, entry));
    }
    return filter_key(filter, view.work(), entry, g, m, v);
}

// What moves is the master copy where there is one, which is f32, else the parameter.
struct Target {
    void *base;
    u32 dtype;
    bool stochastic;
};

template <class View>
__device__ __forceinline__ Target target_of(const View &view, u32 rounding) {
    Target target;
    target.base = view.master() ? view.master() : view.param();
    target.dtype = view.master() ? F32 : view.param_dtype();
    target.stochastic = target.dtype != F32 && rounding == STOCHASTIC;
    return target;
}

// Rounds to a target; `random` is looked at only where that is stochastic.
__device__ __forceinline__ u32 narrow(const Target &target, float x, u32 random) {
    return target.stochastic ? narrow_stochastic(target.dtype, x, random) : narrow_nearest(target.dtype, x);
}

// What became of the entries of a group: those that move, those that are moved back, and those that only decay.
struct Changes {
    u32 move;
    u32 undo;
    u32 decay;
};

// The targets of a group before and after the changes. `starts` is true if the master copy is not there yet.
template <class View>
__device__ __forceinline__ void change_group(const View &view, const Target &target,
                                             const Group &group, bool starts, const Changes &changes,
                                             const float (&m)[GROUP], const float (&v)[GROUP], u32 (&old)[GROUP],
                                             u32 (&now)[GROUP]) {
    if (starts) {
        load_group(view.param(), size_of(view.param_dtype()), group, old);
        float values[GROUP];
        widen_group(view.param_dtype(), old, values);
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            old[i] = bits_of(values[i]);
        }
    } else {
        load_group(target.base, size_of(target.dtype), group, old);
    }
    const Scalars &c = view.scalars();
    Keys keys = keys_at(view, group.first);
    u32 any = changes.move | changes.undo | changes.decay;
#pragma unroll
    for (u32 i = 0; i < GROUP; i++) {
        now[i] = old[i];
        if (any >> i & 1) {
            float p = widen(target.dtype, old[i]);
            u32 random = target.stochastic ? random_bits(random_round(keys, group.first + i), keys.param) : 0;
            if (changes.decay >> i & 1) {
                p = p * c.decay;
            } else if (changes.move >> i & 1) {
                p = moved(p, update_of(m[i], v[i], c), c);
            } else {
                // Rounded against the direction in which the move was.
                p = unmoved(p, update_of(m[i], v[i], c), c);
                random = ~random;
            }
            now[i] = narrow(target, p, random);
        }
    }
}

// Stores changed targets. With a master copy the parameter is its rounding, whether it changed or not, as far as
// `all` says.
template <class View>
__device__ __forceinline__ void store_targets(const View &view, const Target &target, const Group &group,
                                              bool starts, bool all, u32 changed, const u32 (&now)[GROUP]) {
    store_group(target.base, size_of(target.dtype), group, starts ? group.valid : changed, now);
    if (view.master()) {
        u32 halves[GROUP];
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            halves[i] = narrow_nearest(view.param_dtype(), float_of(now[i]));
        }
        store_group(view.param(), size_of(view.param_dtype()), group, all ? group.valid : changed, halves);
    }
}
