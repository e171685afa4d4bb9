/* docs/numerics.md once more, in plain C and as slowly as it reads: an independent answer to what a step gives. */

#ifndef REFERENCE_H
#define REFERENCE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "mofo.h"

enum { REFERENCE_MOMENTS, REFERENCE_PARAM, REFERENCE_FILTER };

static inline uint32_t reference_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float reference_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t reference_mag(float x) { return reference_bits(x) & 0x7FFFFFFFu; }

static inline size_t reference_size(int32_t dtype) { return dtype == MOFO_DTYPE_F32 ? 4 : 2; }

static inline uint64_t reference_mix64(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static inline uint32_t reference_random(uint64_t seed, const char *name, uint64_t t, uint64_t stream,
                                        uint64_t entry) {
    uint64_t hash = 0xCBF29CE484222325u;
    uint64_t z;
    uint32_t x;
    for (; *name; name++) {
        hash = (hash ^ (unsigned char)*name) * 0x00000100000001B3u;
    }
    z = reference_mix64(reference_mix64(reference_mix64(seed) ^ hash) ^ t);
    z = reference_mix64(z ^ (entry >> 32));
    x = (uint32_t)entry ^ (uint32_t)z;
    x = (x ^ (x >> 17)) * 0xED5AD4BBu;
    x = x ^ (x >> 11) ^ (uint32_t)(reference_mix64(z ^ stream) << 2 | stream);
    x = x * 0xAC4C1B51u;
    x = (x ^ (x >> 15)) * 0x31848BABu;
    return x ^ (x >> 16);
}

static inline float reference_widen_f16(uint16_t h) {
    float sign = h & 0x8000u ? -1.0f : 1.0f;
    int exponent = (h >> 10) & 31;
    int fraction = h & 1023;
    if (exponent == 31) {
        return fraction ? reference_float(0x7FC00000u) : sign * INFINITY;
    }
    return sign * (exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24));
}

static inline float reference_load(int32_t dtype, const void *buffer, uint64_t i) {
    const unsigned char *bytes = (const unsigned char *)buffer + i * reference_size(dtype);
    float x;
    uint16_t h;
    if (dtype == MOFO_DTYPE_F32) {
        memcpy(&x, bytes, sizeof x);
        return x;
    }
    memcpy(&h, bytes, sizeof h);
    return dtype == MOFO_DTYPE_BF16 ? reference_float((uint32_t)h << 16) : reference_widen_f16(h);
}

static inline uint16_t reference_to_bf16(float x, int stochastic, uint32_t r) {
    uint32_t bits = reference_bits(x);
    if (isnan(x)) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    if (isinf(x)) {
        return (uint16_t)(bits >> 16);
    }
    return (uint16_t)((bits + (stochastic ? r >> 16 : 0x7FFFu + (bits >> 16 & 1u))) >> 16);
}

static inline uint16_t reference_to_f16(float x, int stochastic, uint32_t r) {
    uint32_t sign = reference_bits(x) >> 31 << 15;
    uint32_t mag = reference_mag(x);
    /* In units of 2^-13 steps of the target's grid: the normal one, or that of the subnormals, 2^-24. */
    uint64_t fine;
    uint64_t h;
    if (isnan(x)) {
        return (uint16_t)(sign | 0x7E00u);
    }
    if (isinf(x)) {
        return (uint16_t)(sign | 0x7C00u);
    }
    if (mag >= 0x38800000u) {
        fine = mag - 0x38000000u;
        h = stochastic ? (fine + (r >> 19)) >> 13 : (fine + 0xFFFu + (fine >> 13 & 1u)) >> 13;
    } else if (stochastic) {
        h = ((uint64_t)ldexp((double)fabsf(x), 37) + (r >> 19)) >> 13;
    } else {
        double steps = ldexp((double)fabsf(x), 24);
        double down = floor(steps);
        h = (uint64_t)down;
        if (steps - down > 0.5 || (steps - down == 0.5 && h % 2 == 1)) {
            h++;
        }
    }
    return (uint16_t)(sign | (h < 0x7C00u ? h : 0x7C00u));
}

