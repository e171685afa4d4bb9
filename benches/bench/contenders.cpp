// SPDX-License-Identifier: MIT OR Apache-2.0

#include "contenders.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace bench {
namespace {

/**
 * Brings a small gradient into the caches, where an engine's backward pass has just written it; a large one has left
 * them again by the time of the step.
 */
void touch(const void *gradient, std::uint64_t bytes) {
    constexpr std::uint64_t small = 1 << 20;
    constexpr std::uint64_t cache_line = 64;
    if (bytes > small) {
        return;
    }
    const auto *const lines = static_cast<const volatile unsigned char *>(gradient);
    for (std::uint64_t i = 0; i < bytes; i += cache_line) {
        (void)lines[i];
    }
}

mofo::Options options_of(const StepSettings &settings) {
    mofo::Options options;
    options.learning_rate = hyper_parameters.learning_rate;
    options.beta1 = hyper_parameters.beta1;
    options.beta2 = hyper_parameters.beta2;
    options.epsilon = hyper_parameters.epsilon;
    options.weight_decay = hyper_parameters.weight_decay;
    options.update_fraction = settings.update_fraction;
    options.master_weights = settings.format.master ? 1 : 0;
    options.skip_nonfinite = settings.skip_nonfinite ? 1 : 0;
    options.max_grad_norm = settings.max_grad_norm;
    options.num_threads = static_cast<std::int32_t>(settings.threads);
    options.set(settings.tier).set(settings.format.rounding).set_state_dtype(settings.format.state);
    return options;
}

/** Without buffers. */
mofo::Tensor tensor_of(const StepSettings &settings, const TensorShape &shape) {
    mofo::Tensor tensor(shape.name.c_str(), shape.numel);
    tensor.set_param(nullptr, settings.format.param).set_grad(nullptr, settings.format.grad);
    if (shape.is_vector && settings.vectors_in_full) {
        tensor.update_fraction = 1.0;
    }
    return tensor;
}

/** As docs/numerics.md defines it. */
std::uint64_t selection_size(double update_fraction, std::uint64_t numel) {
    const double wanted = std::floor(update_fraction * static_cast<double>(numel));
    return std::clamp<std::uint64_t>(static_cast<std::uint64_t>(wanted), 1, numel);
}

}  // namespace

Model one_tensor(std::uint64_t numel) { return {{"weight", numel, false}}; }

Model gpt2() {
    constexpr std::uint64_t width = 768;
    constexpr std::uint64_t layers = 12;
    Model model = {{"wte.weight", 50257 * width, false}, {"wpe.weight", 1024 * width, false}};
    const auto add_norm = [&](const std::string &name) {
        model.push_back({name + ".weight", width, true});
        model.push_back({name + ".bias", width, true});
    };
    const auto add_linear = [&](const std::string &name, std::uint64_t inputs, std::uint64_t outputs) {
        model.push_back({name + ".weight", inputs * outputs, false});
        model.push_back({name + ".bias", outputs, true});
    };
    for (std::uint64_t layer = 0; layer < layers; ++layer) {
        const std::string prefix = "h." + std::to_string(layer) + ".";
        add_norm(prefix + "ln_1");
        add_linear(prefix + "attn.c_attn", width, 3 * width);
        add_linear(prefix + "attn.c_proj", width, width);
        add_norm(prefix + "ln_2");
        add_linear(prefix + "mlp.c_fc", width, 4 * width);
        add_linear(prefix + "mlp.c_proj", 4 * width, width);
    }
    add_norm("ln_f");
    return model;
}

std::uint64_t entries_of(const Model &model) {
    return std::accumulate(model.begin(), model.end(), std::uint64_t{0},
                           [](std::uint64_t sum, const TensorShape &shape) { return sum + shape.numel; });
}

SharedState::SharedState(ThreadTeam &team, std::uint64_t numel)
    : param(numel * sizeof(float)), exp_avg(numel * sizeof(float)), exp_avg_sq(numel * sizeof(float)) {
    fill_weights(team, numel, mofo::Dtype::f32, param.data());
}

MofoStep::MofoStep(ThreadTeam &team, const StepSettings &settings, const Model &model,
                   std::shared_ptr<GradientSource> gradients, std::shared_ptr<SharedState> shared)
    : settings_(settings), entries_(entries_of(model)), gradients_(std::move(gradients)), shared_(std::move(shared)),
      optimizer_(options_of(settings)) {
    if (shared_ != nullptr) {
        param_ = shared_->param.data();
    } else {
        own_param_ = Buffer(entries_ * size_of(settings.format.param));
        fill_weights(team, entries_, settings.format.param, own_param_.data());
        param_ = own_param_.data();
    }
    for (const TensorShape &shape : model) {
        mofo::Tensor tensor = tensor_of(settings_, shape);
        if (shared_ != nullptr) {
            tensor.exp_avg = shared_->exp_avg.data();
            tensor.exp_avg_sq = shared_->exp_avg_sq.data();
        }
        const bool inherits = tensor.update_fraction == mofo::inherit;
        tensors_.push_back(
            {optimizer_.add(tensor), shape.numel, inherits ? settings_.update_fraction : tensor.update_fraction});
    }
    args_.report_to(report_);
}

