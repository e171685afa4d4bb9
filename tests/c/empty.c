/* Tensors without entries, as shards and experts may be: they take part in everything, and nothing happens. */

#include "buffers.h"

enum { FULL = 3, STEPS = 3 };

static const uint64_t numels[FULL] = {4096, 70000, 30};
static const char *const names[FULL] = {"matrix", "large", "bias"};

/* An optimizer with three tensors and, in `with`, empty ones before, between and after them. */
struct scene {
    mofo_optimizer *optimizer;
    mofo_tensor full[FULL];
    uint64_t full_indices[FULL];
    uint64_t empty_indices[4];
    int empty;
};

static uint64_t added(mofo_optimizer *optimizer, const mofo_tensor *tensor) {
    uint64_t index = 0;
    REQUIRE_OK(mofo_add_tensor(optimizer, tensor, &index));
    return index;
}

/* `n` tells them apart: no pointers, all pointers, 16 bits, many blocks. */
static void add_empty(struct scene *scene, int n) {
    static const char *const empty_names[4] = {"empty", "empty.bound", "empty.half", "empty.blocks"};
    static uint64_t somewhere;
    mofo_tensor tensor = named_tensor(empty_names[n], 0);
    if (n == 1) {
        /* What is not looked at may be at odd addresses, and overlap. */
        void *odd = (char *)&somewhere + 1;
        tensor.param = tensor.exp_avg = tensor.exp_avg_sq = odd;
        tensor.grad = odd;
    }
    if (n == 2) {
        tensor.param_dtype = MOFO_DTYPE_BF16;
        tensor.grad_dtype = MOFO_DTYPE_F16;
        tensor.update_fraction = 1.0;
    }
    if (n == 3) {
        tensor.num_blocks = 7;
    }
    scene->empty_indices[n] = added(scene->optimizer, &tensor);
    scene->empty = n + 1;
}

static struct scene scene_new(const mofo_options *options, int with) {
    struct scene scene;
    int n;
    memset(&scene, 0, sizeof scene);
    REQUIRE_OK(mofo_create(options, &scene.optimizer));
    for (n = 0; n < FULL; n++) {
        if (with) {
            add_empty(&scene, n);
        }
        scene.full[n] = owned_tensor(options, names[n], numels[n], MOFO_DTYPE_F32, MOFO_DTYPE_F32, 7 + (uint64_t)n);
        scene.full_indices[n] = added(scene.optimizer, &scene.full[n]);
    }
    if (with) {
        add_empty(&scene, n);
    }
    return scene;
}

static void scene_free(struct scene *scene) {
    int n;
    mofo_destroy(scene->optimizer);
    for (n = 0; n < FULL; n++) {
        owned_tensor_free(&scene->full[n]);
    }
}

/* What is kept for an empty tensor after so many steps. */
static void check_empty(struct scene *scene, uint64_t steps) {
    int n;
    for (n = 0; n < scene->empty; n++) {
        const mofo_tensor_info info = state_of(scene->optimizer, scene->empty_indices[n]);
        uint64_t block;
        CHECK_U64(info.numel, 0);
        CHECK_U64(info.num_blocks, n == 3 ? 7 : 1);
        CHECK_U64(info.step_count, steps);
        CHECK(info.exp_avg == NULL && info.exp_avg_sq == NULL && info.master == NULL);
        for (block = 0; block < info.num_blocks; block++) {
            CHECK_F64((double)info.thresholds[block], 0.0);
        }
    }
}

static void step_both(struct scene *with, struct scene *without) {
    mofo_step_args args = default_args();
    mofo_step_report reports[2];
    double norms[2];
    memset(reports, 0, sizeof reports);
    args.report_size = sizeof reports[0];
    REQUIRE_OK(mofo_grad_norm(with->optimizer, NULL, &norms[0]));
    REQUIRE_OK(mofo_grad_norm(without->optimizer, NULL, &norms[1]));
    CHECK_F64(norms[0], norms[1]);
    args.report = &reports[0];
    REQUIRE_OK(mofo_step(with->optimizer, &args));
    args.report = &reports[1];
    REQUIRE_OK(mofo_step(without->optimizer, &args));
    CHECK_U64(reports[0].tensors, reports[1].tensors + (uint64_t)with->empty);
    reports[1].tensors = reports[0].tensors;
    CHECK_BYTES(&reports[0], &reports[1], sizeof reports[0]);
}

static void check_same(const struct scene *with, const struct scene *without, const mofo_options *options) {
    int n;
    for (n = 0; n < FULL; n++) {
        check_same_tensor(options, &with->full[n], &without->full[n]);
    }
}

/* The other tensors are stepped with the same bits, the norm of the gradients included. */
static void beside_others(void) {
    static const int32_t filters[] = {MOFO_FILTER_MOMENTUM, MOFO_FILTER_GRADIENT, MOFO_FILTER_UPDATE,
                                      MOFO_FILTER_RANDOM};
    int n, t;
    for (n = 0; n < 8; n++) {
        mofo_options options = default_options();
        struct scene with, without;
        CASE("options %d", n);
        options.filter = filters[n / 2];
        options.update_fraction = n == 5 ? 1.0 : 0.1;
        options.weight_decay_scope = n & 1 ? MOFO_WEIGHT_DECAY_ALL : MOFO_WEIGHT_DECAY_SELECTED;
        options.state_dtype = n & 1 ? MOFO_DTYPE_BF16 : MOFO_DTYPE_F32;
        options.master_weights = n & 1;
        options.max_grad_norm = n & 2 ? 0.5 : 0.0;
        options.num_threads = n & 1 ? 3 : 1;
        options.weight_decay = 0.1;
        with = scene_new(&options, 1);
        without = scene_new(&options, 0);
        for (t = 0; t < STEPS; t++) {
            step_both(&with, &without);
            check_empty(&with, (uint64_t)t + 1);
            check_same(&with, &without, &options);
        }
        scene_free(&with);
        scene_free(&without);
    }
}

