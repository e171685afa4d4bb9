// Random numbers that depend on nothing but their place, so that threads can make them in any order.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_RANDOM_HPP
#define MOFO_BENCH_RANDOM_HPP

#include <array>
#include <cstddef>
#include <cstdint>

namespace bench {

/** 64 random bits for a stream and a place in it: the output function of SplitMix64. */
constexpr std::uint64_t random_bits(std::uint64_t stream, std::uint64_t place) {
    std::uint64_t z = (stream * 0xD1342543DE82EF95) ^ (place * 0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
}

/** From 0 (included) to 1 (excluded). */
constexpr double uniform(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

/** Precomputed draws, to be looked up with 16 random bits: much cheaper than to compute them. */
class DrawTable {
  public:
    static constexpr std::size_t size = 1 << 16;

    /** The standard normal distribution. */
    static const DrawTable &normal();
    /** A normal value times the exponential of another: heavy tails. */
    static const DrawTable &heavy_tailed();

    float operator[](std::uint64_t bits) const { return values_[bits % size]; }

  private:
    std::array<float, size> values_{};
};

}  // namespace bench

#endif  // MOFO_BENCH_RANDOM_HPP
