// Kernels that test the emulation of the device, and those that make the mistakes that it must find.

#define MOFO_KERNELS(X)                                                                                      \
    X(test_index)                                                                                            \
    X(test_barrier)                                                                                          \
    X(test_vote)                                                                                             \
    X(test_shuffle)                                                                                          \
    X(test_part_of_warp)                                                                                     \
    X(test_leave_early)                                                                                      \
    X(test_last_block)                                                                                       \
    X(test_atomic)                                                                                           \
    X(test_order)                                                                                            \
    X(test_roll_back)                                                                                        \
    X(test_vector)                                                                                           \
    X(test_number)                                                                                           \
    X(test_add)                                                                                              \
    X(test_combine)                                                                                          \
    X(test_mistake)

struct Out {
    unsigned *out;
};

struct Numbered {
    unsigned *out;
    unsigned number;
};

__device__ __forceinline__ unsigned linear(uint3 at, dim3 size) { return at.x + size.x * (at.y + size.y * at.z); }

// Every thread of every block once.
extern "C" __global__ void test_index(const Out a) {
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    const unsigned at = linear(blockIdx, gridDim) * threads + linear(threadIdx, blockDim);
    a.out[at] = threadIdx.x + 100 * threadIdx.y + 10000 * threadIdx.z +
                1000000 * (blockIdx.x + blockIdx.y + blockIdx.z);
}

// A sum over the block, again and again; out[0] is nonzero if shared memory was not spoiled.
extern "C" __global__ void __launch_bounds__(512) test_barrier(const Numbered a) {
    __shared__ unsigned sums[512];
    const unsigned i = threadIdx.x;
    const unsigned before = sums[i];
    const int clean = __syncthreads_or(before != 0xCDCDCDCDu);
    unsigned total = 0;
    for (unsigned round = 0; round < a.number; round++) {
        sums[i] = i + round;
        __syncthreads();
        for (unsigned stride = blockDim.x / 2; stride != 0; stride /= 2) {
            if (i < stride) {
                sums[i] += sums[i + stride];
            }
            __syncthreads();
        }
        total += sums[0];
        __syncthreads();
    }
    if (i == 0) {
        a.out[2 * blockIdx.x] = static_cast<unsigned>(clean);
        a.out[2 * blockIdx.x + 1] = total;
    }
}

extern "C" __global__ void test_vote(const Out a) {
    const unsigned i = threadIdx.x;
    unsigned *out = a.out + 8 * i;
    out[0] = __ballot_sync(0xFFFFFFFFu, i % 3 == 0);
    out[1] = static_cast<unsigned>(__any_sync(0xFFFFFFFFu, i == 40));
    out[2] = static_cast<unsigned>(__all_sync(0xFFFFFFFFu, i < 40));
    out[3] = static_cast<unsigned>(__syncthreads_count(i % 2 == 0));
    out[4] = static_cast<unsigned>(__syncthreads_or(i == 63));
    out[5] = static_cast<unsigned>(__syncthreads_and(i != 63));
    out[6] = __match_any_sync(0xFFFFFFFFu, i % 4);
    __syncwarp();
    out[7] = static_cast<unsigned>(__popc(out[0]));
}

// All shuffles of a width that is the block's number's power of two.
extern "C" __global__ void test_shuffle(const Out a) {
    const unsigned all = 0xFFFFFFFFu;
    const int width = 1 << blockIdx.x;
    const unsigned i = threadIdx.x;
    unsigned *out = a.out + (blockIdx.x * blockDim.x + i) * 8;
    out[0] = __shfl_sync(all, i, 5, width);
    out[1] = __shfl_sync(all, i, static_cast<int>(i + 1), width);
    out[2] = __shfl_up_sync(all, i, 3, width);
    out[3] = __shfl_down_sync(all, i, 3, width);
    out[4] = __shfl_xor_sync(all, i, 6, width);
    const unsigned long long wide = __shfl_down_sync(all, (1ull << 40) + i, 1, width);
    out[5] = static_cast<unsigned>(wide >> 32);
    out[6] = static_cast<unsigned>(wide);
    out[7] = static_cast<unsigned>(__shfl_xor_sync(all, 0.5 * i, 1, width) * 2.0);
}

// Two halves of a warp, each with operations of its own.
extern "C" __global__ void test_part_of_warp(const Out a) {
    unsigned x = threadIdx.x;
    if (x % 2 == 0) {
        for (int i = 0; i < 3; i++) {
            x = __shfl_xor_sync(0x55555555u, x, 2);
        }
        x += __ballot_sync(0x55555555u, 1);
    } else {
        x = __shfl_xor_sync(0xAAAAAAAAu, x, 4);
    }
    __syncwarp();
    a.out[threadIdx.x] = x;
}

// Threads that have ended are not waited for, whether they end before others wait or after.
extern "C" __global__ void test_leave_early(const Numbered a) {
    __shared__ unsigned count;
    if (threadIdx.x == 0) {
        count = 0;
    }
    __syncthreads();
    if (threadIdx.x % a.number != 0) {
        return;
    }
    atomicAdd(&count, 1u);
    __syncthreads();
    if (threadIdx.x == 0) {
        a.out[blockIdx.x] = count;
    }
}

// The block that ends last finds what all have written.
extern "C" __global__ void test_last_block(const Out a) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        a.out[2 + blockIdx.x] = blockIdx.x + 1;
        __threadfence();
        last = atomicAdd(&a.out[0], 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        for (unsigned i = 0; i < gridDim.x; i++) {
            a.out[1] += a.out[2 + i];
        }
    }
}

struct Atomics {
    unsigned *words;
    unsigned long long *longs;
    float *floats;
    double *doubles;
    int *ints;
};

