// SPDX-License-Identifier: MIT OR Apache-2.0

#include "verify.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "contenders.hpp"
#include "gradients.hpp"

namespace bench {
namespace {

StepSettings adamw_settings_of(const Settings &settings) {
    StepSettings adamw;
    adamw.tier = settings.tier;
    adamw.threads = settings.threads;
    return adamw;
}

void make_steps(Contender &contender, std::uint64_t steps) {
    for (std::uint64_t step = 0; step < steps; ++step) {
        contender.load(step);
        contender.step();
    }
}

/** Throws unless all values agree to within a share of the larger one, or this much. */
void compare(const std::string &what, const float *found, const float *expected, std::uint64_t count, double share,
             double difference) {
    for (std::uint64_t i = 0; i < count; ++i) {
        const double a = found[i];
        const double b = expected[i];
        // Not a NaN either.
        if (!(std::fabs(a - b) <= std::max(difference, share * std::fabs(b)))) {
            throw std::runtime_error(what + ": entry " + std::to_string(i) + " is " + std::to_string(a) + ", not " +
                                     std::to_string(b));
        }
    }
}

}  // namespace

void verify_plain_loops(ThreadTeam &team, const Settings &settings) {
    constexpr std::uint64_t numel = 100'003;
    constexpr unsigned steps = 8;
    // Each step moves an entry by about a learning rate. Compilers may fuse multiplications and additions.
    constexpr double difference = 1e-3 * hyper_parameters.learning_rate;
    const auto gradients = std::make_shared<GradientCycle>(team, numel, mofo::Dtype::f32, steps);
    MofoStep mofo_step(team, adamw_settings_of(settings), one_tensor(numel), gradients);
    make_steps(mofo_step, steps);
    for (const PlainAdamW::Function function : {&adamw_step_as_is, &adamw_step_no_math_errno}) {
        PlainAdamW plain(team, function, numel, gradients);
        make_steps(plain, steps);
        compare("mofo against the plain C loop", static_cast<const float *>(mofo_step.param()), plain.param(), numel,
                0.0, difference);
    }
}

void verify_embedding(ThreadTeam &team, const Settings &settings) {
    constexpr std::uint64_t rows = 200;
    constexpr std::uint64_t columns = 24;
    constexpr std::uint64_t numel = rows * columns;
    constexpr unsigned steps = 300;
    constexpr double share = 1e-3;
    const auto gradients = std::make_shared<EmbeddingGradients>(team, rows, columns, 0.05);
    MofoStep contender(team, adamw_settings_of(settings), one_tensor(numel), gradients);
    make_steps(contender, steps);
    const Moments found = contender.moments();

    std::vector<float> exp_avg(numel);
    std::vector<float> exp_avg_sq(numel);
    gradients->skip(steps);
    gradients->moments_after_skipped(hyper_parameters.beta1, hyper_parameters.beta2,
                                     {exp_avg.data(), exp_avg_sq.data()});
    // Sums may cancel, and numbers below the smallest normal one may already be zero on one side.
    constexpr double tiny = 1e-9;
    compare("first moments of the embedding", found.exp_avg, exp_avg.data(), numel, share, tiny);
    compare("second moments of the embedding", found.exp_avg_sq, exp_avg_sq.data(), numel, share,
            std::numeric_limits<float>::min());
}

}  // namespace bench
