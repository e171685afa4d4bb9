/* No CUDA driver, or none that finds a device: the library says so when it is asked, and prints nothing. Takes the
 * parts that the reason must have. Not linked with CUDA. */

#define _POSIX_C_SOURCE 200809L

#include <unistd.h>

#include "buffers.h"

static void asked(int count, char **parts) {
    mofo_optimizer *sentinel = (mofo_optimizer *)(uintptr_t)0x1230;
    mofo_optimizer *optimizer = sentinel;
    mofo_options options = default_options();
    mofo_tensor tensor = named_tensor("t", 1000);
    mofo_state_sizes sizes;
    int round, n;
    CHECK_U64((uint64_t)mofo_cuda_available(), 0);
    options.device = MOFO_DEVICE_CUDA;
    for (round = 0; round < 2; round++) {
        CHECK_STATUS(mofo_create(&options, &optimizer), MOFO_ERROR_UNSUPPORTED);
        CHECK(optimizer == sentinel);
        for (n = 0; n < count; n++) {
            CHECK_TEXT(mofo_last_error(), parts[n]);
        }
        CHECK_U64((uint64_t)mofo_cuda_available(), 0);
    }
    /* That takes no device. */
    REQUIRE_OK(mofo_state_size(&options, &tensor, &sizes, sizeof sizes));
    CHECK_U64(sizes.exp_avg, 4000);
    /* Nor does this. */
    options.device = MOFO_DEVICE_CPU;
    REQUIRE_OK(mofo_create(&options, &optimizer));
    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &(uint64_t){0}));
    mofo_destroy(optimizer);
}

int main(int argc, char **argv) {
    FILE *printed = tmpfile();
    const int failures = check_failures;
    int out, error;
    REQUIRE(printed != NULL);
    fflush(stdout);
    out = dup(STDOUT_FILENO);
    error = dup(STDERR_FILENO);
    REQUIRE(out >= 0 && error >= 0);
    REQUIRE(dup2(fileno(printed), STDOUT_FILENO) >= 0 && dup2(fileno(printed), STDERR_FILENO) >= 0);
    asked(argc - 1, argv + 1);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    dup2(error, STDERR_FILENO);
    if (!CHECK_U64((uint64_t)lseek(fileno(printed), 0, SEEK_END), 0) || check_failures > failures) {
        char text[4096];
        size_t size;
        rewind(printed);
        size = fread(text, 1, sizeof text, printed);
        printf("%.*s", (int)size, text);
    }
    fclose(printed);
    return check_finish();
}
