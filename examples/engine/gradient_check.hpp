// Whether `Model::backward` computes the gradient of `Model::forward`.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <cstdint>

#include "thread_pool.hpp"

namespace engine {

// Compares every block of every tensor with central differences of the loss, prints a line for each tensor, and
// returns whether all agree.
bool check_gradients(ThreadPool &pool, std::uint64_t seed);

}  // namespace engine
