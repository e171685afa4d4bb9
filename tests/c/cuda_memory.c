/* The device memory of an optimizer on CUDA: how much, told beforehand and afterwards, and that it is given back. */

#include "cuda_buffers.h"

static mofo_options cuda_options(void) {
    mofo_options options = default_options();
    options.device = MOFO_DEVICE_CUDA;
    return options;
}

static mofo_memory_info memory_of(mofo_optimizer *optimizer) {
    mofo_memory_info info;
    REQUIRE_OK(mofo_memory(optimizer, &info, sizeof info));
    return info;
}

/* What device 0 has in use; only where nobody else uses it. */
static uint64_t used_memory(void) {
    size_t free_bytes, total;
    REQUIRE_CUDA(cuMemGetInfo(&free_bytes, &total));
    return total - free_bytes;
}

/* The work space is at most 3 % of parameters, gradients and moments, or 16 MiB. */
static void check_scratch(uint64_t scratch, uint64_t entries, uint64_t entry_bytes) {
    const double share = 0.03 * (double)entries * (double)entry_bytes;
    const double least = 16.0 * 1024.0 * 1024.0;
    CHECK_AT_MOST(scratch, (uint64_t)(share > least ? share : least));
}

static void work_space(void) {
    /* Of a table of embeddings and matrices like those of GPT-2, of many norms and biases, and of stacked heads. */
    static const struct {
        const char *what;
        uint64_t tensors, numel, num_blocks;
    } shapes[] = {
        {"one of 3,000,000", 1, 3000000, 1},
        {"twelve of 590,000", 12, 590000, 1},
        {"six of 2,360,000", 6, 2360000, 1},
        {"four of twelve blocks", 4, 12 * 300000, 12},
        {"300 of 768", 300, 768, 1},
        {"three of 1,000 blocks", 3, 1000 * 100, 1000},
    };
    char names[300][24];
    size_t n;
    int is_half;
    for (n = 0; n < sizeof shapes / sizeof shapes[0]; n++) {
        for (is_half = 0; is_half < 2; is_half++) {
            mofo_options options = cuda_options();
            mofo_optimizer *optimizer;
            mofo_memory_info info;
            const uint64_t entry_bytes = is_half ? 8 : 16;
            uint64_t i;
            options.state_dtype = is_half ? MOFO_DTYPE_BF16 : MOFO_DTYPE_F32;
            CASE("%s in %s", shapes[n].what, is_half ? "bf16" : "f32");
            REQUIRE_OK(mofo_create(&options, &optimizer));
            for (i = 0; i < shapes[n].tensors; i++) {
                mofo_tensor tensor;
                uint64_t index;
                snprintf(names[i], sizeof names[i], "tensor.%d", (int)i);
                tensor = named_tensor(names[i], shapes[n].numel);
                tensor.num_blocks = shapes[n].num_blocks;
                tensor.param_dtype = tensor.grad_dtype = is_half ? MOFO_DTYPE_BF16 : MOFO_DTYPE_F32;
                REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
            }
            info = memory_of(optimizer);
            CHECK_U64(info.entries, shapes[n].tensors * shapes[n].numel);
            CHECK_U64(info.num_tensors, shapes[n].tensors);
            CHECK(info.state >= info.entries * entry_bytes / 2);
            CHECK_U64(info.caller_state, 0);
            check_scratch(info.scratch, info.entries, entry_bytes);
            if (cuda_is_emulated()) {
                /* All of it is in this optimizer. */
                CHECK_AT_MOST(info.state + info.scratch, used_memory());
                CHECK_AT_MOST(used_memory(), info.state + info.scratch + info.bookkeeping);
            }
            mofo_destroy(optimizer);
        }
    }
}

