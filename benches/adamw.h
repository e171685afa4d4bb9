/*
 * AdamW as a plain C loop, compiled twice: the yardstick of the small tensors in the benchmark.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef MOFO_BENCH_ADAMW_H
#define MOFO_BENCH_ADAMW_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct adamw_settings {
    double learning_rate;
    double beta1;
    double beta2;
    double epsilon;
    double weight_decay;
} adamw_settings;

/* One step of n entries; `step` counts from 1. Compiled with -O3 -march=native. */
void adamw_step_as_is(const adamw_settings *settings, int step, float *param, const float *grad, float *exp_avg,
                      float *exp_avg_sq, size_t n);

/* The same, compiled with -fno-math-errno besides: sqrtf then need not set errno, so the loop can be vectorised. */
void adamw_step_no_math_errno(const adamw_settings *settings, int step, float *param, const float *grad,
                              float *exp_avg, float *exp_avg_sq, size_t n);

#ifdef __cplusplus
}
#endif

#endif
