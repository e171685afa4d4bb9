// SPDX-License-Identifier: MIT OR Apache-2.0

#include "json.hpp"

#include <cmath>
#include <cstdio>
#include <string>

namespace bench {

void JsonWriter::begin_object() { open('{'); }
void JsonWriter::end_object() {
    const bool filled = filled_.back();
    filled_.pop_back();
    if (filled) {
        new_line();
    }
    out_ << '}';
    if (filled_.empty()) {
        out_ << '\n';
    }
}
void JsonWriter::begin_array() { open('['); }
void JsonWriter::end_array() {
    filled_.pop_back();
    out_ << ']';
}

void JsonWriter::key(std::string_view name) {
    separate(",");
    new_line();
    string(name);
    out_ << ": ";
    after_key_ = true;
}

void JsonWriter::value(std::string_view text) {
    separate();
    string(text);
}

void JsonWriter::value(bool truth) {
    separate();
    out_ << (truth ? "true" : "false");
}

void JsonWriter::value(std::uint64_t number) {
    separate();
    char text[32];
    std::snprintf(text, sizeof text, "%llu", static_cast<unsigned long long>(number));
    out_ << text;
}

void JsonWriter::value(double number) {
    if (!std::isfinite(number)) {
        null();
        return;
    }
    separate();
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", number);
    out_ << text;
}

void JsonWriter::null() {
    separate();
    out_ << "null";
}

void JsonWriter::separate(std::string_view separator) {
    if (after_key_) {
        after_key_ = false;
        return;
    }
    if (filled_.empty()) {
        return;
    }
    if (filled_.back()) {
        out_ << separator;
    }
    filled_.back() = true;
}

void JsonWriter::open(char bracket) {
    separate();
    out_ << bracket;
    filled_.push_back(false);
}

/** Members of objects begin lines; the elements of an array share one. */
void JsonWriter::new_line() { out_ << '\n' << std::string(filled_.size(), ' '); }

void JsonWriter::string(std::string_view text) {
    out_ << '"';
    for (const char character : text) {
        if (character == '"' || character == '\\') {
            out_ << '\\' << character;
        } else if (static_cast<unsigned char>(character) < 0x20) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(character));
            out_ << escape;
        } else {
            out_ << character;
        }
    }
    out_ << '"';
}

}  // namespace bench
