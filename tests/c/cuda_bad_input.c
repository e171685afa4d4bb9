/* What an optimizer on CUDA refuses: a status of the right kind, a message that says what was wrong, in CUDA's own
 * words where it was CUDA that said so, and nothing changed. After each refusal the optimizer steps on like one on the
 * CPU that has seen none of it. */

#define _POSIX_C_SOURCE 200809L

#include <sys/wait.h>
#include <unistd.h>

#include "cuda_buffers.h"

enum { NUMEL = 200 };

struct says {
    const char *parts[4];
};

#define SAYS(...) ((struct says){{__VA_ARGS__}})

static mofo_options cuda_options(void) {
    mofo_options options = default_options();
    options.device = MOFO_DEVICE_CUDA;
    return options;
}

static struct twins *scene;
static double *rate;

static void check_message(struct says says) {
    int n;
    for (n = 0; n < 4 && says.parts[n] != NULL; n++) {
        CHECK_TEXT(mofo_last_error(), says.parts[n]);
    }
}

/* Nothing has changed, and the optimizer is as good as before. */
static void check_unharmed(void) {
    twins_same(scene);
    twins_gradients(scene, state_of(scene->host, 0).step_count);
    twins_step(scene, NULL);
    twins_same(scene);
}

static void check_refused(int32_t status, int32_t expected, struct says says) {
    CHECK_STATUS(status, expected);
    check_message(says);
    check_unharmed();
}

static void refused_step(const mofo_step_args *args, int32_t expected, struct says says) {
    check_refused(mofo_step(scene->device, args), expected, says);
}

static mofo_tensor new_tensor(void) { return named_tensor("scene.new", NUMEL); }

/* The tensor is not added, and nothing stays allocated. */
static void refused_tensor(const mofo_tensor *tensor, int32_t expected, struct says says) {
    const unsigned long long before = cuda_is_emulated() ? mofo_emulated_allocations() : 0;
    uint64_t index = 0xDEAD;
    uint64_t found;
    CHECK_STATUS(mofo_add_tensor(scene->device, tensor, &index), expected);
    CHECK_TEXT(mofo_last_error(), tensor->name);
    check_message(says);
    CHECK_U64(index, 0xDEAD);
    CHECK_STATUS(mofo_find_tensor(scene->device, tensor->name, &found), MOFO_ERROR_NOT_FOUND);
    if (cuda_is_emulated()) {
        CHECK_U64(mofo_emulated_allocations(), before);
    }
    check_unharmed();
}

