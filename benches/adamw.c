/*
 * AdamW as a plain C loop: the yardstick of small tensors.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include <math.h>
#include <stddef.h>

typedef struct adamw_settings {
    double learning_rate;
    double beta1;
    double beta2;
    double epsilon;
    double weight_decay;
} adamw_settings;

/* One step of n entries; `step` counts from 1. */
void adamw_step(const adamw_settings *settings, int step, float *restrict param, const float *restrict grad,
                float *restrict exp_avg, float *restrict exp_avg_sq, size_t n) {
    const float beta1 = (float)settings->beta1;
    const float beta2 = (float)settings->beta2;
    const float epsilon = (float)settings->epsilon;
    const float decay = (float)(1.0 - settings->learning_rate * settings->weight_decay);
    const float step_size = (float)(settings->learning_rate / (1.0 - pow(settings->beta1, step)));
    const float root_scale = (float)(1.0 / sqrt(1.0 - pow(settings->beta2, step)));

    for (size_t i = 0; i < n; i++) {
        const float m = beta1 * exp_avg[i] + (1.0f - beta1) * grad[i];
        const float v = beta2 * exp_avg_sq[i] + (1.0f - beta2) * grad[i] * grad[i];
        exp_avg[i] = m;
        exp_avg_sq[i] = v;
        param[i] = param[i] * decay - step_size * m / (sqrtf(v) * root_scale + epsilon);
    }
}
