// SPDX-License-Identifier: MIT OR Apache-2.0

#include "options.hpp"

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "error.hpp"

namespace engine {

const char *const usage =
    "usage: engine [options]\n"
    "Trains a small transformer on prose with AdamW, then fine-tunes it on another text, with AdamW and with MoFO, and\n"
    "tells how well each still knows prose when both know the new text equally well.\n"
    "\n"
    "  --steps N             steps of pre-training, 1 to 1000000; fine-tuning takes at most four times as many (400)\n"
    "  --text code|capitals  what to fine-tune on: program code, or prose in capital letters (code)\n"
    "  --learning-rate X     peak of fine-tuning, above 0, at most 1 (0.001)\n"
    "  --update-fraction X   of MoFO: the share of each matrix that moves in a step, above 0, at most 1 (0.05)\n"
    "  --seed N              of parameters, texts and batches (1)\n"
    "  --bf16                parameters and moments in 16 bits, rounded stochastically\n"
    "  --threads N           1 to 256; the numbers do not depend on it (all processors, at most 256)\n"
    "  --save PATH           saves every 100 steps and at the end: PATH, and PATH.optimizer-PHASE-STEP beside it\n"
    "  --stop-after N        stops after N steps, 1 to 1000000000, of this process\n"
    "  --resume PATH         goes on where a run with the same options was saved\n"
    "  --smoke               a tiny model and a few steps, to see whether it works\n"
    "  --check-gradients     compares the backward pass with differences of losses, and ends\n"
    "  --help                this\n";

namespace {

template <class Number> Number integer(const std::string &option, const char *text, Number least, Number most) {
    Number value{};
    const char *const end = text + std::strlen(text);
    const auto [stop, error] = std::from_chars(text, end, value);
    if (error != std::errc() || stop != end || value < least || value > most) {
        throw Error(option + ": '" + text + "' is not an integer from " + std::to_string(least) + " to " +
                    std::to_string(most));
    }
    return value;
}

double share(const std::string &option, const char *text) {
    char *stop = nullptr;
    const double value = std::strtod(text, &stop);
    if (stop == text || *stop != '\0' || !(value > 0.0 && value <= 1.0)) {
        throw Error(option + ": '" + text + "' is not a number above 0 and at most 1");
    }
    return value;
}

Text text(const std::string &option, const std::string &name) {
    if (name != "code" && name != "capitals") {
        throw Error(option + ": '" + name + "' is neither code nor capitals");
    }
    return name == "code" ? Text::code : Text::capitals;
}

}  // namespace

CommandLine parse(int count, const char *const *arguments) {
    CommandLine line;
    bool steps_given = false;
    for (int i = 1; i < count; ++i) {
        const std::string option = arguments[i];
        const auto value = [&] {
            if (i + 1 == count) {
                throw Error(option + ": a value is missing");
            }
            return arguments[++i];
        };
        const auto path = [&] {
            const std::string text = value();
            if (text.empty()) {
                throw Error(option + ": the path is empty");
            }
            return text;
        };
        if (option == "--steps") {
            line.steps = integer<std::uint64_t>(option, value(), 1, 1000000);
            steps_given = true;
        } else if (option == "--stop-after") {
            line.stop_after = integer<std::uint64_t>(option, value(), 1, 1000000000);
        } else if (option == "--seed") {
            line.seed = integer<std::uint64_t>(option, value(), 0, UINT64_MAX);
        } else if (option == "--threads") {
            line.threads = integer(option, value(), 1, 256);
        } else if (option == "--learning-rate") {
            line.learning_rate = share(option, value());
        } else if (option == "--update-fraction") {
            line.update_fraction = share(option, value());
        } else if (option == "--text") {
            line.text = text(option, value());
        } else if (option == "--save") {
            line.save = path();
        } else if (option == "--resume") {
            line.resume = path();
        } else if (option == "--bf16") {
            line.bf16 = true;
        } else if (option == "--smoke") {
            line.smoke = true;
        } else if (option == "--check-gradients") {
            line.check_gradients = true;
        } else if (option == "--help") {
            line.help = true;
        } else {
            throw Error("no option '" + option + "'; --help shows them");
        }
    }
    if (line.smoke && !steps_given) {
        line.steps = 4;
    }
    return line;
}

}  // namespace engine
