// The one pass over the entries of large blocks, and of tensors of which everything moves. Every warp goes by itself.
#include "cut.cuh"

constexpr u32 WARPS_OF_PASS = THREADS_OF_PASS / 32;
// Places for notes that a warp takes ahead.
constexpr u32 AHEAD = 24;
// How many strips before it is needed the memory of a strip is asked for, so that a warp that waits for one thing does
// not keep the memory waiting.
constexpr u32 EARLY = 2;
// In `Moving.place`: the old value of the entry would be lost.
constexpr u8 LOST = 0x80;

// The entries of a strip that move, brought together so that all threads have some: their moments, and then their targets
// after the move and before it.
struct Moving {
    u32 first[STRIP];
    u32 second[STRIP];
    u8 place[STRIP];
};

// The strips of one block, or of a tensor of which everything moves, that a block of threads passes. Its warps take them
// in turn.
struct Stretch {
    // The entries that the strips are of.
    u64 from, numel;
    u64 first, last;
};

// A large block, as a warp that passes it sees it.
struct Passed {
    Block &block;
    u32 *notes;
    u8 *held;
    u32 low, high;
    u32 capacity;
    // Of which so many may be taken.
    u32 room;
    // Places for open notes that this warp has taken.
    u32 next, end;
};

// A strip whose moments are stepped, and whose targets are on their way.
struct Pending {
    u64 strip;
    // The first entry of the strip's first group.
    u64 first_entry;
    u32 moves;
    bool exists, fits;
};

// Takes places for notes: for open ones from the start on, for lost ones from the end on. True if there were so many.
__device__ inline bool take_places(Passed &passed, u32 open, u32 lost, u64 &taken) {
    u32 fits = 0;
    taken = 0;
    if (lane_of_warp() == 0) {
        u64 *counter = global(&passed.block.taken);
        u64 seen = *(const volatile u64 *)counter;
        // No more is ever taken than there is: what is given back could have been given to two warps.
        while (!fits && (seen & 0xFFFFFFFF) + (seen >> 32) + open + lost <= passed.room) {
            taken = seen;
            seen = atomicCAS(counter, taken, taken + ((u64)open | (u64)lost << 32));
            fits = seen == taken;
        }
        if (!fits) {
            atomicAdd(&passed.block.strips_held, 1u);
        }
    }
    fits = __shfl_sync(FULL, fits, 0);
    taken = __shfl_sync(FULL, taken, 0);
    return fits;
}

// Marks the places that were taken and not used.
__device__ inline void give_up(Passed &passed) {
    for (u32 i = passed.next + lane_of_warp(); i < passed.end; i += 32) {
        passed.notes[i] = 0;
    }
    passed.next = passed.end = 0;
}

// Sees to it that there are places for so many open notes; false if there is no room.
__device__ inline bool reserve_open(Passed &passed, u32 open, u64 strips_left) {
    if (open <= passed.end - passed.next) {
        return true;
    }
    // One place for each strip to come is about what they will need.
    u32 wanted = open + (u32)min(strips_left, (u64)AHEAD);
    u64 taken;
    if (!take_places(passed, wanted, 0, taken)) {
        return false;
    }
    give_up(passed);
    passed.next = (u32)taken;
    passed.end = passed.next + wanted;
    return true;
}

// Asks for the memory of a strip that comes later: what all of its entries need.
template <class View>
__device__ __forceinline__ void ask_for(const View &view, const Stretch &stretch, u64 strip) {
    strip += EARLY * WARPS_OF_PASS;
    if (strip >= stretch.last) {
        return;
    }
    Range range = cut(stretch.from, stretch.numel, STRIP, strip);
    auto fetch = [&](const void *buffer, u32 size) {
        u64 entry = range.start + lane_of_warp() * (SECTOR / size);
        if (entry < range.end) {
            fetch_to_l2((const u8 *)buffer + entry * size);
        }
    };
    fetch(view.grad(), size_of(view.grad_dtype()));
    if (!view.starts_moments()) {
        fetch(view.exp_avg(), size_of(view.state_dtype()));
        fetch(view.exp_avg_sq(), size_of(view.state_dtype()));
    }
}

