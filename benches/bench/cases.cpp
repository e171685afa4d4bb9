// SPDX-License-Identifier: MIT OR Apache-2.0

#include "cases.hpp"

#include <algorithm>
#include <stdexcept>

namespace bench {
namespace {

using Fractions = std::vector<double>;
using Sizes = std::vector<std::uint64_t>;

/** Those of the command line, or else these; 1 comes first, and none comes twice. */
Fractions fractions_or(const Context &context, const Fractions &usual) {
    const Fractions &given = context.settings.update_fractions;
    Fractions fractions = {1.0};
    for (const double fraction : given.empty() ? usual : given) {
        if (std::find(fractions.begin(), fractions.end(), fraction) == fractions.end()) {
            fractions.push_back(fraction);
        }
    }
    return fractions;
}

Fractions usual_fractions(const Context &context) {
    return fractions_or(context, context.settings.full ? Fractions{0.03, 0.1} : Fractions{0.1});
}

Sizes sizes_or(const Context &context, const Sizes &usual) {
    return context.settings.numel.empty() ? usual : context.settings.numel;
}

/** One tensor that no cache holds. */
Sizes large_sizes(const Context &context) {
    return sizes_or(context, {context.settings.full ? std::uint64_t{66'000'000} : std::uint64_t{16'000'000}});
}

StepSettings settings_of(const Context &context) {
    StepSettings settings;
    settings.tier = context.settings.tier;
    settings.threads = context.settings.threads;
    return settings;
}

Variant ordinary_variant(Context &context, std::uint64_t numel, const std::string &label) {
    return {label, settings_of(context), one_tensor(numel), plan_gradients(context, numel)};
}

void run_sizes(Context &context) {
    Sizes sizes = {4'096, 65'536, 1'000'000, 8'000'000, 66'000'000, 67'108'864};
    if (context.settings.full) {
        sizes.push_back(1'000'000'000);
    }
    context.report.begin_case("sizes", "one f32 tensor", {});
    for (const std::uint64_t numel : sizes_or(context, sizes)) {
        const Variant variant = ordinary_variant(context, numel, "mofo");
        const Fractions fractions = fractions_or(context, {0.03, 0.1, 0.2, 0.5});
        Experiment experiment(context, numel);
        experiment.add(variant, fractions);
        if (experiment.fits()) {
            experiment.run();
            continue;
        }
        context.report.note(with_commas(numel) +
                            " entries: too little memory for moments of each step's own; they take turns in the same");
        Experiment sharing(context, numel);
        sharing.share_state();
        sharing.add(variant, fractions);
        sharing.run();
    }
}

void run_dtypes(Context &context) {
    const std::vector<std::string> &wanted = context.settings.dtypes;
    std::vector<Format> formats;
    for (const Format &format : all_formats()) {
        const bool is_base = format.name == std::string(f32_format.name);
        if (is_base || wanted.empty() || std::find(wanted.begin(), wanted.end(), format.name) != wanted.end()) {
            formats.push_back(format);
        }
    }
    context.report.begin_case("dtypes", "one tensor, element types", {"everything in f32, same alpha"});
    for (const std::uint64_t numel : large_sizes(context)) {
        Experiment experiment(context, numel, 1);
        std::map<mofo::Dtype, GradientsPointer> gradients;
        Contenders base;
        for (const Format &format : formats) {
            GradientsPointer &of_dtype = gradients[format.grad];
            if (of_dtype == nullptr) {
                of_dtype = plan_gradients(context, numel, format.grad);
            }
            Variant variant = {format.name, settings_of(context), one_tensor(numel), of_dtype};
            variant.settings.format = format;
            const Contenders added = experiment.add(variant, usual_fractions(context), {base});
            if (base.empty()) {
                base = added;
            }
        }
        experiment.run();
    }
    for (const Format &format : formats) {
        context.report.note(std::string(format.name) + ": " + format.description + "; " + format.traffic());
    }
}

bool has_tier(mofo::CpuTier tier) {
    mofo::Options options;
    options.set(tier);
    mofo::Optimizer optimizer;
    const mofo::Status status = mofo::Optimizer::try_create(options, optimizer);
    if (mofo::failed(status) && status != mofo::Status::unsupported) {
        throw mofo::Error(status, mofo::last_error());
    }
    return status != mofo::Status::unsupported;
}

void run_tiers(Context &context) {
    context.report.begin_case("tiers", "one f32 tensor, instructions", {"the portable tier, same alpha"});
    std::vector<mofo::CpuTier> tiers;
    std::vector<mofo::CpuTier> missing;
    for (const mofo::CpuTier tier : {mofo::CpuTier::portable, mofo::CpuTier::avx2, mofo::CpuTier::avx512}) {
        (has_tier(tier) ? tiers : missing).push_back(tier);
    }
    for (const std::uint64_t numel : large_sizes(context)) {
        Experiment experiment(context, numel, 1);
        Variant variant = ordinary_variant(context, numel, "");
        Contenders base;
        for (const mofo::CpuTier tier : tiers) {
            variant.label = name_of(tier);
            variant.settings.tier = tier;
            const Contenders added = experiment.add(variant, usual_fractions(context), {base});
            if (base.empty()) {
                base = added;
            }
        }
        experiment.run();
    }
    for (const mofo::CpuTier tier : missing) {
        context.report.note(std::string(name_of(tier)) + ": not on this machine or build");
    }
}

void run_tensors(Context &context) {
    const Model model = gpt2();
    const std::uint64_t numel = entries_of(model);
    if (model.size() != 148 || numel != 124'439'808) {
        throw std::logic_error("these are not the tensors of GPT-2");
    }
    context.report.begin_case("tensors", "the 148 f32 tensors of GPT-2 124M",
                              {"one tensor of as many entries, same alpha"});
    const Fractions fractions = usual_fractions(context);
    const Variant one = ordinary_variant(context, numel, "1 tensor");
    const Variant all_filtered = {"148 tensors, all at alpha", one.settings, model, one.gradients};
    Variant vectors_in_full = all_filtered;
    vectors_in_full.label = "148 tensors, vectors at 1";
    vectors_in_full.settings.vectors_in_full = true;

    Experiment experiment(context, numel, 1);
    const Contenders base = experiment.add(one, fractions);
    experiment.add(vectors_in_full, fractions, {base});
    experiment.add(all_filtered, fractions, {base});
    experiment.run();
}

void run_failing(Context &context) {
    context.report.begin_case("failing", "one f32 tensor, gradients that are hard on an estimated threshold",
                              {"ordinary gradients, same alpha"});
    const Fractions fractions = usual_fractions(context);
    for (const std::uint64_t numel : sizes_or(context, {8'000'000})) {
        Experiment experiment(context, numel, 1);
        Contenders base;
        const auto add = [&](Pattern pattern, const Fractions &measured, double aimed_at) {
            Variant variant = ordinary_variant(context, numel, name_of(pattern));
            variant.gradients = plan_gradients(context, numel, mofo::Dtype::f32, pattern, aimed_at);
            variant.selection_is_known = pattern == Pattern::ordinary;
            const Contenders added = experiment.add(variant, measured, {base});
            if (base.empty()) {
                base = added;
            }
        };
        for (const Pattern pattern : all_patterns()) {
            if (pattern != Pattern::two_clusters) {
                add(pattern, fractions, 1.0);
                continue;
            }
            for (std::size_t i = 1; i < fractions.size(); ++i) {
                add(pattern, {1.0, fractions[i]}, fractions[i]);
            }
        }
        experiment.run();
    }
}

void run_norm(Context &context) {
    struct Setting {
        const char *label;
        bool skip_nonfinite;
        double max_grad_norm;
    };
    constexpr Setting settings[] = {{"neither", false, 0.0},
                                    {"skip_nonfinite", true, 0.0},
                                    {"max_grad_norm", false, 1.0},
                                    {"both", true, 1.0}};
    context.report.begin_case("norm", "one f32 tensor, steps that need the norm of the gradients",
                              {"neither skip_nonfinite nor max_grad_norm, same alpha"});
    for (const std::uint64_t numel : large_sizes(context)) {
        Experiment experiment(context, numel, 1);
        Variant variant = ordinary_variant(context, numel, "");
        Contenders base;
        for (const Setting &setting : settings) {
            variant.label = setting.label;
            variant.settings.skip_nonfinite = setting.skip_nonfinite;
            variant.settings.max_grad_norm = setting.max_grad_norm;
            const Contenders added = experiment.add(variant, usual_fractions(context), {base});
            if (base.empty()) {
                base = added;
            }
        }
        experiment.run();
    }
}

void run_small(Context &context) {
    context.report.begin_case("small", "one f32 tensor on one thread against a plain C loop of AdamW",
                              {"plain C, compiled with -O3 -march=native",
                               "plain C, with -fno-math-errno besides, so that sqrtf can be vectorised"});
    for (const std::uint64_t numel : sizes_or(context, {4'096})) {
        Experiment experiment(context, numel, 2);
        Variant variant = ordinary_variant(context, numel, "mofo");
        variant.settings.threads = 1;
        const Contenders added = experiment.add(variant, fractions_or(context, {0.03, 0.1, 0.5}));
        const std::size_t as_is = experiment.add_plain("plain C", adamw_step_as_is, variant.gradients);
        const std::size_t vectorised =
            experiment.add_plain("plain C, no math errno", adamw_step_no_math_errno, variant.gradients);
        for (const auto &[fraction, contender] : added) {
            experiment.spec(contender).bases = {as_is, vectorised};
        }
        for (const std::size_t plain : {as_is, vectorised}) {
            experiment.spec(plain).adamw = added.at(1.0);
        }
        experiment.spec(vectorised).bases[0] = as_is;
        experiment.run();
    }
}

void run_sparse(Context &context) {
    // GPT-2's.
    static constexpr std::uint64_t rows = 50'257;
    static constexpr std::uint64_t columns = 768;
    static constexpr std::uint64_t numel = rows * columns;
    static constexpr double touched_share = 0.01;
    const unsigned steps = context.settings.sparse_steps;
    const std::string title = "an f32 embedding of 50,257 x 768, in each step 1 % of its rows have a gradient";
    context.report.begin_case("sparse", title + "; after " + with_commas(steps) + " such steps",
                              {"a gradient in every row, same alpha"});

    const Variant dense = ordinary_variant(context, numel, "dense gradient");
    Variant sparse = dense;
    sparse.label = "sparse gradient";
    sparse.selection_is_known = false;
    sparse.gradients = std::make_shared<PlannedGradients>(numel * sizeof(float), [&context, steps] {
        auto gradients = std::make_shared<EmbeddingGradients>(context.team, rows, columns, touched_share);
        gradients->skip(steps);
        return gradients;
    });
    sparse.prepare = [source = sparse.gradients, steps](MofoStep &step) {
        const auto gradients = std::dynamic_pointer_cast<EmbeddingGradients>(source->get());
        gradients->moments_after_skipped(hyper_parameters.beta1, hyper_parameters.beta2, step.moments());
        step.resume(steps);
    };

    Experiment experiment(context, numel, 1);
    const Fractions fractions = usual_fractions(context);
    const Contenders base = experiment.add(dense, fractions);
    experiment.add(sparse, fractions, {base});
    experiment.run();
}

void run_threads(Context &context) {
    std::vector<unsigned> counts;
    for (unsigned count = 1; count < context.settings.threads; count *= 2) {
        counts.push_back(count);
    }
    counts.push_back(context.settings.threads);
    context.report.begin_case("threads", "one f32 tensor, threads", {"one thread, same alpha"});
    for (const std::uint64_t numel : large_sizes(context)) {
        Experiment experiment(context, numel, 1);
        Variant variant = ordinary_variant(context, numel, "");
        Contenders base;
        for (const unsigned count : counts) {
            variant.label = count == 1 ? "1 thread" : std::to_string(count) + " threads";
            variant.settings.threads = count;
            const Contenders added = experiment.add(variant, usual_fractions(context), {base});
            if (base.empty()) {
                base = added;
            }
        }
        experiment.run();
    }
}

}  // namespace

const std::vector<Case> &all_cases() {
    static const std::vector<Case> cases = {
        {"sizes", run_sizes},     {"dtypes", run_dtypes}, {"tiers", run_tiers}, {"tensors", run_tensors},
        {"failing", run_failing}, {"norm", run_norm},     {"small", run_small}, {"sparse", run_sparse},
        {"threads", run_threads}};
    return cases;
}

}  // namespace bench
