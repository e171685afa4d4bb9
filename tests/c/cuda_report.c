/* What a step on CUDA reports, and when; steps that the device does not take. */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <time.h>

#include "cuda_buffers.h"

/* Work on a stream that waits until the test lets it go on. */
struct gate {
    pthread_mutex_t lock;
    pthread_cond_t opened;
    int is_open;
};

static struct gate gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};

static void wait_at_gate(void *unused) {
    (void)unused;
    pthread_mutex_lock(&gate.lock);
    while (!gate.is_open) {
        pthread_cond_wait(&gate.opened, &gate.lock);
    }
    pthread_mutex_unlock(&gate.lock);
}

static void close_gate(CUstream stream) {
    gate.is_open = 0;
    REQUIRE_CUDA(cuLaunchHostFunc(stream, wait_at_gate, NULL));
}

static void open_gate(void) {
    pthread_mutex_lock(&gate.lock);
    gate.is_open = 1;
    pthread_cond_signal(&gate.opened);
    pthread_mutex_unlock(&gate.lock);
}

static mofo_step_report cpu_step(struct twins *twins, const mofo_step_args *args) {
    mofo_step_args on_host = args != NULL ? *args : default_args();
    mofo_step_report report;
    int32_t status;
    on_host.report = &report;
    on_host.report_size = sizeof report;
    on_host.device_learning_rate = NULL;
    on_host.device_beta1 = NULL;
    on_host.device_beta2 = NULL;
    on_host.device_epsilon = NULL;
    on_host.device_weight_decay = NULL;
    status = mofo_step(twins->host, &on_host);
    REQUIRE(status == MOFO_OK || status == MOFO_SKIPPED);
    return report;
}

/* All bytes of the report are as `before`, whose content does not matter. */
static void kinds_of_memory(void) {
    mofo_options options = default_options();
    struct twins *twins;
    int kind;
    options.max_grad_norm = 0.25;
    twins = twins_new(&options);
    twins_add_mixed(twins);
    for (kind = 0; kind < 3; kind++) {
        static const char *const names[] = {"device", "page-locked", "managed"};
        mofo_step_args args = default_args();
        mofo_step_report expected;
        mofo_step_report got;
        void *report = NULL;
        int managed = 1;
        CASE("a report in %s memory", names[kind]);
        if (kind == 0) {
            report = device_new(sizeof got);
        } else if (kind == 1) {
            REQUIRE_CUDA(cuMemAllocHost(&report, sizeof got));
        } else {
            CUdeviceptr address;
            REQUIRE_CUDA(cuDeviceGetAttribute(&managed, CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 0));
            if (!managed) {
                SKIP("the device has no managed memory");
                continue;
            }
            REQUIRE_CUDA(cuMemAllocManaged(&address, sizeof got, CU_MEM_ATTACH_GLOBAL));
            report = (void *)(uintptr_t)address;
        }
        args.report = report;
        args.report_size = sizeof got;
        expected = cpu_step(twins, NULL);
        REQUIRE_OK(mofo_step(twins->device, &args));
        if (kind == 0) {
            device_read(&got, report, sizeof got);
            device_free(report);
        } else {
            REQUIRE_CUDA(cuCtxSynchronize());
            memcpy(&got, report, sizeof got);
            REQUIRE_CUDA(kind == 1 ? cuMemFreeHost(report) : cuMemFree(device_address(report)));
        }
        check_same_report(&got, &expected);
        CHECK(got.grad_norm > 0.0 && got.entries > 0 && got.entries_selected > 0);
        twins_same(twins);
    }
    twins_free(twins);
}

static void sizes_of_report(void) {
    mofo_options options = default_options();
    struct twins *twins = twins_new(&options);
    unsigned char bytes[128];
    unsigned char before[128];
    unsigned char *report = device_new(sizeof bytes);
    uint64_t size;
    twins_add_mixed(twins);
    memset(before, 0x3C, sizeof before);
    for (size = sizeof(mofo_step_report); size <= 96; size += 24) {
        mofo_step_args args = default_args();
        mofo_step_report got;
        mofo_step_report expected;
        uint64_t i;
        CASE("report_size %d", (int)size);
        device_write(report, before, sizeof before);
        args.report = (mofo_step_report *)(void *)report;
        args.report_size = size;
        expected = cpu_step(twins, NULL);
        REQUIRE_OK(mofo_step(twins->device, &args));
        device_read(bytes, report, sizeof bytes);
        memcpy(&got, bytes, sizeof got);
        check_same_report(&got, &expected);
        CHECK_F64(got.grad_norm, MOFO_INHERIT);
        for (i = sizeof got; i < size; i++) {
            CHECK_U64(bytes[i], 0);
        }
        CHECK_BYTES(bytes + size, before + size, sizeof bytes - size);
    }
    CASE("a report that is too small");
    {
        mofo_step_args args = default_args();
        args.report = (mofo_step_report *)(void *)report;
        args.report_size = sizeof(mofo_step_report) - 8;
        CHECK_STATUS(mofo_step(twins->device, &args), MOFO_ERROR_INVALID_ARGUMENT);
        CHECK_TEXT(mofo_last_error(), "mofo_step_report");
        twins_same(twins);
    }
    device_free(report);
    twins_free(twins);
}

