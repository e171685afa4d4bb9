/* A program with a static mofo of its own loads a plug-in that has another, and both step.
 * Usage: host PLUGIN. */

#define _POSIX_C_SOURCE 200809L

#include <dlfcn.h>
#include <string.h>

#include "plugin.h"

/* ISO C has no cast from an object's pointer to a function's. */
#define LOAD(function)                                                    \
    do {                                                                  \
        void *symbol = dlsym(plugin, "plugin_" #function);                \
        if (symbol == NULL) return fail("the plug-in lacks " #function);  \
        memcpy(&function, &symbol, sizeof symbol);                        \
    } while (0)

static int fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    return 1;
}

static stepper s;

static int with_plugin(const char *path) {
    int (*start)(void), (*step)(void), i;
    const float *(*param)(void);
    const char *(*version)(void);
    void (*stop)(void);
    void *plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (plugin == NULL) return fail(dlerror());
    LOAD(start);
    LOAD(step);
    LOAD(param);
    LOAD(version);
    LOAD(stop);
    if (version() == mofo_version()) return fail("the plug-in uses its host's copy");
    if (strcmp(version(), mofo_version()) != 0) return fail("the copies are not of one version");
    if (!stepper_create(&s) || !start()) return fail("create");
    for (i = 0; i < 5; i++) {
        if (!stepper_step(&s) || !step()) return fail("step");
    }
    if (memcmp(s.param, param(), sizeof s.param) != 0) return fail("the copies compute different numbers");
    stop();
    if (dlclose(plugin) != 0) return fail(dlerror());
    return 0;
}

int main(int argc, char **argv) {
    int round;
    if (argc != 2) return fail("usage: host PLUGIN");
    for (round = 0; round < 3; round++) {
        if (with_plugin(argv[1]) != 0) return 1;
        if (!stepper_step(&s)) return fail("a step after the plug-in has gone");
        stepper_destroy(&s);
        memset(&s, 0, sizeof s);
    }
    printf("both copies work\n");
    return 0;
}
