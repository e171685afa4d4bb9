// A decoder-only transformer as in GPT-2: layer norm, causal attention, MLP, and the token embedding once more as the
// output matrix.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "arena.hpp"
#include "layers.hpp"
#include "thread_pool.hpp"

namespace engine {

struct ModelConfig {
    std::size_t vocabulary, layers, heads, width;
    std::size_t length;     // tokens of a sequence
    std::size_t sequences;  // of a micro-batch
};

// A micro-batch: [sequences, length], both.
struct Batch {
    std::vector<std::uint8_t> inputs, targets;
};

class Model {
  public:
    Model(const ModelConfig &config, ThreadPool &pool);

    const ModelConfig &config() const { return config_; }

    // The tensors, one for each kind of weight, each with all layers. Parameters and gradients are arenas of it.
    const Layout &layout() const { return layout_; }

    void initialise(float *params, std::uint64_t seed) const;

    // The mean loss per token, in nats. Keeps what `backward` needs.
    double forward(const float *params, const Batch &batch);

    // Adds the gradient of the last `forward`'s loss to `grads`; once for each `forward`.
    void backward(const float *params, float *grads, const Batch &batch);

  private:
    // Where the tensors begin. Those of the layers have a block for each layer.
    struct Offsets {
        std::size_t token_embedding, position_embedding;
        std::size_t norm1, norm1_bias, qkv, qkv_bias, projection, projection_bias;
        std::size_t norm2, norm2_bias, up, up_bias, down, down_bias;
        std::size_t final_norm, final_norm_bias;
    };

    // What the layers computed for the micro-batch.
    struct LayerValues {
        std::vector<float> in, norm1, norm1_mean, norm1_scale, qkv, attention_weights, attention;
        std::vector<float> middle, norm2, norm2_mean, norm2_scale, up, activated;
    };

    LayerNorm norm() const { return {rows_, config_.width}; }
    Linear linear(std::size_t inputs, std::size_t outputs) const { return {rows_, inputs, outputs}; }
    Attention attention() const;

    void embed(const float *params, const Batch &batch, float *out) const;
    void embed_backward(float *grads, const Batch &batch, const float *d_out) const;
    void layer_forward(const float *params, std::size_t layer, float *out);
    // `d_stream` is the gradient by the layer's output, and becomes that by its input.
    void layer_backward(const float *params, float *grads, std::size_t layer, float *d_stream);

    ModelConfig config_;
    ThreadPool &pool_;
    Layout layout_;
    Offsets at_;
    std::size_t rows_;
    std::vector<LayerValues> layers_;
    std::vector<float> last_, final_norm_, final_mean_, final_scale_, logits_;
    std::vector<float> d_stream_, d_narrow_, d_wide_;
};

}  // namespace engine
