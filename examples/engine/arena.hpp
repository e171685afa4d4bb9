// Where every tensor lies: one layout, and memory for as many copies of it as there are kinds of number.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace engine {

// What the optimizer must know besides the size: matrices are filtered and decay, biases and norm weights do neither.
enum class Kind { matrix, bias_or_norm };

struct TensorSpec {
    std::string name;
    std::size_t offset;      // of its first entry, in entries
    std::size_t numel;       // of all blocks
    std::size_t num_blocks;  // equal, contiguous: the same matrix of every layer
    Kind kind;
};

// Offsets count entries, so that the same layout serves parameters, gradients and 16-bit copies.
class Layout {
  public:
    // Returns the tensor's offset.
    std::size_t add(std::string name, Kind kind, std::size_t num_blocks, std::size_t block_numel);

    const std::vector<TensorSpec> &tensors() const { return tensors_; }

    // Entries of an arena, with the gaps that keep every tensor on a cache line of its own.
    std::size_t size() const { return size_; }

    // Entries of all tensors, without the gaps.
    std::size_t parameters() const;

  private:
    std::vector<TensorSpec> tensors_;
    std::size_t size_ = 0;
};

// Zeroed bytes, freed together.
class Arena {
  public:
    static constexpr std::size_t page = 4096;
    // Parameters, gradients and both moments are read side by side. If all began at the same place of a page, they
    // would fight for the same lines of the cache; so each begins this much further.
    static constexpr std::size_t stagger = 1344;

    // Begins `place` times `stagger` behind a page's start.
    Arena(std::size_t bytes, std::size_t place);

    std::byte *bytes() const { return begin_; }
    float *floats() const { return reinterpret_cast<float *>(begin_); }
    std::size_t size() const { return size_; }

  private:
    std::unique_ptr<std::byte[]> memory_;
    std::byte *begin_;
    std::size_t size_;
};

}  // namespace engine
