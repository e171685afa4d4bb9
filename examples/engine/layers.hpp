// The layers of a transformer, forward and backward. A row is one token; gradients of weights are added to, gradients
// of inputs written, unless a comment says otherwise.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "thread_pool.hpp"

namespace engine {

// out [rows, outputs] = in [rows, inputs] · weightᵀ + bias. weight is [outputs, inputs]; bias may be NULL.
struct Linear {
    std::size_t rows, inputs, outputs;

    void forward(ThreadPool &pool, float *out, const float *in, const float *weight, const float *bias) const;
    // d_bias may be NULL.
    void backward(ThreadPool &pool, float *d_in, float *d_weight, float *d_bias, const float *d_out, const float *in,
                  const float *weight) const;
};

// out = (in - mean) / sqrt(variance + 1e-5) · weight + bias, each row by itself.
struct LayerNorm {
    std::size_t rows, width;

    // `mean` and `scale` (1 / the root), one of each per row, are kept for the way back.
    void forward(ThreadPool &pool, float *out, float *mean, float *scale, const float *in, const float *weight,
                 const float *bias) const;
    // Adds to d_in: the residual stream goes around the norm.
    void backward(ThreadPool &pool, float *d_in, float *d_weight, float *d_bias, const float *d_out, const float *in,
                  const float *weight, const float *mean, const float *scale) const;
};

// Causal attention over qkv [sequences · length, 3, heads · head_width].
struct Attention {
    std::size_t sequences, length, heads, head_width;

    // `weights` [sequences, heads, length, length] are kept for the way back.
    void forward(ThreadPool &pool, float *out, float *weights, const float *qkv) const;
    void backward(ThreadPool &pool, float *d_qkv, const float *d_out, const float *weights, const float *qkv) const;
};

// x · sigmoid(1.702 x), which comes close to x · Φ(x) (Hendrycks and Gimpel, 2016).
void gelu(ThreadPool &pool, float *out, const float *in, std::size_t count);
// d_in and d_out may be the same.
void gelu_backward(ThreadPool &pool, float *d_in, const float *d_out, const float *in, std::size_t count);

// Turns logits [rows, classes] into probabilities and returns the mean of -ln(probability of the target).
double cross_entropy(ThreadPool &pool, float *logits, const std::vector<std::uint8_t> &targets, std::size_t classes);
// Turns these probabilities into the mean's gradient by the logits.
void cross_entropy_backward(ThreadPool &pool, float *probabilities, const std::vector<std::uint8_t> &targets,
                            std::size_t classes);

}  // namespace engine
