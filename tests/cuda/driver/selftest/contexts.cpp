// Devices, contexts, launches, and errors.

#include <sys/wait.h>
#include <thread>
#include <type_traits>
#include <unistd.h>

#include "selftest.hpp"

TEST(contexts) {
    CUcontext mine = nullptr, current = nullptr;
    CUstream stream = nullptr, theirs = nullptr;
    CUevent event = nullptr;
    OK(cuStreamCreate(&stream, 0));
    OK(cuCtxCreate(&mine, 0, 1));
    OK(cuCtxGetCurrent(&current));
    CHECK(current == mine);
    CUdevice device = -1;
    OK(cuCtxGetDevice(&device));
    EQUAL(device, 1);
    OK(cuStreamCreate(&theirs, 0));
    OK(cuEventCreate(&event, 0));
    OK(cuStreamGetCtx(stream, &current));
    CHECK(current == context);
    EQUAL(cuEventRecord(event, stream), CUDA_ERROR_INVALID_HANDLE);
    Add argument{0, 0, 0};
    void *parameters[] = {&argument};
    OK(cuCtxPopCurrent(&current));
    CHECK(current == mine);
    EQUAL(cuLaunchKernel(function("add"), 1, 1, 1, 1, 1, 1, 0, theirs, parameters, nullptr),
          CUDA_ERROR_INVALID_HANDLE);
    std::thread([&] {
        CUdeviceptr pointer = 0;
        EQUAL(cuMemAlloc(&pointer, 4), CUDA_ERROR_INVALID_CONTEXT);
        EQUAL(cuStreamSynchronize(nullptr), CUDA_ERROR_INVALID_CONTEXT);
    }).join();
    OK(cuCtxPushCurrent(mine));
    OK(cuCtxDestroy(mine));
    OK(cuCtxGetCurrent(&current));
    CHECK(current == context);
    EQUAL(cuStreamSynchronize(theirs), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    EQUAL(cuEventSynchronize(event), CUDA_ERROR_INVALID_HANDLE);
    EQUAL(cuCtxSetCurrent(mine), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    OK(cuStreamDestroy(stream));
}

TEST(launches_are_checked) {
    Add argument{0, 0, 0};
    void *parameters[] = {&argument};
    const CUfunction add = function("add");
    const auto with = [&](unsigned grid, unsigned block) {
        return cuLaunchKernel(add, grid, 1, 1, block, 1, 1, 0, nullptr, parameters, nullptr);
    };
    EQUAL(with(0, 1), CUDA_ERROR_INVALID_VALUE);
    EQUAL(with(1, 0), CUDA_ERROR_INVALID_VALUE);
    EQUAL(with(1, 1025), CUDA_ERROR_INVALID_VALUE);
    EQUAL(cuLaunchKernel(add, 1, 1, 1, 512, 4, 1, 0, nullptr, parameters, nullptr), CUDA_ERROR_INVALID_VALUE);
    EQUAL(cuLaunchKernel(add, 1, 1, 1, 1, 1, 1, 0, nullptr, nullptr, nullptr), CUDA_ERROR_INVALID_VALUE);
    EQUAL(cuLaunchKernel(nullptr, 1, 1, 1, 1, 1, 1, 0, nullptr, parameters, nullptr), CUDA_ERROR_INVALID_HANDLE);
    std::size_t size = sizeof argument;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &argument, CU_LAUNCH_PARAM_BUFFER_SIZE, &size,
                     CU_LAUNCH_PARAM_END};
    OK(cuLaunchKernel(add, 1, 1, 1, 1024, 1, 1, 0, nullptr, nullptr, extra));
    OK(cuCtxSynchronize());
    CUfunction none = nullptr;
    CUmodule nothing = nullptr;
    EQUAL(cuModuleGetFunction(&none, module, "subtract"), CUDA_ERROR_NOT_FOUND);
    EQUAL(cuModuleLoadData(&nothing, nullptr), CUDA_ERROR_INVALID_VALUE);
    int threads = 0, blocks = 0;
    OK(cuFuncGetAttribute(&threads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, add));
    EQUAL(threads, 1024);
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, add, 256, 0));
    EQUAL(blocks, 8);
}

