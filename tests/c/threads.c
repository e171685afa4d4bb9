/* Different optimizers in different threads at once: each gives what it gives alone. */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>

#include "buffers.h"

enum { THREADS = 8, KINDS = 10, STEPS = 3 };

static int optimizers(void) { return check_quick() ? 40 : 1000; }

/* The k-th kind of optimizer, and a digest of what its steps gave; 0 if a call failed. Makes no checks, since it
 * runs on other threads. */
static uint64_t digest_of(int kind) {
    static const int32_t dtypes[] = {MOFO_DTYPE_F32, MOFO_DTYPE_F16, MOFO_DTYPE_BF16};
    mofo_options options;
    mofo_optimizer *optimizer = NULL;
    mofo_tensor tensor;
    /* Enough entries for two threads to share them. */
    const uint64_t numel = 40000 + (uint64_t)kind;
    const int32_t dtype = dtypes[kind % 3];
    void *param;
    void *grad;
    uint64_t digest = 0;
    uint64_t index;
    size_t bytes = (size_t)numel * reference_size(dtype);
    size_t i;
    int t;
    char name[32];
    int failed = mofo_options_init(&options, sizeof options) != MOFO_OK ||
                 mofo_tensor_init(&tensor, sizeof tensor) != MOFO_OK;
    options.num_threads = 1 + kind % 3;
    options.state_dtype = kind % 2 ? MOFO_DTYPE_BF16 : MOFO_DTYPE_F32;
    options.master_weights = kind % 4 == 3;
    options.max_grad_norm = kind % 5 == 1 ? 0.1 : 0.0;
    options.seed = (uint64_t)kind;
    snprintf(name, sizeof name, "kind.%d", kind);
    param = buffer_filled(dtype, numel, (uint64_t)kind, 1.0);
    grad = buffer_filled(dtype, numel, 100 + (uint64_t)kind, 0.01);
    tensor.name = name;
    tensor.numel = numel;
    tensor.param_dtype = dtype;
    tensor.grad_dtype = dtype;
    tensor.param = param;
    tensor.grad = grad;
    failed = failed || mofo_create(&options, &optimizer) != MOFO_OK ||
             mofo_add_tensor(optimizer, &tensor, &index) != MOFO_OK;
    for (t = 0; t < STEPS; t++) {
        failed = failed || mofo_step(optimizer, NULL) != MOFO_OK;
    }
    /* A failure of this thread's own, whose text must be its own. */
    failed = failed || mofo_find_tensor(optimizer, "nobody", &index) != MOFO_ERROR_NOT_FOUND ||
             strstr(mofo_last_error(), "nobody") == NULL;
    mofo_destroy(optimizer);
    for (i = 0; i < bytes; i++) {
        digest = (digest ^ ((unsigned char *)param)[i]) * 0x00000100000001B3u + 1;
    }
    free(param);
    free(grad);
    return failed ? 0 : digest | 1;
}

struct worker {
    pthread_t thread;
    int first;
    const uint64_t *expected;
    int done;
    int wrong;
};

static void *work(void *argument) {
    struct worker *worker = argument;
    int n;
    for (n = worker->first; n < optimizers(); n += THREADS) {
        worker->wrong += digest_of(n % KINDS) != worker->expected[n % KINDS];
        worker->done++;
    }
    return NULL;
}

int main(void) {
    uint64_t expected[KINDS];
    struct worker workers[THREADS];
    int done = 0;
    int n, other;
    for (n = 0; n < KINDS; n++) {
        expected[n] = digest_of(n);
        CASE("kind %d", n);
        CHECK(expected[n] != 0);
        for (other = 0; other < n; other++) {
            CHECK(expected[n] != expected[other]);
        }
    }
    for (n = 0; n < THREADS; n++) {
        workers[n].first = n;
        workers[n].expected = expected;
        workers[n].done = 0;
        workers[n].wrong = 0;
        REQUIRE(pthread_create(&workers[n].thread, NULL, work, &workers[n]) == 0);
    }
    for (n = 0; n < THREADS; n++) {
        CASE("thread %d", n);
        REQUIRE(pthread_join(workers[n].thread, NULL) == 0);
        CHECK_U64((uint64_t)workers[n].wrong, 0);
        done += workers[n].done;
    }
    CASE("%s", "");
    CHECK(done == optimizers());
    return check_finish();
}
