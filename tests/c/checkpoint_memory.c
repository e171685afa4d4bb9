/* Where there is no memory for the list of tensors, saving and loading say so, change nothing, and work again when there
 * is. */

#define _POSIX_C_SOURCE 200809L

#include <sys/resource.h>
#include <unistd.h>

#include "buffers.h"

enum { TENSORS = 20000, NUMEL = 2 };

static float params[TENSORS][NUMEL];
static float grads[TENSORS][NUMEL];

static mofo_optimizer *trained(void) {
    mofo_options options = default_options();
    mofo_optimizer *optimizer = NULL;
    int n;
    options.num_threads = 1;
    REQUIRE_OK(mofo_create(&options, &optimizer));
    for (n = 0; n < TENSORS; n++) {
        mofo_tensor tensor;
        uint64_t index;
        char name[32];
        snprintf(name, sizeof name, "blk.%d.ffn_down.weight", n);
        tensor = named_tensor(name, NUMEL);
        grads[n][0] = (float)n;
        tensor.param = params[n];
        tensor.grad = grads[n];
        REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
    }
    REQUIRE_OK(mofo_step(optimizer, NULL));
    return optimizer;
}

/* Bytes of address space that the process has now. */
static rlim_t address_space(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    REQUIRE(file != NULL);
    REQUIRE(fscanf(file, "%lu", &pages) == 1);
    fclose(file);
    return (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE);
}

static void limit(rlim_t bytes) {
    struct rlimit all;
    REQUIRE(getrlimit(RLIMIT_AS, &all) == 0);
    all.rlim_cur = bytes;
    REQUIRE(setrlimit(RLIMIT_AS, &all) == 0);
}

int main(void) {
    static const rlim_t rooms[] = {0, 1 << 20, 4 << 20, 8 << 20, 16 << 20};
    mofo_optimizer *optimizer = trained();
    uint64_t size = 0, written = 0, again = 0;
    void *buffer, *second;
    size_t n;
    int refused[2] = {0, 0};
#if defined(__SANITIZE_ADDRESS__) || !defined(__linux__)
    const int limits_work = 0;
#else
    const int limits_work = !check_quick();
#endif
    if (!limits_work) {
        /* Sanitizers and valgrind take address space of their own, as they need it. */
        SKIP("a limit of the address space: under sanitizers and valgrind, and elsewhere than on Linux");
    }
    REQUIRE_OK(mofo_save_size(optimizer, &size));
    buffer = buffer_new((size_t)size);
    second = buffer_new((size_t)size);
    REQUIRE_OK(mofo_save_to_memory(optimizer, buffer, size, &written));
    CHECK_U64(written, size);
    for (n = 0; !check_skips && n < sizeof rooms / sizeof rooms[0]; n++) {
        int32_t saved, loaded;
        CASE("%lu bytes of room", (unsigned long)rooms[n]);
        limit(address_space() + rooms[n]);
        saved = mofo_save_to_memory(optimizer, second, size, &again);
        loaded = mofo_load_from_memory(optimizer, buffer, size);
        limit(RLIM_INFINITY);
        CHECK(saved == MOFO_OK || saved == MOFO_ERROR_OUT_OF_MEMORY);
        CHECK(loaded == MOFO_OK || loaded == MOFO_ERROR_OUT_OF_MEMORY);
        refused[0] += saved == MOFO_ERROR_OUT_OF_MEMORY;
        refused[1] += loaded == MOFO_ERROR_OUT_OF_MEMORY;
        CHECK_OK(mofo_save_to_memory(optimizer, second, size, &again));
        CHECK_BYTES(second, buffer, (size_t)size);
        CHECK_OK(mofo_load_from_memory(optimizer, buffer, size));
    }
    CHECK(check_skips || (refused[0] > 0 && refused[1] > 0));
    printf("saves refused: %d, loads refused: %d\n", refused[0], refused[1]);
    mofo_destroy(optimizer);
    free(buffer);
    free(second);
    return check_finish();
}
