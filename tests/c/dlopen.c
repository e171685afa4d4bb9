/* The shared library can be loaded, used and unloaded again and again: no thread of it stays, and, where it was
 * used by a thread that has ended, no mapping either. Usage: dlopen PATH-OF-THE-LIBRARY. Linked against nothing of
 * mofo. */

#define _POSIX_C_SOURCE 200809L

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <time.h>

#include "mofo.h"

/* check.h prints the last error of the library that is linked, which is none here. */
static const char *no_last_error(void) { return ""; }
static const char *no_status_name(int32_t status) {
    (void)status;
    return "";
}
#define mofo_last_error no_last_error
#define mofo_status_name no_status_name

#include "check.h"

/* -1 where the system does not say. */
static int threads_now(void) {
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *entry;
    int count = 0;
    if (tasks == NULL) {
        return -1;
    }
    while ((entry = readdir(tasks)) != NULL) {
        count += entry->d_name[0] != '.';
    }
    closedir(tasks);
    return count;
}

/* A joined thread may still be listed for a moment, until the system has taken it off. */
static int threads_settle_at(int expected) {
    int waited;
    for (waited = 0; waited < 500; waited++) {
        struct timespec pause = {0, 1000 * 1000};
        if (threads_now() == expected) {
            return 1;
        }
        nanosleep(&pause, NULL);
    }
    return 0;
}

/* -1 where the system does not say. */
static int is_mapped(const char *name) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4096];
    int found = 0;
    if (maps == NULL) {
        return -1;
    }
    while (fgets(line, sizeof line, maps) != NULL) {
        found |= strstr(line, name) != NULL;
    }
    fclose(maps);
    return found;
}

/* ISO C has no cast from an object's pointer to a function's. */
#define LOAD(function)                                                                                       \
    do {                                                                                                     \
        void *symbol = dlsym(library, "mofo_" #function);                                                    \
        REQUIRE(symbol != NULL);                                                                             \
        memcpy(&function, &symbol, sizeof symbol);                                                           \
    } while (0)

enum { NUMEL = 200000 };
static float param[NUMEL];
static float grad[NUMEL];

/* Creates, steps and destroys; `threads_before` counts the threads at this moment. */
static void use(void *library, int32_t num_threads, int threads_before) {
    int32_t (*options_init)(mofo_options *, uint64_t);
    int32_t (*tensor_init)(mofo_tensor *, uint64_t);
    int32_t (*create)(const mofo_options *, mofo_optimizer **);
    int32_t (*add_tensor)(mofo_optimizer *, const mofo_tensor *, uint64_t *);
    int32_t (*step)(mofo_optimizer *, const mofo_step_args *);
    void (*destroy)(mofo_optimizer *);
    uint32_t (*abi_version)(void);
    const char *(*last_error)(void);
    mofo_options options;
    mofo_tensor tensor;
    mofo_optimizer *optimizer = NULL;
    uint64_t index;
    size_t i;
    LOAD(options_init);
    LOAD(tensor_init);
    LOAD(create);
    LOAD(add_tensor);
    LOAD(step);
    LOAD(destroy);
    LOAD(abi_version);
    LOAD(last_error);
    CHECK_U64(abi_version(), MOFO_ABI_VERSION);
    for (i = 0; i < NUMEL; i++) {
        param[i] = 1.0f;
        grad[i] = (float)(i % 1000) * 0.001f;
    }
    REQUIRE(options_init(&options, sizeof options) == MOFO_OK);
    REQUIRE(tensor_init(&tensor, sizeof tensor) == MOFO_OK);
    options.num_threads = num_threads;
    tensor.name = "w";
    tensor.numel = NUMEL;
    tensor.param = param;
    tensor.grad = grad;
    REQUIRE(create(&options, &optimizer) == MOFO_OK);
    REQUIRE(add_tensor(optimizer, &tensor, &index) == MOFO_OK);
    /* None is started before the first step. */
    if (threads_before > 0) {
        CHECK(threads_now() == threads_before);
    }
    CHECK(step(optimizer, NULL) == MOFO_OK);
    CHECK(step(optimizer, NULL) == MOFO_OK);
    CHECK(param[999] < 1.0f && param[1] == 1.0f);
    if (threads_before > 0) {
        /* The calling thread is one of them. */
        CHECK_U64((uint64_t)threads_now(), (uint64_t)(threads_before + num_threads - 1));
    }
    /* An error, so that there is a last one to be left behind. */
    CHECK(step(NULL, NULL) == MOFO_ERROR_INVALID_ARGUMENT);
    CHECK(strlen(last_error()) > 0);
    destroy(optimizer);
}

struct user {
    void *library;
    int32_t num_threads;
    int threads_before;
};

/* The main thread waits meanwhile, so checks may be made here. */
static void *use_in_a_thread(void *argument) {
    struct user *user = argument;
    use(user->library, user->num_threads, user->threads_before);
    return NULL;
}

static void load_use_unload(const char *path, int32_t num_threads, int threads_before, int in_a_thread) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        printf("%s\n", dlerror());
    }
    REQUIRE(library != NULL);
    if (in_a_thread) {
        pthread_t thread;
        struct user user;
        user.library = library;
        user.num_threads = num_threads;
        user.threads_before = threads_before > 0 ? threads_before + 1 : threads_before;
        REQUIRE(pthread_create(&thread, NULL, use_in_a_thread, &user) == 0);
        REQUIRE(pthread_join(thread, NULL) == 0);
    } else {
        use(library, num_threads, threads_before);
    }
    CHECK(dlclose(library) == 0);
    if (threads_before > 0) {
        CHECK(threads_settle_at(threads_before));
    }
}


int main(int argc, char **argv) {
    int threads_before = threads_now();
    int rounds = check_quick() ? 6 : 50;
    int n;
    if (argc != 2) {
        printf("usage: dlopen PATH-OF-THE-LIBRARY\n");
        return 2;
    }
    if (threads_before < 0) {
        SKIP("there is no /proc/self/task to count threads in");
    }
    for (n = 0; n < rounds; n++) {
        CASE("round %d, in a thread", n + 1);
        load_use_unload(argv[1], 2 + n % 3, threads_before, 1);
        if (is_mapped(argv[1]) < 0) {
            SKIP("there is no /proc/self/maps to look for the library in");
        } else {
            /* So that its code is really gone, and a thread still in it would crash. */
            CHECK(is_mapped(argv[1]) == 0);
        }
    }
    /* Used by the main thread it may stay mapped: thread-locals with destructors pin a library. */
    for (n = 0; n < rounds; n++) {
        CASE("round %d, in the main thread", n + 1);
        load_use_unload(argv[1], 2 + n % 3, threads_before, 0);
    }
    CASE("%s", "");
    return check_finish();
}
