// SPDX-License-Identifier: MIT OR Apache-2.0

#include "random.hpp"

#include <cmath>

namespace bench {
namespace {

constexpr double two_pi = 6.283185307179586;

enum Stream : std::uint64_t { normal_draws = 0x6E6F726D, factor_draws = 0x66616374 };

double standard_normal(std::uint64_t stream, std::uint64_t place) {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform(random_bits(stream, 2 * place))));
    return radius * std::cos(two_pi * uniform(random_bits(stream, 2 * place + 1)));
}

}  // namespace

const DrawTable &DrawTable::normal() {
    static const DrawTable table = [] {
        DrawTable draws;
        for (std::size_t i = 0; i < size; ++i) {
            draws.values_[i] = static_cast<float>(standard_normal(normal_draws, i));
        }
        return draws;
    }();
    return table;
}

const DrawTable &DrawTable::heavy_tailed() {
    static const DrawTable table = [] {
        DrawTable draws;
        for (std::size_t i = 0; i < size; ++i) {
            const double factor = std::exp(standard_normal(factor_draws, i));
            draws.values_[i] = static_cast<float>(standard_normal(normal_draws, i + size) * factor);
        }
        return draws;
    }();
    return table;
}

}  // namespace bench
