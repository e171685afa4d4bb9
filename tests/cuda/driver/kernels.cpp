// Compiles the kernels of MOFO_KERNELS_SOURCE, a file in CUDA C++ that lists the names of its kernels as
// MOFO_KERNELS(X): X(name) for each. A kernel is extern "C" and takes one struct by value.

#include "kernels.hpp"

#include <cstring>

#include "device.hpp"

#include MOFO_KERNELS_SOURCE

namespace emulation {
namespace {

template <class Parameter> constexpr std::size_t size_of(void (*)(Parameter)) { return sizeof(Parameter); }
template <class Parameter> constexpr std::size_t alignment_of(void (*)(Parameter)) { return alignof(Parameter); }
template <class Parameter> void call(void (*kernel)(Parameter), const void *parameter) {
    kernel(*static_cast<const Parameter *>(parameter));
}

// Known at compile time, the kernel is inlined here.
template <auto kernel> void run(const void *parameter) { call(kernel, parameter); }

#define MOFO_KERNEL(name) {#name, run<&::name>, size_of(&::name), alignment_of(&::name)},
const Kernel KERNELS[] = {MOFO_KERNELS(MOFO_KERNEL)};
#undef MOFO_KERNEL

} // namespace

const Kernel *find_kernel(const char *name) {
    for (const Kernel &kernel : KERNELS) {
        if (std::strcmp(kernel.name, name) == 0) {
            return &kernel;
        }
    }
    return nullptr;
}

} // namespace emulation
