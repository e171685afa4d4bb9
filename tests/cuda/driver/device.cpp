// What devices are like.

#include "driver.hpp"

#include <cstdio>
#include <cstring>

#include "block.hpp"

namespace emulation {

Device *find_device(CUdevice device) {
    Driver &self = driver();
    return device < 0 || static_cast<std::size_t>(device) >= self.devices.size()
               ? nullptr
               : &self.devices[static_cast<std::size_t>(device)];
}

} // namespace emulation

using namespace emulation;

CUresult cuDeviceGetCount(int *count) {
    MOFO_CALL(0)
    if (count == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *count = static_cast<int>(driver().devices.size());
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    MOFO_CALL(0)
    if (device == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (find_device(ordinal) == nullptr) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    MOFO_CALL(0)
    if (name == nullptr || length <= 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (find_device(device) == nullptr) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    std::snprintf(name, static_cast<std::size_t>(length), "Emulated CUDA device");
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    MOFO_CALL(0)
    if (value == nullptr || attribute <= 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (find_device(device) == nullptr) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    // By the numbers of the documentation.
    static constexpr std::pair<int, int> VALUES[] = {
        {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, MAX_THREADS},
        {2 /* MAX_BLOCK_DIM_X */, 1024},
        {3 /* MAX_BLOCK_DIM_Y */, 1024},
        {4 /* MAX_BLOCK_DIM_Z */, 64},
        {5 /* MAX_GRID_DIM_X */, 0x7FFFFFFF},
        {6 /* MAX_GRID_DIM_Y */, 65535},
        {7 /* MAX_GRID_DIM_Z */, 65535},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 << 10},
        {9 /* TOTAL_CONSTANT_MEMORY */, 64 << 10},
        {CU_DEVICE_ATTRIBUTE_WARP_SIZE, WARP},
        {12 /* MAX_REGISTERS_PER_BLOCK */, 65536},
        {13 /* CLOCK_RATE */, 1000000},
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 4},
        {19 /* CAN_MAP_HOST_MEMORY */, 1},
        {31 /* CONCURRENT_KERNELS */, 1},
        {36 /* MEMORY_CLOCK_RATE */, 1000000},
        {37 /* GLOBAL_MEMORY_BUS_WIDTH */, 64},
        {38 /* L2_CACHE_SIZE */, 1 << 20},
        {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048},
        {40 /* ASYNC_ENGINE_COUNT */, 1},
        {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0},
        {78 /* STREAM_PRIORITIES_SUPPORTED */, 1},
        {81 /* MAX_SHARED_MEMORY_PER_MULTIPROCESSOR */, 228 << 10},
        {82 /* MAX_REGISTERS_PER_MULTIPROCESSOR */, 65536},
        {CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 1},
        {89 /* CONCURRENT_MANAGED_ACCESS */, 1},
        {97 /* MAX_SHARED_MEMORY_PER_BLOCK_OPTIN */, 227 << 10},
        {106 /* MAX_BLOCKS_PER_MULTIPROCESSOR */, 32},
    };
    *value = 0;
    for (const auto &entry : VALUES) {
        if (entry.first == attribute) {
            *value = entry.second;
        }
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    MOFO_CALL(0)
    if (bytes == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (find_device(device) == nullptr) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *bytes = find_device(device)->total;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    MOFO_CALL(0)
    if (uuid == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (find_device(device) == nullptr) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *uuid = CUuuid{};
    std::memcpy(uuid->bytes, "emulated", 8);
    uuid->bytes[15] = static_cast<char>(device);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }
