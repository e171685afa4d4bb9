// The one pass over the entries of large blocks, and of tensors of which everything moves. Every warp goes by itself
// through consecutive strips.
#include "cut.cuh"

constexpr u32 WARPS_OF_PASS = THREADS_OF_PASS / 32;
// Places for notes that a warp takes ahead.
constexpr u32 AHEAD = 56;
// How many strips before it is needed the memory of a strip is asked for, so that a warp that waits for one thing does
// not keep the memory waiting.
constexpr u32 EARLY = 3;
// In `Moving.place`: the old value of the entry would be lost.
constexpr u8 LOST = 0x80;

// The entries of a strip that move, brought together so that all threads have some: their moments, and then their targets
// after the move and before it.
struct Moving {
    u32 first[STRIP];
    u32 second[STRIP];
    u8 place[STRIP];
};

// The strips of one block, or of a tensor of which everything moves, that a warp passes.
struct Stretch {
    // The entries that the strips are of.
    u64 from, numel;
    u64 first, last;
};

// Notes about a block, as a warp takes places for them.
struct Notes {
    u32 next, end;
};

// Marks the places that were taken and not used.
__device__ inline void give_up(const Block &block, Notes &notes) {
    for (u32 i = notes.next + lane_of_warp(); i < notes.end; i += 32) {
        block.notes[i] = 0;
    }
    notes.next = notes.end = 0;
}

// Takes places for open and lost notes, the latter from the end on. True if there is room; the first open note goes to
// `notes.next`, the first lost one to `first_lost`.
__device__ inline bool take_places(const Step &step, Block &block, u32 open, u32 lost, u64 strips_left, Notes &notes,
                                   u32 &first_lost) {
    bool refill = open > notes.end - notes.next;
    if (!refill && lost == 0) {
        return true;
    }
    // One place for each strip to come is about what they will need.
    u32 ahead = refill ? open + (u32)min(strips_left, (u64)AHEAD) : 0;
    u64 wanted = (u64)ahead | (u64)lost << 32, taken = 0;
    if (lane_of_warp() == 0) {
        taken = atomicAdd(&block.taken, wanted);
    }
    taken = __shfl_sync(FULL, taken, 0);
    u64 capacity = step.no_room ? 0 : block.capacity;
    if ((taken & 0xFFFFFFFF) + (taken >> 32) + ahead + lost > capacity) {
        if (lane_of_warp() == 0) {
            // Whoever comes in between sees too much taken, too, and takes nothing.
            atomicAdd(&block.taken, 0 - wanted);
            atomicAdd(&block.strips_held, 1u);
        }
        return false;
    }
    if (refill) {
        give_up(block, notes);
        notes.next = (u32)taken;
        notes.end = notes.next + ahead;
    }
    first_lost = (u32)(taken >> 32);
    return true;
}

// Asks for the memory of a strip that comes later: what all of its entries need.
__device__ __forceinline__ void ask_for(const Tensor &tensor, const Work &work, const Stretch &stretch, u64 strip) {
    strip += EARLY;
    if (strip >= stretch.last) {
        return;
    }
    Range range = cut(stretch.from, stretch.numel, STRIP, strip);
    const void *buffers[3] = {tensor.grad, tensor.exp_avg, tensor.exp_avg_sq};
    u32 sizes[3] = {size_of(tensor.grad_dtype), size_of(tensor.state_dtype), size_of(tensor.state_dtype)};
#pragma unroll
    for (u32 i = 0; i < 3; i++) {
        u64 entry = range.start + lane_of_warp() * (SECTOR / sizes[i]);
        if (entry < range.end && (i == 0 || !work.starts_moments)) {
            fetch_to_l2((const u8 *)buffers[i] + entry * sizes[i]);
        }
    }
}

// Adds a warp's counts to a total.
__device__ __forceinline__ void add_up(u64 *total, u64 count) {
    u64 sum = warp_sum(count);
    if (lane_of_warp() == 0 && sum != 0) {
        atomicAdd(total, sum);
    }
}

