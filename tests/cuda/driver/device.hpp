// What makes CUDA C++ compile as C++17 for the host. A kernel's source is included after this file.
//
// Not here: dynamic shared memory, textures, inline PTX, cooperative groups, and operations whose result IEEE 754
// does not fix.

#ifndef MOFO_EMULATION_DEVICE_HPP
#define MOFO_EMULATION_DEVICE_HPP

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <type_traits>

#include "block.hpp"
#include "vectors.hpp"

// For sources that cannot do without.
#define MOFO_CUDA_EMULATED 1

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __noinline__ __attribute__((noinline))
// One block runs at a time. The section is for the emulation, which spoils all of it before each block.
#define __shared__ static __attribute__((section("mofo_shared")))

#define threadIdx (*::emulation::thread_index)
#define blockIdx (static_cast<const uint3 &>(::emulation::block_index))
#define blockDim (static_cast<const dim3 &>(::emulation::block_size))
#define gridDim (static_cast<const dim3 &>(::emulation::grid_size))
constexpr int warpSize = 32;

// Where a function of this file is called, as the value of its last parameter.
#define MOFO_PLACE                                                                                           \
    ::emulation::Place place = { __builtin_FILE(), __builtin_LINE() }

// Barriers.

inline void __syncthreads(MOFO_PLACE) {
    ::emulation::wait_for_block(::emulation::Wait::barrier, false, place);
}
inline int __syncthreads_or(int predicate, MOFO_PLACE) {
    return ::emulation::wait_for_block(::emulation::Wait::barrier_or, predicate != 0, place);
}
inline int __syncthreads_and(int predicate, MOFO_PLACE) {
    return ::emulation::wait_for_block(::emulation::Wait::barrier_and, predicate != 0, place);
}
inline int __syncthreads_count(int predicate, MOFO_PLACE) {
    return ::emulation::wait_for_block(::emulation::Wait::barrier_count, predicate != 0, place);
}

namespace emulation {

// Where another thread may come in between.
inline void may_interrupt() {
    if (any_order) {
        interrupt();
    }
}

} // namespace emulation

// One thread runs at a time, and all see the same memory.
inline void __threadfence_block() {
    asm volatile("" ::: "memory");
    ::emulation::may_interrupt();
}
inline void __threadfence() { __threadfence_block(); }
inline void __threadfence_system() { __threadfence_block(); }

// Warps.

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, MOFO_PLACE) {
    ::emulation::wait_for_lanes(::emulation::Wait::warp, mask, 0, 0, place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, MOFO_PLACE) {
    return static_cast<unsigned>(
        ::emulation::wait_for_lanes(::emulation::Wait::ballot, mask, predicate != 0, 0, place));
}
inline int __any_sync(unsigned mask, int predicate, MOFO_PLACE) {
    return static_cast<int>(
        ::emulation::wait_for_lanes(::emulation::Wait::any, mask, predicate != 0, 0, place));
}
inline int __all_sync(unsigned mask, int predicate, MOFO_PLACE) {
    return static_cast<int>(
        ::emulation::wait_for_lanes(::emulation::Wait::all, mask, predicate != 0, 0, place));
}

namespace emulation {

template <class T> std::uint64_t to_bits(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "warps exchange values of 32 or 64 bits");
    static_assert(std::is_arithmetic<T>::value, "warps exchange numbers");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T>
T shuffle(Wait kind, unsigned mask, T value, unsigned source, Place place) {
    const std::uint64_t bits = wait_for_lanes(kind, mask, to_bits(value), source, place);
    T result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// The first lane of the calling lane's segment of `width` lanes.
inline unsigned segment(int width, Place place) {
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
        mistake(place, "a shuffle's width is %d", width);
    }
    return lane() & ~(static_cast<unsigned>(width) - 1);
}

} // namespace emulation

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, MOFO_PLACE) {
    const unsigned first = ::emulation::segment(width, place);
    const unsigned from = first + (static_cast<unsigned>(source) & (static_cast<unsigned>(width) - 1));
    return ::emulation::shuffle(::emulation::Wait::shuffle, mask, value, from, place);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, MOFO_PLACE) {
    const unsigned first = ::emulation::segment(width, place);
    const unsigned self = ::emulation::lane();
    const unsigned from = self - first < (delta & 31) ? self : self - (delta & 31);
    return ::emulation::shuffle(::emulation::Wait::shuffle_up, mask, value, from, place);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, MOFO_PLACE) {
    const unsigned first = ::emulation::segment(width, place);
    const unsigned self = ::emulation::lane();
    const unsigned from = self + (delta & 31);
    return ::emulation::shuffle(::emulation::Wait::shuffle_down, mask, value,
                                from < first + static_cast<unsigned>(width) ? from : self, place);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, MOFO_PLACE) {
    const unsigned first = ::emulation::segment(width, place);
    const unsigned self = ::emulation::lane();
    const unsigned from = self ^ (static_cast<unsigned>(bits) & 31);
    return ::emulation::shuffle(::emulation::Wait::shuffle_xor, mask, value,
                                from < first + static_cast<unsigned>(width) ? from : self, place);
}
template <class T> unsigned __match_any_sync(unsigned mask, T value, MOFO_PLACE) {
    return static_cast<unsigned>(::emulation::wait_for_lanes(::emulation::Wait::match_any, mask,
                                                             ::emulation::to_bits(value), 0, place));
}

