/* A CUDA device for test programs in C and C++: its context, its memory, and checks of both. The programs run on the
 * emulated driver of tests/cuda/driver and on a real one. */

#ifndef CUDA_DEVICE_H
#define CUDA_DEVICE_H

#include "../cuda/driver/hooks.h"
#include "check.h"
#include "cuda_driver.h"

#define CHECK_CUDA(call, expected) check_cuda((call), (expected), #call, __FILE__, __LINE__)
#define REQUIRE_CUDA(call)                                                                                   \
    do {                                                                                                     \
        if (!CHECK_CUDA(call, CUDA_SUCCESS)) {                                                               \
            exit(check_finish());                                                                            \
        }                                                                                                    \
    } while (0)
/* Device memory has these bytes. */
#define CHECK_DEVICE(device, expected, size) check_device((device), (expected), (size), #device, __FILE__, __LINE__)

static inline const char *cuda_name(CUresult code) {
    const char *name = NULL;
    return cuGetErrorName(code, &name) == CUDA_SUCCESS && name != NULL ? name : "unknown";
}

static inline int check_cuda(CUresult got, CUresult expected, const char *call, const char *file, int line) {
    check_count++;
    if (got != expected) {
        check_failures++;
        check_say(file, line);
        printf("%s\n    gave %d (%s), not %d (%s)\n", call, got, cuda_name(got), expected, cuda_name(expected));
    }
    return got == expected;
}

static inline int cuda_is_emulated(void) { return mofo_emulated_launches != NULL; }

static CUcontext cuda_context;

/* Makes the primary context of device 0 current; ends the program, out loud, if there is no device. */
static inline void cuda_begin(void) {
    CUdevice device;
    if (!mofo_cuda_available()) {
        const char *required = getenv("MOFO_REQUIRE_CUDA");
        mofo_options options;
        mofo_optimizer *optimizer;
        REQUIRE_OK(mofo_options_init(&options, sizeof options));
        options.device = MOFO_DEVICE_CUDA;
        CHECK_STATUS(mofo_create(&options, &optimizer), MOFO_ERROR_UNSUPPORTED);
        CHECK(!cuda_is_emulated());
        CHECK(required == NULL || strcmp(required, "1") != 0);
        SKIP("no CUDA device: %s", mofo_last_error());
        exit(check_finish());
    }
    REQUIRE_CUDA(cuInit(0));
    REQUIRE_CUDA(cuDeviceGet(&device, 0));
    REQUIRE_CUDA(cuDevicePrimaryCtxRetain(&cuda_context, device));
    REQUIRE_CUDA(cuCtxSetCurrent(cuda_context));
    if (cuda_is_emulated()) {
        CHECK_U64(mofo_emulated_allocations(), 0);
    }
}

/* The program's exit status. */
static inline int cuda_finish(void) {
    CASE("%s", "the end");
    if (cuda_is_emulated()) {
        CHECK_U64(mofo_emulated_allocations(), 0);
    }
    REQUIRE_CUDA(cuDevicePrimaryCtxRelease(0));
    return check_finish();
}

static inline CUdeviceptr device_address(const void *device) { return (CUdeviceptr)(uintptr_t)device; }

/* Device memory, of bytes that are not zero. */
static inline void *device_new(size_t bytes) {
    CUdeviceptr address;
    REQUIRE_CUDA(cuMemAlloc(&address, bytes ? bytes : 1));
    REQUIRE_CUDA(cuMemsetD8(address, 0xA5, bytes ? bytes : 1));
    REQUIRE_CUDA(cuCtxSynchronize());
    return (void *)(uintptr_t)address;
}

static inline void device_free(const void *device) {
    if (device != NULL) {
        REQUIRE_CUDA(cuMemFree(device_address(device)));
    }
}

/* Waits for everything, then writes. */
static inline void device_write(const void *device, const void *from, size_t bytes) {
    REQUIRE_CUDA(cuCtxSynchronize());
    REQUIRE_CUDA(cuMemcpyHtoD(device_address(device), from, bytes));
    REQUIRE_CUDA(cuCtxSynchronize());
}

static inline void *device_copy(const void *from, size_t bytes) {
    void *device = device_new(bytes);
    device_write(device, from, bytes);
    return device;
}

/* Waits for everything, then reads. */
static inline void device_read(void *to, const void *device, size_t bytes) {
    REQUIRE_CUDA(cuCtxSynchronize());
    REQUIRE_CUDA(cuMemcpyDtoH(to, device_address(device), bytes));
}

static inline int check_device(const void *device, const void *expected, size_t bytes, const char *what,
                               const char *file, int line) {
    void *copy = malloc(bytes ? bytes : 1);
    int same;
    REQUIRE(copy != NULL);
    device_read(copy, device, bytes);
    same = check_bytes(copy, expected, bytes, what, file, line);
    free(copy);
    return same;
}

#endif
