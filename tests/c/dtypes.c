/* Every combination of parameter, gradient and state types, masters and rounding steps, and gives the bits that
 * the reference computes. */

#include "buffers.h"

enum { NUMEL = 3000, BLOCKS = 3, STEPS = 4 };

static void combination(const mofo_options *options, int32_t param_dtype, int32_t grad_dtype) {
    mofo_optimizer *optimizer = NULL;
    mofo_tensor expected = owned_tensor(options, "layers.w", NUMEL, param_dtype, grad_dtype, 21);
    mofo_tensor actual;
    float thresholds[BLOCKS];
    void *start;
    uint64_t index;
    uint64_t t;
    size_t bytes = NUMEL * reference_size(param_dtype);
    expected.num_blocks = BLOCKS;
    actual = owned_tensor_copy(options, &expected);
    start = buffer_copy(expected.param, bytes);
    REQUIRE_OK(mofo_create(options, &optimizer));
    REQUIRE_OK(mofo_add_tensor(optimizer, &actual, &index));
    for (t = 1; t <= STEPS; t++) {
        buffer_fill((void *)(uintptr_t)actual.grad, grad_dtype, NUMEL, 500 + t, 0.02);
        memcpy((void *)(uintptr_t)expected.grad, actual.grad, NUMEL * reference_size(grad_dtype));
        CHECK_OK(mofo_step(optimizer, NULL));
        reference_step(options, NULL, 0.0, &expected, thresholds);
        actual.step_count = state_of(optimizer, index).step_count;
        check_same_tensor(options, &actual, &expected);
        CHECK_BYTES(state_of(optimizer, index).thresholds, thresholds, sizeof thresholds);
    }
    /* The reference could be wrong where the library is: something must have moved, and not everything. */
    {
        size_t changed = 0;
        size_t i;
        for (i = 0; i < NUMEL; i++) {
            size_t size = reference_size(param_dtype);
            changed += memcmp((char *)actual.param + i * size, (char *)start + i * size, size) != 0;
        }
        CHECK(changed >= NUMEL / 50);
        if (options->weight_decay_scope == MOFO_WEIGHT_DECAY_SELECTED) {
            CHECK(changed <= NUMEL * 9 / 10);
        }
    }
    if (actual.master != NULL) {
        uint64_t i;
        int rounded = 1;
        for (i = 0; i < NUMEL; i++) {
            uint16_t expected_param;
            reference_store(param_dtype, &expected_param, 0, ((float *)actual.master)[i], 0, 0);
            rounded &= ((uint16_t *)actual.param)[i] == expected_param;
        }
        CHECK(rounded);
    }
    mofo_destroy(optimizer);
    free(start);
    owned_tensor_free(&actual);
    owned_tensor_free(&expected);
}

/* By hand, on paper: one entry, f32, first step. m = 0.1 g, v = 0.001 g², so u is 1 (up to roundings), and the
 * parameter moves by the learning rate. */
static void one_entry_by_hand(void) {
    mofo_options options = default_options();
    mofo_optimizer *optimizer = NULL;
    mofo_tensor tensor = named_tensor("p", 1);
    float param = 2.0f;
    float grad = -0.5f;
    uint64_t index;
    options.learning_rate = 0.125;
    options.weight_decay = 0.5;
    options.num_threads = 1;
    tensor.param = &param;
    tensor.grad = &grad;
    REQUIRE_OK(mofo_create(&options, &optimizer));
    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK(fabsf(param - (2.0f * (1.0f - 0.125f * 0.5f) + 0.125f)) < 1e-6f);
    CHECK(fabsf(((float *)state_of(optimizer, index).exp_avg)[0] + 0.05f) < 1e-8f);
    CHECK(fabsf(((float *)state_of(optimizer, index).exp_avg_sq)[0] - 0.00025f) < 1e-9f);
    mofo_destroy(optimizer);
}

int main(void) {
    static const int32_t dtypes[] = {MOFO_DTYPE_F32, MOFO_DTYPE_F16, MOFO_DTYPE_BF16};
    static const int32_t state_dtypes[] = {MOFO_DTYPE_F32, MOFO_DTYPE_BF16};
    size_t p, g, s;
    int32_t master, rounding, scope;
    int combinations = 0;
    one_entry_by_hand();
    for (p = 0; p < 3; p++) {
        for (g = 0; g < 3; g++) {
            for (s = 0; s < 2; s++) {
                for (master = 0; master <= 1; master++) {
                    for (rounding = MOFO_ROUNDING_NEAREST; rounding <= MOFO_ROUNDING_STOCHASTIC; rounding++) {
                        for (scope = MOFO_WEIGHT_DECAY_SELECTED; scope <= MOFO_WEIGHT_DECAY_ALL; scope++) {
                            mofo_options options = default_options();
                            options.state_dtype = state_dtypes[s];
                            options.master_weights = master;
                            options.rounding = rounding;
                            options.weight_decay_scope = scope;
                            options.weight_decay = scope == MOFO_WEIGHT_DECAY_ALL ? 0.01 : 0.1;
                            options.learning_rate = 0.01;
                            options.num_threads = 2;
                            options.seed = 99;
                            CASE("param %d, grad %d, state %d, master %d, rounding %d, scope %d", (int)dtypes[p],
                                 (int)dtypes[g], (int)state_dtypes[s], (int)master, (int)rounding, (int)scope);
                            combination(&options, dtypes[p], dtypes[g]);
                            combinations++;
                        }
                    }
                }
            }
        }
    }
    CASE("%s", "");
    CHECK(combinations == 3 * 3 * 2 * 2 * 2 * 2);
    return check_finish();
}
