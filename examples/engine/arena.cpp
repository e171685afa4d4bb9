// SPDX-License-Identifier: MIT OR Apache-2.0

#include "arena.hpp"

#include <cstdint>
#include <utility>

namespace engine {

std::size_t Layout::add(std::string name, Kind kind, std::size_t num_blocks, std::size_t block_numel) {
    constexpr std::size_t line = 16;  // floats of a cache line
    const std::size_t offset = (size_ + line - 1) / line * line;
    tensors_.push_back({std::move(name), offset, num_blocks * block_numel, num_blocks, kind});
    size_ = offset + num_blocks * block_numel;
    return offset;
}

std::size_t Layout::parameters() const {
    std::size_t sum = 0;
    for (const TensorSpec &tensor : tensors_) {
        sum += tensor.numel;
    }
    return sum;
}

Arena::Arena(std::size_t bytes, std::size_t place)
    : memory_(new std::byte[bytes + page + place * stagger]()), begin_(memory_.get()), size_(bytes) {
    const std::size_t into_page = reinterpret_cast<std::uintptr_t>(begin_) % page;
    begin_ += page - into_page + place * stagger;
}

}  // namespace engine
