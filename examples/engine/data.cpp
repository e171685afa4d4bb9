// SPDX-License-Identifier: MIT OR Apache-2.0

#include "data.hpp"

#include <initializer_list>
#include <string>

#include "random.hpp"

namespace engine {

namespace {

using Words = std::vector<const char *>;

// Lines of text, drawn from a grammar. Each piece is a statement or an item of a braced list, whose order C++ lays
// down: in a chain of `+` the compiler would choose which word is drawn first.
class Writer {
  public:
    explicit Writer(Random random) : random_(random) {}

    std::string line(Text text) {
        switch (text) {
            case Text::code: return statement();
            case Text::capitals: return capitals(sentence());
            default: return sentence();
        }
    }

  private:
    static std::string join(std::initializer_list<std::string> parts) {
        std::string text;
        for (const std::string &part : parts) {
            text += part;
        }
        return text;
    }

    static std::string capitals(std::string text) {
        for (char &character : text) {
            if (character >= 'a' && character <= 'z') {
                character = static_cast<char>(character - 'a' + 'A');
            }
        }
        return text;
    }

    std::string one_of(const Words &words) { return words[random_.below(words.size())]; }

    std::string noun_phrase();
    std::string clause();
    std::string sentence();

    std::string number() { return std::to_string(random_.below(random_.below(3) == 0 ? 100 : 10)); }
    std::string variable();
    std::string expression(int depth);
    std::string assignment();
    std::string statement();

    Random random_;
};

std::string Writer::noun_phrase() {
    static const Words articles = {"the", "a", "every", "her", "his", "that", "no", "our"};
    static const Words adjectives = {" old", " quiet", " small", " bright", " heavy", " gentle", " broken", " silver",
                                     " hungry", " patient", " narrow", " clever"};
    static const Words nouns = {" farmer", " lantern", " river", " sailor", " garden", " letter", " miller",
                                " window", " teacher", " basket", " shepherd", " bridge", " candle", " painter",
                                " horse", " village", " doctor", " mountain", " baker", " harbour"};
    const bool described = random_.below(2) == 0;
    return join({one_of(articles), described ? one_of(adjectives) : "", one_of(nouns)});
}

std::string Writer::clause() {
    static const Words verbs = {" found ", " carried ", " watched ", " remembered ", " painted ", " followed ",
                                " mended ", " left ", " heard ", " crossed ", " loved ", " described "};
    return join({noun_phrase(), one_of(verbs), noun_phrase()});
}

std::string Writer::sentence() {
    static const Words places = {" near ", " beyond ", " behind ", " under ", " with ", " without ", " beside "};
    static const Words times = {" before dawn", " at night", " in the morning", " all winter", " after the storm"};
    static const Words joints = {", and ", ", but ", " while ", " because "};
    std::string text = clause();
    switch (random_.below(4)) {
        case 0: text += join({one_of(places), noun_phrase()}); break;
        case 1: text += one_of(times); break;
        case 2: text += join({one_of(joints), clause()}); break;
        default: break;
    }
    text[0] = static_cast<char>(text[0] - 'a' + 'A');
    return text + ".";
}

std::string Writer::variable() {
    static const Words variables = {"count", "width", "offset", "total", "index", "depth", "limit", "rows", "size"};
    return one_of(variables);
}

std::string Writer::expression(int depth) {
    static const Words functions = {"min(", "max(", "hash(", "load("};
    static const Words operators = {" + ", " - ", " * ", " / ", " % "};
    switch (depth > 0 ? random_.below(5) : 3 + random_.below(2)) {
        case 0: return join({one_of(functions), expression(depth - 1), ", ", expression(0), ")"});
        case 1: return join({variable(), "[", expression(0), "]"});
        case 2: return join({expression(0), one_of(operators), expression(depth - 1)});
        case 3: return number();
        default: return variable();
    }
}

std::string Writer::assignment() {
    static const Words operators = {" = ", " += ", " -= ", " *= "};
    return join({variable(), one_of(operators), expression(2), ";"});
}

std::string Writer::statement() {
    static const Words comparisons = {" < ", " > ", " == ", " != "};
    switch (random_.below(5)) {
        case 0: return join({"let ", variable(), " = ", expression(2), ";"});
        case 1: return join({"if (", variable(), one_of(comparisons), expression(1), ") { ", assignment(), " }"});
        case 2: return join({"while (", variable(), one_of(comparisons), number(), ") { ", assignment(), " }"});
        case 3: return join({"return ", expression(2), ";"});
        default: return assignment();
    }
}

std::uint8_t token_of(char character) {
    return character == '\n' ? std::uint8_t{0} : static_cast<std::uint8_t>(character - ' ' + 1);
}

Batch windows(const Tokens &tokens, const ModelConfig &config, Random random) {
    Batch batch;
    for (std::size_t sequence = 0; sequence < config.sequences; ++sequence) {
        const std::size_t first = random.below(tokens.size() - config.length);
        for (std::size_t i = first; i < first + config.length; ++i) {
            batch.inputs.push_back(tokens[i]);
            batch.targets.push_back(tokens[i + 1]);
        }
    }
    return batch;
}

}  // namespace

Tokens write_text(Text text, Split split, std::uint64_t seed, std::size_t length) {
    Writer writer(Random{seed, for_text, static_cast<std::uint64_t>(text), static_cast<std::uint64_t>(split)});
    Tokens tokens;
    while (tokens.size() < length) {
        for (const char character : writer.line(text)) {
            tokens.push_back(token_of(character));
        }
        tokens.push_back(token_of('\n'));
    }
    return tokens;
}

Batch training_batch(const Tokens &tokens, const ModelConfig &config, std::uint64_t seed, std::uint64_t number) {
    return windows(tokens, config, Random{seed, for_batches, number});
}

double evaluate(Model &model, const float *params, const Tokens &tokens, std::size_t batches) {
    double sum = 0.0;
    for (std::size_t i = 0; i < batches; ++i) {
        sum += model.forward(params, windows(tokens, model.config(), Random{for_held_out_batches, i}));
    }
    return sum / static_cast<double>(batches);
}

}  // namespace engine
