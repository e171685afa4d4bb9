/* The engine's own parallel loop: any order and any threads give the same bits; one that does not do its duty is
 * found out before anything has changed, or does no harm. */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>

#include "buffers.h"

enum { WIDTH = 5, MAX_THREADS = 8 };

static uint64_t numel(void) { return check_quick() ? 140000 : 400000; }

/* What a loop saw, and how it is told to misbehave. */
struct engine {
    int64_t calls;
    int64_t largest_n;
    int strange_n;
    /* The call (from 0) in which to misbehave, or -1 for every one. */
    int64_t at_call;
    mofo_task late_task;
    void *late_ctx;
};

static int misbehaves_now(struct engine *engine, int64_t n) {
    int64_t call = engine->calls++;
    if (n < 1 || n > WIDTH) {
        engine->strange_n = 1;
    }
    if (n > engine->largest_n) {
        engine->largest_n = n;
    }
    return engine->at_call == -1 || engine->at_call == call;
}

static void serial(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    int64_t i;
    (void)misbehaves_now(ctx, n);
    for (i = 0; i < n; i++) {
        task(task_ctx, i);
    }
}

static void reversed(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    int64_t i;
    (void)misbehaves_now(ctx, n);
    for (i = n - 1; i >= 0; i--) {
        task(task_ctx, i);
    }
}

struct share {
    mofo_task task;
    void *task_ctx;
    int64_t first, n, stride;
};

static void *run_share(void *argument) {
    struct share *share = argument;
    int64_t i;
    for (i = share->first; i < share->n; i += share->stride) {
        share->task(share->task_ctx, i);
    }
    return NULL;
}

/* `copies` threads for every task, each running all tasks of its residue. */
static void on_threads(int64_t n, mofo_task task, void *task_ctx, int copies) {
    pthread_t threads[2 * MAX_THREADS];
    struct share shares[2 * MAX_THREADS];
    int64_t width = n < MAX_THREADS ? n : MAX_THREADS;
    int64_t i;
    for (i = 0; i < width * copies; i++) {
        struct share share;
        share.task = task;
        share.task_ctx = task_ctx;
        share.first = i % width;
        share.n = n;
        share.stride = width;
        shares[i] = share;
        if (pthread_create(&threads[i], NULL, run_share, &shares[i]) != 0) {
            printf("the test itself has no threads\n");
            exit(1);
        }
    }
    for (i = 0; i < width * copies; i++) {
        pthread_join(threads[i], NULL);
    }
}

static void threaded(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    (void)misbehaves_now(ctx, n);
    on_threads(n, task, task_ctx, 1);
}

static void leaves_out_the_last(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    int64_t i;
    if (misbehaves_now(ctx, n)) {
        n--;
    }
    for (i = 0; i < n; i++) {
        task(task_ctx, i);
    }
}

static void leaves_out_the_first(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    int64_t i;
    for (i = misbehaves_now(ctx, n); i < n; i++) {
        task(task_ctx, i);
    }
}

static void runs_none(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    if (!misbehaves_now(ctx, n)) {
        on_threads(n, task, task_ctx, 1);
    }
}

static void runs_twice(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    int64_t i;
    int copies = misbehaves_now(ctx, n) ? 2 : 1;
    for (i = 0; i < n * copies; i++) {
        task(task_ctx, i / copies);
    }
}

static void runs_twice_at_once(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    on_threads(n, task, task_ctx, misbehaves_now(ctx, n) ? 2 : 1);
}

static void runs_tasks_that_are_none(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    int64_t i;
    if (misbehaves_now(ctx, n)) {
        task(task_ctx, -1);
        task(task_ctx, n);
        task(task_ctx, INT64_MAX);
        task(task_ctx, INT64_MIN);
    }
    for (i = 0; i < n; i++) {
        task(task_ctx, i);
    }
}

static void keeps_the_task_for_later(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    struct engine *engine = ctx;
    int64_t i;
    (void)misbehaves_now(ctx, n);
    for (i = 0; i < n; i++) {
        task(task_ctx, i);
    }
    engine->late_task = task;
    engine->late_ctx = task_ctx;
}

/* With clipping a step begins with the norm's jobs, without it with those that write. */
static double max_grad_norm;

/* Two tensors of different types, one of many blocks: every kind of job that a step has. */
struct run {
    mofo_options options;
    mofo_optimizer *optimizer;
    mofo_tensor tensors[2];
    uint64_t indices[2];
};

