// Memory, and what is known of pointers.

#include "selftest.hpp"

TEST(pointers) {
    const CUdeviceptr device = allocate(100);
    CUdeviceptr managed = 0;
    void *host = nullptr;
    OK(cuMemAllocManaged(&managed, 64, CU_MEM_ATTACH_GLOBAL));
    OK(cuMemHostAlloc(&host, 32, 0));
    unsigned type = 0, is_managed = 2;
    int ordinal = -1;
    CUcontext of = nullptr;
    CUdeviceptr start = 0;
    std::size_t size = 0;
    void *at = nullptr;
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, device + 399));
    EQUAL(type, CU_MEMORYTYPE_DEVICE);
    EQUAL(cuPointerGetAttribute(&at, CU_POINTER_ATTRIBUTE_HOST_POINTER, device), CUDA_ERROR_INVALID_VALUE);
    EQUAL(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, device + 400), CUDA_ERROR_INVALID_VALUE);
    int attributes[] = {CU_POINTER_ATTRIBUTE_CONTEXT,          CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                        CU_POINTER_ATTRIBUTE_IS_MANAGED,       CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                        CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, CU_POINTER_ATTRIBUTE_RANGE_SIZE,
                        CU_POINTER_ATTRIBUTE_HOST_POINTER};
    void *values[] = {&of, &type, &is_managed, &ordinal, &start, &size, &at};
    OK(cuPointerGetAttributes(7, attributes, values, managed + 5));
    CHECK(of == context);
    EQUAL(type, CU_MEMORYTYPE_DEVICE);
    EQUAL(is_managed, 1);
    EQUAL(ordinal, 0);
    EQUAL(start, managed);
    EQUAL(size, 64);
    EQUAL(reinterpret_cast<std::uintptr_t>(at), managed + 5);
    OK(cuPointerGetAttributes(7, attributes, values, reinterpret_cast<std::uintptr_t>(host)));
    EQUAL(type, CU_MEMORYTYPE_HOST);
    EQUAL(is_managed, 0);
    OK(cuPointerGetAttributes(7, attributes, values, reinterpret_cast<std::uintptr_t>(&type)));
    CHECK(of == nullptr);
    EQUAL(type, 0);
    OK(cuMemHostGetDevicePointer(&start, host, 0));
    EQUAL(start, reinterpret_cast<std::uintptr_t>(host));
    OK(cuMemFree(device));
    OK(cuMemFree(managed));
    OK(cuMemFreeHost(host));
    EQUAL(cuMemFree(device), CUDA_ERROR_INVALID_VALUE);
}

TEST(memory_runs_out) {
    std::size_t free = 0, total = 0;
    OK(cuMemGetInfo(&free, &total));
    EQUAL(free, total);
    mofo_emulated_memory(1000);
    CUdeviceptr one = 0, two = 0;
    EQUAL(cuMemAlloc(&one, 1001), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc(&one, 600));
    EQUAL(cuMemAlloc(&two, 401), CUDA_ERROR_OUT_OF_MEMORY);
    EQUAL(two, 0);
    OK(cuMemGetInfo(&free, &total));
    EQUAL(free, 400);
    EQUAL(total, 1000);
    OK(cuMemFree(one));
    OK(cuMemAlloc(&one, 1000));
    OK(cuMemFree(one));
    EQUAL(cuMemAlloc(&one, 0), CUDA_ERROR_INVALID_VALUE);
    mofo_emulated_memory(4ull << 30);
}
