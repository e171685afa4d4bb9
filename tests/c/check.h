/* Checks for test programs: a failing one prints where, what and why, and the program goes on. Only the main
 * thread checks. */

#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mofo.h"

static int check_count;
static int check_failures;
static int check_skips;
/* Says which case of a table is being checked; printed with a failure. */
static char check_case[256];

#define CASE(...) ((void)snprintf(check_case, sizeof check_case, __VA_ARGS__))

#define CHECK(condition) check_that(!!(condition), #condition, __FILE__, __LINE__)
#define CHECK_U64(got, expected) check_u64((got), (expected), #got, __FILE__, __LINE__)
#define CHECK_AT_MOST(got, limit) check_at_most((got), (limit), #got, __FILE__, __LINE__)
#define CHECK_F64(got, expected) check_f64((got), (expected), #got, __FILE__, __LINE__)
#define CHECK_BYTES(got, expected, size) check_bytes((got), (expected), (size), #got, __FILE__, __LINE__)
#define CHECK_TEXT(text, part) check_text((text), (part), #text, __FILE__, __LINE__)
#define CHECK_STATUS(call, expected) check_status((call), (expected), #call, __FILE__, __LINE__)
#define CHECK_OK(call) CHECK_STATUS(call, MOFO_OK)
/* Without this the rest of the program makes no sense. */
#define REQUIRE_OK(call)                                                                                     \
    do {                                                                                                     \
        if (!CHECK_OK(call)) {                                                                               \
            exit(check_finish());                                                                            \
        }                                                                                                    \
    } while (0)
#define REQUIRE(condition)                                                                                   \
    do {                                                                                                     \
        if (!CHECK(condition)) {                                                                             \
            exit(check_finish());                                                                            \
        }                                                                                                    \
    } while (0)
/* Out loud, so that nobody takes an absent feature for a passed test. */
#define SKIP(...) ((void)printf("skipped: "), (void)printf(__VA_ARGS__), (void)printf("\n"), check_skips++)

static inline void check_say(const char *file, int line) {
    printf("%s:%d: %s%s", file, line, check_case, check_case[0] ? ": " : "");
}

static inline int check_that(int holds, const char *what, const char *file, int line) {
    check_count++;
    if (!holds) {
        check_failures++;
        check_say(file, line);
        printf("does not hold: %s (last error: \"%s\")\n", what, mofo_last_error());
    }
    return holds;
}

static inline int check_u64(uint64_t got, uint64_t expected, const char *what, const char *file, int line) {
    check_count++;
    if (got != expected) {
        check_failures++;
        check_say(file, line);
        printf("%s is %llu, not %llu\n", what, (unsigned long long)got, (unsigned long long)expected);
    }
    return got == expected;
}

static inline int check_at_most(uint64_t got, uint64_t limit, const char *what, const char *file, int line) {
    check_count++;
    if (got > limit) {
        check_failures++;
        check_say(file, line);
        printf("%s is %llu, more than %llu\n", what, (unsigned long long)got, (unsigned long long)limit);
    }
    return got <= limit;
}

static inline int check_f64(double got, double expected, const char *what, const char *file, int line) {
    check_count++;
    if (memcmp(&got, &expected, sizeof got) != 0) {
        check_failures++;
        check_say(file, line);
        printf("%s is %.17g, not %.17g\n", what, got, expected);
        return 0;
    }
    return 1;
}

static inline int check_bytes(const void *got, const void *expected, size_t size, const char *what,
                              const char *file, int line) {
    const unsigned char *a = (const unsigned char *)got;
    const unsigned char *b = (const unsigned char *)expected;
    size_t i = 0;
    check_count++;
    while (i < size && a[i] == b[i]) {
        i++;
    }
    if (i < size) {
        check_failures++;
        check_say(file, line);
        printf("%s differs at byte %zu of %zu: 0x%02x, not 0x%02x\n", what, i, size, a[i], b[i]);
    }
    return i == size;
}

static inline int check_text(const char *text, const char *part, const char *what, const char *file, int line) {
    int found = text != NULL && strstr(text, part) != NULL;
    check_count++;
    if (!found) {
        check_failures++;
        check_say(file, line);
        printf("%s, \"%s\", does not contain \"%s\"\n", what, text != NULL ? text : "(NULL)", part);
    }
    return found;
}

static inline int check_status(int32_t got, int32_t expected, const char *call, const char *file, int line) {
    check_count++;
    if (got != expected) {
        check_failures++;
        check_say(file, line);
        printf("%s\n    gave %d (%s), not %d (%s); last error: \"%s\"\n", call, (int)got,
               mofo_status_name(got), (int)expected, mofo_status_name(expected), mofo_last_error());
    }
    return got == expected;
}

/* A CPU tier that mofo_create has just refused because the machine lacks it: a failure if MOFO_REQUIRE_TIERS is 1. */
static inline void check_missing_tier(int32_t tier) {
    static const char *const names[] = {"best", "portable", "avx2", "avx512"};
    const char *required = getenv("MOFO_REQUIRE_TIERS");
    const int is_required = required != NULL && strcmp(required, "1") == 0;
    CHECK(tier == MOFO_CPU_TIER_AVX2 || tier == MOFO_CPU_TIER_AVX512);
    CHECK(!is_required);
    SKIP("CPU tier %s is not on this machine: %s", names[tier], mofo_last_error());
}

/* The program's exit status. A program that neither checked nor skipped anything has failed. */
static inline int check_finish(void) {
    printf("%d checks, %d failed, %d skipped\n", check_count, check_failures, check_skips);
    fflush(stdout);
    return check_failures == 0 && check_count + check_skips > 0 ? 0 : 1;
}

/* Set where a run is slow, under valgrind for example: loops are then shortened. */
static inline int check_quick(void) { return getenv("MOFO_TEST_QUICK") != NULL; }

#endif
