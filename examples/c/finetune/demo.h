/*
 * The demo from its command line to its last line of output, whatever the optimizer's buffers are in.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef FINETUNE_DEMO_H
#define FINETUNE_DEMO_H

#include <stdbool.h>

#include "report.h"
#include "trainer.h"

typedef struct {
    experiment experiment;
    const char *data_path;
    bool check;
} arguments;

/* Ends the program if they make no sense, or after --help. */
arguments parse_arguments(int argc, char **argv);

/* The program's exit status. */
int run_demo(const arguments *a, engine *with);

#endif
