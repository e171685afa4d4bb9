/* SPDX-License-Identifier: MIT OR Apache-2.0 */

#include "util.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

static bool line_open; /* a progress line stands on the terminal */

bool progress_is_live(void) {
#if defined(__unix__) || defined(__APPLE__)
    return isatty(STDERR_FILENO) != 0;
#else
    return false;
#endif
}

void progress_line(const char *label, size_t steps, double loss) {
    fprintf(stderr, "\r\033[K%s: step %zu, smoothed loss %.3f", label, steps, loss);
    fflush(stderr);
    line_open = true;
}

void progress_end(void) {
    if (line_open) fputs("\r\033[K", stderr);
    line_open = false;
}

_Noreturn void fail(const char *format, ...) {
    progress_end();
    fputs("finetune: ", stderr);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) fail("out of memory (%zu entries of %zu bytes)", count, size);
    return memory;
}

double seconds_now(void) {
    struct timespec now;
    if (timespec_get(&now, TIME_UTC) != TIME_UTC) fail("no clock");
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

rng rng_for(uint64_t seed, rng_purpose purpose) {
    rng r = {seed * UINT64_C(0xD1342543DE82EF95) + (uint64_t)purpose};
    r.state = rng_next(&r);
    return r;
}

uint64_t rng_next(rng *r) {
    uint64_t x = r->state += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

float rng_uniform(rng *r) { return (float)(rng_next(r) >> 40) * 0x1p-23F - 1.0F; }

void shuffle(rng *r, size_t *items, size_t count) {
    for (size_t i = count; i > 1; i--) {
        size_t j = (size_t)(rng_next(r) % i);
        size_t swapped = items[i - 1];
        items[i - 1] = items[j];
        items[j] = swapped;
    }
}
