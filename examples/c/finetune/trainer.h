/*
 * Training the network with mofo. The calls of the library are in trainer.c.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef FINETUNE_TRAINER_H
#define FINETUNE_TRAINER_H

#include <mofo.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "digits.h"
#include "mlp.h"
#include "util.h"

/* Which entries of each tensor move in a step. */
typedef struct {
    const char *name;
    int32_t filter;
    double update_fraction; /* 1: AdamW */
} method;

extern const method adamw;

/* Ends the program with the library's message if a call of the library failed. */
void check(int32_t status, const char *call);

/*
 * A training engine, as far as the optimizer is concerned. Forward and backward run on the network's buffers; the
 * optimizer works on those of its device, which on the CPU are the same.
 */
typedef struct engine engine;
struct engine {
    mlp *net;
    int32_t device; /* MOFO_DEVICE_CPU or MOFO_DEVICE_CUDA */
    float *params;  /* PARAMETERS entries in the device's memory */
    float *grads;   /* likewise */

    /* Brings the network's parameters to the device: before a run. */
    void (*start)(engine *self);

    /* Takes a step with the network's gradients, brings the parameters back, and returns how many entries moved. */
    uint64_t (*step)(engine *self, mofo_optimizer *optimizer, double learning_rate);
};

engine host_engine(mlp *net);

/* An optimizer of all tensors of the network, working on the engine's buffers. */
mofo_optimizer *optimizer_for(engine *with, const method *m, uint64_t seed, int32_t threads);

typedef struct {
    double learning_rate;
    double target_loss; /* train until the smoothed loss is below it */
    size_t step_limit;  /* but no longer than this */
    uint64_t seed;
    rng_purpose batches; /* the generator that orders the images */
    const char *label;   /* of the progress line */
} training_plan;

typedef struct {
    bool reached; /* the target loss */
    size_t steps;
    double moved; /* mean share of all entries that moved in a step */
    double optimizer_seconds;
} training_result;

/*
 * Trains on batches drawn epoch by epoch, each epoch in a new order.
 *
 * The smoothed loss is the exponential moving average of the batches' losses, each taken before its step. With a decay
 * of 0.98 it looks back over some 50 batches. It is divided by 1 - 0.98^t, so that it starts at the first batch's loss
 * and not at zero.
 */
training_result train(engine *with, mofo_optimizer *optimizer, const dataset *d, const training_plan *plan);

#endif
