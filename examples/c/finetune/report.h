/*
 * What the runs gave, and how it is told.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef FINETUNE_REPORT_H
#define FINETUNE_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "digits.h"
#include "trainer.h"

enum { MAX_METHODS = 8, MAX_RATES = 3, MAX_SEEDS = 20 };

/* The experiment: every method at every learning rate with every seed. */
typedef struct {
    view_kind view;
    const method *methods;
    size_t num_methods;
    const double *learning_rates;
    size_t num_rates;
    size_t seeds;
    size_t pretraining_steps;
    size_t step_limit; /* of one fine-tuning run */
    double target_loss;
    int32_t threads;
} experiment;

/* One fine-tuning run. Accuracies are on held-out images. */
typedef struct {
    bool reached; /* the target loss */
    double upright_before;
    double upright_after;
    double new_task;
    double steps;
    double moved;        /* mean share of the entries that moved in a step */
    double distance;     /* L2, of all parameters from the pre-trained ones */
    double microseconds; /* of one optimizer step */
} outcome;

typedef struct {
    outcome runs[MAX_METHODS][MAX_RATES][MAX_SEEDS];
    uint64_t checksum; /* FNV-1a over the final parameters of all runs */
} results;

void print_heading(const experiment *e, const dataset *digits, engine *with);
void print_table(const experiment *e, const results *r);
void print_summary(const experiment *e, const results *r);

/* Prints and returns whether MoFO, at matched loss, keeps clearly more than AdamW and than the random filter. */
bool check_claim(const experiment *e, const results *r);

#endif
