// SPDX-License-Identifier: MIT OR Apache-2.0

#include "run.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "error.hpp"

namespace engine {

namespace {

constexpr std::size_t micro_batches = 2;
constexpr std::uint64_t save_every = 100;

const char *name_of(Text text) {
    switch (text) {
        case Text::prose: return "prose";
        case Text::code: return "code";
        default: return "capitals";
    }
}

}  // namespace

Run::Run(const CommandLine &line, ThreadPool &pool)
    : line_(line),
      scale_(line.smoke ? Scale{{vocabulary, 2, 2, 32, 16, 2}, 2000, 1, 2, 1, 1e-3}
                        : Scale{{vocabulary, 3, 4, 64, 64, 4}, 400000, 16, 10, 20, 1.3}),
      model_(scale_.model, pool),
      identity_{line.seed,
                static_cast<std::uint64_t>(line.text),
                line.steps,
                scale_.model.layers,
                scale_.model.heads,
                scale_.model.width,
                scale_.model.length,
                scale_.model.sequences,
                micro_batches,
                line.bf16 ? 1U : 0U,
                line.learning_rate,
                line.update_fraction},
      prose_(write_text(Text::prose, Split::training, line.seed, scale_.text)),
      new_(write_text(line.text, Split::training, line.seed, scale_.text)),
      held_out_prose_(write_text(Text::prose, Split::held_out, line.seed, scale_.text)),
      held_out_new_(write_text(line.text, Split::held_out, line.seed, scale_.text)),
      params_(model_.layout().size() * sizeof(float), 0),
      grads_(model_.layout().size() * sizeof(float), 1),
      pretrained_(model_.layout().size() * sizeof(float), 0),
      pool_(pool) {
    if (line.resume.empty()) {
        model_.initialise(params_.floats(), line.seed);
        if (!line.save.empty()) {
            save(nullptr);  // a path that cannot be written is better found out now
        }
    } else {
        const SavedArenas arenas = {params_.floats(), pretrained_.floats(), model_.layout().size()};
        progress_ = load_checkpoint(line.resume, identity_, arenas);
        if (line.resume == line.save && progress_.step > 0) {
            last_saved_optimizer_ = optimizer_path(line.resume, progress_);
        }
    }
}

Run::Phase Run::phase() const {
    const std::uint64_t most = 4 * line_.steps;
    const Schedule fine_tuning = {line_.learning_rate, std::min<std::uint64_t>(20, most / 2), most};
    char mofo[32];
    std::snprintf(mofo, sizeof mofo, "MoFO, %g", line_.update_fraction);
    const Schedule pre_training = {3e-3, std::min<std::uint64_t>(40, line_.steps / 2), line_.steps};
    switch (progress_.phase) {
        case 0: return {"pre-training", Text::prose, 1.0, 0.1, pre_training, 0.0};
        case 1: return {"AdamW", line_.text, 1.0, 0.0, fine_tuning, scale_.target_loss};
        default: return {mofo, line_.text, line_.update_fraction, 0.0, fine_tuning, scale_.target_loss};
    }
}

const Tokens &Run::training_text(const Phase &phase) const { return phase.text == Text::prose ? prose_ : new_; }

const Tokens &Run::held_out_text(const Phase &phase) const {
    return phase.text == Text::prose ? held_out_prose_ : held_out_new_;
}

double Run::held_out_loss(const Tokens &text) {
    return evaluate(model_, params_.floats(), text, scale_.evaluation_batches);
}

void Run::go() {
    std::printf("%zu parameters in %zu tensors, %d threads\n", model_.layout().parameters(),
                model_.layout().tensors().size(), pool_.threads());
    while (progress_.phase < phases) {
        if (!train(phase())) {
            std::printf("stopped after %llu steps\n", static_cast<unsigned long long>(steps_taken_));
            return;
        }
    }
    if (!line_.save.empty()) {
        save(nullptr);
    }
    print_results();
}

bool Run::train(const Phase &phase) {
    std::printf("%s on %s, from step %llu\n", phase.name.c_str(), name_of(phase.text),
                static_cast<unsigned long long>(progress_.step));
    // A phase starts with new moments, as fine-tuning does from parameters that someone else has published.
    Optimizer optimizer({phase.update_fraction, phase.weight_decay, 1.0, line_.bf16, line_.seed}, model_.layout(),
                        params_.floats(), grads_.floats(), pool_);
    if (progress_.step > 0) {
        // Only the first phase of this process can be in its middle.
        optimizer.load(optimizer_path(line_.resume, progress_), progress_.step);
    }

    bool reached = false;
    while (!reached && progress_.step < phase.schedule.steps) {
        if (line_.stop_after != 0 && steps_taken_ == line_.stop_after) {
            if (!line_.save.empty()) {
                save(progress_.step > 0 ? &optimizer : nullptr);
            }
            return false;
        }
        const double loss = step(phase, optimizer);
        if (!std::isfinite(loss)) {
            throw Error("the loss is not finite: the learning rate is too high");
        }
        if (phase.target_loss > 0.0 && progress_.step % scale_.evaluate_every == 0) {
            reached = held_out_loss(held_out_text(phase)) <= phase.target_loss;
        }
        if (!line_.save.empty() && progress_.step % save_every == 0 && !reached) {
            save(&optimizer);
        }
    }
    finish_phase();
    return true;
}

double Run::step(const Phase &phase, Optimizer &optimizer) {
    std::fill_n(grads_.floats(), model_.layout().size(), 0.0F);
    double loss = 0.0;
    for (std::size_t i = 0; i < micro_batches; ++i) {
        const std::uint64_t number = (progress_.phase << 40) + progress_.step * micro_batches + i;
        const Batch batch = training_batch(training_text(phase), model_.config(), line_.seed, number);
        loss += model_.forward(params_.floats(), batch) / static_cast<double>(micro_batches);
        model_.backward(params_.floats(), grads_.floats(), batch);
    }
    const double rate = phase.schedule.learning_rate(progress_.step);
    const StepOutcome outcome = optimizer.step(rate, micro_batches);
    ++progress_.step;
    ++steps_taken_;
    if (progress_.step % scale_.print_every == 0) {
        std::printf("  step %5llu  loss %.6f  norm %.6f  rate %.2e%s\n",
                    static_cast<unsigned long long>(progress_.step), loss, outcome.grad_norm, rate,
                    outcome.taken ? "" : "  skipped");
        std::fflush(stdout);
    }
    return loss;
}

void Run::finish_phase() {
    const std::size_t size = model_.layout().size();
    if (progress_.phase == 0) {
        std::copy_n(params_.floats(), size, pretrained_.floats());
    }
    double squares = 0.0;
    for (std::size_t i = 0; i < size; ++i) {
        const double moved = static_cast<double>(params_.floats()[i]) - pretrained_.floats()[i];
        squares += moved * moved;
    }
    progress_.results[progress_.phase] = {progress_.step, held_out_loss(held_out_prose_),
                                          held_out_loss(held_out_new_), std::sqrt(squares)};
    std::printf("  parameters %016llx\n",
                static_cast<unsigned long long>(hash_of(params_.floats(), size * sizeof(float))));
    std::copy_n(pretrained_.floats(), size, params_.floats());
    ++progress_.phase;
    progress_.step = 0;
}

void Run::save(Optimizer *optimizer) {
    save_checkpoint(line_.save, identity_, progress_, {params_.floats(), pretrained_.floats(), model_.layout().size()},
                    optimizer);
    const std::string saved = optimizer != nullptr ? optimizer_path(line_.save, progress_) : std::string();
    if (!last_saved_optimizer_.empty() && last_saved_optimizer_ != saved) {
        std::remove(last_saved_optimizer_.c_str());
    }
    last_saved_optimizer_ = saved;
}

void Run::print_results() const {
    std::printf("\n%-14s %12s %12s %8s %10s\n", "", "loss, prose", "new text", "steps", "moved by");
    const char *const names[] = {"pre-trained", "AdamW", "MoFO"};
    for (std::size_t i = 0; i < phases; ++i) {
        const PhaseResult &result = progress_.results[i];
        std::printf("%-14s %12.3f %12.3f %8llu %10.2f\n", names[i], result.prose_loss, result.new_loss,
                    static_cast<unsigned long long>(result.steps), result.distance);
    }
    for (std::size_t i = 1; i < phases; ++i) {
        if (progress_.results[i].new_loss > scale_.target_loss) {
            std::printf("%s has not reached the loss of %g on the new text: the rows do not compare.\n", names[i],
                        scale_.target_loss);
        }
    }
}

}  // namespace engine