/* Too large to be added here, but not to be asked about. */
static void work_space_of_large_tensors(void) {
    static const uint64_t numels[] = {4096 * 4096, 4096 * 11008, 32000 * 4096, 1000000000, 5000000000};
    static const double fractions[] = {0.001, 0.03, 0.1, 0.5, 0.99, 1.0};
    size_t n, f;
    int is_half;
    for (n = 0; n < sizeof numels / sizeof numels[0]; n++) {
        for (f = 0; f < sizeof fractions / sizeof fractions[0]; f++) {
            for (is_half = 0; is_half < 2; is_half++) {
                mofo_options options = cuda_options();
                mofo_tensor tensor = named_tensor("large", numels[n]);
                mofo_state_sizes sizes;
                options.update_fraction = fractions[f];
                options.state_dtype = is_half ? MOFO_DTYPE_BF16 : MOFO_DTYPE_F32;
                tensor.param_dtype = tensor.grad_dtype = options.state_dtype;
                CASE("%.0f entries of %s, fraction %g", (double)numels[n], is_half ? "bf16" : "f32", fractions[f]);
                REQUIRE_OK(mofo_state_size(&options, &tensor, &sizes, sizeof sizes));
                check_scratch(sizes.scratch, numels[n], is_half ? 8 : 16);
                CHECK_U64(sizes.exp_avg, numels[n] * (is_half ? 2 : 4));
                CHECK_U64(sizes.exp_avg_sq, sizes.exp_avg);
                CHECK_U64(sizes.master, 0);
                CHECK(sizes.allocated >= 2 * sizes.exp_avg);
                CHECK_AT_MOST(sizes.allocated, 2 * sizes.exp_avg + 4096);
            }
        }
    }
}

/* So many that 3 % of them are more than 16 MiB. */
static void work_space_of_many_tensors(void) {
    static const uint64_t numels[] = {524289, 590000, 768 * 768 * 3, 768 * 3072};
    static const double fractions[] = {0.03, 0.1, 0.5, 1.0};
    size_t n, f;
    int is_half;
    for (n = 0; n < sizeof numels / sizeof numels[0]; n++) {
        for (f = 0; f < sizeof fractions / sizeof fractions[0]; f++) {
            for (is_half = 0; is_half < 2; is_half++) {
                mofo_options options = cuda_options();
                mofo_tensor tensor = named_tensor("many", numels[n]);
                mofo_state_sizes sizes;
                options.update_fraction = fractions[f];
                options.state_dtype = is_half ? MOFO_DTYPE_BF16 : MOFO_DTYPE_F32;
                tensor.param_dtype = tensor.grad_dtype = options.state_dtype;
                CASE("a thousand of %.0f entries of %s, fraction %g", (double)numels[n], is_half ? "bf16" : "f32",
                     fractions[f]);
                REQUIRE_OK(mofo_state_size(&options, &tensor, &sizes, sizeof sizes));
                check_scratch(1000 * sizes.scratch, 1000 * numels[n], is_half ? 8 : 16);
            }
        }
    }
}

