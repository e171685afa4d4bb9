// A fiber: a stack of its own, and what is needed to go on where it stopped. A switch is a function call that
// saves and loads a few registers; it makes no system call.

#ifndef MOFO_EMULATION_FIBER_HPP
#define MOFO_EMULATION_FIBER_HPP

#include <cstddef>

#if !(defined(__x86_64__) && defined(__ELF__))
#include <ucontext.h>
#endif

namespace emulation {

class Fiber {
  public:
    // The thread that is running as it is: it gets a stack to return to when it first switches away.
    Fiber() = default;
    // Calls `entry` when it is first switched to; `entry` does not return. `number` staggers the stacks.
    Fiber(void (*entry)(Fiber &), unsigned number);
    ~Fiber();
    Fiber(const Fiber &) = delete;
    Fiber &operator=(const Fiber &) = delete;

    // Leaves the running fiber, `from`, and goes on with this one.
    void resume(Fiber &from);

  private:
    [[noreturn]] static void start();
    void arrived();

    void (*entry_)(Fiber &) = nullptr;
    void *mapping_ = nullptr;
    // The part of the mapping that is used. Of a thread's own stack only AddressSanitizer knows it.
    const void *bottom_ = nullptr;
    std::size_t size_ = 0;
    // AddressSanitizer's, while the fiber does not run.
    [[maybe_unused]] void *fake_stack_ = nullptr;
#if defined(__x86_64__) && defined(__ELF__)
    void *stack_pointer_ = nullptr;
#else
    ucontext_t context_;
#endif
};

} // namespace emulation

#endif