TEST(a_broken_context_refuses_everything) {
    const CUdeviceptr out = allocate(1);
    OK(cuMemsetD32(out, 5, 1));
    OK(cuCtxSynchronize());
    launch("add", 1, 1, Add{out, 1, 1});
    OK(mofo_emulated_fail(CUDA_ERROR_ILLEGAL_ADDRESS));
    CUdeviceptr pointer = 0;
    CUstream stream = nullptr;
    EQUAL(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
    EQUAL(cuStreamSynchronize(nullptr), CUDA_ERROR_ILLEGAL_ADDRESS);
    EQUAL(cuMemAlloc(&pointer, 4), CUDA_ERROR_ILLEGAL_ADDRESS);
    EQUAL(cuMemFree(out), CUDA_ERROR_ILLEGAL_ADDRESS);
    EQUAL(cuStreamCreate(&stream, 0), CUDA_ERROR_ILLEGAL_ADDRESS);
    OK(mofo_emulated_recover());
    // What had not run is lost.
    EQUAL(word(out), 5);
    OK(cuMemFree(out));
}

TEST(errors_have_names) {
    const char *text = nullptr;
    OK(cuGetErrorName(CUDA_ERROR_OUT_OF_MEMORY, &text));
    CHECK(std::strcmp(text, "CUDA_ERROR_OUT_OF_MEMORY") == 0);
    OK(cuGetErrorString(CUDA_ERROR_OUT_OF_MEMORY, &text));
    CHECK(std::strcmp(text, "out of memory") == 0);
    EQUAL(cuGetErrorName(12345, &text), CUDA_ERROR_INVALID_VALUE);
    CHECK(text == nullptr);
}

TEST(devices) {
    int count = 0, value = -1;
    CUdevice device = -1;
    OK(cuDeviceGetCount(&count));
    EQUAL(count, 2);
    EQUAL(cuDeviceGet(&device, 2), CUDA_ERROR_INVALID_DEVICE);
    OK(cuDeviceGet(&device, 1));
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device));
    EQUAL(value, 9);
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, device));
    EQUAL(value, 0);
    unsigned flags = 0;
    int active = -1;
    OK(cuDevicePrimaryCtxGetState(1, &flags, &active));
    EQUAL(active, 0);
    EQUAL(cuDevicePrimaryCtxRelease(1), CUDA_ERROR_INVALID_CONTEXT);
}

TEST(garbage_is_no_handle) {
    const auto garbage = [](auto &handle) {
        handle = reinterpret_cast<std::decay_t<decltype(handle)>>(0x1234560);
    };
    CUstream stream;
    CUevent event;
    CUgraphExec exec;
    CUcontext other;
    CUmodule image;
    garbage(stream), garbage(event), garbage(exec), garbage(other), garbage(image);
    EQUAL(cuStreamSynchronize(stream), CUDA_ERROR_INVALID_HANDLE);
    EQUAL(cuStreamDestroy(stream), CUDA_ERROR_INVALID_HANDLE);
    EQUAL(cuEventRecord(event, nullptr), CUDA_ERROR_INVALID_HANDLE);
    EQUAL(cuStreamWaitEvent(nullptr, event, 0), CUDA_ERROR_INVALID_HANDLE);
    EQUAL(cuGraphLaunch(exec, nullptr), CUDA_ERROR_INVALID_VALUE);
    EQUAL(cuCtxSetCurrent(other), CUDA_ERROR_INVALID_CONTEXT);
    EQUAL(cuModuleUnload(image), CUDA_ERROR_INVALID_HANDLE);
}

TEST(a_child_has_no_driver) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        int n = 0;
        const bool refused = cuDeviceGetCount(&n) == CUDA_ERROR_NOT_INITIALIZED &&
                             cuInit(0) == CUDA_ERROR_NOT_INITIALIZED;
        _exit(refused ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EQUAL(status, 0);
}
