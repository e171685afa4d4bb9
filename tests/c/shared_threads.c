/*
 * Optimizers with the same number of threads share them, and a step needs none that cannot be started.
 *
 * Linked statically, with the start of threads wrapped by the linker (--wrap).
 */

#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <pthread.h>

#include "buffers.h"

enum { OPTIMIZERS = 150, NUM_THREADS = 16, STEPS = 2, NUMEL = 70000 };

static int started;
/* How many more may be started. */
static int allowed;

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    if (allowed == 0) {
        return EAGAIN;
    }
    allowed--;
    started++;
    return __real_pthread_create(thread, attributes, run, argument);
}

struct model {
    mofo_optimizer *optimizer;
    float *param;
    float *grad;
};

static struct model model_of(int32_t num_threads, uint64_t seed) {
    struct model model;
    mofo_options options = default_options();
    mofo_tensor tensor;
    uint64_t index;
    options.num_threads = num_threads;
    model.param = buffer_filled(MOFO_DTYPE_F32, NUMEL, seed, 1.0);
    model.grad = buffer_filled(MOFO_DTYPE_F32, NUMEL, 1000 + seed, 0.01);
    REQUIRE(mofo_create(&options, &model.optimizer) == MOFO_OK);
    REQUIRE(mofo_tensor_init(&tensor, sizeof tensor) == MOFO_OK);
    tensor.name = "weight";
    tensor.numel = NUMEL;
    tensor.param = model.param;
    tensor.grad = model.grad;
    CHECK_OK(mofo_add_tensor(model.optimizer, &tensor, &index));
    return model;
}

static void free_model(struct model *model) {
    mofo_destroy(model->optimizer);
    free(model->param);
    free(model->grad);
}

/* One optimizer for each of many parameters, as engines have that step inside of the backward pass. */
static void many_optimizers(void) {
    static struct model models[OPTIMIZERS];
    struct model alone = model_of(1, 7);
    int n, t;
    CASE("%d optimizers", OPTIMIZERS);
    allowed = 10 * NUM_THREADS;
    started = 0;
    for (n = 0; n < OPTIMIZERS; n++) {
        models[n] = model_of(NUM_THREADS, (uint64_t)n);
    }
    for (t = 0; t < STEPS; t++) {
        CHECK_OK(mofo_step(alone.optimizer, NULL));
        for (n = 0; n < OPTIMIZERS; n++) {
            CHECK_OK(mofo_step(models[n].optimizer, NULL));
        }
    }
    CHECK(started == NUM_THREADS - 1);
    CHECK(memcmp(models[7].param, alone.param, NUMEL * sizeof(float)) == 0);
    for (n = 0; n < OPTIMIZERS; n++) {
        mofo_memory_info memory;
        CHECK_OK(mofo_memory(models[n].optimizer, &memory, sizeof memory));
        /* For the three threads that so many entries are worth, not for sixteen. */
        CHECK(memory.scratch < 8 * NUMEL);
        free_model(&models[n]);
    }
    free_model(&alone);
    CASE("%s", "after the last one");
    models[0] = model_of(NUM_THREADS, 0);
    CHECK_OK(mofo_step(models[0].optimizer, NULL));
    CHECK(started == 2 * (NUM_THREADS - 1));
    free_model(&models[0]);
}

static void threads_that_cannot_be_started(int possible) {
    struct model model = model_of(5, 3);
    struct model alone = model_of(1, 3);
    int t;
    CASE("%d threads can be started", possible);
    allowed = possible;
    started = 0;
    for (t = 0; t < STEPS; t++) {
        CHECK_OK(mofo_step(model.optimizer, NULL));
        CHECK_OK(mofo_step(alone.optimizer, NULL));
    }
    CHECK(started == possible);
    CHECK(memcmp(model.param, alone.param, NUMEL * sizeof(float)) == 0);
    free_model(&model);
    free_model(&alone);
}

int main(void) {
    int possible;
    many_optimizers();
    for (possible = 0; possible < 4; possible++) {
        threads_that_cannot_be_started(possible);
    }
    return check_finish();
}
