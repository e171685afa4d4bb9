// SPDX-License-Identifier: MIT OR Apache-2.0

#include "settings.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <sstream>

#include "format.hpp"
#include "threads.hpp"

namespace bench {
namespace {

constexpr mofo::CpuTier tiers[] = {mofo::CpuTier::best, mofo::CpuTier::portable, mofo::CpuTier::avx2,
                                   mofo::CpuTier::avx512};

std::vector<std::string> format_names() {
    std::vector<std::string> names;
    for (const Format &format : all_formats()) {
        names.emplace_back(format.name);
    }
    return names;
}

std::vector<std::string> tier_names() {
    std::vector<std::string> names;
    for (const mofo::CpuTier tier : tiers) {
        names.emplace_back(name_of(tier));
    }
    return names;
}

std::string join(const std::vector<std::string> &words) {
    std::string text;
    for (const std::string &word : words) {
        text += (text.empty() ? "" : ", ") + word;
    }
    return text;
}

std::vector<std::string> split(const std::string &list) {
    std::vector<std::string> items;
    std::istringstream stream(list);
    for (std::string item; std::getline(stream, item, ',');) {
        items.push_back(item);
    }
    return items;
}

double parse_number(const std::string &flag, const std::string &text, double least, double most) {
    char *end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !(value >= least && value <= most)) {
        char range[80];
        std::snprintf(range, sizeof range, "%.15g to %.15g", least, most);
        throw UsageError(flag + ": '" + text + "' is no number from " + range);
    }
    return value;
}

std::uint64_t parse_count(const std::string &flag, const std::string &text, double least, double most) {
    const double value = parse_number(flag, text, least, most);
    if (value != std::floor(value)) {
        throw UsageError(flag + ": '" + text + "' is no whole number");
    }
    return static_cast<std::uint64_t>(value);
}

std::string parse_name(const std::string &flag, const std::string &text, const std::vector<std::string> &known) {
    if (std::find(known.begin(), known.end(), text) == known.end()) {
        throw UsageError(flag + ": there is no '" + text + "', only " + join(known));
    }
    return text;
}

template <class Parse> auto parse_list(const std::string &flag, const std::string &list, const Parse &parse_item) {
    std::vector<decltype(parse_item(list))> values;
    for (const std::string &item : split(list)) {
        values.push_back(parse_item(item));
    }
    if (values.empty()) {
        throw UsageError(flag + ": the list is empty");
    }
    return values;
}

/** A flag of the command line; with an empty `value_name` it takes no value. */
struct Flag {
    std::string name;
    std::string value_name;
    std::string help;
    std::function<void(const std::string &)> set;
};

std::vector<Flag> flags_of(Settings &settings, const std::vector<std::string> &case_names) {
    using Names = std::vector<std::string>;
    const auto names_from = [](const std::string &flag, const Names &known, Names &into) {
        return [flag, known, &into](const std::string &list) {
            into = parse_list(flag, list, [&](const std::string &name) { return parse_name(flag, name, known); });
        };
    };
    const auto count_into = [](const std::string &flag, double least, double most, auto &into) {
        return [flag, least, most, &into](const std::string &text) {
            into = static_cast<unsigned>(parse_count(flag, text, least, most));
        };
    };
    return {
        {"--cases", "NAMES", "the cases to run, separated by commas: " + join(case_names) + " (all)",
         names_from("--cases", case_names, settings.cases)},
        {"--numel", "COUNTS", "entries of the tensor, where its shape is not given (each case has its own)",
         [&](const std::string &list) {
             settings.numel = parse_list("--numel", list, [](const std::string &text) {
                 return parse_count("--numel", text, 64, 1e11);
             });
         }},
        {"--alpha", "FRACTIONS", "update fractions; 1, which is AdamW, is always measured (each case has its own)",
         [&](const std::string &list) {
             settings.update_fractions = parse_list("--alpha", list, [](const std::string &text) {
                 const double fraction = parse_number("--alpha", text, 0.0, 1.0);
                 if (fraction == 0.0) {
                     throw UsageError("--alpha: 0 moves nothing");
                 }
                 return fraction;
             });
         }},
        {"--dtypes", "NAMES", "formats of the case `dtypes`: " + join(format_names()) + " (all)",
         names_from("--dtypes", format_names(), settings.dtypes)},
        {"--tier", "NAME", "instructions to use, but in the case `tiers`: " + join(tier_names()) + " (best)",
         [&](const std::string &name) {
             const std::vector<std::string> names = tier_names();
             parse_name("--tier", name, names);
             settings.tier = tiers[std::find(names.begin(), names.end(), name) - names.begin()];
         }},
        {"--threads", "COUNT", "threads of a step (all that the process may use)",
         count_into("--threads", 1, 1024, settings.threads)},
        {"--rounds", "COUNT", "rounds (16, with --full 48; four times as many up to 2^20 entries, a fourth above 2^28)",
         count_into("--rounds", 1, 1e6, settings.rounds)},
        {"--warm-up", "STEPS", "steps before the first round (5)",
         count_into("--warm-up", 1, 1e6, settings.warm_up_steps)},
        {"--grad-buffers", "COUNT",
         "gradients that are used in turn; 1 is made anew for each step (64 for small tensors, 4 for large ones)",
         count_into("--grad-buffers", 1, 1e4, settings.grad_buffers)},
        {"--sparse-steps", "COUNT", "steps before those of the case `sparse` (2000)",
         count_into("--sparse-steps", 0, 1e6, settings.sparse_steps)},
        {"--pause-ms", "TIME", "idle time before each sample (2)",
         [&](const std::string &text) { settings.pause_ms = parse_number("--pause-ms", text, 0.0, 1e4); }},
        {"--max-memory", "GIB", "memory to use at most (nine tenths of what is free)",
         [&](const std::string &text) {
             const double gib = parse_number("--max-memory", text, 0.0, 1e6);
             settings.max_memory = static_cast<std::uint64_t>(gib * (1 << 30));
         }},
        {"--json", "PATH", "write environment, settings, figures and every sample to this file",
         [&](const std::string &path) { settings.json = path; }},
        {"--full", "", "larger tensors and more rounds: takes many minutes",
         [&](const std::string &) { settings.full = true; }},
        {"--help", "", "print this", [&](const std::string &) { settings.help = true; }},
    };
}

}  // namespace

