// SPDX-License-Identifier: MIT OR Apache-2.0

#include "data.hpp"

#include <string>

#include "random.hpp"

namespace engine {

namespace {

using Words = std::vector<const char *>;

const char *one_of(Random &random, const Words &words) { return words[random.below(words.size())]; }

std::string noun_phrase(Random &random) {
    static const Words articles = {"the", "a", "every", "her", "his", "that", "no", "our"};
    static const Words adjectives = {"old", "quiet", "small", "bright", "heavy", "gentle", "broken", "silver", "hungry", "patient", "narrow", "clever"};
    static const Words nouns = {"farmer", "lantern", "river", "sailor", "garden", "letter", "miller", "window", "teacher", "basket", "shepherd", "bridge", "candle", "painter", "horse", "village", "doctor", "mountain", "baker", "harbour"};
    std::string phrase = one_of(random, articles);
    if (random.below(2) == 0) {
        phrase = phrase + " " + one_of(random, adjectives);
    }
    return phrase + " " + one_of(random, nouns);
}

std::string sentence(Random &random) {
    static const Words verbs = {"found", "carried", "watched", "remembered", "painted", "followed", "mended", "left", "heard", "crossed", "loved", "described"};
    static const Words places = {"near", "beyond", "behind", "under", "with", "without", "beside", "against"};
    static const Words times = {"before dawn", "at night", "in the morning", "all winter", "once more", "after the storm"};
    static const Words joints = {", and ", ", but ", " while ", " because "};
    std::string text = noun_phrase(random) + " " + one_of(random, verbs) + " " + noun_phrase(random);
    switch (random.below(4)) {
        case 0: text = text + " " + one_of(random, places) + " " + noun_phrase(random); break;
        case 1: text = text + " " + one_of(random, times); break;
        case 2: text = text + one_of(random, joints) + noun_phrase(random) + " " + one_of(random, verbs) + " " + noun_phrase(random); break;
        default: break;
    }
    text[0] = static_cast<char>(text[0] - 'a' + 'A');
    return text + ".";
}

std::string number(Random &random) { return std::to_string(random.below(random.below(3) == 0 ? 100 : 10)); }

std::string variable(Random &random) {
    static const Words variables = {"count", "width", "offset", "total", "index", "depth", "limit", "rows", "size", "rest"};
    return one_of(random, variables);
}

std::string expression(Random &random, int depth) {
    static const Words functions = {"min", "max", "abs", "hash", "load"};
    static const Words operators = {" + ", " - ", " * ", " / ", " % "};
    switch (depth > 0 ? random.below(5) : 3 + random.below(2)) {
        case 0: return std::string(one_of(random, functions)) + "(" + expression(random, depth - 1) + ", " + expression(random, 0) + ")";
        case 1: return variable(random) + "[" + expression(random, 0) + "]";
        case 2: return expression(random, 0) + one_of(random, operators) + expression(random, depth - 1);
        case 3: return number(random);
        default: return variable(random);
    }
}

std::string statement(Random &random) {
    static const Words comparisons = {" < ", " > ", " == ", " != ", " <= "};
    static const Words assignments = {" = ", " += ", " -= ", " *= "};
    const std::string assignment = variable(random) + one_of(random, assignments) + expression(random, 2) + ";";
    switch (random.below(5)) {
        case 0: return "let " + variable(random) + " = " + expression(random, 2) + ";";
        case 1: return "if (" + variable(random) + one_of(random, comparisons) + expression(random, 1) + ") { " + assignment + " }";
        case 2: return "while (" + variable(random) + one_of(random, comparisons) + number(random) + ") { " + assignment + " }";
        case 3: return "return " + expression(random, 2) + ";";
        default: return assignment;
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
    Random random{seed, for_text, static_cast<std::uint64_t>(text), static_cast<std::uint64_t>(split)};
    Tokens tokens;
    while (tokens.size() < length) {
        const std::string line = text == Text::prose ? sentence(random) : statement(random);
        for (const char character : line) {
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
