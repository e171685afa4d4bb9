/* Tensors: their defaults, indices, names, binding and removal. */

#include "buffers.h"

static mofo_optimizer *new_optimizer(void) {
    mofo_options options = default_options();
    mofo_optimizer *optimizer = NULL;
    options.num_threads = 1;
    REQUIRE_OK(mofo_create(&options, &optimizer));
    return optimizer;
}

static void defaults(void) {
    mofo_tensor t;
    memset(&t, 0xAA, sizeof t);
    REQUIRE_OK(mofo_tensor_init(&t, sizeof t));
    CHECK_U64(t.struct_size, sizeof t);
    CHECK(t.name == NULL);
    CHECK_U64(t.numel, 0);
    CHECK_U64(t.num_blocks, 1);
    CHECK_U64((uint64_t)t.param_dtype, MOFO_DTYPE_F32);
    CHECK_U64((uint64_t)t.grad_dtype, MOFO_DTYPE_F32);
    CHECK(t.param == NULL);
    CHECK(t.grad == NULL);
    CHECK_F64(t.update_fraction, MOFO_INHERIT);
    CHECK_F64(t.weight_decay, MOFO_INHERIT);
    CHECK_F64(t.learning_rate_scale, 1.0);
    CHECK_U64(t.step_count, 0);
    CHECK(t.exp_avg == NULL);
    CHECK(t.exp_avg_sq == NULL);
    CHECK(t.master == NULL);
}

static void indices_count_up_and_are_not_used_again(void) {
    mofo_optimizer *optimizer = new_optimizer();
    mofo_tensor tensor = named_tensor("a", 4);
    mofo_memory_info memory;
    uint64_t index = 99;
    uint64_t found = 99;
    CHECK_OK(mofo_add_tensor(optimizer, &tensor, &index));
    CHECK_U64(index, 0);
    tensor.name = "b";
    CHECK_OK(mofo_add_tensor(optimizer, &tensor, &index));
    CHECK_U64(index, 1);
    CHECK_OK(mofo_remove_tensor(optimizer, 1));
    tensor.name = "b";
    CHECK_OK(mofo_add_tensor(optimizer, &tensor, &index));
    CHECK_U64(index, 2);
    CHECK_OK(mofo_remove_tensor(optimizer, 0));
    CHECK_OK(mofo_find_tensor(optimizer, "b", &found));
    CHECK_U64(found, 2);
    found = 99;
    CHECK_STATUS(mofo_find_tensor(optimizer, "a", &found), MOFO_ERROR_NOT_FOUND);
    CHECK_TEXT(mofo_last_error(), "a");
    CHECK_U64(found, 99);
    CHECK_OK(mofo_memory(optimizer, &memory, sizeof memory));
    CHECK_U64(memory.num_tensors, 1);
    CHECK_U64(memory.entries, 4);
    mofo_destroy(optimizer);
}

static void the_struct_and_the_name_may_go(void) {
    mofo_optimizer *optimizer = new_optimizer();
    mofo_tensor tensor;
    char name[] = "h.0.attn \xC3\xA9\xE2\x82\xAC";
    uint64_t index = 99;
    uint64_t found = 99;
    tensor = named_tensor(name, 6);
    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
    memset(name, 'x', sizeof name - 1);
    memset(&tensor, 0xFF, sizeof tensor);
    CHECK(strcmp(state_of(optimizer, index).name, "h.0.attn \xC3\xA9\xE2\x82\xAC") == 0);
    CHECK_OK(mofo_find_tensor(optimizer, "h.0.attn \xC3\xA9\xE2\x82\xAC", &found));
    CHECK_U64(found, index);
    mofo_destroy(optimizer);
}

static void many_names(void) {
    mofo_optimizer *optimizer = new_optimizer();
    char name[64];
    uint64_t i;
    const uint64_t count = 2000;
    for (i = 0; i < count; i++) {
        mofo_tensor tensor;
        uint64_t index = UINT64_MAX;
        snprintf(name, sizeof name, "layer.%llu.weight", (unsigned long long)i);
        tensor = named_tensor(name, 1 + i % 3);
        REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
        if (index != i) {
            CHECK_U64(index, i);
        }
    }
    for (i = 0; i < count; i++) {
        uint64_t index = UINT64_MAX;
        snprintf(name, sizeof name, "layer.%llu.weight", (unsigned long long)i);
        if (mofo_find_tensor(optimizer, name, &index) != MOFO_OK || index != i) {
            CASE("%s", name);
            CHECK_U64(index, i);
        }
    }
    /* A name of some thousand bytes is a name. */
    {
        char *long_name = buffer_new(5001);
        mofo_tensor tensor;
        uint64_t index = 0;
        uint64_t found = 1;
        memset(long_name, 'n', 5000);
        tensor = named_tensor(long_name, 1);
        CHECK_OK(mofo_add_tensor(optimizer, &tensor, &index));
        CHECK_OK(mofo_find_tensor(optimizer, long_name, &found));
        CHECK_U64(found, index);
        CHECK_STATUS(mofo_add_tensor(optimizer, &tensor, &index), MOFO_ERROR_INVALID_ARGUMENT);
        CHECK(strlen(mofo_last_error()) > 0);
        free(long_name);
    }
    mofo_destroy(optimizer);
}

