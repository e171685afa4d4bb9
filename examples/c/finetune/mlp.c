/* SPDX-License-Identifier: MIT OR Apache-2.0 */

#include "mlp.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

static const size_t widths[LAYERS + 1] = {PIXELS, HIDDEN, HIDDEN, CLASSES};

enum {
    FC1_BIAS = PIXELS * HIDDEN,
    FC2_WEIGHT = FC1_BIAS + HIDDEN,
    FC2_BIAS = FC2_WEIGHT + HIDDEN * HIDDEN,
    FC3_WEIGHT = FC2_BIAS + HIDDEN,
    FC3_BIAS = FC3_WEIGHT + HIDDEN * CLASSES
};

const tensor_place tensors[TENSORS] = {
    {"fc1.weight", 0, FC1_BIAS, false},
    {"fc1.bias", FC1_BIAS, HIDDEN, true},
    {"fc2.weight", FC2_WEIGHT, FC2_BIAS - FC2_WEIGHT, false},
    {"fc2.bias", FC2_BIAS, HIDDEN, true},
    {"fc3.weight", FC3_WEIGHT, FC3_BIAS - FC3_WEIGHT, false},
    {"fc3.bias", FC3_BIAS, CLASSES, true},
};

mlp mlp_new(void) {
    mlp net = {.params = allocate(PARAMETERS, sizeof(float)), .grads = allocate(PARAMETERS, sizeof(float))};
    for (size_t l = 0; l <= LAYERS; l++) {
        net.values[l] = allocate(BATCH * widths[l], sizeof(float));
        if (l > 0) net.deltas[l] = allocate(BATCH * widths[l], sizeof(float));
    }
    net.transposed = allocate(HIDDEN * HIDDEN, sizeof(float));
    return net;
}

void mlp_free(mlp *net) {
    free(net->params);
    free(net->grads);
    for (size_t l = 0; l <= LAYERS; l++) {
        free(net->values[l]);
        free(net->deltas[l]);
    }
    free(net->transposed);
}

void mlp_initialise(mlp *net, uint64_t seed) {
    rng r = rng_for(seed, RNG_INITIAL);
    for (size_t t = 0; t < TENSORS; t++) {
        float bound = 1.0F / sqrtf((float)widths[t / 2]);
        for (size_t i = 0; i < tensors[t].numel; i++) net->params[tensors[t].offset + i] = bound * rng_uniform(&r);
    }
}

/*
 * c = a·b, where b is depth × columns and c is rows × columns, both row by row, and a(i, k) is a[i·a_row + k·a_depth]:
 * a matrix or, with exchanged strides, its transpose.
 *
 * Eight rows of b at a time stay in the first-level cache while all of c passes by, and each element of c is loaded
 * once for eight products. The inner loop runs along rows, so that compilers vectorise it as it stands; every sum runs
 * in ascending k, so that the vector length does not show in the result.
 */
static void multiply(size_t rows, size_t columns, size_t depth, const float *a, size_t a_row, size_t a_depth,
                     const float *b, float *c) {
    memset(c, 0, rows * columns * sizeof *c);
    size_t k = 0;
    for (; k + 8 <= depth; k += 8) {
        const float *b0 = b + k * columns, *b1 = b0 + columns, *b2 = b1 + columns, *b3 = b2 + columns;
        const float *b4 = b3 + columns, *b5 = b4 + columns, *b6 = b5 + columns, *b7 = b6 + columns;
        for (size_t i = 0; i < rows; i++) {
            const float *f = a + i * a_row + k * a_depth;
            float f0 = f[0], f1 = f[a_depth], f2 = f[2 * a_depth], f3 = f[3 * a_depth];
            float f4 = f[4 * a_depth], f5 = f[5 * a_depth], f6 = f[6 * a_depth], f7 = f[7 * a_depth];
            float *restrict row = c + i * columns;
            for (size_t j = 0; j < columns; j++) {
                float sum = row[j] + f0 * b0[j] + f1 * b1[j] + f2 * b2[j] + f3 * b3[j];
                row[j] = sum + f4 * b4[j] + f5 * b5[j] + f6 * b6[j] + f7 * b7[j];
            }
        }
    }
    for (; k < depth; k++) {
        for (size_t i = 0; i < rows; i++) {
            float factor = a[i * a_row + k * a_depth];
            for (size_t j = 0; j < columns; j++) c[i * columns + j] += factor * b[k * columns + j];
        }
    }
}

