// Medians and their confidence intervals.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_STATISTICS_HPP
#define MOFO_BENCH_STATISTICS_HPP

#include <vector>

namespace bench {

/**
 * A median, and two order statistics between which the median of the distribution lies with the given
 * confidence. Nothing is assumed about the distribution.
 */
struct Estimate {
    double median = 0.0;
    double low = 0.0;
    double high = 0.0;
    /** At least 0.95 from six values on; with fewer the interval is the whole range. */
    double confidence = 0.0;
};

/** Of at least one value. */
Estimate estimate_median(std::vector<double> values);

/** Of `numerators[i] / denominators[i]`: values of the same round are divided, then the median is taken. */
Estimate estimate_ratio(const std::vector<double> &numerators, const std::vector<double> &denominators);

}  // namespace bench

#endif  // MOFO_BENCH_STATISTICS_HPP
