/*
 * A network of three linear layers with ReLU between them, its loss and its gradients.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef FINETUNE_MLP_H
#define FINETUNE_MLP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "digits.h"

enum {
    HIDDEN = 256,
    LAYERS = 3,
    TENSORS = 2 * LAYERS, /* a weight and a bias for each layer */
    PARAMETERS = (PIXELS + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN + (HIDDEN + 1) * CLASSES,
    BATCH = 16
};

/* Where a tensor lies in the buffer of the parameters, and in that of the gradients. */
typedef struct {
    const char *name;
    size_t offset;
    size_t numel;
    bool is_bias;
} tensor_place;

/* In the order fc1.weight, fc1.bias, fc2.weight, ... Weights are stored input by output. */
extern const tensor_place tensors[TENSORS];

typedef struct {
    float *params;
    float *grads;
    float *values[LAYERS + 1]; /* a batch's input, the outputs of the two hidden layers, the logits */
    float *deltas[LAYERS + 1]; /* the loss's gradient with respect to `values`; none for the input */
    float *transposed;         /* room for the transpose of one weight */
} mlp;

mlp mlp_new(void);
void mlp_free(mlp *net);

/* Weights and biases uniform in ±1/sqrt(inputs), as torch.nn.Linear starts them. */
void mlp_initialise(mlp *net, uint64_t seed);

/* Computes values[1..] from the `batch` images in values[0], BATCH at most. */
void mlp_forward(mlp *net, size_t batch);

/* Mean softmax cross-entropy of the logits; its gradient with respect to them goes to the last deltas. */
double mlp_loss(mlp *net, size_t batch, const unsigned char *labels);

/* Computes the gradients of all parameters from the last deltas. */
void mlp_backward(mlp *net, size_t batch);

/* The share of the images whose largest logit is that of the label. */
double mlp_accuracy(mlp *net, const dataset *d);

#endif
