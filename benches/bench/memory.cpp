// SPDX-License-Identifier: MIT OR Apache-2.0

#include "memory.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <new>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

#if !defined(MAP_ANONYMOUS) && defined(MAP_ANON)
#define MAP_ANONYMOUS MAP_ANON
#endif

namespace bench {
namespace {

constexpr std::size_t cache_line = 64;
constexpr std::size_t huge_page = std::size_t{2} << 20;
constexpr std::size_t stagger_period = std::size_t{64} << 10;
// An odd number of cache lines, so that 1,024 buffers in a row start at different places of the period; near the
// golden ratio of the period and of a page, so that those that follow each other lie far apart in both.
constexpr std::size_t stagger_step = 633 * cache_line;

std::size_t next_offset() {
    static std::atomic<std::size_t> buffers{0};
    return buffers.fetch_add(1) * stagger_step % stagger_period;
}

#if defined(MAP_ANONYMOUS)

void *allocate(std::size_t bytes) {
    void *const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        throw std::bad_alloc();
    }
#if defined(MADV_HUGEPAGE)
    if (bytes >= 2 * huge_page) {
        // Only advice: without it, the pages are small ones.
        (void)madvise(memory, bytes, MADV_HUGEPAGE);
    }
#endif
    return memory;
}

void release(void *memory, std::size_t bytes) noexcept { (void)munmap(memory, bytes); }

#else

void *allocate(std::size_t bytes) {
    void *const memory = std::calloc(bytes, 1);
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
    return memory;
}

void release(void *memory, std::size_t) noexcept { std::free(memory); }

#endif

/** The number that follows `name` in a file of lines such as "MemAvailable: 123 kB". */
std::optional<std::uint64_t> read_field(const char *path, const std::string &name) {
    std::ifstream file(path);
    for (std::string word; file >> word;) {
        std::uint64_t value = 0;
        if (word == name && file >> value) {
            return value;
        }
    }
    return std::nullopt;
}

std::optional<std::uint64_t> read_number(const char *path) {
    std::ifstream file(path);
    std::uint64_t value = 0;
    if (file >> value) {
        return value;
    }
    return std::nullopt;
}

/** What the control group of the process leaves to it, where there is one with a limit. */
std::optional<std::uint64_t> available_in_control_group() {
    const auto limit = read_number("/sys/fs/cgroup/memory.max");
    const auto used = read_number("/sys/fs/cgroup/memory.current");
    if (!limit || !used) {
        return std::nullopt;
    }
    // The cache of files counts as used, but gives way.
    const std::uint64_t cache = read_field("/sys/fs/cgroup/memory.stat", "file").value_or(0);
    const std::uint64_t held = *used - std::min(*used, cache);
    return *limit - std::min(*limit, held);
}

}  // namespace

Buffer::Buffer(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) {
        return;
    }
    const std::size_t alignment = bytes >= huge_page ? huge_page : stagger_period;
    allocated_ = bytes + alignment + stagger_period;
    allocation_ = allocate(allocated_);
    const auto start = reinterpret_cast<std::uintptr_t>(allocation_);
    const std::size_t to_boundary = (alignment - start % alignment) % alignment;
    data_ = static_cast<char *>(allocation_) + to_boundary + next_offset();
}

Buffer::~Buffer() {
    if (allocation_ != nullptr) {
        release(allocation_, allocated_);
    }
}

std::optional<std::uint64_t> available_memory() {
    auto available = read_field("/proc/meminfo", "MemAvailable:");
    if (available) {
        *available *= 1024;
    }
    const auto in_group = available_in_control_group();
    if (available && in_group) {
        return std::min(*available, *in_group);
    }
    return available ? available : in_group;
}

}  // namespace bench
