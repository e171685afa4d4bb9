/*
 * The smallest engine: two tensors, their gradients, and MoFO steps. C99.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include <mofo.h>
#include <stdio.h>

enum { WEIGHTS = 1000, BIASES = 10 };

static float weight[WEIGHTS], weight_grad[WEIGHTS], bias[BIASES], bias_grad[BIASES];

/* Registers a tensor with the buffers that it lives in; update_fraction may be MOFO_INHERIT. */
static int32_t add(mofo_optimizer *optimizer, const char *name, float *param, const float *grad, uint64_t numel,
                   double update_fraction) {
    mofo_tensor tensor;
    uint64_t index;
    int32_t status = mofo_tensor_init(&tensor, sizeof tensor);
    if (status < 0) return status;
    tensor.name = name;
    tensor.numel = numel;
    tensor.param = param;
    tensor.grad = grad;
    tensor.update_fraction = update_fraction;
    return mofo_add_tensor(optimizer, &tensor, &index);
}

int main(void) {
    mofo_options options;
    mofo_optimizer *optimizer = NULL;

    int32_t status = mofo_options_init(&options, sizeof options);
    options.learning_rate = 0.01;
    options.update_fraction = 0.05; /* of each tensor, the 5 % of largest momentum move */
    if (status >= 0) status = mofo_create(&options, &optimizer);
    if (status >= 0) status = add(optimizer, "weight", weight, weight_grad, WEIGHTS, MOFO_INHERIT);
    if (status >= 0) status = add(optimizer, "bias", bias, bias_grad, BIASES, 1.0); /* biases all move */

    for (int step = 0; step < 100 && status >= 0; step++) {
        /* Backward: here of (sum of (weight - i / WEIGHTS)² + sum of (bias - 1)²) / 2. */
        for (int i = 0; i < WEIGHTS; i++) weight_grad[i] = weight[i] - (float)i / WEIGHTS;
        for (int i = 0; i < BIASES; i++) bias_grad[i] = bias[i] - 1.0F;
        status = mofo_step(optimizer, NULL);
    }

    if (status < 0) {
        fprintf(stderr, "%s: %s\n", mofo_status_name(status), mofo_last_error());
    } else {
        printf("bias[0] = %.3f, weight[0] = %.3f, weight[999] = %.3f\n", bias[0], weight[0], weight[WEIGHTS - 1]);
    }
    mofo_destroy(optimizer);
    return status < 0;
}
