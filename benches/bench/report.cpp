// SPDX-License-Identifier: MIT OR Apache-2.0

#include "report.hpp"

#include <cstdio>
#include <stdexcept>

#include "json.hpp"

namespace bench {
namespace {

constexpr int entries_width = 13;
constexpr int label_width = 27;
constexpr int fraction_width = 6;
constexpr int time_width = 22;
constexpr int bytes_width = 9;
constexpr int rate_width = 8;
constexpr int ratio_width = 22;
constexpr int failed_width = 9;

void print_right(const std::string &text, int width) { std::printf("%*s", width, text.c_str()); }

std::string fixed(std::optional<double> number, int digits) {
    if (!number) {
        return "-";
    }
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, *number);
    return text;
}

/** "1.234 (1.210-1.250)" */
std::string with_interval(const std::optional<Estimate> &estimate, int digits) {
    if (!estimate) {
        return "-";
    }
    return fixed(estimate->median, digits) + " (" + fixed(estimate->low, digits) + "-" + fixed(estimate->high, digits) +
           ")";
}

std::string failed_share(const Counts &counts) {
    if (counts.blocks_estimated == 0) {
        return "-";
    }
    const double share = static_cast<double>(counts.estimates_failed) / static_cast<double>(counts.blocks_estimated);
    return fixed(100.0 * share, 1) + " %";
}

void print_header(const std::vector<std::string> &bases) {
    std::printf("%*s  %-*s", entries_width, "entries", label_width, "step");
    print_right("alpha", fraction_width);
    print_right("ns/entry (95 %)", time_width);
    print_right("B/entry", bytes_width);
    print_right("GB/s", rate_width);
    print_right("x AdamW (95 %)", ratio_width);
    print_right("x copy (95 %)", ratio_width);
    for (std::size_t i = 0; i < bases.size(); ++i) {
        print_right(bases.size() == 1 ? "x base (95 %)" : "x base " + std::to_string(i + 1) + " (95 %)", ratio_width);
    }
    print_right("failed", failed_width);
    std::printf("\n");
}

void print_row(const Row &row) {
    std::printf("%*s  %-*s", entries_width, row.spec.entries.c_str(), label_width, row.spec.label.c_str());
    print_right(fixed(row.spec.update_fraction, 2), fraction_width);
    print_right(with_interval(row.nanoseconds_per_entry, 3), time_width);
    print_right(std::to_string(row.spec.bytes_per_entry), bytes_width);
    print_right(fixed(row.gigabytes_per_second, 1), rate_width);
    print_right(with_interval(row.to_adamw, 2), ratio_width);
    print_right(with_interval(row.to_copy, 2), ratio_width);
    for (const std::optional<Estimate> &ratio : row.to_bases) {
        print_right(with_interval(ratio, 2), ratio_width);
    }
    print_right(failed_share(row.counts), failed_width);
    std::printf("\n");
}

void write(JsonWriter &json, const std::optional<Estimate> &estimate) {
    if (!estimate) {
        json.null();
        return;
    }
    json.begin_object();
    json.member("median", estimate->median);
    json.member("low", estimate->low);
    json.member("high", estimate->high);
    json.member("confidence", estimate->confidence);
    json.end_object();
}

void write(JsonWriter &json, const Row &row, const std::vector<std::string> &bases) {
    json.begin_object();
    json.member("entries", row.spec.numel);
    json.member("step", row.spec.label);
    json.member("update_fraction", row.spec.update_fraction);
    json.member("bytes_per_entry", row.spec.bytes_per_entry);
    json.key("nanoseconds_per_entry");
    write(json, row.nanoseconds_per_entry);
    json.member("gigabytes_per_second", row.gigabytes_per_second);
    json.key("ratio_to_adamw");
    write(json, row.to_adamw);
    json.key("ratio_to_copy");
    write(json, row.to_copy);
    json.key("ratio_to_bases");
    json.begin_object();
    for (std::size_t i = 0; i < row.to_bases.size(); ++i) {
        json.key(bases[i]);
        write(json, row.to_bases[i]);
    }
    json.end_object();
    json.member("steps", row.counts.steps);
    json.member("entries_selected", row.counts.entries_selected);
    json.member("blocks_estimated", row.counts.blocks_estimated);
    json.member("estimates_failed", row.counts.estimates_failed);
    json.member("seconds_per_step", row.seconds);
    json.end_object();
}

void write(JsonWriter &json, const CaseResult &result) {
    json.begin_object();
    json.member("name", result.name);
    json.member("title", result.title);
    json.member("bases", result.bases);
    json.member("notes", result.notes);
    json.key("rows");
    json.begin_array();
    for (const Row &row : result.rows) {
        write(json, row, result.bases);
    }
    json.end_array();
    json.end_object();
}

void write(JsonWriter &json, const Facts &facts) {
    json.begin_object();
    for (const auto &[name, text] : facts) {
        json.member(name, text);
    }
    json.end_object();
}

void write(JsonWriter &json, const Settings &settings) {
    json.begin_object();
    json.member("cases", settings.cases);
    json.member("numel", settings.numel);
    json.member("alpha", settings.update_fractions);
    json.member("dtypes", settings.dtypes);
    json.member("tier", name_of(settings.tier));
    json.member("threads", settings.threads);
    json.member("rounds", settings.rounds);
    json.member("warm_up", settings.warm_up_steps);
    json.member("grad_buffers", settings.grad_buffers);
    json.member("sparse_steps", settings.sparse_steps);
    json.member("pause_ms", settings.pause_ms);
    json.member("max_memory", settings.max_memory);
    json.member("full", settings.full);
    json.end_object();
}

}  // namespace