static inline void reference_store(int32_t dtype, void *buffer, uint64_t i, float x, int stochastic, uint32_t r) {
    unsigned char *bytes = (unsigned char *)buffer + i * reference_size(dtype);
    uint16_t h;
    if (dtype == MOFO_DTYPE_F32) {
        memcpy(bytes, &x, sizeof x);
        return;
    }
    h = dtype == MOFO_DTYPE_BF16 ? reference_to_bf16(x, stochastic, r) : reference_to_f16(x, stochastic, r);
    memcpy(bytes, &h, sizeof h);
}

static inline float reference_flush(float x) { return reference_mag(x) < 0x00800000u ? 0.0f : x; }

static inline double reference_power(double base, uint64_t exponent) {
    double power = 1.0;
    for (; exponent; exponent >>= 1) {
        if (exponent & 1) {
            power *= base;
        }
        base *= base;
    }
    return power;
}

static inline int reference_descending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static inline double reference_fold(const double *values, uint64_t count) {
    double *level = malloc(sizeof *level * (size_t)(count ? count : 1));
    double result;
    memcpy(level, values, sizeof *level * (size_t)count);
    while (count > 1) {
        uint64_t chunks = (count + 4095) / 4096;
        uint64_t chunk;
        for (chunk = 0; chunk < chunks; chunk++) {
            double lanes[64] = {0};
            uint64_t i;
            uint64_t width;
            for (i = 0; i < 4096 && chunk * 4096 + i < count; i++) {
                lanes[i % 64] += level[chunk * 4096 + i];
            }
            for (width = 32; width > 0; width /= 2) {
                for (i = 0; i < width; i++) {
                    lanes[i] += lanes[i + width];
                }
            }
            level[chunk] = lanes[0];
        }
        count = chunks;
    }
    result = count ? level[0] : 0.0;
    free(level);
    return result;
}

/* The global norm of the gradients of these tensors; those without one are left out. */
static inline double reference_norm(const mofo_tensor *tensors, uint64_t count, double grad_scale) {
    double *sums = malloc(sizeof *sums * (size_t)(count ? count : 1));
    uint64_t with_grad = 0;
    uint64_t n;
    double norm;
    for (n = 0; n < count; n++) {
        const mofo_tensor *tensor = &tensors[n];
        double *squares;
        uint64_t i;
        if (tensor->grad == NULL) {
            continue;
        }
        squares = malloc(sizeof *squares * (size_t)tensor->numel);
        for (i = 0; i < tensor->numel; i++) {
            double g = (double)reference_load(tensor->grad_dtype, tensor->grad, i);
            squares[i] = g * g;
        }
        sums[with_grad++] = reference_fold(squares, tensor->numel);
        free(squares);
    }
    norm = fabs(grad_scale) * sqrt(reference_fold(sums, with_grad));
    free(sums);
    return norm;
}

/*
 * One step of one tensor, whose moments (and master, where it has one) are the caller's. `args` may be NULL.
 * `norm` is the global gradient norm, used only for clipping. Writes the thresholds, counts the step, and returns
 * how many entries were selected.
 */
