/* SPDX-License-Identifier: MIT OR Apache-2.0 */

#include "demo.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "digits.h"
#include "mlp.h"
#include "util.h"

/* What a seed's runs have in common. */
typedef struct {
    uint64_t seed;
    dataset train, test;         /* upright */
    dataset new_train, new_test; /* the same images in the new view */
    float *pretrained;           /* parameters */
    double upright_before;
} task;

static task pretrain(const experiment *e, const dataset *digits, engine *with, uint64_t seed) {
    mlp *net = with->net;
    task t = {.seed = seed, .pretrained = allocate(PARAMETERS, sizeof(float))};
    split(digits, seed, &t.train, &t.test);
    t.new_train = seen_as(&t.train, e->view, seed);
    t.new_test = seen_as(&t.test, e->view, seed);

    char label[64];
    snprintf(label, sizeof label, "seed %llu, pre-training", (unsigned long long)seed);
    training_plan plan = {.learning_rate = 1e-3,
                          .step_limit = e->pretraining_steps,
                          .seed = seed,
                          .batches = RNG_PRETRAINING,
                          .label = label};
    mlp_initialise(net, seed);
    mofo_optimizer *optimizer = optimizer_for(with, &adamw, seed, e->threads);
    train(with, optimizer, &t.train, &plan);
    mofo_destroy(optimizer);

    memcpy(t.pretrained, net->params, PARAMETERS * sizeof(float));
    t.upright_before = mlp_accuracy(net, &t.test);
    return t;
}

static void task_free(task *t) {
    dataset_free(&t->train);
    dataset_free(&t->test);
    dataset_free(&t->new_train);
    dataset_free(&t->new_test);
    free(t->pretrained);
}

static double distance_between(const float *a, const float *b) {
    double sum = 0.0;
    for (size_t i = 0; i < PARAMETERS; i++) {
        double difference = (double)a[i] - (double)b[i];
        sum += difference * difference;
    }
    return sqrt(sum);
}

/* All runs of a seed start from the same parameters, with fresh moments, and see the same batches. */
static outcome finetune(const experiment *e, engine *with, const task *t, const method *m, double learning_rate,
                        const char *label) {
    mlp *net = with->net;
    training_plan plan = {.learning_rate = learning_rate,
                          .target_loss = e->target_loss,
                          .step_limit = e->step_limit,
                          .seed = t->seed,
                          .batches = RNG_FINETUNING,
                          .label = label};
    memcpy(net->params, t->pretrained, PARAMETERS * sizeof(float));
    mofo_optimizer *optimizer = optimizer_for(with, m, t->seed, e->threads);
    training_result run = train(with, optimizer, &t->new_train, &plan);
    mofo_destroy(optimizer);

    outcome o = {.reached = run.reached,
                 .upright_before = t->upright_before,
                 .upright_after = mlp_accuracy(net, &t->test),
                 .new_task = mlp_accuracy(net, &t->new_test),
                 .steps = (double)run.steps,
                 .moved = run.moved,
                 .distance = distance_between(net->params, t->pretrained),
                 .microseconds = 1e6 * run.optimizer_seconds / (double)run.steps};
    if (!progress_is_live()) {
        fprintf(stderr, "%s: %s in %zu steps, upright %.3f, new task %.3f\n", label,
                run.reached ? "loss reached" : "loss NOT reached", run.steps, o.upright_after, o.new_task);
    }
    return o;
}

static void add_to_checksum(uint64_t *checksum, const float *params) {
    const unsigned char *bytes = (const unsigned char *)params;
    for (size_t i = 0; i < PARAMETERS * sizeof *params; i++) {
        *checksum = (*checksum ^ bytes[i]) * UINT64_C(0x100000001B3);
    }
}

static void run_experiment(const experiment *e, const dataset *digits, engine *with, results *r) {
    r->checksum = UINT64_C(0xCBF29CE484222325);
    size_t run = 0, total = e->seeds * e->num_methods * e->num_rates;
    for (size_t seed = 0; seed < e->seeds; seed++) {
        task t = pretrain(e, digits, with, seed);
        for (size_t m = 0; m < e->num_methods; m++) {
            for (size_t l = 0; l < e->num_rates; l++) {
                char label[160];
                const method *chosen = &e->methods[m];
                double learning_rate = e->learning_rates[l];
                snprintf(label, sizeof label, "[%zu/%zu] seed %zu, %s, alpha %g, learning rate %.0e", ++run, total,
                         seed, chosen->name, chosen->update_fraction, learning_rate);
                r->runs[m][l][seed] = finetune(e, with, &t, chosen, learning_rate, label);
                add_to_checksum(&r->checksum, with->net->params);
            }
        }
        task_free(&t);
    }
    progress_end();
}

static const method default_methods[] = {
    {"AdamW", MOFO_FILTER_MOMENTUM, 1.0},
    {"MoFO", MOFO_FILTER_MOMENTUM, 0.03},
    {"MoFO", MOFO_FILTER_MOMENTUM, 0.1},
    {"random", MOFO_FILTER_RANDOM, 0.03},
};