__device__ inline void pass_everything(const Step &step, const Tensor &tensor, const Work &work,
                                       const Stretch &stretch) {
    Target target = target_of(tensor, step.rounding);
    u64 selected = 0;
    for (u64 strip = stretch.first; strip < stretch.last; strip++) {
        ask_for(tensor, work, stretch, strip);
        Range range = cut(stretch.from, stretch.numel, STRIP, strip);
        Group group = group_of(range.start, range.end, lane_of_warp(), work);
        float g[GROUP], m[GROUP], v[GROUP];
        step_group(tensor, work, group, g, m, v);
        Changes changes = {0, 0, 0};
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            changes.move |= magnitude(m[i]) < INFINITE ? 1u << i : 0;
        }
        changes.move &= group.valid;
        changes.decay = step.scope == SCOPE_ALL ? group.valid & ~changes.move : 0;
        selected += __popc(changes.move);
        u32 changed = changes.move | changes.decay;
        if (changed || (tensor.master && group.valid)) {
            u32 old[GROUP], now[GROUP];
            change_group(tensor, work, target, group, work.starts_master, changes, m, v, old, now);
            store_targets(tensor, target, group, work.starts_master, true, changed, now);
        }
        // The thresholds of blocks that begin here.
        u64 first = (range.start + tensor.block_numel - 1) / tensor.block_numel;
        u64 last = (range.end + tensor.block_numel - 1) / tensor.block_numel;
        for (u64 i = first + lane_of_warp(); i < last; i += 32) {
            tensor.thresholds[i] = 0;
        }
    }
    add_up(&step.control->selected, selected);
}

// Only steps the moments.
__device__ inline void pass_searched(const Tensor &tensor, const Work &work, const Stretch &stretch) {
    for (u64 strip = stretch.first; strip < stretch.last; strip++) {
        ask_for(tensor, work, stretch, strip);
        Range range = cut(stretch.from, stretch.numel, STRIP, strip);
        float g[GROUP], m[GROUP], v[GROUP];
        step_group(tensor, work, group_of(range.start, range.end, lane_of_warp(), work), g, m, v);
    }
}

// Computes what becomes of the entries that move; how many of this thread's could not be moved back.
__device__ inline u32 compute_moves(const Tensor &tensor, const Work &work, const Target &target, u64 first_entry,
                                    u32 count, Moving &moving) {
    const Scalars &c = work.scalars;
    u32 size = size_of(target.dtype), lost = 0;
    for (u32 at = lane_of_warp(); at < count; at += 32) {
        u64 entry = first_entry + moving.place[at];
        u32 old;
        if (work.starts_master) {
            u32 half = load_element(tensor.param, size_of(tensor.param_dtype), entry);
            old = bits_of(widen(tensor.param_dtype, half));
        } else {
            old = load_element(target.base, size, entry);
        }
        u32 random = 0;
        if (target.stochastic) {
            Keys keys = keys_at(work, entry);
            random = random_bits(random_round(keys, entry), keys.param);
        }
        float u = update_of(float_of(moving.first[at]), float_of(moving.second[at]), c);
        u32 now = narrow(target, moved(widen(target.dtype, old), u, c), random);
        // Should the bracket be wrong, the move is taken back; where that cannot be computed, the old value is noted.
        u32 back = narrow(target, unmoved(widen(target.dtype, now), u, c), ~random);
        moving.first[at] = now;
        moving.second[at] = old;
        if (back != old) {
            moving.place[at] |= LOST;
            lost++;
        }
    }
    return lost;
}

// Master copies that begin, and parameters as the roundings of masters that do not move.
__device__ inline void store_masters(const Tensor &tensor, const Work &work, const Target &target, const Group &group) {
    if (group.valid) {
        u32 masters[GROUP], same[GROUP];
        float none[GROUP] = {};
        change_group(tensor, work, target, group, work.starts_master, {0, 0, 0}, none, none, masters, same);
        store_targets(tensor, target, group, work.starts_master, true, 0, same);
    }
}

