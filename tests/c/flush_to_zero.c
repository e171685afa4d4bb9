/* Engines run with flush-to-zero, denormals-are-zero, another rounding mode or traps: a step gives the same bits all
 * the same, traps nowhere, and leaves the caller's floating-point environment as it was. */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>

#include "buffers.h"

#if defined(__x86_64__)

#include <xmmintrin.h>

enum { NUMEL = 100000, STEPS = 3 };
/* MXCSR: all exceptions masked (its default), flush to zero, denormals are zero, and the rounding modes. */
enum { PLAIN = 0x1F80, FTZ = 0x8000, DAZ = 0x0040, ROUND_DOWN = 0x2000, ROUND_UP = 0x4000, ROUND_TO_ZERO = 0x6000 };

/* Each multiplication has a rounding or a denormal in it that the environment would change. The operands are
 * volatile, so that nothing is computed by the compiler. */
static int environment_shows(unsigned int mode) {
    volatile float tiny = reference_float(0x00000400u);
    volatile float third = 1.0f / 3.0f;
    volatile float flushed;
    volatile float rounded;
    unsigned int before = _mm_getcsr();
    float plain_flushed;
    float plain_rounded;
    flushed = tiny * third;
    rounded = third * third;
    plain_flushed = flushed;
    plain_rounded = rounded;
    _mm_setcsr(mode);
    flushed = tiny * third;
    rounded = third * third;
    _mm_setcsr(before);
    return flushed != plain_flushed || rounded != plain_rounded;
}

struct run {
    mofo_options options;
    mofo_optimizer *optimizer;
    mofo_tensor tensor;
    uint64_t index;
    unsigned int mode;
    unsigned int mode_after;
    int32_t status[STEPS];
    double norm;
};

/* Denormal gradients and parameters, so that an environment that flushes would be seen. */
static struct run run_new(int32_t num_threads, int32_t dtype, mofo_parallel_for loop) {
    struct run run;
    uint64_t i;
    memset(&run, 0, sizeof run);
    run.options = default_options();
    run.options.num_threads = num_threads;
    run.options.parallel_for = loop;
    run.options.max_grad_norm = 0.5;
    run.options.weight_decay = 0.1;
    run.options.weight_decay_scope = MOFO_WEIGHT_DECAY_ALL;
    run.tensor = owned_tensor(&run.options, "w", NUMEL, dtype, dtype, 3);
    for (i = 0; i < NUMEL; i += 2) {
        float tiny = reference_float((uint32_t)(reference_mix64(i) >> 42));
        reference_store(dtype, run.tensor.param, i, tiny, 0, 0);
        reference_store(dtype, (void *)(uintptr_t)run.tensor.grad, i + 1, tiny * 64.0f, 0, 0);
    }
    REQUIRE_OK(mofo_create(&run.options, &run.optimizer));
    REQUIRE_OK(mofo_add_tensor(run.optimizer, &run.tensor, &run.index));
    return run;
}

static void run_free(struct run *run) {
    mofo_destroy(run->optimizer);
    owned_tensor_free(&run->tensor);
}

static void run_steps(struct run *run) {
    unsigned int before = _mm_getcsr();
    int t;
    _mm_setcsr(run->mode);
    for (t = 0; t < STEPS; t++) {
        run->status[t] = mofo_step(run->optimizer, NULL);
    }
    (void)mofo_grad_norm(run->optimizer, NULL, &run->norm);
    run->mode_after = _mm_getcsr();
    _mm_setcsr(before);
}

/* The engine's threads have an environment of their own, which a task must restore too. */
struct task_thread {
    mofo_task task;
    void *task_ctx;
    int64_t i;
    unsigned int mode_after;
};

static unsigned int engine_mode;
static int engine_modes_kept = 1;

static void *run_task(void *argument) {
    struct task_thread *thread = argument;
    _mm_setcsr(engine_mode);
    thread->task(thread->task_ctx, thread->i);
    thread->mode_after = _mm_getcsr();
    return NULL;
}

static void threaded(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    pthread_t threads[16];
    struct task_thread starts[16];
    int64_t i;
    (void)ctx;
    for (i = 0; i < n; i++) {
        starts[i].task = task;
        starts[i].task_ctx = task_ctx;
        starts[i].i = i;
        if (pthread_create(&threads[i], NULL, run_task, &starts[i]) != 0) {
            exit(1);
        }
    }
    for (i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
        /* The lowest six bits are the exceptions that have occurred. */
        engine_modes_kept &= (starts[i].mode_after & ~0x3Fu) == (engine_mode & ~0x3Fu);
    }
}

static void same_bits(int32_t num_threads, int32_t dtype, mofo_parallel_for loop) {
    static const unsigned int modes[] = {
        PLAIN | FTZ | DAZ, PLAIN | FTZ | DAZ | ROUND_TO_ZERO, PLAIN | ROUND_UP, PLAIN | DAZ | ROUND_DOWN,
        /* Everything traps, even a result that was rounded. */
        0,
    };
    struct run expected = run_new(num_threads, dtype, loop);
    size_t m;
    int t;
    expected.mode = PLAIN;
    engine_mode = PLAIN;
    run_steps(&expected);
    for (m = 0; m < sizeof modes / sizeof modes[0]; m++) {
        struct run run = run_new(num_threads, dtype, loop);
        run.mode = modes[m];
        engine_mode = run.mode;
        CASE("MXCSR 0x%04x, %d threads, dtype %d, %s", run.mode, (int)num_threads, (int)dtype,
             loop ? "engine's loop" : "own");
        run_steps(&run);
        for (t = 0; t < STEPS; t++) {
            CHECK_STATUS(run.status[t], MOFO_OK);
        }
        CHECK((run.mode_after & ~0x3Fu) == run.mode);
        CHECK_F64(run.norm, expected.norm);
        check_same_tensor(&run.options, &run.tensor, &expected.tensor);
        CHECK_BYTES(state_of(run.optimizer, run.index).thresholds,
                    state_of(expected.optimizer, expected.index).thresholds, sizeof(float));
        run_free(&run);
    }
    run_free(&expected);
    CASE("%s", "");
}

int main(void) {
    static const int32_t dtypes[] = {MOFO_DTYPE_F32, MOFO_DTYPE_F16, MOFO_DTYPE_BF16};
    size_t d;
    if (!environment_shows(PLAIN | FTZ | DAZ) || !environment_shows(PLAIN | ROUND_UP)) {
        SKIP("this machine (an emulator?) ignores MXCSR");
        return check_finish();
    }
    for (d = 0; d < 3; d++) {
        same_bits(1, dtypes[d], NULL);
        same_bits(3, dtypes[d], NULL);
        same_bits(3, dtypes[d], threaded);
    }
    CHECK(engine_modes_kept);
    return check_finish();
}

#else

int main(void) {
    SKIP("MXCSR is x86-64's");
    return check_finish();
}

#endif
