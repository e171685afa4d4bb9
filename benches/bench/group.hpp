// Contenders that are measured against each other, step by step.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_GROUP_HPP
#define MOFO_BENCH_GROUP_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "contenders.hpp"
#include "statistics.hpp"

namespace bench {

/** How long and how often to measure. */
struct Plan {
    unsigned rounds;
    unsigned warm_up_steps;
    /** Idle time before each sample: threads of the contender before may still be spinning. */
    std::chrono::duration<double> pause;
};

/** What a line of a table says about a contender, and what the contender is compared with. */
struct RowSpec {
    std::string entries;
    std::string label;
    std::uint64_t numel = 0;
    std::optional<double> update_fraction;
    std::uint64_t bytes_per_entry = 0;

    /** Contenders of the same group, by index. */
    std::optional<std::size_t> adamw;
    std::optional<std::size_t> copy;
    /** One for each base of the case. */
    std::vector<std::optional<std::size_t>> bases;
};

/** A measured line. */
struct Row {
    RowSpec spec;
    /** A step's seconds, one for each round. */
    std::vector<double> seconds;
    Estimate nanoseconds_per_entry;
    double gigabytes_per_second = 0.0;
    std::optional<Estimate> to_adamw;
    std::optional<Estimate> to_copy;
    std::vector<std::optional<Estimate>> to_bases;
    Counts counts;
};

/**
 * In each round every contender makes one step, in an order that changes from round to round, all on the same
 * gradient; ratios are taken within the round. So what slows the machine down for a while slows all of them.
 */
class Group {
  public:
    /** Steps of small tensors are measured several at a time. */
    explicit Group(std::uint64_t numel);

    /** Returns the contender's index. */
    std::size_t add(std::unique_ptr<Contender> contender, RowSpec spec);
    /** The same, and at the end of the warm-up the number of entries that move is checked. */
    std::size_t add_checked(std::unique_ptr<MofoStep> contender, RowSpec spec);

    std::vector<Row> measure(const Plan &plan);

  private:
    struct Entry {
        std::unique_ptr<Contender> contender;
        RowSpec spec;
        const MofoStep *checked;
    };

    void warm_up(unsigned steps);
    double sample(Contender &contender, std::uint64_t first_step, std::chrono::duration<double> pause) const;
    void summarize(std::vector<Row> &rows) const;

    std::uint64_t steps_per_sample_;
    std::uint64_t next_step_ = 0;
    std::vector<Entry> entries_;
};

/** What it costs to read the clock, which every measured step includes. */
std::chrono::duration<double> clock_cost();

}  // namespace bench

#endif  // MOFO_BENCH_GROUP_HPP
