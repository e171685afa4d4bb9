// SPDX-License-Identifier: MIT OR Apache-2.0

#include "statistics.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace bench {
namespace {

constexpr double wanted_confidence = 0.95;

/** Probability that a fair coin, thrown `count` times, falls on heads `heads` times. */
double binomial(std::size_t count, std::size_t heads) {
    const auto n = static_cast<double>(count);
    const auto k = static_cast<double>(heads);
    return std::exp(std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0) - n * std::log(2.0));
}

}  // namespace

Estimate estimate_median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const std::size_t count = values.size();
    // The median lies outside of the values from `skipped` to `count - 1 - skipped` if at most `skipped` of them lie
    // on one of its sides.
    std::size_t skipped = 0;
    double outside = 2.0 * binomial(count, 0);
    while (2 * skipped + 2 < count) {
        const double wider = outside + 2.0 * binomial(count, skipped + 1);
        if (1.0 - wider < wanted_confidence) {
            break;
        }
        outside = wider;
        ++skipped;
    }
    const double median = (values[(count - 1) / 2] + values[count / 2]) / 2.0;
    return {median, values[skipped], values[count - 1 - skipped], std::max(0.0, 1.0 - outside)};
}

Estimate estimate_ratio(const std::vector<double> &numerators, const std::vector<double> &denominators) {
    std::vector<double> ratios(numerators.size());
    std::transform(numerators.begin(), numerators.end(), denominators.begin(), ratios.begin(),
                   [](double numerator, double denominator) { return numerator / denominator; });
    return estimate_median(std::move(ratios));
}

}  // namespace bench
