/* Buffers on a CUDA device for test programs, and optimizers on the CPU and on the device side by side: what they do
 * must be the same, bit for bit. */

#ifndef CUDA_BUFFERS_H
#define CUDA_BUFFERS_H

#include "buffers.h"
#include "cuda_device.h"

/* Device memory holds these numbers; every NaN is the same. */
#define CHECK_NUMBERS(device, expected, dtype, numel)                                                        \
    check_numbers((device), (expected), (dtype), (numel), #device, __FILE__, __LINE__)
static inline void *host_copy(const void *device, size_t bytes) {
    void *copy = buffer_new(bytes);
    device_read(copy, device, bytes);
    return copy;
}

static inline void *numbers_copy(const void *from, int32_t dtype, uint64_t numel) {
    void *copy = buffer_copy(from, (size_t)numel * reference_size(dtype));
    uint64_t i;
    for (i = 0; i < numel; i++) {
        if (isnan(reference_load(dtype, copy, i))) {
            reference_store(dtype, copy, i, reference_float(0x7FC00000u), 0, 0);
        }
    }
    return copy;
}

static inline int check_numbers(const void *device, const void *expected, int32_t dtype, uint64_t numel,
                                const char *what, const char *file, int line) {
    const size_t bytes = (size_t)numel * reference_size(dtype);
    void *copy = host_copy(device, bytes);
    void *got_numbers = numbers_copy(copy, dtype, numel);
    void *expected_numbers = numbers_copy(expected, dtype, numel);
    int same = check_bytes(got_numbers, expected_numbers, bytes, what, file, line);
    free(copy);
    free(got_numbers);
    free(expected_numbers);
    return same;
}

/* A tensor on the CPU, and the same on the device. */
struct twin {
    mofo_tensor host;
    mofo_tensor device;
    uint64_t index;
};

enum { TWINS = 1200 };

/* Two optimizers with the same options but for the device. */
struct twins {
    mofo_options options;
    mofo_optimizer *host;
    mofo_optimizer *device;
    mofo_step_report *report; /* on the device */
    struct twin tensors[TWINS];
    uint64_t count;
};

static inline struct twins *twins_new(const mofo_options *options) {
    struct twins *twins = buffer_new(sizeof *twins);
    mofo_options on_device = *options;
    twins->options = *options;
    twins->options.num_threads = 1;
    REQUIRE_OK(mofo_create(&twins->options, &twins->host));
    on_device.device = MOFO_DEVICE_CUDA;
    REQUIRE_OK(mofo_create(&on_device, &twins->device));
    twins->report = device_new(sizeof *twins->report);
    return twins;
}

static inline size_t param_bytes(const mofo_tensor *tensor) {
    return (size_t)tensor->numel * reference_size(tensor->param_dtype);
}

static inline size_t grad_bytes(const mofo_tensor *tensor) {
    return (size_t)tensor->numel * reference_size(tensor->grad_dtype);
}

static inline size_t moment_bytes(const mofo_options *options, const mofo_tensor *tensor) {
    return (size_t)tensor->numel * reference_size(options->state_dtype);
}

/* Fills the gradient on both sides. */
static inline void twin_gradient(struct twin *twin, uint64_t seed) {
    void *grad = (void *)(uintptr_t)twin->host.grad;
    if (grad != NULL) {
        buffer_fill(grad, twin->host.grad_dtype, twin->host.numel, seed, 0.02);
        device_write(twin->device.grad, grad, grad_bytes(&twin->host));
    }
}

static inline void twins_gradients(struct twins *twins, uint64_t seed) {
    uint64_t n;
    for (n = 0; n < twins->count; n++) {
        twin_gradient(&twins->tensors[n], seed * 0x1000 + n);
    }
}

/* Adds a tensor like `like`, with a parameter and a gradient of its own, to both. Where `like` brings moments or a
 * master copy, on the host, the twins have copies of them. */
static inline struct twin *twins_add(struct twins *twins, const mofo_tensor *like) {
    const size_t moment = moment_bytes(&twins->options, like);
    struct twin *twin = &twins->tensors[twins->count];
    uint64_t on_device;
    REQUIRE(twins->count < TWINS);
    twin->host = *like;
    twin->host.param = buffer_filled(like->param_dtype, like->numel, 77 + twins->count, 1.0);
    twin->host.grad = buffer_filled(like->grad_dtype, like->numel, 1077 + twins->count, 0.02);
    twin->device = twin->host;
    twin->device.param = device_copy(twin->host.param, param_bytes(like));
    twin->device.grad = device_copy(twin->host.grad, grad_bytes(like));
    if (like->exp_avg != NULL) {
        twin->host.exp_avg = buffer_copy(like->exp_avg, moment);
        twin->device.exp_avg = device_copy(like->exp_avg, moment);
    }
    if (like->exp_avg_sq != NULL) {
        twin->host.exp_avg_sq = buffer_copy(like->exp_avg_sq, moment);
        twin->device.exp_avg_sq = device_copy(like->exp_avg_sq, moment);
    }
    if (like->master != NULL) {
        twin->host.master = buffer_copy(like->master, (size_t)like->numel * sizeof(float));
        twin->device.master = device_copy(like->master, (size_t)like->numel * sizeof(float));
    }
    REQUIRE_OK(mofo_add_tensor(twins->host, &twin->host, &twin->index));
    REQUIRE_OK(mofo_add_tensor(twins->device, &twin->device, &on_device));
    REQUIRE(on_device == twin->index);
    twins->count++;
    return twin;
}

static inline struct twin *twins_add_plain(struct twins *twins, const char *name, uint64_t numel,
                                           uint64_t num_blocks, int32_t param_dtype, int32_t grad_dtype) {
    mofo_tensor like = named_tensor(name, numel);
    like.num_blocks = num_blocks;
    like.param_dtype = param_dtype;
    like.grad_dtype = grad_dtype;
    return twins_add(twins, &like);
}

/* Tensors of several sizes, types and settings: one block, several, one of which everything moves, a single entry. */
static inline void twins_add_mixed(struct twins *twins) {
    mofo_tensor like = named_tensor("mixed.matrix", 1500);
    twins_add(twins, &like);
    like = named_tensor("mixed.heads", 9 * 111);
    like.num_blocks = 9;
    like.param_dtype = MOFO_DTYPE_BF16;
    like.grad_dtype = MOFO_DTYPE_BF16;
    like.weight_decay = 0.25;
    twins_add(twins, &like);
    like = named_tensor("mixed.bias", 37);
    like.update_fraction = 1.0;
    like.param_dtype = MOFO_DTYPE_F16;
    like.learning_rate_scale = 0.5;
    twins_add(twins, &like);
    like = named_tensor("mixed.one", 1);
    twins_add(twins, &like);
}

static inline void twin_free(struct twin *twin) {
    free(twin->host.param);
    free((void *)(uintptr_t)twin->host.grad);
    free(twin->host.exp_avg);
    free(twin->host.exp_avg_sq);
    free(twin->host.master);
    device_free(twin->device.param);
    device_free(twin->device.grad);
    device_free(twin->device.exp_avg);
    device_free(twin->device.exp_avg_sq);
    device_free(twin->device.master);
}

static inline void twins_free(struct twins *twins) {
    uint64_t n;
    mofo_destroy(twins->host);
    mofo_destroy(twins->device);
    for (n = 0; n < twins->count; n++) {
        twin_free(&twins->tensors[n]);
    }
    device_free(twins->report);
    free(twins);
}

/* What the optimizers keep for a tensor, and the tensor itself, are the same. */
static inline void twin_same(const struct twins *twins, const struct twin *twin) {
    const mofo_tensor_info host = state_of(twins->host, twin->index);
    const mofo_tensor_info device = state_of(twins->device, twin->index);
    const int32_t state = twins->options.state_dtype;
    CHECK_NUMBERS(device.exp_avg, host.exp_avg, state, host.numel);
    CHECK_NUMBERS(device.exp_avg_sq, host.exp_avg_sq, state, host.numel);
    CHECK((device.master != NULL) == (host.master != NULL));
    if (host.master != NULL) {
        CHECK_NUMBERS(device.master, host.master, MOFO_DTYPE_F32, host.numel);
    }
    CHECK_DEVICE(device.thresholds, host.thresholds, (size_t)host.num_blocks * sizeof(float));
    CHECK_NUMBERS(twin->device.param, twin->host.param, host.param_dtype, host.numel);
    CHECK_DEVICE(twin->device.grad, twin->host.grad, grad_bytes(&twin->host));
    CHECK_U64(device.step_count, host.step_count);
    CHECK_U64(device.numel, host.numel);
    CHECK_U64(device.num_blocks, host.num_blocks);
    CHECK_TEXT(device.name, host.name);
    CHECK_U64((uint64_t)device.param_dtype, (uint64_t)host.param_dtype);
    CHECK_U64((uint64_t)device.grad_dtype, (uint64_t)host.grad_dtype);
    CHECK_U64((uint64_t)device.state_dtype, (uint64_t)host.state_dtype);
    CHECK_U64((uint64_t)device.reserved, 0);
}

/* Those that were removed have become zero, and are not looked at. */
static inline void twins_same(const struct twins *twins) {
    uint64_t n;
    char before[sizeof check_case];
    memcpy(before, check_case, sizeof before);
    for (n = 0; n < twins->count; n++) {
        if (twins->tensors[n].host.numel > 0) {
            CASE("%.150s, tensor %s", before, twins->tensors[n].host.name);
            twin_same(twins, &twins->tensors[n]);
        }
    }
    memcpy(check_case, before, sizeof before);
}

/* Two reports say the same, but for what depends on how a step is cut. */
static inline void check_same_report(const mofo_step_report *got, const mofo_step_report *expected) {
    if (isnan(expected->grad_norm)) {
        CHECK(isnan(got->grad_norm));
    } else {
        CHECK_F64(got->grad_norm, expected->grad_norm);
    }
    CHECK_U64(got->entries, expected->entries);
    CHECK_U64(got->tensors, expected->tensors);
    CHECK_U64(got->entries_selected, expected->entries_selected);
    CHECK_U64(got->entries_nonfinite, expected->entries_nonfinite);
    CHECK_U64((uint64_t)got->skipped, (uint64_t)expected->skipped);
    CHECK_U64((uint64_t)got->status, (uint64_t)expected->status);
}

/* Takes a step on both sides; the reports are the same. What the device reported. `args` may be NULL. */
static inline mofo_step_report twins_step(struct twins *twins, const mofo_step_args *args) {
    mofo_step_args on_host = args != NULL ? *args : default_args();
    mofo_step_args on_device = on_host;
    mofo_step_report expected;
    mofo_step_report got;
    int32_t status;
    on_host.report = &expected;
    on_host.report_size = sizeof expected;
    on_host.stream = NULL;
    on_device.report = twins->report;
    on_device.report_size = sizeof *twins->report;
    status = mofo_step(twins->host, &on_host);
    REQUIRE(status == MOFO_OK || status == MOFO_SKIPPED);
    REQUIRE_OK(mofo_step(twins->device, &on_device));
    device_read(&got, twins->report, sizeof got);
    check_same_report(&got, &expected);
    return got;
}

/* The step of the device alone; what it reported. */
static inline mofo_step_report device_step(struct twins *twins, const mofo_step_args *args) {
    mofo_step_args on_device = args != NULL ? *args : default_args();
    mofo_step_report got;
    on_device.report = twins->report;
    on_device.report_size = sizeof *twins->report;
    REQUIRE_OK(mofo_step(twins->device, &on_device));
    device_read(&got, twins->report, sizeof got);
    return got;
}

#endif
