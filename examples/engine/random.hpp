// Random numbers that a run can take up again: each is a function of what it is for, so that a checkpoint needs no
// generator's state.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>

namespace engine {

// SplitMix64 (Steele, Lea, Flood, 2014).
class Random {
  public:
    // A generator for these keys alone: seed, purpose, step and so on.
    explicit Random(std::initializer_list<std::uint64_t> keys) {
        for (const std::uint64_t key : keys) {
            state_ = next() ^ key;
        }
    }

    std::uint64_t next() {
        std::uint64_t z = state_ += 0x9E3779B97F4A7C15;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }

    // From 0 to n - 1. The bias is below n / 2^64.
    std::size_t below(std::size_t n) { return static_cast<std::size_t>(next() % n); }

    // In [0, 1).
    double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

    // Box and Muller's.
    double normal() {
        const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
        return radius * std::cos(6.283185307179586 * uniform());
    }

  private:
    std::uint64_t state_ = 0;
};

// What a generator is for, its second key.
enum Purpose : std::uint64_t { for_parameters, for_text, for_batches, for_held_out_batches, for_gradient_check };

}  // namespace engine
