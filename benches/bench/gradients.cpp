// SPDX-License-Identifier: MIT OR Apache-2.0

#include "gradients.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "format.hpp"
#include "random.hpp"

namespace bench {
namespace {

constexpr std::uint64_t row_length = 4096;
constexpr std::uint64_t cache_line_entries = 16;
constexpr double two_pi = 6.283185307179586;
constexpr float gradient_scale = 1e-3F;
constexpr float large = 1e6F;

/** Streams of random bits; noise has one for each step, from `first_noise` on. */
enum Stream : std::uint64_t { weights, row_scales, means, clusters, touched, first_noise };

/** Makes floats of [0, numel) in pieces, and stores them as `dtype`: `make(first, count, floats)`. */
template <class Make>
void fill(ThreadTeam &team, std::uint64_t numel, mofo::Dtype dtype, void *out, const Make &make) {
    team.split(numel, row_length, [&](std::uint64_t begin, std::uint64_t end) {
        std::array<float, row_length> piece;
        for (std::uint64_t first = begin; first < end; first += row_length) {
            const std::uint64_t count = std::min(row_length, end - first);
            make(first, count, piece.data());
            convert(piece.data(), count, dtype, static_cast<char *>(out) + first * size_of(dtype));
        }
    });
}

void fill_ordinary(const GradientSlice &slice, std::uint64_t first, std::uint64_t count, float *out) {
    const DrawTable &normal = DrawTable::normal();
    const DrawTable &heavy = DrawTable::heavy_tailed();
    const auto towards_x = static_cast<float>(0.3 * std::cos(slice.phase));
    const auto towards_y = static_cast<float>(0.3 * std::sin(slice.phase));
    std::uint64_t row = UINT64_MAX;
    float scale = 0.0F;
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t entry = first + i;
        if (entry / row_length != row) {
            row = entry / row_length;
            scale = gradient_scale * std::exp(0.5F * normal[random_bits(row_scales, row)]);
        }
        const std::uint64_t bits = random_bits(means, entry);
        const float mean = normal[bits] + towards_x * normal[bits >> 16] + towards_y * normal[bits >> 32];
        const float noise = heavy[random_bits(first_noise + slice.step, entry)];
        out[i] = scale * (mean + 2.0F * noise);
    }
}

void fill_clusters(const GradientSlice &slice, std::uint64_t first, std::uint64_t count, float *out) {
    const DrawTable &normal = DrawTable::normal();
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t line = (first + i) / cache_line_entries;
        const bool is_large = uniform(random_bits(clusters, line)) < slice.update_fraction;
        const float wobble = 1.0F + 0.01F * normal[random_bits(first_noise + slice.step, first + i)];
        out[i] = (is_large ? gradient_scale : gradient_scale / large) * wobble;
    }
}

/** Whether an entry is in one of four places of a thousandth of the tensor each. */
bool in_few_places(std::uint64_t entry, std::uint64_t numel) {
    const std::uint64_t quarter = std::max<std::uint64_t>(numel / 4, 1);
    const std::uint64_t place = quarter / 3;
    const std::uint64_t offset = entry % quarter;
    return offset >= place && offset < place + std::max<std::uint64_t>(numel / 1000, 1);
}

}  // namespace

void fill_weights(ThreadTeam &team, std::uint64_t numel, mofo::Dtype dtype, void *out) {
    const DrawTable &normal = DrawTable::normal();
    fill(team, numel, dtype, out, [&](std::uint64_t first, std::uint64_t count, float *piece) {
        for (std::uint64_t i = 0; i < count; ++i) {
            piece[i] = 0.02F * normal[random_bits(weights, first + i)];
        }
    });
}

const std::vector<Pattern> &all_patterns() {
    static const std::vector<Pattern> patterns = {
        Pattern::ordinary,  Pattern::alternating_scale, Pattern::all_equal,    Pattern::all_zero,
        Pattern::ascending, Pattern::half_zero,         Pattern::two_clusters, Pattern::few_places};
    return patterns;
}

const char *name_of(Pattern pattern) {
    switch (pattern) {
    case Pattern::ordinary: return "ordinary";
    case Pattern::alternating_scale: return "x 1e6 every other step";
    case Pattern::all_equal: return "all equal";
    case Pattern::all_zero: return "all zero";
    case Pattern::ascending: return "ascending";
    case Pattern::half_zero: return "half zero";
    case Pattern::two_clusters: return "two clusters";
    case Pattern::few_places: return "x 1e6 in few places";
    }
    return "";
}

void fill_gradient(const GradientSlice &slice, std::uint64_t first, std::uint64_t count, float *out) {
    const auto scale_if = [&](auto is_scaled, float scale) {
        for (std::uint64_t i = 0; i < count; ++i) {
            out[i] *= is_scaled(first + i) ? scale : 1.0F;
        }
    };
    switch (slice.pattern) {
    case Pattern::ordinary:
        fill_ordinary(slice, first, count, out);
        break;
    case Pattern::alternating_scale:
        fill_ordinary(slice, first, count, out);
        scale_if([&](std::uint64_t) { return slice.step % 2 == 1; }, large);
        break;
    case Pattern::all_equal:
        std::fill_n(out, count, gradient_scale);
        break;
    case Pattern::all_zero:
        std::fill_n(out, count, 0.0F);
        break;
    case Pattern::ascending:
        for (std::uint64_t i = 0; i < count; ++i) {
            const double place = static_cast<double>(first + i + 1) / static_cast<double>(slice.numel);
            out[i] = gradient_scale * static_cast<float>(place);
        }
        break;
    case Pattern::half_zero:
        fill_ordinary(slice, first, count, out);
        scale_if([&](std::uint64_t entry) { return entry >= slice.numel / 2; }, 0.0F);
        break;
    case Pattern::two_clusters:
        fill_clusters(slice, first, count, out);
        break;
    case Pattern::few_places:
        fill_ordinary(slice, first, count, out);
        scale_if([&](std::uint64_t entry) { return in_few_places(entry, slice.numel); }, large);
        break;
    }
}

