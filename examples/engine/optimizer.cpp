// SPDX-License-Identifier: MIT OR Apache-2.0

#include "optimizer.hpp"

#include <cstring>
#include <vector>

#include "error.hpp"

namespace engine {

namespace {

// Each arena begins at its own place of a page.
constexpr std::size_t place_of_state = 2, place_of_bf16 = 0;

mofo::Options options_for(const OptimizerSettings &settings, const ThreadPool &pool) {
    mofo::Options options;
    options.update_fraction = settings.update_fraction;
    options.weight_decay = settings.weight_decay;
    options.beta2 = 0.99;  // short runs: 0.999 would remember the first gradients for all of them
    options.seed = settings.seed;
    options.max_grad_norm = settings.max_grad_norm;
    options.skip_nonfinite = 1;  // with clipping a single NaN would otherwise refuse the step, or spoil it
    options.num_threads = pool.threads();  // how many tasks a step is cut into
    options.set_state_dtype(settings.bf16 ? mofo::Dtype::bf16 : mofo::Dtype::f32);
    options.set(mofo::Rounding::stochastic);
    return options;
}

// Without its buffers: the moments' sizes depend on nothing else.
mofo::Tensor describe(const TensorSpec &spec) {
    mofo::Tensor tensor(spec.name.c_str(), spec.numel);
    tensor.num_blocks = spec.num_blocks;
    if (spec.kind == Kind::bias_or_norm) {
        // All of them move: they are few, and each reaches every token.
        tensor.update_fraction = 1.0;
        tensor.weight_decay = 0.0;
    }
    return tensor;
}

std::size_t on_a_line(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// Where each tensor's moments lie: all first ones, then all second ones.
struct StatePlan {
    std::vector<std::size_t> exp_avg, exp_avg_sq;
    std::size_t bytes = 0;

    StatePlan(const mofo::Options &options, const Layout &layout) {
        for (const TensorSpec &spec : layout.tensors()) {
            exp_avg.push_back(bytes);
            bytes += on_a_line(mofo::Optimizer::state_size(options, describe(spec)).exp_avg);
        }
        // As between two arenas.
        bytes = (bytes + Arena::page - 1) / Arena::page * Arena::page + Arena::stagger;
        for (const TensorSpec &spec : layout.tensors()) {
            exp_avg_sq.push_back(bytes);
            bytes += on_a_line(mofo::Optimizer::state_size(options, describe(spec)).exp_avg_sq);
        }
    }
};

std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // To nearest, ties to even. Parameters are finite.
    return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float from_bf16(std::uint16_t value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

}  // namespace

Optimizer::Optimizer(const OptimizerSettings &settings, const Layout &layout, float *params, const float *grads,
                     ThreadPool &pool)
    : layout_(layout), params_(params), loop_(Loop{&pool}) {
    mofo::Options options = options_for(settings, pool);
    options.use(loop_);
    const StatePlan plan(options, layout);
    state_ = std::make_unique<Arena>(plan.bytes, place_of_state);
    if (settings.bf16) {
        bf16_ = std::make_unique<Arena>(layout.size() * sizeof(std::uint16_t), place_of_bf16);
        narrow();
        widen();
    }

    mofo_ = mofo::Optimizer(options);
    for (std::size_t i = 0; i < layout.tensors().size(); ++i) {
        const TensorSpec &spec = layout.tensors()[i];
        mofo::Tensor tensor = describe(spec);
        if (bf16_) {
            tensor.set_param(bf16_->bytes() + spec.offset * sizeof(std::uint16_t), mofo::Dtype::bf16);
        } else {
            tensor.set_param(params + spec.offset);
        }
        tensor.set_grad(grads + spec.offset);
        tensor.exp_avg = state_->bytes() + plan.exp_avg[i];
        tensor.exp_avg_sq = state_->bytes() + plan.exp_avg_sq[i];
        mofo_.add(tensor);
    }
}

StepOutcome Optimizer::step(double learning_rate, std::size_t micro_batches) {
    mofo_step_report report;
    mofo::StepArgs args;
    args.learning_rate = learning_rate;
    args.grad_scale = 1.0 / static_cast<double>(micro_batches);
    args.report_to(report);
    const bool taken = mofo_.step(args);
    if (bf16_) {
        widen();
    }
    return {report.grad_norm, taken};
}

void Optimizer::load(const std::string &path, std::uint64_t steps) {
    mofo_.load(path);
    for (const TensorSpec &spec : layout_.tensors()) {
        const std::uint64_t found = mofo_.tensor_state(mofo_.find(spec.name.c_str())).step_count;
        if (found != steps) {
            throw Error(path + ": " + spec.name + " is at step " + std::to_string(found) +
                        ", the parameters are at step " + std::to_string(steps));
        }
    }
}

void Optimizer::narrow() {
    auto *const narrow = reinterpret_cast<std::uint16_t *>(bf16_->bytes());
    for (std::size_t i = 0; i < layout_.size(); ++i) {
        narrow[i] = to_bf16(params_[i]);
    }
}

void Optimizer::widen() {
    const auto *const narrow = reinterpret_cast<const std::uint16_t *>(bf16_->bytes());
    for (std::size_t i = 0; i < layout_.size(); ++i) {
        params_[i] = from_bf16(narrow[i]);
    }
}

}  // namespace engine
