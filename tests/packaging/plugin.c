/* A plug-in with a static mofo of its own. */

#include <string.h>

#include "plugin.h"

static stepper s;

/* Where it was not unmapped, it starts anew all the same. */
int plugin_start(void) {
    memset(&s, 0, sizeof s);
    return stepper_create(&s);
}

int plugin_step(void) { return stepper_step(&s); }
const float *plugin_param(void) { return s.param; }
const char *plugin_version(void) { return mofo_version(); }
void plugin_stop(void) { stepper_destroy(&s); }
