// What the threads of a block do together: sums, shares of the work, the k-th largest of many keys.
#pragma once

#include "group.cuh"

constexpr u32 FULL = 0xFFFFFFFF;

__device__ __forceinline__ u32 lane_of_warp() { return threadIdx.x % 32; }

template <typename T> __device__ __forceinline__ T warp_sum(T value) {
    for (u32 distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(FULL, value, distance);
    }
    return value;
}

// Adds a warp's counts to a total.
__device__ __forceinline__ void add_up(u64 *total, u64 count) {
    u64 sum = warp_sum(count);
    if (lane_of_warp() == 0 && sum != 0) {
        atomicAdd(total, sum);
    }
}

template <typename T> __device__ __forceinline__ T warp_prefix(T value) {
    for (u32 distance = 1; distance < 32; distance *= 2) {
        T other = __shfl_up_sync(FULL, value, distance);
        if (lane_of_warp() >= distance) {
            value += other;
        }
    }
    return value;
}

// The sum of the values of all threads before this one, and of all. `room` has a place for every warp.
template <typename T> __device__ T team_prefix(T value, T *room, T &total) {
    T inclusive = warp_prefix(value);
    __syncthreads();
    if (lane_of_warp() == 31) {
        room[threadIdx.x / 32] = inclusive;
    }
    __syncthreads();
    T before = 0;
    total = 0;
    for (u32 warp = 0; warp < blockDim.x / 32; warp++) {
        if (warp < threadIdx.x / 32) {
            before += room[warp];
        }
        total += room[warp];
    }
    return before + inclusive - value;
}

// Consecutive units of work.
struct Share {
    u64 first, last;
};

// What the `i`-th of `workers` does.
__device__ __forceinline__ Share share_of(u64 total, u64 i, u64 workers) {
    u64 each = total / workers, rest = total % workers;
    Share share;
    share.first = i * each + min(i, rest);
    share.last = share.first + each + (i < rest ? 1 : 0);
    return share;
}

// What this block of threads does.
__device__ __forceinline__ Share share_of(u64 total) { return share_of(total, blockIdx.x, gridDim.x); }

// The last of `count` records whose `first(i)` is at most `unit`: the one that the unit belongs to.
template <typename First> __device__ u64 owner_of(u64 unit, u64 count, First first) {
    u64 low = 0, high = count;
    while (high - low > 1) {
        u64 middle = low + (high - low) / 2;
        if (first(middle) <= unit) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// Where units are visited in ascending order: the owner of the next unit.
template <typename First> __device__ __forceinline__ u64 next_owner(u64 owner, u64 unit, u64 count, First first) {
    while (owner + 1 < count && first(owner + 1) <= unit) {
        owner++;
    }
    return owner;
}

// The shared memory of a search for a rank.
struct Search {
    u32 histogram[BINS];
    u64 room[32];
    u32 bin;
    u64 rank;
};

__device__ __forceinline__ u32 digit_shift(u32 digit) { return digit == 0 ? 20 : digit == 1 ? 9 : 0; }
__device__ __forceinline__ u32 digit_bins(u32 digit) { return digit == 2 ? 512 : 2048; }
// The key's digits above a digit.
__device__ __forceinline__ u32 digit_prefix(u32 key, u32 digit) {
    return digit == 0 ? 0 : digit == 1 ? key >> 20 : key >> 9;
}

__device__ __forceinline__ void clear_histogram(u32 *histogram) {
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) {
        histogram[i] = 0;
    }
}

// The bin with the `rank`-th largest key of a histogram, and the rank within it: in `search.bin` and `search.rank`,
// after a barrier.
template <typename Count> __device__ void find_bin(const Count *histogram, u64 rank, Search &search) {
    // Each thread has consecutive bins, counted from the top.
    u32 each = BINS / blockDim.x;
    u64 sum = 0;
    for (u32 i = 0; i < each; i++) {
        sum += histogram[BINS - 1 - (threadIdx.x * each + i)];
    }
    u64 total;
    u64 above = team_prefix(sum, search.room, total);
    if (above < rank && rank <= above + sum) {
        for (u32 i = 0; i < each; i++) {
            u32 bin = BINS - 1 - (threadIdx.x * each + i);
            u64 keys = histogram[bin];
            if (rank <= above + keys) {
                search.bin = bin;
                search.rank = rank - above;
                break;
            }
            above += keys;
        }
    }
    __syncthreads();
}

// The `rank`-th largest of `count` keys, rank from 1. All threads of the block take part.
template <typename KeyAt> __device__ u32 kth_largest(u64 count, u64 rank, Search &search, KeyAt key_at) {
    u32 prefix = 0;
    for (u32 digit = 0; digit < DIGITS; digit++) {
        __syncthreads();
        clear_histogram(search.histogram);
        __syncthreads();
        u32 shift = digit_shift(digit);
#pragma unroll 4
        for (u64 i = threadIdx.x; i < count; i += blockDim.x) {
            u32 key = key_at(i);
            if (digit_prefix(key, digit) == prefix) {
                atomicAdd(&search.histogram[key >> shift & (digit_bins(digit) - 1)], 1u);
            }
        }
        __syncthreads();
        find_bin(search.histogram, rank, search);
        prefix = prefix * digit_bins(digit) + search.bin;
        rank = search.rank;
    }
    return prefix;
}

// The sum of the values of LANES threads, halves upon halves; in the first of them. By all threads.
__device__ inline double fold_lanes(double sum, double (&lanes)[THREADS_OF_ONE]) {
    for (u32 width = LANES / 2; width > 0; width /= 2) {
        lanes[threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.x % LANES < width) {
            sum += lanes[threadIdx.x + width];
        }
        __syncthreads();
    }
    return sum;
}

// Folds values as docs/numerics.md lays down: 64 lanes of 4,096 values each, again and again. By all threads; `values`
// is used up.
__device__ inline double fold(double *values, u64 count, double (&lanes)[THREADS_OF_ONE]) {
    u64 teams = blockDim.x / LANES, team = threadIdx.x / LANES;
    u32 lane = threadIdx.x % LANES;
    while (count > 1) {
        u64 chunks = (count + CHUNK - 1) / CHUNK;
        for (u64 first = 0; first < chunks; first += teams) {
            u64 chunk = first + team;
            double sum = 0.0;
            u64 end = min(count, (chunk + 1) * CHUNK);
            for (u64 i = chunk * CHUNK + lane; i < end; i += LANES) {
                sum += __ldcg(&values[i]);
            }
            sum = fold_lanes(sum, lanes);
            if (lane == 0 && chunk < chunks) {
                values[chunk] = sum;
            }
            __syncthreads();
        }
        count = chunks;
    }
    return count == 0 ? 0.0 : __ldcg(&values[0]);
}
