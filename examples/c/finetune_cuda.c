/*
 * The demo of finetune.c with the optimizer on an NVIDIA GPU, through CUDA's driver API alone.
 *
 * The engine's side of a step is here: gradients go to the device, mofo steps on the engine's stream, parameters come
 * back. Forward and backward stay on the CPU, to keep to the subject; an engine whose gradients are on the GPU anyway
 * has only the middle of it. The output is that of finetune.c for the same options, but for the times: the bits of a
 * step are the same on the CPU and on CUDA.
 *
 *     cc -O3 -std=c11 -ffp-contract=off -Iinclude -I"$CUDA_HOME/include" examples/c/finetune_cuda.c \
 *         examples/c/finetune/[a-z]*.c target/release/libmofo.a -lcuda -lpthread -ldl -lm -o finetune_cuda
 *
 * Where there is no GPU it says so and exits with 0, or with 1 if MOFO_REQUIRE_CUDA is 1.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include <cuda.h>
#include <mofo.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "finetune/demo.h"
#include "finetune/mlp.h"
#include "finetune/trainer.h"
#include "finetune/util.h"

static const size_t BUFFER = PARAMETERS * sizeof(float);

/* What the device reads and writes while the host goes on: in page-locked memory. */
typedef struct {
    double learning_rate;
    mofo_step_report report;
} exchange;

typedef struct {
    engine base; /* the first member: the engine that `step` and `start` are given */
    CUdevice device;
    CUstream stream;
    CUdeviceptr params, grads;
    CUdeviceptr learning_rate; /* a double */
    exchange *exchange;
} cuda_engine;

/* Ends the program with CUDA's message if a call of the driver failed. */
static void check_cuda(CUresult result, const char *call) {
    if (result == CUDA_SUCCESS) return;
    const char *name = NULL, *text = NULL;
    if (cuGetErrorName(result, &name) != CUDA_SUCCESS || !name) name = "unknown error";
    if (cuGetErrorString(result, &text) != CUDA_SUCCESS || !text) text = "";
    fail("%s: %s: %s", call, name, text);
}

#define CHECK_CUDA(call) check_cuda(call, #call)

static void bring_parameters(engine *self) {
    cuda_engine *e = (cuda_engine *)self;
    CHECK_CUDA(cuMemcpyHtoDAsync(e->params, self->net->params, BUFFER, e->stream));
    CHECK_CUDA(cuStreamSynchronize(e->stream));
}

static uint64_t step_on_the_device(engine *self, mofo_optimizer *optimizer, double learning_rate) {
    cuda_engine *e = (cuda_engine *)self;
    mlp *net = self->net;

    /* All in the order of the stream: nothing waits until the end. */
    CHECK_CUDA(cuMemcpyHtoDAsync(e->grads, net->grads, BUFFER, e->stream));
    e->exchange->learning_rate = learning_rate;
    CHECK_CUDA(cuMemcpyHtoDAsync(e->learning_rate, &e->exchange->learning_rate, sizeof(double), e->stream));

    mofo_step_args args;
    check(mofo_step_args_init(&args, sizeof args), "mofo_step_args_init");
    args.stream = e->stream;
    args.device_learning_rate = (const double *)(uintptr_t)e->learning_rate;
    args.report = &e->exchange->report;
    args.report_size = sizeof e->exchange->report;
    check(mofo_step(optimizer, &args), "mofo_step");

    CHECK_CUDA(cuMemcpyDtoHAsync(net->params, e->params, BUFFER, e->stream));
    CHECK_CUDA(cuStreamSynchronize(e->stream));

    /* mofo_step returned before the step ran. What kept it from being taken, if anything did, the report says. */
    check(e->exchange->report.status, "the step on the device");
    return e->exchange->report.entries_selected;
}

/* The engine works in the device's primary context, as the library does. */
static cuda_engine cuda_engine_new(mlp *net) {
    cuda_engine e = {0};
    CUcontext context;
    void *pinned = NULL;
    CHECK_CUDA(cuDeviceGet(&e.device, 0));
    CHECK_CUDA(cuDevicePrimaryCtxRetain(&context, e.device));
    CHECK_CUDA(cuCtxSetCurrent(context));
    CHECK_CUDA(cuStreamCreate(&e.stream, CU_STREAM_NON_BLOCKING));
    CHECK_CUDA(cuMemAlloc(&e.params, BUFFER));
    CHECK_CUDA(cuMemAlloc(&e.grads, BUFFER));
    CHECK_CUDA(cuMemAlloc(&e.learning_rate, sizeof(double)));
    CHECK_CUDA(cuMemAllocHost(&pinned, sizeof *e.exchange));
    e.exchange = pinned;
    e.base = (engine){.net = net,
                      .device = MOFO_DEVICE_CUDA,
                      .params = (float *)(uintptr_t)e.params,
                      .grads = (float *)(uintptr_t)e.grads,
                      .start = bring_parameters,
                      .step = step_on_the_device};
    return e;
}

static void cuda_engine_free(cuda_engine *e) {
    CHECK_CUDA(cuMemFreeHost(e->exchange));
    CHECK_CUDA(cuMemFree(e->learning_rate));
    CHECK_CUDA(cuMemFree(e->grads));
    CHECK_CUDA(cuMemFree(e->params));
    CHECK_CUDA(cuStreamDestroy(e->stream));
    CHECK_CUDA(cuCtxSetCurrent(NULL));
    CHECK_CUDA(cuDevicePrimaryCtxRelease(e->device));
}

/* Where there is no driver but only the library to link with, cuInit fails, too. */
static bool device_is_there(void) {
    int devices = 0;
    return mofo_cuda_available() && cuInit(0) == CUDA_SUCCESS && cuDeviceGetCount(&devices) == CUDA_SUCCESS &&
           devices > 0;
}

int main(int argc, char **argv) {
    arguments a = parse_arguments(argc, argv);
    if (!device_is_there()) {
        const char *required = getenv("MOFO_REQUIRE_CUDA");
        puts("skipped: no CUDA device");
        return required && strcmp(required, "1") == 0 ? EXIT_FAILURE : EXIT_SUCCESS;
    }
    mlp net = mlp_new();
    cuda_engine on_the_gpu = cuda_engine_new(&net);
    int status = run_demo(&a, &on_the_gpu.base);
    cuda_engine_free(&on_the_gpu);
    mlp_free(&net);
    return status;
}
