#include "fiber.hpp"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>

#include "sanitizer.hpp"

#ifdef MOFO_ADDRESS_SANITIZER
extern "C" {
void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, std::size_t size);
void __sanitizer_finish_switch_fiber(void *fake_stack, const void **old_bottom, std::size_t *old_size);
}
#endif

namespace emulation {
namespace {

#ifdef MOFO_ADDRESS_SANITIZER
constexpr std::size_t STACK = 256 << 10;
#else
constexpr std::size_t STACK = 64 << 10;
#endif

// Stacks that begin at the same place modulo a large power of two compete for the same cache sets.
constexpr std::size_t STAGGER = 320;
constexpr std::size_t STAGGERED = 48;

// A switch is from one of these to the other.
Fiber *leaving;
Fiber *entering;

} // namespace

#if defined(__x86_64__) && defined(__ELF__)

// Saves what a function must preserve on the running stack, its stack pointer in *save, and returns on the other
// stack. The floating-point mode is the same in all fibers and stays as it is.
extern "C" void mofo_emulation_switch(void **save, void *load) __attribute__((visibility("hidden")));

asm(R"(
    .text
    .p2align 4
    .globl mofo_emulation_switch
    .hidden mofo_emulation_switch
    .type mofo_emulation_switch, @function
mofo_emulation_switch:
    .cfi_startproc
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .cfi_endproc
    .size mofo_emulation_switch, .-mofo_emulation_switch
)");

#endif

Fiber::Fiber(void (*entry)(Fiber &), unsigned number) : entry_(entry) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    mapping_ = mmap(nullptr, page + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    // The lowest page stays closed: a stack that overflows must not run into its neighbour.
    if (mapping_ == MAP_FAILED || mprotect(mapping_, page, PROT_NONE) != 0) {
        std::perror("the emulated CUDA driver has no stack for a thread");
        std::abort();
    }
    bottom_ = static_cast<char *>(mapping_) + page;
    size_ = STACK - number % STAGGERED * STAGGER;
#if defined(__x86_64__) && defined(__ELF__)
    const auto top = (reinterpret_cast<std::uintptr_t>(bottom_) + size_) & ~std::uintptr_t{15};
    auto *frame = reinterpret_cast<std::uintptr_t *>(top) - 8;
    for (int i = 0; i < 8; i++) {
        frame[i] = 0;
    }
    // Six registers, then where to return to. A function begins with its stack at 8 modulo 16, and above it a
    // return address: of 0, where debuggers end a backtrace.
    frame[6] = reinterpret_cast<std::uintptr_t>(&Fiber::start);
    stack_pointer_ = frame;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = const_cast<void *>(bottom_);
    context_.uc_stack.ss_size = size_;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::start, 0);
#endif
}

Fiber::~Fiber() {
    if (mapping_ != nullptr) {
        munmap(mapping_, static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) + STACK);
    }
}

void Fiber::resume(Fiber &from) {
    leaving = &from;
    entering = this;
#ifdef MOFO_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(&from.fake_stack_, bottom_, size_);
#endif
#if defined(__x86_64__) && defined(__ELF__)
    mofo_emulation_switch(&from.stack_pointer_, stack_pointer_);
#else
    swapcontext(&from.context_, &context_);
#endif
    from.arrived();
}

// What the fiber that has just been switched to does first.
void Fiber::arrived() {
#ifdef MOFO_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(fake_stack_, &leaving->bottom_, &leaving->size_);
#endif
}

void Fiber::start() {
    Fiber &self = *entering;
    self.arrived();
    self.entry_(self);
    std::abort();
}

} // namespace emulation
