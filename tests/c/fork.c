/* fork(): the child's copy of an optimizer steps with threads of its own, and both give the right bits. */

#define _POSIX_C_SOURCE 200809L

#include <signal.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "buffers.h"

static uint64_t numel(void) { return check_quick() ? 70000 : 300000; }

static mofo_options options_for(int32_t num_threads) {
    mofo_options options = default_options();
    options.num_threads = num_threads;
    options.max_grad_norm = 0.5;
    return options;
}

/* Runs the rest of a test in a child, whose exit status is its result; a child that hangs is ended. */
static void check_child(pid_t child) {
    int status = -1;
    int waited;
    for (waited = 0; waited < 6000; waited++) {
        pid_t ended = waitpid(child, &status, WNOHANG);
        if (ended == child) {
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            return;
        }
        {
            struct timespec pause = {0, 10 * 1000 * 1000};
            nanosleep(&pause, NULL);
        }
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    CHECK(!"the child hangs");
}

/* Ends a child, without what runs at a normal exit: the threads that the parent's optimizer had do not exist here, so
 * the library gives up its records of them, which a leak check would find. */
static void end_child(int status) {
    fflush(stdout);
    _exit(status);
}

/* Steps once in this process, compares, destroys. */
static void step_and_destroy(mofo_optimizer *optimizer, const mofo_options *options, mofo_tensor *actual,
                             mofo_tensor *expected) {
    float threshold;
    double norm = reference_norm(expected, 1, 1.0);
    CHECK_OK(mofo_step(optimizer, NULL));
    (void)reference_step(options, NULL, norm, expected, &threshold);
    actual->step_count = state_of(optimizer, 0).step_count;
    check_same_tensor(options, actual, expected);
    mofo_destroy(optimizer);
}

static void fork_after(int steps, int32_t num_threads) {
    mofo_options options = options_for(num_threads);
    mofo_optimizer *optimizer = NULL;
    mofo_tensor actual = owned_tensor(&options, "w", numel(), MOFO_DTYPE_BF16, MOFO_DTYPE_F32, 9);
    mofo_tensor expected = owned_tensor_copy(&options, &actual);
    uint64_t index;
    pid_t child;
    int t;
    CASE("fork after %d steps with %d threads", steps, (int)num_threads);
    REQUIRE_OK(mofo_create(&options, &optimizer));
    REQUIRE_OK(mofo_add_tensor(optimizer, &actual, &index));
    for (t = 0; t < steps; t++) {
        float threshold;
        CHECK_OK(mofo_step(optimizer, NULL));
        (void)reference_step(&options, NULL, reference_norm(&expected, 1, 1.0), &expected, &threshold);
    }
    fflush(stdout);
    child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        CASE("child forked after %d steps with %d threads", steps, (int)num_threads);
        step_and_destroy(optimizer, &options, &actual, &expected);
        /* And one that is all the child's own. */
        {
            mofo_options own = options_for(2);
            mofo_tensor other = owned_tensor(&own, "o", 100000, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 10);
            mofo_tensor other_expected = owned_tensor_copy(&own, &other);
            mofo_optimizer *fresh = NULL;
            REQUIRE_OK(mofo_create(&own, &fresh));
            REQUIRE_OK(mofo_add_tensor(fresh, &other, &index));
            step_and_destroy(fresh, &own, &other, &other_expected);
            owned_tensor_free(&other);
            owned_tensor_free(&other_expected);
        }
        owned_tensor_free(&actual);
        owned_tensor_free(&expected);
        end_child(check_finish());
    }
    /* At the same time as the child. */
    step_and_destroy(optimizer, &options, &actual, &expected);
    check_child(child);
    owned_tensor_free(&actual);
    owned_tensor_free(&expected);
    CASE("%s", "");
}

/* A child that only destroys, or only exits, is fine too. */
static void child_that_does_not_step(int destroys) {
    mofo_options options = options_for(3);
    mofo_optimizer *optimizer = NULL;
    mofo_tensor actual = owned_tensor(&options, "w", numel(), MOFO_DTYPE_F32, MOFO_DTYPE_F32, 9);
    uint64_t index;
    pid_t child;
    CASE(destroys ? "child that destroys" : "child that exits");
    REQUIRE_OK(mofo_create(&options, &optimizer));
    REQUIRE_OK(mofo_add_tensor(optimizer, &actual, &index));
    CHECK_OK(mofo_step(optimizer, NULL));
    fflush(stdout);
    child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        if (destroys) {
            mofo_destroy(optimizer);
            owned_tensor_free(&actual);
        }
        end_child(0);
    }
    check_child(child);
    CHECK_OK(mofo_step(optimizer, NULL));
    mofo_destroy(optimizer);
    owned_tensor_free(&actual);
    CASE("%s", "");
}

int main(void) {
    fork_after(0, 3);
    fork_after(1, 3);
    fork_after(2, 2);
    fork_after(1, 1);
    child_that_does_not_step(1);
    child_that_does_not_step(0);
    return check_finish();
}
