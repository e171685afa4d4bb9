// SPDX-License-Identifier: MIT OR Apache-2.0

#include "matmul.hpp"

#include <algorithm>

namespace engine {

namespace {

// Sums that fit in the registers of any processor with vectors.
constexpr std::size_t tile_rows = 4, tile_columns = 8;

void full_tile(float *out, std::size_t out_stride, Strided a, Rows b, std::size_t inner) {
    float sums[tile_rows][tile_columns];
    for (std::size_t i = 0; i < tile_rows; ++i) {
        std::copy_n(out + i * out_stride, tile_columns, sums[i]);
    }
    for (std::size_t k = 0; k < inner; ++k) {
        const float *right = b.data + k * b.stride;
        for (std::size_t i = 0; i < tile_rows; ++i) {
            const float left = a.data[i * a.row + k * a.column];
            for (std::size_t j = 0; j < tile_columns; ++j) {
                sums[i][j] += left * right[j];
            }
        }
    }
    for (std::size_t i = 0; i < tile_rows; ++i) {
        std::copy_n(sums[i], tile_columns, out + i * out_stride);
    }
}

void part_of_a_tile(float *out, std::size_t out_stride, Strided a, Rows b, Shape shape) {
    for (std::size_t i = 0; i < shape.rows; ++i) {
        for (std::size_t k = 0; k < shape.inner; ++k) {
            const float left = a.data[i * a.row + k * a.column];
            for (std::size_t j = 0; j < shape.columns; ++j) {
                out[i * out_stride + j] += left * b.data[k * b.stride + j];
            }
        }
    }
}

}  // namespace

void multiply(float *out, std::size_t out_stride, Strided a, Rows b, Shape shape, Start start) {
    if (start == Start::from_zero) {
        for (std::size_t i = 0; i < shape.rows; ++i) {
            std::fill_n(out + i * out_stride, shape.columns, 0.0F);
        }
    }
    // Columns outside: that part of `b` stays in the cache while the rows pass.
    for (std::size_t j = 0; j < shape.columns; j += tile_columns) {
        for (std::size_t i = 0; i < shape.rows; i += tile_rows) {
            const Shape tile = {std::min(tile_rows, shape.rows - i), std::min(tile_columns, shape.columns - j),
                                shape.inner};
            float *const to = out + i * out_stride + j;
            const Strided left = {a.data + i * a.row, a.row, a.column};
            const Rows right = {b.data + j, b.stride};
            if (tile.rows == tile_rows && tile.columns == tile_columns) {
                full_tile(to, out_stride, left, right, shape.inner);
            } else {
                part_of_a_tile(to, out_stride, left, right, tile);
            }
        }
    }
}

void multiply(ThreadPool &pool, float *out, std::size_t out_stride, Strided a, Rows b, Shape shape, Start start) {
    constexpr std::size_t rows_of_a_task = 4 * tile_rows;
    const std::size_t tasks = (shape.rows + rows_of_a_task - 1) / rows_of_a_task;
    pool.run(static_cast<std::int64_t>(tasks), [&](std::int64_t task) {
        const std::size_t first = static_cast<std::size_t>(task) * rows_of_a_task;
        const Shape part = {std::min(rows_of_a_task, shape.rows - first), shape.columns, shape.inner};
        multiply(out + first * out_stride, out_stride, {a.data + first * a.row, a.row, a.column}, b, part, start);
    });
}

void transpose(float *out, const float *in, std::size_t in_stride, std::size_t rows, std::size_t columns) {
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = 0; j < columns; ++j) {
            out[j * rows + i] = in[i * in_stride + j];
        }
    }
}

}  // namespace engine
