// Modules, functions and launches. Whatever the image, a module has the kernels of this library.

#include "driver.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "block.hpp"

namespace emulation {
namespace {

constexpr int STATIC_SHARED_LIMIT = 48 << 10;
constexpr int DYNAMIC_SHARED_LIMIT = 227 << 10;

std::shared_ptr<void> copy_parameter(const Kernel &kernel, const void *parameter) {
    const auto alignment = static_cast<std::align_val_t>(kernel.alignment);
    std::shared_ptr<void> copy(::operator new(kernel.size, alignment),
                               [alignment](void *memory) { ::operator delete(memory, alignment); });
    std::memcpy(copy.get(), parameter, kernel.size);
    return copy;
}

// The kernel's one parameter, by either of the two ways to pass it; null if it was not passed.
const void *find_parameter(const Kernel &kernel, void **parameters, void **extra) {
    if ((parameters == nullptr) == (extra == nullptr)) {
        return nullptr;
    }
    if (parameters != nullptr) {
        return parameters[0];
    }
    const void *buffer = nullptr;
    std::size_t size = 0;
    for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
        if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) {
            buffer = extra[1];
        } else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) {
            size = *static_cast<const std::size_t *>(extra[1]);
        } else {
            return nullptr;
        }
    }
    return size >= kernel.size ? buffer : nullptr;
}

bool is_launchable(dim3 grid, dim3 block, unsigned shared_bytes, const Function &function) {
    const auto within = [](unsigned value, unsigned limit) { return value >= 1 && value <= limit; };
    return within(grid.x, 0x7FFFFFFF) && within(grid.y, 65535) && within(grid.z, 65535) &&
           within(block.x, MAX_THREADS) && within(block.y, MAX_THREADS) && within(block.z, 64) &&
           std::uint64_t{block.x} * block.y * block.z <= MAX_THREADS &&
           shared_bytes <= static_cast<unsigned>(std::max(STATIC_SHARED_LIMIT, function.dynamic_shared));
}

CUresult load(const Call &call, CUmodule *module, const void *image) {
    if (module == nullptr || image == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *module = driver().modules.add(Module{call.context});
    return CUDA_SUCCESS;
}

} // namespace
} // namespace emulation

using namespace emulation;

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    MOFO_CALL(NEEDS_CONTEXT)
    return load(call, module, image);
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned num_options, int *options,
                            void **values) {
    MOFO_CALL(NEEDS_CONTEXT)
    if (num_options != 0 && (options == nullptr || values == nullptr)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return load(call, module, image);
}

CUresult cuModuleUnload(CUmodule module) {
    MOFO_CALL(NEEDS_CONTEXT)
    const Module *found = driver().modules.find(module);
    if (found == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    finish(*found->context);
    driver().functions.remove_if([=](const Function &function) { return function.module == module; });
    driver().modules.remove(module);
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    MOFO_CALL(NEEDS_CONTEXT)
    const Module *found = driver().modules.find(module);
    if (function == nullptr || name == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (found == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const Kernel *kernel = find_kernel(name);
    if (kernel == nullptr) {
        return CUDA_ERROR_NOT_FOUND;
    }
    *function = driver().functions.add(Function{module, found->context, kernel});
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction handle) {
    MOFO_CALL(NEEDS_CONTEXT)
    const Function *function = driver().functions.find(handle);
    if (value == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (function == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = MAX_THREADS;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        *value = 32;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
        *value = 90;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *value = std::max(STATIC_SHARED_LIMIT, function->dynamic_shared);
        return CUDA_SUCCESS;
    default:
        *value = 0;
        return attribute < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    }
}

CUresult cuFuncSetAttribute(CUfunction handle, int attribute, int value) {
    MOFO_CALL(NEEDS_CONTEXT)
    Function *function = driver().functions.find(handle);
    if (function == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if (value < 0 || value > DYNAMIC_SHARED_LIMIT) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        function->dynamic_shared = value;
    }
    return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction handle, int) {
    MOFO_CALL(NEEDS_CONTEXT)
    return driver().functions.find(handle) == nullptr ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream_handle,
                        void **parameters, void **extra) {
    MOFO_CALL(NEEDS_CONTEXT)
    const Function *function = driver().functions.find(handle);
    if (function == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(stream_handle, stream)) {
        return error;
    }
    if (stream->context != function->context) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const dim3 grid(grid_x, grid_y, grid_z);
    const dim3 block(block_x, block_y, block_z);
    const Kernel &kernel = *function->kernel;
    const void *parameter = find_parameter(kernel, parameters, extra);
    if (parameter == nullptr || !is_launchable(grid, block, shared_bytes, *function)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return submit(*stream, {CU_GRAPH_NODE_TYPE_KERNEL, [=, &kernel, copy = copy_parameter(kernel, parameter)] {
                                driver().launches++;
                                run_grid(kernel.name, kernel.run, copy.get(), grid, block);
                            }});
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction handle, int block_size, size_t) {
    MOFO_CALL(NEEDS_CONTEXT)
    if (driver().functions.find(handle) == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (blocks == nullptr || block_size <= 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *blocks = block_size > static_cast<int>(MAX_THREADS) ? 0 : std::min(2048 / block_size, 32);
    return CUDA_SUCCESS;
}
