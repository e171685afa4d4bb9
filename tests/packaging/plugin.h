/* What the plug-in offers its host. */

#ifndef PLUGIN_H
#define PLUGIN_H

#include "stepper.h"

int plugin_start(void);
int plugin_step(void);
const float *plugin_param(void);
/* A text inside the copy of mofo that the plug-in uses. */
const char *plugin_version(void);
void plugin_stop(void);

#endif