Settings parse_settings(const std::vector<std::string> &arguments, const std::vector<std::string> &case_names) {
    Settings settings;
    settings.threads = usable_cores();
    const std::vector<Flag> flags = flags_of(settings, case_names);
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        const std::string &argument = arguments[i];
        const std::size_t equals = argument.find('=');
        const std::string name = argument.substr(0, equals);
        const auto flag =
            std::find_if(flags.begin(), flags.end(), [&](const Flag &candidate) { return candidate.name == name; });
        if (flag == flags.end()) {
            throw UsageError("there is no flag '" + argument + "'");
        }
        const bool takes_value = !flag->value_name.empty();
        if (equals != std::string::npos) {
            if (!takes_value) {
                throw UsageError(name + " takes no value");
            }
            flag->set(argument.substr(equals + 1));
        } else if (!takes_value) {
            flag->set("");
        } else if (i + 1 < arguments.size()) {
            flag->set(arguments[++i]);
        } else {
            throw UsageError(name + " needs a value");
        }
    }
    return settings;
}

std::string help_text(const std::vector<std::string> &case_names) {
    Settings unused;
    std::ostringstream text;
    text << "Times optimizer steps of mofo through its C API. benches/README.md explains what is measured.\n\n";
    for (const Flag &flag : flags_of(unused, case_names)) {
        const std::string usage = flag.name + (flag.value_name.empty() ? "" : " " + flag.value_name);
        text << "  " << usage << std::string(usage.size() < 22 ? 22 - usage.size() : 1, ' ') << flag.help << '\n';
    }
    return text.str();
}

const char *name_of(mofo::CpuTier tier) {
    switch (tier) {
    case mofo::CpuTier::best: return "best";
    case mofo::CpuTier::portable: return "portable";
    case mofo::CpuTier::avx2: return "avx2";
    case mofo::CpuTier::avx512: return "avx512";
    }
    return "unknown";
}

}  // namespace bench
