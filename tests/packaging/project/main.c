/* A program of somebody else's: steps with threads of the optimizer's own, and looks at what has moved.
 * Usage: main VERSION. The version is the one that the package, the headers' library and this must agree on. */

#include <mofo.h>
#include <stdio.h>
#include <string.h>

enum { NUMEL = 200000, SELECTED = NUMEL / 20 };
static float param[NUMEL], grad[NUMEL];

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, mofo_last_error());
    return 1;
}

int main(int argc, char **argv) {
    mofo_options options;
    mofo_tensor tensor;
    mofo_step_args args;
    mofo_step_report report;
    mofo_optimizer *optimizer = NULL;
    uint64_t index;
    int i, moved = 0;

    if (argc != 2 || strcmp(argv[1], mofo_version()) != 0) return fail("not the version that was asked for");
    if (mofo_abi_version() != MOFO_ABI_VERSION) return fail("not the header's library");

    for (i = 0; i < NUMEL; i++) {
        param[i] = 1.0f;
        grad[i] = (float)(i + 1);
    }
    if (mofo_options_init(&options, sizeof options) < 0) return fail("mofo_options_init");
    if (mofo_tensor_init(&tensor, sizeof tensor) < 0) return fail("mofo_tensor_init");
    if (mofo_step_args_init(&args, sizeof args) < 0) return fail("mofo_step_args_init");
    options.num_threads = 2;
    options.update_fraction = 0.05;
    tensor.name = "weight";
    tensor.numel = NUMEL;
    tensor.param = param;
    tensor.grad = grad;
    args.report = &report;
    args.report_size = sizeof report;
    if (mofo_create(&options, &optimizer) < 0) return fail("mofo_create");
    if (mofo_add_tensor(optimizer, &tensor, &index) < 0) return fail("mofo_add_tensor");
    if (mofo_step(optimizer, &args) < 0) return fail("mofo_step");
    /* An error is an error here too, not the end of the program. */
    if (mofo_add_tensor(optimizer, &tensor, &index) >= 0) return fail("a name was taken twice");
    if (strstr(mofo_last_error(), "weight") == NULL) return fail("the error does not name the tensor");
    mofo_destroy(optimizer);

    /* The gradients are all different, and the largest are the last. */
    for (i = 0; i < NUMEL; i++) moved += param[i] != 1.0f;
    if (moved != SELECTED || report.entries_selected != SELECTED) return fail("not the expected number of entries moved");
    if (param[NUMEL - SELECTED - 1] != 1.0f || param[NUMEL - SELECTED] >= 1.0f) return fail("not the expected entries moved");
    printf("mofo %s: %d of %d entries moved\n", mofo_version(), moved, NUMEL);
    return 0;
}
