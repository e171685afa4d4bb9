/* Buffers for test programs: numbers like a model's, made up from a seed, and copies to compare with. */

#ifndef BUFFERS_H
#define BUFFERS_H

#include "check.h"
#include "reference.h"

static inline void *buffer_new(size_t bytes) {
    void *buffer = malloc(bytes ? bytes : 1);
    if (buffer == NULL) {
        printf("the test itself has no memory\n");
        exit(1);
    }
    memset(buffer, 0, bytes);
    return buffer;
}

static inline void *buffer_copy(const void *from, size_t bytes) {
    void *buffer = buffer_new(bytes);
    memcpy(buffer, from, bytes);
    return buffer;
}

/* Numbers of both signs around `scale`, some far smaller, a few zeros. */
static inline void buffer_fill(void *buffer, int32_t dtype, uint64_t numel, uint64_t seed, double scale) {
    uint64_t i;
    for (i = 0; i < numel; i++) {
        uint64_t bits = reference_mix64(seed * 0x10001u + i);
        double x = ((double)(bits >> 11) / 9007199254740992.0 * 2.0 - 1.0) * scale;
        if (bits % 16 == 0) {
            x /= 1024.0;
        }
        if (bits % 97 == 0) {
            x = 0.0;
        }
        reference_store(dtype, buffer, i, (float)x, 0, 0);
    }
}

static inline void *buffer_filled(int32_t dtype, uint64_t numel, uint64_t seed, double scale) {
    void *buffer = buffer_new((size_t)numel * reference_size(dtype));
    buffer_fill(buffer, dtype, numel, seed, scale);
    return buffer;
}

static inline mofo_options default_options(void) {
    mofo_options options;
    REQUIRE_OK(mofo_options_init(&options, sizeof options));
    return options;
}

static inline mofo_step_args default_args(void) {
    mofo_step_args args;
    REQUIRE_OK(mofo_step_args_init(&args, sizeof args));
    return args;
}

static inline mofo_tensor named_tensor(const char *name, uint64_t numel) {
    mofo_tensor tensor;
    REQUIRE_OK(mofo_tensor_init(&tensor, sizeof tensor));
    tensor.name = name;
    tensor.numel = numel;
    return tensor;
}

static inline mofo_tensor_info state_of(mofo_optimizer *optimizer, uint64_t index) {
    mofo_tensor_info info;
    REQUIRE_OK(mofo_tensor_state(optimizer, index, &info, sizeof info));
    return info;
}

/* A tensor whose every buffer is the test's, for the reference, or as caller-owned state. */
static inline mofo_tensor owned_tensor(const mofo_options *options, const char *name, uint64_t numel,
                                       int32_t param_dtype, int32_t grad_dtype, uint64_t seed) {
    mofo_tensor tensor = named_tensor(name, numel);
    size_t state = (size_t)numel * reference_size(options->state_dtype);
    tensor.param_dtype = param_dtype;
    tensor.grad_dtype = grad_dtype;
    tensor.param = buffer_filled(param_dtype, numel, seed, 1.0);
    tensor.grad = buffer_filled(grad_dtype, numel, seed + 1000, 0.01);
    tensor.exp_avg = buffer_new(state);
    tensor.exp_avg_sq = buffer_new(state);
    if (options->master_weights && param_dtype != MOFO_DTYPE_F32) {
        tensor.master = buffer_new((size_t)numel * sizeof(float));
    }
    return tensor;
}

static inline void owned_tensor_free(mofo_tensor *tensor) {
    free(tensor->param);
    free((void *)(uintptr_t)tensor->grad);
    free(tensor->exp_avg);
    free(tensor->exp_avg_sq);
    free(tensor->master);
}

/* The same with copies of all buffers but the name. */
static inline mofo_tensor owned_tensor_copy(const mofo_options *options, const mofo_tensor *from) {
    mofo_tensor tensor = *from;
    size_t numel = (size_t)from->numel;
    size_t state = numel * reference_size(options->state_dtype);
    tensor.param = buffer_copy(from->param, numel * reference_size(from->param_dtype));
    tensor.grad = buffer_copy(from->grad, numel * reference_size(from->grad_dtype));
    tensor.exp_avg = buffer_copy(from->exp_avg, state);
    tensor.exp_avg_sq = buffer_copy(from->exp_avg_sq, state);
    tensor.master = from->master != NULL ? buffer_copy(from->master, numel * sizeof(float)) : NULL;
    return tensor;
}

/* Parameter, moments, master and step count of two tensors are the same, bit for bit. */
static inline void check_same_tensor(const mofo_options *options, const mofo_tensor *got,
                                     const mofo_tensor *expected) {
    size_t numel = (size_t)expected->numel;
    size_t state = numel * reference_size(options->state_dtype);
    CHECK_BYTES(got->exp_avg, expected->exp_avg, state);
    CHECK_BYTES(got->exp_avg_sq, expected->exp_avg_sq, state);
    if (expected->master != NULL) {
        CHECK_BYTES(got->master, expected->master, numel * sizeof(float));
    }
    CHECK_BYTES(got->param, expected->param, numel * reference_size(expected->param_dtype));
    CHECK_U64(got->step_count, expected->step_count);
}

#endif
