// Tests the emulated driver, with the kernels of selftest.cu.
//
// Its one argument is the name of a test; without it all are run.

#include "selftest.hpp"

int failures;
CUcontext context;
CUmodule module;

std::vector<Test> &tests() {
    static std::vector<Test> all;
    return all;
}

void check(bool holds, const char *what, const char *file, int line) {
    if (!holds) {
        std::printf("%s:%d: %s\n", file, line, what);
        failures++;
    }
}

void check_equal(long long got, long long expected, const char *what, const char *file, int line) {
    if (got != expected) {
        std::printf("%s:%d: %s is %lld (0x%llx), not %lld (0x%llx)\n", file, line, what, got,
                    static_cast<unsigned long long>(got), expected, static_cast<unsigned long long>(expected));
        failures++;
    }
}

void begin() {
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    OK(cuModuleLoadData(&module, "an image"));
}

void end() {
    OK(cuModuleUnload(module));
    EQUAL(mofo_emulated_allocations(), 0);
    OK(cuDevicePrimaryCtxRelease(0));
    OK(cuCtxSetCurrent(nullptr));
}

CUfunction function(const char *name) {
    CUfunction found = nullptr;
    OK(cuModuleGetFunction(&found, module, (std::string("test_") + name).c_str()));
    return found;
}

CUdeviceptr allocate(std::size_t words) {
    CUdeviceptr pointer = 0;
    OK(cuMemAlloc(&pointer, words * 4));
    return pointer;
}

std::vector<unsigned> read(CUdeviceptr pointer, std::size_t words) {
    std::vector<unsigned> result(words);
    OK(cuMemcpyDtoH(result.data(), pointer, words * 4));
    return result;
}

unsigned word(CUdeviceptr pointer) { return read(pointer, 1)[0]; }

static void run(const Test &test, bool reversed, unsigned long long seed) {
    const int before = failures;
    begin();
    mofo_emulated_reverse(reversed);
    mofo_emulated_random(seed);
    test.run();
    EQUAL(mofo_emulated_random(0), seed);
    mofo_emulated_reverse(0);
    end();
    if (failures != before) {
        std::printf("failed: %s%s, seed %llu\n", test.name, reversed ? ", in the opposite order" : "", seed);
    }
}

// Of mistakes.cpp.
void check_mistakes();

int main(int argc, char **argv) {
    int count = 0;
    EQUAL(cuCtxSynchronize(), CUDA_ERROR_NOT_INITIALIZED);
    EQUAL(cuDeviceGetCount(&count), CUDA_ERROR_NOT_INITIALIZED);
    if (argc == 1) {
        // Before the driver is used: it does not survive a fork.
        check_mistakes();
    }
    for (const Test &test : tests()) {
        if (argc > 1 && std::strcmp(argv[1], test.name) != 0) {
            continue;
        }
        run(test, false, 0);
        if (test.any_order) {
            run(test, true, 0);
            for (unsigned long long seed = 1; seed <= 20; seed++) {
                run(test, false, seed);
            }
        }
    }
    return failures == 0 ? 0 : 1;
}
