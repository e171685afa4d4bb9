// The learning rate, step by step.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace engine {

// From 0 up to `peak` in a straight line over `warm_up` steps, then down to a tenth of it along half a cosine, until
// `steps`.
struct Schedule {
    double peak;
    std::uint64_t warm_up, steps;

    // `step` counts from 0.
    double learning_rate(std::uint64_t step) const {
        if (step < warm_up) {
            return peak * static_cast<double>(step + 1) / static_cast<double>(warm_up);
        }
        const double rest = static_cast<double>(std::max<std::uint64_t>(steps - warm_up, 1));
        const double done = static_cast<double>(step - warm_up) / rest;
        return peak * (0.1 + 0.45 * (1.0 + std::cos(3.141592653589793 * std::min(done, 1.0))));
    }
};

}  // namespace engine
