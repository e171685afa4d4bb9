// Element types, and what a step must move for them.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_FORMAT_HPP
#define MOFO_BENCH_FORMAT_HPP

#include <cstddef>
#include <mofo.hpp>
#include <string>
#include <vector>

namespace bench {

std::size_t size_of(mofo::Dtype dtype);

/** Rounds floats to nearest even and stores them as `dtype`. */
void convert(const float *from, std::size_t count, mofo::Dtype dtype, void *to);

/** The element types of a step's buffers. */
struct Format {
    const char *name;
    const char *description;
    mofo::Dtype param;
    mofo::Dtype grad;
    mofo::Dtype state;
    bool master;
    mofo::Rounding rounding;

    /** Bytes an entry that a step reads: gradient, both moments, and the weight or its master copy. */
    std::size_t bytes_read() const;
    /** Bytes an entry that a step writes: both moments, the weight, and its master copy if there is one. */
    std::size_t bytes_written() const;
    std::size_t bytes_moved() const { return bytes_read() + bytes_written(); }
    /** "read g 4 + m 4 + v 4 + p 4, write m 4 + v 4 + p 4 = 28" */
    std::string traffic() const;
};

/** Everything in f32. */
extern const Format f32_format;

/** All formats that are measured; the first is `f32_format`. */
const std::vector<Format> &all_formats();

}  // namespace bench

#endif  // MOFO_BENCH_FORMAT_HPP
