// The threads of a CUDA block, each a fiber: where they are, how they wait for each other, and what they exchange.
//
// One block runs at a time, and one of its threads: until it waits or ends, or in random order is interrupted. Whoever
// calls run_grid holds the driver's lock.

#ifndef MOFO_EMULATION_BLOCK_HPP
#define MOFO_EMULATION_BLOCK_HPP

#include <cstdint>

#include "vectors.hpp"

namespace emulation {

constexpr unsigned WARP = 32;
constexpr unsigned MAX_THREADS = 1024;

// What a thread can wait at.
enum class Wait : std::uint8_t {
    nothing,
    barrier,
    barrier_or,
    barrier_and,
    barrier_count,
    warp,
    ballot,
    any,
    all,
    shuffle,
    shuffle_up,
    shuffle_down,
    shuffle_xor,
    match_any,
};

// Where a kernel calls something, for messages.
struct Place {
    const char *file;
    int line;
};

extern const uint3 *thread_index;
extern uint3 block_index;
extern dim3 block_size;
extern dim3 grid_size;

// Waits for all threads of the block that have not ended; gives the OR, the AND or the number of the predicates.
int wait_for_block(Wait kind, bool predicate, Place place);

// Waits for the lanes of `mask`; gives what lane `source` has as its value (shuffles), or what the values of all
// lanes give.
std::uint64_t wait_for_lanes(Wait kind, unsigned mask, std::uint64_t value, unsigned source, Place place);

// True if the order is random: then interrupt() may let other threads go first. Kernels call it where others can see
// or change what they have done.
extern bool any_order;
void interrupt();

// The calling thread's place in its warp.
unsigned lane();

// Ends the process: a kernel does what CUDA leaves undefined.
[[noreturn]] void mistake(Place place, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Runs a kernel to its end, block after block.
void run_grid(const char *name, void (*kernel)(const void *), const void *parameter, dim3 grid, dim3 block);

// Takes the blocks, and the threads of each, in the opposite order from now on: a result that depends on the order
// differs.
void reverse_order(bool reverse);

// Takes them in an order that depends on the seed from now on, and interleaves the threads of a block; 0: no longer.
// Gives the seed that was in force.
std::uint64_t randomize_order(std::uint64_t seed);

} // namespace emulation

#endif