static struct run run_new(mofo_parallel_for parallel_for, struct engine *engine) {
    struct run run;
    run.options = default_options();
    run.options.num_threads = WIDTH;
    run.options.max_grad_norm = max_grad_norm;
    run.options.parallel_for = parallel_for;
    run.options.parallel_for_ctx = engine;
    run.optimizer = NULL;
    run.tensors[0] = owned_tensor(&run.options, "large", numel(), MOFO_DTYPE_F32, MOFO_DTYPE_BF16, 1);
    run.tensors[1] = owned_tensor(&run.options, "blocks", 12000, MOFO_DTYPE_F16, MOFO_DTYPE_F32, 2);
    run.tensors[1].num_blocks = 12;
    REQUIRE_OK(mofo_create(&run.options, &run.optimizer));
    REQUIRE_OK(mofo_add_tensor(run.optimizer, &run.tensors[0], &run.indices[0]));
    REQUIRE_OK(mofo_add_tensor(run.optimizer, &run.tensors[1], &run.indices[1]));
    return run;
}

static void run_free(struct run *run) {
    mofo_destroy(run->optimizer);
    owned_tensor_free(&run->tensors[0]);
    owned_tensor_free(&run->tensors[1]);
}

static void check_same_run(struct run *got, mofo_tensor expected[2]) {
    int n;
    for (n = 0; n < 2; n++) {
        got->tensors[n].step_count = state_of(got->optimizer, got->indices[n]).step_count;
        check_same_tensor(&got->options, &got->tensors[n], &expected[n]);
    }
}

/* The state of a run after each of its first steps, computed by the reference. */
enum { STEPS = 3 };
static mofo_tensor expected[STEPS + 1][2];
static double expected_norm;

static void expect(void) {
    struct engine engine = {0};
    struct run run = run_new(serial, &engine);
    float thresholds[12];
    int t, n;
    expected_norm = reference_norm(run.tensors, 2, 1.0);
    for (n = 0; n < 2; n++) {
        expected[0][n] = owned_tensor_copy(&run.options, &run.tensors[n]);
        for (t = 1; t <= STEPS; t++) {
            expected[t][n] = owned_tensor_copy(&run.options, &expected[t - 1][n]);
            (void)reference_step(&run.options, NULL, expected_norm, &expected[t][n], thresholds);
        }
    }
    run_free(&run);
}

static void good_loops(void) {
    static const struct {
        const char *name;
        mofo_parallel_for loop;
    } loops[] = {{"serial", serial}, {"reversed", reversed}, {"threaded", threaded}};
    size_t l;
    for (l = 0; l < sizeof loops / sizeof loops[0]; l++) {
        struct engine engine = {0};
        struct run run = run_new(loops[l].loop, &engine);
        double norm = 0.0;
        int t;
        engine.at_call = -2;
        CHECK(engine.calls == 0);
        for (t = 1; t <= STEPS; t++) {
            CASE("%s, step %d", loops[l].name, t);
            CHECK_OK(mofo_step(run.optimizer, NULL));
            check_same_run(&run, expected[t]);
        }
        CHECK_OK(mofo_grad_norm(run.optimizer, NULL, &norm));
        CHECK_F64(norm, expected_norm);
        CHECK(engine.calls > 0);
        CHECK(!engine.strange_n);
        /* num_threads says into how many tasks a step is cut. */
        CHECK(engine.largest_n == WIDTH || (check_quick() && engine.largest_n > 1));
        run_free(&run);
    }
    CASE("%s", "");
}

