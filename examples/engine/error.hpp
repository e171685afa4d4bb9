// What the engine throws, with a message for its user.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <stdexcept>

namespace engine {

class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace engine
