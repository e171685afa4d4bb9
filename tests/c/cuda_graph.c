/* Steps captured in a CUDA graph and replayed, and how much a step launches. */

#include "cuda_buffers.h"

enum { MOST_KERNELS = 16 };

static CUstream stream;

static mofo_step_args on_stream(void) {
    mofo_step_args args = default_args();
    args.stream = stream;
    return args;
}

/* Captures one step of the device's optimizer. */
static CUgraph capture(mofo_optimizer *optimizer, const mofo_step_args *args) {
    CUgraph graph;
    REQUIRE_CUDA(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    REQUIRE_OK(mofo_step(optimizer, args));
    REQUIRE_CUDA(cuStreamEndCapture(stream, &graph));
    return graph;
}

static CUgraphExec instantiate(CUgraph graph) {
    CUgraphExec exec;
    REQUIRE_CUDA(cuGraphInstantiateWithFlags(&exec, graph, 0));
    return exec;
}

/* How many kernels a graph has; it has nothing else. */
static uint64_t kernels_of(CUgraph graph) {
    CUgraphNode nodes[64];
    size_t count = 0;
    size_t i;
    REQUIRE_CUDA(cuGraphGetNodes(graph, NULL, &count));
    REQUIRE(count <= 64);
    REQUIRE_CUDA(cuGraphGetNodes(graph, nodes, &count));
    for (i = 0; i < count; i++) {
        int type = -1;
        REQUIRE_CUDA(cuGraphNodeGetType(nodes[i], &type));
        CHECK_U64((uint64_t)type, CU_GRAPH_NODE_TYPE_KERNEL);
    }
    return count;
}

static void launch(CUgraphExec exec) {
    REQUIRE_CUDA(cuGraphLaunch(exec, stream));
    REQUIRE_CUDA(cuStreamSynchronize(stream));
}

static mofo_step_report cpu_step(struct twins *twins, const mofo_step_args *args) {
    mofo_step_args on_host = *args;
    mofo_step_report report;
    int32_t status;
    on_host.report = &report;
    on_host.report_size = sizeof report;
    on_host.stream = NULL;
    on_host.device_learning_rate = NULL;
    on_host.device_beta1 = NULL;
    status = mofo_step(twins->host, &on_host);
    REQUIRE(status == MOFO_OK || status == MOFO_SKIPPED);
    return report;
}

static void replayed(void) {
    mofo_options options = default_options();
    struct twins *twins;
    mofo_step_args args = on_stream();
    mofo_step_args on_host = default_args();
    double *rate = device_new(sizeof *rate);
    double *beta1 = device_new(sizeof *beta1);
    CUgraph graph;
    CUgraphExec exec;
    mofo_step_report expected;
    mofo_step_report got;
    uint64_t index;
    int t;
    options.max_grad_norm = 0.3;
    options.skip_nonfinite = 1;
    options.weight_decay = 0.1;
    options.master_weights = 1;
    twins = twins_new(&options);
    twins_add_mixed(twins);
    twins_add_plain(twins, "large", 349700, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_BF16);
    index = twins->tensors[0].index;
    args.device_learning_rate = rate;
    args.device_beta1 = beta1;
    args.report = twins->report;
    args.report_size = sizeof *twins->report;

    CASE("a captured step is not taken yet");
    graph = capture(twins->device, &args);
    exec = instantiate(graph);
    CHECK_U64(state_of(twins->device, index).step_count, 0);
    twins_same(twins);

    for (t = 0; t < 10; t++) {
        const double value = 0.02 / (1.0 + t);
        CASE("replay %d", t);
        device_write(rate, &value, sizeof value);
        on_host.learning_rate = value;
        on_host.beta1 = 0.95 - 0.01 * t;
        device_write(beta1, &on_host.beta1, sizeof *beta1);
        twins_gradients(twins, 100 + (uint64_t)t);
        if (t == 4) {
            const struct twin *twin = &twins->tensors[0];
            const float nan = NAN;
            memcpy((char *)(uintptr_t)twin->host.grad + 40, &nan, sizeof nan);
            device_write(twin->device.grad, twin->host.grad, grad_bytes(&twin->host));
        }
        expected = cpu_step(twins, &on_host);
        launch(exec);
        device_read(&got, twins->report, sizeof got);
        check_same_report(&got, &expected);
        CHECK_U64((uint64_t)got.status, t == 4 ? MOFO_SKIPPED : MOFO_OK);
        CHECK_U64(state_of(twins->device, index).step_count, (uint64_t)t + (t < 4));
        twins_same(twins);
    }

    CASE("a learning rate that a replay cannot use");
    {
        const double value = -0.5;
        device_write(rate, &value, sizeof value);
        launch(exec);
        device_read(&got, twins->report, sizeof got);
        CHECK_U64((uint64_t)(int64_t)got.status, (uint64_t)(int64_t)MOFO_ERROR_NOT_FINITE);
        twins_same(twins);
    }

    CASE("an eager step after replays");
    on_host.learning_rate = 0.5;
    twins_step(twins, &on_host);
    twins_same(twins);

    CASE("and replays after it, two without a wait between them");
    on_host.learning_rate = 0.25;
    device_write(rate, &on_host.learning_rate, sizeof *rate);
    cpu_step(twins, &on_host);
    expected = cpu_step(twins, &on_host);
    REQUIRE_CUDA(cuGraphLaunch(exec, stream));
    REQUIRE_CUDA(cuGraphLaunch(exec, stream));
    device_read(&got, twins->report, sizeof got);
    check_same_report(&got, &expected);
    twins_same(twins);

    CASE("the graph outlives what it was made of");
    REQUIRE_CUDA(cuGraphDestroy(graph));
    cpu_step(twins, &on_host);
    launch(exec);
    twins_same(twins);
    REQUIRE_CUDA(cuGraphExecDestroy(exec));
    device_free(rate);
    device_free(beta1);
    twins_free(twins);
}

/* The first thing that an optimizer does may be a captured step; buffers may have been bound since they were added. */
static void captured_after_binding(void) {
    mofo_options options = default_options();
    struct twins *twins = twins_new(&options);
    mofo_step_args args = on_stream();
    struct twin *twin;
    CUgraph graph;
    CUgraphExec exec;
    void *other;
    twins_add_mixed(twins);
    twin = &twins->tensors[0];
    CASE("captured with new buffers");
    other = device_copy(twin->host.param, param_bytes(&twin->host));
    REQUIRE_OK(mofo_bind_tensor(twins->device, twin->index, other, twin->device.grad));
    graph = capture(twins->device, &args);
    exec = instantiate(graph);
    CHECK_AT_MOST(kernels_of(graph), MOST_KERNELS);
    device_free(twin->device.param);
    twin->device.param = other;
    args.stream = NULL;
    CASE("an eager step knows the new buffers, though no replay has told the device");
    twins_step(twins, NULL);
    twins_same(twins);
    CASE("captured before that, replayed after it");
    cpu_step(twins, &args);
    launch(exec);
    twins_same(twins);
    REQUIRE_CUDA(cuGraphExecDestroy(exec));
    REQUIRE_CUDA(cuGraphDestroy(graph));
    twins_free(twins);
}

/* A captured step keeps its list of tensors and its settings. */
static void keeps_its_arguments(void) {
    mofo_options options = default_options();
    struct twins *twins = twins_new(&options);
    mofo_step_args args = on_stream();
    uint64_t list[2];
    CUgraph graph;
    CUgraphExec exec;
    mofo_step_args eager;
    twins_add_mixed(twins);
    CASE("a captured step of some tensors");
    list[0] = twins->tensors[2].index;
    list[1] = twins->tensors[0].index;
    args.tensors = list;
    args.num_tensors = 2;
    args.learning_rate = 0.04;
    args.update_fraction = 0.5;
    args.grad_scale = 0.25;
    graph = capture(twins->device, &args);
    exec = instantiate(graph);
    cpu_step(twins, &args);
    list[0] = list[1] = 99;
    launch(exec);
    twins_same(twins);
    CASE("other tensors and settings in between");
    eager = default_args();
    eager.update_fraction = 1.0;
    twins_step(twins, &eager);
    list[0] = twins->tensors[2].index;
    list[1] = twins->tensors[0].index;
    cpu_step(twins, &args);
    launch(exec);
    twins_same(twins);
    CASE("nothing to do");
    REQUIRE_CUDA(cuGraphExecDestroy(exec));
    REQUIRE_CUDA(cuGraphDestroy(graph));
    args.num_tensors = 0;
    graph = capture(twins->device, &args);
    exec = instantiate(graph);
    launch(exec);
    twins_same(twins);
    REQUIRE_CUDA(cuGraphExecDestroy(exec));
    REQUIRE_CUDA(cuGraphDestroy(graph));
    twins_free(twins);
}

/* The step is part of a larger capture: what comes before and after it in the stream stays in order. */
static void within_a_larger_graph(void) {
    mofo_options options = default_options();
    struct twins *twins = twins_new(&options);
    mofo_step_args args = on_stream();
    struct twin *twin;
    const size_t bytes = 800 * sizeof(float);
    void *staged;
    void *after;
    CUgraph graph;
    CUgraphExec exec;
    int t;
    twin = twins_add_plain(twins, "within", 800, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
    staged = device_new(bytes);
    after = device_new(bytes);
    REQUIRE_CUDA(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    REQUIRE_CUDA(cuMemcpyDtoDAsync(device_address(twin->device.grad), device_address(staged), bytes, stream));
    REQUIRE_OK(mofo_step(twins->device, &args));
    REQUIRE_CUDA(cuMemcpyDtoDAsync(device_address(after), device_address(twin->device.param), bytes, stream));
    REQUIRE_OK(mofo_step(twins->device, &args));
    REQUIRE_CUDA(cuStreamEndCapture(stream, &graph));
    exec = instantiate(graph);
    for (t = 0; t < 3; t++) {
        mofo_step_args on_host = default_args();
        CASE("two steps and two copies in a graph, replay %d", t);
        buffer_fill((void *)(uintptr_t)twin->host.grad, MOFO_DTYPE_F32, 800, 300 + (uint64_t)t, 0.03);
        device_write(staged, twin->host.grad, bytes);
        launch(exec);
        cpu_step(twins, &on_host);
        CHECK_DEVICE(after, twin->host.param, bytes);
        cpu_step(twins, &on_host);
        twins_same(twins);
    }
    REQUIRE_CUDA(cuGraphExecDestroy(exec));
    REQUIRE_CUDA(cuGraphDestroy(graph));
    device_free(staged);
    device_free(after);
    twins_free(twins);
}

/* Kernels of an eager step, where they can be counted. */
static uint64_t eager_kernels(mofo_optimizer *optimizer, const mofo_step_args *args) {
    unsigned long long before;
    if (!cuda_is_emulated()) {
        return 0;
    }
    REQUIRE_CUDA(cuCtxSynchronize());
    before = mofo_emulated_launches();
    REQUIRE_OK(mofo_step(optimizer, args));
    REQUIRE_CUDA(cuCtxSynchronize());
    return mofo_emulated_launches() - before;
}

/* A step of `count` tensors launches at most so many kernels, captured, eager, and with all buffers bound anew. */
static void check_kernels(uint64_t count, const mofo_options *options) {
    static const int32_t dtypes[] = {MOFO_DTYPE_F32, MOFO_DTYPE_BF16, MOFO_DTYPE_F16};
    static char names[1000][24];
    mofo_options on_device = *options;
    mofo_optimizer *optimizer;
    mofo_step_args args = on_stream();
    mofo_step_report *report = device_new(sizeof *report);
    char *pool = device_new(4000000);
    char *grads = device_new(4000000);
    CUgraph graph;
    uint64_t n, round, captured;
    on_device.device = MOFO_DEVICE_CUDA;
    REQUIRE_OK(mofo_create(&on_device, &optimizer));
    REQUIRE_CUDA(cuMemsetD8(device_address(pool), 0x3E, 4000000));
    REQUIRE_CUDA(cuMemsetD8(device_address(grads), 0x2F, 4000000));
    args.report = report;
    args.report_size = sizeof *report;
    for (round = 0; round < 2; round++) {
        size_t used = 0;
        for (n = 0; n < count; n++) {
            /* Two large ones among small ones. */
            const int is_second = count > 1 && n == count / 2;
            mofo_tensor tensor;
            uint64_t index;
            snprintf(names[n], sizeof names[n], "kernels.%d", (int)n);
            tensor = named_tensor(names[n], n == 0 ? 262500 : is_second ? 2 * 262300 : 1 + n % 50);
            tensor.num_blocks = is_second ? 2 : 1;
            tensor.param_dtype = dtypes[n % 3];
            tensor.grad_dtype = dtypes[n / 3 % 3];
            if (n % 7 == 5) {
                tensor.update_fraction = 1.0;
            }
            tensor.param = pool + used + (round ? 16 : 0);
            tensor.grad = grads + used + (round ? 16 : 0);
            used += (tensor.numel * 4 + 63) / 16 * 16;
            REQUIRE(used < 4000000);
            if (round == 0) {
                REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
            } else {
                REQUIRE_OK(mofo_bind_tensor(optimizer, n, tensor.param, tensor.grad));
            }
        }
        graph = capture(optimizer, &args);
        captured = kernels_of(graph);
        CHECK_AT_MOST(captured, MOST_KERNELS);
        CHECK(captured >= 5);
        REQUIRE_CUDA(cuGraphDestroy(graph));
        if (cuda_is_emulated()) {
            CHECK_U64(eager_kernels(optimizer, &args), captured);
            CHECK_AT_MOST(eager_kernels(optimizer, &args), captured);
        } else {
            REQUIRE_OK(mofo_step(optimizer, &args));
        }
    }
    REQUIRE_CUDA(cuCtxSynchronize());
    CHECK_U64(state_of(optimizer, count - 1).step_count, cuda_is_emulated() ? 4 : 2);
    mofo_destroy(optimizer);
    device_free(report);
    device_free(pool);
    device_free(grads);
}

static void few_kernels(void) {
    mofo_options options = default_options();
    options.max_grad_norm = 0.1;
    options.skip_nonfinite = 1;
    CASE("kernels of one tensor");
    check_kernels(1, &options);
    CASE("kernels of a thousand tensors");
    check_kernels(1000, &options);
    CASE("kernels of tensors of which every entry decays");
    options.weight_decay = 0.5;
    options.weight_decay_scope = MOFO_WEIGHT_DECAY_ALL;
    options.max_grad_norm = 0.0;
    options.skip_nonfinite = 0;
    check_kernels(30, &options);
}

int main(void) {
    cuda_begin();
    REQUIRE_CUDA(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    replayed();
    captured_after_binding();
    keeps_its_arguments();
    within_a_larger_graph();
    few_kernels();
    REQUIRE_CUDA(cuStreamDestroy(stream));
    return cuda_finish();
}
