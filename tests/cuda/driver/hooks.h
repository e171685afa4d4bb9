/* What the emulated driver exports besides CUDA's functions, for tests. In C99 and C++.
 *
 * The functions are weak: a program that is linked with another libcuda finds them to be null. */

#ifndef MOFO_EMULATION_HOOKS_H
#define MOFO_EMULATION_HOOKS_H

#ifdef MOFO_EMULATION_DRIVER
#define MOFO_HOOK
#else
#define MOFO_HOOK __attribute__((weak))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Breaks the current context, as an illegal address does: work that has not run is lost, and every later call that
 * needs the context gives `code`. Returns 0, or CUDA_ERROR_INVALID_CONTEXT. */
MOFO_HOOK int mofo_emulated_fail(int code);

/* Heals the current context. */
MOFO_HOOK int mofo_emulated_recover(void);

/* How many kernels have run, on all devices. */
MOFO_HOOK unsigned long long mofo_emulated_launches(void);

/* How many allocations of device memory there are, on all devices; managed and host memory not counted. */
MOFO_HOOK unsigned long long mofo_emulated_allocations(void);

/* 1: an allocation, a free, a synchronisation, a blocking copy and a copy between host and device end the process
 * with a message, in the calling thread; 2: in every thread; 0: no longer. Returns what was in force. */
MOFO_HOOK int mofo_emulated_forbid(int threads);

/* Gives every device this much memory from now on. */
MOFO_HOOK void mofo_emulated_memory(unsigned long long bytes);

/* 1: blocks, their threads, and what is free in its order on streams and in graphs are taken from the other end;
 * as is MOFO_EMULATED_ORDER=reverse in the environment. */
MOFO_HOOK void mofo_emulated_reverse(int reverse);

/* Other than 0: blocks, and the threads of each, are taken in a pseudo-random order, another one for each seed; the
 * threads may change at every barrier, warp operation, atomic operation and fence; as with
 * MOFO_EMULATED_ORDER=random:SEED in the environment. 0: no longer. Returns the seed that was in force. */
MOFO_HOOK unsigned long long mofo_emulated_random(unsigned long long seed);

#ifdef __cplusplus
}
#endif

#endif
