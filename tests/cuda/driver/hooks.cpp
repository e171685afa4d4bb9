// The hooks for tests.

#include "driver.hpp"

#include <algorithm>

#include "block.hpp"

using namespace emulation;

int mofo_emulated_fail(int code) {
    const std::lock_guard<std::mutex> lock(driver().lock);
    Context *context = current_context();
    if (context == nullptr || !context->alive) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    drop_work(*context);
    context->broken = code;
    return CUDA_SUCCESS;
}

int mofo_emulated_recover(void) { return mofo_emulated_fail(CUDA_SUCCESS); }

unsigned long long mofo_emulated_launches(void) {
    const std::lock_guard<std::mutex> lock(driver().lock);
    return driver().launches;
}

unsigned long long mofo_emulated_allocations(void) {
    const std::lock_guard<std::mutex> lock(driver().lock);
    const auto &memory = driver().memory;
    return static_cast<unsigned long long>(std::count_if(
        memory.begin(), memory.end(), [](const auto &entry) { return entry.second.kind == Memory::device; }));
}

int mofo_emulated_forbid(int threads) {
    const std::lock_guard<std::mutex> lock(driver().lock);
    const int before = driver().forbids ? 2 : thread_forbids ? 1 : 0;
    thread_forbids = threads == 1;
    driver().forbids = threads == 2;
    return before;
}

void mofo_emulated_memory(unsigned long long bytes) {
    const std::lock_guard<std::mutex> lock(driver().lock);
    for (Device &device : driver().devices) {
        device.total = bytes;
    }
}

void mofo_emulated_reverse(int reverse) {
    const std::lock_guard<std::mutex> lock(driver().lock);
    driver().reversed = reverse != 0;
    reverse_order(reverse != 0);
}

unsigned long long mofo_emulated_random(unsigned long long seed) {
    const std::lock_guard<std::mutex> lock(driver().lock);
    return randomize_order(seed);
}
