// The whole run: pre-training, fine-tuning with AdamW, and, from the same pre-trained parameters, with MoFO.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <cstdint>
#include <string>

#include "arena.hpp"
#include "checkpoint.hpp"
#include "data.hpp"
#include "model.hpp"
#include "options.hpp"
#include "schedule.hpp"
#include "thread_pool.hpp"

namespace engine {

class Run {
  public:
    // Reads the checkpoint that `line` names.
    Run(const CommandLine &line, ThreadPool &pool);

    // Goes on to the end, or until it has taken as many steps as it should. Prints the losses, and the results.
    void go();

  private:
    struct Phase {
        std::string name;
        Text text;
        double update_fraction, weight_decay;
        Schedule schedule;
        double target_loss;  // on held-out text of the phase; 0: takes all steps of the schedule
    };

    // The sizes that --smoke changes.
    struct Scale {
        ModelConfig model;
        std::size_t text, evaluation_batches;
        std::uint64_t evaluate_every, print_every;
        double target_loss;
    };

    Phase phase() const;
    const Tokens &training_text(const Phase &phase) const;
    const Tokens &held_out_text(const Phase &phase) const;
    double held_out_loss(const Tokens &text);

    // False if the run stops before the phase is over.
    bool train(const Phase &phase);
    // Returns the loss.
    double step(const Phase &phase, Optimizer &optimizer);
    void finish_phase();
    void save(Optimizer *optimizer);
    void print_results() const;

    CommandLine line_;
    Scale scale_;
    Model model_;
    RunIdentity identity_;
    Tokens prose_, new_, held_out_prose_, held_out_new_;
    Arena params_, grads_, pretrained_;
    Progress progress_;
    std::uint64_t steps_taken_ = 0;  // by this process
    std::string last_saved_optimizer_;
    ThreadPool &pool_;
};

}  // namespace engine
