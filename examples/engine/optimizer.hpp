// Where the engine and mofo meet.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mofo.hpp>
#include <string>

#include "arena.hpp"
#include "thread_pool.hpp"

namespace engine {

struct OptimizerSettings {
    double update_fraction;  // of every matrix; 1 is AdamW
    double weight_decay;     // of every matrix
    double max_grad_norm;
    bool bf16;  // parameters and moments in 16 bits, rounded stochastically
    std::uint64_t seed;
};

struct StepOutcome {
    double grad_norm;  // before clipping
    bool taken;        // false: a gradient was not finite, and nothing has changed
};

// Steps the parameters of an arena by the gradients of another.
class Optimizer {
  public:
    // Both arenas are of `layout`, in f32, and outlive this object, like the pool. With `bf16` the parameters live in
    // 16 bits here, and `params` is what they widen to: rounded now, and written after every step.
    Optimizer(const OptimizerSettings &settings, const Layout &layout, float *params, const float *grads,
              ThreadPool &pool);
    // mofo holds the addresses of members.
    Optimizer(const Optimizer &) = delete;
    Optimizer &operator=(const Optimizer &) = delete;

    // The gradients are sums over `micro_batches`.
    StepOutcome step(double learning_rate, std::size_t micro_batches);

    // Moments, step counts and seed. The parameters are the engine's to save.
    void save(const std::string &path) { mofo_.save(path); }
    // Fails unless the file is of these tensors, each with so many steps taken.
    void load(const std::string &path, std::uint64_t steps);

    std::size_t state_bytes() const { return state_->size(); }

  private:
    // How mofo calls the engine's threads.
    struct Loop {
        ThreadPool *pool;

        void operator()(std::int64_t n, mofo::Task task) const { pool->run(n, task); }
    };

    void narrow();
    void widen();

    const Layout &layout_;
    float *params_;
    mofo::ParallelFor<Loop> loop_;
    std::unique_ptr<Arena> state_;  // the moments
    std::unique_ptr<Arena> bf16_;   // the parameters in 16 bits, if they are
    mofo::Optimizer mofo_;          // last: it goes before what it uses
};

}  // namespace engine
