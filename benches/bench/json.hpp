// A writer of JSON.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_JSON_HPP
#define MOFO_BENCH_JSON_HPP

#include <cstdint>
#include <optional>
#include <ostream>
#include <string_view>
#include <vector>

namespace bench {

/** Writes one JSON document, value by value. The caller closes what it opens, and gives a key to every member. */
class JsonWriter {
  public:
    explicit JsonWriter(std::ostream &out) : out_(out) {}

    void begin_object();
    void end_object();
    void begin_array();
    void end_array();
    void key(std::string_view name);

    void value(std::string_view text);
    void value(const char *text) { value(std::string_view(text)); }
    void value(bool truth);
    void value(std::uint64_t number);
    void value(unsigned number) { value(static_cast<std::uint64_t>(number)); }
    /** JSON has no NaN and no infinities: they become null. */
    void value(double number);
    void null();

    template <class T> void member(std::string_view name, const T &content) {
        key(name);
        value(content);
    }

    template <class T> void value(const std::optional<T> &content) {
        if (content) {
            value(*content);
        } else {
            null();
        }
    }

    template <class T> void value(const std::vector<T> &elements) {
        begin_array();
        for (const T &element : elements) {
            value(element);
        }
        end_array();
    }

  private:
    void separate(std::string_view separator = ", ");
    void open(char bracket);
    void new_line();
    void string(std::string_view text);

    std::ostream &out_;
    /** For each open object or array, whether it has a member already. */
    std::vector<bool> filled_;
    bool after_key_ = false;
};

}  // namespace bench

#endif  // MOFO_BENCH_JSON_HPP
