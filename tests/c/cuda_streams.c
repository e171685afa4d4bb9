/* Streams, threads and contexts of steps on CUDA, and what a step must not do. */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>

#include "cuda_buffers.h"

/* From here on an allocation, a copy or a wait in this thread ends the program, where that can be told. */
static void forbid(void) {
    if (cuda_is_emulated()) {
        CHECK_U64((uint64_t)mofo_emulated_forbid(1), 0);
    }
}

static void permit(void) {
    if (cuda_is_emulated()) {
        CHECK_U64((uint64_t)mofo_emulated_forbid(0), 1);
    }
}

static void cpu_steps(struct twins *twins, int count) {
    int t;
    for (t = 0; t < count; t++) {
        REQUIRE_OK(mofo_step(twins->host, NULL));
    }
}

static void nothing_forbidden(void) {
    mofo_options options = default_options();
    struct twins *twins;
    struct twin *twin;
    mofo_step_args args = default_args();
    uint64_t list[2];
    void *other;
    double *rate;
    const double value = 0.001;
    options.max_grad_norm = 0.5;
    options.skip_nonfinite = 1;
    twins = twins_new(&options);
    rate = device_copy(&value, sizeof value);
    args.report = twins->report;
    args.report_size = sizeof *twins->report;
    args.device_learning_rate = rate;
    twins_add_mixed(twins);
    twins_add_plain(twins, "large", 262500, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
    twin = &twins->tensors[0];
    CASE("the first step after tensors were added");
    forbid();
    REQUIRE_OK(mofo_step(twins->device, &args));
    CASE("a step right after it");
    REQUIRE_OK(mofo_step(twins->device, &args));
    CASE("a step of some tensors");
    list[0] = twins->tensors[3].index;
    list[1] = twin->index;
    args.tensors = list;
    args.num_tensors = 2;
    REQUIRE_OK(mofo_step(twins->device, &args));
    args.tensors = NULL;
    args.num_tensors = 0;
    permit();
    CASE("the first step after one was bound");
    other = device_copy(twin->host.param, param_bytes(&twin->host));
    forbid();
    REQUIRE_OK(mofo_bind_tensor(twins->device, twin->index, other, twin->device.grad));
    REQUIRE_OK(mofo_step(twins->device, &args));
    permit();
    CASE("the first step after one was added, and one removed");
    twins_add_plain(twins, "late", 100, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_BF16);
    REQUIRE_OK(mofo_remove_tensor(twins->device, twins->tensors[1].index));
    forbid();
    REQUIRE_OK(mofo_step(twins->device, &args));
    permit();
    CASE("all of these steps were taken");
    CHECK_U64(state_of(twins->device, twin->index).step_count, 5);
    CHECK_U64(state_of(twins->device, twins->tensors[4].index).step_count, 4);
    CASE("%s", "");
    device_free(other);
    device_free(rate);
    twins_free(twins);
}

static void kinds_of_streams(void) {
    mofo_options options = default_options();
    struct twins *twins;
    CUstream blocking, non_blocking;
    int n;
    options.max_grad_norm = 0.5;
    twins = twins_new(&options);
    twins_add_mixed(twins);
    REQUIRE_CUDA(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    REQUIRE_CUDA(cuStreamCreate(&non_blocking, CU_STREAM_NON_BLOCKING));
    for (n = 0; n < 5; n++) {
        static const char *const names[] = {"NULL", "blocking", "non-blocking", "legacy", "per-thread"};
        mofo_step_args args = default_args();
        double host, device;
        args.stream = n == 0   ? NULL
                      : n == 1 ? (void *)blocking
                      : n == 2 ? (void *)non_blocking
                      : n == 3 ? (void *)CU_STREAM_LEGACY
                               : (void *)CU_STREAM_PER_THREAD;
        CASE("the %s stream", names[n]);
        twins_gradients(twins, (uint64_t)n);
        twins_step(twins, &args);
        twins_same(twins);
        REQUIRE_OK(mofo_grad_norm(twins->device, &args, &device));
        REQUIRE_OK(mofo_grad_norm(twins->host, NULL, &host));
        CHECK_F64(device, host);
    }
    CASE("what is ordered by a stream needs no other wait");
    {
        struct twin *twin = &twins->tensors[0];
        const size_t bytes = param_bytes(&twin->host);
        const size_t size = grad_bytes(&twin->host);
        mofo_step_args args = default_args();
        void *staged, *copied;
        buffer_fill((void *)(uintptr_t)twin->host.grad, MOFO_DTYPE_F32, twin->host.numel, 99, 0.05);
        staged = device_copy(twin->host.grad, size);
        copied = device_new(bytes);
        args.stream = non_blocking;
        REQUIRE_CUDA(cuMemcpyDtoDAsync(device_address(twin->device.grad), device_address(staged), size, non_blocking));
        REQUIRE_OK(mofo_step(twins->device, &args));
        REQUIRE_CUDA(
            cuMemcpyDtoDAsync(device_address(copied), device_address(twin->device.param), bytes, non_blocking));
        REQUIRE_CUDA(cuStreamSynchronize(non_blocking));
        cpu_steps(twins, 1);
        CHECK_DEVICE(copied, twin->host.param, bytes);
        twins_same(twins);
        device_free(staged);
        device_free(copied);
    }
    REQUIRE_CUDA(cuStreamDestroy(blocking));
    CASE("a stream that is gone after its last step");
    {
        mofo_step_args args = default_args();
        args.stream = non_blocking;
        REQUIRE_OK(mofo_step(twins->device, &args));
        REQUIRE_CUDA(cuStreamDestroy(non_blocking));
        REQUIRE_OK(mofo_step(twins->device, NULL));
        cpu_steps(twins, 2);
        twins_same(twins);
    }
    twins_free(twins);
}

/* Steps of one optimizer alternate over streams, and nobody waits: they are taken in the order of the calls. */
static void alternating(void) {
    mofo_options options = default_options();
    struct twins *twins;
    CUstream streams[2];
    mofo_step_args args = default_args();
    int t;
    options.max_grad_norm = 0.5;
    options.learning_rate = 0.05;
    twins = twins_new(&options);
    twins_add_mixed(twins);
    twins_add_plain(twins, "large", 349700, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_BF16);
    CASE("steps alternate over two streams");
    REQUIRE_CUDA(cuStreamCreate(&streams[0], CU_STREAM_NON_BLOCKING));
    REQUIRE_CUDA(cuStreamCreate(&streams[1], CU_STREAM_NON_BLOCKING));
    for (t = 0; t < 6; t++) {
        args.stream = streams[t % 2];
        args.learning_rate = 0.05 / (t + 1);
        REQUIRE_OK(mofo_step(twins->device, &args));
        args.stream = NULL;
        REQUIRE_OK(mofo_step(twins->host, &args));
    }
    /* Only the last one is waited for. */
    REQUIRE_CUDA(cuStreamSynchronize(streams[1]));
    twins_same(twins);
    CASE("the state is asked for while steps are on their way");
    for (t = 0; t < 2; t++) {
        args.stream = streams[t];
        REQUIRE_OK(mofo_step(twins->device, &args));
    }
    args.stream = NULL;
    REQUIRE_OK(mofo_step(twins->host, &args));
    REQUIRE_OK(mofo_step(twins->host, &args));
    CHECK_U64(state_of(twins->device, twins->tensors[0].index).step_count, 8);
    twins_same(twins);
    CASE("a tensor is removed, and the optimizer destroyed, while steps are on their way");
    args.stream = streams[0];
    REQUIRE_OK(mofo_step(twins->device, &args));
    REQUIRE_OK(mofo_remove_tensor(twins->device, twins->tensors[4].index));
    REQUIRE_OK(mofo_step(twins->device, &args));
    mofo_destroy(twins->device);
    twins->device = NULL;
    REQUIRE_CUDA(cuCtxSynchronize());
    REQUIRE_CUDA(cuStreamDestroy(streams[0]));
    REQUIRE_CUDA(cuStreamDestroy(streams[1]));
    twins_free(twins);
}

enum { WORKERS = 2, WORKER_STEPS = 4, WORKER_NUMEL = 2000 };

struct worker {
    pthread_t thread;
    int number;
    mofo_optimizer *optimizer;
    CUstream stream;
    int failures;
};

/* Makes no checks, since it runs on other threads. No context is current in it. */
static void *work(void *argument) {
    struct worker *worker = argument;
    mofo_step_args args;
    CUcontext current = NULL;
    int t;
    worker->failures += mofo_step_args_init(&args, sizeof args) != MOFO_OK;
    args.stream = worker->stream;
    for (t = 0; t < WORKER_STEPS; t++) {
        mofo_tensor_info info;
        double norm;
        args.learning_rate = 0.01 * (1 + worker->number + t);
        worker->failures += mofo_step(worker->optimizer, &args) != MOFO_OK;
        worker->failures += mofo_grad_norm(worker->optimizer, &args, &norm) != MOFO_OK;
        worker->failures += mofo_tensor_state(worker->optimizer, 0, &info, sizeof info) != MOFO_OK;
        worker->failures += info.step_count != (uint64_t)t + 1;
        /* An error of this thread's own. */
        worker->failures +=
            mofo_remove_tensor(worker->optimizer, 17 + (uint64_t)worker->number) != MOFO_ERROR_NOT_FOUND;
        worker->failures += strstr(mofo_last_error(), worker->number ? "18" : "17") == NULL;
    }
    worker->failures += cuCtxGetCurrent(&current) != CUDA_SUCCESS || current != NULL;
    return NULL;
}

static void two_threads(void) {
    struct worker workers[WORKERS];
    struct twins *twins[WORKERS];
    int n, t;
    for (n = 0; n < WORKERS; n++) {
        mofo_options options = default_options();
        options.max_grad_norm = n ? 0.01 : 0.0;
        options.state_dtype = n ? MOFO_DTYPE_BF16 : MOFO_DTYPE_F32;
        twins[n] = twins_new(&options);
        twins_add_plain(twins[n], "worker", WORKER_NUMEL, 1 + (uint64_t)n, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
        REQUIRE_CUDA(cuStreamCreate(&workers[n].stream, CU_STREAM_NON_BLOCKING));
        workers[n].optimizer = twins[n]->device;
        workers[n].number = n;
        workers[n].failures = 0;
    }
    CASE("two optimizers in two threads");
    for (n = 0; n < WORKERS; n++) {
        REQUIRE(pthread_create(&workers[n].thread, NULL, work, &workers[n]) == 0);
    }
    for (n = 0; n < WORKERS; n++) {
        REQUIRE(pthread_join(workers[n].thread, NULL) == 0);
        CHECK_U64((uint64_t)workers[n].failures, 0);
    }
    for (n = 0; n < WORKERS; n++) {
        for (t = 0; t < WORKER_STEPS; t++) {
            mofo_step_args args = default_args();
            args.learning_rate = 0.01 * (1 + n + t);
            REQUIRE_OK(mofo_step(twins[n]->host, &args));
        }
        twins_same(twins[n]);
        REQUIRE_CUDA(cuStreamDestroy(workers[n].stream));
        twins_free(twins[n]);
    }
}

/* Every call leaves the thread's current context, `expected`, as it was, whether it succeeds or not. */
static void every_call(CUcontext expected) {
    mofo_options options = default_options();
    mofo_optimizer *optimizer = NULL;
    mofo_tensor tensor;
    mofo_tensor_info info;
    mofo_memory_info memory;
    mofo_state_sizes sizes;
    mofo_step_args args = default_args();
    CUdeviceptr buffer;
    CUcontext current;
    CUcontext popped;
    uint64_t index = 0;
    double norm;
    float on_host[8] = {0};
#define KEEPS_CONTEXT(call, status)                                                                          \
    do {                                                                                                     \
        CHECK_STATUS(call, status);                                                                          \
        current = NULL;                                                                                      \
        REQUIRE_CUDA(cuCtxGetCurrent(&current));                                                             \
        CHECK(current == expected);                                                                          \
    } while (0)
    REQUIRE_CUDA(cuCtxPushCurrent(cuda_context));
    REQUIRE_CUDA(cuMemAlloc(&buffer, 64));
    REQUIRE_CUDA(cuMemsetD8(buffer, 0, 64));
    REQUIRE_CUDA(cuCtxSynchronize());
    REQUIRE_CUDA(cuCtxPopCurrent(&popped));
    tensor = named_tensor("context", 8);
    tensor.param = (void *)(uintptr_t)buffer;
    tensor.grad = (void *)(uintptr_t)(buffer + 32);
    options.device = MOFO_DEVICE_CUDA;
    options.device_index = 1000;
    KEEPS_CONTEXT(mofo_create(&options, &optimizer), MOFO_ERROR_INVALID_ARGUMENT);
    options.device_index = 0;
    KEEPS_CONTEXT(mofo_cuda_available() - 1, MOFO_OK);
    KEEPS_CONTEXT(mofo_create(&options, &optimizer), MOFO_OK);
    REQUIRE(optimizer != NULL);
    KEEPS_CONTEXT(mofo_add_tensor(optimizer, &tensor, &index), MOFO_OK);
    KEEPS_CONTEXT(mofo_add_tensor(optimizer, &tensor, &index), MOFO_ERROR_INVALID_ARGUMENT);
    tensor.name = "context.host";
    tensor.param = on_host;
    KEEPS_CONTEXT(mofo_add_tensor(optimizer, &tensor, &index), MOFO_ERROR_INVALID_BUFFER);
    KEEPS_CONTEXT(mofo_state_size(&options, &tensor, &sizes, sizeof sizes), MOFO_OK);
    KEEPS_CONTEXT(mofo_step(optimizer, NULL), MOFO_OK);
    args.device_learning_rate = (const double *)(const void *)on_host;
    KEEPS_CONTEXT(mofo_step(optimizer, &args), MOFO_ERROR_INVALID_BUFFER);
    KEEPS_CONTEXT(mofo_grad_norm(optimizer, NULL, &norm), MOFO_OK);
    KEEPS_CONTEXT(mofo_tensor_state(optimizer, 0, &info, sizeof info), MOFO_OK);
    KEEPS_CONTEXT(mofo_set_step_count(optimizer, 0, 5), MOFO_OK);
    KEEPS_CONTEXT(mofo_memory(optimizer, &memory, sizeof memory), MOFO_OK);
    KEEPS_CONTEXT(mofo_find_tensor(optimizer, "context", &index), MOFO_OK);
    KEEPS_CONTEXT(mofo_bind_tensor(optimizer, 0, (void *)(uintptr_t)(buffer + 32), (void *)(uintptr_t)buffer), MOFO_OK);
    KEEPS_CONTEXT(mofo_bind_tensor(optimizer, 0, on_host, NULL), MOFO_ERROR_INVALID_BUFFER);
    KEEPS_CONTEXT(mofo_step(optimizer, NULL), MOFO_OK);
    KEEPS_CONTEXT(mofo_remove_tensor(optimizer, 0), MOFO_OK);
    KEEPS_CONTEXT((mofo_destroy(optimizer), MOFO_OK), MOFO_OK);
    REQUIRE_CUDA(cuCtxPushCurrent(cuda_context));
    REQUIRE_CUDA(cuCtxSynchronize());
    REQUIRE_CUDA(cuMemFree(buffer));
    REQUIRE_CUDA(cuCtxPopCurrent(&popped));
}

static void contexts(void) {
    CUcontext other;
    CUcontext popped;
    int devices = 0;
    CASE("the primary context is current");
    every_call(cuda_context);
    CASE("no context is current");
    REQUIRE_CUDA(cuCtxSetCurrent(NULL));
    every_call(NULL);
    CASE("another context of the same device is current");
    REQUIRE_CUDA(cuCtxCreate(&other, 0, 0));
    every_call(other);
    REQUIRE_CUDA(cuCtxDestroy(other));
    CASE("a context of another device is current");
    REQUIRE_CUDA(cuDeviceGetCount(&devices));
    CHECK(devices > 1 || !cuda_is_emulated());
    if (devices > 1) {
        REQUIRE_CUDA(cuDevicePrimaryCtxRetain(&other, 1));
        REQUIRE_CUDA(cuCtxPushCurrent(other));
        every_call(other);
        REQUIRE_CUDA(cuCtxPopCurrent(&popped));
        REQUIRE_CUDA(cuDevicePrimaryCtxRelease(1));
    } else {
        SKIP("a context of another device: there is one device");
    }
    REQUIRE_CUDA(cuCtxSetCurrent(cuda_context));
}

/* Two devices, an optimizer on each, their steps interleaved from one thread. */
static void two_devices(void) {
    mofo_options options = default_options();
    struct twins *twins;
    mofo_optimizer *second;
    mofo_tensor tensor;
    CUcontext context;
    CUcontext popped;
    int devices = 0;
    uint64_t index;
    void *param, *grad;
    const size_t bytes = 600 * sizeof(float);
    int t;
    CASE("two devices");
    REQUIRE_CUDA(cuDeviceGetCount(&devices));
    if (devices < 2) {
        CHECK(!cuda_is_emulated());
        SKIP("two devices: there is one");
        return;
    }
    twins = twins_new(&options);
    twins_add_plain(twins, "replica", 600, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
    options.device = MOFO_DEVICE_CUDA;
    options.device_index = 1;
    REQUIRE_OK(mofo_create(&options, &second));
    REQUIRE_CUDA(cuDevicePrimaryCtxRetain(&context, 1));
    REQUIRE_CUDA(cuCtxPushCurrent(context));
    tensor = named_tensor("replica", 600);
    tensor.param = param = device_copy(twins->tensors[0].host.param, bytes);
    tensor.grad = grad = device_copy(twins->tensors[0].host.grad, bytes);
    REQUIRE_CUDA(cuCtxPopCurrent(&popped));
    REQUIRE_OK(mofo_add_tensor(second, &tensor, &index));
    for (t = 0; t < 3; t++) {
        REQUIRE_OK(mofo_step(twins->device, NULL));
        REQUIRE_OK(mofo_step(second, NULL));
    }
    cpu_steps(twins, 3);
    twins_same(twins);
    REQUIRE_CUDA(cuCtxPushCurrent(context));
    CHECK_DEVICE(param, twins->tensors[0].host.param, bytes);
    CHECK_DEVICE(state_of(second, index).exp_avg_sq, state_of(twins->host, 0).exp_avg_sq, bytes);
    mofo_destroy(second);
    device_free(param);
    device_free(grad);
    REQUIRE_CUDA(cuCtxPopCurrent(&popped));
    REQUIRE_CUDA(cuDevicePrimaryCtxRelease(1));
    twins_free(twins);
}

int main(void) {
    cuda_begin();
    nothing_forbidden();
    kinds_of_streams();
    alternating();
    two_threads();
    contexts();
    two_devices();
    return cuda_finish();
}
