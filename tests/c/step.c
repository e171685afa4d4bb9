/* mofo_step and mofo_grad_norm: what a step takes, gives and leaves alone, against the reference. */

#include "buffers.h"

enum { TENSORS = 4, STEPS = 4 };

static const uint64_t numels[TENSORS] = {1, 4096, 9000, 30};

/* Optimizer and reference side by side. */
struct pair {
    mofo_options options;
    mofo_optimizer *optimizer;
    mofo_tensor actual[TENSORS];
    mofo_tensor expected[TENSORS];
    uint64_t indices[TENSORS];
};

static struct pair pair_new(const mofo_options *options) {
    static const char *const names[TENSORS] = {"one", "matrix", "blocks", "bias"};
    struct pair pair;
    int n;
    pair.options = *options;
    pair.optimizer = NULL;
    REQUIRE_OK(mofo_create(options, &pair.optimizer));
    for (n = 0; n < TENSORS; n++) {
        pair.actual[n] = owned_tensor(options, names[n], numels[n], MOFO_DTYPE_F32, MOFO_DTYPE_F32,
                                      40 + (uint64_t)n);
        if (n == 2) {
            pair.actual[n].num_blocks = 9;
            pair.actual[n].weight_decay = 0.5;
        }
        if (n == 3) {
            pair.actual[n].update_fraction = 1.0;
            pair.actual[n].learning_rate_scale = 0.125;
        }
        pair.expected[n] = owned_tensor_copy(options, &pair.actual[n]);
        REQUIRE_OK(mofo_add_tensor(pair.optimizer, &pair.actual[n], &pair.indices[n]));
    }
    return pair;
}

static void pair_free(struct pair *pair) {
    int n;
    mofo_destroy(pair->optimizer);
    for (n = 0; n < TENSORS; n++) {
        owned_tensor_free(&pair->actual[n]);
        owned_tensor_free(&pair->expected[n]);
    }
}

static void pair_new_gradients(struct pair *pair, uint64_t seed) {
    int n;
    for (n = 0; n < TENSORS; n++) {
        void *actual = (void *)(uintptr_t)pair->actual[n].grad;
        void *expected = (void *)(uintptr_t)pair->expected[n].grad;
        buffer_fill(actual, MOFO_DTYPE_F32, numels[n], seed * 16 + (uint64_t)n, 0.02);
        memcpy(expected, actual, numels[n] * sizeof(float));
    }
}

static void pair_check(struct pair *pair) {
    int n;
    for (n = 0; n < TENSORS; n++) {
        pair->actual[n].step_count = state_of(pair->optimizer, pair->indices[n]).step_count;
        check_same_tensor(&pair->options, &pair->actual[n], &pair->expected[n]);
    }
}

/* Steps the tensors of `mask` in the reference; returns how many entries it selected. */
static uint64_t pair_reference(struct pair *pair, const mofo_step_args *args, double norm, unsigned mask) {
    uint64_t selected = 0;
    float thresholds[9];
    int n;
    for (n = 0; n < TENSORS; n++) {
        if (mask >> n & 1u) {
            selected += reference_step(&pair->options, args, norm, &pair->expected[n], thresholds);
        }
    }
    return selected;
}

static void args_defaults(void) {
    mofo_step_args a;
    memset(&a, 0xAA, sizeof a);
    REQUIRE_OK(mofo_step_args_init(&a, sizeof a));
    CHECK_U64(a.struct_size, sizeof a);
    CHECK_F64(a.learning_rate, MOFO_INHERIT);
    CHECK_F64(a.update_fraction, MOFO_INHERIT);
    CHECK_F64(a.grad_scale, 1.0);
    CHECK_F64(a.grad_norm, MOFO_INHERIT);
    CHECK(a.tensors == NULL);
    CHECK_U64(a.num_tensors, 0);
    CHECK(a.stream == NULL);
    CHECK(a.report == NULL);
    CHECK(a.device_learning_rate == NULL);
    CHECK_F64(a.beta1, MOFO_INHERIT);
    CHECK_F64(a.beta2, MOFO_INHERIT);
    CHECK_F64(a.epsilon, MOFO_INHERIT);
    CHECK_F64(a.weight_decay, MOFO_INHERIT);
    CHECK(a.device_beta1 == NULL);
    CHECK(a.device_beta2 == NULL);
    CHECK(a.device_epsilon == NULL);
    CHECK(a.device_weight_decay == NULL);
}

