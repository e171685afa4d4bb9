// Brackets the thresholds of large blocks by samples of their keys, as src/cpu/sample.rs does.
#include "cut.cuh"

// Half the width of a bracket, in standard deviations of the estimate.
constexpr double SIGMAS = 3.5;
// Pairs of lines from which the deviation is estimated.
constexpr u32 MOST_COUNTED_PAIRS = 1024;

// Keys that share their first digit.
constexpr u32 WIDTH = 1 << 20;

struct SampleRoom {
    Search search;
    u32 other[BINS];
    u32 is_last;
};

// Where a line of a block's sample starts: a random place of its stratum, which it shares with one neighbour.
__device__ __forceinline__ u64 line_start(const Block &block, const Tensor &tensor, const Work &work, u32 line) {
    u64 strata = block.lines / 2, total = tensor.block_numel / LINE, i = line / 2;
    u64 first = i * total / strata;
    u64 stratum = (i + 1) * total / strata - first;
    u64 draw = mix32(line ^ work.keys.first);
    return block.index * tensor.block_numel + (first + (draw * stratum >> 32)) * LINE;
}

// The standard deviation of the number of sampled keys from about `estimate` on: by how the two lines of each stratum
// differ, but at least half of what it were if all keys were independent.
__device__ inline double deviation(const u32 *sample, const Block &block, u32 estimate, double share, Search &search) {
    u32 pairs = block.lines / 2;
    u32 stride = max((pairs + MOST_COUNTED_PAIRS - 1) / MOST_COUNTED_PAIRS, 1u);
    u64 sums[2] = {0, 0}, counted = 0;
#pragma unroll 4
    for (u32 pair = threadIdx.x / 32 * stride; pair < pairs; pair += blockDim.x / 32 * stride) {
        u32 key = __ldcg(&sample[pair * 2 * LINE + lane_of_warp()]);
        // Where the estimate is a tie, all lines may look alike from there on, but not above it.
        for (u32 above = 0; above < 2; above++) {
            u32 reach = __ballot_sync(FULL, key >= estimate + above * WIDTH);
            int difference = __popc(reach & 0xFFFF) - __popc(reach >> 16);
            sums[above] += (u32)(difference * difference);
        }
        counted++;
    }
    bool leads = lane_of_warp() == 0;
    u64 total[3];
    team_prefix(leads ? sums[0] : 0ull, search.room, total[0]);
    team_prefix(leads ? sums[1] : 0ull, search.room, total[1]);
    team_prefix(leads ? counted : 0ull, search.room, total[2]);
    double by_lines = (double)max(total[0], total[1]) * block.lines / (double)(2 * max(total[2], 1ull));
    double independent = (double)block.lines * LINE * share * (1.0 - share);
    return sqrt(fmax(independent / 2.0, by_lines));
}

// What tests make of a bracket.
__device__ inline void force_bracket(u32 forced, u32 estimate, u32 &low, u32 &high) {
    constexpr u32 OCTAVE = 1 << 23;
    if (forced == TOO_LOW) {
        low = high = estimate > OCTAVE ? estimate - OCTAVE : 0;
    } else if (forced == TOO_HIGH) {
        low = high = min(estimate + OCTAVE, INFINITE);
    } else if (forced == ANYWHERE) {
        low = 0;
        high = INFINITE;
    } else {
        low = high = estimate;
    }
}

// A place of a histogram of first digits.
struct Place {
    u32 bin;
    u64 rank;
};

__device__ inline Place place_of(const Block &block, u64 rank, Search &search) {
    find_bin((const volatile u64 *)block.histogram, rank, search);
    Place place = {search.bin, search.rank};
    __syncthreads();
    return place;
}

