// What kernels can do.

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <set>

#include "selftest.hpp"

TEST_IN_ANY_ORDER(indices) {
    const CUdeviceptr out = allocate(3 * 2 * 2 * 4 * 3 * 2);
    Out argument{out};
    void *parameters[] = {&argument};
    OK(cuLaunchKernel(function("index"), 3, 2, 2, 4, 3, 2, 0, nullptr, parameters, nullptr));
    const auto words = read(out, 3 * 2 * 2 * 4 * 3 * 2);
    for (unsigned i = 0; i < words.size(); i++) {
        const unsigned t = i % 24, b = i / 24;
        EQUAL(words[i], t % 4 + 100 * (t / 4 % 3) + 10000 * (t / 12) + 1000000 * (b % 3 + b / 3 % 2 + b / 6));
    }
    OK(cuMemFree(out));
}

TEST_IN_ANY_ORDER(barriers) {
    const unsigned blocks = 20;
    for (const unsigned threads : {1u, 2u, 32u, 256u, 512u}) {
        const CUdeviceptr out = allocate(2 * blocks);
        launch("barrier", blocks, threads, Numbered{out, 5});
        const auto words = read(out, 2 * blocks);
        for (unsigned i = 0; i < blocks; i++) {
            EQUAL(words[2 * i], 0);
            EQUAL(words[2 * i + 1], 5 * threads * (threads - 1) / 2 + 10 * threads);
        }
        OK(cuMemFree(out));
    }
}

TEST_IN_ANY_ORDER(votes) {
    const CUdeviceptr out = allocate(8 * 64);
    launch("vote", 1, 64, Out{out});
    const auto words = read(out, 8 * 64);
    for (unsigned i = 0; i < 64; i++) {
        const unsigned *lane = &words[8 * i];
        unsigned ballot = 0;
        for (unsigned j = 0; j < 32; j++) {
            ballot |= unsigned{(i / 32 * 32 + j) % 3 == 0} << j;
        }
        EQUAL(lane[0], ballot);
        EQUAL(lane[1], i >= 32);
        EQUAL(lane[2], i < 32);
        EQUAL(lane[3], 32);
        EQUAL(lane[4], 1);
        EQUAL(lane[5], 0);
        EQUAL(lane[6], 0x11111111u << i % 4);
        EQUAL(lane[7], __builtin_popcount(ballot));
    }
    OK(cuMemFree(out));
}

TEST_IN_ANY_ORDER(shuffles) {
    const CUdeviceptr out = allocate(6 * 64 * 8);
    launch("shuffle", 6, 64, Out{out});
    const auto words = read(out, 6 * 64 * 8);
    for (unsigned b = 0; b < 6; b++) {
        const unsigned width = 1u << b;
        for (unsigned i = 0; i < 64; i++) {
            const unsigned *lane = &words[(b * 64 + i) * 8];
            const unsigned first = i / width * width;
            const unsigned limit = first + width;
            EQUAL(lane[0], first + 5 % width);
            EQUAL(lane[1], first + (i + 1) % width);
            EQUAL(lane[2], i < first + 3 ? i : i - 3);
            EQUAL(lane[3], i + 3 < limit ? i + 3 : i);
            EQUAL(lane[4], (i ^ 6) < limit ? i ^ 6 : i);
            EQUAL(lane[5], 1u << 8);
            EQUAL(lane[6], i + 1 < limit ? i + 1 : i);
            EQUAL(lane[7], (i ^ 1) < limit ? i ^ 1 : i);
        }
    }
    OK(cuMemFree(out));
}

TEST_IN_ANY_ORDER(parts_of_warps) {
    const CUdeviceptr out = allocate(32);
    launch("part_of_warp", 1, 32, Out{out});
    const auto words = read(out, 32);
    for (unsigned i = 0; i < 32; i++) {
        EQUAL(words[i], i % 2 == 0 ? (i ^ 2) + 0x55555555u : i ^ 4);
    }
    OK(cuMemFree(out));
}

TEST_IN_ANY_ORDER(early_exits) {
    const CUdeviceptr out = allocate(3);
    launch("leave_early", 3, 100, Numbered{out, 7});
    for (const unsigned count : read(out, 3)) {
        EQUAL(count, 15);
    }
    OK(cuMemFree(out));
}

TEST_IN_ANY_ORDER(last_block) {
    const CUdeviceptr out = allocate(2 + 50);
    OK(cuMemsetD32(out, 0, 52));
    launch("last_block", 50, 33, Out{out});
    EQUAL(read(out, 2)[1], 50 * 51 / 2);
    OK(cuMemFree(out));
}