static void equals_the_reference(const char *what, const mofo_options *options, const mofo_step_args *template) {
    struct pair pair = pair_new(options);
    uint64_t t;
    for (t = 0; t < STEPS; t++) {
        mofo_step_args args = template != NULL ? *template : default_args();
        mofo_step_report report;
        uint64_t selected;
        double norm;
        CASE("%s, step %d", what, (int)t + 1);
        memset(&report, 0xAA, sizeof report);
        args.report = &report;
        args.report_size = sizeof report;
        pair_new_gradients(&pair, t);
        norm = args.grad_norm != MOFO_INHERIT ? args.grad_norm
                                              : reference_norm(pair.expected, TENSORS, args.grad_scale);
        CHECK_OK(mofo_step(pair.optimizer, &args));
        selected = pair_reference(&pair, &args, norm, 15);
        pair_check(&pair);
        CHECK_U64(report.entries, 1 + 4096 + 9000 + 30);
        CHECK_U64(report.tensors, TENSORS);
        CHECK_U64(report.entries_selected, selected);
        CHECK_U64(report.entries_nonfinite, 0);
        CHECK_U64((uint64_t)report.skipped, 0);
        CHECK_U64((uint64_t)report.status, (uint64_t)report.skipped);
        if (options->max_grad_norm > 0.0 || options->skip_nonfinite || args.grad_norm != MOFO_INHERIT) {
            CHECK_F64(report.grad_norm, norm);
        } else {
            CHECK_F64(report.grad_norm, MOFO_INHERIT);
        }
        {
            double computed = 0.0;
            CHECK_OK(mofo_grad_norm(pair.optimizer, &args, &computed));
            CHECK_F64(computed, reference_norm(pair.expected, TENSORS, args.grad_scale));
        }
    }
    pair_free(&pair);
    CASE("%s", "");
}

static void every_setting_equals_the_reference(void) {
    mofo_options o;
    mofo_step_args a;
    int32_t filter;
    o = default_options();
    equals_the_reference("defaults", &o, NULL);
    o.num_threads = 1;
    equals_the_reference("one thread", &o, NULL);
    o.num_threads = 3;
    o.weight_decay = 0.1;
    equals_the_reference("weight decay", &o, NULL);
    o.weight_decay_scope = MOFO_WEIGHT_DECAY_ALL;
    equals_the_reference("weight decay of all", &o, NULL);
    o.max_grad_norm = 0.25;
    equals_the_reference("clipping", &o, NULL);
    o.skip_nonfinite = 1;
    equals_the_reference("skip_nonfinite", &o, NULL);
    for (filter = MOFO_FILTER_MOMENTUM; filter <= MOFO_FILTER_RANDOM; filter++) {
        char what[32];
        o = default_options();
        o.filter = filter;
        o.seed = 0x1234567890ABCDEFu;
        o.update_fraction = 0.03;
        snprintf(what, sizeof what, "filter %d", (int)filter);
        equals_the_reference(what, &o, NULL);
    }
    o = default_options();
    o.update_fraction = 1.0;
    equals_the_reference("AdamW", &o, NULL);
    o.beta1 = 0.0;
    o.beta2 = 0.0;
    equals_the_reference("no momentum", &o, NULL);

    o = default_options();
    o.max_grad_norm = 1.0;
    a = default_args();
    a.learning_rate = 0.02;
    a.update_fraction = 0.5;
    a.grad_scale = -0.25;
    equals_the_reference("args", &o, &a);
    a.grad_norm = 17.5;
    equals_the_reference("a given norm", &o, &a);
    a.learning_rate = 0.0;
    equals_the_reference("learning rate 0", &o, &a);

    o = default_options();
    a = default_args();
    a.beta1 = 0.0;
    equals_the_reference("beta1 of the step", &o, &a);
    a.beta2 = 0.5;
    a.epsilon = 0.25;
    a.weight_decay = 0.5;
    equals_the_reference("hyper-parameters of the step", &o, &a);
    o.weight_decay = 0.25;
    a.weight_decay = 0.0;
    equals_the_reference("no weight decay in the step", &o, &a);
}

