// The data that steps work on: initial weights, and gradients that are fresh at every step.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_GRADIENTS_HPP
#define MOFO_BENCH_GRADIENTS_HPP

#include <cstdint>
#include <memory>
#include <mofo.hpp>
#include <vector>

#include "memory.hpp"
#include "threads.hpp"

namespace bench {

/** Weights of the size that they have in a transformer. */
void fill_weights(ThreadTeam &team, std::uint64_t numel, mofo::Dtype dtype, void *out);

/** What the gradients of a tensor look like. All but `ordinary` are meant to be hard on an estimate of a threshold. */
enum class Pattern {
    /** Heavy-tailed noise around a mean that moves slowly, in a circle; each row of 4,096 has a scale of its own. */
    ordinary,
    /** Ordinary; in every other step a million times as large. */
    alternating_scale,
    /** The same number everywhere. */
    all_equal,
    all_zero,
    /** In ascending order. */
    ascending,
    /** Ordinary in the first half, zero in the second. */
    half_zero,
    /** About a share α of the cache lines holds large values and the others small ones, all of nearly the same size:
        the threshold lies at the edge of the gap, on a side that only an exact count can tell. */
    two_clusters,
    /** Ordinary; in four places, together 0.4 % of the tensor, a million times as large. */
    few_places
};

const std::vector<Pattern> &all_patterns();
const char *name_of(Pattern pattern);

/** Entries `first` to `first + count - 1` of the gradient of one step. `phase`: where the mean is on its circle. */
struct GradientSlice {
    Pattern pattern;
    std::uint64_t numel;
    std::uint64_t step;
    double phase;
    /** The α that `two_clusters` is aimed at. */
    double update_fraction;
};

void fill_gradient(const GradientSlice &slice, std::uint64_t first, std::uint64_t count, float *out);

/** Gradients of a tensor, or of several tensors that lie side by side. */
class GradientSource {
  public:
    GradientSource() = default;
    GradientSource(const GradientSource &) = delete;
    GradientSource &operator=(const GradientSource &) = delete;
    virtual ~GradientSource() = default;

    /** The gradient of a step; overwritten when that of another step is asked for. */
    virtual const void *at(std::uint64_t step) = 0;
};

/** Several gradients of one pattern, used in turn; with only one buffer it is made anew for every step. */
class GradientCycle : public GradientSource {
  public:
    GradientCycle(ThreadTeam &team, std::uint64_t numel, mofo::Dtype dtype, unsigned buffers,
                  Pattern pattern = Pattern::ordinary, double update_fraction = 0.1);

    const void *at(std::uint64_t step) override;

  private:
    void fill(std::uint64_t step, void *out);

    ThreadTeam &team_;
    std::uint64_t numel_;
    mofo::Dtype dtype_;
    Pattern pattern_;
    double update_fraction_;
    std::vector<Buffer> buffers_;
    std::uint64_t last_step_ = 0;
};

/** Moments of f32. */
struct Moments {
    float *exp_avg;
    float *exp_avg_sq;
};

/**
 * Gradients of an embedding in f32: in each step only some rows have one, other ones each time. What each row has seen
 * is known, so the moments after thousands of steps are computed row by row, much faster than the steps are made.
 */
class EmbeddingGradients : public GradientSource {
  public:
    EmbeddingGradients(ThreadTeam &team, std::uint64_t rows, std::uint64_t columns, double touched_share);

    /** Makes step 0 the first one after these many. */
    void skip(std::uint64_t steps) { skipped_ = steps; }
    /** The moments after the skipped steps; those that are below the smallest normal number are zero. */
    void moments_after_skipped(double beta1, double beta2, const Moments &out) const;

    const void *at(std::uint64_t step) override;

  private:
    std::vector<std::uint64_t> touched_rows(std::uint64_t step) const;
    void fill_row(std::uint64_t step, std::uint64_t row, float *out) const;

    ThreadTeam &team_;
    std::uint64_t rows_;
    std::uint64_t columns_;
    std::uint64_t touched_;
    std::uint64_t skipped_ = 0;
    Buffer buffer_;
    std::vector<std::uint64_t> filled_rows_;
    std::uint64_t filled_step_ = UINT64_MAX;
};

}  // namespace bench

#endif  // MOFO_BENCH_GRADIENTS_HPP