__device__ inline void pass_estimated(const Step &step, const Tensor &tensor, const Work &work,
                                      const Stretch &stretch, Block &block, Moving &moving) {
    Target target = target_of(tensor, step.rounding);
    // Keys of 0 never move.
    u32 low = max(block.low, 1u), high = block.high, lane = lane_of_warp();
    Notes notes = {0, 0};
    u64 above = 0, inside = 0;
    for (u64 strip = stretch.first; strip < stretch.last; strip++) {
        ask_for(tensor, work, stretch, strip);
        Range range = cut(stretch.from, stretch.numel, STRIP, strip);
        Group group = group_of(range.start, range.end, lane, work);
        float g[GROUP], m[GROUP], v[GROUP];
        step_group(tensor, work, group, g, m, v);
        u32 move = 0, open = 0;
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            u32 key = key_of(m[i]);
            move |= key > high ? 1u << i : 0;
            open |= key >= low && key <= high ? 1u << i : 0;
        }
        move &= group.valid;
        open &= group.valid;
        above += __popc(move);
        inside += __popc(open);

        u32 own = __popc(move) | __popc(open) << 16;
        u32 until = warp_prefix(own), total = __shfl_sync(FULL, until, 31);
        u32 place = (until - own) & 0xFFFF, moves = total & 0xFFFF, opens = total >> 16;
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            if (move >> i & 1) {
                moving.first[place] = bits_of(m[i]);
                moving.second[place] = bits_of(v[i]);
                moving.place[place++] = (u8)(lane * GROUP + i);
            }
        }
        __syncwarp();
        // Of the strip's first group, which need not be a valid one.
        u64 first_entry = group.first - lane * GROUP;
        u32 lost = 0, all_lost = 0;
        if (moves > 0) {
            lost = compute_moves(tensor, work, target, first_entry, moves, moving);
            all_lost = warp_sum(lost);
        }
        u32 first_lost = 0;
        bool fits = take_places(step, block, opens, all_lost, stretch.last - strip - 1, notes, first_lost);
        if (lane == 0) {
            block.held[strip] = !fits;
        }
        if (fits) {
            u32 *entries = block.notes + block.capacity;
            u32 note = notes.next + ((until - own) >> 16);
#pragma unroll
            for (u32 i = 0; i < GROUP; i++) {
                if (open >> i & 1) {
                    block.notes[note] = key_of(m[i]);
                    entries[note++] = (u32)(group.first + i - stretch.from);
                }
            }
            notes.next += opens;
            if (tensor.master) {
                store_masters(tensor, work, target, group);
                __syncwarp();
            }
            u32 next_lost = all_lost > 0 ? first_lost + warp_prefix(lost) - lost : 0;
            for (u32 at = lane; at < moves; at += 32) {
                u64 entry = first_entry + (moving.place[at] & ~LOST);
                u32 now = moving.first[at];
                store_element(target.base, size_of(target.dtype), entry, now);
                if (tensor.master) {
                    u32 half = narrow_nearest(tensor.param_dtype, float_of(now));
                    store_element(tensor.param, size_of(tensor.param_dtype), entry, half);
                }
                if (moving.place[at] & LOST) {
                    u32 at_end = block.capacity - 1 - next_lost++;
                    block.notes[at_end] = moving.second[at];
                    entries[at_end] = (u32)(entry - stretch.from);
                }
            }
        }
        __syncwarp();
    }
    give_up(block, notes);
    add_up(&block.above, above);
    add_up(&block.open, inside);
}

extern "C" __global__ __launch_bounds__(THREADS_OF_PASS, 3) void mofo_pass(const Step step) {
    __shared__ Moving moving[WARPS_OF_PASS];
    if (step.control->stop) {
        return;
    }
    auto first_strip = [&](u64 i) { return step.works[i].first_strip; };
    u64 warp = threadIdx.x / 32;
    Share share = share_of(step.control->strips, blockIdx.x * (u64)WARPS_OF_PASS + warp, gridDim.x * (u64)WARPS_OF_PASS);
    if (share.first == share.last) {
        return;
    }
    u64 owner = owner_of(share.first, step.num_tensors, first_strip);
    for (u64 strip = share.first; strip < share.last;) {
        owner = next_owner(owner, strip, step.num_tensors, first_strip);
        const Tensor &tensor = step.tensors[owner];
        const Work &work = step.works[owner];
        u64 first = strip - work.first_strip;
        Stretch stretch;
        u64 index = 0;
        stretch.from = 0;
        stretch.numel = tensor.numel;
        u64 strips = strips_of(tensor, work);
        if (work.mode != EVERYTHING) {
            strips = pieces_of(tensor.block_numel, STRIP);
            index = first / strips;
            first -= index * strips;
            stretch.from = index * tensor.block_numel;
            stretch.numel = tensor.block_numel;
        }
        stretch.first = first;
        stretch.last = min(strips, first + (share.last - strip));
        strip += stretch.last - stretch.first;
        if (work.mode == EVERYTHING) {
            pass_everything(step, tensor, work, stretch);
        } else if (work.mode == ESTIMATED) {
            pass_estimated(step, tensor, work, stretch, tensor.blocks[index], moving[warp]);
        } else {
            pass_searched(tensor, work, stretch);
        }
    }
}
