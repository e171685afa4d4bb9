/* mofo_options: its defaults, and that every allowed value is taken. */

/* setenv */
#define _POSIX_C_SOURCE 200809L

#include "buffers.h"

static void defaults(void) {
    mofo_options o;
    memset(&o, 0xAA, sizeof o);
    REQUIRE_OK(mofo_options_init(&o, sizeof o));
    CHECK_U64(o.struct_size, sizeof o);
    CHECK_U64((uint64_t)o.device, MOFO_DEVICE_CPU);
    CHECK_U64((uint64_t)o.device_index, 0);
    CHECK_F64(o.learning_rate, 1e-3);
    CHECK_F64(o.beta1, 0.9);
    CHECK_F64(o.beta2, 0.999);
    CHECK_F64(o.epsilon, 1e-8);
    CHECK_F64(o.weight_decay, 0.0);
    CHECK_U64((uint64_t)o.weight_decay_scope, MOFO_WEIGHT_DECAY_SELECTED);
    CHECK_U64((uint64_t)o.filter, MOFO_FILTER_MOMENTUM);
    CHECK_F64(o.update_fraction, 0.1);
    CHECK_U64((uint64_t)o.state_dtype, MOFO_DTYPE_F32);
    CHECK_U64((uint64_t)o.master_weights, 0);
    CHECK_U64((uint64_t)o.rounding, MOFO_ROUNDING_STOCHASTIC);
    CHECK_U64((uint64_t)o.skip_nonfinite, 0);
    CHECK_U64(o.seed, 0);
    CHECK_F64(o.max_grad_norm, 0.0);
    CHECK_U64((uint64_t)o.num_threads, 0);
    CHECK_U64((uint64_t)o.cpu_tier, MOFO_CPU_TIER_BEST);
    CHECK(o.parallel_for == NULL);
    CHECK(o.parallel_for_ctx == NULL);
}

static void accept(const char *what, const mofo_options *options) {
    mofo_optimizer *optimizer = NULL;
    CASE("%s", what);
    if (CHECK_OK(mofo_create(options, &optimizer))) {
        CHECK(optimizer != NULL);
    }
    mofo_destroy(optimizer);
    CASE("%s", "");
}