/* Buffers may be bound late, moved, and unbound; a tensor without a gradient is left alone. */
static void binding(void) {
    mofo_options options = default_options();
    mofo_optimizer *optimizer = new_optimizer();
    enum { NUMEL = 100 };
    mofo_tensor twin;
    mofo_tensor tensor = named_tensor("w", NUMEL);
    float thresholds[1];
    float *first;
    float *second;
    float *grad;
    float *before;
    uint64_t index = 0;
    options.num_threads = 1;
    twin = owned_tensor(&options, "w", NUMEL, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 7);
    first = buffer_copy(twin.param, sizeof(float) * NUMEL);
    second = buffer_new(sizeof(float) * NUMEL);
    grad = buffer_copy(twin.grad, sizeof(float) * NUMEL);
    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
    CHECK_STATUS(mofo_step(optimizer, NULL), MOFO_ERROR_INVALID_STATE);

    CHECK_OK(mofo_bind_tensor(optimizer, index, first, grad));
    CHECK_OK(mofo_step(optimizer, NULL));
    reference_step(&options, NULL, 0.0, &twin, thresholds);
    CHECK_BYTES(first, twin.param, sizeof(float) * NUMEL);

    memcpy(second, first, sizeof(float) * NUMEL);
    before = buffer_copy(first, sizeof(float) * NUMEL);
    CHECK_OK(mofo_bind_tensor(optimizer, index, second, grad));
    CHECK_OK(mofo_step(optimizer, NULL));
    reference_step(&options, NULL, 0.0, &twin, thresholds);
    CHECK_BYTES(second, twin.param, sizeof(float) * NUMEL);
    CHECK_BYTES(first, before, sizeof(float) * NUMEL);
    CHECK_U64(state_of(optimizer, index).step_count, 2);

    /* With another tensor that has a gradient, the step is one; this tensor's t stays. */
    CHECK_OK(mofo_bind_tensor(optimizer, index, second, NULL));
    {
        float p = 1.0f;
        float g = 1.0f;
        mofo_tensor other = named_tensor("other", 1);
        uint64_t other_index = 0;
        other.param = &p;
        other.grad = &g;
        REQUIRE_OK(mofo_add_tensor(optimizer, &other, &other_index));
        CHECK_OK(mofo_step(optimizer, NULL));
        CHECK(p < 1.0f);
        CHECK_U64(state_of(optimizer, index).step_count, 2);
        CHECK_U64(state_of(optimizer, other_index).step_count, 1);
        CHECK_BYTES(second, twin.param, sizeof(float) * NUMEL);

        /* The moments were kept meanwhile. */
        CHECK_OK(mofo_bind_tensor(optimizer, index, second, grad));
        CHECK_OK(mofo_bind_tensor(optimizer, other_index, NULL, NULL));
        CHECK_OK(mofo_step(optimizer, NULL));
        reference_step(&options, NULL, 0.0, &twin, thresholds);
        CHECK_BYTES(second, twin.param, sizeof(float) * NUMEL);
        CHECK_U64(state_of(optimizer, other_index).step_count, 1);
    }
    free(first);
    free(second);
    free(grad);
    free(before);
    owned_tensor_free(&twin);
    mofo_destroy(optimizer);
}

/* A buffer needs its element's alignment, no more. */
static void alignment_of_an_element_is_enough(void) {
    static const int32_t dtypes[] = {MOFO_DTYPE_F32, MOFO_DTYPE_F16, MOFO_DTYPE_BF16};
    size_t d;
    for (d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        size_t size = reference_size(dtypes[d]);
        size_t shift;
        for (shift = 0; shift < 64; shift += size) {
            enum { NUMEL = 37 };
            mofo_optimizer *optimizer = new_optimizer();
            char *param = buffer_new(64 + NUMEL * size);
            char *grad = buffer_new(64 + NUMEL * size);
            mofo_tensor tensor = named_tensor("w", NUMEL);
            uint64_t index;
            CASE("dtype %d at offset %zu", (int)dtypes[d], shift);
            tensor.param_dtype = dtypes[d];
            tensor.grad_dtype = dtypes[d];
            tensor.param = param + shift;
            tensor.grad = grad + 64 - size - shift;
            CHECK_OK(mofo_add_tensor(optimizer, &tensor, &index));
            CHECK_OK(mofo_step(optimizer, NULL));
            mofo_destroy(optimizer);
            free(param);
            free(grad);
        }
    }
    CASE("%s", "");
}

/* What a removed tensor used is not touched any more; its buffers may be freed, its name used anew. */
static void removal(void) {
    mofo_options options = default_options();
    mofo_optimizer *optimizer = new_optimizer();
    mofo_tensor kept = owned_tensor(&options, "kept", 50, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 1);
    mofo_tensor gone = owned_tensor(&options, "gone", 50, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 2);
    mofo_tensor again;
    uint64_t kept_index;
    uint64_t gone_index;
    uint64_t index;
    void *copy;
    REQUIRE_OK(mofo_add_tensor(optimizer, &gone, &gone_index));
    REQUIRE_OK(mofo_add_tensor(optimizer, &kept, &kept_index));
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK_OK(mofo_remove_tensor(optimizer, gone_index));
    CHECK_STATUS(mofo_remove_tensor(optimizer, gone_index), MOFO_ERROR_NOT_FOUND);
    copy = buffer_copy(kept.param, 50 * sizeof(float));
    again = owned_tensor(&options, "gone", 10, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 3);
    owned_tensor_free(&gone);
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK(memcmp(kept.param, copy, 50 * sizeof(float)) != 0);
    CHECK_U64(state_of(optimizer, kept_index).step_count, 2);
    CHECK_OK(mofo_add_tensor(optimizer, &again, &index));
    CHECK_U64(state_of(optimizer, index).step_count, 0);
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK_U64(state_of(optimizer, index).step_count, 1);
    mofo_destroy(optimizer);
    free(copy);
    owned_tensor_free(&kept);
    owned_tensor_free(&again);
}

int main(void) {
    defaults();
    indices_count_up_and_are_not_used_again();
    the_struct_and_the_name_may_go();
    many_names();
    binding();
    alignment_of_an_element_is_enough();
    removal();
    return check_finish();
}
