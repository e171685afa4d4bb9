// The sum of the squares of the gradients, in the shape that docs/numerics.md lays down.
#include "cut.cuh"

// Sums chunks; the block of threads that brings a tensor's last one folds them.
extern "C" __global__ __launch_bounds__(THREADS) void mofo_norm(const Step step) {
    __shared__ double lanes[THREADS_OF_ONE];
    __shared__ u32 is_last;
    constexpr u32 TEAMS = THREADS / LANES;
    const u64 teams_at_once = TEAMS;
    u64 total = step.control->chunks;
    auto first_chunk = [&](u64 i) { return step.works[i].first_chunk; };
    Share share = share_of(total);
    if (share.first == share.last) {
        return;
    }
    u64 owner = owner_of(share.first, step.num_tensors, first_chunk);
    u32 team = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    u64 unit = share.first;
    while (unit < share.last) {
        owner = next_owner(owner, unit, step.num_tensors, first_chunk);
        const Tensor &tensor = step.tensors[owner];
        Work &work = step.works[owner];
        u64 chunk = unit - work.first_chunk;
        u64 of_tensor = chunks_of(tensor.numel);
        u64 count = min(min(share.last - unit, of_tensor - chunk), teams_at_once);
        double sum = 0.0;
        if (team < count) {
            u64 start = (chunk + team) * CHUNK, end = min(start + CHUNK, tensor.numel);
            u32 size = size_of(tensor.grad_dtype);
#pragma unroll 8
            for (u64 i = start + lane; i < end; i += LANES) {
                double g = (double)widen(tensor.grad_dtype, load_element(tensor.grad, size, i));
                sum += g * g;
            }
        }
        sum = fold_lanes(sum, lanes);
        if (lane == 0 && team < count) {
            tensor.sums[chunk + team] = sum;
            __threadfence();
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u32 done = atomicAdd(&work.chunks_done, (u32)count) + (u32)count;
            is_last = done == (u32)of_tensor;
        }
        __syncthreads();
        if (is_last) {
            __threadfence();
            double folded = fold(tensor.sums, of_tensor, lanes);
            if (threadIdx.x == 0) {
                step.sums[work.position] = folded;
            }
        }
        unit += count;
    }
}