/* Bias correction takes the step's beta to the power of t, whatever the betas of the steps before were. */
static void changing_hyper_parameters(void) {
    static const double values[][4] = {
        {MOFO_INHERIT, MOFO_INHERIT, MOFO_INHERIT, MOFO_INHERIT},
        {0.95, 0.9, 0.125, 0.5},
        {0.0, MOFO_INHERIT, 0.0, 0.0},
        {0.85, 0.0, MOFO_INHERIT, 1.0},
        {0.99, 0.9999, 1e-3, MOFO_INHERIT},
    };
    mofo_options o = default_options();
    struct pair pair;
    uint64_t t;
    o.weight_decay = 0.0625;
    pair = pair_new(&o);
    for (t = 0; t < 10; t++) {
        const double *value = values[t % 5];
        mofo_step_args args = default_args();
        CASE("hyper-parameters of step %d", (int)t + 1);
        args.beta1 = value[0];
        args.beta2 = value[1];
        args.epsilon = value[2];
        args.weight_decay = value[3];
        pair_new_gradients(&pair, t);
        CHECK_OK(mofo_step(pair.optimizer, &args));
        pair_reference(&pair, &args, 0.0, 15);
        pair_check(&pair);
    }
    pair_free(&pair);
    CASE("%s", "");
}

/* A subset is stepped, in whatever order it is listed, and the rest is left alone, its t too. */
static void subsets(void) {
    mofo_options o = default_options();
    struct pair pair;
    mofo_step_args args = default_args();
    uint64_t list[TENSORS];
    uint64_t t;
    o.max_grad_norm = 0.1;
    pair = pair_new(&o);
    args.tensors = list;
    for (t = 1; t < 16; t++) {
        unsigned mask = (unsigned)(t * 7 % 15 + 1) & 15u;
        mofo_tensor chosen[TENSORS];
        double norm;
        double computed = -5.0;
        int n;
        CASE("subset 0x%x", mask);
        args.num_tensors = 0;
        for (n = 0; n < TENSORS; n++) {
            /* Descending every other time: the norm sums in the order of indices all the same. */
            int which = t % 2 ? TENSORS - 1 - n : n;
            if (mask >> which & 1u) {
                list[args.num_tensors++] = pair.indices[which];
            }
        }
        pair_new_gradients(&pair, 100 + t);
        {
            uint64_t count = 0;
            for (n = 0; n < TENSORS; n++) {
                if (mask >> n & 1u) {
                    chosen[count++] = pair.expected[n];
                }
            }
            norm = reference_norm(chosen, count, 1.0);
        }
        CHECK_OK(mofo_grad_norm(pair.optimizer, &args, &computed));
        CHECK_F64(computed, norm);
        CHECK_OK(mofo_step(pair.optimizer, &args));
        pair_reference(&pair, &args, norm, mask);
        pair_check(&pair);
    }
    CASE("%s", "");
    pair_free(&pair);
}

