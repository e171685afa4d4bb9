// SPDX-License-Identifier: MIT OR Apache-2.0

#include "gradient_check.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "model.hpp"
#include "random.hpp"

namespace engine {

namespace {

// Sizes that are no multiples of a tile or of a task's rows.
constexpr ModelConfig config = {11, 2, 3, 18, 7, 3};

constexpr int directions = 4;
constexpr double tolerance = 0.01;

Batch random_batch(std::uint64_t seed) {
    Random random{seed, for_gradient_check, 0};
    Batch batch;
    for (std::size_t i = 0; i < config.sequences * config.length; ++i) {
        batch.inputs.push_back(static_cast<std::uint8_t>(random.below(config.vocabulary)));
        batch.targets.push_back(static_cast<std::uint8_t>(random.below(config.vocabulary)));
    }
    return batch;
}

}  // namespace

bool check_gradients(ThreadPool &pool, std::uint64_t seed) {
    Model model(config, pool);
    const Batch batch = random_batch(seed);
    std::vector<float> params(model.layout().size()), grads(model.layout().size());
    model.initialise(params.data(), seed);
    // Far from the start, where activations are so small that a wrong gradient could hide.
    Random random{seed, for_gradient_check, 1};
    for (float &param : params) {
        param += static_cast<float>(0.3 * random.normal());
    }
    model.forward(params.data(), batch);
    model.backward(params.data(), grads.data(), batch);

    bool all_agree = true;
    for (const TensorSpec &tensor : model.layout().tensors()) {
        const std::size_t block_numel = tensor.numel / tensor.num_blocks;
        double worst = 0.0;
        for (std::size_t block = 0; block < tensor.num_blocks; ++block) {
            const std::size_t first = tensor.offset + block * block_numel;
            for (int direction = 0; direction < directions; ++direction) {
                // Along the gradient, with a random half of the entries left out: the loss changes as much as it can,
                // and an error is seen whichever entries it is in. Every other time in a direction of no gradient's
                // choice, which sees also what is missing from it.
                std::vector<float> step(block_numel);
                double squares = 0.0, product = 0.0;
                for (std::size_t i = 0; i < block_numel; ++i) {
                    const float along = random.below(2) == 0 ? grads[first + i] : 0.0F;
                    const float anywhere = static_cast<float>(random.normal());
                    step[i] = direction % 2 == 0 ? along : anywhere;
                    squares += static_cast<double>(step[i]) * step[i];
                    product += static_cast<double>(step[i]) * grads[first + i];
                }
                const double length = std::sqrt(squares);
                if (length == 0.0) {
                    continue;  // no gradient: the other directions tell whether that is right
                }
                const auto loss_at = [&](double distance) {
                    std::vector<float> moved = params;
                    for (std::size_t i = 0; i < block_numel; ++i) {
                        moved[first + i] += static_cast<float>(distance / length * step[i]);
                    }
                    return model.forward(moved.data(), batch);
                };
                constexpr double distance = 5e-3;
                const double slope = (loss_at(distance) - loss_at(-distance)) / (2.0 * distance);
                // Differences of f32 losses are good to 1e-4. (Biases of keys have no gradient: softmax ignores them.)
                const double computed = product / length;
                worst = std::max(worst, std::fabs(slope - computed) / std::max(std::fabs(computed), 1e-2));
            }
        }
        const bool agrees = worst <= tolerance;  // false for a NaN too
        all_agree = all_agree && agrees;
        std::printf("%-36s relative error %.1e  %s\n", tensor.name.c_str(), worst, agrees ? "ok" : "WRONG");
    }
    return all_agree;
}

}  // namespace engine
