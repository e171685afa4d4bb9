// Matrix products in f32: one loop, which all others of the model are made of.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <cstddef>

#include "thread_pool.hpp"

namespace engine {

// A matrix whose entry (i, k) is data[i * row + k * column]; a transposed one has the strides exchanged.
struct Strided {
    const float *data;
    std::size_t row, column;
};

// Rows one behind the other, `stride` floats apart.
struct Rows {
    const float *data;
    std::size_t stride;
};

struct Shape {
    std::size_t rows, columns, inner;
};

// out = a · b on the calling thread, or out += a · b. `out` is [rows, columns] with rows `out_stride` apart, `a` is
// [rows, inner], `b` is [inner, columns]. Every entry is summed in ascending order of `inner`, whoever computes it.
enum class Start { from_zero, from_out };
void multiply(float *out, std::size_t out_stride, Strided a, Rows b, Shape shape, Start start);

// The same, with the rows shared out among the threads.
void multiply(ThreadPool &pool, float *out, std::size_t out_stride, Strided a, Rows b, Shape shape, Start start);

// out [columns, rows] = in [rows, columns] transposed, with rows of `in` `in_stride` apart.
void transpose(float *out, const float *in, std::size_t in_stride, std::size_t rows, std::size_t columns);

}  // namespace engine
