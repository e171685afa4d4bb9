// SPDX-License-Identifier: MIT OR Apache-2.0

#include "group.hpp"

#include <algorithm>
#include <stdexcept>
#include <thread>

namespace bench {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

/** Entries of a sample, at least: some milliseconds of work. */
constexpr std::uint64_t entries_per_sample = 2'000'000;

/**
 * Order number `turn` of `count` contenders: the rows of a Williams square, then the same backwards. Each contender
 * runs equally often in each place and equally often after each other one, so that none profits from what its
 * predecessor leaves behind.
 */
std::vector<std::size_t> balanced_order(std::size_t count, std::size_t turn) {
    const std::size_t shift = turn % count;
    std::vector<std::size_t> order(count);
    for (std::size_t place = 0; place < count; ++place) {
        const std::size_t zigzag = place % 2 == 1 ? (place + 1) / 2 : count - place / 2;
        order[place] = (zigzag + shift) % count;
    }
    if (turn / count % 2 == 1) {
        std::reverse(order.begin(), order.end());
    }
    return order;
}

/** Throws unless the last step has moved as many entries as it should, and those that tie with the last one. */
void check_selection(const MofoStep &contender, const std::string &label) {
    const std::uint64_t expected = contender.expected_selection();
    const std::uint64_t selected = contender.last_selection();
    // Numbers of 16 bits take few values, so that many are alike.
    const Format &format = contender.settings().format;
    const bool all_f32 = format.grad == mofo::Dtype::f32 && format.state == mofo::Dtype::f32;
    const double ties = all_f32 ? 0.001 : 0.1;
    const double most = static_cast<double>(expected) * (1.0 + ties) + 1.0;
    if (selected < expected || static_cast<double>(selected) > most) {
        throw std::runtime_error(label + ": " + std::to_string(selected) + " entries have moved, not " +
                                 std::to_string(expected));
    }
}

Counts operator-(const Counts &after, const Counts &before) {
    return {after.steps - before.steps, after.entries_selected - before.entries_selected,
            after.blocks_estimated - before.blocks_estimated, after.estimates_failed - before.estimates_failed};
}

}  // namespace

Group::Group(std::uint64_t numel) : steps_per_sample_(std::max<std::uint64_t>(1, entries_per_sample / numel)) {}

std::size_t Group::add(std::unique_ptr<Contender> contender, RowSpec spec) {
    entries_.push_back({std::move(contender), std::move(spec), nullptr});
    return entries_.size() - 1;
}

std::size_t Group::add_checked(std::unique_ptr<MofoStep> contender, RowSpec spec) {
    const MofoStep *const checked = contender.get();
    const std::size_t index = add(std::move(contender), std::move(spec));
    entries_[index].checked = checked;
    return index;
}

std::vector<Row> Group::measure(const Plan &plan) {
    warm_up(plan.warm_up_steps);
    std::vector<Row> rows;
    std::vector<Counts> before;
    for (const Entry &entry : entries_) {
        rows.emplace_back().spec = entry.spec;
        rows.back().seconds.resize(plan.rounds);
        before.push_back(entry.contender->counts());
    }
    for (unsigned round = 0; round < plan.rounds; ++round) {
        for (const std::size_t index : balanced_order(entries_.size(), round)) {
            rows[index].seconds[round] = sample(*entries_[index].contender, next_step_, plan.pause);
        }
        next_step_ += steps_per_sample_ + 1;
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i].counts = entries_[i].contender->counts() - before[i];
    }
    summarize(rows);
    return rows;
}

void Group::warm_up(unsigned steps) {
    for (unsigned step = 0; step < steps; ++step) {
        for (const Entry &entry : entries_) {
            entry.contender->load(next_step_);
            entry.contender->step();
        }
        ++next_step_;
    }
    for (const Entry &entry : entries_) {
        if (entry.checked != nullptr) {
            check_selection(*entry.checked, entry.spec.label);
        }
    }
}

/** Seconds of a step, the mean of those of the sample. */
double Group::sample(Contender &contender, std::uint64_t first_step, Seconds pause) const {
    std::this_thread::sleep_for(pause);
    if (steps_per_sample_ > 1) {
        // The others have driven a small tensor out of the caches, where it would be in a step after a step.
        contender.load(first_step);
        contender.step();
    }
    Clock::duration spent{0};
    for (std::uint64_t i = 1; i <= steps_per_sample_; ++i) {
        contender.load(first_step + i);
        const Clock::time_point start = Clock::now();
        contender.step();
        spent += Clock::now() - start;
    }
    return Seconds(spent).count() / static_cast<double>(steps_per_sample_);
}

void Group::summarize(std::vector<Row> &rows) const {
    const auto ratio = [&rows](const Row &row, std::optional<std::size_t> reference) -> std::optional<Estimate> {
        if (!reference) {
            return std::nullopt;
        }
        return estimate_ratio(row.seconds, rows[*reference].seconds);
    };
    for (Row &row : rows) {
        std::vector<double> nanoseconds = row.seconds;
        for (double &value : nanoseconds) {
            value *= 1e9 / static_cast<double>(row.spec.numel);
        }
        row.nanoseconds_per_entry = estimate_median(std::move(nanoseconds));
        row.gigabytes_per_second = static_cast<double>(row.spec.bytes_per_entry) / row.nanoseconds_per_entry.median;
        row.to_adamw = ratio(row, row.spec.adamw);
        row.to_copy = ratio(row, row.spec.copy);
        for (const auto &base : row.spec.bases) {
            row.to_bases.push_back(ratio(row, base));
        }
    }
}

Seconds clock_cost() {
    constexpr int readings = 100'000;
    const Clock::time_point start = Clock::now();
    Clock::time_point last = start;
    for (int i = 0; i < readings; ++i) {
        last = Clock::now();
    }
    return Seconds(last - start) / readings;
}

}  // namespace bench
