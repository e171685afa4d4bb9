/*
 * Every allocation of a scenario fails once: the call says MOFO_ERROR_OUT_OF_MEMORY, nothing has changed, and the
 * same call succeeds when memory is back, with the bits of a run in which nothing failed.
 *
 * Linked statically, with the allocation functions wrapped by the linker (--wrap). The scenario has one thread or
 * the engine's parallel_for: to start threads of its own, Rust's standard library allocates in ways that cannot fail.
 */

#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "buffers.h"

static int armed;
/* Counts the allocations made while armed, over a whole scenario. */
static long allocations;
/* Which of them fails, and whether all later ones of the same call do too. */
static long fail_at;
static int fail_on;
static int failed;
/* Blocks that are allocated at present. */
static long blocks;

static int refuse(void) {
    if (!armed) {
        return 0;
    }
    allocations++;
    if (allocations == fail_at || (failed && fail_on)) {
        failed = 1;
        errno = ENOMEM;
        return 1;
    }
    return 0;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *block, size_t size);
int __real_posix_memalign(void **block, size_t alignment, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void __real_free(void *block);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *block, size_t size);
int __wrap_posix_memalign(void **block, size_t alignment, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void __wrap_free(void *block);

static void *counted(void *block) {
    blocks += block != NULL;
    return block;
}

void *__wrap_malloc(size_t size) { return refuse() ? NULL : counted(__real_malloc(size)); }

void *__wrap_calloc(size_t count, size_t size) {
    return refuse() ? NULL : counted(__real_calloc(count, size));
}

void *__wrap_realloc(void *block, size_t size) {
    if (refuse()) {
        return NULL;
    }
    return block != NULL ? __real_realloc(block, size) : counted(__real_realloc(NULL, size));
}

int __wrap_posix_memalign(void **block, size_t alignment, size_t size) {
    int error = refuse() ? ENOMEM : __real_posix_memalign(block, alignment, size);
    blocks += error == 0;
    return error;
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return refuse() ? NULL : counted(__real_aligned_alloc(alignment, size));
}

void __wrap_free(void *block) {
    blocks -= block != NULL;
    __real_free(block);
}

/* An allocation that cannot fail ends the process; say which one it was. */
static void on_abort(int signal_number) {
    char text[320];
    int length = snprintf(text, sizeof text, "aborted: %s: allocation %ld was refused and could not be\n",
                          check_case, fail_at);
    if (length > 0) {
        (void)!write(STDOUT_FILENO, text, (size_t)length);
    }
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

/* The large one is of a size whose threshold all threads search for together. */
enum { LARGE = 40000, HALVES = 9000, SMALL = 40, TENSORS = 3 + SMALL };

struct scene {
    mofo_options options;
    mofo_optimizer *optimizer;
    mofo_tensor tensors[TENSORS];
    char names[TENSORS][400];
    uint64_t count;
    uint64_t index;
    double norm;
    mofo_step_report report;
    mofo_tensor_info info;
    mofo_memory_info memory;
    mofo_state_sizes sizes;
};

static uint64_t digest_bytes(uint64_t digest, const void *bytes, size_t size) {
    const unsigned char *from = bytes;
    size_t i;
    for (i = 0; i < size; i++) {
        digest = (digest ^ from[i]) * 0x00000100000001B3u;
    }
    return digest;
}

/* Of all that a failed call must leave as it was: the caller's buffers, state, counters, and outputs. */
static uint64_t digest_of(struct scene *scene) {
    uint64_t digest = 0xCBF29CE484222325u;
    uint64_t n;
    for (n = 0; n < TENSORS; n++) {
        const mofo_tensor *tensor = &scene->tensors[n];
        mofo_tensor_info info;
        digest = digest_bytes(digest, tensor->param,
                              (size_t)tensor->numel * reference_size(tensor->param_dtype));
        if (scene->optimizer == NULL || mofo_tensor_state(scene->optimizer, n, &info, sizeof info) != MOFO_OK) {
            digest = digest_bytes(digest, "-", 1);
            continue;
        }
        digest = digest_bytes(digest, info.name, strlen(info.name));
        digest = digest_bytes(digest, &info.step_count, sizeof info.step_count);
        digest = digest_bytes(digest, info.thresholds, (size_t)info.num_blocks * sizeof(float));
        if (info.step_count > 0) {
            size_t bytes = (size_t)info.numel * reference_size(info.state_dtype);
            digest = digest_bytes(digest, info.exp_avg, bytes);
            digest = digest_bytes(digest, info.exp_avg_sq, bytes);
            digest = digest_bytes(digest, info.master, info.master != NULL ? (size_t)info.numel * 4 : 0);
        }
    }
    if (scene->optimizer != NULL) {
        mofo_memory_info memory;
        REQUIRE_OK(mofo_memory(scene->optimizer, &memory, sizeof memory));
        digest = digest_bytes(digest, &memory.state, sizeof memory.state);
        digest = digest_bytes(digest, &memory.num_tensors, sizeof memory.num_tensors);
        digest = digest_bytes(digest, &memory.entries, sizeof memory.entries);
    }
    digest = digest_bytes(digest, &scene->index, sizeof scene->index);
    digest = digest_bytes(digest, &scene->norm, sizeof scene->norm);
    digest = digest_bytes(digest, &scene->report, sizeof scene->report);
    return digest;
}

/* One call of the scenario. `n` is the tensor it is about. */
typedef int32_t (*call)(struct scene *scene, uint64_t n);

static int32_t create(struct scene *scene, uint64_t n) {
    (void)n;
    return mofo_create(&scene->options, &scene->optimizer);
}

static int32_t add(struct scene *scene, uint64_t n) {
    mofo_tensor tensor = scene->tensors[n];
    tensor.param = NULL;
    tensor.grad = NULL;
    return mofo_add_tensor(scene->optimizer, &tensor, &scene->index);
}

static int32_t bind(struct scene *scene, uint64_t n) {
    return mofo_bind_tensor(scene->optimizer, n, scene->tensors[n].param, scene->tensors[n].grad);
}

static int32_t find(struct scene *scene, uint64_t n) {
    return mofo_find_tensor(scene->optimizer, scene->tensors[n].name, &scene->index);
}

/* The message needs memory; the status must be right without. */
static int32_t find_nobody(struct scene *scene, uint64_t n) {
    (void)n;
    return mofo_find_tensor(scene->optimizer, "nobody of that name", &scene->index) == MOFO_ERROR_NOT_FOUND
               ? MOFO_OK
               : MOFO_ERROR_INTERNAL;
}

static int32_t step(struct scene *scene, uint64_t n) {
    mofo_step_args args = default_args();
    (void)n;
    args.report = &scene->report;
    args.report_size = sizeof scene->report;
    return mofo_step(scene->optimizer, &args);
}

static int32_t step_subset(struct scene *scene, uint64_t n) {
    mofo_step_args args = default_args();
    const uint64_t list[3] = {n, 0, n + 1};
    args.tensors = list;
    args.num_tensors = 3;
    return mofo_step(scene->optimizer, &args);
}

static int32_t grad_norm(struct scene *scene, uint64_t n) {
    (void)n;
    return mofo_grad_norm(scene->optimizer, NULL, &scene->norm);
}

static int32_t state_size(struct scene *scene, uint64_t n) {
    return mofo_state_size(&scene->options, &scene->tensors[n], &scene->sizes, sizeof scene->sizes);
}

static int32_t tensor_state(struct scene *scene, uint64_t n) {
    return mofo_tensor_state(scene->optimizer, n, &scene->info, sizeof scene->info);
}

static int32_t set_step_count(struct scene *scene, uint64_t n) {
    return mofo_set_step_count(scene->optimizer, n, 7);
}

static int32_t memory(struct scene *scene, uint64_t n) {
    (void)n;
    return mofo_memory(scene->optimizer, &scene->memory, sizeof scene->memory);
}

static int32_t remove_tensor(struct scene *scene, uint64_t n) {
    return mofo_remove_tensor(scene->optimizer, n);
}

/* How many allocations had been made after each call of the run without failures: a digest takes long, and is
 * needed only before the call that will fail. */
enum { MAX_CALLS = 400 };
static long allocations_after[MAX_CALLS];
static int calls;

static void attempt(struct scene *scene, const char *what, call call, uint64_t n) {
    int fails_here = fail_at > (calls ? allocations_after[calls - 1] : 0) && fail_at <= allocations_after[calls];
    uint64_t before = fails_here ? digest_of(scene) : 0;
    int32_t status;
    failed = 0;
    armed = 1;
    status = call(scene, n);
    armed = 0;
    if (fail_at == 0) {
        REQUIRE(calls < MAX_CALLS - 1);
        allocations_after[calls] = allocations;
    }
    calls++;
    CHECK(failed == fails_here || fail_at == 0);
    if (failed && status != MOFO_OK) {
        CASE("%s %d, allocation %ld, %s", what, (int)n, fail_at, fail_on ? "and all later" : "alone");
        CHECK_STATUS(status, MOFO_ERROR_OUT_OF_MEMORY);
        CHECK(strlen(mofo_last_error()) > 0);
        CHECK_U64(digest_of(scene), before);
        status = call(scene, n);
    }
    CHECK_OK(status);
    CASE("%s", "");
}

static void serial(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    int64_t i;
    (void)ctx;
    for (i = 0; i < n; i++) {
        task(task_ctx, i);
    }
}

/* Returns a digest of everything in the end. */
static uint64_t scenario(const mofo_options *options) {
    struct scene *scene = buffer_new(sizeof *scene);
    uint64_t digest;
    uint64_t n;
    allocations = 0;
    calls = 0;
    scene->options = *options;
    for (n = 0; n < TENSORS; n++) {
        uint64_t numel = n == 0 ? LARGE : n < 3 ? HALVES : 3 + n;
        int32_t dtype = n == 1 ? MOFO_DTYPE_BF16 : n == 2 ? MOFO_DTYPE_F16 : MOFO_DTYPE_F32;
        snprintf(scene->names[n], sizeof scene->names[n], "layer.%d.%s", (int)n, n % 7 == 3 ? "bias" : "weight");
        if (n == 5) {
            memset(scene->names[n], 'n', sizeof scene->names[n] - 1);
        }
        scene->tensors[n] = named_tensor(scene->names[n], numel);
        scene->tensors[n].num_blocks = n == 2 ? 9 : 1;
        scene->tensors[n].param_dtype = dtype;
        scene->tensors[n].grad_dtype = dtype;
        scene->tensors[n].param = buffer_filled(dtype, numel, n, 1.0);
        scene->tensors[n].grad = buffer_filled(dtype, numel, n + 50, 0.01);
    }
    attempt(scene, "create", create, 0);
    for (n = 0; n < TENSORS; n++) {
        attempt(scene, "state_size", state_size, n);
        attempt(scene, "add", add, n);
        attempt(scene, "bind", bind, n);
        attempt(scene, "find", find, n);
    }
    attempt(scene, "find nobody", find_nobody, 0);
    attempt(scene, "grad_norm", grad_norm, 0);
    attempt(scene, "step", step, 0);
    attempt(scene, "subset step", step_subset, 1);
    attempt(scene, "step", step, 0);
    attempt(scene, "tensor_state", tensor_state, 1);
    attempt(scene, "memory", memory, 0);
    attempt(scene, "set_step_count", set_step_count, 4);
    attempt(scene, "remove", remove_tensor, 3);
    attempt(scene, "remove", remove_tensor, 1);
    attempt(scene, "step", step, 0);
    digest = digest_of(scene);
    mofo_destroy(scene->optimizer);
    for (n = 0; n < TENSORS; n++) {
        free(scene->tensors[n].param);
        free((void *)(uintptr_t)scene->tensors[n].grad);
    }
    free(scene);
    return digest;
}

static void every_allocation_fails(const char *name, const mofo_options *options) {
    const long stride = check_quick() ? 13 : 1;
    uint64_t expected;
    long total;
    long refused = 0;
    fail_at = 0;
    /* Twice: what is allocated once in a process's life is allocated by then. */
    (void)scenario(options);
    expected = scenario(options);
    total = allocations;
    printf("%s: %ld allocations\n", name, total);
    CHECK(total > TENSORS);
    for (fail_on = 0; fail_on <= 1; fail_on++) {
        for (fail_at = 1; fail_at <= total; fail_at += stride) {
            long blocks_before = blocks;
            uint64_t digest;
            digest = scenario(options);
            CASE("%s, allocation %ld, %s", name, fail_at, fail_on ? "and all later" : "alone");
            CHECK_U64(digest, expected);
            CHECK_U64((uint64_t)blocks, (uint64_t)blocks_before);
            CHECK(allocations >= fail_at);
            refused++;
            CASE("%s", "");
        }
    }
    CHECK(refused > 0);
}

int main(void) {
    mofo_options options = default_options();
    signal(SIGABRT, on_abort);
    options.num_threads = 1;
    options.max_grad_norm = 0.5;
    options.master_weights = 1;
    every_allocation_fails("one thread", &options);
    options.master_weights = 0;
    options.state_dtype = MOFO_DTYPE_BF16;
    options.filter = MOFO_FILTER_UPDATE;
    options.skip_nonfinite = 1;
    options.parallel_for = serial;
    options.num_threads = 3;
    every_allocation_fails("the engine's loop", &options);
    return check_finish();
}
