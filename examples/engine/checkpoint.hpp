// What a run needs to go on in another process: the engine's own file, and beside it the optimizer's.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "optimizer.hpp"

namespace engine {

// What the numbers of a run follow from. A run goes on only where all of it is the same.
struct RunIdentity {
    std::uint64_t seed, text, steps, layers, heads, width, length, sequences, micro_batches, bf16;
    double learning_rate, update_fraction;
};

// How a phase ended.
struct PhaseResult {
    std::uint64_t steps;
    double prose_loss, new_loss, distance;
};

constexpr std::size_t phases = 3;

struct Progress {
    std::uint64_t phase = 0, step = 0;  // the next one
    std::array<PhaseResult, phases> results = {};
};

// The arenas are of `floats` entries; `pretrained` are the parameters as the first phase left them.
struct SavedArenas {
    float *params, *pretrained;
    std::size_t floats;
};

// The optimizer's file that belongs to the engine's.
std::string optimizer_path(const std::string &path, const Progress &progress);

// Writes both files: that of the optimizer first, under a name that only this step has, then the engine's over its last
// version. Until that is in place the last checkpoint is whole, from then on this one. `optimizer` may be NULL: at the
// beginning of a phase, when there is nothing to keep.
void save_checkpoint(const std::string &path, const RunIdentity &identity, const Progress &progress,
                     const SavedArenas &arenas, Optimizer *optimizer);

// Reads the engine's file into the arenas, and returns the progress. The optimizer reads its own.
Progress load_checkpoint(const std::string &path, const RunIdentity &identity, const SavedArenas &arenas);

// The 64-bit FNV-1a hash.
std::uint64_t hash_of(const void *bytes, std::size_t size, std::uint64_t hash = 0xCBF29CE484222325);

}  // namespace engine
