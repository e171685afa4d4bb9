// The command line.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <cstdint>
#include <string>

#include "data.hpp"

namespace engine {

struct CommandLine {
    std::uint64_t steps = 400;
    std::uint64_t stop_after = 0;  // 0: never
    std::uint64_t seed = 1;
    int threads = 0;  // 0: as many as the machine has
    double learning_rate = 1e-3;
    double update_fraction = 0.05;
    Text text = Text::code;  // to fine-tune on
    bool bf16 = false, smoke = false, check_gradients = false, help = false;
    std::string save, resume;  // paths; empty: none
};

extern const char *const usage;

// Throws engine::Error.
CommandLine parse(int count, const char *const *arguments);

}  // namespace engine
