// The kernels that a module has, by name.

#ifndef MOFO_EMULATION_KERNELS_HPP
#define MOFO_EMULATION_KERNELS_HPP

#include <cstddef>

namespace emulation {

// A kernel takes one struct by value; `run` is given its address.
struct Kernel {
    const char *name;
    void (*run)(const void *parameter);
    std::size_t size;
    std::size_t alignment;
};

const Kernel *find_kernel(const char *name);

} // namespace emulation

#endif
