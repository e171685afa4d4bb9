// The driver as a whole, and the frame of every call.

#include "driver.hpp"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>

#include "block.hpp"

namespace emulation {

thread_local bool in_host_function;
thread_local bool thread_forbids;

namespace {

// A child of fork() has none of its parent's device: as with the real driver, no call works in it.
std::atomic<bool> forked{false};

unsigned long long number_from(const char *variable, unsigned long long otherwise) {
    const char *text = std::getenv(variable);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

CUresult initialize() {
    Driver &self = driver();
    if (self.initialized) {
        return CUDA_SUCCESS;
    }
    const auto count = number_from("MOFO_EMULATED_DEVICES", 2);
    if (count == 0) {
        return CUDA_ERROR_NO_DEVICE;
    }
    const auto bytes = number_from("MOFO_EMULATED_MEMORY", 4ull << 30);
    for (unsigned i = 0; i < count; i++) {
        Device device;
        device.ordinal = static_cast<int>(i);
        device.total = bytes;
        self.devices.push_back(device);
    }
    const char *order = std::getenv("MOFO_EMULATED_ORDER");
    self.reversed = order != nullptr && std::strcmp(order, "reverse") == 0;
    reverse_order(self.reversed);
    static constexpr char RANDOM[] = "random:";
    if (order != nullptr && std::strncmp(order, RANDOM, sizeof RANDOM - 1) == 0) {
        randomize_order(std::strtoull(order + sizeof RANDOM - 1, nullptr, 10));
    }
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
    self.initialized = true;
    return CUDA_SUCCESS;
}

} // namespace

// Never destroyed: threads may still call while the process ends.
Driver &driver() {
    static Driver *const self = new Driver;
    return *self;
}

void check_forbidden(const char *name) {
    if (driver().forbids || thread_forbids) {
        std::fprintf(stderr, "emulated CUDA: %s is called, where mofo_emulated_forbid forbids it\n", name);
        std::abort();
    }
}

Call::Call(const char *name, unsigned traits) {
    if (forked) {
        error = CUDA_ERROR_NOT_INITIALIZED;
        return;
    }
    if (in_host_function) {
        error = CUDA_ERROR_NOT_PERMITTED;
        return;
    }
    Driver &self = driver();
    lock_ = std::unique_lock<std::mutex>(self.lock);
    if (!self.initialized) {
        error = CUDA_ERROR_NOT_INITIALIZED;
        return;
    }
    if (traits & FORBIDDABLE) {
        check_forbidden(name);
    }
    if (traits & NEEDS_CONTEXT) {
        context = current_context();
        if (context == nullptr) {
            error = CUDA_ERROR_INVALID_CONTEXT;
        } else if (!context->alive) {
            error = CUDA_ERROR_CONTEXT_IS_DESTROYED;
        } else {
            error = context->broken;
        }
    }
    if (error == CUDA_SUCCESS && (traits & UNSAFE)) {
        error = check_unsafe();
    }
}

CUresult Call::find(CUstream handle, std::shared_ptr<Stream> &stream) const {
    if (handle == nullptr || handle == CU_STREAM_LEGACY) {
        stream = context->legacy;
    } else if (handle == CU_STREAM_PER_THREAD) {
        auto &own = context->per_thread[std::this_thread::get_id()];
        if (own == nullptr) {
            own = std::make_shared<Stream>();
            own->context = context;
            own->legacy = false;
            own->blocking = true;
            own->priority = 0;
            context->streams.push_back(own);
        }
        stream = own;
    } else {
        const auto *found = driver().streams.find(handle);
        if (found == nullptr) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
        stream = *found;
    }
    return stream->context->alive ? stream->context->broken : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult Call::find(CUevent handle, Event *&event) const {
    event = driver().events.find(handle);
    return event == nullptr ? CUDA_ERROR_INVALID_HANDLE : event->context->broken;
}

} // namespace emulation

using namespace emulation;

CUresult cuInit(unsigned flags) {
    if (in_host_function) {
        return CUDA_ERROR_NOT_PERMITTED;
    }
    if (forked) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    const std::lock_guard<std::mutex> lock(driver().lock);
    return flags != 0 ? CUDA_ERROR_INVALID_VALUE : initialize();
}

CUresult cuDriverGetVersion(int *version) {
    if (version == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *version = 12040;
    return CUDA_SUCCESS;
}
