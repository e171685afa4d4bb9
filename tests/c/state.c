/* The state that an optimizer keeps: its size before and after, where it lies, and taking it along. */

#include "buffers.h"

enum { NUMEL = 1200, BLOCKS = 4 };

static mofo_options one_thread(void) {
    mofo_options options = default_options();
    options.num_threads = 1;
    return options;
}

static void sizes(void) {
    static const int32_t dtypes[] = {MOFO_DTYPE_F32, MOFO_DTYPE_F16, MOFO_DTYPE_BF16};
    static const int32_t state_dtypes[] = {MOFO_DTYPE_F32, MOFO_DTYPE_BF16};
    size_t p, s;
    int32_t master;
    unsigned brought;
    for (p = 0; p < 3; p++) {
        for (s = 0; s < 2; s++) {
            for (master = 0; master <= 1; master++) {
                for (brought = 0; brought < 8; brought++) {
                    mofo_options options = one_thread();
                    mofo_tensor tensor = named_tensor("w", NUMEL);
                    mofo_state_sizes found;
                    mofo_optimizer *optimizer = NULL;
                    mofo_memory_info empty;
                    mofo_memory_info added;
                    mofo_memory_info stepped;
                    mofo_memory_info removed;
                    int has_master = master && dtypes[p] != MOFO_DTYPE_F32;
                    uint64_t moment = NUMEL * reference_size(state_dtypes[s]);
                    uint64_t master_bytes = has_master ? NUMEL * sizeof(float) : 0;
                    uint64_t caller = 0;
                    uint64_t index;
                    void *memory[3];
                    void *param = buffer_filled(dtypes[p], NUMEL, 1, 1.0);
                    void *grad = buffer_filled(MOFO_DTYPE_F32, NUMEL, 2, 1.0);
                    int n;
                    if (brought & 4u && !has_master) {
                        free(param);
                        free(grad);
                        continue;
                    }
                    CASE("param %d, state %d, master %d, brought 0x%x", (int)dtypes[p], (int)state_dtypes[s],
                         (int)master, brought);
                    for (n = 0; n < 3; n++) {
                        memory[n] = buffer_new(NUMEL * sizeof(float));
                    }
                    options.state_dtype = state_dtypes[s];
                    options.master_weights = master;
                    tensor.num_blocks = BLOCKS;
                    tensor.param_dtype = dtypes[p];
                    if (brought & 1u) {
                        tensor.exp_avg = memory[0];
                        caller += moment;
                    }
                    if (brought & 2u) {
                        tensor.exp_avg_sq = memory[1];
                        caller += moment;
                    }
                    if (brought & 4u) {
                        tensor.master = memory[2];
                        caller += master_bytes;
                    }
                    memset(&found, 0xAA, sizeof found);
                    CHECK_OK(mofo_state_size(&options, &tensor, &found, sizeof found));
                    CHECK_U64(found.exp_avg, moment);
                    CHECK_U64(found.exp_avg_sq, moment);
                    CHECK_U64(found.master, master_bytes);
                    CHECK(found.allocated >= 2 * moment + master_bytes - caller);

                    REQUIRE_OK(mofo_create(&options, &optimizer));
                    REQUIRE_OK(mofo_memory(optimizer, &empty, sizeof empty));
                    CHECK_U64(empty.state, 0);
                    CHECK_U64(empty.caller_state, 0);
                    CHECK_U64(empty.num_tensors, 0);
                    CHECK_U64(empty.entries, 0);
                    tensor.param = param;
                    tensor.grad = grad;
                    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
                    REQUIRE_OK(mofo_memory(optimizer, &added, sizeof added));
                    CHECK_U64(added.caller_state, caller);
                    CHECK(added.state >= 2 * moment + master_bytes - caller);
                    CHECK_AT_MOST(added.state, found.allocated);
                    CHECK_U64(added.num_tensors, 1);
                    CHECK_U64(added.entries, NUMEL);
                    CHECK(added.bookkeeping > empty.bookkeeping);
                    CHECK_OK(mofo_step(optimizer, NULL));
                    CHECK_OK(mofo_step(optimizer, NULL));
                    REQUIRE_OK(mofo_memory(optimizer, &stepped, sizeof stepped));
                    CHECK_AT_MOST(stepped.scratch, found.scratch);
                    CHECK_U64(stepped.state, added.state);
                    for (n = 0; n < 20; n++) {
                        CHECK_OK(mofo_step(optimizer, NULL));
                    }
                    REQUIRE_OK(mofo_memory(optimizer, &removed, sizeof removed));
                    CHECK_U64(removed.scratch, stepped.scratch);
                    CHECK_OK(mofo_remove_tensor(optimizer, index));
                    REQUIRE_OK(mofo_memory(optimizer, &removed, sizeof removed));
                    CHECK_U64(removed.state, 0);
                    CHECK_U64(removed.caller_state, 0);
                    CHECK_U64(removed.num_tensors, 0);
                    CHECK_U64(removed.entries, 0);
                    mofo_destroy(optimizer);
                    for (n = 0; n < 3; n++) {
                        free(memory[n]);
                    }
                    free(param);
                    free(grad);
                }
            }
        }
    }
    CASE("%s", "");
}