/* A tensor without a gradient takes no part even if it is listed. */
static void listed_without_a_gradient(void) {
    mofo_options o = default_options();
    struct pair pair = pair_new(&o);
    mofo_step_args args = default_args();
    mofo_step_report report;
    CHECK_OK(mofo_bind_tensor(pair.optimizer, pair.indices[1], pair.actual[1].param, NULL));
    args.tensors = pair.indices;
    args.num_tensors = TENSORS;
    args.report = &report;
    args.report_size = sizeof report;
    CHECK_OK(mofo_step(pair.optimizer, &args));
    CHECK_U64(report.entries, 1 + 9000 + 30);
    CHECK_U64(report.tensors, 3);
    pair_reference(&pair, &args, 0.0, 13);
    pair_check(&pair);
    pair_free(&pair);
}

/* A step that has nothing to do succeeds, and its report says so. */
static void no_tensor_takes_part(void) {
    mofo_options o = default_options();
    struct pair pair = pair_new(&o);
    mofo_step_args args = default_args();
    mofo_step_report report;
    int n;
    args.report = &report;
    args.report_size = sizeof report;
    args.tensors = pair.indices;
    CASE("%s", "an empty list");
    memset(&report, 0xAA, sizeof report);
    CHECK_OK(mofo_step(pair.optimizer, &args));
    CHECK_U64(report.tensors, 0);
    CHECK_U64(report.entries, 0);
    CASE("%s", "no gradient");
    for (n = 0; n < TENSORS; n++) {
        CHECK_OK(mofo_bind_tensor(pair.optimizer, pair.indices[n], pair.actual[n].param, NULL));
    }
    args.tensors = NULL;
    memset(&report, 0xAA, sizeof report);
    CHECK_OK(mofo_step(pair.optimizer, &args));
    CHECK_U64(report.tensors, 0);
    CHECK_U64(report.entries, 0);
    pair_check(&pair);
    CASE("%s", "");
    pair_free(&pair);
}

/* On the CPU there is nothing to wait for. */
static void waiting(void) {
    mofo_options o = default_options();
    struct pair pair = pair_new(&o);
    CHECK_OK(mofo_wait(pair.optimizer));
    CHECK_OK(mofo_step(pair.optimizer, NULL));
    CHECK_OK(mofo_wait(pair.optimizer));
    pair_reference(&pair, NULL, 0.0, 15);
    pair_check(&pair);
    pair_free(&pair);
}

/* With skip_nonfinite such a step is left out; without, only the entries that it touches stand still. */
static void nonfinite_gradients(void) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    size_t b;
    for (b = 0; b < sizeof bad / sizeof bad[0]; b++) {
        mofo_options o = default_options();
        struct pair pair;
        mofo_step_args args = default_args();
        mofo_step_report report;
        double norm = 0.0;
        float *poisoned;
        float before;
        CASE("gradient %g", (double)bad[b]);
        args.report = &report;
        args.report_size = sizeof report;

        o.skip_nonfinite = 1;
        pair = pair_new(&o);
        CHECK_OK(mofo_step(pair.optimizer, &args));
        pair_reference(&pair, &args, 0.0, 15);
        pair_new_gradients(&pair, 77);
        poisoned = (float *)(uintptr_t)pair.actual[2].grad + 8999;
        *poisoned = bad[b];
        memset(&report, 0xAA, sizeof report);
        CHECK_STATUS(mofo_step(pair.optimizer, &args), MOFO_SKIPPED);
        pair_check(&pair);
        CHECK_U64((uint64_t)report.skipped, 1);
        CHECK_U64(report.entries_selected, 0);
        CHECK_U64(report.tensors, TENSORS);
        CHECK(!isfinite(report.grad_norm));
        CHECK_OK(mofo_grad_norm(pair.optimizer, NULL, &norm));
        CHECK(!isfinite(norm));
        /* The tensors that are fine can be stepped without it. */
        args.tensors = pair.indices;
        args.num_tensors = 2;
        CHECK_OK(mofo_step(pair.optimizer, &args));
        pair_reference(&pair, &args, 0.0, 3);
        pair_check(&pair);
        /* A norm that the caller gives serves for the test: the gradients are then not read for it. */
        args = default_args();
        *poisoned = 0.5f;
        args.grad_norm = INFINITY;
        CHECK_STATUS(mofo_step(pair.optimizer, &args), MOFO_SKIPPED);
        args.grad_norm = NAN;
        CHECK_STATUS(mofo_step(pair.optimizer, &args), MOFO_SKIPPED);
        pair_check(&pair);
        pair_free(&pair);

        o = default_options();
        pair = pair_new(&o);
        poisoned = (float *)(uintptr_t)pair.actual[1].grad;
        poisoned[100] = bad[b];
        ((float *)(uintptr_t)pair.expected[1].grad)[100] = bad[b];
        before = ((float *)pair.actual[1].param)[100];
        CHECK_OK(mofo_step(pair.optimizer, NULL));
        pair_reference(&pair, NULL, 0.0, 15);
        CHECK_BYTES(pair.actual[1].param, pair.expected[1].param, 4096 * sizeof(float));
        CHECK_BYTES(&((float *)pair.actual[1].param)[100], &before, sizeof before);
        CHECK(!isfinite(((float *)pair.actual[1].exp_avg)[100]));
        pair_new_gradients(&pair, 78);
        CHECK_OK(mofo_step(pair.optimizer, NULL));
        pair_reference(&pair, NULL, 0.0, 15);
        CHECK_BYTES(pair.actual[1].param, pair.expected[1].param, 4096 * sizeof(float));
        CHECK_BYTES(&((float *)pair.actual[1].param)[100], &before, sizeof before);
        pair_free(&pair);
    }
    CASE("%s", "");
}

