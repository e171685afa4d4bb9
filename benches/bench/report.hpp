// Tables for people, JSON for programs.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_REPORT_HPP
#define MOFO_BENCH_REPORT_HPP

#include <fstream>
#include <string>
#include <vector>

#include "environment.hpp"
#include "group.hpp"
#include "settings.hpp"

namespace bench {

/** What a case has measured. */
struct CaseResult {
    std::string name;
    std::string title;
    std::vector<std::string> bases;
    std::vector<Row> rows;
    std::vector<std::string> notes;
};

/** Prints a case while it runs, and keeps it for the JSON file. */
class Report {
  public:
    /** Opens the JSON file, if there is to be one, so that a wrong path is known before anything is measured. */
    Report(const Settings &settings, Facts environment);

    void begin_case(const std::string &name, const std::string &title, std::vector<std::string> bases);
    void add_rows(std::vector<Row> rows);
    /** A line below the table. */
    void note(const std::string &text);

    /** Writes the JSON file. Throws if that fails. */
    void finish();

  private:
    const Settings &settings_;
    Facts environment_;
    std::ofstream json_;
    std::vector<CaseResult> cases_;
};

/** "66,000,000" */
std::string with_commas(std::uint64_t number);

}  // namespace bench

#endif  // MOFO_BENCH_REPORT_HPP
