/* An engine with a thread pool, which here has one thread. */
#include <assert.h>
#include <mofo.h>
#include <stddef.h>

typedef struct {
    int64_t tasks;
} pool;

static int32_t pool_threads(const pool *self) {
    (void)self;
    return 4;
}

static void pool_run(pool *self, int64_t n, mofo_task task, void *task_ctx) {
    for (int64_t i = 0; i < n; i++) task(task_ctx, i);
    self->tasks += n;
}

/* the block */

enum { NUMEL = 200000 };
float param[NUMEL], grad[NUMEL];

int main(void) {
    pool engine_pool = {0};
    mofo_options options;
    mofo_tensor tensor;
    mofo_optimizer *optimizer;
    uint64_t index;
    for (int i = 0; i < NUMEL; i++) grad[i] = (float)(i % 1000);
    int32_t status = mofo_options_init(&options, sizeof options);
    use(&options, &engine_pool);
    if (status >= 0) status = mofo_create(&options, &optimizer);
    if (status >= 0) status = mofo_tensor_init(&tensor, sizeof tensor);
    tensor.name = "weight";
    tensor.numel = NUMEL;
    tensor.param = param;
    tensor.grad = grad;
    if (status >= 0) status = mofo_add_tensor(optimizer, &tensor, &index);
    if (status >= 0) status = mofo_step(optimizer, NULL);
    assert(status == MOFO_OK);
    assert(engine_pool.tasks > 0);
    mofo_destroy(optimizer);
    return 0;
}
