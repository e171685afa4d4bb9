// SPDX-License-Identifier: MIT OR Apache-2.0

#include "layers.hpp"

#include <algorithm>
#include <cmath>

#include "matmul.hpp"

namespace engine {

namespace {

// Loops over rows, some of them a task. Rows do not depend on each other, so the threads change no bit.
template <class Body> void for_rows(ThreadPool &pool, std::size_t rows, const Body &body) {
    constexpr std::size_t rows_of_a_task = 16;
    pool.run(static_cast<std::int64_t>((rows + rows_of_a_task - 1) / rows_of_a_task), [&](std::int64_t task) {
        const std::size_t first = static_cast<std::size_t>(task) * rows_of_a_task;
        for (std::size_t i = first; i < std::min(first + rows_of_a_task, rows); ++i) {
            body(i);
        }
    });
}

float sigmoid(float x) { return 1.0F / (1.0F + std::exp(-x)); }

constexpr float gelu_slope = 1.702F;

}  // namespace

void Linear::forward(ThreadPool &pool, float *out, const float *in, const float *weight, const float *bias) const {
    std::vector<float> transposed(inputs * outputs);
    transpose(transposed.data(), weight, inputs, outputs, inputs);
    for (std::size_t i = 0; bias != nullptr && i < rows; ++i) {
        std::copy_n(bias, outputs, out + i * outputs);
    }
    multiply(pool, out, outputs, {in, inputs, 1}, {transposed.data(), outputs}, {rows, outputs, inputs},
             bias != nullptr ? Start::from_out : Start::from_zero);
}

void Linear::backward(ThreadPool &pool, float *d_in, float *d_weight, float *d_bias, const float *d_out,
                      const float *in, const float *weight) const {
    multiply(pool, d_in, inputs, {d_out, outputs, 1}, {weight, inputs}, {rows, inputs, outputs}, Start::from_zero);
    multiply(pool, d_weight, inputs, {d_out, 1, outputs}, {in, inputs}, {outputs, inputs, rows}, Start::from_out);
    for (std::size_t i = 0; d_bias != nullptr && i < rows; ++i) {
        for (std::size_t j = 0; j < outputs; ++j) {
            d_bias[j] += d_out[i * outputs + j];
        }
    }
}

void LayerNorm::forward(ThreadPool &pool, float *out, float *mean, float *scale, const float *in, const float *weight,
                        const float *bias) const {
    for_rows(pool, rows, [&](std::size_t i) {
        const float *x = in + i * width;
        float sum = 0.0F, squares = 0.0F;
        for (std::size_t j = 0; j < width; ++j) {
            sum += x[j];
        }
        mean[i] = sum / static_cast<float>(width);
        for (std::size_t j = 0; j < width; ++j) {
            squares += (x[j] - mean[i]) * (x[j] - mean[i]);
        }
        scale[i] = 1.0F / std::sqrt(squares / static_cast<float>(width) + 1e-5F);
        for (std::size_t j = 0; j < width; ++j) {
            out[i * width + j] = (x[j] - mean[i]) * scale[i] * weight[j] + bias[j];
        }
    });
}

void LayerNorm::backward(ThreadPool &pool, float *d_in, float *d_weight, float *d_bias, const float *d_out,
                         const float *in, const float *weight, const float *mean, const float *scale) const {
    for_rows(pool, rows, [&](std::size_t i) {
        const float *x = in + i * width, *d = d_out + i * width;
        float sum = 0.0F, product = 0.0F;
        for (std::size_t j = 0; j < width; ++j) {
            const float normal = (x[j] - mean[i]) * scale[i];
            sum += d[j] * weight[j];
            product += d[j] * weight[j] * normal;
        }
        sum /= static_cast<float>(width);
        product /= static_cast<float>(width);
        for (std::size_t j = 0; j < width; ++j) {
            const float normal = (x[j] - mean[i]) * scale[i];
            d_in[i * width + j] += scale[i] * (d[j] * weight[j] - sum - normal * product);
        }
    });
    // All rows add to the same numbers: on one thread, in one order.
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = 0; j < width; ++j) {
            const float d = d_out[i * width + j];
            d_weight[j] += d * (in[i * width + j] - mean[i]) * scale[i];
            d_bias[j] += d;
        }
    }
}

void gelu(ThreadPool &pool, float *out, const float *in, std::size_t count) {
    constexpr std::size_t row = 256;
    for_rows(pool, (count + row - 1) / row, [&](std::size_t i) {
        for (std::size_t j = i * row; j < std::min((i + 1) * row, count); ++j) {
            out[j] = in[j] * sigmoid(gelu_slope * in[j]);
        }
    });
}

void gelu_backward(ThreadPool &pool, float *d_in, const float *d_out, const float *in, std::size_t count) {
    constexpr std::size_t row = 256;
    for_rows(pool, (count + row - 1) / row, [&](std::size_t i) {
        for (std::size_t j = i * row; j < std::min((i + 1) * row, count); ++j) {
            const float s = sigmoid(gelu_slope * in[j]);
            d_in[j] = d_out[j] * (s + gelu_slope * in[j] * s * (1.0F - s));
        }
    });
}

double cross_entropy(ThreadPool &pool, float *logits, const std::vector<std::uint8_t> &targets, std::size_t classes) {
    std::vector<double> losses(targets.size());
    for_rows(pool, targets.size(), [&](std::size_t i) {
        float *row = logits + i * classes;
        const float largest = *std::max_element(row, row + classes);
        const double target = row[targets[i]] - largest;
        double sum = 0.0;
        for (std::size_t j = 0; j < classes; ++j) {
            row[j] = std::exp(row[j] - largest);
            sum += row[j];
        }
        for (std::size_t j = 0; j < classes; ++j) {
            row[j] = static_cast<float>(row[j] / sum);
        }
        losses[i] = std::log(sum) - target;
    });
    double loss = 0.0;
    for (const double row : losses) {
        loss += row;
    }
    return loss / static_cast<double>(targets.size());
}

void cross_entropy_backward(ThreadPool &pool, float *probabilities, const std::vector<std::uint8_t> &targets,
                            std::size_t classes) {
    const float share = 1.0F / static_cast<float>(targets.size());
    for_rows(pool, targets.size(), [&](std::size_t i) {
        float *row = probabilities + i * classes;
        row[targets[i]] -= 1.0F;
        for (std::size_t j = 0; j < classes; ++j) {
            row[j] *= share;
        }
    });
}

}  // namespace engine
