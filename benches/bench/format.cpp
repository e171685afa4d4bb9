// SPDX-License-Identifier: MIT OR Apache-2.0

#include "format.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace bench {
namespace {

std::uint32_t bits_of(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

std::uint16_t to_bf16(float value) {
    const std::uint32_t bits = bits_of(value);
    return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

std::uint16_t to_f16(float value) {
    const std::uint32_t bits = bits_of(value);
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    const std::uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude >= 0x477FF000) {  // 65,520, from which on values round to infinity
        return sign | 0x7C00;
    }
    if (magnitude < 0x38800000) {  // 2^-14, the smallest normal: below, halves are multiples of 2^-24
        return sign | static_cast<std::uint16_t>(std::lrint(std::ldexp(std::fabs(value), 24)));
    }
    const std::uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
    return sign | static_cast<std::uint16_t>((rounded - 0x38000000) >> 13);
}

constexpr mofo::Dtype f32 = mofo::Dtype::f32;
constexpr mofo::Dtype f16 = mofo::Dtype::f16;
constexpr mofo::Dtype bf16 = mofo::Dtype::bf16;
constexpr mofo::Rounding nearest = mofo::Rounding::nearest;
constexpr mofo::Rounding stochastic = mofo::Rounding::stochastic;

}  // namespace

const Format f32_format = {"f32", "all f32", f32, f32, f32, false, nearest};

const std::vector<Format> &all_formats() {
    static const std::vector<Format> formats = {
        f32_format,
        {"bf16", "bf16 param (nearest) and grad, f32 moments", bf16, bf16, f32, false, nearest},
        {"bf16-master", "bf16 param and grad, f32 moments and master", bf16, bf16, f32, true, nearest},
        {"bf16-state", "bf16 param, grad and moments, all stochastic", bf16, bf16, bf16, false, stochastic},
        {"f16", "f16 param (nearest) and grad, f32 moments", f16, f16, f32, false, nearest},
    };
    return formats;
}

std::size_t size_of(mofo::Dtype dtype) { return dtype == mofo::Dtype::f32 ? 4 : 2; }

void convert(const float *from, std::size_t count, mofo::Dtype dtype, void *to) {
    if (dtype == mofo::Dtype::f32) {
        std::memcpy(to, from, count * sizeof *from);
        return;
    }
    auto *const halves = static_cast<std::uint16_t *>(to);
    for (std::size_t i = 0; i < count; ++i) {
        halves[i] = dtype == mofo::Dtype::f16 ? to_f16(from[i]) : to_bf16(from[i]);
    }
}

std::size_t Format::bytes_read() const {
    return size_of(grad) + 2 * size_of(state) + (master ? sizeof(float) : size_of(param));
}

std::size_t Format::bytes_written() const {
    return 2 * size_of(state) + size_of(param) + (master ? sizeof(float) : 0);
}

std::string Format::traffic() const {
    const std::string moments = "m " + std::to_string(size_of(state)) + " + v " + std::to_string(size_of(state));
    const std::string weight = " + p " + std::to_string(size_of(param));
    const std::string master_copy = " + master 4";
    return "read g " + std::to_string(size_of(grad)) + " + " + moments + (master ? master_copy : weight) + ", write " +
           moments + weight + (master ? master_copy : "") + " = " + std::to_string(bytes_moved());
}

}  // namespace bench