/* One that leaves out tasks from the start is refused; afterwards a step of the same optimizer succeeds. */
static void leaving_out_tasks(void) {
    static const struct {
        const char *name;
        mofo_parallel_for loop;
    } loops[] = {
        {"leaves out the last", leaves_out_the_last},
        {"leaves out the first", leaves_out_the_first},
        {"runs none", runs_none},
    };
    size_t l;
    for (l = 0; l < sizeof loops / sizeof loops[0]; l++) {
        struct engine engine = {0};
        struct run run = run_new(loops[l].loop, &engine);
        mofo_step_args args = default_args();
        mofo_step_report report;
        mofo_step_report before;
        double norm = 5.0;
        int64_t call;
        int64_t calls;
        CASE("%s", loops[l].name);
        memset(&report, 0xAA, sizeof report);
        before = report;
        args.report = &report;
        args.report_size = sizeof report;
        engine.at_call = -1;
        CHECK_STATUS(mofo_step(run.optimizer, &args), MOFO_ERROR_PARALLEL_FOR);
        CHECK_TEXT(mofo_last_error(), "parallel_for");
        CHECK_BYTES(&report, &before, sizeof report);
        check_same_run(&run, expected[0]);
        CHECK_STATUS(mofo_grad_norm(run.optimizer, NULL, &norm), MOFO_ERROR_PARALLEL_FOR);
        CHECK_F64(norm, 5.0);
        engine.at_call = -2;
        CHECK_OK(mofo_step(run.optimizer, &args));
        check_same_run(&run, expected[1]);
        engine.at_call = -1;
        CHECK_STATUS(mofo_step(run.optimizer, NULL), MOFO_ERROR_PARALLEL_FOR);
        check_same_run(&run, expected[1]);
        engine.at_call = -2;
        engine.calls = 0;
        CHECK_OK(mofo_step(run.optimizer, NULL));
        check_same_run(&run, expected[2]);
        calls = engine.calls;
        run_free(&run);

        /* Failing later, in one call of many: refused with nothing changed, or made good; nothing between. */
        CHECK(calls > 1);
        for (call = 0; call < calls; call++) {
            int32_t status;
            memset(&engine, 0, sizeof engine);
            engine.at_call = call;
            run = run_new(loops[l].loop, &engine);
            CASE("%s, in call %d", loops[l].name, (int)call);
            status = mofo_step(run.optimizer, NULL);
            CHECK(status == MOFO_OK || status == MOFO_ERROR_PARALLEL_FOR);
            check_same_run(&run, expected[status == MOFO_OK]);
            engine.at_call = -2;
            CHECK_OK(mofo_step(run.optimizer, NULL));
            check_same_run(&run, expected[status == MOFO_OK ? 2 : 1]);
            run_free(&run);
        }
    }
    CASE("%s", "");
}

/* Tasks run twice, even at once, or numbers that are no task: the right bits all the same. */
static void running_too_much(void) {
    static const struct {
        const char *name;
        mofo_parallel_for loop;
    } loops[] = {
        {"runs each twice", runs_twice},
        {"runs each twice at once", runs_twice_at_once},
        {"runs tasks that are none", runs_tasks_that_are_none},
    };
    size_t l;
    for (l = 0; l < sizeof loops / sizeof loops[0]; l++) {
        struct engine engine = {0};
        struct run run = run_new(loops[l].loop, &engine);
        int t;
        engine.at_call = -1;
        for (t = 1; t <= STEPS; t++) {
            CASE("%s, step %d", loops[l].name, t);
            CHECK_OK(mofo_step(run.optimizer, NULL));
            check_same_run(&run, expected[t]);
        }
        run_free(&run);
    }
    CASE("%s", "");
}

/* A task that is called after its loop has returned does nothing. */
static void late_tasks(void) {
    struct engine engine = {0};
    struct run run = run_new(keeps_the_task_for_later, &engine);
    int64_t i;
    engine.at_call = -2;
    CHECK_OK(mofo_step(run.optimizer, NULL));
    REQUIRE(engine.late_task != NULL);
    for (i = 0; i < WIDTH; i++) {
        engine.late_task(engine.late_ctx, i);
    }
    check_same_run(&run, expected[1]);
    CHECK_OK(mofo_step(run.optimizer, NULL));
    check_same_run(&run, expected[2]);
    run_free(&run);
}

/* One task, or more tasks than there is work: fine. A NULL context too. */
static void context_is_optional(void *ctx, int64_t n, mofo_task task, void *task_ctx) {
    int64_t i;
    if (ctx != NULL) {
        return;
    }
    for (i = 0; i < n; i++) {
        task(task_ctx, i);
    }
}

static void few_entries(void) {
    int32_t width;
    for (width = 0; width <= 1024; width = width * 4 + 1) {
        mofo_options options = default_options();
        mofo_optimizer *optimizer = NULL;
        mofo_tensor tensor = named_tensor("p", 1);
        float param = 1.0f;
        float grad = 1.0f;
        uint64_t index;
        CASE("%d tasks", (int)width);
        options.num_threads = width;
        options.parallel_for = context_is_optional;
        tensor.param = &param;
        tensor.grad = &grad;
        REQUIRE_OK(mofo_create(&options, &optimizer));
        REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
        CHECK_OK(mofo_step(optimizer, NULL));
        CHECK(param < 1.0f);
        mofo_destroy(optimizer);
    }
    CASE("%s", "");
}

int main(void) {
    static const double norms[] = {0.0, 1.0};
    size_t clipping;
    int t, n;
    for (clipping = 0; clipping < 2; clipping++) {
        max_grad_norm = norms[clipping];
        expect();
        good_loops();
        leaving_out_tasks();
        running_too_much();
        late_tasks();
        for (t = 0; t <= STEPS; t++) {
            for (n = 0; n < 2; n++) {
                owned_tensor_free(&expected[t][n]);
            }
        }
    }
    few_entries();
    return check_finish();
}
