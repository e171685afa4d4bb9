// The smallest engine in C++17: two tensors, their gradients, and MoFO steps.
// SPDX-License-Identifier: MIT OR Apache-2.0

#include <cstdio>
#include <mofo.hpp>
#include <vector>

int main() {
    std::vector<float> weight(1000), weight_grad(weight.size()), bias(10), bias_grad(bias.size());
    try {
        mofo::Options options;
        options.learning_rate = 0.01;
        options.update_fraction = 0.05;  // of each tensor, the 5 % of largest momentum move
        mofo::Optimizer optimizer(options);

        optimizer.add(mofo::Tensor("weight", weight.data(), weight_grad.data(), weight.size()));
        mofo::Tensor biases("bias", bias.data(), bias_grad.data(), bias.size());
        biases.update_fraction = 1.0;  // biases all move
        optimizer.add(biases);

        for (int step = 0; step < 100; ++step) {
            // Backward: here of (sum of (weight - i / 1000)² + sum of (bias - 1)²) / 2.
            for (std::size_t i = 0; i < weight.size(); ++i) {
                weight_grad[i] = weight[i] - static_cast<float>(i) / 1000.0F;
            }
            for (std::size_t i = 0; i < bias.size(); ++i) {
                bias_grad[i] = bias[i] - 1.0F;
            }
            optimizer.step();
        }
    } catch (const mofo::Error &error) {
        std::fprintf(stderr, "%s: %s\n", mofo::status_name(error.status()), error.what());
        return 1;
    }
    std::printf("bias[0] = %.3f, weight[0] = %.3f, weight[999] = %.3f\n", bias[0], weight[0], weight[999]);
    return 0;
}
