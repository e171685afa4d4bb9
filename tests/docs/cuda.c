/* An engine whose buffers are on a GPU. */
#include <mofo.h>
#include <stddef.h>

void *param, *grad, *stream;
mofo_step_report *report;

int main(void) {
    mofo_options options;
    mofo_tensor tensor;
    mofo_step_args args;
    mofo_optimizer *optimizer = NULL;
    uint64_t index;
    int32_t status = mofo_options_init(&options, sizeof options);
    if (status >= 0) status = mofo_tensor_init(&tensor, sizeof tensor);
    if (status >= 0) status = mofo_step_args_init(&args, sizeof args);
    tensor.name = "weight";
    tensor.numel = 4096;
/* the block */
    mofo_destroy(optimizer);
    return status < 0;
}
