// Memory of the benchmark's own buffers.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_MEMORY_HPP
#define MOFO_BENCH_MEMORY_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

namespace bench {

/**
 * Zeroed memory, aligned to a cache line, on huge pages where the system gives them. Buffers start at different
 * places modulo 64 KiB, so that those that a step walks in lock-step do not compete for the same cache sets.
 */
class Buffer {
  public:
    Buffer() noexcept = default;
    explicit Buffer(std::size_t bytes);
    Buffer(Buffer &&other) noexcept
        : allocation_(std::exchange(other.allocation_, nullptr)), allocated_(std::exchange(other.allocated_, 0)),
          data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Buffer &operator=(Buffer &&other) noexcept {
        std::swap(allocation_, other.allocation_);
        std::swap(allocated_, other.allocated_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer();

    void *data() const noexcept { return data_; }
    std::size_t bytes() const noexcept { return bytes_; }

    template <class T> T *as() const noexcept { return static_cast<T *>(data_); }

  private:
    void *allocation_ = nullptr;
    std::size_t allocated_ = 0;
    void *data_ = nullptr;
    std::size_t bytes_ = 0;
};

/** Bytes that can still be allocated without swapping, where the system says so. */
std::optional<std::uint64_t> available_memory();

}  // namespace bench

#endif  // MOFO_BENCH_MEMORY_HPP
