// What is measured: something that makes a step, over and over, on parameters and moments of its own.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_CONTENDERS_HPP
#define MOFO_BENCH_CONTENDERS_HPP

#include <cstdint>
#include <memory>
#include <mofo.hpp>
#include <string>
#include <vector>

#include "../adamw.h"
#include "format.hpp"
#include "gradients.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace bench {

/** Hyper-parameters of all contenders. */
inline constexpr adamw_settings hyper_parameters = {1e-4, 0.9, 0.999, 1e-8, 0.01};

/** What the steps of a contender have reported, summed. */
struct Counts {
    std::uint64_t steps = 0;
    std::uint64_t entries_selected = 0;
    std::uint64_t blocks_estimated = 0;
    std::uint64_t estimates_failed = 0;
};

class Contender {
  public:
    Contender() = default;
    Contender(const Contender &) = delete;
    Contender &operator=(const Contender &) = delete;
    virtual ~Contender() = default;

    /** Takes the gradient of a step. Not timed. */
    virtual void load(std::uint64_t step) = 0;
    /** Timed. */
    virtual void step() = 0;
    virtual Counts counts() const { return {}; }
};

/** One of the tensors of a model. */
struct TensorShape {
    std::string name;
    std::uint64_t numel;
    bool is_vector;
};

/** Tensors whose parameters and gradients lie side by side. */
using Model = std::vector<TensorShape>;

Model one_tensor(std::uint64_t numel);
/** The 148 tensors of GPT-2 with 124,439,808 parameters. */
Model gpt2();
std::uint64_t entries_of(const Model &model);

/** How a contender of mofo is set up. */
struct StepSettings {
    double update_fraction = 1.0;
    Format format = f32_format;
    mofo::CpuTier tier = mofo::CpuTier::best;
    unsigned threads = 1;
    bool skip_nonfinite = false;
    double max_grad_norm = 0.0;
    /** Whether biases and weights of norms move in full, as is usual. */
    bool vectors_in_full = false;
};

/** The parameter and moments of one f32 tensor, for contenders that take turns in them where memory is short. */
struct SharedState {
    SharedState(ThreadTeam &team, std::uint64_t numel);

    Buffer param;
    Buffer exp_avg;
    Buffer exp_avg_sq;
};

/** mofo through its C API. */
class MofoStep : public Contender {
  public:
    MofoStep(ThreadTeam &team, const StepSettings &settings, const Model &model,
             std::shared_ptr<GradientSource> gradients, std::shared_ptr<SharedState> shared = nullptr);

    void load(std::uint64_t step) override;
    void step() override;
    Counts counts() const override { return counts_; }

    /** Entries that should move in a step: the k of each tensor, summed. What ties with the last one moves, too. */
    std::uint64_t expected_selection() const;
    /** Entries that have moved in the last step. */
    std::uint64_t last_selection() const { return report_.entries_selected; }

    const StepSettings &settings() const { return settings_; }
    const void *param() const { return param_; }
    /** Of a model of one tensor with moments in f32. */
    Moments moments();
    /** Takes what the moments now are for those of this many steps. Of a model of one tensor. */
    void resume(std::uint64_t steps);

    /** Bytes that such a contender allocates, the library's share included. */
    static std::uint64_t memory(const StepSettings &settings, const Model &model, bool shares_state = false);

  private:
    struct BoundTensor {
        std::uint64_t index;
        std::uint64_t numel;
        double update_fraction;
    };

    StepSettings settings_;
    std::uint64_t entries_;
    std::shared_ptr<GradientSource> gradients_;
    std::shared_ptr<SharedState> shared_;
    Buffer own_param_;
    void *param_ = nullptr;
    std::vector<BoundTensor> tensors_;
    mofo::Optimizer optimizer_;
    mofo::Report report_;
    mofo::StepArgs args_;
    Counts counts_;
};

/** The plain C loop, on one thread. Of one f32 tensor. */
class PlainAdamW : public Contender {
  public:
    using Function = decltype(&adamw_step_as_is);

    PlainAdamW(ThreadTeam &team, Function function, std::uint64_t numel, std::shared_ptr<GradientSource> gradients);

    void load(std::uint64_t step) override;
    void step() override;

    const float *param() const { return param_.as<float>(); }

  private:
    Function function_;
    std::uint64_t numel_;
    std::shared_ptr<GradientSource> gradients_;
    Buffer param_;
    Buffer exp_avg_;
    Buffer exp_avg_sq_;
    const float *gradient_ = nullptr;
    int steps_ = 0;
};

/** Memory to copy within; those who copy take turns in it. */
struct CopyRegion {
    CopyRegion(ThreadTeam &team, std::uint64_t wanted_bytes);

    /** Much larger than caches, where so much is asked for. */
    static std::uint64_t bytes_for(std::uint64_t wanted_bytes);

    Buffer from;
    Buffer to;
};

/** memcpy: reads half of the given bytes and writes the other half. */
class Copy : public Contender {
  public:
    Copy(ThreadTeam &team, unsigned threads, std::uint64_t bytes_moved, std::shared_ptr<CopyRegion> region);

    void load(std::uint64_t) override {}
    void step() override;

  private:
    ThreadTeam &team_;
    unsigned threads_;
    std::uint64_t bytes_;
    std::shared_ptr<CopyRegion> region_;
};

}  // namespace bench

#endif  // MOFO_BENCH_CONTENDERS_HPP
