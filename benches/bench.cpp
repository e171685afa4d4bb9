// Times optimizer steps of mofo through its C API. benches/README.md explains what is measured.
// SPDX-License-Identifier: MIT OR Apache-2.0

#include <algorithm>
#include <cstdio>
#include <exception>
#include <mofo.hpp>
#include <new>
#include <string>
#include <vector>

#include "bench/cases.hpp"
#include "bench/environment.hpp"
#include "bench/report.hpp"
#include "bench/settings.hpp"
#include "bench/threads.hpp"
#include "bench/verify.hpp"

namespace {

std::vector<std::string> case_names() {
    std::vector<std::string> names;
    for (const bench::Case &known : bench::all_cases()) {
        names.push_back(known.name);
    }
    return names;
}

bool is_wanted(const std::vector<std::string> &wanted, const std::string &name) {
    return wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end();
}

void run(const bench::Settings &settings) {
    bench::Report report(settings, bench::describe_environment(settings));
    bench::ThreadTeam team(std::max(settings.threads, bench::usable_cores()));
    bench::verify_plain_loops(team, settings);
    bench::verify_embedding(team, settings);
    bench::Context context = {settings, team, report};
    for (const bench::Case &known : bench::all_cases()) {
        if (is_wanted(settings.cases, known.name)) {
            known.run(context);
        }
    }
    report.finish();
    if (!settings.full) {
        std::printf("--full measures larger tensors and more rounds; --help lists all flags\n");
    }
}

}  // namespace

int main(int argc, char **argv) {
    try {
        const bench::Settings settings = bench::parse_settings({argv + 1, argv + argc}, case_names());
        if (settings.help) {
            std::printf("%s", bench::help_text(case_names()).c_str());
        } else {
            run(settings);
        }
        return 0;
    } catch (const bench::UsageError &error) {
        std::fprintf(stderr, "bench: %s (--help lists the flags)\n", error.what());
        return 2;
    } catch (const mofo::Error &error) {
        std::fprintf(stderr, "bench: %s: %s\n", mofo::status_name(error.status()), error.what());
    } catch (const std::bad_alloc &) {
        std::fprintf(stderr, "bench: out of memory\n");
    } catch (const std::exception &error) {
        std::fprintf(stderr, "bench: %s\n", error.what());
    }
    return 1;
}