GradientCycle::GradientCycle(ThreadTeam &team, std::uint64_t numel, mofo::Dtype dtype, unsigned buffers,
                             Pattern pattern, double update_fraction)
    : team_(team), numel_(numel), dtype_(dtype), pattern_(pattern), update_fraction_(update_fraction) {
    for (unsigned i = 0; i < buffers; ++i) {
        buffers_.emplace_back(numel * size_of(dtype));
        fill(i, buffers_.back().data());
    }
}

const void *GradientCycle::at(std::uint64_t step) {
    Buffer &buffer = buffers_[step % buffers_.size()];
    if (buffers_.size() == 1 && step != last_step_) {
        fill(step, buffer.data());
        last_step_ = step;
    }
    return buffer.data();
}

void GradientCycle::fill(std::uint64_t step, void *out) {
    constexpr std::size_t steps_around_of_fresh_ones = 16;
    const std::size_t steps_around = buffers_.size() == 1 ? steps_around_of_fresh_ones : buffers_.size();
    const double phase = two_pi * static_cast<double>(step) / static_cast<double>(steps_around);
    const GradientSlice slice = {pattern_, numel_, step, phase, update_fraction_};
    bench::fill(team_, numel_, dtype_, out, [&](std::uint64_t first, std::uint64_t count, float *piece) {
        fill_gradient(slice, first, count, piece);
    });
}

EmbeddingGradients::EmbeddingGradients(ThreadTeam &team, std::uint64_t rows, std::uint64_t columns,
                                       double touched_share)
    : team_(team), rows_(rows), columns_(columns),
      touched_(std::max<std::uint64_t>(1, static_cast<std::uint64_t>(touched_share * static_cast<double>(rows)))),
      buffer_(rows * columns * sizeof(float)) {}

/** A random arithmetic progression modulo the number of rows, so that no row comes twice. */
std::vector<std::uint64_t> EmbeddingGradients::touched_rows(std::uint64_t step) const {
    const std::uint64_t start = random_bits(touched, 2 * step) % rows_;
    std::uint64_t stride = random_bits(touched, 2 * step + 1) % rows_;
    while (std::gcd(stride, rows_) != 1) {
        ++stride;
    }
    std::vector<std::uint64_t> rows(touched_);
    for (std::uint64_t i = 0; i < touched_; ++i) {
        rows[i] = (start + i * stride) % rows_;
    }
    return rows;
}

void EmbeddingGradients::fill_row(std::uint64_t step, std::uint64_t row, float *out) const {
    const GradientSlice slice = {Pattern::ordinary, rows_ * columns_, step, 0.0, 0.0};
    fill_gradient(slice, row * columns_, columns_, out);
}

const void *EmbeddingGradients::at(std::uint64_t step) {
    if (step == filled_step_) {
        return buffer_.data();
    }
    auto *const gradient = buffer_.as<float>();
    for (const std::uint64_t row : filled_rows_) {
        std::fill_n(gradient + row * columns_, columns_, 0.0F);
    }
    filled_rows_ = touched_rows(skipped_ + step);
    team_.split(filled_rows_.size(), 1, [&](std::uint64_t begin, std::uint64_t end) {
        for (std::uint64_t i = begin; i < end; ++i) {
            fill_row(skipped_ + step, filled_rows_[i], gradient + filled_rows_[i] * columns_);
        }
    });
    filled_step_ = step;
    return buffer_.data();
}

void EmbeddingGradients::moments_after_skipped(double beta1, double beta2, const Moments &out) const {
    std::vector<std::vector<std::uint64_t>> steps_of_row(rows_);
    for (std::uint64_t step = 0; step < skipped_; ++step) {
        for (const std::uint64_t row : touched_rows(step)) {
            steps_of_row[row].push_back(step);
        }
    }
    const auto scale = [this](float *moment, double factor) {
        std::transform(moment, moment + columns_, moment, [factor](float value) {
            const auto scaled = static_cast<float>(value * factor);
            return std::fabs(scaled) < std::numeric_limits<float>::min() ? 0.0F : scaled;
        });
    };
    team_.split(rows_, 1, [&](std::uint64_t begin, std::uint64_t end) {
        std::vector<float> gradient(columns_);
        for (std::uint64_t row = begin; row < end; ++row) {
            float *const m = out.exp_avg + row * columns_;
            float *const v = out.exp_avg_sq + row * columns_;
            std::fill_n(m, columns_, 0.0F);
            std::fill_n(v, columns_, 0.0F);
            std::uint64_t steps_seen = 0;
            const auto decay_until = [&](std::uint64_t steps) {
                const auto elapsed = static_cast<double>(steps - steps_seen);
                scale(m, std::pow(beta1, elapsed));
                scale(v, std::pow(beta2, elapsed));
                steps_seen = steps;
            };
            for (const std::uint64_t step : steps_of_row[row]) {
                decay_until(step + 1);
                fill_row(step, row, gradient.data());
                for (std::uint64_t i = 0; i < columns_; ++i) {
                    m[i] += static_cast<float>(1.0 - beta1) * gradient[i];
                    v[i] += static_cast<float>(1.0 - beta2) * gradient[i] * gradient[i];
                }
            }
            decay_until(skipped_);
        }
    });
}

}  // namespace bench
