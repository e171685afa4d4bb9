// What the figures were measured on.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_ENVIRONMENT_HPP
#define MOFO_BENCH_ENVIRONMENT_HPP

#include <string>
#include <utility>
#include <vector>

#include "settings.hpp"

namespace bench {

/** Names and values, to be printed and written to the JSON file. */
using Facts = std::vector<std::pair<std::string, std::string>>;

/** The machine, the system, the compiler and the library. Throws if the machine lacks the tier. */
Facts describe_environment(const Settings &settings);

/** How busy the machine is with everything that runs on it. */
std::string load_average();

}  // namespace bench

#endif  // MOFO_BENCH_ENVIRONMENT_HPP