/* The ends of every range belong to it. */
static void range_ends(void) {
    mofo_options o;
#define ACCEPT(field, value)                                                                                 \
    do {                                                                                                     \
        o = default_options();                                                                               \
        o.field = (value);                                                                                   \
        accept(#field " = " #value, &o);                                                                     \
    } while (0)
    ACCEPT(learning_rate, 0.0);
    ACCEPT(learning_rate, -0.0);
    ACCEPT(learning_rate, 1e300);
    ACCEPT(beta1, 0.0);
    ACCEPT(beta1, 0.99999999999);
    ACCEPT(beta2, 0.0);
    ACCEPT(beta2, 0.99999999999);
    ACCEPT(epsilon, 0.0);
    ACCEPT(weight_decay, 0.0);
    ACCEPT(weight_decay, 10.0);
    ACCEPT(update_fraction, 1.0);
    ACCEPT(update_fraction, 5e-324);
    ACCEPT(max_grad_norm, 0.0);
    ACCEPT(max_grad_norm, 1e300);
    ACCEPT(weight_decay_scope, MOFO_WEIGHT_DECAY_ALL);
    ACCEPT(filter, MOFO_FILTER_GRADIENT);
    ACCEPT(filter, MOFO_FILTER_UPDATE);
    ACCEPT(filter, MOFO_FILTER_RANDOM);
    ACCEPT(state_dtype, MOFO_DTYPE_BF16);
    ACCEPT(master_weights, 1);
    ACCEPT(rounding, MOFO_ROUNDING_NEAREST);
    ACCEPT(skip_nonfinite, 1);
    ACCEPT(seed, UINT64_MAX);
    ACCEPT(num_threads, 1);
    ACCEPT(num_threads, 1024);
    ACCEPT(device_index, 12345);
}

/* Whether the processor has what a tier needs, as far as the compiler can tell. */
static int processor_has(int32_t tier) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (tier == MOFO_CPU_TIER_AVX2) {
        return __builtin_cpu_supports("avx2");
    }
    if (tier == MOFO_CPU_TIER_AVX512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
#endif
    return tier == MOFO_CPU_TIER_PORTABLE;
}

/* The tier of an optimizer that is created with this one, or the status. */
static int32_t created_tier(int32_t cpu_tier) {
    mofo_options o = default_options();
    mofo_optimizer *optimizer = NULL;
    int32_t result;
    o.cpu_tier = cpu_tier;
    result = mofo_create(&o, &optimizer);
    if (result == MOFO_OK) {
        result = mofo_cpu_tier(optimizer);
    } else {
        CHECK(optimizer == NULL);
    }
    mofo_destroy(optimizer);
    return result;
}

/* BEST is the highest tier of this machine; every tier is either used as asked for or refused as unsupported. */
static void cpu_tiers(void) {
    int32_t tier;
    int32_t highest = 0;
    CHECK(unsetenv("MOFO_CPU_TIER") == 0);
    for (tier = MOFO_CPU_TIER_PORTABLE; tier <= MOFO_CPU_TIER_AVX512; tier++) {
        const int32_t found = created_tier(tier);
        CASE("tier %d", (int)tier);
        if (processor_has(tier) || found != MOFO_ERROR_UNSUPPORTED) {
            CHECK(found == tier);
            highest = tier;
        } else {
            CHECK_TEXT(mofo_last_error(), "cpu_tier");
            check_missing_tier(tier);
        }
    }
    CASE("%s", "");
    CHECK(created_tier(MOFO_CPU_TIER_BEST) == highest);
}

/* MOFO_CPU_TIER decides where the options leave the tier open, and nowhere else. */
static void cpu_tier_from_the_environment(void) {
    static const struct {
        const char *name;
        int32_t tier;
    } names[] = {
        {"portable", MOFO_CPU_TIER_PORTABLE},
        {"avx2", MOFO_CPU_TIER_AVX2},
        {"avx512", MOFO_CPU_TIER_AVX512},
    };
    static const char *const unknown[] = {"best", "AVX2", "avx2 ", "sse2", "2", "\xff"};
    int32_t best;
    size_t i;
    CHECK(unsetenv("MOFO_CPU_TIER") == 0);
    best = created_tier(MOFO_CPU_TIER_BEST);
    for (i = 0; i < sizeof names / sizeof names[0]; i++) {
        const int32_t asked = created_tier(names[i].tier);
        CASE("MOFO_CPU_TIER=%s", names[i].name);
        CHECK(setenv("MOFO_CPU_TIER", names[i].name, 1) == 0);
        CHECK(created_tier(MOFO_CPU_TIER_BEST) == asked);
        if (asked == MOFO_ERROR_UNSUPPORTED) {
            CHECK_TEXT(mofo_last_error(), "MOFO_CPU_TIER");
        }
        CHECK(created_tier(MOFO_CPU_TIER_PORTABLE) == MOFO_CPU_TIER_PORTABLE);
        CHECK(created_tier(best) == best);
    }
    for (i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        CASE("MOFO_CPU_TIER=%s", unknown[i]);
        CHECK(setenv("MOFO_CPU_TIER", unknown[i], 1) == 0);
        CHECK_STATUS(created_tier(MOFO_CPU_TIER_BEST), MOFO_ERROR_INVALID_ARGUMENT);
        CHECK_TEXT(mofo_last_error(), "MOFO_CPU_TIER");
        CHECK(created_tier(MOFO_CPU_TIER_PORTABLE) == MOFO_CPU_TIER_PORTABLE);
    }
    CASE("%s", "an empty MOFO_CPU_TIER");
    CHECK(setenv("MOFO_CPU_TIER", "", 1) == 0);
    CHECK(created_tier(MOFO_CPU_TIER_BEST) == best);
    CASE("%s", "");
    CHECK(unsetenv("MOFO_CPU_TIER") == 0);
}

/* The struct can be thrown away after mofo_create. */
static void options_are_copied(void) {
    mofo_options o = default_options();
    mofo_optimizer *optimizer = NULL;
    mofo_tensor tensor;
    float p = 1.0f;
    const float g = 0.5f;
    uint64_t index;
    o.learning_rate = 0.25;
    o.num_threads = 1;
    REQUIRE_OK(mofo_create(&o, &optimizer));
    memset(&o, 0xFF, sizeof o);
    tensor = named_tensor("p", 1);
    tensor.param = &p;
    tensor.grad = &g;
    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK(p < 0.7501f && p > 0.7499f);
    mofo_destroy(optimizer);
}

static void library(void) {
    int major = -1, minor = -1, patch = -1;
    CHECK(sscanf(mofo_version(), "%d.%d.%d", &major, &minor, &patch) == 3);
    CHECK(major >= 0 && minor >= 0 && patch >= 0);
    CHECK_U64(mofo_abi_version(), MOFO_ABI_VERSION);
    CHECK(mofo_cuda_available() == 0 || mofo_cuda_available() == 1);
}

int main(void) {
    library();
    defaults();
    range_ends();
    cpu_tiers();
    cpu_tier_from_the_environment();
    options_are_copied();
    return check_finish();
}