static void count_calls(void *context, int64_t n, mofo_task task, void *task_context) {
    int64_t i;
    ++*(int *)context;
    for (i = 0; i < n; i++) {
        task(task_context, i);
    }
}

/* An optimizer may have no entries at all: one rank of many. */
static void alone(void) {
    mofo_options options = default_options();
    mofo_optimizer *optimizer;
    mofo_step_args args = default_args();
    mofo_step_report report;
    mofo_memory_info memory;
    mofo_tensor tensor = named_tensor("empty", 0);
    uint64_t index, found;
    double norm = 1.0;
    int calls = 0;
    CASE("alone");
    options.max_grad_norm = 1.0;
    options.skip_nonfinite = 1;
    options.parallel_for = count_calls;
    options.parallel_for_ctx = &calls;
    REQUIRE_OK(mofo_create(&options, &optimizer));
    CHECK_STATUS(mofo_step(optimizer, NULL), MOFO_ERROR_INVALID_STATE);
    index = added(optimizer, &tensor);
    memset(&report, 0xAA, sizeof report);
    args.report = &report;
    args.report_size = sizeof report;
    CHECK_OK(mofo_step(optimizer, &args));
    CHECK_F64(report.grad_norm, 0.0);
    CHECK_U64(report.entries, 0);
    CHECK_U64(report.entries_selected, 0);
    CHECK_OK(mofo_grad_norm(optimizer, NULL, &norm));
    CHECK_F64(norm, 0.0);
    CHECK_U64((uint64_t)calls, 0);
    CHECK_U64(state_of(optimizer, index).step_count, 1);
    CHECK_OK(mofo_bind_tensor(optimizer, index, NULL, NULL));
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK_U64(state_of(optimizer, index).step_count, 2);
    args.tensors = &index;
    args.num_tensors = 0;
    CHECK_OK(mofo_step(optimizer, &args));
    CHECK_U64(state_of(optimizer, index).step_count, 2);
    args.num_tensors = 1;
    CHECK_OK(mofo_step(optimizer, &args));
    CHECK_U64(state_of(optimizer, index).step_count, 3);
    CHECK_OK(mofo_set_step_count(optimizer, index, 9));
    CHECK_U64(state_of(optimizer, index).step_count, 9);
    CHECK_OK(mofo_find_tensor(optimizer, "empty", &found));
    CHECK_U64(found, index);
    CHECK_OK(mofo_memory(optimizer, &memory, sizeof memory));
    CHECK_U64(memory.state + memory.caller_state + memory.entries, 0);
    CHECK_U64(memory.num_tensors, 1);
    /* What is refused of others is refused of these. */
    CHECK_STATUS(mofo_add_tensor(optimizer, &tensor, &found), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_OK(mofo_set_step_count(optimizer, index, INT64_MAX));
    CHECK_STATUS(mofo_step(optimizer, NULL), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_OK(mofo_remove_tensor(optimizer, index));
    mofo_destroy(optimizer);
}

static void sizes(void) {
    mofo_options options = default_options();
    mofo_tensor tensor = named_tensor("empty", 0);
    mofo_state_sizes found;
    CASE("sizes");
    options.master_weights = 1;
    tensor.param_dtype = MOFO_DTYPE_BF16;
    tensor.num_blocks = 3;
    CHECK_OK(mofo_state_size(&options, &tensor, &found, sizeof found));
    CHECK_U64(found.exp_avg + found.exp_avg_sq + found.master + found.scratch, 0);
    CHECK_U64(found.allocated, 3 * sizeof(float) + sizeof "empty");
    tensor.num_blocks = UINT64_MAX;
    CHECK_STATUS(mofo_state_size(&options, &tensor, &found, sizeof found), MOFO_ERROR_INVALID_ARGUMENT);
}

/* A checkpoint has them, with the steps that were counted. */
static void checkpoints(void) {
    mofo_options options = default_options();
    struct scene first, second;
    uint64_t size = 0, written = 0;
    void *saved;
    int t;
    CASE("checkpoints");
    first = scene_new(&options, 1);
    second = scene_new(&options, 1);
    for (t = 0; t < STEPS; t++) {
        REQUIRE_OK(mofo_step(first.optimizer, NULL));
    }
    REQUIRE_OK(mofo_save_size(first.optimizer, &size));
    saved = buffer_new((size_t)size);
    REQUIRE_OK(mofo_save_to_memory(first.optimizer, saved, size, &written));
    CHECK_U64(written, size);
    CHECK_OK(mofo_load_from_memory(second.optimizer, saved, size));
    check_empty(&second, STEPS);
    CHECK_BYTES(second.full[1].exp_avg, first.full[1].exp_avg, numels[1] * sizeof(float));
    free(saved);
    scene_free(&first);
    scene_free(&second);
}

int main(void) {
    beside_others();
    alone();
    sizes();
    checkpoints();
    return check_finish();
}
