// The small kernels around a step: who takes part, the scalars, what the estimates came to, and the report.
#include "cut.cuh"

// Binds buffers.
extern "C" __global__ void mofo_bind(const Bind bind) {
    for (u64 i = threadIdx.x; i < bind.count; i += blockDim.x) {
        Tensor &tensor = bind.tensors[bind.first + i / 2];
        if (i % 2 == 0) {
            tensor.param = (void *)bind.pointers[i];
        } else {
            tensor.grad = (const void *)bind.pointers[i];
        }
    }
}

__device__ __forceinline__ bool is_all(double update_fraction) { return update_fraction == 1.0; }

__device__ __forceinline__ double fraction_of(const Step &step, const Tensor &tensor) {
    return tensor.update_fraction < 0.0 ? step.update_fraction : tensor.update_fraction;
}

__device__ __forceinline__ bool is_finite(double x) { return fabs(x) <= 1.7976931348623157e308; }
__device__ __forceinline__ bool is_finite(float x) { return magnitude(x) < INFINITE; }

// The hyper-parameters of a step, for tensors that have none of their own.
struct Hyper {
    double learning_rate, beta1, beta2, epsilon, weight_decay;
};

__device__ __forceinline__ double value_of(const double *on_device, double value) { return on_device ? *on_device : value; }

__device__ inline Hyper hyper_of(const Step &step) {
    Hyper hyper;
    hyper.learning_rate = value_of(step.device_learning_rate, step.learning_rate);
    hyper.beta1 = value_of(step.device_beta1, step.beta1);
    hyper.beta2 = value_of(step.device_beta2, step.beta2);
    hyper.epsilon = value_of(step.device_epsilon, step.epsilon);
    hyper.weight_decay = value_of(step.device_weight_decay, step.weight_decay);
    return hyper;
}

__device__ __forceinline__ bool is_at_least_zero(double x) { return is_finite(x) && x >= 0.0; }
__device__ __forceinline__ bool is_beta(double x) { return x >= 0.0 && x < 1.0; }

// Values of the host's are in their ranges; those on the device may not be.
__device__ inline bool is_in_range(const Hyper &hyper) {
    return is_at_least_zero(hyper.learning_rate) && is_beta(hyper.beta1) && is_beta(hyper.beta2) &&
           is_at_least_zero(hyper.epsilon) && is_at_least_zero(hyper.weight_decay);
}

// The scalars of a tensor's next step; false if one is not finite.
__device__ inline bool scalars_of(const Hyper &hyper, const Tensor &tensor, Scalars &c) {
    u64 t = tensor.step_count + 1;
    double rate = hyper.learning_rate * tensor.learning_rate_scale;
    double decay = tensor.weight_decay < 0.0 ? hyper.weight_decay : tensor.weight_decay;
    c.s = 1.0f;
    c.b1 = (float)hyper.beta1;
    c.c1 = (float)(1.0 - hyper.beta1);
    c.b2 = (float)hyper.beta2;
    c.c2 = (float)(1.0 - hyper.beta2);
    c.r = (float)(1.0 / sqrt(1.0 - power(hyper.beta2, t)));
    c.e = (float)hyper.epsilon;
    c.a = (float)(rate / (1.0 - power(hyper.beta1, t)));
    c.decay = (float)(1.0 - rate * decay);
    return is_finite(c.r) && is_finite(c.e) && is_finite(c.a) && is_finite(c.decay);
}

__device__ __forceinline__ bool is_aligned(const Tensor &tensor) {
    u64 all = (u64)tensor.param | (u64)tensor.grad | (u64)tensor.exp_avg | (u64)tensor.exp_avg_sq | (u64)tensor.master;
    return all % 16 == 0;
}

