/* SPDX-License-Identifier: MIT OR Apache-2.0 */

#include "trainer.h"

#include <stdlib.h>
#include <string.h>

static const double LOSS_DECAY = 0.98;

const method adamw = {"AdamW", MOFO_FILTER_MOMENTUM, 1.0};

void check(int32_t status, const char *call) {
    if (status < 0) fail("%s: %s: %s", call, mofo_status_name(status), mofo_last_error());
}

static void nothing_to_bring(engine *self) { (void)self; }

static uint64_t step_on_the_host(engine *self, mofo_optimizer *optimizer, double learning_rate) {
    (void)self; /* the optimizer works on the network's own buffers */
    mofo_step_report report;
    mofo_step_args args;
    check(mofo_step_args_init(&args, sizeof args), "mofo_step_args_init");
    args.learning_rate = learning_rate;
    args.report = &report;
    args.report_size = sizeof report;
    check(mofo_step(optimizer, &args), "mofo_step");
    return report.entries_selected;
}

engine host_engine(mlp *net) {
    return (engine){.net = net,
                    .device = MOFO_DEVICE_CPU,
                    .params = net->params,
                    .grads = net->grads,
                    .start = nothing_to_bring,
                    .step = step_on_the_host};
}

mofo_optimizer *optimizer_for(engine *with, const method *m, uint64_t seed, int32_t threads) {
    mofo_options options;
    check(mofo_options_init(&options, sizeof options), "mofo_options_init");
    options.device = with->device;
    options.update_fraction = m->update_fraction;
    options.filter = m->filter;
    options.seed = seed;
    options.num_threads = threads;

    mofo_optimizer *optimizer = NULL;
    check(mofo_create(&options, &optimizer), "mofo_create");
    for (size_t t = 0; t < TENSORS; t++) {
        mofo_tensor tensor;
        check(mofo_tensor_init(&tensor, sizeof tensor), "mofo_tensor_init");
        tensor.name = tensors[t].name;
        tensor.numel = tensors[t].numel;
        tensor.param = with->params + tensors[t].offset;
        tensor.grad = with->grads + tensors[t].offset;
        /* The authors of MoFO exempt biases from the filter. */
        if (tensors[t].is_bias) tensor.update_fraction = 1.0;
        uint64_t index;
        check(mofo_add_tensor(optimizer, &tensor, &index), "mofo_add_tensor");
    }
    return optimizer;
}

typedef struct {
    rng random;
    size_t *order;
    size_t next;
} batch_source;

/* What is left at an epoch's end, less than a batch, is dropped. */
static void next_batch(batch_source *source, const dataset *d, float *pixels, unsigned char *labels) {
    if (source->next + BATCH > d->count) {
        shuffle(&source->random, source->order, d->count);
        source->next = 0;
    }
    for (size_t i = 0; i < BATCH; i++) {
        size_t image = source->order[source->next++];
        memcpy(pixels + i * PIXELS, d->pixels + image * PIXELS, PIXELS * sizeof *pixels);
        labels[i] = d->labels[image];
    }
}

training_result train(engine *with, mofo_optimizer *optimizer, const dataset *d, const training_plan *plan) {
    batch_source source = {rng_for(plan->seed, plan->batches), allocate(d->count, sizeof(size_t)), d->count};
    for (size_t i = 0; i < d->count; i++) source.order[i] = i;

    mlp *net = with->net;
    with->start(with);

    training_result result = {0};
    double loss_sum = 0.0, weight_sum = 0.0, next_progress = 0.0;
    uint64_t entries_moved = 0;
    bool live = progress_is_live();
    while (!result.reached && result.steps < plan->step_limit) {
        unsigned char labels[BATCH];
        next_batch(&source, d, net->values[0], labels);
        mlp_forward(net, BATCH);
        double loss = mlp_loss(net, BATCH, labels);
        mlp_backward(net, BATCH);

        double before = seconds_now();
        entries_moved += with->step(with, optimizer, plan->learning_rate);
        double after = seconds_now();
        result.optimizer_seconds += after - before;
        result.steps++;

        loss_sum = LOSS_DECAY * loss_sum + loss;
        weight_sum = LOSS_DECAY * weight_sum + 1.0;
        double smoothed = loss_sum / weight_sum;
        result.reached = smoothed < plan->target_loss;
        if (live && after >= next_progress) {
            progress_line(plan->label, result.steps, smoothed);
            next_progress = after + 0.1;
        }
    }
    result.moved = (double)entries_moved / ((double)result.steps * PARAMETERS);
    free(source.order);
    return result;
}