Report::Report(const Settings &settings, Facts environment)
    : settings_(settings), environment_(std::move(environment)) {
    if (!settings.json.empty()) {
        json_.open(settings.json);
        if (!json_) {
            throw std::runtime_error("cannot write '" + settings.json + "'");
        }
    }
    for (const auto &[name, text] : environment_) {
        std::printf("%s: %s\n", name.c_str(), text.c_str());
    }
}

void Report::begin_case(const std::string &name, const std::string &title, std::vector<std::string> bases) {
    std::printf("\n%s: %s\n", name.c_str(), title.c_str());
    for (std::size_t i = 0; i < bases.size(); ++i) {
        const std::string number = bases.size() == 1 ? "" : " " + std::to_string(i + 1);
        std::printf("base%s: %s\n", number.c_str(), bases[i].c_str());
    }
    print_header(bases);
    std::fflush(stdout);
    cases_.push_back({name, title, std::move(bases), {}, {}});
}

void Report::add_rows(std::vector<Row> rows) {
    for (Row &row : rows) {
        print_row(row);
        cases_.back().rows.push_back(std::move(row));
    }
    std::fflush(stdout);
}

void Report::note(const std::string &text) {
    std::printf("%s\n", text.c_str());
    std::fflush(stdout);
    cases_.back().notes.push_back(text);
}

void Report::finish() {
    environment_.emplace_back("load average at the end", load_average());
    std::printf("\n%s: %s\n", environment_.back().first.c_str(), environment_.back().second.c_str());
    if (settings_.json.empty()) {
        return;
    }
    JsonWriter json(json_);
    json.begin_object();
    json.key("environment");
    write(json, environment_);
    json.key("settings");
    write(json, settings_);
    json.key("cases");
    json.begin_array();
    for (const CaseResult &result : cases_) {
        write(json, result);
    }
    json.end_array();
    json.end_object();
    json_.close();
    if (!json_) {
        throw std::runtime_error("cannot write '" + settings_.json + "'");
    }
}

std::string with_commas(std::uint64_t number) {
    std::string text = std::to_string(number);
    for (std::size_t place = text.size(); place > 3;) {
        place -= 3;
        text.insert(place, ",");
    }
    return text;
}

}  // namespace bench
