// Contexts, and which one is current.

#include "driver.hpp"

namespace emulation {
namespace {

// The contexts that a thread has pushed. Plain data: destructors of other thread-local objects may still call.
constexpr int STACK = 64;
thread_local Context *stack[STACK];
thread_local int depth;

Context *create(Device &device, bool primary) {
    auto owned = std::make_unique<Context>();
    Context *context = owned.get();
    context->device = &device;
    context->primary = primary;
    context->handle = driver().contexts.add(std::move(owned));
    return context;
}

void activate(Context &context) {
    context.alive = true;
    context.broken = CUDA_SUCCESS;
    context.legacy = std::make_shared<Stream>();
    context.legacy->context = &context;
    context.legacy->legacy = true;
    context.legacy->blocking = true;
    context.legacy->priority = 0;
}

// Ends what a context has; its handle stays known.
void destroy(Context &context) {
    Driver &self = driver();
    abandon_captures(context);
    if (context.broken == CUDA_SUCCESS) {
        finish(context);
    } else {
        drop_work(context);
    }
    const auto owned = [&](const auto &object) { return object.context == &context; };
    self.events.remove_if(owned);
    self.functions.remove_if(owned);
    self.modules.remove_if(owned);
    free_memory(context);
    for (const auto &stream : context.streams) {
        stream->destroyed = true;
    }
    context.streams.clear();
    context.per_thread.clear();
    context.legacy.reset();
    context.alive = false;
}

CUresult find_context(CUcontext handle, Context *&context) {
    const auto *found = driver().contexts.find(handle);
    if (found == nullptr) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    context = found->get();
    return context->alive ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

} // namespace

Context *current_context() { return depth == 0 ? nullptr : stack[depth - 1]; }

} // namespace emulation

using namespace emulation;

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice ordinal) {
    MOFO_CALL(0)
    if (context == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    Device *device = find_device(ordinal);
    if (device == nullptr) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (device->primary == nullptr) {
        device->primary = create(*device, true);
        device->primary->alive = false;
    }
    if (!device->primary->alive) {
        activate(*device->primary);
    }
    device->retained++;
    *context = device->primary->handle;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
    MOFO_CALL(0)
    Device *device = find_device(ordinal);
    if (device == nullptr) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (device->retained == 0) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    device->retained--;
    if (device->retained == 0 && device->primary->alive) {
        destroy(*device->primary);
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice ordinal) {
    MOFO_CALL(0)
    Device *device = find_device(ordinal);
    if (device == nullptr) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (device->primary != nullptr && device->primary->alive) {
        destroy(*device->primary);
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned *flags, int *active) {
    MOFO_CALL(0)
    const Device *device = find_device(ordinal);
    if (device == nullptr) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (flags == nullptr || active == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *flags = 0;
    *active = device->primary != nullptr && device->primary->alive;
    return CUDA_SUCCESS;
}

CUresult cuCtxCreate_v2(CUcontext *context, unsigned, CUdevice ordinal) {
    MOFO_CALL(0)
    Device *device = find_device(ordinal);
    if (context == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (device == nullptr) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    if (depth == STACK) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    Context *created = create(*device, false);
    activate(*created);
    stack[depth++] = created;
    *context = created->handle;
    return CUDA_SUCCESS;
}

CUresult cuCtxDestroy_v2(CUcontext handle) {
    MOFO_CALL(0)
    Context *context = nullptr;
    if (const CUresult error = find_context(handle, context)) {
        return error;
    }
    if (context->primary) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    destroy(*context);
    if (current_context() == context) {
        depth--;
    }
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext handle) {
    MOFO_CALL(0)
    Context *context = nullptr;
    if (const CUresult error = find_context(handle, context)) {
        return error;
    }
    if (depth == STACK) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    stack[depth++] = context;
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    MOFO_CALL(0)
    if (depth == 0) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    depth--;
    if (context != nullptr) {
        *context = stack[depth]->handle;
    }
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    MOFO_CALL(0)
    if (context == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *context = current_context() == nullptr ? nullptr : current_context()->handle;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext handle) {
    MOFO_CALL(0)
    if (handle == nullptr) {
        depth -= depth != 0;
        return CUDA_SUCCESS;
    }
    Context *context = nullptr;
    if (const CUresult error = find_context(handle, context)) {
        return error;
    }
    if (depth == 0) {
        depth = 1;
    }
    stack[depth - 1] = context;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    MOFO_CALL(0)
    if (device == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (current_context() == nullptr) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (!current_context()->alive) {
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    *device = current_context()->device->ordinal;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetApiVersion(CUcontext handle, unsigned *version) {
    MOFO_CALL(0)
    Context *context = current_context();
    if (handle != nullptr) {
        if (const CUresult error = find_context(handle, context)) {
            return error;
        }
    }
    if (version == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (context == nullptr) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    *version = 3020;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    MOFO_CALL(NEEDS_CONTEXT)
    if (least != nullptr) {
        *least = 0;
    }
    if (greatest != nullptr) {
        *greatest = -5;
    }
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE)
    if (is_captured(*call.context)) {
        invalidate(*call.context);
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    finish(*call.context);
    return call.context->broken;
}