/* Work space is bounded as mofo_state_size says, whatever the size, and does not grow once it is there. */
static void scratch(void) {
    static const uint64_t numels[] = {1, 4096, 32768, 32769, 100000, 400000, 2000000};
    static const uint64_t blocks[] = {1, 4, 50};
    size_t n, b;
    int clips;
    for (n = 0; n < sizeof numels / sizeof numels[0]; n++) {
        float *param = buffer_filled(MOFO_DTYPE_F32, numels[n], 1, 1.0);
        float *grad = buffer_filled(MOFO_DTYPE_F32, numels[n], 2, 1.0);
        if (check_quick() && numels[n] > 100000) {
            free(param);
            free(grad);
            continue;
        }
        for (b = 0; b < sizeof blocks / sizeof blocks[0]; b++) {
            for (clips = 0; clips <= 1; clips++) {
                mofo_options options = one_thread();
                mofo_tensor tensor = named_tensor("w", numels[n]);
                mofo_state_sizes said;
                mofo_memory_info first;
                mofo_memory_info later;
                mofo_optimizer *optimizer = NULL;
                uint64_t index;
                if (numels[n] % blocks[b] != 0) {
                    continue;
                }
                CASE("%llu entries, %llu blocks, clipping %d", (unsigned long long)numels[n],
                     (unsigned long long)blocks[b], clips);
                options.num_threads = 2;
                options.max_grad_norm = clips;
                tensor.num_blocks = blocks[b];
                tensor.param = param;
                tensor.grad = grad;
                REQUIRE_OK(mofo_state_size(&options, &tensor, &said, sizeof said));
                REQUIRE_OK(mofo_create(&options, &optimizer));
                REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
                CHECK_OK(mofo_step(optimizer, NULL));
                REQUIRE_OK(mofo_memory(optimizer, &first, sizeof first));
                CHECK_AT_MOST(first.scratch, said.scratch);
                CHECK_OK(mofo_step(optimizer, NULL));
                REQUIRE_OK(mofo_memory(optimizer, &later, sizeof later));
                CHECK_U64(later.scratch, first.scratch);
                mofo_destroy(optimizer);
            }
        }
        free(param);
        free(grad);
    }
    CASE("%s", "");
}

/* Sizes of what no machine can hold are still numbers, not overflows. */
static void sizes_of_huge_tensors(void) {
    mofo_options options = one_thread();
    mofo_tensor tensor = named_tensor(NULL, (uint64_t)1 << 40);
    mofo_state_sizes found;
    CHECK_OK(mofo_state_size(&options, &tensor, &found, sizeof found));
    CHECK_U64(found.exp_avg, (uint64_t)1 << 42);
    CHECK_U64(found.exp_avg_sq, (uint64_t)1 << 42);
    CHECK(found.allocated >= (uint64_t)1 << 43);
    tensor.num_blocks = tensor.numel;
    CHECK_OK(mofo_state_size(&options, &tensor, &found, sizeof found));
    CHECK(found.allocated >= ((uint64_t)1 << 43) + ((uint64_t)1 << 42));
}

