/* SPDX-License-Identifier: MIT OR Apache-2.0 */

#include "report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void print_heading(const experiment *e, const dataset *digits, engine *with) {
    /* Only to ask the library what it takes. */
    mofo_optimizer *optimizer = optimizer_for(with, &adamw, 0, e->threads);
    mofo_memory_info memory;
    check(mofo_memory(optimizer, &memory, sizeof memory), "mofo_memory");
    mofo_destroy(optimizer);

    printf("mofo %s. Network %d-%d-%d-%d: %d parameters in %d tensors, %.0f KiB of optimizer state.\n", mofo_version(),
           PIXELS, HIDDEN, HIDDEN, CLASSES, PARAMETERS, TENSORS, (double)memory.state / 1024.0);
    printf("Pre-training on upright digits: %zu steps of AdamW, batches of %d of %zu images; %zu held out.\n",
           e->pretraining_steps, BATCH, digits->count - held_out(digits->count), held_out(digits->count));
    printf("Fine-tuning on digits %s, until the smoothed training loss is below %g, %zu steps at most.\n",
           view_meaning(e->view), e->target_loss, e->step_limit);
}

/* A method at a learning rate: the mean over the seeds, and how many of them reached the target loss. */
typedef struct {
    outcome mean;
    double lowest_upright, highest_upright;
    size_t reached;
} row;

static row row_of(const experiment *e, const results *r, size_t m, size_t l) {
    row sum = {.lowest_upright = 1.0, .highest_upright = 0.0};
    double share = 1.0 / (double)e->seeds;
    for (size_t seed = 0; seed < e->seeds; seed++) {
        const outcome *o = &r->runs[m][l][seed];
        sum.mean.upright_before += share * o->upright_before;
        sum.mean.upright_after += share * o->upright_after;
        sum.mean.new_task += share * o->new_task;
        sum.mean.steps += share * o->steps;
        sum.mean.moved += share * o->moved;
        sum.mean.distance += share * o->distance;
        sum.mean.microseconds += share * o->microseconds;
        sum.lowest_upright = fmin(sum.lowest_upright, o->upright_after);
        sum.highest_upright = fmax(sum.highest_upright, o->upright_after);
        sum.reached += o->reached;
    }
    return sum;
}

void print_table(const experiment *e, const results *r) {
    printf("\nAccuracy on held-out images; means over %zu seed%s, in brackets the lowest and the highest.\n\n", e->seeds,
           e->seeds == 1 ? "" : "s");
    puts("                 learning  upright  upright          new             moved   distance    us per");
    puts("method    alpha      rate   before    after         task    steps   a step      moved      step");
    bool some_missed = false;
    for (size_t m = 0; m < e->num_methods; m++) {
        for (size_t l = 0; l < e->num_rates; l++) {
            row w = row_of(e, r, m, l);
            bool missed = w.reached < e->seeds;
            some_missed = some_missed || missed;
            printf("%-8s  %5g  %8.0e   %6.3f   %6.3f (%.3f-%.3f)  %5.3f  %6.0f%c  %5.1f %%  %9.2f  %8.0f\n",
                   e->methods[m].name, e->methods[m].update_fraction, e->learning_rates[l], w.mean.upright_before,
                   w.mean.upright_after, w.lowest_upright, w.highest_upright, w.mean.new_task, w.mean.steps,
                   missed ? '*' : ' ', 100.0 * w.mean.moved, w.mean.distance, w.mean.microseconds);
        }
    }
    if (some_missed) {
        puts("\n* Loss not reached: at the step limit it was still too high with some seed. Such a row compares nothing\n"
             "  at matched loss and takes no part in the summary.");
    }
}

/* A method's row of highest upright accuracy, over its update fractions and learning rates. */
typedef struct {
    bool found; /* some row reached the target loss with every seed */
    size_t method_index, rate_index;
    row row;
} best_row;

static best_row best_of(const experiment *e, const results *r, const char *name) {
    best_row best = {0};
    for (size_t m = 0; m < e->num_methods; m++) {
        if (strcmp(e->methods[m].name, name) != 0) continue;
        for (size_t l = 0; l < e->num_rates; l++) {
            row w = row_of(e, r, m, l);
            if (w.reached < e->seeds) continue;
            if (best.found && w.mean.upright_after <= best.row.mean.upright_after) continue;
            best = (best_row){true, m, l, w};
        }
    }
    return best;
}

static double margin(const best_row *a, const best_row *b) {
    return a->row.mean.upright_after - b->row.mean.upright_after;
}

static void print_margin(const experiment *e, const results *r, const char *other_name) {
    best_row mofo = best_of(e, r, "MoFO"), other = best_of(e, r, other_name);
    if (!mofo.found || !other.found) return;
    printf("MoFO's upright accuracy against that of %s: %+.3f; by seed:", other_name, margin(&mofo, &other));
    for (size_t seed = 0; seed < e->seeds; seed++) {
        printf(" %+.3f", r->runs[mofo.method_index][mofo.rate_index][seed].upright_after -
                             r->runs[other.method_index][other.rate_index][seed].upright_after);
    }
    putchar('\n');
}

void print_summary(const experiment *e, const results *r) {
    puts("\nBest of each method by the upright accuracy that it keeps, at matched training loss:\n");
    for (size_t m = 0; m < e->num_methods; m++) {
        const char *name = e->methods[m].name;
        /* The update fractions of one method stand next to each other. */
        if (m > 0 && strcmp(name, e->methods[m - 1].name) == 0) continue;
        best_row best = best_of(e, r, name);
        if (best.found) {
            printf("  %-8s  %.3f upright, %.3f new task, %5.0f steps (alpha %g, learning rate %.0e)\n", name,
                   best.row.mean.upright_after, best.row.mean.new_task, best.row.mean.steps,
                   e->methods[best.method_index].update_fraction, e->learning_rates[best.rate_index]);
        } else {
            printf("  %-8s  loss not reached at any learning rate\n", name);
        }
    }
    putchar('\n');
    print_margin(e, r, "AdamW");
    print_margin(e, r, "random");
    printf("Checksum of all final parameters: %016llx\n", (unsigned long long)r->checksum);
}

bool check_claim(const experiment *e, const results *r) {
    best_row mofo = best_of(e, r, "MoFO"), adam = best_of(e, r, "AdamW"), random = best_of(e, r, "random");
    if (!mofo.found || !adam.found || !random.found) {
        puts("Check failed: a method did not reach the target loss.");
        return false;
    }
    bool against_adam = margin(&mofo, &adam) >= 0.10;
    bool against_random = margin(&mofo, &random) >= 0.10;
    bool new_task = mofo.row.mean.new_task >= adam.row.mean.new_task - 0.01;
    printf("Check: 0.10 above AdamW: %s; 0.10 above random: %s; new task at most 0.01 below AdamW: %s.\n",
           against_adam ? "yes" : "NO", against_random ? "yes" : "NO", new_task ? "yes" : "NO");
    return against_adam && against_random && new_task;
}