// The gradient norm, and whether the step goes on with it; s.
__device__ inline float judge_gradients(const Step &step, double sum, int &status, double &norm) {
    bool known = !(step.grad_norm == -1.0);
    norm = step.needs_sum ? fabs(step.grad_scale) * sqrt(sum) : step.grad_norm;
    bool finite = step.needs_sum ? is_finite(sum) : !known || is_finite(norm);
    if (step.skip_nonfinite && !finite) {
        status = SKIPPED;
        return 0.0f;
    }
    double clip = 1.0;
    if (step.max_grad_norm != 0.0 && (known || step.needs_sum)) {
        double ratio = step.max_grad_norm / (norm + 1e-6);
        clip = ratio > 1.0 ? 1.0 : ratio;
    }
    float s = (float)(step.grad_scale * clip);
    status = is_finite(s) ? OK : NOT_FINITE;
    return s;
}

struct PrepareRoom {
    double lanes[THREADS_OF_ONE];
    u64 prefixes[32];
    float s;
    int status;
};

// Decides whether the step is taken, and what it does to each tensor; counts the work. By one block of threads.
__device__ void prepare(const Step &step, PrepareRoom &room) {
    Control &control = *step.control;
    double sum = step.needs_sum ? fold(step.sums, control.num_sums, room.lanes) : 0.0;
    Hyper hyper = hyper_of(step);
    bool usable = is_in_range(hyper), countable = true;
    if (!step.only_norm) {
        for (u64 i = threadIdx.x; i < step.num_tensors; i += blockDim.x) {
            Work &work = step.works[i];
            if (work.participates) {
                const Tensor &tensor = step.tensors[i];
                countable &= tensor.step_count < 0x7FFFFFFFFFFFFFFFull;
                usable &= scalars_of(hyper, tensor, work.scalars);
            }
        }
    }
    bool all_usable = __syncthreads_and(usable), all_countable = __syncthreads_and(countable);
    if (threadIdx.x == 0) {
        double norm;
        room.s = judge_gradients(step, sum, room.status, norm);
        if (!all_countable) {
            room.status = INVALID_ARGUMENT;
        } else if (!all_usable) {
            room.status = NOT_FINITE;
        }
        control.grad_norm = norm;
        control.status = room.status;
        control.stop = room.status != OK || step.only_norm;
    }
    __syncthreads();
    if (room.status != OK || step.only_norm) {
        return;
    }

    u64 totals[3] = {0, 0, 0};
    for (u64 from = 0; from < step.num_tensors; from += blockDim.x) {
        u64 i = from + threadIdx.x;
        u64 strips = 0, runs = 0, gathers = 0;
        if (i < step.num_tensors && step.works[i].participates) {
            Work &work = step.works[i];
            Tensor &tensor = step.tensors[i];
            work.scalars.s = room.s;
            u64 t = tensor.step_count + 1;
            double fraction = fraction_of(step, tensor);
            u64 rank = (u64)floor(fraction * (double)tensor.block_numel);
            work.rank = min(max(rank, 1ull), tensor.block_numel);
            work.random = mix64(mix64(mix64(step.seed) ^ tensor.name_hash) ^ t);
            work.keys = keys_of(work.random, 0);
            work.starts_moments = t == 1;
            work.starts_master = tensor.master && (t == 1 || !tensor.master_started);
            work.aligned = is_aligned(tensor);
            // An entry that decays without moving would have two possible values.
            bool decays_all = step.scope == SCOPE_ALL && work.scalars.decay != 1.0f;
            if (is_all(fraction)) {
                work.mode = EVERYTHING;
            } else if (!tensor.is_large) {
                work.mode = WHOLE;
            } else if (step.filter == MOMENTUM && !decays_all && tensor.blocks->lines > 0) {
                work.mode = ESTIMATED;
                gathers = tensor.numel / tensor.block_numel * gathers_of(*tensor.blocks);
            } else {
                work.mode = SEARCHED;
            }
            if (work.mode == WHOLE) {
                runs = runs_of(tensor);
            } else if (tensor.numel > 0) {
                strips = strips_of(tensor, work);
            }
            tensor.step_count = t;
            tensor.master_started = 1;
        }
        u64 total, before;
        before = team_prefix(strips, room.prefixes, total) + totals[0];
        if (i < step.num_tensors) {
            step.works[i].first_strip = before;
        }
        totals[0] += total;
        before = team_prefix(runs, room.prefixes, total) + totals[1];
        if (i < step.num_tensors) {
            step.works[i].first_run = before;
        }
        totals[1] += total;
        before = team_prefix(gathers, room.prefixes, total) + totals[2];
        if (i < step.num_tensors) {
            step.works[i].first_gather = before;
        }
        totals[2] += total;
    }
    if (threadIdx.x == 0) {
        control.strips = totals[0];
        control.runs = totals[1];
        control.gathers = totals[2];
    }
    __syncthreads();
    for (u64 i = threadIdx.x; i < step.num_blocks; i += blockDim.x) {
        Block &block = *step.blocks[i];
        const Work &work = step.works[block.tensor];
        block.active = work.participates && (work.mode == ESTIMATED || work.mode == SEARCHED);
        block.failed = 0;
        block.taken = 0;
        block.above = 0;
        block.open = 0;
        block.strips_held = 0;
        block.gathers_done = 0;
        block.slices_done = 0;
        block.prefix = 0;
        block.rank = work.rank;
    }
}

