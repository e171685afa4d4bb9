/*
 * What every part of the demo needs: ending with a message, memory, a clock, the progress line, random numbers.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef FINETUNE_UTIL_H
#define FINETUNE_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Prints the message and exits: nothing in this program can go on without what failed. */
_Noreturn void fail(const char *format, ...);

/* `count` zeroed entries of `size` bytes; never NULL. */
void *allocate(size_t count, size_t size);

double seconds_now(void);

/* Whether standard error is a terminal, where a progress line can be rewritten in place. */
bool progress_is_live(void);

/* Rewrites the progress line; call it where `progress_is_live`. */
void progress_line(const char *label, size_t steps, double loss);

/* Clears it, so that other output can follow. */
void progress_end(void);

/* SplitMix64 (Steele, Lea and Flood, 2014): runs repeat exactly, on every machine. */
typedef struct {
    uint64_t state;
} rng;

/* What random numbers are for. Each purpose draws from its own generator, so that none disturbs another. */
typedef enum { RNG_SPLIT, RNG_INITIAL, RNG_PRETRAINING, RNG_FINETUNING, RNG_PERMUTATION } rng_purpose;

rng rng_for(uint64_t seed, rng_purpose purpose);
uint64_t rng_next(rng *r);

/* Uniform in [-1, 1). */
float rng_uniform(rng *r);

void shuffle(rng *r, size_t *items, size_t count);

#endif
