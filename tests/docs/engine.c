/* An engine in the middle of its training: what the fragments of the guides find declared. */
#include <assert.h>
#include <math.h>
#include <mofo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUMEL = 6144, BIASES = 96 };

uint64_t numel = NUMEL;
float param[NUMEL], grad[NUMEL], bias_param[BIASES], bias_grad[BIASES];
float other_param[NUMEL], other_grad[NUMEL];

mofo_options options;
mofo_optimizer *optimizer;
mofo_tensor tensor;
mofo_step_args args;
mofo_step_report report;
/* Indices of two tensors. */
uint64_t weight, bias;

static void check(int32_t status) {
    if (status < 0) {
        fprintf(stderr, "%s: %s\n", mofo_status_name(status), mofo_last_error());
        exit(1);
    }
}

static void backward(void) {
    for (int i = 0; i < NUMEL; i++) grad[i] = other_grad[i] = sinf((float)i) + 0.5F * param[i];
    for (int i = 0; i < BIASES; i++) bias_grad[i] = cosf((float)i) + bias_param[i];
}

static void start(void) {
    check(mofo_options_init(&options, sizeof options));
    options.skip_nonfinite = 1;
    options.max_grad_norm = 1.0;
    check(mofo_create(&options, &optimizer));
    check(mofo_tensor_init(&tensor, sizeof tensor));
    tensor.name = "weight";
    tensor.numel = NUMEL;
    tensor.param = param;
    tensor.grad = grad;
    check(mofo_add_tensor(optimizer, &tensor, &weight));
    tensor.name = "bias";
    tensor.numel = BIASES;
    tensor.param = bias_param;
    tensor.grad = bias_grad;
    check(mofo_add_tensor(optimizer, &tensor, &bias));
    check(mofo_step_args_init(&args, sizeof args));
    backward();
    check(mofo_step(optimizer, NULL));
    tensor.name = "another";
    tensor.numel = NUMEL;
    tensor.param = other_param;
    tensor.grad = other_grad;
}

int main(void) {
    start();
    {
/* the block */
    }
    mofo_destroy(optimizer);
    return 0;
}