void MofoStep::load(std::uint64_t step) {
    const auto *gradient = static_cast<const char *>(gradients_->at(step));
    auto *param = static_cast<char *>(param_);
    touch(gradient, entries_ * size_of(settings_.format.grad));
    for (const BoundTensor &tensor : tensors_) {
        optimizer_.bind(tensor.index, param, gradient);
        param += tensor.numel * size_of(settings_.format.param);
        gradient += tensor.numel * size_of(settings_.format.grad);
    }
}

void MofoStep::step() {
    optimizer_.step(args_);
    ++counts_.steps;
    counts_.entries_selected += report_.entries_selected;
    counts_.blocks_estimated += report_.blocks_estimated;
    counts_.estimates_failed += report_.estimates_failed;
}

std::uint64_t MofoStep::expected_selection() const {
    return std::accumulate(tensors_.begin(), tensors_.end(), std::uint64_t{0},
                           [](std::uint64_t sum, const BoundTensor &tensor) {
                               return sum + selection_size(tensor.update_fraction, tensor.numel);
                           });
}

Moments MofoStep::moments() {
    const mofo_tensor_info info = optimizer_.tensor_state(tensors_.front().index);
    return {static_cast<float *>(info.exp_avg), static_cast<float *>(info.exp_avg_sq)};
}

void MofoStep::resume(std::uint64_t steps) { optimizer_.set_step_count(tensors_.front().index, steps); }

std::uint64_t MofoStep::memory(const StepSettings &settings, const Model &model, bool shares_state) {
    const mofo::Options options = options_of(settings);
    std::uint64_t bytes = shares_state ? 0 : entries_of(model) * size_of(settings.format.param);
    std::uint64_t scratch = 0;
    for (const TensorShape &shape : model) {
        const mofo_state_sizes sizes = mofo::Optimizer::state_size(options, tensor_of(settings, shape));
        bytes += shares_state ? 0 : sizes.allocated;
        scratch = std::max(scratch, sizes.scratch);
    }
    return bytes + scratch;
}

PlainAdamW::PlainAdamW(ThreadTeam &team, Function function, std::uint64_t numel,
                       std::shared_ptr<GradientSource> gradients)
    : function_(function), numel_(numel), gradients_(std::move(gradients)), param_(numel * sizeof(float)),
      exp_avg_(numel * sizeof(float)), exp_avg_sq_(numel * sizeof(float)) {
    fill_weights(team, numel, mofo::Dtype::f32, param_.data());
}

void PlainAdamW::load(std::uint64_t step) {
    gradient_ = static_cast<const float *>(gradients_->at(step));
    touch(gradient_, numel_ * sizeof(float));
}

void PlainAdamW::step() {
    ++steps_;
    function_(&hyper_parameters, steps_, param_.as<float>(), gradient_, exp_avg_.as<float>(), exp_avg_sq_.as<float>(),
              numel_);
}

std::uint64_t CopyRegion::bytes_for(std::uint64_t wanted_bytes) {
    constexpr std::uint64_t enough = std::uint64_t{512} << 20;
    return std::min(wanted_bytes, enough);
}

CopyRegion::CopyRegion(ThreadTeam &team, std::uint64_t wanted_bytes)
    : from(bytes_for(wanted_bytes)), to(bytes_for(wanted_bytes)) {
    // Memory that was never written may be backed by one page of zeros.
    team.split(from.bytes(), 1 << 20, [this](std::uint64_t begin, std::uint64_t end) {
        std::memset(from.as<char>() + begin, 1, end - begin);
        std::memset(to.as<char>() + begin, 2, end - begin);
    });
}

Copy::Copy(ThreadTeam &team, unsigned threads, std::uint64_t bytes_moved, std::shared_ptr<CopyRegion> region)
    : team_(team), bytes_(bytes_moved / 2), region_(std::move(region)) {
    // To wake a thread takes longer than to copy less than this.
    constexpr std::uint64_t worth_a_thread = 1 << 20;
    const std::uint64_t useful = std::max<std::uint64_t>(1, bytes_ / worth_a_thread);
    threads_ = static_cast<unsigned>(std::min<std::uint64_t>(threads, useful));
}

void Copy::step() {
    for (std::uint64_t done = 0; done < bytes_; done += region_->from.bytes()) {
        const std::uint64_t count = std::min<std::uint64_t>(bytes_ - done, region_->from.bytes());
        team_.run(threads_, [&](unsigned thread) {
            const std::uint64_t begin = count * thread / threads_;
            const std::uint64_t end = count * (thread + 1) / threads_;
            std::memcpy(region_->to.as<char>() + begin, region_->from.as<char>() + begin, end - begin);
        });
    }
}

}  // namespace bench