/* The step is launched and not waited for: what it writes is as before until the stream gets there. */
static void asynchronous(void) {
    mofo_options options = default_options();
    struct twins *twins;
    struct twin *twin;
    mofo_step_args args = default_args();
    mofo_step_report expected;
    mofo_step_report *report;
    void *page_locked;
    double *rate;
    CUstream stream;
    unsigned char before[sizeof(mofo_step_report)];
    options.max_grad_norm = 0.01;
    twins = twins_new(&options);
    twin = twins_add_plain(twins, "asynchronous", 900, 3, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
    REQUIRE_CUDA(cuMemAllocHost(&page_locked, 4096));
    report = page_locked;
    rate = (double *)((char *)page_locked + 1024);
    memset(before, 0x11, sizeof before);
    memcpy(report, before, sizeof before);
    *rate = 123.0;
    REQUIRE_CUDA(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CASE("a step on a stream that is held up");
    args.stream = stream;
    args.report = report;
    args.report_size = sizeof *report;
    args.device_learning_rate = rate;
    close_gate(stream);
    REQUIRE_OK(mofo_step(twins->device, &args));
    CHECK_BYTES(report, before, sizeof before);
    /* Read when the step runs. */
    *rate = 0.03125;
    {
        mofo_step_args on_host = default_args();
        on_host.learning_rate = 0.03125;
        expected = cpu_step(twins, &on_host);
    }
    open_gate();
    REQUIRE_CUDA(cuStreamSynchronize(stream));
    check_same_report(report, &expected);
    twins_same(twins);
    CASE("several steps on a stream that is held up");
    {
        int t;
        mofo_step_args on_host = default_args();
        on_host.learning_rate = *rate;
        close_gate(stream);
        for (t = 0; t < 5; t++) {
            REQUIRE_OK(mofo_step(twins->device, &args));
            expected = cpu_step(twins, &on_host);
        }
        CHECK(report->entries == 900);
        open_gate();
        REQUIRE_CUDA(cuStreamSynchronize(stream));
        check_same_report(report, &expected);
        twins_same(twins);
    }
    CHECK_U64(state_of(twins->device, twin->index).step_count, 6);
    REQUIRE_CUDA(cuStreamDestroy(stream));
    REQUIRE_CUDA(cuMemFreeHost(page_locked));
    twins_free(twins);
}

static void set_gradient(struct twin *twin, uint64_t i, float value) {
    void *grad = (void *)(uintptr_t)twin->host.grad;
    reference_store(twin->host.grad_dtype, grad, i, value, 0, 0);
    device_write(twin->device.grad, grad, grad_bytes(&twin->host));
}

static void skipped(void) {
    static const float values[] = {NAN, INFINITY, -INFINITY};
    mofo_options options = default_options();
    struct twins *twins;
    mofo_step_args args;
    mofo_step_report report;
    int n;
    options.skip_nonfinite = 1;
    options.master_weights = 1;
    twins = twins_new(&options);
    twins_add_mixed(twins);
    CASE("a step that is taken");
    CHECK_U64((uint64_t)twins_step(twins, NULL).status, MOFO_OK);
    twins_same(twins);
    for (n = 0; n < 3; n++) {
        CASE("a gradient of %g", (double)values[n]);
        set_gradient(&twins->tensors[n], 11, values[n]);
        /* The CPU's optimizer skips it, too. */
        report = twins_step(twins, NULL);
        CHECK_U64((uint64_t)report.status, MOFO_SKIPPED);
        CHECK_U64((uint64_t)report.skipped, 1);
        CHECK_U64(report.entries, 1500 + 999 + 37 + 1);
        CHECK_U64(report.entries_selected, 0);
        twins_same(twins);
        CHECK_U64(state_of(twins->device, twins->tensors[n].index).step_count, 1 + (uint64_t)n);
        CASE("and after it");
        twins_gradients(twins, 1 + (uint64_t)n);
        report = twins_step(twins, NULL);
        CHECK_U64((uint64_t)report.status, MOFO_OK);
        CHECK_U64((uint64_t)report.skipped, 0);
        twins_same(twins);
        CHECK_U64(state_of(twins->device, twins->tensors[n].index).step_count, 2 + (uint64_t)n);
    }
    CASE("a norm from the engine that is not finite");
    args = default_args();
    args.grad_norm = INFINITY;
    CHECK_U64((uint64_t)twins_step(twins, &args).status, MOFO_SKIPPED);
    args.grad_norm = NAN;
    CHECK_U64((uint64_t)twins_step(twins, &args).status, MOFO_SKIPPED);
    twins_same(twins);
    CASE("a tensor whose gradient is not finite, but which is not listed");
    {
        uint64_t list[1];
        list[0] = twins->tensors[1].index;
        set_gradient(&twins->tensors[0], 3, NAN);
        args = default_args();
        args.tensors = list;
        args.num_tensors = 1;
        CHECK_U64((uint64_t)twins_step(twins, &args).status, MOFO_OK);
        twins_same(twins);
    }
    CASE("before the first step");
    twins_add_plain(twins, "skipped.new", 50, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32);
    CHECK_U64((uint64_t)twins_step(twins, NULL).status, MOFO_SKIPPED);
    CHECK_U64(state_of(twins->device, twins->tensors[4].index).step_count, 0);
    twins_gradients(twins, 9);
    CHECK_U64((uint64_t)twins_step(twins, NULL).status, MOFO_OK);
    twins_same(twins);
    twins_free(twins);
}

/* The device refuses the step; the CPU's twin, which takes none, must stay the same. */
static void check_not_taken(struct twins *twins, const mofo_step_args *args, int32_t status) {
    mofo_step_report report = device_step(twins, args);
    CHECK_U64((uint64_t)(int64_t)report.status, (uint64_t)(int64_t)status);
    CHECK_U64((uint64_t)report.skipped, 0);
    CHECK_U64(report.entries_selected, 0);
    CHECK_U64(report.estimates_failed, 0);
    twins_same(twins);
}

static void not_finite(void) {
    mofo_options options = default_options();
    struct twins *twins;
    mofo_step_args args;
    options.max_grad_norm = 1.0;
    twins = twins_new(&options);
    twins_add_mixed(twins);
    CASE("the norm is finite");
    twins_step(twins, NULL);
    twins_same(twins);
    CASE("the norm is NaN, with clipping");
    set_gradient(&twins->tensors[1], 500, NAN);
    CHECK_STATUS(mofo_step(twins->host, NULL), MOFO_ERROR_NOT_FINITE);
    check_not_taken(twins, NULL, MOFO_ERROR_NOT_FINITE);
    CHECK(isnan(device_step(twins, NULL).grad_norm));
    CASE("the norm is infinite, with clipping: gradients count as zero");
    set_gradient(&twins->tensors[1], 500, INFINITY);
    CHECK_U64((uint64_t)twins_step(twins, NULL).status, MOFO_OK);
    twins_same(twins);
    twins_gradients(twins, 5);
    CASE("the engine's norm is NaN");
    args = default_args();
    args.grad_norm = NAN;
    CHECK_STATUS(mofo_step(twins->host, &args), MOFO_ERROR_NOT_FINITE);
    check_not_taken(twins, &args, MOFO_ERROR_NOT_FINITE);
    CASE("and after it");
    twins_step(twins, NULL);
    twins_same(twins);
    CASE("without a report it is not taken either");
    set_gradient(&twins->tensors[0], 0, NAN);
    REQUIRE_OK(mofo_step(twins->device, NULL));
    twins_same(twins);
    twins_free(twins);
}

static void device_learning_rate(void) {
    static const double bad[] = {NAN, -NAN, INFINITY, -INFINITY, -1.0, -5e-324, 1e300};
    mofo_options options = default_options();
    struct twins *twins;
    mofo_step_args on_device = default_args();
    mofo_step_args on_host = default_args();
    double *rate = device_new(sizeof *rate);
    double value;
    int n, t;
    options.weight_decay = 0.125;
    options.learning_rate = 7.0;
    twins = twins_new(&options);
    twins_add_mixed(twins);
    on_device.device_learning_rate = rate;
    /* In place of this one. */
    on_device.learning_rate = 9.0;
    for (t = 0; t < 4; t++) {
        mofo_step_report expected;
        mofo_step_report got;
        CASE("step %d of a schedule on the device", t);
        value = t == 3 ? 0.0 : 0.01 / (1.0 + t);
        device_write(rate, &value, sizeof value);
        on_host.learning_rate = value;
        twins_gradients(twins, (uint64_t)t);
        expected = cpu_step(twins, &on_host);
        got = device_step(twins, &on_device);
        check_same_report(&got, &expected);
        twins_same(twins);
    }
    for (n = 0; n < 7; n++) {
        CASE("a learning rate of %g on the device", bad[n]);
        device_write(rate, &bad[n], sizeof *bad);
        check_not_taken(twins, &on_device, MOFO_ERROR_NOT_FINITE);
    }
    CASE("a negative zero");
    value = -0.0;
    device_write(rate, &value, sizeof value);
    on_host.learning_rate = 0.0;
    cpu_step(twins, &on_host);
    CHECK_U64((uint64_t)device_step(twins, &on_device).status, MOFO_OK);
    twins_same(twins);
    CASE("again from the host");
    on_host.learning_rate = 0.02;
    twins_step(twins, &on_host);
    twins_same(twins);
    CASE("a learning rate that is not a multiple of 8");
    on_device.device_learning_rate = (const double *)(const void *)((const char *)rate + 4);
    {
        const int32_t status = mofo_step(twins->device, &on_device);
        CHECK(status == MOFO_ERROR_INVALID_ARGUMENT || status == MOFO_ERROR_INVALID_BUFFER);
        CHECK_TEXT(mofo_last_error(), "device_learning_rate");
        twins_same(twins);
    }
    device_free(rate);
    twins_free(twins);
}

/* Betas, epsilon and weight decay on the device, beside a tensor with a weight decay of its own. */
static void device_hyper_parameters(void) {
    enum { RATE, BETA1, BETA2, EPSILON, WEIGHT_DECAY, VALUES };
    static const double schedule[][VALUES] = {
        {0.01, 0.95, 0.9, 1e-3, 0.5},
        {0.02, 0.0, 0.0, 0.0, 0.0},
        {0.01, 0.85, 0.9999, 0.25, 0.125},
        {0.0, -0.0, 0.5, -0.0, -0.0},
    };
    static const struct {
        int which;
        double value;
    } bad[] = {
        {BETA1, 1.0},         {BETA1, -5e-324},        {BETA1, NAN},           {BETA2, 1.0},
        {BETA2, -0.5},        {BETA2, INFINITY},       {EPSILON, -1.0},        {EPSILON, NAN},
        {EPSILON, 1e300},     {WEIGHT_DECAY, -1.0},    {WEIGHT_DECAY, NAN},    {WEIGHT_DECAY, INFINITY},
        {WEIGHT_DECAY, 1e300}, {RATE, NAN},
    };
    mofo_options options = default_options();
    struct twins *twins;
    mofo_step_args on_device = default_args();
    mofo_step_args on_host = default_args();
    double *values = device_new(VALUES * sizeof *values);
    size_t n;
    options.weight_decay = 0.75;
    twins = twins_new(&options);
    twins_add_mixed(twins);
    on_device.device_learning_rate = values + RATE;
    on_device.device_beta1 = values + BETA1;
    on_device.device_beta2 = values + BETA2;
    on_device.device_epsilon = values + EPSILON;
    on_device.device_weight_decay = values + WEIGHT_DECAY;
    /* In place of these. */
    on_device.beta1 = on_device.beta2 = 0.99;
    on_device.epsilon = on_device.weight_decay = 7.0;
    for (n = 0; n < 8; n++) {
        const double *value = schedule[n % 4];
        mofo_step_report expected;
        mofo_step_report got;
        CASE("hyper-parameters on the device, step %d", (int)n);
        device_write(values, value, VALUES * sizeof *value);
        on_host.learning_rate = value[RATE];
        on_host.beta1 = value[BETA1];
        on_host.beta2 = value[BETA2];
        on_host.epsilon = value[EPSILON];
        on_host.weight_decay = value[WEIGHT_DECAY];
        twins_gradients(twins, (uint64_t)n);
        expected = cpu_step(twins, &on_host);
        got = device_step(twins, &on_device);
        check_same_report(&got, &expected);
        twins_same(twins);
    }
    for (n = 0; n < sizeof bad / sizeof bad[0]; n++) {
        double row[VALUES];
        CASE("value %d is %g on the device", bad[n].which, bad[n].value);
        memcpy(row, schedule[0], sizeof row);
        row[bad[n].which] = bad[n].value;
        device_write(values, row, sizeof row);
        check_not_taken(twins, &on_device, MOFO_ERROR_NOT_FINITE);
    }
    CASE("one from the device, the others from the host");
    on_host = default_args();
    on_host.beta1 = 0.5;
    on_host.epsilon = 0.125;
    on_device = on_host;
    device_write(values, schedule[2], sizeof schedule[2]);
    on_device.device_beta1 = values + BETA1;
    on_host.beta1 = schedule[2][BETA1];
    cpu_step(twins, &on_host);
    CHECK_U64((uint64_t)device_step(twins, &on_device).status, MOFO_OK);
    twins_same(twins);
    CASE("all of them from the host");
    on_host.beta2 = 0.25;
    on_host.weight_decay = 1.5;
    twins_step(twins, &on_host);
    twins_same(twins);
    device_free(values);
    twins_free(twins);
}

static void *open_gate_soon(void *unused) {
    const struct timespec soon = {0, 20 * 1000 * 1000};
    nanosleep(&soon, NULL);
    open_gate();
    return unused;
}

/* Without a call of CUDA's by whoever waits. */
static void waits(void) {
    mofo_options options = default_options();
    struct twins *twins = twins_new(&options);
    struct twin *twin = twins_add_plain(twins, "waits", 900, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
    mofo_step_args args = default_args();
    mofo_step_report expected;
    mofo_step_report *report;
    void *page_locked;
    CUstream stream;
    pthread_t thread;
    CASE("before the first step");
    REQUIRE_OK(mofo_wait(twins->device));
    CASE("for a step that another stream's work holds up");
    REQUIRE_CUDA(cuMemAllocHost(&page_locked, 4096));
    report = page_locked;
    memset(report, 0x11, sizeof *report);
    REQUIRE_CUDA(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    args.stream = stream;
    args.report = report;
    args.report_size = sizeof *report;
    expected = cpu_step(twins, NULL);
    close_gate(stream);
    REQUIRE_OK(mofo_step(twins->device, &args));
    REQUIRE(pthread_create(&thread, NULL, open_gate_soon, NULL) == 0);
    REQUIRE_OK(mofo_wait(twins->device));
    check_same_report(report, &expected);
    REQUIRE(pthread_join(thread, NULL) == 0);
    CHECK_U64(state_of(twins->device, twin->index).step_count, 1);
    twins_same(twins);
    CASE("once more, with nothing to wait for");
    REQUIRE_OK(mofo_wait(twins->device));
    REQUIRE_CUDA(cuStreamDestroy(stream));
    REQUIRE_CUDA(cuMemFreeHost(page_locked));
    twins_free(twins);
}

/* Nothing to do: the report says so. */
static void no_tensor_takes_part(void) {
    mofo_options options = default_options();
    struct twins *twins = twins_new(&options);
    mofo_step_args args = default_args();
    static const uint64_t none[1] = {0};
    twins_add_mixed(twins);
    CASE("an empty list");
    args.tensors = none;
    CHECK_U64(twins_step(twins, &args).tensors, 0);
    twins_same(twins);
    CASE("one of them");
    args.num_tensors = 1;
    CHECK_U64(twins_step(twins, &args).tensors, 1);
    twins_same(twins);
    twins_free(twins);
}

/* A step counter at its end: the device finds out. */
static void last_step(void) {
    mofo_options options = default_options();
    struct twins *twins = twins_new(&options);
    struct twin *twin = twins_add_plain(twins, "last", 64, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
    const uint64_t last = INT64_MAX;
    twins_add_plain(twins, "other", 64, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
    CASE("the last step but one");
    twins_step(twins, NULL);
    REQUIRE_OK(mofo_set_step_count(twins->host, twin->index, last - 1));
    REQUIRE_OK(mofo_set_step_count(twins->device, twin->index, last - 1));
    twins_step(twins, NULL);
    twins_same(twins);
    CHECK_U64(state_of(twins->device, twin->index).step_count, last);
    CASE("one step too many");
    CHECK_STATUS(mofo_step(twins->host, NULL), MOFO_ERROR_INVALID_ARGUMENT);
    check_not_taken(twins, NULL, MOFO_ERROR_INVALID_ARGUMENT);
    twins_free(twins);
}

int main(void) {
    cuda_begin();
    kinds_of_memory();
    sizes_of_report();
    asynchronous();
    skipped();
    not_finite();
    device_learning_rate();
    device_hyper_parameters();
    waits();
    no_tensor_takes_part();
    last_step();
    return cuda_finish();
}
