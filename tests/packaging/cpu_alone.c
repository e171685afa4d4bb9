/* A library built without CUDA says so, and steps on the CPU. Usage: cpu_alone. */

#include <string.h>

#include "stepper.h"

static stepper s;

int main(void) {
    mofo_options options;
    mofo_optimizer *optimizer = NULL;
    if (mofo_cuda_available() != 0) return 1;
    if (mofo_options_init(&options, sizeof options) < 0) return 1;
    options.device = MOFO_DEVICE_CUDA;
    if (mofo_create(&options, &optimizer) >= 0) return 1;
    if (strstr(mofo_last_error(), "no CUDA backend") == NULL) {
        fprintf(stderr, "an unexpected reason: %s\n", mofo_last_error());
        return 1;
    }
    if (!stepper_create(&s) || !stepper_step(&s)) return 1;
    stepper_destroy(&s);
    printf("a library without CUDA\n");
    return 0;
}
