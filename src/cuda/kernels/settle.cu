// Finds the thresholds of large blocks, and moves what the pass has left open: among its notes or, where there are none
// or the estimate was wrong, in the whole block.
#include "cut.cuh"
#include "settle.cuh"

// The slices of blocks that were estimated well are of notes; those of others are tiles. A place that was taken for a note
// but not used has the key 0, which no note has.
struct Slice {
    u64 block;
    // Of places for notes, or of entries of the tensor.
    Range range;
    u64 number;
};

__device__ __forceinline__ Slice slice_of(const Step &step, u64 owner, u64 unit) {
    const Block &block = *step.blocks[owner];
    Slice slice;
    slice.block = owner;
    slice.number = unit - block.first_slice;
    if (block.failed) {
        u64 numel = step.tensors[block.tensor].block_numel;
        slice.range = cut(block.index * numel, numel, TILE, slice.number);
    } else {
        slice.range.start = slice.number * SLICE;
        slice.range.end = min(slice.range.start + SLICE, block.taken & 0xFFFFFFFF);
    }
    return slice;
}

// One digit of the search for each threshold.
extern "C" __global__ __launch_bounds__(THREADS) void mofo_select(const Step step) {
    __shared__ Search search;
    __shared__ u32 is_last;
    if (step.control->stop) {
        return;
    }
    auto first_slice = [&](u64 i) { return step.blocks[i]->first_slice; };
    Share share = share_of(step.control->slices);
    if (share.first == share.last) {
        return;
    }
    u64 owner = owner_of(share.first, step.num_blocks, first_slice);
    u32 shift = digit_shift(step.digit), bins = digit_bins(step.digit);
    u64 unit = share.first;
    while (unit < share.last) {
        owner = next_owner(owner, unit, step.num_blocks, first_slice);
        Block &block = *step.blocks[owner];
        const Tensor &tensor = step.tensors[block.tensor];
        const Work &work = step.works[block.tensor];
        Records view(tensor, work);
        u64 last = min(share.last, block.first_slice + block.slices), done = last - unit;
        const u32 *notes = block.notes;
        __syncthreads();
        clear_histogram(search.histogram);
        __syncthreads();
        for (; unit < last; unit++) {
            Slice slice = slice_of(step, owner, unit);
#pragma unroll 4
            for (u64 i = slice.range.start + threadIdx.x; i < slice.range.end; i += blockDim.x) {
                u32 key = block.failed ? stored_key(view, step.filter, i) : notes[i];
                if (digit_prefix(key, step.digit) == block.prefix) {
                    atomicAdd(&search.histogram[key >> shift & (bins - 1)], 1u);
                }
            }
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) {
            if (search.histogram[i] != 0) {
                atomicAdd(&block.histogram[i], (u64)search.histogram[i]);
            }
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            is_last = atomicAdd(&block.slices_done, done) + done == block.slices;
        }
        __syncthreads();
        if (is_last) {
            __threadfence();
            find_bin((const volatile u64 *)block.histogram, block.rank, search);
            for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) {
                block.histogram[i] = 0;
            }
            if (threadIdx.x == 0) {
                block.prefix = block.prefix * bins + search.bin;
                block.rank = search.rank;
                block.slices_done = 0;
                if (step.digit == DIGITS - 1 && !block.is_zero) {
                    tensor.thresholds[block.index] = block.prefix;
                }
            }
        }
    }
}

extern "C" __global__ __launch_bounds__(THREADS) void mofo_settle(const Step step) {
    if (step.control->stop) {
        return;
    }
    auto first_slice = [&](u64 i) { return step.blocks[i]->first_slice; };
    Share share = share_of(step.control->slices);
    if (share.first == share.last) {
        return;
    }
    u64 owner = owner_of(share.first, step.num_blocks, first_slice);
    u64 selected = 0;
    for (u64 unit = share.first; unit < share.last; unit++) {
        owner = next_owner(owner, unit, step.num_blocks, first_slice);
        const Block &block = *step.blocks[owner];
        const Tensor &tensor = step.tensors[block.tensor];
        const Work &work = step.works[block.tensor];
        Records view(tensor, work);
        u32 threshold = max(tensor.thresholds[block.index], 1u);
        Slice slice = slice_of(step, owner, unit);
        if (block.failed) {
            Group group = group_of(slice.range.start, slice.range.end, threadIdx.x, view.aligned());
            if (group.valid == 0) {
                continue;
            }
            u64 start = block.index * tensor.block_numel;
            bool untouched = work.mode == SEARCHED || block.held[strip_of(start, group.first)];
            selected += settle_group(step, view, group, [&](u64) { return threshold; }, block.high, untouched);
            continue;
        }
        Target target = target_of(view, step.rounding);
        const u32 *keys = block.notes, *entries = keys + block.capacity;
        u64 start = block.index * tensor.block_numel;
        for (u64 i = slice.range.start + threadIdx.x; i < slice.range.end; i += blockDim.x) {
            if (keys[i] >= threshold) {
                settle_note(view, target, start + entries[i]);
                selected++;
            }
        }
        if (slice.number == 0 && threadIdx.x == 0) {
            selected += block.above;
        }
    }
    add_up(&step.control->selected, selected);
}
