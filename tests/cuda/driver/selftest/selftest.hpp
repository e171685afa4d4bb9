// Checks, and what most tests of the emulated driver begin with.

#ifndef MOFO_EMULATION_SELFTEST_HPP
#define MOFO_EMULATION_SELFTEST_HPP

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda_driver.h"
#include "hooks.h"

struct Test {
    const char *name;
    void (*run)();
    // Whether the result must be the same if blocks, threads and streams come in another order.
    bool any_order;
};

// All that TEST has defined.
std::vector<Test> &tests();

struct Registration {
    Registration(const char *name, void (*run)(), bool any_order) { tests().push_back({name, run, any_order}); }
};

#define REGISTERED(name, any_order)                                                                          \
    static void name();                                                                                      \
    static const Registration registration_##name(#name, name, any_order);                                   \
    static void name()
// A test begins with a module and device 0's primary context, which is current, and leaves no allocation.
#define TEST(name) REGISTERED(name, false)
#define TEST_IN_ANY_ORDER(name) REGISTERED(name, true)

extern int failures;

void check(bool holds, const char *what, const char *file, int line);
void check_equal(long long got, long long expected, const char *what, const char *file, int line);

#define CHECK(condition) check(condition, #condition, __FILE__, __LINE__)
#define EQUAL(got, expected)                                                                                 \
    check_equal(static_cast<long long>(got), static_cast<long long>(expected), #got, __FILE__, __LINE__)
#define OK(call) EQUAL(call, CUDA_SUCCESS)

// The types of selftest.cu.
struct Out {
    CUdeviceptr out;
};
struct Numbered {
    CUdeviceptr out;
    unsigned number;
};
struct Add {
    CUdeviceptr out;
    unsigned count;
    unsigned addend;
};
struct Combine {
    CUdeviceptr out, x, y;
    unsigned count;
};

extern CUcontext context;
extern CUmodule module;

void begin();
void end();

// The kernel test_NAME.
CUfunction function(const char *name);

template <class T>
void launch(const char *name, unsigned grid, unsigned block, T argument, CUstream stream = nullptr) {
    void *parameters[] = {&argument};
    OK(cuLaunchKernel(function(name), grid, 1, 1, block, 1, 1, 0, stream, parameters, nullptr));
}

// Memory of the device, in words of 32 bits, and what it holds.
CUdeviceptr allocate(std::size_t words);
std::vector<unsigned> read(CUdeviceptr pointer, std::size_t words);
unsigned word(CUdeviceptr pointer);

#endif
