// Blocks that are small enough for one block of threads, threshold and all: many small ones at a time, or one.
#include "cut.cuh"
#include "settle.cuh"

struct WholeRoom {
    u32 keys[RUN];
    Search search;
};

// The threshold of a block of at most WARP_BLOCK keys, by the lanes of a warp or, where the block is smaller, by fewer of
// them: the highest key that at least `rank` keys reach, found bit by bit.
__device__ inline u32 bisect(const u32 *keys, u32 count, u32 rank, u32 width) {
    u32 lane = lane_of_warp() % width, found = 0;
    for (u32 bit = 31; bit-- > 0;) {
        u32 candidate = found | 1u << bit, reach = 0;
        for (u32 i = lane; i < count; i += width) {
            reach += keys[i] >= candidate;
        }
        for (u32 distance = width / 2; distance > 0; distance /= 2) {
            reach += __shfl_xor_sync(FULL, reach, distance);
        }
        if (reach >= rank) {
            found = candidate;
        }
    }
    return found;
}

// Thresholds of the small blocks of a run.
__device__ inline void small_thresholds(const Tensor &tensor, const Work &work, const u32 *keys, u64 first_block,
                                        u32 blocks) {
    u32 numel = (u32)tensor.block_numel, width = 1;
    while (width < 32 && width < numel) {
        width *= 2;
    }
    u32 teams = blockDim.x / width;
    for (u32 from = 0; from < blocks; from += teams) {
        u32 block = from + threadIdx.x / width;
        bool exists = block < blocks;
        // All lanes of a warp go through the same shuffles.
        u32 threshold = bisect(keys + (exists ? block : 0) * numel, numel, (u32)work.rank, width);
        if (exists && threadIdx.x % width == 0) {
            tensor.thresholds[first_block + block] = threshold;
        }
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void mofo_whole(const Step step) {
    __shared__ WholeRoom room;
    if (step.control->stop) {
        return;
    }
    auto first_run = [&](u64 i) { return step.works[i].first_run; };
    Share share = share_of(step.control->runs);
    if (share.first == share.last) {
        return;
    }
    u64 owner = owner_of(share.first, step.num_tensors, first_run);
    u64 selected = 0, nonfinite = 0;
    for (u64 unit = share.first; unit < share.last; unit++) {
        owner = next_owner(owner, unit, step.num_tensors, first_run);
        const Tensor &tensor = step.tensors[owner];
        const Work &work = step.works[owner];
        Records view(tensor, work);
        u64 numel = tensor.block_numel, all_blocks = tensor.numel / numel, each = blocks_of_run(numel);
        u64 first_block = (unit - work.first_run) * each;
        u32 blocks = (u32)min(each, all_blocks - first_block);
        u64 start = first_block * numel, end = start + blocks * numel;
        bool in_room = end - start <= RUN;

        for (u64 i = threadIdx.x; (start / GROUP + i) * GROUP < end; i += blockDim.x) {
            Group group = group_of(start, end, i, view.aligned());
            float g[GROUP], m[GROUP], v[GROUP];
            step_group(view, group, g, m, v);
            nonfinite += count_nonfinite(group, m, v);
            if (in_room) {
#pragma unroll
                for (u32 j = 0; j < GROUP; j++) {
                    if (group.valid >> j & 1) {
                        u64 entry = group.first + j;
                        room.keys[entry - start] = filter_key(step.filter, view.work(), entry, g[j], m[j], v[j]);
                    }
                }
            }
        }
        __syncthreads();
        if (numel <= WARP_BLOCK) {
            small_thresholds(tensor, work, room.keys, first_block, blocks);
        } else {
            for (u32 block = 0; block < blocks; block++) {
                u64 from = block * numel;
                auto key_at = [&](u64 i) {
                    return in_room ? room.keys[from + i] : stored_key(view, step.filter, start + from + i);
                };
                u32 threshold = kth_largest(numel, work.rank, room.search, key_at);
                if (threadIdx.x == 0) {
                    tensor.thresholds[first_block + block] = threshold;
                }
            }
        }
        __syncthreads();
        for (u64 i = threadIdx.x; (start / GROUP + i) * GROUP < end; i += blockDim.x) {
            auto threshold_at = [&](u64 entry) {
                // Within a run of several blocks, distances are small.
                u32 block = blocks == 1 ? 0 : (u32)(entry - start) / (u32)numel;
                return max(tensor.thresholds[first_block + block], 1u);
            };
            Group group = group_of(start, end, i, view.aligned());
            selected += settle_group(step, view, group, threshold_at, 0, true);
        }
        __syncthreads();
    }
    add_up(&step.control->selected, selected);
    add_up(&step.control->nonfinite, nonfinite);
}