TEST_IN_ANY_ORDER(atomics) {
    struct {
        CUdeviceptr words, longs, floats, doubles, ints;
    } argument;
    const CUdeviceptr out = allocate(24);
    OK(cuMemsetD32(out, 0, 24));
    argument = {out, out + 32, out + 48, out + 56, out + 64};
    const unsigned n = 4 * 50;
    const unsigned words[] = {0, 0, ~0u, 0, ~0u, 0, 0};
    OK(cuMemcpyHtoD(out, words, sizeof words));
    launch("atomic", 4, 50, argument);
    const auto got = read(out, 24);
    EQUAL(got[0], n * (n - 1) / 2);
    EQUAL(got[1], n - 1);
    EQUAL(got[2], 0);
    EQUAL(got[3], ~0u);
    EQUAL(got[4], 0xFFFF0000u);
    EQUAL(got[5], 7);
    EQUAL(got[6], 2 * n);
    std::uint64_t longs[2];
    float single;
    double twice;
    int ints[2];
    std::memcpy(longs, &got[8], sizeof longs);
    std::memcpy(&single, &got[12], sizeof single);
    std::memcpy(&twice, &got[14], sizeof twice);
    std::memcpy(ints, &got[16], sizeof ints);
    EQUAL(longs[0], std::uint64_t{n} << 33);
    EQUAL(longs[1], 1ull << 59);
    CHECK(single == 0.5f * n);
    CHECK(twice == 0.25 * n);
    EQUAL(ints[0], -static_cast<int>(n));
    EQUAL(ints[1], 1 - static_cast<int>(n));
    OK(cuMemFree(out));
}

// Three blocks of four warps.
static std::vector<unsigned> order(unsigned long long seed) {
    const unsigned warps = 12, rounds = 5;
    const CUdeviceptr out = allocate(1 + warps * rounds);
    OK(cuMemsetD32(out, 0, 1));
    mofo_emulated_random(seed);
    launch("order", 3, 128, Numbered{out, rounds});
    auto places = read(out, 1 + warps * rounds);
    mofo_emulated_random(0);
    OK(cuMemFree(out));
    EQUAL(places[0], warps * rounds);
    places.erase(places.begin());
    // Blocks come one after the other, and a warp's rounds in order.
    for (unsigned i = 0; i < places.size(); i++) {
        EQUAL(places[i] / (4 * rounds), places[i / (4 * rounds) * (4 * rounds)] / (4 * rounds));
        CHECK(i % rounds == 0 || places[i - 1] < places[i]);
    }
    return places;
}

TEST(random_order) {
    const auto usual = order(0);
    for (unsigned i = 0; i < usual.size(); i++) {
        EQUAL(usual[i], i);
    }
    std::set<std::vector<unsigned>> different;
    bool other_block = false, warps_alternate = false, warp_at_once = false;
    for (unsigned long long seed = 1; seed <= 20; seed++) {
        const auto places = order(seed);
        CHECK(places == order(seed));
        different.insert(places);
        other_block |= places[0] >= 20;
        for (unsigned i = 0; i < places.size(); i += 5) {
            warps_alternate |= places[i + 4] - places[i] > 9;
            warp_at_once |= places[i + 4] - places[i] == 4;
        }
    }
    EQUAL(different.size(), 20);
    CHECK(other_block);
    CHECK(warps_alternate);
    CHECK(warp_at_once);
}

TEST(random_order_comes_between_atomics) {
    const CUdeviceptr out = allocate(2);
    for (unsigned long long seed = 0; seed <= 10; seed++) {
        OK(cuMemsetD32(out, 0, 2));
        mofo_emulated_random(seed);
        launch("roll_back", 4, 32, Out{out});
        const auto words = read(out, 2);
        mofo_emulated_random(0);
        EQUAL(words[0], 0);
        EQUAL(words[1] != 0, seed != 0);
    }
    OK(cuMemFree(out));
}

TEST(vectors) {
    struct {
        CUdeviceptr from, to;
    } argument = {allocate(128), allocate(128)};
    std::vector<unsigned> words(128);
    for (unsigned i = 0; i < 128; i++) {
        words[i] = i;
    }
    OK(cuMemcpyHtoD(argument.from, words.data(), 512));
    launch("vector", 1, 32, argument);
    const auto got = read(argument.to, 128);
    for (unsigned i = 0; i < 128; i++) {
        EQUAL(got[i], i / 4 * 4 + 3 - i % 4);
    }
    OK(cuMemFree(argument.from));
    OK(cuMemFree(argument.to));
}

TEST(numbers) {
    const CUdeviceptr out = allocate(12);
    launch("number", 1, 1, Out{out});
#if defined(__x86_64__)
    const unsigned mode = _mm_getcsr();
    // Flush to zero, and round down.
    _mm_setcsr(mode | 0x8040 | 0x2000);
    OK(cuCtxSynchronize());
    EQUAL(_mm_getcsr() & 0xE040, 0xA040);
    _mm_setcsr(mode);
#endif
    const auto got = read(out, 12);
    const unsigned expected[] = {3,          6, 31 + 3200 + 310000, 4 + 4100 + 640000,
                                 1u << 31,   3, 3,                  0x3FB504F3u,
                                 0x3A000000u, 53, 0x3F800000u,      0x3FF00000u};
    for (unsigned i = 0; i < 12; i++) {
        EQUAL(got[i], expected[i]);
    }
    OK(cuMemFree(out));
}
