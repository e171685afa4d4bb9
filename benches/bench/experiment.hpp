// Plans a group of contenders, sees whether it fits into memory, and measures it.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_EXPERIMENT_HPP
#define MOFO_BENCH_EXPERIMENT_HPP

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "contenders.hpp"
#include "gradients.hpp"
#include "group.hpp"
#include "report.hpp"
#include "settings.hpp"
#include "threads.hpp"

namespace bench {

/** What every case works with. */
struct Context {
    const Settings &settings;
    ThreadTeam &team;
    Report &report;
};

/** Gradients that are made when they are first needed. */
class PlannedGradients {
  public:
    PlannedGradients(std::uint64_t bytes, std::function<std::shared_ptr<GradientSource>()> make)
        : bytes_(bytes), make_(std::move(make)) {}

    std::uint64_t bytes() const { return bytes_; }
    std::shared_ptr<GradientSource> get();

  private:
    std::uint64_t bytes_;
    std::function<std::shared_ptr<GradientSource>()> make_;
    std::shared_ptr<GradientSource> made_;
};

using GradientsPointer = std::shared_ptr<PlannedGradients>;

GradientsPointer plan_gradients(Context &context, std::uint64_t numel, mofo::Dtype dtype = mofo::Dtype::f32,
                                Pattern pattern = Pattern::ordinary, double update_fraction = 0.1);

/** A way to make a step with mofo, to be measured with several update fractions. */
struct Variant {
    std::string label;
    StepSettings settings;
    Model model;
    GradientsPointer gradients;
    /** Whether as many entries must move as the update fraction says: not where gradients are zero or alike. */
    bool selection_is_known = true;
    /** Called once before the first step. */
    std::function<void(MofoStep &)> prepare = nullptr;
};

/** The contenders of a variant: for each update fraction its index. */
using Contenders = std::map<double, std::size_t>;

class Experiment {
  public:
    /** The tensor's size, and how many bases its rows are compared with. */
    Experiment(Context &context, std::uint64_t numel, std::size_t bases = 0);

    /** All contenders work on the same parameter and moments, in turn. For one f32 tensor, before any is added. */
    void share_state() { shares_state_ = true; }

    /**
     * Adds a contender for each update fraction, of which the first is 1: its AdamW. It is compared with the contender
     * of the same update fraction of each base, if that has one.
     */
    Contenders add(const Variant &variant, const std::vector<double> &update_fractions,
                   const std::vector<Contenders> &bases = {});
    /** Adds the plain C loop. */
    std::size_t add_plain(const std::string &label, PlainAdamW::Function function, const GradientsPointer &gradients);

    RowSpec &spec(std::size_t contender) { return planned_[contender].spec; }

    /** Bytes that it will use. */
    std::uint64_t memory() const;
    bool fits() const;
    /** Measures and reports, or reports that there is not enough memory. */
    void run();

  private:
    using Add = std::function<std::size_t(Group &, const RowSpec &)>;

    struct Planned {
        RowSpec spec;
        std::uint64_t memory;
        unsigned threads;
        Add add;
    };

    RowSpec row(const std::string &label, const StepSettings &settings) const;
    void add_copies();

    Context &context_;
    std::uint64_t numel_;
    std::size_t bases_;
    bool shares_state_ = false;
    std::shared_ptr<SharedState> shared_;
    std::vector<GradientsPointer> gradients_;
    std::vector<Planned> planned_;
};

}  // namespace bench

#endif  // MOFO_BENCH_EXPERIMENT_HPP