static inline uint64_t reference_step(const mofo_options *options, const mofo_step_args *args, double norm,
                                      mofo_tensor *tensor, float *thresholds) {
/* The value of this call, else the optimizer's. */
#define REFERENCE_SETTING(name) (args != NULL && args->name != MOFO_INHERIT ? args->name : options->name)
    double alpha =
        tensor->update_fraction != MOFO_INHERIT ? tensor->update_fraction : REFERENCE_SETTING(update_fraction);
    double lambda = tensor->weight_decay != MOFO_INHERIT ? tensor->weight_decay : REFERENCE_SETTING(weight_decay);
    double rate = REFERENCE_SETTING(learning_rate) * tensor->learning_rate_scale;
    double beta1 = REFERENCE_SETTING(beta1);
    double beta2 = REFERENCE_SETTING(beta2);
    double clip = options->max_grad_norm > 0.0 ? fmin(1.0, options->max_grad_norm / (norm + 1e-6)) : 1.0;
    uint64_t t = tensor->step_count + 1;
    double correction1 = 1.0 - reference_power(beta1, t);
    double correction2 = 1.0 - reference_power(beta2, t);
    float s = (float)((args != NULL ? args->grad_scale : 1.0) * clip);
    float b1 = (float)beta1;
    float c1 = (float)(1.0 - beta1);
    float b2 = (float)beta2;
    float c2 = (float)(1.0 - beta2);
    float r = (float)(1.0 / sqrt(correction2));
    float e = (float)REFERENCE_SETTING(epsilon);
    float a = (float)(rate / correction1);
    float decay = (float)(1.0 - rate * lambda);
    int has_master = options->master_weights && tensor->param_dtype != MOFO_DTYPE_F32;
    int state_random = options->state_dtype != MOFO_DTYPE_F32;
    uint64_t block_numel = tensor->numel / tensor->num_blocks;
    double wanted = floor(alpha * (double)block_numel);
    uint64_t k = wanted < 1.0 ? 1 : wanted > (double)block_numel ? block_numel : (uint64_t)wanted;
    uint32_t *keys = malloc(sizeof *keys * (size_t)block_numel);
    uint32_t *sorted = malloc(sizeof *sorted * (size_t)block_numel);
    uint64_t selected = 0;
    uint64_t block;
    for (block = 0; block < tensor->num_blocks; block++) {
        uint32_t threshold;
        uint64_t j;
        for (j = 0; j < block_numel; j++) {
            uint64_t i = block * block_numel + j;
            float g = reference_load(tensor->grad_dtype, tensor->grad, i) * s;
            float m = t == 1 ? 0.0f : reference_load(options->state_dtype, tensor->exp_avg, i);
            float v = t == 1 ? 0.0f : reference_load(options->state_dtype, tensor->exp_avg_sq, i);
            float x;
            m = reference_flush(b1 * m + c1 * g);
            v = reference_flush(b2 * v + (c2 * g) * g);
            reference_store(options->state_dtype, tensor->exp_avg, i, m, state_random,
                            reference_random(options->seed, tensor->name, t, REFERENCE_MOMENTS, i));
            reference_store(options->state_dtype, tensor->exp_avg_sq, i, v, state_random,
                            reference_random(options->seed, tensor->name, t, REFERENCE_MOMENTS, i) << 16);
            m = reference_load(options->state_dtype, tensor->exp_avg, i);
            v = reference_load(options->state_dtype, tensor->exp_avg_sq, i);
            switch (options->filter) {
            case MOFO_FILTER_GRADIENT:
                x = g;
                break;
            case MOFO_FILTER_UPDATE:
                x = m / (sqrtf(v) * r + e);
                break;
            case MOFO_FILTER_RANDOM:
                x = ldexpf(
                    (float)(reference_random(options->seed, tensor->name, t, REFERENCE_FILTER, i) >> 8), -24);
                break;
            default:
                x = m;
            }
            keys[j] = isfinite(m) && isfinite(x) ? reference_mag(x) : 0;
        }
        memcpy(sorted, keys, sizeof *keys * (size_t)block_numel);
        qsort(sorted, (size_t)block_numel, sizeof *sorted, reference_descending);
        threshold = sorted[k - 1];
        thresholds[block] = alpha == 1.0 ? 0.0f : reference_float(threshold);
        for (j = 0; j < block_numel; j++) {
            uint64_t i = block * block_numel + j;
            float m = reference_load(options->state_dtype, tensor->exp_avg, i);
            float v = reference_load(options->state_dtype, tensor->exp_avg_sq, i);
            float p = has_master && t > 1 ? ((float *)tensor->master)[i]
                                          : reference_load(tensor->param_dtype, tensor->param, i);
            int moves = alpha == 1.0 ? isfinite(m) != 0 : keys[j] >= (threshold > 1 ? threshold : 1);
            int decays = moves || options->weight_decay_scope == MOFO_WEIGHT_DECAY_ALL;
            if (moves) {
                float u = m / (sqrtf(v) * r + e);
                p = p * decay - a * u;
                selected++;
            } else if (decays) {
                p = p * decay;
            }
            if (has_master) {
                ((float *)tensor->master)[i] = p;
                reference_store(tensor->param_dtype, tensor->param, i, p, 0, 0);
            } else if (decays) {
                reference_store(tensor->param_dtype, tensor->param, i, p,
                                options->rounding == MOFO_ROUNDING_STOCHASTIC,
                                reference_random(options->seed, tensor->name, t, REFERENCE_PARAM, i));
            }
        }
    }
    free(keys);
    free(sorted);
    tensor->step_count = t;
    return selected;
#undef REFERENCE_SETTING
}

#endif