// Marks the tensors that take part; in its last launch also counts the work of the norm or, where none is needed,
// prepares the step.
extern "C" __global__ __launch_bounds__(THREADS_OF_ONE) void mofo_begin(const Begin begin) {
    __shared__ PrepareRoom room;
    const Step &step = begin.step;
    u64 end = begin.listed ? min(step.num_tensors, begin.first + LISTED_AT_ONCE) : step.num_tensors;
    for (u64 i = begin.first + threadIdx.x; i < end; i += blockDim.x) {
        const Tensor &tensor = step.tensors[i];
        u64 place = i - begin.first;
        bool listed = !begin.listed || (begin.mask[place / 32] >> place % 32 & 1);
        step.works[i].participates = listed && tensor.exists && tensor.grad;
    }
    if (!begin.is_last) {
        return;
    }
    __syncthreads();
    u64 chunks = 0, participants = 0, num_sums = 0, entries = 0;
    for (u64 from = 0; from < step.num_tensors; from += blockDim.x) {
        u64 i = from + threadIdx.x;
        bool takes_part = i < step.num_tensors && step.works[i].participates;
        u64 numel = takes_part ? step.tensors[i].numel : 0, total;
        u64 first_chunk = team_prefix(takes_part ? chunks_of(numel) : 0ull, room.prefixes, total) + chunks;
        chunks += total;
        // A tensor without entries has no sum.
        u64 position = team_prefix(numel > 0 ? 1ull : 0ull, room.prefixes, total) + num_sums;
        num_sums += total;
        team_prefix(takes_part ? 1ull : 0ull, room.prefixes, total);
        participants += total;
        team_prefix(numel, room.prefixes, total);
        entries += total;
        if (i < step.num_tensors) {
            step.works[i].first_chunk = first_chunk;
            step.works[i].position = position;
            step.works[i].chunks_done = 0;
        }
    }
    if (threadIdx.x == 0) {
        Control &control = *step.control;
        control.chunks = chunks;
        control.participants = participants;
        control.num_sums = num_sums;
        control.entries = entries;
        control.strips = control.runs = control.gathers = control.slices = 0;
        control.selected = control.nonfinite = control.estimated = control.failed = 0;
        control.grad_norm = -1.0;
        control.stop = 0;
        control.status = OK;
    }
    __syncthreads();
    if (!step.needs_sum) {
        prepare(step, room);
    }
}

// As the end of `mofo_begin`, once the gradients are summed.
extern "C" __global__ __launch_bounds__(THREADS_OF_ONE) void mofo_prepare(const Step step) {
    __shared__ PrepareRoom room;
    prepare(step, room);
}