extern "C" __global__ void test_atomic(const Atomics a) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&a.words[0], i);
    atomicMax(&a.words[1], i);
    atomicMin(&a.words[2], i);
    atomicOr(&a.words[3], 1u << i % 32);
    atomicAnd(&a.words[4], ~(1u << i % 16));
    atomicExch(&a.words[5], 7u);
    for (;;) {
        const unsigned old = a.words[6];
        if (atomicCAS(&a.words[6], old, old + 2) == old) {
            break;
        }
    }
    atomicAdd(&a.longs[0], 1ull << 33);
    atomicMax(&a.longs[1], 1ull << i % 60);
    atomicAdd(&a.floats[0], 0.5f);
    atomicAdd(&a.doubles[0], 0.25);
    atomicAdd(&a.ints[0], -1);
    atomicMin(&a.ints[1], -static_cast<int>(i));
}

// The order in which the first lanes of all warps pass some warp operations; out[0] counts.
extern "C" __global__ void test_order(const Numbered a) {
    const unsigned warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    for (unsigned i = 0; i < a.number; i++) {
        if (threadIdx.x % 32 == 0) {
            a.out[1 + warp * a.number + i] = atomicAdd(&a.out[0], 1u);
        }
        __syncwarp();
    }
}

// How often a thread finds what another one has not taken back yet.
extern "C" __global__ void test_roll_back(const Out a) {
    if (atomicAdd(&a.out[0], 1u) != 0) {
        a.out[1]++;
    }
    atomicSub(&a.out[0], 1u);
}

struct Vectors {
    const uint4 *from;
    uint4 *to;
};

extern "C" __global__ void test_vector(const Vectors a) {
    const uint4 x = __ldg(&a.from[threadIdx.x]);
    __stcs(&a.to[threadIdx.x], make_uint4(x.w, x.z, x.y, x.x));
}

extern "C" __global__ void test_number(const Out a) {
    unsigned *out = a.out;
    // A subnormal number, whatever mode the caller is in.
    volatile float tiny = __uint_as_float(3);
    out[0] = __float_as_uint(tiny * 1.0f);
    out[1] = __float_as_uint(__fadd_rn(tiny, tiny));
    out[2] = static_cast<unsigned>(__clz(1) + 100 * __clz(0) + 10000 * __clzll(1ll << 32));
    out[3] = static_cast<unsigned>(__ffs(8) + 100 * __ffsll(1ll << 40) + 10000 * __popcll(~0ull));
    out[4] = __brev(1);
    out[5] = __umulhi(0x80000000u, 6);
    out[6] = static_cast<unsigned>(__umul64hi(1ull << 63, 6));
    out[7] = __float_as_uint(sqrtf(2.0f));
    // The product is rounded before the sum.
    volatile float x = 1.0f + 0x1p-12f;
    out[8] = __float_as_uint(x * x - 1.0f);
    out[9] = min(3u, 7u) + static_cast<unsigned>(max(2, 5)) * 10;
    out[10] = __float_as_uint(fmaxf(min(1.0f, NAN), 0.5f));
    out[11] = static_cast<unsigned>(__double_as_longlong(1.0) >> 32);
}

struct Add {
    unsigned *out;
    unsigned count;
    unsigned addend;
};

extern "C" __global__ void test_add(const Add a) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.count) {
        a.out[i] += a.addend;
    }
}

struct Combine {
    unsigned *out;
    const unsigned *x;
    const unsigned *y;
    unsigned count;
};

// Not commutative with `add`.
extern "C" __global__ void test_combine(const Combine a) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.count) {
        a.out[i] = 3 * a.x[i] + a.y[i];
    }
}

// Each number is another mistake.
extern "C" __global__ void test_mistake(const Numbered a) {
    __shared__ unsigned words[64];
    const unsigned i = threadIdx.x;
    words[i] = i;
    switch (a.number) {
    case 0: // A barrier that half of the threads wait at, and a warp operation that the others do.
        if (i < 32) {
            __syncthreads();
        } else {
            __shfl_sync(i == 32 ? 0xFFFFFFFFu : 1u << i % 32, i, static_cast<int>(i));
        }
        break;
    case 1: // Two barriers.
        if (i < 32) {
            __syncthreads();
        } else {
            __syncthreads();
        }
        break;
    case 2: // A mask without the lane.
        __syncwarp(0xFFFFFFFEu);
        break;
    case 3: // A mask with lanes that have ended.
        if (i % 2 == 0) {
            __syncwarp(0x55555555u);
            __ballot_sync(0xFFFFFFFFu, 1);
        }
        break;
    case 4: // A lane that the mask does not name.
        if (i % 2 == 0) {
            a.out[i] = __shfl_sync(0x55555555u, i, 1);
        }
        break;
    case 5: // A width that is no power of two.
        a.out[i] = __shfl_sync(0xFFFFFFFFu, i, 1, 12);
        break;
    case 6: // Operations of two kinds.
        if (i % 2 == 0) {
            __any_sync(0xFFFFFFFFu, 1);
        } else {
            __all_sync(0xFFFFFFFFu, 1);
        }
        break;
    case 7:
        __trap();
        break;
    case 8: { // An address that is not a multiple of 16.
        const uint4 *p = reinterpret_cast<const uint4 *>(a.out + i + 1);
        a.out[0] = p->x;
        break;
    }
    case 9: // Past the end of device memory.
        a.out[512] = i;
        break;
    case 10: // Past the end of shared memory; AddressSanitizer's to find.
        if (i == 0) {
            a.out[0] = *(&words[0] + blockDim.x);
        }
        break;
    default:
        break;
    }
}