static void tensor_state(void) {
    mofo_options options = one_thread();
    mofo_optimizer *optimizer = NULL;
    mofo_tensor expected;
    mofo_tensor tensor;
    mofo_tensor_info info;
    float thresholds[BLOCKS] = {9, 9, 9, 9};
    float zeros[BLOCKS] = {0, 0, 0, 0};
    uint64_t index;
    int t;
    options.master_weights = 1;
    options.state_dtype = MOFO_DTYPE_BF16;
    options.update_fraction = 0.05;
    expected = owned_tensor(&options, "w", NUMEL, MOFO_DTYPE_F16, MOFO_DTYPE_BF16, 3);
    expected.num_blocks = BLOCKS;
    tensor = owned_tensor_copy(&options, &expected);
    free(tensor.exp_avg);
    free(tensor.exp_avg_sq);
    free(tensor.master);
    tensor.exp_avg = tensor.exp_avg_sq = tensor.master = NULL;
    REQUIRE_OK(mofo_create(&options, &optimizer));
    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
    memset(&info, 0xAA, sizeof info);
    REQUIRE_OK(mofo_tensor_state(optimizer, index, &info, sizeof info));
    CHECK(strcmp(info.name, "w") == 0);
    CHECK_U64(info.numel, NUMEL);
    CHECK_U64(info.num_blocks, BLOCKS);
    CHECK_U64(info.step_count, 0);
    CHECK_U64((uint64_t)info.param_dtype, MOFO_DTYPE_F16);
    CHECK_U64((uint64_t)info.grad_dtype, MOFO_DTYPE_BF16);
    CHECK_U64((uint64_t)info.state_dtype, MOFO_DTYPE_BF16);
    CHECK_U64((uint64_t)info.reserved, 0);
    REQUIRE(info.exp_avg != NULL && info.exp_avg_sq != NULL && info.master != NULL && info.thresholds != NULL);
    CHECK_BYTES(info.thresholds, zeros, sizeof zeros);
    for (t = 1; t <= 3; t++) {
        mofo_tensor_info now;
        CHECK_OK(mofo_step(optimizer, NULL));
        reference_step(&options, NULL, 0.0, &expected, thresholds);
        now = state_of(optimizer, index);
        CHECK(now.name == info.name && now.exp_avg == info.exp_avg && now.exp_avg_sq == info.exp_avg_sq &&
              now.master == info.master && now.thresholds == info.thresholds);
        CHECK_U64(now.step_count, (uint64_t)t);
        CHECK_BYTES(now.thresholds, thresholds, sizeof thresholds);
        CHECK_BYTES(now.exp_avg, expected.exp_avg, NUMEL * 2);
        CHECK_BYTES(now.exp_avg_sq, expected.exp_avg_sq, NUMEL * 2);
        CHECK_BYTES(now.master, expected.master, NUMEL * sizeof(float));
        CHECK_BYTES(tensor.param, expected.param, NUMEL * 2);
    }
    mofo_destroy(optimizer);
    owned_tensor_free(&tensor);
    owned_tensor_free(&expected);

    /* An f32 parameter has no master, and a whole tensor that moves no threshold. */
    options.update_fraction = 1.0;
    expected = owned_tensor(&options, "v", NUMEL, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 3);
    REQUIRE_OK(mofo_create(&options, &optimizer));
    REQUIRE_OK(mofo_add_tensor(optimizer, &expected, &index));
    CHECK_OK(mofo_step(optimizer, NULL));
    info = state_of(optimizer, index);
    CHECK(info.master == NULL);
    CHECK(info.exp_avg == expected.exp_avg && info.exp_avg_sq == expected.exp_avg_sq);
    CHECK_BYTES(info.thresholds, zeros, sizeof(float));
    mofo_destroy(optimizer);
    owned_tensor_free(&expected);
}

/* With step_count 0 the content of the caller's memory does not matter; above, it is taken as it is. */
static void caller_owned_state(void) {
    mofo_options options = one_thread();
    mofo_optimizer *optimizer = NULL;
    mofo_tensor expected;
    mofo_tensor actual;
    float threshold;
    uint64_t index;
    options.master_weights = 1;
    expected = owned_tensor(&options, "w", NUMEL, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, 5);
    actual = owned_tensor_copy(&options, &expected);
    memset(actual.exp_avg, 0xFF, NUMEL * sizeof(float));
    memset(actual.exp_avg_sq, 0xFF, NUMEL * sizeof(float));
    memset(actual.master, 0xFF, NUMEL * sizeof(float));
    REQUIRE_OK(mofo_create(&options, &optimizer));
    REQUIRE_OK(mofo_add_tensor(optimizer, &actual, &index));
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK_OK(mofo_step(optimizer, NULL));
    reference_step(&options, NULL, 0.0, &expected, &threshold);
    reference_step(&options, NULL, 0.0, &expected, &threshold);
    actual.step_count = state_of(optimizer, index).step_count;
    check_same_tensor(&options, &actual, &expected);
    mofo_destroy(optimizer);

    REQUIRE_OK(mofo_create(&options, &optimizer));
    REQUIRE_OK(mofo_add_tensor(optimizer, &actual, &index));
    CHECK_U64(state_of(optimizer, index).step_count, 2);
    CHECK_OK(mofo_step(optimizer, NULL));
    reference_step(&options, NULL, 0.0, &expected, &threshold);
    actual.step_count = state_of(optimizer, index).step_count;
    check_same_tensor(&options, &actual, &expected);
    mofo_destroy(optimizer);
    owned_tensor_free(&actual);
    owned_tensor_free(&expected);
}