// Where everything moves, at once; or where nothing does before the threshold is known: then only the moments are stepped.
template <class View>
__device__ void pass_other(const Step &step, const Tensor &tensor, const View &view, bool moves,
                           const Stretch &stretch) {
    Target target = target_of(view, step.rounding);
    u64 selected = 0, nonfinite = 0;
    for (u64 strip = stretch.first + threadIdx.x / 32; strip < stretch.last; strip += WARPS_OF_PASS) {
        ask_for(view, stretch, strip);
        Range range = cut(stretch.from, stretch.numel, STRIP, strip);
        Group group = group_of(range.start, range.end, lane_of_warp(), view.aligned());
        float g[GROUP], m[GROUP], v[GROUP];
        step_group(view, group, g, m, v);
        nonfinite += count_nonfinite(group, m, v);
        if (!moves) {
            continue;
        }
        Changes changes = {0, 0, 0};
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            changes.move |= magnitude(m[i]) < INFINITE ? 1u << i : 0;
        }
        changes.move &= group.valid;
        changes.decay = step.scope == SCOPE_ALL ? group.valid & ~changes.move : 0;
        selected += __popc(changes.move);
        u32 changed = changes.move | changes.decay;
        if (changed || (view.master() && group.valid)) {
            u32 old[GROUP], now[GROUP];
            change_group(view, target, group, view.starts_master(), changes, m, v, old, now);
            store_targets(view, target, group, view.starts_master(), true, changed, now);
        }
        // The thresholds of blocks that begin here.
        u64 first = (range.start + tensor.block_numel - 1) / tensor.block_numel;
        u64 last = (range.end + tensor.block_numel - 1) / tensor.block_numel;
        for (u64 i = first + lane_of_warp(); i < last; i += 32) {
            tensor.thresholds[i] = 0;
        }
    }
    add_up(&step.control->selected, selected);
    add_up(&step.control->nonfinite, nonfinite);
}

