/* An optimizer with threads of its own, and steps of it; for the programs beside this file. */

#ifndef STEPPER_H
#define STEPPER_H

#include <mofo.h>
#include <stdio.h>

enum { STEPPER_NUMEL = 100000, STEPPER_THREADS = 2 };

typedef struct stepper {
    float param[STEPPER_NUMEL], grad[STEPPER_NUMEL];
    mofo_optimizer *optimizer;
    uint32_t steps;
} stepper;

static inline int stepper_ok(int32_t status, const char *what) {
    if (status < 0) fprintf(stderr, "%s: %s: %s\n", what, mofo_status_name(status), mofo_last_error());
    return status >= 0;
}

static inline int stepper_create(stepper *s) {
    mofo_options options;
    mofo_tensor tensor;
    uint64_t index;
    s->optimizer = NULL;
    s->steps = 0;
    if (!stepper_ok(mofo_options_init(&options, sizeof options), "options")) return 0;
    if (!stepper_ok(mofo_tensor_init(&tensor, sizeof tensor), "tensor")) return 0;
    options.num_threads = STEPPER_THREADS;
    options.update_fraction = 0.1;
    tensor.name = "weight";
    tensor.numel = STEPPER_NUMEL;
    tensor.param = s->param;
    tensor.grad = s->grad;
    return stepper_ok(mofo_create(&options, &s->optimizer), "create") &&
           stepper_ok(mofo_add_tensor(s->optimizer, &tensor, &index), "add");
}

static inline int stepper_step(stepper *s) {
    uint32_t i, x = 12345u + s->steps;
    for (i = 0; i < STEPPER_NUMEL; i++) {
        x = x * 1664525u + 1013904223u;
        s->grad[i] = (float)(x >> 8) / 16777216.0f - 0.5f;
    }
    s->steps++;
    return stepper_ok(mofo_step(s->optimizer, NULL), "step");
}

static inline void stepper_destroy(stepper *s) {
    mofo_destroy(s->optimizer);
    s->optimizer = NULL;
}

#endif