/* Thread counts, tiers and a loop of the engine's own all give the reference's bits on a larger tensor. */
static void threads_and_tiers(void) {
    const uint64_t numel = check_quick() ? 70001 : 400003;
    mofo_options options = default_options();
    mofo_tensor start;
    mofo_tensor expected;
    float threshold;
    int32_t threads;
    int32_t tier;
    options.seed = 5;
    options.state_dtype = MOFO_DTYPE_BF16;
    options.max_grad_norm = 0.5;
    start = owned_tensor(&options, "large", numel, MOFO_DTYPE_BF16, MOFO_DTYPE_F16, 11);
    expected = owned_tensor_copy(&options, &start);
    reference_step(&options, NULL, reference_norm(&expected, 1, 1.0), &expected, &threshold);
    reference_step(&options, NULL, reference_norm(&expected, 1, 1.0), &expected, &threshold);
    for (tier = MOFO_CPU_TIER_BEST; tier <= MOFO_CPU_TIER_AVX512; tier++) {
        for (threads = 0; threads <= 4; threads++) {
            mofo_optimizer *optimizer = NULL;
            mofo_tensor actual;
            uint64_t index;
            options.cpu_tier = tier;
            options.num_threads = threads;
            CASE("tier %d, %d threads", (int)tier, (int)threads);
            if (mofo_create(&options, &optimizer) == MOFO_ERROR_UNSUPPORTED) {
                check_missing_tier(tier);
                break;
            }
            actual = owned_tensor_copy(&options, &start);
            REQUIRE_OK(mofo_add_tensor(optimizer, &actual, &index));
            CHECK_OK(mofo_step(optimizer, NULL));
            CHECK_OK(mofo_step(optimizer, NULL));
            actual.step_count = state_of(optimizer, index).step_count;
            check_same_tensor(&options, &actual, &expected);
            CHECK_BYTES(state_of(optimizer, index).thresholds, &threshold, sizeof threshold);
            mofo_destroy(optimizer);
            owned_tensor_free(&actual);
        }
    }
    CASE("%s", "");
    owned_tensor_free(&start);
    owned_tensor_free(&expected);
}

int main(void) {
    args_defaults();
    every_setting_equals_the_reference();
    changing_hyper_parameters();
    subsets();
    listed_without_a_gradient();
    no_tensor_takes_part();
    waiting();
    nonfinite_gradients();
    threads_and_tiers();
    return check_finish();
}