// Finds the bracket of a block whose sample, with the histogram of its first digits, is complete. Its ends are between
// keys that differ in the second digit: that is fine enough.
__device__ inline void bracket(const Step &step, Block &block, u64 numel, double share, SampleRoom &room) {
    Search &search = room.search;
    const u32 *sample = block.notes;
    u64 count = (u64)block.lines * LINE;
    double expected = (double)count * share;
    u64 middle = min(max((u64)(expected + 0.5), 1ull), count);
    u32 estimate = place_of(block, middle, search).bin * WIDTH;
    double margin = SIGMAS * deviation(sample, block, estimate, share, search) + 2.0;
    // No wider than there is room for: notes about lost values and unused places need some, too.
    margin = fmin(margin, 0.3 * (double)block.capacity * (double)count / (double)numel);
    double lowest = ceil(expected + margin), highest = floor(expected - margin);
    bool has_low = lowest <= (double)count, has_high = highest > 0.0;
    Place below = place_of(block, has_low ? (u64)lowest : count, search);
    Place above = place_of(block, has_high ? (u64)highest : 1, search);

    clear_histogram(search.histogram);
    clear_histogram(room.other);
    __syncthreads();
    u32 shift = digit_shift(1), mask = digit_bins(1) - 1;
#pragma unroll 8
    for (u64 i = threadIdx.x; i < count; i += blockDim.x) {
        u32 key = __ldcg(&sample[i]);
        if (key / WIDTH == below.bin) {
            atomicAdd(&search.histogram[key >> shift & mask], 1u);
        }
        if (key / WIDTH == above.bin) {
            atomicAdd(&room.other[key >> shift & mask], 1u);
        }
    }
    __syncthreads();
    find_bin(search.histogram, below.rank, search);
    u32 low = has_low ? below.bin * WIDTH + (search.bin << shift) : 0;
    __syncthreads();
    find_bin(room.other, above.rank, search);
    u32 high = has_high ? above.bin * WIDTH + (search.bin << shift) + (1u << shift) - 1 : INFINITE;
    if (step.forced_bracket != SAMPLED) {
        force_bracket(step.forced_bracket, estimate + WIDTH / 2, low, high);
    }
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) {
        block.histogram[i] = 0;
    }
    if (threadIdx.x == 0) {
        block.low = low;
        block.high = min(high, INFINITE);
    }
}

// Gathers samples; the block of threads that brings a sample's last keys brackets the threshold.
extern "C" __global__ __launch_bounds__(THREADS) void mofo_sample(const Step step) {
    __shared__ SampleRoom room;
    if (step.control->stop) {
        return;
    }
    auto first_gather = [&](u64 i) { return step.works[i].first_gather; };
    Share share = share_of(step.control->gathers);
    if (share.first == share.last) {
        return;
    }
    u64 owner = owner_of(share.first, step.num_tensors, first_gather);
    for (u64 unit = share.first; unit < share.last; unit++) {
        owner = next_owner(owner, unit, step.num_tensors, first_gather);
        const Tensor &tensor = step.tensors[owner];
        const Work &work = step.works[owner];
        u64 of_block = gathers_of(*tensor.blocks);
        Block &block = tensor.blocks[(unit - work.first_gather) / of_block];
        u32 first = (u32)((unit - work.first_gather) % of_block) * GATHER;
        u32 last = min(first + GATHER, block.lines);
        u32 *sample = block.notes;
        Records view(tensor, work);
        u32 *histogram = room.search.histogram;
        __syncthreads();
        clear_histogram(histogram);
        __syncthreads();
        u32 state = size_of(tensor.state_dtype), grad = size_of(tensor.grad_dtype);
        for (u32 i = first * LINE + threadIdx.x; i < last * LINE; i += blockDim.x) {
            u64 entry = line_start(block, tensor, work, i / LINE) + i % LINE;
            float g = widen(tensor.grad_dtype, load_element(tensor.grad, grad, entry)) * work.scalars.s;
            float m = 0.0f, v = 0.0f;
            if (!work.starts_moments) {
                m = widen(tensor.state_dtype, load_element(tensor.exp_avg, state, entry));
            }
            Keys keys = keys_at(view, entry);
            u32 elements[2];
            u32 round = tensor.state_dtype == F32 ? 0 : random_round(keys, entry);
            step_moments(tensor.state_dtype, work.scalars, keys, round, g, m, v, elements[0], elements[1]);
            sample[i] = key_of(m);
            atomicAdd(&histogram[key_of(m) / WIDTH], 1u);
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) {
            if (histogram[i] != 0) {
                atomicAdd(&block.histogram[i], (u64)histogram[i]);
            }
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            room.is_last = atomicAdd(&block.gathers_done, 1u) + 1 == (u32)of_block;
        }
        __syncthreads();
        if (room.is_last) {
            __threadfence();
            bracket(step, block, tensor.block_numel, (double)work.rank / (double)tensor.block_numel, room);
        }
    }
}
