// The arithmetic of one entry, as src/rule defines it: docs/numerics.md. Compiled without fused multiply-add, flush to
// zero or approximate division and root, so that every operation is the IEEE one.
#pragma once

#include "layout.cuh"

constexpr u32 MAGNITUDE = 0x7FFFFFFF;
constexpr u32 INFINITE = 0x7F800000;
constexpr u32 SMALLEST_NORMAL = 0x00800000;
constexpr u32 F16_SMALLEST_NORMAL = 0x38800000;
constexpr u32 F16_REBIAS = 112u << 23;
constexpr u32 F16_INFINITE = 0x7C00;

__device__ __forceinline__ u32 bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float float_of(u32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ u32 magnitude(float x) { return bits_of(x) & MAGNITUDE; }

__device__ __forceinline__ float flush(float x) { return magnitude(x) < SMALLEST_NORMAL ? 0.0f : x; }

// The filters' sorting key: the magnitude, and 0 for what is not finite.
__device__ __forceinline__ u32 key_of(float x) {
    u32 bits = magnitude(x);
    return bits < INFINITE ? bits : 0;
}

__device__ __forceinline__ float update_of(float m, float v, const Scalars &c) { return m / (sqrtf(v) * c.r + c.e); }

__device__ __forceinline__ float moved(float p, float u, const Scalars &c) { return p * c.decay - c.a * u; }

// What `moved` came from, if nothing was lost on the way.
__device__ __forceinline__ float unmoved(float p, float u, const Scalars &c) { 
    // Dividing by 1 changes nothing, but takes time.
    float decayed = p + c.a * u;
    return c.decay == 1.0f ? decayed : decayed / c.decay;
}

__device__ __forceinline__ float f16_to_f32(u32 half) {
    u32 sign = (half & 0x8000) << 16, size = half & 0x7FFF;
    // The exponent is rebiased by an exact multiplication with 2^112, which also normalises subnormals.
    u32 wide = size < F16_INFINITE ? bits_of(float_of(size << 13) * float_of(0x77800000)) : size << 13 | INFINITE;
    return float_of(sign | wide);
}

__device__ __forceinline__ u32 f32_to_f16_nearest(float x) {
    u32 sign = bits_of(x) >> 16 & 0x8000, size = magnitude(x);
    u32 half;
    if (size > INFINITE) {
        half = (size >> 13 & 0x03FF) | 0x7E00;
    } else if (size < F16_SMALLEST_NORMAL) {
        // 0.5 has the unit of f16's subnormals: adding it rounds to their grid.
        half = bits_of(float_of(size) + 0.5f) - 0x3F000000;
    } else if (size < 0x47800000) {
        half = (size - F16_REBIAS + 0x0FFF + (size >> 13 & 1)) >> 13;
    } else {
        half = F16_INFINITE;
    }
    return sign | half;
}

__device__ __forceinline__ u32 f32_to_f16_stochastic(float x, u32 random) {
    u32 sign = bits_of(x) >> 16 & 0x8000, size = magnitude(x);
    random >>= 19;
    u32 half;
    if (size > INFINITE) {
        half = (size >> 13 & 0x03FF) | 0x7E00;
    } else if (size < F16_SMALLEST_NORMAL) {
        // Units of 2^-37: 13 bits below the grid of the subnormals.
        half = ((u32)(float_of(size) * float_of(0x52000000)) + random) >> 13;
    } else if (size < 0x47800000) {
        half = min((size - F16_REBIAS + random) >> 13, F16_INFINITE);
    } else {
        half = F16_INFINITE;
    }
    return sign | half;
}

__device__ __forceinline__ u32 f32_to_bf16_nearest(float x) {
    u32 bits = bits_of(x);
    if (magnitude(x) > INFINITE) {
        return bits >> 16 | 0x0040;
    }
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

__device__ __forceinline__ u32 f32_to_bf16_stochastic(float x, u32 random) {
    u32 bits = bits_of(x);
    if (magnitude(x) > INFINITE) {
        return bits >> 16 | 0x0040;
    }
    return (magnitude(x) == INFINITE ? bits : bits + (random >> 16)) >> 16;
}

__device__ __forceinline__ u32 size_of(u32 dtype) { return dtype == F32 ? 4 : 2; }

// An element, as it lies in memory, as a float, and back.
__device__ __forceinline__ float widen(u32 dtype, u32 element) {
    return dtype == F32 ? float_of(element) : dtype == BF16 ? float_of(element << 16) : f16_to_f32(element);
}

__device__ __forceinline__ u32 narrow_nearest(u32 dtype, float x) {
    return dtype == F32 ? bits_of(x) : dtype == BF16 ? f32_to_bf16_nearest(x) : f32_to_f16_nearest(x);
}

__device__ __forceinline__ u32 narrow_stochastic(u32 dtype, float x, u32 random) {
    return dtype == F32 ? bits_of(x)
           : dtype == BF16 ? f32_to_bf16_stochastic(x, random)
                           : f32_to_f16_stochastic(x, random);
}

__device__ __forceinline__ u64 mix64(u64 x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

// For the places of samples, on which no result depends.
__device__ __forceinline__ u32 mix32(u32 x) {
    x = (x ^ x >> 16) * 0x7FEB352D;
    x = (x ^ x >> 15) * 0x846CA68B;
    return x ^ x >> 16;
}

// The round of random bits that all streams share, and the others.
__device__ __forceinline__ u32 first_round(u32 x) {
    x = (x ^ x >> 17) * 0xED5AD4BB;
    return x ^ x >> 11;
}

__device__ __forceinline__ u32 other_rounds(u32 x) {
    x *= 0xAC4C1B51;
    x = (x ^ x >> 15) * 0x31848BAB;
    return x ^ x >> 16;
}

// The keys of the entries whose upper 32 index bits are `high`.
__device__ inline Keys keys_of(u64 random, u32 high) {
    u64 z = mix64(random ^ high);
    Keys keys;
    keys.first = (u32)z;
    keys.moments = (u32)(mix64(z ^ 0) << 2 | 0);
    keys.param = (u32)(mix64(z ^ 1) << 2 | 1);
    keys.filter = (u32)(mix64(z ^ 2) << 2 | 2);
    return keys;
}

// The round of an entry's random bits that all streams share, and the bits of one stream.
__device__ __forceinline__ u32 random_round(const Keys &keys, u64 entry) { return first_round((u32)entry ^ keys.first); }
__device__ __forceinline__ u32 random_bits(u32 round, u32 stream) { return other_rounds(round ^ stream); }

__device__ __forceinline__ float uniform(u32 bits) { return (float)(bits >> 8) * float_of(0x33800000); }

// β^t by binary powering from the low bit.
__device__ inline double power(double base, u64 exponent) {
    double result = 1.0, square = base;
    for (; exponent > 0; exponent >>= 1) {
        if (exponent & 1) {
            result *= square;
        }
        square *= square;
    }
    return result;
}