static void host_pointers(void) {
    static const char *const names[] = {"param", "grad", "exp_avg", "exp_avg_sq", "master"};
    mofo_step_report report;
    mofo_step_report report_before;
    mofo_step_args args;
    void *host = buffer_new(NUMEL * sizeof(float));
    void *page_locked;
    double on_host = 0.5;
    int kind, n;
    REQUIRE_CUDA(cuMemAllocHost(&page_locked, NUMEL * sizeof(float)));
    memset(page_locked, 0, NUMEL * sizeof(float));
    for (kind = 0; kind < 2; kind++) {
        void *pointer = kind ? page_locked : host;
        for (n = 0; n < 5; n++) {
            mofo_tensor tensor = new_tensor();
            const struct says says = kind ? SAYS(names[n], "of the host") : SAYS(names[n], "CUDA knows nothing");
            tensor.param_dtype = MOFO_DTYPE_BF16;
            switch (n) {
            case 0:
                tensor.param = pointer;
                break;
            case 1:
                tensor.grad = pointer;
                break;
            case 2:
                tensor.exp_avg = pointer;
                break;
            case 3:
                tensor.exp_avg_sq = pointer;
                break;
            default:
                tensor.master = pointer;
            }
            CASE("%s in %s memory", names[n], kind ? "page-locked" : "pageable");
            refused_tensor(&tensor, MOFO_ERROR_INVALID_BUFFER, says);
        }
        CASE("%s memory is bound", kind ? "page-locked" : "pageable");
        check_refused(mofo_bind_tensor(scene->device, 0, pointer, scene->tensors[0].device.grad),
                      MOFO_ERROR_INVALID_BUFFER, SAYS(scene->tensors[0].host.name, "param"));
        check_refused(mofo_bind_tensor(scene->device, 0, scene->tensors[0].device.param, pointer),
                      MOFO_ERROR_INVALID_BUFFER, SAYS(scene->tensors[0].host.name, "grad"));
    }
    CASE("a report in pageable memory");
    memset(&report, 0x77, sizeof report);
    report_before = report;
    args = default_args();
    args.report = &report;
    args.report_size = sizeof report;
    refused_step(&args, MOFO_ERROR_INVALID_BUFFER, SAYS("report", "CUDA_ERROR_INVALID_VALUE"));
    CHECK_BYTES(&report, &report_before, sizeof report);
    CASE("a learning rate in pageable memory");
    args = default_args();
    args.device_learning_rate = &on_host;
    refused_step(&args, MOFO_ERROR_INVALID_BUFFER, SAYS("device_learning_rate", "CUDA_ERROR_INVALID_VALUE"));
    CASE("betas, epsilon and weight decay in pageable memory");
#define IN_PAGEABLE_MEMORY(field)                                                                            \
    args = default_args();                                                                                   \
    args.field = &on_host;                                                                                   \
    refused_step(&args, MOFO_ERROR_INVALID_BUFFER, SAYS(#field, "CUDA_ERROR_INVALID_VALUE"))
    IN_PAGEABLE_MEMORY(device_beta1);
    IN_PAGEABLE_MEMORY(device_beta2);
    IN_PAGEABLE_MEMORY(device_epsilon);
    IN_PAGEABLE_MEMORY(device_weight_decay);
    free(host);
    REQUIRE_CUDA(cuMemFreeHost(page_locked));
}

static void other_devices(void) {
    mofo_tensor tensor = new_tensor();
    CUcontext second;
    CUcontext popped;
    mofo_optimizer *optimizer = (mofo_optimizer *)(uintptr_t)0x1230;
    mofo_options options = cuda_options();
    int devices = 0;
    char count[16];
    void *memory;
    REQUIRE_CUDA(cuDeviceGetCount(&devices));
    snprintf(count, sizeof count, "%d", devices);
    CASE("device_index -1");
    options.device_index = -1;
    check_refused(mofo_create(&options, &optimizer), MOFO_ERROR_INVALID_ARGUMENT, SAYS("device_index", "-1"));
    CASE("device_index too large");
    options.device_index = devices;
    check_refused(mofo_create(&options, &optimizer), MOFO_ERROR_INVALID_ARGUMENT, SAYS("device_index", count));
    options.device_index = INT32_MAX;
    check_refused(mofo_create(&options, &optimizer), MOFO_ERROR_INVALID_ARGUMENT, SAYS("device_index", "2147483647"));
    CHECK(optimizer == (mofo_optimizer *)(uintptr_t)0x1230);
    if (devices < 2) {
        CHECK(!cuda_is_emulated());
        SKIP("memory of another device: there is one");
        return;
    }
    CASE("memory of another device");
    REQUIRE_CUDA(cuDevicePrimaryCtxRetain(&second, 1));
    REQUIRE_CUDA(cuCtxPushCurrent(second));
    memory = device_new(NUMEL * sizeof(float));
    REQUIRE_CUDA(cuCtxPopCurrent(&popped));
    tensor.grad = memory;
    refused_tensor(&tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("grad", "device 1", "device 0"));
    check_refused(mofo_bind_tensor(scene->device, 0, memory, NULL), MOFO_ERROR_INVALID_BUFFER,
                  SAYS("param", "device 1", "device 0"));
    REQUIRE_CUDA(cuCtxPushCurrent(second));
    device_free(memory);
    REQUIRE_CUDA(cuCtxPopCurrent(&popped));
    REQUIRE_CUDA(cuDevicePrimaryCtxRelease(1));
}

static void bounds(void) {
    const struct twin *twin = &scene->tensors[0];
    mofo_tensor tensor = new_tensor();
    char *memory = device_new(NUMEL * sizeof(float));
    CASE("a buffer that ends beyond its allocation");
    tensor.numel = (uint64_t)1 << 42;
    tensor.param = memory;
    refused_tensor(&tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("param", "CUDA knows nothing"));
    tensor.numel = NUMEL;
    if (cuda_is_emulated()) {
        /* Elsewhere the next byte may be of another allocation. */
        tensor.param = NULL;
        tensor.grad = memory + sizeof(float);
        refused_tensor(&tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("grad", "CUDA knows nothing", "offset 799"));
        check_refused(mofo_bind_tensor(scene->device, twin->index, memory, NULL), MOFO_ERROR_INVALID_BUFFER,
                      SAYS("param", "CUDA knows nothing"));
    }
    tensor = new_tensor();
    CASE("misaligned buffers");
    tensor.param = memory + 2;
    refused_tensor(&tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("param", "4"));
    tensor.param = NULL;
    tensor.grad_dtype = MOFO_DTYPE_F16;
    tensor.grad = memory + 1;
    refused_tensor(&tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("grad", "2"));
    check_refused(mofo_bind_tensor(scene->device, twin->index, memory + 1, NULL), MOFO_ERROR_INVALID_BUFFER,
                  SAYS("param", "4"));
    CASE("a tensor's buffers overlap each other");
    tensor = new_tensor();
    tensor.param = memory;
    tensor.grad = memory + 400;
    refused_tensor(&tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("param", "grad", "overlaps"));
    CASE("a parameter overlaps the library's moments");
    check_refused(mofo_bind_tensor(scene->device, twin->index, state_of(scene->device, twin->index).exp_avg, NULL),
                  MOFO_ERROR_INVALID_BUFFER, SAYS("param", "exp_avg", "overlaps"));
    CASE("tensors overlap each other");
    {
        uint64_t index;
        tensor = named_tensor("scene.overlapping", 4);
        tensor.param = (char *)scene->tensors[1].device.param + 16;
        tensor.grad = memory;
        REQUIRE_OK(mofo_add_tensor(scene->device, &tensor, &index));
        CHECK_STATUS(mofo_step(scene->device, NULL), MOFO_ERROR_INVALID_BUFFER);
        check_message(SAYS("scene.overlapping", scene->tensors[1].host.name, "overlaps"));
        twins_same(scene);
        REQUIRE_OK(mofo_remove_tensor(scene->device, index));
        tensor.param = NULL;
        /* Indices stay the same on both sides. */
        REQUIRE_OK(mofo_add_tensor(scene->host, &tensor, &index));
        REQUIRE_OK(mofo_remove_tensor(scene->host, index));
        check_unharmed();
    }
    device_free(memory);
}

static void streams(void) {
    mofo_step_args args = default_args();
    CUcontext other;
    CUcontext popped;
    CUstream stream;
    double norm = 5.0;
    CASE("a stream of another context");
    REQUIRE_CUDA(cuCtxCreate(&other, 0, 0));
    REQUIRE_CUDA(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    REQUIRE_CUDA(cuCtxPopCurrent(&popped));
    args.stream = stream;
    refused_step(&args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("stream", "another context"));
    check_refused(mofo_grad_norm(scene->device, &args, &norm), MOFO_ERROR_INVALID_ARGUMENT, SAYS("stream"));
    CHECK_F64(norm, 5.0);
    REQUIRE_CUDA(cuCtxPushCurrent(other));
    REQUIRE_CUDA(cuStreamDestroy(stream));
    REQUIRE_CUDA(cuCtxDestroy(other));
    REQUIRE_CUDA(cuCtxSetCurrent(cuda_context));
    if (cuda_is_emulated()) {
        /* Elsewhere that is undefined. */
        CASE("a stream that is gone");
        REQUIRE_CUDA(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        REQUIRE_CUDA(cuStreamDestroy(stream));
        args.stream = stream;
        refused_step(&args, MOFO_ERROR_CUDA, SAYS("CUDA_ERROR_INVALID_HANDLE"));
        check_refused(mofo_grad_norm(scene->device, &args, &norm), MOFO_ERROR_CUDA, SAYS("CUDA_ERROR_INVALID_HANDLE"));
        CHECK_F64(norm, 5.0);
    }
}

static void captures(void) {
    mofo_step_args args = default_args();
    mofo_tensor tensor = new_tensor();
    CUstream stream;
    CUgraph graph;
    CUgraphExec exec;
    double norm = 5.0;
    uint64_t index = 0xDEAD;
    int status = -1;
    REQUIRE_CUDA(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    args.stream = stream;
    CASE("the norm on a stream that is being captured");
    REQUIRE_CUDA(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    CHECK_STATUS(mofo_grad_norm(scene->device, &args, &norm), MOFO_ERROR_INVALID_STATE);
    check_message(SAYS("norm", "captured"));
    CHECK_F64(norm, 5.0);
    REQUIRE_CUDA(cuStreamIsCapturing(stream, &status));
    CHECK_U64((uint64_t)status, CU_STREAM_CAPTURE_STATUS_ACTIVE);
    REQUIRE_OK(mofo_step(scene->device, &args));
    REQUIRE_CUDA(cuStreamEndCapture(stream, &graph));
    REQUIRE_CUDA(cuGraphInstantiateWithFlags(&exec, graph, 0));
    REQUIRE_CUDA(cuGraphLaunch(exec, stream));
    REQUIRE_CUDA(cuStreamSynchronize(stream));
    REQUIRE_OK(mofo_step(scene->host, NULL));
    check_unharmed();
    REQUIRE_CUDA(cuGraphExecDestroy(exec));
    REQUIRE_CUDA(cuGraphDestroy(graph));

    CASE("a capture that is no longer valid");
    REQUIRE_CUDA(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    CHECK_CUDA(cuStreamSynchronize(stream), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    CHECK_STATUS(mofo_step(scene->device, &args), MOFO_ERROR_INVALID_STATE);
    check_message(SAYS("stream", "invalidated"));
    CHECK_STATUS(mofo_grad_norm(scene->device, &args, &norm), MOFO_ERROR_INVALID_STATE);
    CHECK_F64(norm, 5.0);
    CHECK_CUDA(cuStreamEndCapture(stream, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    check_unharmed();

    CASE("a tensor is added during a capture");
    REQUIRE_CUDA(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    CHECK_STATUS(mofo_add_tensor(scene->device, &tensor, &index), MOFO_ERROR_CUDA);
    check_message(SAYS(tensor.name, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"));
    CHECK_U64(index, 0xDEAD);
    CHECK_CUDA(cuStreamEndCapture(stream, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    CHECK_STATUS(mofo_find_tensor(scene->device, tensor.name, &index), MOFO_ERROR_NOT_FOUND);
    check_unharmed();
    REQUIRE_CUDA(cuStreamDestroy(stream));

    CASE("the default stream, while one that it would wait for is being captured");
    REQUIRE_CUDA(cuStreamCreate(&stream, CU_STREAM_DEFAULT));
    REQUIRE_CUDA(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    CHECK_STATUS(mofo_step(scene->device, NULL), MOFO_ERROR_CUDA);
    check_message(SAYS("CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"));
    REQUIRE_CUDA(cuStreamEndCapture(stream, &graph));
    REQUIRE_CUDA(cuGraphDestroy(graph));
    REQUIRE_CUDA(cuStreamDestroy(stream));
    check_unharmed();
}

/* How much memory device 0 has in use. */
static size_t used_memory(void) {
    size_t free_bytes, total;
    REQUIRE_CUDA(cuMemGetInfo(&free_bytes, &total));
    return total - free_bytes;
}

static void out_of_memory(void) {
    const unsigned long long all = 4ull << 30;
    mofo_tensor tensor = new_tensor();
    mofo_options options = cuda_options();
    mofo_optimizer *optimizer = NULL;
    size_t room;
    size_t free_bytes, total;
    uint64_t index;
    int refusals = 0;
    CASE("a tensor larger than the device's memory");
    REQUIRE_CUDA(cuMemGetInfo(&free_bytes, &total));
    tensor.numel = total / 4;
    refused_tensor(&tensor, MOFO_ERROR_OUT_OF_MEMORY, SAYS("CUDA_ERROR_OUT_OF_MEMORY"));
    if (!cuda_is_emulated()) {
        return;
    }
    CASE("no memory for an optimizer");
    for (room = 0; room < ((size_t)1 << 24); room += 4096) {
        const unsigned long long before = mofo_emulated_allocations();
        int32_t status;
        mofo_emulated_memory(used_memory() + room);
        status = mofo_create(&options, &optimizer);
        if (status == MOFO_OK) {
            break;
        }
        refusals++;
        CHECK_STATUS(status, MOFO_ERROR_OUT_OF_MEMORY);
        check_message(SAYS("CUDA_ERROR_OUT_OF_MEMORY"));
        CHECK(optimizer == NULL);
        CHECK_U64(mofo_emulated_allocations(), before);
    }
    mofo_emulated_memory(all);
    CHECK(refusals > 2);
    check_unharmed();
    REQUIRE(optimizer != NULL);
    CASE("no memory for a tensor, at each of its allocations");
    tensor = named_tensor("scene.large", 263000);
    refusals = 0;
    for (room = 0; room < ((size_t)1 << 24); room += 8000) {
        const unsigned long long before = mofo_emulated_allocations();
        int32_t status;
        mofo_emulated_memory(used_memory() + room);
        status = mofo_add_tensor(optimizer, &tensor, &index);
        if (status == MOFO_OK) {
            break;
        }
        refusals++;
        CHECK_STATUS(status, MOFO_ERROR_OUT_OF_MEMORY);
        check_message(SAYS(tensor.name, "CUDA_ERROR_OUT_OF_MEMORY"));
        CHECK_U64(mofo_emulated_allocations(), before);
    }
    CHECK(refusals > 2);
    CHECK_U64(index, 0);
    mofo_emulated_memory(all);
    mofo_destroy(optimizer);
    /* Room for the tables of a tensor is made before there is room for the tensor. */
    CASE("no memory for a tensor of an optimizer in use");
    tensor = new_tensor();
    mofo_emulated_memory(used_memory() + 1024);
    CHECK_STATUS(mofo_add_tensor(scene->device, &tensor, &index), MOFO_ERROR_OUT_OF_MEMORY);
    check_message(SAYS(tensor.name, "CUDA_ERROR_OUT_OF_MEMORY"));
    CASE("a step needs none");
    check_unharmed();
    mofo_emulated_memory(all);
}

/* An earlier kernel of the engine's has broken the context. */
static void broken_context(void) {
    mofo_options options = cuda_options();
    mofo_step_args args = default_args();
    mofo_optimizer *optimizer;
    mofo_tensor tensor = new_tensor();
    mofo_tensor_info info;
    CUcontext second;
    CUcontext popped;
    uint64_t index = 0xDEAD;
    double norm = 5.0;
    if (!cuda_is_emulated()) {
        SKIP("a broken context: it would be this program's");
        return;
    }
    CASE("a broken context");
    REQUIRE_CUDA(cuCtxSynchronize());
    CHECK_U64((uint64_t)mofo_emulated_fail(CUDA_ERROR_ILLEGAL_ADDRESS), 0);
#define BROKEN(call)                                                                                         \
    do {                                                                                                     \
        CHECK_STATUS(call, MOFO_ERROR_CUDA);                                                                 \
        check_message(SAYS("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access"));                       \
    } while (0)
    BROKEN(mofo_step(scene->device, NULL));
    args.stream = CU_STREAM_PER_THREAD;
    BROKEN(mofo_step(scene->device, &args));
    BROKEN(mofo_wait(scene->device));
    BROKEN(mofo_grad_norm(scene->device, NULL, &norm));
    BROKEN(mofo_add_tensor(scene->device, &tensor, &index));
    BROKEN(mofo_remove_tensor(scene->device, scene->tensors[0].index));
    BROKEN(mofo_set_step_count(scene->device, scene->tensors[0].index, 77));
    BROKEN(mofo_tensor_state(scene->device, scene->tensors[0].index, &info, sizeof info));
    CHECK_F64(norm, 5.0);
    CHECK_U64(index, 0xDEAD);
    CHECK_U64((uint64_t)mofo_emulated_recover(), 0);
    CASE("and nothing had changed");
    check_unharmed();

    CASE("an optimizer is destroyed after its context broke");
    REQUIRE_CUDA(cuDevicePrimaryCtxRetain(&second, 1));
    REQUIRE_CUDA(cuCtxPushCurrent(second));
    options.device_index = 1;
    REQUIRE_OK(mofo_create(&options, &optimizer));
    tensor.param = device_new(NUMEL * sizeof(float));
    tensor.grad = device_new(NUMEL * sizeof(float));
    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
    REQUIRE_OK(mofo_step(optimizer, NULL));
    CHECK_U64((uint64_t)mofo_emulated_fail(CUDA_ERROR_LAUNCH_FAILED), 0);
    CHECK_STATUS(mofo_step(optimizer, NULL), MOFO_ERROR_CUDA);
    check_message(SAYS("CUDA_ERROR_LAUNCH_FAILED"));
    mofo_destroy(optimizer);
    /* The other device goes on. */
    REQUIRE_CUDA(cuCtxPopCurrent(&popped));
    check_unharmed();
    REQUIRE_CUDA(cuDevicePrimaryCtxReset(1));
    REQUIRE_CUDA(cuDevicePrimaryCtxRelease(1));
}

static void numbers(void) {
    mofo_step_args args = default_args();
    CASE("a learning rate that gives no finite scalar");
    args.learning_rate = 1e300;
    refused_step(&args, MOFO_ERROR_NOT_FINITE, SAYS(scene->tensors[0].host.name));
    CASE("a weight decay and an epsilon that do not");
    args = default_args();
    args.weight_decay = 1e300;
    refused_step(&args, MOFO_ERROR_NOT_FINITE, SAYS(scene->tensors[0].host.name, "weight_decay"));
    args = default_args();
    args.epsilon = 1e300;
    refused_step(&args, MOFO_ERROR_NOT_FINITE, SAYS(scene->tensors[0].host.name, "epsilon"));
    CASE("a scale that is no finite float");
    args = default_args();
    args.grad_scale = 1e300;
    refused_step(&args, MOFO_ERROR_NOT_FINITE, SAYS("grad_scale"));
    CASE("arguments out of range");
    args = default_args();
    args.learning_rate = -2.0;
    refused_step(&args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("learning_rate", "-2"));
    args = default_args();
    args.beta2 = 1.0;
    refused_step(&args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("beta2", "1"));
    args = default_args();
    args.update_fraction = 0.0;
    refused_step(&args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("update_fraction"));
    args = default_args();
    args.grad_norm = -2.0;
    refused_step(&args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("grad_norm"));
    CASE("a step counter out of range");
    check_refused(mofo_set_step_count(scene->device, scene->tensors[0].index, UINT64_MAX), MOFO_ERROR_INVALID_ARGUMENT,
                  SAYS(scene->tensors[0].host.name));
    CASE("misaligned arguments");
    args = default_args();
    args.report = (mofo_step_report *)(void *)((char *)scene->report + 4);
    args.report_size = sizeof *scene->report;
    refused_step(&args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("mofo_step_report", "8"));
    args = default_args();
    args.device_learning_rate = (const double *)(const void *)((const char *)rate + 4);
    refused_step(&args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("device_learning_rate", "8"));
    args = default_args();
    args.device_weight_decay = (const double *)(const void *)((const char *)rate + 4);
    refused_step(&args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("device_weight_decay", "8"));
}

static void never(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    (void)n, (void)task, (void)task_ctx;
    *(int *)ctx = 1;
}

/* What one device has and the other has not. */
static void the_other_kind(void) {
    mofo_options options = cuda_options();
    mofo_optimizer *optimizer;
    mofo_step_args args;
    mofo_tensor tensor = new_tensor();
    uint64_t index;
    int called = 0;
    CASE("the CPU tier of an optimizer on CUDA");
    check_refused(mofo_cpu_tier(scene->device), MOFO_ERROR_INVALID_STATE, SAYS("CUDA"));
    CASE("what the CPU has no use for");
    args = default_args();
    args.stream = CU_STREAM_LEGACY;
    check_refused(mofo_step(scene->host, &args), MOFO_ERROR_INVALID_ARGUMENT, SAYS("stream", "NULL on the CPU"));
    args = default_args();
    args.device_learning_rate = rate;
    check_refused(mofo_step(scene->host, &args), MOFO_ERROR_INVALID_ARGUMENT,
                  SAYS("device_learning_rate", "NULL on the CPU"));
    CASE("what CUDA has no use for");
    options.parallel_for = never;
    options.parallel_for_ctx = &called;
    options.num_threads = 3;
    REQUIRE_OK(mofo_create(&options, &optimizer));
    tensor.param = device_new(NUMEL * sizeof(float));
    tensor.grad = device_new(NUMEL * sizeof(float));
    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK_U64(state_of(optimizer, index).step_count, 1);
    CHECK(!called);
    mofo_destroy(optimizer);
    device_free(tensor.param);
    device_free(tensor.grad);
}

static void empty_optimizer(void) {
    mofo_options options = cuda_options();
    mofo_optimizer *optimizer;
    mofo_tensor tensor = named_tensor("unbound", 3);
    uint64_t index;
    void *grad = device_new(3 * sizeof(float));
    CASE("a step without a tensor");
    REQUIRE_OK(mofo_create(&options, &optimizer));
    CHECK_STATUS(mofo_step(optimizer, NULL), MOFO_ERROR_INVALID_STATE);
    CASE("a step without buffers");
    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
    CHECK_STATUS(mofo_step(optimizer, NULL), MOFO_ERROR_INVALID_STATE);
    CASE("a gradient without a parameter");
    REQUIRE_OK(mofo_bind_tensor(optimizer, index, NULL, grad));
    CHECK_STATUS(mofo_step(optimizer, NULL), MOFO_ERROR_INVALID_BUFFER);
    check_message(SAYS("unbound", "param"));
    CHECK_U64(state_of(optimizer, index).step_count, 0);
    mofo_destroy(optimizer);
    device_free(grad);
}

/* A child of fork() cannot use CUDA. It may destroy the optimizer. */
static void forked(void) {
    pid_t child;
    int status = -1;
    CASE("a child process");
    fflush(stdout);
    child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        int32_t step = mofo_step(scene->device, NULL);
        mofo_destroy(scene->device);
        _exit(step == MOFO_ERROR_CUDA ? 42 : 43);
    }
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    check_unharmed();
}

int main(void) {
    mofo_options options = default_options();
    const double value = 0.5;
    cuda_begin();
    options.master_weights = 1;
    options.max_grad_norm = 0.5;
    rate = device_copy(&value, sizeof value);
    scene = twins_new(&options);
    twins_add_plain(scene, "scene.full", NUMEL + 1, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
    twins_add_plain(scene, "scene.half", NUMEL, 10, MOFO_DTYPE_BF16, MOFO_DTYPE_F16);
    twins_step(scene, NULL);
    CASE("the start");
    check_unharmed();
    host_pointers();
    other_devices();
    bounds();
    streams();
    captures();
    numbers();
    the_other_kind();
    empty_optimizer();
    forked();
    out_of_memory();
    broken_context();
    CASE("%s", "");
    twins_free(scene);
    device_free(rate);
    return cuda_finish();
}
