// SPDX-License-Identifier: MIT OR Apache-2.0

#include "model.hpp"

#include <algorithm>
#include <cmath>

#include "random.hpp"

namespace engine {

Model::Model(const ModelConfig &config, ThreadPool &pool)
    : config_(config), pool_(pool), at_(), rows_(config.sequences * config.length) {
    const std::size_t c = config.width, n = config.layers, wide = 4 * c;
    const Kind matrix = Kind::matrix, vector = Kind::bias_or_norm;
    at_.token_embedding = layout_.add("token_embedding.weight", matrix, 1, config.vocabulary * c);
    at_.position_embedding = layout_.add("position_embedding.weight", matrix, 1, config.length * c);
    at_.norm1 = layout_.add("layers.norm1.weight", vector, n, c);
    at_.norm1_bias = layout_.add("layers.norm1.bias", vector, n, c);
    // [layers, 3, width, width]: queries, keys and values are matrices of their own, each with its own share.
    at_.qkv = layout_.add("layers.attention.qkv.weight", matrix, 3 * n, c * c);
    at_.qkv_bias = layout_.add("layers.attention.qkv.bias", vector, 3 * n, c);
    at_.projection = layout_.add("layers.attention.projection.weight", matrix, n, c * c);
    at_.projection_bias = layout_.add("layers.attention.projection.bias", vector, n, c);
    at_.norm2 = layout_.add("layers.norm2.weight", vector, n, c);
    at_.norm2_bias = layout_.add("layers.norm2.bias", vector, n, c);
    at_.up = layout_.add("layers.mlp.up.weight", matrix, n, wide * c);
    at_.up_bias = layout_.add("layers.mlp.up.bias", vector, n, wide);
    at_.down = layout_.add("layers.mlp.down.weight", matrix, n, c * wide);
    at_.down_bias = layout_.add("layers.mlp.down.bias", vector, n, c);
    at_.final_norm = layout_.add("final_norm.weight", vector, 1, c);
    at_.final_norm_bias = layout_.add("final_norm.bias", vector, 1, c);

    layers_.resize(n);
    for (LayerValues &v : layers_) {
        for (auto *values : {&v.in, &v.norm1, &v.attention, &v.middle, &v.norm2}) {
            values->resize(rows_ * c);
        }
        for (auto *values : {&v.norm1_mean, &v.norm1_scale, &v.norm2_mean, &v.norm2_scale}) {
            values->resize(rows_);
        }
        v.qkv.resize(rows_ * 3 * c);
        v.attention_weights.resize(config.sequences * config.heads * config.length * config.length);
        v.up.resize(rows_ * wide);
        v.activated.resize(rows_ * wide);
    }
    for (auto *values : {&last_, &final_norm_, &d_stream_, &d_narrow_}) {
        values->resize(rows_ * c);
    }
    final_mean_.resize(rows_);
    final_scale_.resize(rows_);
    logits_.resize(rows_ * config.vocabulary);
    d_wide_.resize(rows_ * wide);
}

void Model::initialise(float *params, std::uint64_t seed) const {
    // GPT-2's: norm weights 1, biases 0, matrices normal, those that add to the residual stream smaller.
    const double residual = 0.02 / std::sqrt(2.0 * static_cast<double>(config_.layers));
    std::fill_n(params, layout_.size(), 0.0F);
    std::uint64_t number = 0;
    for (const TensorSpec &tensor : layout_.tensors()) {
        float *const weights = params + tensor.offset;
        const bool is_norm =
            tensor.offset == at_.norm1 || tensor.offset == at_.norm2 || tensor.offset == at_.final_norm;
        const bool is_residual = tensor.offset == at_.projection || tensor.offset == at_.down;
        Random random{seed, for_parameters, number++};
        for (std::size_t i = 0; i < tensor.numel; ++i) {
            if (tensor.kind == Kind::matrix) {
                weights[i] = static_cast<float>(random.normal() * (is_residual ? residual : 0.02));
            } else {
                weights[i] = is_norm ? 1.0F : 0.0F;
            }
        }
    }
}

Attention Model::attention() const {
    return {config_.sequences, config_.length, config_.heads, config_.width / config_.heads};
}

void Model::embed(const float *params, const Batch &batch, float *out) const {
    const std::size_t c = config_.width;
    for (std::size_t i = 0; i < rows_; ++i) {
        const float *const token = params + at_.token_embedding + batch.inputs[i] * c;
        const float *const position = params + at_.position_embedding + i % config_.length * c;
        for (std::size_t j = 0; j < c; ++j) {
            out[i * c + j] = token[j] + position[j];
        }
    }
}

void Model::embed_backward(float *grads, const Batch &batch, const float *d_out) const {
    const std::size_t c = config_.width;
    for (std::size_t i = 0; i < rows_; ++i) {
        float *const token = grads + at_.token_embedding + batch.inputs[i] * c;
        float *const position = grads + at_.position_embedding + i % config_.length * c;
        for (std::size_t j = 0; j < c; ++j) {
            token[j] += d_out[i * c + j];
            position[j] += d_out[i * c + j];
        }
    }
}

void Model::layer_forward(const float *params, std::size_t layer, float *out) {
    const std::size_t c = config_.width, wide = 4 * c;
    LayerValues &v = layers_[layer];
    const auto block = [&](std::size_t offset, std::size_t numel) { return params + offset + layer * numel; };

    norm().forward(pool_, v.norm1.data(), v.norm1_mean.data(), v.norm1_scale.data(), v.in.data(), block(at_.norm1, c),
                   block(at_.norm1_bias, c));
    linear(c, 3 * c).forward(pool_, v.qkv.data(), v.norm1.data(), block(at_.qkv, 3 * c * c),
                             block(at_.qkv_bias, 3 * c));
    attention().forward(pool_, v.attention.data(), v.attention_weights.data(), v.qkv.data());
    linear(c, c).forward(pool_, v.middle.data(), v.attention.data(), block(at_.projection, c * c),
                         block(at_.projection_bias, c));
    for (std::size_t i = 0; i < rows_ * c; ++i) {
        v.middle[i] += v.in[i];
    }
    norm().forward(pool_, v.norm2.data(), v.norm2_mean.data(), v.norm2_scale.data(), v.middle.data(),
                   block(at_.norm2, c), block(at_.norm2_bias, c));
    linear(c, wide).forward(pool_, v.up.data(), v.norm2.data(), block(at_.up, wide * c), block(at_.up_bias, wide));
    gelu(pool_, v.activated.data(), v.up.data(), rows_ * wide);
    linear(wide, c).forward(pool_, out, v.activated.data(), block(at_.down, c * wide), block(at_.down_bias, c));
    for (std::size_t i = 0; i < rows_ * c; ++i) {
        out[i] += v.middle[i];
    }
}

void Model::layer_backward(const float *params, float *grads, std::size_t layer, float *d_stream) {
    const std::size_t c = config_.width, wide = 4 * c;
    const LayerValues &v = layers_[layer];
    const auto block = [&](std::size_t offset, std::size_t numel) { return params + offset + layer * numel; };
    const auto grad = [&](std::size_t offset, std::size_t numel) { return grads + offset + layer * numel; };
    float *const narrow = d_narrow_.data(), *const wider = d_wide_.data();

    linear(wide, c).backward(pool_, wider, grad(at_.down, c * wide), grad(at_.down_bias, c), d_stream,
                             v.activated.data(), block(at_.down, c * wide));
    gelu_backward(pool_, wider, wider, v.up.data(), rows_ * wide);
    linear(c, wide).backward(pool_, narrow, grad(at_.up, wide * c), grad(at_.up_bias, wide), wider, v.norm2.data(),
                             block(at_.up, wide * c));
    norm().backward(pool_, d_stream, grad(at_.norm2, c), grad(at_.norm2_bias, c), narrow, v.middle.data(),
                    block(at_.norm2, c), v.norm2_mean.data(), v.norm2_scale.data());

    linear(c, c).backward(pool_, narrow, grad(at_.projection, c * c), grad(at_.projection_bias, c), d_stream,
                          v.attention.data(), block(at_.projection, c * c));
    attention().backward(pool_, wider, narrow, v.attention_weights.data(), v.qkv.data());
    linear(c, 3 * c).backward(pool_, narrow, grad(at_.qkv, 3 * c * c), grad(at_.qkv_bias, 3 * c), wider,
                              v.norm1.data(), block(at_.qkv, 3 * c * c));
    norm().backward(pool_, d_stream, grad(at_.norm1, c), grad(at_.norm1_bias, c), narrow, v.in.data(),
                    block(at_.norm1, c), v.norm1_mean.data(), v.norm1_scale.data());
}

double Model::forward(const float *params, const Batch &batch) {
    embed(params, batch, layers_.front().in.data());
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
        layer_forward(params, layer, layer + 1 < layers_.size() ? layers_[layer + 1].in.data() : last_.data());
    }
    norm().forward(pool_, final_norm_.data(), final_mean_.data(), final_scale_.data(), last_.data(),
                   params + at_.final_norm, params + at_.final_norm_bias);
    linear(config_.width, config_.vocabulary)
        .forward(pool_, logits_.data(), final_norm_.data(), params + at_.token_embedding, nullptr);
    return cross_entropy(pool_, logits_.data(), batch.targets, config_.vocabulary);
}

void Model::backward(const float *params, float *grads, const Batch &batch) {
    cross_entropy_backward(pool_, logits_.data(), batch.targets, config_.vocabulary);
    linear(config_.width, config_.vocabulary)
        .backward(pool_, d_narrow_.data(), grads + at_.token_embedding, nullptr, logits_.data(), final_norm_.data(),
                  params + at_.token_embedding);
    std::fill(d_stream_.begin(), d_stream_.end(), 0.0F);
    norm().backward(pool_, d_stream_.data(), grads + at_.final_norm, grads + at_.final_norm_bias, d_narrow_.data(),
                    last_.data(), params + at_.final_norm, final_mean_.data(), final_scale_.data());
    for (std::size_t layer = layers_.size(); layer-- > 0;) {
        layer_backward(params, grads, layer, d_stream_.data());
    }
    embed_backward(grads, batch, d_stream_.data());
}

}  // namespace engine