// Sees what the pass over large blocks has left to do: a settling of notes, or a search through a whole block.
extern "C" __global__ __launch_bounds__(THREADS_OF_ONE) void mofo_plan(const Step step) {
    __shared__ u64 room[32];
    Control &control = *step.control;
    if (control.stop) {
        return;
    }
    u64 slices = 0, estimated = 0, failed = 0;
    for (u64 from = 0; from < step.num_blocks; from += blockDim.x) {
        u64 i = from + threadIdx.x;
        u64 own = 0;
        bool is_estimated = false, is_failed = false;
        if (i < step.num_blocks && step.blocks[i]->active) {
            Block &block = *step.blocks[i];
            const Work &work = step.works[block.tensor];
            u64 slices_of_notes = ((block.taken & 0xFFFFFFFF) + SLICE - 1) / SLICE;
            is_estimated = work.mode == ESTIMATED;
            bool found = is_estimated && block.strips_held == 0 && block.above < work.rank &&
                         work.rank <= block.above + block.open;
            // Keys of 0 are not noted: if they are all that is missing, the threshold is 0, and all notes move.
            block.is_zero =
                is_estimated && block.strips_held == 0 && block.low == 0 && work.rank > block.above + block.open;
            is_failed = is_estimated && !found && !block.is_zero;
            if (block.is_zero) {
                step.tensors[block.tensor].thresholds[block.index] = 0;
                block.rank = block.open;
                own = block.open > 0 ? slices_of_notes : 0;
                if (own == 0) {
                    atomicAdd(&control.selected, block.above);
                }
            } else if (found) {
                block.rank = work.rank - block.above;
                own = slices_of_notes;
            } else {
                block.failed = 1;
                own = pieces_of(step.tensors[block.tensor].block_numel, TILE);
            }
        }
        u64 total;
        u64 first = team_prefix(own, room, total) + slices;
        slices += total;
        team_prefix(is_estimated ? 1ull : 0ull, room, total);
        estimated += total;
        team_prefix(is_failed ? 1ull : 0ull, room, total);
        failed += total;
        if (i < step.num_blocks) {
            step.blocks[i]->first_slice = first;
            step.blocks[i]->slices = own;
        }
    }
    if (threadIdx.x == 0) {
        control.slices = slices;
        control.estimated = estimated;
        control.failed = failed;
    }
}

__device__ inline void write_report(const Step &step) {
    const Control &control = *step.control;
    Report report;
    report.grad_norm = control.grad_norm;
    report.entries = control.entries;
    report.entries_selected = control.selected;
    report.skipped = control.status == SKIPPED;
    report.status = control.status;
    report.blocks_estimated = control.estimated;
    report.estimates_failed = control.failed;
    report.tensors = control.participants;
    report.entries_nonfinite = control.nonfinite;
    const u8 *from = (const u8 *)&report;
    for (u64 i = 0; i < step.report_size; i++) {
        step.report[i] = i < sizeof(report) ? from[i] : 0;
    }
}

// Restores what a failed estimate has moved and could not be computed back, and writes the report.
extern "C" __global__ __launch_bounds__(THREADS) void mofo_finish(const Step step) {
    const Control &control = *step.control;
    if (blockIdx.x == 0 && threadIdx.x == 0 && step.report) {
        write_report(step);
    }
    if (control.stop || control.failed == 0) {
        return;
    }
    for (u64 i = blockIdx.x; i < step.num_blocks; i += gridDim.x) {
        const Block &block = *step.blocks[i];
        const Tensor &tensor = step.tensors[block.tensor];
        const Work &work = step.works[block.tensor];
        if (!block.active || !block.failed || work.mode != ESTIMATED) {
            continue;
        }
        u32 threshold = max(tensor.thresholds[block.index], 1u);
        Records view(tensor, work);
        Target target = target_of(view, step.rounding);
        const u32 *keys = block.notes, *entries = keys + block.capacity;
        for (u64 lost = threadIdx.x; lost < block.taken >> 32; lost += blockDim.x) {
            u64 place = block.capacity - 1 - lost;
            u64 entry = block.index * tensor.block_numel + entries[place];
            u32 old = keys[place];
            if (stored_key(view, step.filter, entry) < threshold) {
                store_element(target.base, size_of(target.dtype), entry, old);
                if (tensor.master) {
                    u32 half = narrow_nearest(tensor.param_dtype, float_of(old));
                    store_element(tensor.param, size_of(tensor.param_dtype), entry, half);
                }
            }
        }
    }
}
