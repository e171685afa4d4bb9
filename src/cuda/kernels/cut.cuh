// How the work of a step is cut: a tensor into chunks of the norm, tiles, runs and gathers.
#pragma once

#include "team.cuh"

__device__ __forceinline__ u64 chunks_of(u64 numel) { return (numel + CHUNK - 1) / CHUNK; }

// Pieces of a range, wherever it starts. The first and the last may be cut short, or empty.
__device__ __forceinline__ u64 pieces_of(u64 entries, u64 piece) { return (entries + GROUP - 1 + piece - 1) / piece; }

__device__ __forceinline__ u64 strips_of(const Tensor &tensor, const Work &work) {
    return work.mode == EVERYTHING ? pieces_of(tensor.numel, STRIP)
                                   : tensor.numel / tensor.block_numel * pieces_of(tensor.block_numel, STRIP);
}

__device__ __forceinline__ u64 blocks_of_run(u64 block_numel) { return block_numel < RUN ? RUN / block_numel : 1; }

__device__ __forceinline__ u64 runs_of(const Tensor &tensor) {
    u64 blocks = tensor.numel / tensor.block_numel, each = blocks_of_run(tensor.block_numel);
    return (blocks + each - 1) / each;
}

__device__ __forceinline__ u64 gathers_of(const Block &block) { return (block.lines + GATHER - 1) / GATHER; }

// Entries of a tensor.
struct Range {
    u64 start, end;
};

// The `number`-th piece of the entries from `from` on. Pieces are cut where groups begin, so that none is shared.
__device__ __forceinline__ Range cut(u64 from, u64 entries, u64 piece, u64 number) {
    u64 base = from / GROUP * GROUP + number * piece;
    Range range;
    range.start = max(base, from);
    range.end = min(base + piece, from + entries);
    return range;
}

// The strip of the entries from `from` on that a group belongs to.
__device__ __forceinline__ u64 strip_of(u64 from, u64 entry) { return (entry - from / GROUP * GROUP) / STRIP; }
