// What is measured.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_CASES_HPP
#define MOFO_BENCH_CASES_HPP

#include <string>
#include <vector>

#include "experiment.hpp"

namespace bench {

struct Case {
    std::string name;
    void (*run)(Context &context);
};

/** In the order in which they run. */
const std::vector<Case> &all_cases();

}  // namespace bench

#endif  // MOFO_BENCH_CASES_HPP
