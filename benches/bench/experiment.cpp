// SPDX-License-Identifier: MIT OR Apache-2.0

#include "experiment.hpp"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <set>

namespace bench {
namespace {

constexpr std::uint64_t huge = std::uint64_t{1} << 28;

/** Few enough that small gradients stay in the caches, and as many as fit into memory of large ones. */
unsigned gradient_buffers(const Settings &settings, std::uint64_t numel) {
    if (settings.grad_buffers != 0) {
        return settings.grad_buffers;
    }
    if (numel <= 16'384) {
        return 64;
    }
    if (numel <= 1'000'000) {
        return 8;
    }
    return numel <= huge ? 4 : 1;
}

Plan plan_for(const Settings &settings, std::uint64_t numel) {
    constexpr std::uint64_t small = std::uint64_t{1} << 20;
    const unsigned usual = settings.full ? 48 : 16;
    const unsigned affordable = numel <= small ? usual * 4 : numel <= huge ? usual : usual / 4;
    return {settings.rounds.value_or(affordable), settings.warm_up_steps,
            std::chrono::duration<double>(settings.pause_ms / 1e3)};
}

std::uint64_t memory_limit(const Settings &settings) {
    if (settings.max_memory) {
        return *settings.max_memory;
    }
    const auto available = available_memory();
    return available ? *available / 10 * 9 : std::numeric_limits<std::uint64_t>::max();
}

std::string gibibytes(std::uint64_t bytes) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f GiB", static_cast<double>(bytes) / (1 << 30));
    return text;
}

/** Clipping and skipping need the gradients' norm, and so read them once more, before anything is written. */
std::uint64_t bytes_moved(const StepSettings &settings) {
    const bool needs_norm = settings.skip_nonfinite || settings.max_grad_norm > 0.0;
    return settings.format.bytes_moved() + (needs_norm ? size_of(settings.format.grad) : 0);
}

}  // namespace

std::shared_ptr<GradientSource> PlannedGradients::get() {
    if (made_ == nullptr) {
        made_ = make_();
    }
    return made_;
}

GradientsPointer plan_gradients(Context &context, std::uint64_t numel, mofo::Dtype dtype, Pattern pattern,
                                double update_fraction) {
    const unsigned buffers = gradient_buffers(context.settings, numel);
    return std::make_shared<PlannedGradients>(buffers * numel * size_of(dtype), [=, &context] {
        return std::make_shared<GradientCycle>(context.team, numel, dtype, buffers, pattern, update_fraction);
    });
}

Experiment::Experiment(Context &context, std::uint64_t numel, std::size_t bases)
    : context_(context), numel_(numel), bases_(bases) {}

Contenders Experiment::add(const Variant &variant, const std::vector<double> &update_fractions,
                           const std::vector<Contenders> &bases) {
    gradients_.push_back(variant.gradients);
    Contenders added;
    const std::size_t adamw = planned_.size();
    for (const double update_fraction : update_fractions) {
        StepSettings settings = variant.settings;
        settings.update_fraction = update_fraction;
        RowSpec spec = row(variant.label, settings);
        if (planned_.size() != adamw) {
            spec.adamw = adamw;
        }
        for (std::size_t i = 0; i < bases.size(); ++i) {
            const auto base = bases[i].find(update_fraction);
            if (base != bases[i].end()) {
                spec.bases[i] = base->second;
            }
        }
        added[update_fraction] = planned_.size();
        const auto add_to = [this, settings, variant](Group &group, const RowSpec &with) {
            auto contender =
                std::make_unique<MofoStep>(context_.team, settings, variant.model, variant.gradients->get(), shared_);
            if (variant.prepare) {
                variant.prepare(*contender);
            }
            return variant.selection_is_known ? group.add_checked(std::move(contender), with)
                                              : group.add(std::move(contender), with);
        };
        planned_.push_back(
            {std::move(spec), MofoStep::memory(settings, variant.model, shares_state_), settings.threads, add_to});
    }
    return added;
}

std::size_t Experiment::add_plain(const std::string &label, PlainAdamW::Function function,
                                  const GradientsPointer &gradients) {
    gradients_.push_back(gradients);
    const auto add_to = [this, function, gradients](Group &group, const RowSpec &with) {
        return group.add(std::make_unique<PlainAdamW>(context_.team, function, numel_, gradients->get()), with);
    };
    planned_.push_back({row(label, StepSettings{}), 3 * sizeof(float) * numel_, 1, add_to});
    return planned_.size() - 1;
}

RowSpec Experiment::row(const std::string &label, const StepSettings &settings) const {
    RowSpec spec;
    spec.entries = with_commas(numel_);
    spec.label = label;
    spec.numel = numel_;
    spec.update_fraction = settings.update_fraction;
    spec.bytes_per_entry = bytes_moved(settings);
    spec.bases.resize(bases_);
    return spec;
}

std::uint64_t Experiment::memory() const {
    std::uint64_t copied = 0;
    std::uint64_t bytes = shares_state_ ? 3 * sizeof(float) * numel_ : 0;
    for (const Planned &planned : planned_) {
        bytes += planned.memory;
        copied = std::max(copied, planned.spec.bytes_per_entry * numel_ / 2);
    }
    std::vector<GradientsPointer> distinct = gradients_;
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    for (const GradientsPointer &gradients : distinct) {
        bytes += gradients->bytes();
    }
    return bytes + 2 * CopyRegion::bytes_for(copied);
}

bool Experiment::fits() const { return memory() <= memory_limit(context_.settings); }

void Experiment::run() {
    if (!fits()) {
        context_.report.note(with_commas(numel_) + " entries: skipped, needs " + gibibytes(memory()) +
                             " of memory and may use " + gibibytes(memory_limit(context_.settings)));
        return;
    }
    if (shares_state_) {
        shared_ = std::make_shared<SharedState>(context_.team, numel_);
    }
    add_copies();
    Group group(numel_);
    for (const Planned &planned : planned_) {
        planned.add(group, planned.spec);
    }
    context_.report.add_rows(group.measure(plan_for(context_.settings, numel_)));
}

/** For each number of bytes and threads that occurs, a copy of as many bytes with as many threads. */
void Experiment::add_copies() {
    std::map<std::pair<std::uint64_t, unsigned>, std::vector<std::size_t>> compared;
    std::set<unsigned> thread_counts;
    std::uint64_t most_bytes = 0;
    for (std::size_t i = 0; i < planned_.size(); ++i) {
        const std::uint64_t bytes = planned_[i].spec.bytes_per_entry;
        compared[{bytes, planned_[i].threads}].push_back(i);
        thread_counts.insert(planned_[i].threads);
        most_bytes = std::max(most_bytes, bytes);
    }
    const auto region = std::make_shared<CopyRegion>(context_.team, most_bytes * numel_ / 2);
    for (const auto &[work, contenders] : compared) {
        const auto [bytes, threads] = work;
        for (const std::size_t contender : contenders) {
            planned_[contender].spec.copy = planned_.size();
        }
        RowSpec spec = row("copy", StepSettings{});
        if (thread_counts.size() > 1) {
            spec.label += threads == 1 ? ", 1 thread" : ", " + std::to_string(threads) + " threads";
        }
        spec.update_fraction.reset();
        spec.bytes_per_entry = bytes;
        const std::uint64_t moved = bytes * numel_;
        const unsigned width = threads;
        const auto add_to = [this, width, moved, region](Group &group, const RowSpec &with) {
            return group.add(std::make_unique<Copy>(context_.team, width, moved, region), with);
        };
        planned_.push_back({std::move(spec), 0, threads, add_to});
    }
}

}  // namespace bench