/* The moments of one optimizer, carried to another by hand, go on as if nothing had happened. */
static void set_step_count(void) {
    mofo_options options = one_thread();
    mofo_optimizer *first = NULL;
    mofo_optimizer *second = NULL;
    mofo_tensor expected;
    mofo_tensor tensor;
    mofo_tensor_info from;
    mofo_tensor_info to;
    float threshold;
    uint64_t index;
    int t;
    options.master_weights = 1;
    expected = owned_tensor(&options, "w", NUMEL, MOFO_DTYPE_F16, MOFO_DTYPE_F32, 6);
    tensor = expected;
    tensor.param = buffer_copy(expected.param, NUMEL * 2);
    tensor.exp_avg = tensor.exp_avg_sq = tensor.master = NULL;
    REQUIRE_OK(mofo_create(&options, &first));
    REQUIRE_OK(mofo_add_tensor(first, &tensor, &index));
    for (t = 0; t < 5; t++) {
        CHECK_OK(mofo_step(first, NULL));
        reference_step(&options, NULL, 0.0, &expected, &threshold);
    }
    REQUIRE_OK(mofo_create(&options, &second));
    REQUIRE_OK(mofo_add_tensor(second, &tensor, &index));
    from = state_of(first, 0);
    to = state_of(second, index);
    memcpy(to.exp_avg, from.exp_avg, NUMEL * sizeof(float));
    memcpy(to.exp_avg_sq, from.exp_avg_sq, NUMEL * sizeof(float));
    memcpy(to.master, from.master, NUMEL * sizeof(float));
    CHECK_OK(mofo_set_step_count(second, index, from.step_count));
    CHECK_U64(state_of(second, index).step_count, 5);
    mofo_destroy(first);
    CHECK_OK(mofo_step(second, NULL));
    reference_step(&options, NULL, 0.0, &expected, &threshold);
    CHECK_BYTES(tensor.param, expected.param, NUMEL * 2);
    CHECK_BYTES(to.master, expected.master, NUMEL * sizeof(float));

    /* 0 starts over: moments from zero, the master from the parameter. */
    CHECK_OK(mofo_set_step_count(second, index, 0));
    expected.step_count = 0;
    CHECK_OK(mofo_step(second, NULL));
    reference_step(&options, NULL, 0.0, &expected, &threshold);
    CHECK_BYTES(tensor.param, expected.param, NUMEL * 2);
    CHECK_BYTES(to.exp_avg, expected.exp_avg, NUMEL * sizeof(float));
    CHECK_BYTES(to.master, expected.master, NUMEL * sizeof(float));
    CHECK_U64(state_of(second, index).step_count, 1);

    /* Late steps are steps: the bias corrections are then 1. */
    CHECK_OK(mofo_set_step_count(second, index, (uint64_t)1 << 62));
    expected.step_count = (uint64_t)1 << 62;
    CHECK_OK(mofo_step(second, NULL));
    reference_step(&options, NULL, 0.0, &expected, &threshold);
    CHECK_BYTES(tensor.param, expected.param, NUMEL * 2);
    mofo_destroy(second);
    free(tensor.param);
    owned_tensor_free(&expected);
}

/* Writing through the pointers between calls is allowed: an entry that an infinite gradient spoilt is healed. */
static void state_can_be_edited(void) {
    mofo_options options = one_thread();
    mofo_optimizer *optimizer = NULL;
    float param[2] = {1.0f, 1.0f};
    float grad[2] = {INFINITY, 1.0f};
    mofo_tensor tensor = named_tensor("w", 2);
    mofo_tensor_info info;
    uint64_t index;
    options.update_fraction = 1.0;
    tensor.param = param;
    tensor.grad = grad;
    REQUIRE_OK(mofo_create(&options, &optimizer));
    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK(param[0] == 1.0f && param[1] < 1.0f);
    grad[0] = 1.0f;
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK(param[0] == 1.0f);
    info = state_of(optimizer, index);
    ((float *)info.exp_avg)[0] = 0.0f;
    ((float *)info.exp_avg_sq)[0] = 0.0f;
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK(param[0] < 1.0f);
    mofo_destroy(optimizer);
}

int main(void) {
    sizes();
    scratch();
    sizes_of_huge_tensors();
    tensor_state();
    caller_owned_state();
    set_step_count();
    state_can_be_edited();
    return check_finish();
}
