// The command line.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_SETTINGS_HPP
#define MOFO_BENCH_SETTINGS_HPP

#include <cstdint>
#include <mofo.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace bench {

/** A command line that makes no sense. */
class UsageError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

struct Settings {
    /** Names of cases; empty for all. */
    std::vector<std::string> cases;
    /** Instead of what each case has by default; empty if not given. */
    std::vector<std::uint64_t> numel;
    std::vector<double> update_fractions;
    /** Names of formats. */
    std::vector<std::string> dtypes;
    mofo::CpuTier tier = mofo::CpuTier::best;
    unsigned threads = 1;
    std::optional<unsigned> rounds;
    unsigned warm_up_steps = 5;
    /** 0: as the tensor's size asks for. */
    unsigned grad_buffers = 0;
    unsigned sparse_steps = 2000;
    double pause_ms = 2.0;
    /** Bytes. */
    std::optional<std::uint64_t> max_memory;
    std::string json;
    bool full = false;
    bool help = false;
};

/** Throws `UsageError`. */
Settings parse_settings(const std::vector<std::string> &arguments, const std::vector<std::string> &case_names);

std::string help_text(const std::vector<std::string> &case_names);

const char *name_of(mofo::CpuTier tier);

}  // namespace bench

#endif  // MOFO_BENCH_SETTINGS_HPP