static const method all_methods[] = {
    {"AdamW", MOFO_FILTER_MOMENTUM, 1.0},     {"MoFO", MOFO_FILTER_MOMENTUM, 0.03},
    {"MoFO", MOFO_FILTER_MOMENTUM, 0.1},      {"MoFO", MOFO_FILTER_MOMENTUM, 0.2},
    {"MoFO", MOFO_FILTER_MOMENTUM, 0.4},      {"gradient", MOFO_FILTER_GRADIENT, 0.03},
    {"update", MOFO_FILTER_UPDATE, 0.03},     {"random", MOFO_FILTER_RANDOM, 0.03},
};

enum {
    NUM_DEFAULT_METHODS = sizeof default_methods / sizeof *default_methods,
    NUM_ALL_METHODS = sizeof all_methods / sizeof *all_methods
};

_Static_assert((int)NUM_ALL_METHODS <= (int)MAX_METHODS, "the results have no room for all methods");

/* The default form takes the first two; the third needs most of the time and changes little. */
static const double learning_rates[MAX_RATES] = {1e-3, 3e-4, 1e-4};

static const char usage[] =
    "Usage: finetune [options]\n"
    "\n"
    "Trains a network on upright handwritten digits, fine-tunes it on the same digits in another view with AdamW,\n"
    "with MoFO, and with a random filter as a control, and shows how well each still reads upright digits.\n"
    "\n"
    "  --view VIEW     the new task: rot90 (default), flip, invert or permute\n"
    "  --full          all filters, more update fractions, a third learning rate, 5 seeds and a higher step limit:\n"
    "                  some fifteen minutes\n"
    "  --smoke         a few steps with every filter, in a second: shows that it runs, not what it does\n"
    "  --check         exit with 1 unless MoFO keeps 0.10 more upright accuracy than AdamW and than the random filter\n"
    "                  at the same training loss, with a new-task accuracy at most 0.01 below that of AdamW\n"
    "  --seeds N       repeat with N seeds, 1 to 20 (default 3; with --full 5, with --smoke 1)\n"
    "  --threads N     threads of an optimizer step, 0 for all (default 1: the tensors are small); results are the\n"
    "                  same for any number\n"
    "  --data PATH     the digits (default examples/data/digits.csv)\n"
    "  --help          this text\n"
    "\n"
    "The table goes to standard output, progress to standard error. Results are the same at every run.\n";

static long parse_number(const char *option, const char *text, long lowest, long highest) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < lowest || value > highest) {
        fail("%s: \"%s\" is not a number from %ld to %ld", option, text, lowest, highest);
    }
    return value;
}

static view_kind parse_view(const char *text) {
    for (view_kind view = VIEW_ROT90; view < NUM_VIEWS; view++) {
        if (strcmp(text, view_name(view)) == 0) return view;
    }
    fail("--view: \"%s\" is not rot90, flip, invert or permute", text);
}

arguments parse_arguments(int argc, char **argv) {
    arguments a = {.experiment = {.threads = 1}, .data_path = "examples/data/digits.csv"};
    experiment *e = &a.experiment;
    bool full = false, smoke = false;
    for (int i = 1; i < argc; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        bool takes_value = true;
        if (strcmp(option, "--view") == 0 && value) {
            e->view = parse_view(value);
        } else if (strcmp(option, "--seeds") == 0 && value) {
            e->seeds = (size_t)parse_number(option, value, 1, MAX_SEEDS);
        } else if (strcmp(option, "--threads") == 0 && value) {
            e->threads = (int32_t)parse_number(option, value, 0, 1024);
        } else if (strcmp(option, "--data") == 0 && value) {
            a.data_path = value;
        } else {
            takes_value = false;
        }
        if (takes_value) {
            i++;
        } else if (strcmp(option, "--full") == 0) {
            full = true;
        } else if (strcmp(option, "--smoke") == 0) {
            smoke = true;
        } else if (strcmp(option, "--check") == 0) {
            a.check = true;
        } else if (strcmp(option, "--help") == 0) {
            fputs(usage, stdout);
            exit(EXIT_SUCCESS);
        } else {
            fail("\"%s\" is no option, or lacks its value; see --help", option);
        }
    }
    if (smoke && (full || a.check)) fail("--smoke goes neither with --full nor with --check");

    e->methods = full || smoke ? all_methods : default_methods;
    e->num_methods = full || smoke ? NUM_ALL_METHODS : NUM_DEFAULT_METHODS;
    e->learning_rates = learning_rates;
    e->num_rates = full ? MAX_RATES : smoke ? 1 : 2;
    if (e->seeds == 0) e->seeds = full ? 5 : smoke ? 1 : 3;
    e->pretraining_steps = smoke ? 30 : 2400;
    e->step_limit = full ? 60000 : smoke ? 30 : 12000;
    e->target_loss = smoke ? 2.0 : 0.1;
    return a;
}

int run_demo(const arguments *a, engine *with) {
    if (mofo_abi_version() != MOFO_ABI_VERSION) fail("the library and its header are of different versions");

    dataset digits = load_digits(a->data_path);
    results *r = allocate(1, sizeof *r);
    print_heading(&a->experiment, &digits, with);
    fflush(stdout);
    run_experiment(&a->experiment, &digits, with, r);
    print_table(&a->experiment, r);
    print_summary(&a->experiment, r);
    bool passed = !a->check || check_claim(&a->experiment, r);
    free(r);
    dataset_free(&digits);

    if (fflush(stdout) != 0) fail("standard output: %s", strerror(errno));
    return passed ? EXIT_SUCCESS : EXIT_FAILURE;
}