/* Tile by tile: whole columns of a matrix 256 wide would evict each other from the cache. */
static void transpose(size_t rows, size_t columns, const float *from, float *to) {
    enum { TILE = 16 };
    for (size_t i0 = 0; i0 < rows; i0 += TILE) {
        for (size_t j0 = 0; j0 < columns; j0 += TILE) {
            for (size_t j = j0; j < j0 + TILE && j < columns; j++) {
                for (size_t i = i0; i < i0 + TILE && i < rows; i++) to[j * rows + i] = from[i * columns + j];
            }
        }
    }
}

static const float *weight_of(const mlp *net, size_t layer) { return net->params + tensors[2 * layer].offset; }

void mlp_forward(mlp *net, size_t batch) {
    for (size_t l = 0; l < LAYERS; l++) {
        size_t outputs = widths[l + 1];
        const float *bias = net->params + tensors[2 * l + 1].offset;
        float *y = net->values[l + 1];
        multiply(batch, outputs, widths[l], net->values[l], widths[l], 1, weight_of(net, l), y);
        bool relu = l + 1 < LAYERS;
        for (size_t i = 0; i < batch; i++) {
            for (size_t j = 0; j < outputs; j++) {
                float value = y[i * outputs + j] + bias[j];
                y[i * outputs + j] = relu && value < 0.0F ? 0.0F : value;
            }
        }
    }
}

double mlp_loss(mlp *net, size_t batch, const unsigned char *labels) {
    double loss = 0.0;
    for (size_t i = 0; i < batch; i++) {
        const float *logits = net->values[LAYERS] + i * CLASSES;
        float *delta = net->deltas[LAYERS] + i * CLASSES;
        float largest = logits[0];
        for (size_t j = 1; j < CLASSES; j++) largest = logits[j] > largest ? logits[j] : largest;
        float sum = 0.0F;
        for (size_t j = 0; j < CLASSES; j++) sum += delta[j] = expf(logits[j] - largest);
        loss += log((double)sum) - ((double)logits[labels[i]] - (double)largest);
        for (size_t j = 0; j < CLASSES; j++) {
            delta[j] = (delta[j] / sum - (j == labels[i] ? 1.0F : 0.0F)) / (float)batch;
        }
    }
    return loss / (double)batch;
}

void mlp_backward(mlp *net, size_t batch) {
    for (size_t l = LAYERS; l-- > 0;) {
        size_t inputs = widths[l], outputs = widths[l + 1];
        const float *x = net->values[l], *delta = net->deltas[l + 1], *weight = weight_of(net, l);

        multiply(inputs, outputs, batch, x, 1, inputs, delta, net->grads + tensors[2 * l].offset);
        float *bias_grad = net->grads + tensors[2 * l + 1].offset;
        memset(bias_grad, 0, outputs * sizeof(float));
        for (size_t i = 0; i < batch; i++) {
            for (size_t j = 0; j < outputs; j++) bias_grad[j] += delta[i * outputs + j];
        }
        if (l == 0) break;

        transpose(inputs, outputs, weight, net->transposed);
        multiply(batch, inputs, outputs, delta, outputs, 1, net->transposed, net->deltas[l]);
        for (size_t i = 0; i < batch * inputs; i++) net->deltas[l][i] = x[i] > 0.0F ? net->deltas[l][i] : 0.0F;
    }
}

double mlp_accuracy(mlp *net, const dataset *d) {
    size_t right = 0;
    for (size_t start = 0; start < d->count; start += BATCH) {
        size_t batch = d->count - start < BATCH ? d->count - start : BATCH;
        memcpy(net->values[0], d->pixels + start * PIXELS, batch * PIXELS * sizeof(float));
        mlp_forward(net, batch);
        for (size_t i = 0; i < batch; i++) {
            const float *logits = net->values[LAYERS] + i * CLASSES;
            size_t best = 0;
            for (size_t j = 1; j < CLASSES; j++) best = logits[j] > logits[best] ? j : best;
            right += best == d->labels[start + i];
        }
    }
    return (double)right / (double)d->count;
}