/* What mofo_state_size says is what mofo_add_tensor takes, and what mofo_remove_tensor gives back. */
static void told_beforehand(void) {
    static const struct {
        const char *what;
        uint64_t numel, num_blocks;
        int32_t param_dtype, state_dtype;
        int master, brings;
    } cases[] = {
        {"one entry", 1, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 0, 0},
        {"small", 1000, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 0, 0},
        {"in blocks", 1000, 100, MOFO_DTYPE_BF16, MOFO_DTYPE_BF16, 0, 0},
        {"with a master copy", 999, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, 1, 0},
        {"with a master copy, bf16", 4099, 1, MOFO_DTYPE_F16, MOFO_DTYPE_BF16, 1, 0},
        {"moments of the caller's", 1000, 4, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 0, 3},
        {"a first moment of the caller's", 1000, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, 1, 1},
        {"all of the caller's", 777, 7, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, 1, 7},
        {"large", 300000, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 0, 0},
        {"large blocks", 3 * 350000, 3, MOFO_DTYPE_BF16, MOFO_DTYPE_BF16, 1, 0},
    };
    size_t n;
    for (n = 0; n < sizeof cases / sizeof cases[0]; n++) {
        mofo_options options = cuda_options();
        mofo_optimizer *optimizer;
        mofo_tensor tensor = named_tensor("told", cases[n].numel);
        mofo_state_sizes sizes;
        mofo_memory_info before, after;
        uint64_t index, used_before, brought, named;
        size_t moment;
        CASE("told beforehand: %s", cases[n].what);
        options.state_dtype = cases[n].state_dtype;
        options.master_weights = cases[n].master;
        tensor.num_blocks = cases[n].num_blocks;
        tensor.param_dtype = tensor.grad_dtype = cases[n].param_dtype;
        moment = moment_bytes(&options, &tensor);
        tensor.exp_avg = cases[n].brings & 1 ? device_new(moment) : NULL;
        tensor.exp_avg_sq = cases[n].brings & 2 ? device_new(moment) : NULL;
        tensor.master = cases[n].brings & 4 ? device_new(cases[n].numel * sizeof(float)) : NULL;
        brought = (cases[n].brings & 1 ? moment : 0) + (cases[n].brings & 2 ? moment : 0) +
                  (cases[n].brings & 4 ? cases[n].numel * sizeof(float) : 0);
        REQUIRE_OK(mofo_create(&options, &optimizer));
        before = memory_of(optimizer);
        used_before = used_memory();
        REQUIRE_OK(mofo_state_size(&options, &tensor, &sizes, sizeof sizes));
        CHECK_U64(sizes.exp_avg, moment);
        CHECK_U64(sizes.exp_avg_sq, moment);
        CHECK_U64(sizes.master, cases[n].master ? cases[n].numel * sizeof(float) : 0);
        REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
        after = memory_of(optimizer);
        named = strlen(tensor.name) + 1;
        CHECK_U64(after.caller_state - before.caller_state, brought);
        CHECK_U64(after.state - before.state, sizes.allocated - named - cases[n].num_blocks * sizeof(float));
        CHECK_U64(after.scratch - before.scratch, sizes.scratch);
        if (cuda_is_emulated()) {
            CHECK_U64(used_memory() - used_before, sizes.allocated - named + sizes.scratch);
        }
        REQUIRE_OK(mofo_remove_tensor(optimizer, index));
        after = memory_of(optimizer);
        CHECK_U64(after.state, before.state);
        CHECK_U64(after.caller_state, before.caller_state);
        CHECK_U64(after.scratch, before.scratch);
        if (cuda_is_emulated()) {
            CHECK_U64(used_memory(), used_before);
        }
        mofo_destroy(optimizer);
        device_free(tensor.exp_avg);
        device_free(tensor.exp_avg_sq);
        device_free(tensor.master);
    }
}

/* Nothing stays after mofo_destroy, whatever came before it. */
static void given_back(void) {
    int n;
    for (n = 0; n < 5; n++) {
        mofo_options options = default_options();
        struct twins *twins;
        CASE("given back, %d", n);
        options.max_grad_norm = 1.0;
        twins = twins_new(&options);
        if (n > 0) {
            twins_add_mixed(twins);
        }
        if (n > 1) {
            twins_add_plain(twins, "large", 263000, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
            twins_step(twins, NULL);
        }
        if (n > 2) {
            double norm;
            REQUIRE_OK(mofo_grad_norm(twins->device, NULL, &norm));
            REQUIRE_OK(mofo_remove_tensor(twins->device, 1));
        }
        if (n > 3) {
            /* It is still on its way. */
            REQUIRE_OK(mofo_step(twins->device, NULL));
        }
        twins_free(twins);
        if (cuda_is_emulated()) {
            CHECK_U64(mofo_emulated_allocations(), 0);
            CHECK_U64(used_memory(), 0);
        }
    }
}

/* A step takes no more than there is. */
static void steps_take_nothing(void) {
    mofo_options options = default_options();
    struct twins *twins = twins_new(&options);
    mofo_memory_info before;
    uint64_t used_before;
    int t;
    CASE("steps take no device memory");
    twins_add_mixed(twins);
    before = memory_of(twins->device);
    used_before = used_memory();
    for (t = 0; t < 3; t++) {
        double norm;
        mofo_memory_info after;
        twins_step(twins, NULL);
        REQUIRE_OK(mofo_grad_norm(twins->device, NULL, &norm));
        after = memory_of(twins->device);
        CHECK_U64(after.scratch, before.scratch);
        CHECK_U64(after.state, before.state);
        if (cuda_is_emulated()) {
            CHECK_U64(used_memory(), used_before);
        }
    }
    twins_free(twins);
}

int main(void) {
    cuda_begin();
    work_space();
    work_space_of_large_tensors();
    work_space_of_many_tensors();
    told_beforehand();
    given_back();
    steps_take_nothing();
    return cuda_finish();
}
