/*
 * How much memory an optimizer takes, for the tensors of whole language models: mofo_state_size is asked for every
 * tensor, and nothing is allocated. Prints Markdown: docs/memory.md has what it printed. C99.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include <mofo.h>
#include <stdio.h>
#include <stdlib.h>

/* A decoder: attention with `kv_width` entries of keys and values, a gated feed-forward layer, norms without biases. */
typedef struct {
    uint64_t layers, width, query_width, kv_width, ff_width, vocabulary;
    int tied; /* the output layer is the embedding */
} model;

/* Shapes that are usual at these sizes. */
static const model models[] = {
    {16, 2048, 2048, 512, 8192, 128256, 1},  {28, 3072, 3072, 1024, 8192, 128256, 1},
    {32, 4096, 4096, 1024, 14336, 128256, 0}, {48, 5120, 5120, 1024, 13824, 152064, 0},
    {64, 5120, 5120, 1024, 27648, 152064, 0}, {80, 8192, 8192, 1024, 28672, 128256, 0},
};
enum { MODELS = sizeof models / sizeof *models };

typedef struct {
    const char *name;
    int32_t param, state, master;
} combination;

static const combination combinations[] = {
    {"f32", MOFO_DTYPE_F32, MOFO_DTYPE_F32, 0},
    {"f32", MOFO_DTYPE_F32, MOFO_DTYPE_BF16, 0},
    {"16 bits", MOFO_DTYPE_BF16, MOFO_DTYPE_F32, 1},
    {"16 bits", MOFO_DTYPE_BF16, MOFO_DTYPE_F32, 0},
    {"16 bits", MOFO_DTYPE_BF16, MOFO_DTYPE_BF16, 1},
    {"16 bits", MOFO_DTYPE_BF16, MOFO_DTYPE_BF16, 0},
};
enum { COMBINATIONS = sizeof combinations / sizeof *combinations };

/* Of all tensors of a model. */
typedef struct {
    uint64_t entries, tensors;
    uint64_t allocated;
    uint64_t largest_scratch, all_scratch;
} sums;

static void add(sums *sum, const mofo_options *options, const combination *types, int32_t grad, uint64_t numel) {
    mofo_tensor tensor;
    mofo_state_sizes sizes;
    int32_t status = mofo_tensor_init(&tensor, sizeof tensor);
    tensor.numel = numel;
    tensor.param_dtype = types->param;
    tensor.grad_dtype = grad;
    if (status >= 0) status = mofo_state_size(options, &tensor, &sizes, sizeof sizes);
    if (status < 0) {
        fprintf(stderr, "%s: %s\n", mofo_status_name(status), mofo_last_error());
        exit(1);
    }
    sum->entries += numel;
    sum->tensors++;
    sum->allocated += sizes.allocated;
    sum->all_scratch += sizes.scratch;
    if (sizes.scratch > sum->largest_scratch) sum->largest_scratch = sizes.scratch;
}

static sums sums_of(const model *m, const combination *types, int32_t grad, int32_t device) {
    mofo_options options;
    sums sum = {0, 0, 0, 0, 0};
    if (mofo_options_init(&options, sizeof options) < 0) exit(1);
    options.device = device;
    options.state_dtype = types->state;
    options.master_weights = types->master;
    options.num_threads = 16; /* the work space is the same up to 64 */
    add(&sum, &options, types, grad, m->vocabulary * m->width);
    for (uint64_t layer = 0; layer < m->layers; layer++) {
        add(&sum, &options, types, grad, m->query_width * m->width);
        add(&sum, &options, types, grad, m->kv_width * m->width);
        add(&sum, &options, types, grad, m->kv_width * m->width);
        add(&sum, &options, types, grad, m->width * m->query_width);
        for (int i = 0; i < 3; i++) add(&sum, &options, types, grad, m->ff_width * m->width);
        for (int i = 0; i < 2; i++) add(&sum, &options, types, grad, m->width);
    }
    add(&sum, &options, types, grad, m->width);
    if (!m->tied) add(&sum, &options, types, grad, m->vocabulary * m->width);
    return sum;
}

