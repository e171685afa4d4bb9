// Two kinds of text, made by the program, as tokens of one character.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model.hpp"

namespace engine {

// Newline, and ASCII from space to tilde.
constexpr std::size_t vocabulary = 96;

// `capitals` is prose in capital letters: other characters, the same language.
enum class Text : std::uint64_t { prose, code, capitals };
enum class Split : std::uint64_t { training, held_out };

using Tokens = std::vector<std::uint8_t>;

// At least `length` tokens of whole lines. The two splits are drawn from the same grammar, independently.
Tokens write_text(Text text, Split split, std::uint64_t seed, std::size_t length);

// The micro-batch of this number: windows at random places. The same number gives the same batch, so that a run that
// is taken up again goes on with the batches it would have had.
Batch training_batch(const Tokens &tokens, const ModelConfig &config, std::uint64_t seed, std::uint64_t number);

// The mean loss over the same `batches` of windows each time.
double evaluate(Model &model, const float *params, const Tokens &tokens, std::size_t batches);

}  // namespace engine