#undef MOFO_PLACE

// Bits.

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned result = 0;
    for (int i = 0; i < 32; i++) {
        result |= (x >> i & 1) << (31 - i);
    }
    return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    __extension__ typedef unsigned __int128 wide;
    return static_cast<unsigned long long>(static_cast<wide>(a) * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>(((static_cast<unsigned long long>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31));
}

namespace emulation {

template <class To, class From> To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

} // namespace emulation

inline unsigned __float_as_uint(float x) { return ::emulation::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return ::emulation::bit_cast<float>(x); }
inline int __float_as_int(float x) { return ::emulation::bit_cast<int>(x); }
inline float __int_as_float(int x) { return ::emulation::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return ::emulation::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return ::emulation::bit_cast<double>(x); }

// Memory. Where CUDA has a function for some types only, so has this file.

#define MOFO_ATOMIC(name, type, expression)                                                                  \
    inline type name(type *address, type value) {                                                            \
        ::emulation::may_interrupt();                                                                        \
        const type old = *address;                                                                           \
        *address = (expression);                                                                             \
        return old;                                                                                          \
    }
#define MOFO_ATOMIC_INTEGERS(name, expression)                                                               \
    MOFO_ATOMIC(name, int, expression)                                                                       \
    MOFO_ATOMIC(name, unsigned, expression)                                                                  \
    MOFO_ATOMIC(name, unsigned long long, expression)

// Signed sums wrap around.
MOFO_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
MOFO_ATOMIC(atomicAdd, unsigned, old + value)
MOFO_ATOMIC(atomicAdd, unsigned long long, old + value)
MOFO_ATOMIC(atomicAdd, float, old + value)
MOFO_ATOMIC(atomicAdd, double, old + value)
MOFO_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
MOFO_ATOMIC(atomicSub, unsigned, old - value)
MOFO_ATOMIC_INTEGERS(atomicMax, old < value ? value : old)
MOFO_ATOMIC(atomicMax, long long, old < value ? value : old)
MOFO_ATOMIC_INTEGERS(atomicMin, value < old ? value : old)
MOFO_ATOMIC(atomicMin, long long, value < old ? value : old)
MOFO_ATOMIC_INTEGERS(atomicOr, old | value)
MOFO_ATOMIC_INTEGERS(atomicAnd, old & value)
MOFO_ATOMIC_INTEGERS(atomicXor, old ^ value)
MOFO_ATOMIC_INTEGERS(atomicExch, value)
MOFO_ATOMIC(atomicExch, float, value)
MOFO_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)

#undef MOFO_ATOMIC
#undef MOFO_ATOMIC_INTEGERS

#define MOFO_CAS(type)                                                                                       \
    inline type atomicCAS(type *address, type compare, type value) {                                         \
        ::emulation::may_interrupt();                                                                        \
        const type old = *address;                                                                           \
        *address = old == compare ? value : old;                                                             \
        return old;                                                                                          \
    }
MOFO_CAS(int)
MOFO_CAS(unsigned)
MOFO_CAS(unsigned long long)
MOFO_CAS(unsigned short)
#undef MOFO_CAS

template <class T> T __ldg(const T *address) { return *address; }
template <class T> T __ldca(const T *address) { return *address; }
template <class T> T __ldcg(const T *address) { return *address; }
template <class T> T __ldcs(const T *address) { return *address; }
template <class T> T __ldcv(const T *address) { return *address; }
template <class T> T __ldlu(const T *address) { return *address; }
template <class T> void __stcg(T *address, T value) { *address = value; }
template <class T> void __stcs(T *address, T value) { *address = value; }
template <class T> void __stwb(T *address, T value) { *address = value; }
template <class T> void __stwt(T *address, T value) { *address = value; }

// Arithmetic: sqrtf, fabs, floor and so on are the C library's. These must be compiled with -ffp-contract=off.

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline float __uint2float_rn(unsigned a) { return static_cast<float>(a); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __ull2float_rn(unsigned long long a) { return static_cast<float>(a); }
inline double __ull2double_rn(unsigned long long a) { return static_cast<double>(a); }
inline double __ll2double_rn(long long a) { return static_cast<double>(a); }

// Of a NaN and a number, the number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
template <class A, class B, class = std::enable_if_t<std::is_integral<A>::value && std::is_integral<B>::value>>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
template <class A, class B, class = std::enable_if_t<std::is_integral<A>::value && std::is_integral<B>::value>>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

[[noreturn]] inline void __trap() { ::emulation::mistake({nullptr, 0}, "__trap was called"); }

#ifndef __clang__
// nvcc's, and clang's. Here it is checked.
#define __builtin_assume(condition)                                                                          \
    ((condition) ? (void)0 : ::emulation::mistake({__FILE__, __LINE__}, "%s does not hold", #condition))
#endif

#endif