/* What a step of all tensors needs at most on the CPU: that of the largest one, and its lists for the others. */
static uint64_t cpu_scratch(const sums *sum) {
    return sum->largest_scratch + sum->entries / 4096 * 45 + sum->tensors * 200;
}

/* The names of the first columns, and then the models by their entries. */
static void head(const char *left, int columns) {
    printf("| %s |", left);
    for (int i = 0; i < MODELS; i++) {
        sums sum = sums_of(&models[i], &combinations[0], MOFO_DTYPE_F32, MOFO_DEVICE_CPU);
        printf(" %.1f B |", (double)sum.entries / 1e9);
    }
    printf("\n|");
    for (int i = 0; i < columns + MODELS; i++) printf("---|");
    printf("\n");
}

static void row(const combination *types, int32_t grad, const char *what,
                uint64_t (*bytes)(const sums *, const combination *, int32_t)) {
    printf("| %s | %s | %s | %s |", types->name, types->state == MOFO_DTYPE_F32 ? "f32" : "bf16",
           types->param == MOFO_DTYPE_F32 ? "" : types->master ? "yes" : "no", what);
    for (int i = 0; i < MODELS; i++) {
        sums sum = sums_of(&models[i], types, grad, MOFO_DEVICE_CPU);
        printf(" %.1f |", (double)bytes(&sum, types, grad) / (1 << 30));
    }
    printf("\n");
}

static uint64_t bytes_of(int32_t dtype) { return dtype == MOFO_DTYPE_F32 ? 4 : 2; }

static uint64_t state(const sums *sum, const combination *types, int32_t grad) {
    (void)types, (void)grad;
    return sum->allocated;
}

static uint64_t total(const sums *sum, const combination *types, int32_t grad) {
    return sum->allocated + cpu_scratch(sum) + sum->entries * (bytes_of(types->param) + bytes_of(grad));
}

static uint64_t scratch(const model *m, int32_t device) {
    uint64_t most = 0;
    for (int i = 0; i < 2 * COMBINATIONS; i++) {
        int32_t grad = i % 2 == 0 ? MOFO_DTYPE_F32 : MOFO_DTYPE_BF16;
        sums sum = sums_of(m, &combinations[i / 2], grad, device);
        /* On CUDA every tensor has its own. */
        uint64_t bytes = device == MOFO_DEVICE_CPU ? cpu_scratch(&sum) : sum.all_scratch;
        if (bytes > most) most = bytes;
    }
    return most;
}

static void scratch_row(int32_t device, const char *where) {
    printf("| %s |", where);
    for (int i = 0; i < MODELS; i++) printf(" %.2f |", (double)scratch(&models[i], device) / (1 << 30));
    printf("\n");
}

int main(void) {
    printf("State, in GiB: moments and master copies.\n\n");
    head("parameter | moments | master | bytes an entry", 4);
    static const char *const state_bytes[COMBINATIONS] = {"8", "4", "12", "8", "8", "4"};
    for (int i = 0; i < COMBINATIONS; i++) row(&combinations[i], MOFO_DTYPE_F32, state_bytes[i], state);

    printf("\nEverything, in GiB: parameters, gradients, state and the work space of a step on the CPU.\n\n");
    head("parameter | moments | master | gradient", 4);
    for (int i = 0; i < COMBINATIONS; i++) {
        row(&combinations[i], MOFO_DTYPE_F32, "f32", total);
        row(&combinations[i], MOFO_DTYPE_BF16, "16 bits", total);
    }

    printf("\nWork space of a step, in GiB, at most, with any of these types.\n\n");
    head("device", 1);
    scratch_row(MOFO_DEVICE_CPU, "CPU");
    scratch_row(MOFO_DEVICE_CUDA, "CUDA");
    return 0;
}