// Computes what becomes of the entries that move; how many of this thread's could not be moved back.
template <class View>
__device__ u32 compute_moves(const View &view, const Target &target, const Pending &pending, Moving &moving) {
    const Scalars &c = view.scalars();
    u32 size = size_of(target.dtype), lost = 0;
    for (u32 at = lane_of_warp(); at < pending.moves; at += 32) {
        u64 entry = pending.first_entry + moving.place[at];
        u32 old;
        if (view.starts_master()) {
            u32 half = load_element(view.param(), size_of(view.param_dtype()), entry);
            old = bits_of(widen(view.param_dtype(), half));
        } else {
            old = load_element(target.base, size, entry);
        }
        u32 random = 0;
        if (target.stochastic) {
            Keys keys = keys_at(view, entry);
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

// Moves what moves of a strip, if there is room for the notes about it.
template <class View>
__device__ void finish_strip(const View &view, const Target &target, const Stretch &stretch, Passed &passed,
                             Pending &pending, Moving &moving) {
    u32 lane = lane_of_warp(), lost = 0, next_lost = 0;
    if (pending.fits) {
        lost = compute_moves(view, target, pending, moving);
    }
    if (__any_sync(FULL, lost != 0)) {
        u32 until = warp_prefix(lost);
        u64 taken;
        pending.fits = take_places(passed, 0, __shfl_sync(FULL, until, 31), taken);
        next_lost = (u32)(taken >> 32) + until - lost;
    }
    if (lane == 0) {
        passed.held[pending.strip] = !pending.fits;
    }
    if (!pending.fits) {
        return;
    }
    if (view.master()) {
        // Master copies that begin, and parameters as the roundings of masters that do not move.
        Range range = cut(stretch.from, stretch.numel, STRIP, pending.strip);
        Group group = group_of(range.start, range.end, lane, view.aligned());
        if (group.valid) {
            u32 masters[GROUP], same[GROUP];
            float none[GROUP] = {};
            change_group(view, target, group, view.starts_master(), {0, 0, 0}, none, none, masters, same);
            store_targets(view, target, group, view.starts_master(), true, 0, same);
        }
        __syncwarp();
    }
    for (u32 at = lane; at < pending.moves; at += 32) {
        u64 entry = pending.first_entry + (moving.place[at] & ~LOST);
        u32 now = moving.first[at];
        store_element(target.base, size_of(target.dtype), entry, now);
        if (view.master()) {
            u32 half = narrow_nearest(view.param_dtype(), float_of(now));
            store_element(view.param(), size_of(view.param_dtype()), entry, half);
        }
        if (moving.place[at] & LOST) {
            u32 at_end = passed.capacity - 1 - next_lost++;
            passed.notes[at_end] = moving.second[at];
            passed.notes[passed.capacity + at_end] = (u32)(entry - stretch.from);
        }
    }
}

template <class View>
__device__ void pass_estimated(const Step &step, const View &view, const Stretch &stretch, Block &block,
                               Moving (&rooms)[2]) {
    Target target = target_of(view, step.rounding);
    // Keys of 0 never move.
    Passed passed = {block,
                     global(block.notes),
                     global(block.held),
                     max(block.low, 1u),
                     block.high,
                     block.capacity,
                     step.no_room ? 0 : block.capacity,
                     0,
                     0};
    u32 lane = lane_of_warp(), number = 0, above = 0, inside = 0, nonfinite = 0;
    Pending pending = {0, 0, 0, false, false};
    for (u64 strip = stretch.first + threadIdx.x / 32; strip < stretch.last; strip += WARPS_OF_PASS) {
        ask_for(view, stretch, strip);
        Range range = cut(stretch.from, stretch.numel, STRIP, strip);
        Group group = group_of(range.start, range.end, lane, view.aligned());
        float g[GROUP], m[GROUP], v[GROUP];
        step_group(view, group, g, m, v);
        nonfinite += count_nonfinite(group, m, v);
        u32 move = 0, open = 0;
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            u32 key = key_of(m[i]);
            move |= key > passed.high ? 1u << i : 0;
            open |= key >= passed.low && key <= passed.high ? 1u << i : 0;
        }
        move &= group.valid;
        open &= group.valid;
        above += __popc(move);
        inside += __popc(open);

        u32 own = __popc(move) | __popc(open) << 16;
        u32 until = warp_prefix(own), total = __shfl_sync(FULL, until, 31);
        u32 place = (until - own) & 0xFFFF, moves = total & 0xFFFF, opens = total >> 16;
        Moving &moving = rooms[number++ % 2];
#pragma unroll
        for (u32 i = 0; i < GROUP; i++) {
            if (move >> i & 1) {
                moving.first[place] = bits_of(m[i]);
                moving.second[place] = bits_of(v[i]);
                moving.place[place++] = (u8)(lane * GROUP + i);
            }
        }
        bool fits = reserve_open(passed, opens, (stretch.last - strip) / WARPS_OF_PASS);
        if (fits && opens > 0) {
            u32 note = passed.next + ((until - own) >> 16);
#pragma unroll
            for (u32 i = 0; i < GROUP; i++) {
                if (open >> i & 1) {
                    passed.notes[note] = key_of(m[i]);
                    passed.notes[passed.capacity + note++] = (u32)(group.first + i - stretch.from);
                }
            }
            passed.next += opens;
        }
        __syncwarp();
        // The targets are on their way while the next strip is stepped.
        u64 first_entry = group.first - lane * GROUP;
        for (u32 at = lane; fits && at < moves; at += 32) {
            fetch_to_l2((const u8 *)target.base + (first_entry + moving.place[at]) * size_of(target.dtype));
        }
        if (pending.exists) {
            finish_strip(view, target, stretch, passed, pending, rooms[number % 2]);
        }
        pending = {strip, first_entry, moves, true, fits};
        __syncwarp();
    }
    if (pending.exists) {
        finish_strip(view, target, stretch, passed, pending, rooms[(number + 1) % 2]);
    }
    give_up(passed);
    add_up(&block.above, above);
    add_up(&block.open, inside);
    add_up(&step.control->nonfinite, nonfinite);
}

// `pass_estimated` for the view that suits a tensor.
struct PassEstimated {
    const Step &step;
    const Stretch &stretch;
    Block &block;
    Moving (&rooms)[2];

    template <class View> __device__ void operator()(const View &view) const {
        pass_estimated(step, view, stretch, block, rooms);
    }
};

extern "C" __global__ __launch_bounds__(THREADS_OF_PASS, 3) void mofo_pass(const Step step) {
    __shared__ Moving rooms[WARPS_OF_PASS][2];
    if (step.control->stop) {
        return;
    }
    auto first_strip = [&](u64 i) { return step.works[i].first_strip; };
    Share share = share_of(step.control->strips);
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
        if (work.mode == ESTIMATED) {
            with_view(tensor, work, PassEstimated{step, stretch, tensor.blocks[index], rooms[threadIdx.x / 32]});
        } else {
            pass_other(step, tensor, Records(tensor, work), work.mode == EVERYTHING, stretch);
        }
    }
}
