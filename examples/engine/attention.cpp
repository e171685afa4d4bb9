// Causal attention: a task for each head of each sequence, made of small matrix products.
// SPDX-License-Identifier: MIT OR Apache-2.0

#include <algorithm>
#include <cmath>

#include "layers.hpp"
#include "matmul.hpp"

namespace engine {

namespace {

// Where head `task % heads` of sequence `task / heads` begins.
struct Head {
    std::size_t stride, q, k, v, out, out_stride, weights;

    Head(const Attention &a, std::size_t task)
        : stride(3 * a.heads * a.head_width),
          q(task / a.heads * a.length * stride + task % a.heads * a.head_width),
          k(q + a.heads * a.head_width),
          v(k + a.heads * a.head_width),
          out(task / a.heads * a.length * a.heads * a.head_width + task % a.heads * a.head_width),
          out_stride(a.heads * a.head_width),
          weights(task * a.length * a.length) {}
};

// Row t looks at positions 0 to t.
void causal_softmax(float *weights, std::size_t length, float scale) {
    for (std::size_t t = 0; t < length; ++t) {
        float *row = weights + t * length;
        const float largest = *std::max_element(row, row + t + 1);
        float sum = 0.0F;
        for (std::size_t s = 0; s <= t; ++s) {
            row[s] = std::exp(scale * (row[s] - largest));
            sum += row[s];
        }
        for (std::size_t s = 0; s < length; ++s) {
            row[s] = s <= t ? row[s] / sum : 0.0F;
        }
    }
}

// From the gradient by the weights to that by the products of q and k, in place.
void causal_softmax_backward(float *d, const float *weights, std::size_t length, float scale) {
    for (std::size_t t = 0; t < length; ++t) {
        const float *row = weights + t * length;
        float mean = 0.0F;
        for (std::size_t s = 0; s <= t; ++s) {
            mean += row[s] * d[t * length + s];
        }
        for (std::size_t s = 0; s < length; ++s) {
            d[t * length + s] = s <= t ? scale * row[s] * (d[t * length + s] - mean) : 0.0F;
        }
    }
}

}  // namespace

void Attention::forward(ThreadPool &pool, float *out, float *weights, const float *qkv) const {
    const float scale = 1.0F / std::sqrt(static_cast<float>(head_width));
    // One allocation for all tasks, which must not throw.
    std::vector<float> scratch(sequences * heads * head_width * length);
    pool.run(static_cast<std::int64_t>(sequences * heads), [&](std::int64_t task) {
        const Head at(*this, static_cast<std::size_t>(task));
        float *const keys = scratch.data() + static_cast<std::size_t>(task) * head_width * length;
        float *const head_weights = weights + at.weights;
        transpose(keys, qkv + at.k, at.stride, length, head_width);
        multiply(head_weights, length, {qkv + at.q, at.stride, 1}, {keys, length}, {length, length, head_width},
                 Start::from_zero);
        causal_softmax(head_weights, length, scale);
        multiply(out + at.out, at.out_stride, {head_weights, length, 1}, {qkv + at.v, at.stride},
                 {length, head_width, length}, Start::from_zero);
    });
}

void Attention::backward(ThreadPool &pool, float *d_qkv, const float *d_out, const float *weights,
                         const float *qkv) const {
    const float scale = 1.0F / std::sqrt(static_cast<float>(head_width));
    const std::size_t scratch_of_a_task = (head_width + length) * length;
    std::vector<float> scratch(sequences * heads * scratch_of_a_task);
    pool.run(static_cast<std::int64_t>(sequences * heads), [&](std::int64_t task) {
        const Head at(*this, static_cast<std::size_t>(task));
        float *const values = scratch.data() + static_cast<std::size_t>(task) * scratch_of_a_task;
        float *const d_weights = values + head_width * length;
        const float *const head_weights = weights + at.weights;
        const Shape per_position = {length, head_width, length};

        transpose(values, qkv + at.v, at.stride, length, head_width);
        multiply(d_weights, length, {d_out + at.out, at.out_stride, 1}, {values, length},
                 {length, length, head_width}, Start::from_zero);
        multiply(d_qkv + at.v, at.stride, {head_weights, 1, length}, {d_out + at.out, at.out_stride}, per_position,
                 Start::from_zero);
        causal_softmax_backward(d_weights, head_weights, length, scale);
        multiply(d_qkv + at.q, at.stride, {d_weights, length, 1}, {qkv + at.k, at.stride}, per_position,
                 Start::from_zero);
        multiply(d_qkv + at.k, at.stride, {d_weights, 1, length}, {qkv + at.q, at.stride}, per_position,
                 Start::from_zero);
    });
}

}  // namespace engine
