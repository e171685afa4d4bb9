/* Steps on a CUDA device: the bits of the reference, and of the CPU. */

#include "cuda_buffers.h"

static const int32_t dtypes[] = {MOFO_DTYPE_F32, MOFO_DTYPE_F16, MOFO_DTYPE_BF16};
static const char *const dtype_names[] = {"f32", "f16", "bf16"};

enum { STEPS = 3, KINDS = 9 };

/* All types of parameter and gradient in one optimizer, against the reference. All state is the caller's, in device
 * memory. */
static void types_against_reference(const mofo_options *options) {
    mofo_options on_device = *options;
    mofo_optimizer *optimizer;
    mofo_tensor expected[KINDS];
    mofo_tensor device[KINDS];
    uint64_t indices[KINDS];
    float thresholds[8];
    int kind, t;
    on_device.device = MOFO_DEVICE_CUDA;
    REQUIRE_OK(mofo_create(&on_device, &optimizer));
    for (kind = 0; kind < KINDS; kind++) {
        static char names[KINDS][24];
        mofo_tensor *tensor = &expected[kind];
        /* Not a multiple of what threads take at a time; every other one in blocks. */
        const uint64_t numel = kind % 2 ? 7 * (31 + (uint64_t)kind) : 401 + (uint64_t)kind;
        snprintf(names[kind], sizeof names[kind], "kind.%d", kind);
        *tensor = owned_tensor(options, names[kind], numel, dtypes[kind / 3], dtypes[kind % 3], 9 + (uint64_t)kind);
        tensor->num_blocks = kind % 2 ? 7 : 1;
        device[kind] = *tensor;
        device[kind].param = device_copy(tensor->param, param_bytes(tensor));
        device[kind].grad = device_copy(tensor->grad, grad_bytes(tensor));
        device[kind].exp_avg = device_new(moment_bytes(options, tensor));
        device[kind].exp_avg_sq = device_new(moment_bytes(options, tensor));
        if (tensor->master != NULL) {
            device[kind].master = device_new((size_t)numel * sizeof(float));
        }
        REQUIRE_OK(mofo_add_tensor(optimizer, &device[kind], &indices[kind]));
    }
    for (t = 0; t < STEPS; t++) {
        double norm;
        for (kind = 0; kind < KINDS; kind++) {
            void *grad = (void *)(uintptr_t)expected[kind].grad;
            buffer_fill(grad, expected[kind].grad_dtype, expected[kind].numel, 100 * (uint64_t)t + (uint64_t)kind,
                        0.02);
            device_write(device[kind].grad, grad, grad_bytes(&expected[kind]));
        }
        norm = reference_norm(expected, KINDS, 1.0);
        REQUIRE_OK(mofo_step(optimizer, NULL));
        for (kind = 0; kind < KINDS; kind++) {
            mofo_tensor *tensor = &expected[kind];
            mofo_tensor_info info;
            char before[sizeof check_case];
            memcpy(before, check_case, sizeof before);
            CASE("%.150s, parameter %s, gradient %s, step %d", before, dtype_names[kind / 3], dtype_names[kind % 3], t);
            reference_step(options, NULL, norm, tensor, thresholds);
            info = state_of(optimizer, indices[kind]);
            CHECK(info.exp_avg == device[kind].exp_avg && info.exp_avg_sq == device[kind].exp_avg_sq);
            CHECK((void *)info.master == device[kind].master);
            CHECK_DEVICE(info.thresholds, thresholds, (size_t)tensor->num_blocks * sizeof(float));
            CHECK_DEVICE(device[kind].exp_avg, tensor->exp_avg, moment_bytes(options, tensor));
            CHECK_DEVICE(device[kind].exp_avg_sq, tensor->exp_avg_sq, moment_bytes(options, tensor));
            if (tensor->master != NULL) {
                CHECK_DEVICE(device[kind].master, tensor->master, (size_t)tensor->numel * sizeof(float));
            }
            CHECK_DEVICE(device[kind].param, tensor->param, param_bytes(tensor));
            CHECK_U64(info.step_count, tensor->step_count);
            memcpy(check_case, before, sizeof before);
        }
    }
    mofo_destroy(optimizer);
    for (kind = 0; kind < KINDS; kind++) {
        owned_tensor_free(&expected[kind]);
        device_free(device[kind].param);
        device_free(device[kind].grad);
        device_free(device[kind].exp_avg);
        device_free(device[kind].exp_avg_sq);
        device_free(device[kind].master);
    }
}

static void all_types(void) {
    static const int32_t filters[] = {MOFO_FILTER_MOMENTUM, MOFO_FILTER_GRADIENT, MOFO_FILTER_UPDATE,
                                      MOFO_FILTER_RANDOM};
    static const double fractions[] = {0.05, 0.5, 1.0};
    int n;
    for (n = 0; n < 16; n++) {
        mofo_options options = default_options();
        options.state_dtype = n & 1 ? MOFO_DTYPE_BF16 : MOFO_DTYPE_F32;
        options.master_weights = n >> 1 & 1;
        options.weight_decay_scope = n & 4 ? MOFO_WEIGHT_DECAY_ALL : MOFO_WEIGHT_DECAY_SELECTED;
        options.rounding = n & 8 ? MOFO_ROUNDING_NEAREST : MOFO_ROUNDING_STOCHASTIC;
        options.weight_decay = 0.1;
        options.learning_rate = 0.01;
        options.filter = filters[(n + n / 4) % 4];
        options.update_fraction = fractions[n % 3];
        options.max_grad_norm = n % 5 == 0 ? 0.05 : 0.0;
        options.skip_nonfinite = n % 3 == 1;
        options.seed = (uint64_t)n;
        CASE("options %d: %s moments, master %d, decay scope %d, rounding %d, filter %d, fraction %g, clipping %g", n,
             dtype_names[options.state_dtype], options.master_weights, options.weight_decay_scope, options.rounding,
             options.filter, options.update_fraction, options.max_grad_norm);
        types_against_reference(&options);
    }
}

/* Blocks too large to be dealt with at once: thresholds are estimated, or searched where that cannot be. */
static void large_blocks(void) {
    static const struct {
        const char *what;
        uint64_t numel, num_blocks;
        int32_t param_dtype, grad_dtype, state_dtype, scope;
        int master;
        double fraction;
        int estimated;
    } cases[] = {
        {"f32", 300007, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_WEIGHT_DECAY_SELECTED, 0, 0.1, 1},
        {"bf16, two blocks", 2 * 263001, 2, MOFO_DTYPE_BF16, MOFO_DTYPE_BF16, MOFO_DTYPE_BF16,
         MOFO_WEIGHT_DECAY_SELECTED, 0, 0.03, 1},
        {"f16 with a master copy", 270000, 1, MOFO_DTYPE_F16, MOFO_DTYPE_F32, MOFO_DTYPE_F32,
         MOFO_WEIGHT_DECAY_SELECTED, 1, 0.2, 1},
        {"every entry decays", 270001, 1, MOFO_DTYPE_F32, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_WEIGHT_DECAY_ALL, 0,
         0.1, 0},
        {"everything moves", 270001, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_WEIGHT_DECAY_SELECTED, 0,
         1.0, 0},
    };
    size_t n;
    for (n = 0; n < sizeof cases / sizeof cases[0]; n++) {
        mofo_options options = default_options();
        struct twins *twins;
        int t;
        options.state_dtype = cases[n].state_dtype;
        options.weight_decay_scope = cases[n].scope;
        options.master_weights = cases[n].master;
        options.update_fraction = cases[n].fraction;
        options.weight_decay = 0.1;
        options.learning_rate = 0.01;
        options.max_grad_norm = 1.0;
        twins = twins_new(&options);
        CASE("large blocks: %s", cases[n].what);
        twins_add_plain(twins, "large", cases[n].numel, cases[n].num_blocks, cases[n].param_dtype, cases[n].grad_dtype);
        twins_add_plain(twins, "small", 500, 5, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
        for (t = 0; t < 2; t++) {
            mofo_step_report report;
            twins_gradients(twins, (uint64_t)t);
            report = twins_step(twins, NULL);
            CHECK_U64(report.blocks_estimated, cases[n].estimated ? cases[n].num_blocks : 0);
            CHECK_AT_MOST(report.estimates_failed, report.blocks_estimated);
            twins_same(twins);
        }
        twins_free(twins);
    }
}

/* Aligned for their elements, and no more. */
static void barely_aligned_buffers(void) {
    mofo_options options = default_options();
    mofo_optimizer *optimizers[2];
    int kind, t, side;
    for (kind = 0; kind < 3; kind++) {
        const size_t size = reference_size(dtypes[kind]);
        mofo_tensor tensors[2];
        void *starts[2][2];
        uint64_t indices[2];
        CASE("buffers at an odd element, %s", dtype_names[kind]);
        for (side = 0; side < 2; side++) {
            mofo_options on = options;
            on.device = side ? MOFO_DEVICE_CUDA : MOFO_DEVICE_CPU;
            REQUIRE_OK(mofo_create(&on, &optimizers[side]));
            tensors[side] = named_tensor("odd", 333);
            tensors[side].param_dtype = tensors[side].grad_dtype = dtypes[kind];
            starts[side][0] = buffer_filled(dtypes[kind], 334, 5, 1.0);
            starts[side][1] = buffer_filled(dtypes[kind], 334, 6, 0.01);
            if (side) {
                void *host[2];
                memcpy(host, starts[side], sizeof host);
                starts[side][0] = device_copy(host[0], 334 * size);
                starts[side][1] = device_copy(host[1], 334 * size);
                free(host[0]);
                free(host[1]);
            }
            tensors[side].param = (char *)starts[side][0] + size;
            tensors[side].grad = (char *)starts[side][1] + size;
            REQUIRE_OK(mofo_add_tensor(optimizers[side], &tensors[side], &indices[side]));
            for (t = 0; t < 2; t++) {
                REQUIRE_OK(mofo_step(optimizers[side], NULL));
            }
        }
        /* The element before the parameter is nobody's. */
        CHECK_DEVICE(starts[1][0], starts[0][0], 334 * size);
        CHECK_DEVICE(state_of(optimizers[1], indices[1]).exp_avg, state_of(optimizers[0], indices[0]).exp_avg,
                     333 * sizeof(float));
        for (side = 0; side < 2; side++) {
            mofo_destroy(optimizers[side]);
        }
        free(starts[0][0]);
        free(starts[0][1]);
        device_free(starts[1][0]);
        device_free(starts[1][1]);
    }
}

/* Memory that host and device share will do for parameters. */
static void managed_memory(void) {
    mofo_options options = default_options();
    struct twins *twins;
    struct twin *twin;
    CUdeviceptr managed;
    void *own;
    int has_managed = 0;
    CASE("managed memory");
    REQUIRE_CUDA(cuDeviceGetAttribute(&has_managed, CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 0));
    CHECK(has_managed || !cuda_is_emulated());
    if (!has_managed) {
        SKIP("managed memory: the device has none");
        return;
    }
    twins = twins_new(&options);
    twin = twins_add_plain(twins, "managed", 500, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
    own = twin->device.param;
    REQUIRE_CUDA(cuMemAllocManaged(&managed, 500 * sizeof(float), CU_MEM_ATTACH_GLOBAL));
    twin->device.param = (void *)(uintptr_t)managed;
    device_write(twin->device.param, twin->host.param, 500 * sizeof(float));
    REQUIRE_OK(mofo_bind_tensor(twins->device, twin->index, twin->device.param, twin->device.grad));
    twins_step(twins, NULL);
    twins_same(twins);
    device_free(own);
    twins_free(twins);
}

static void settings_of_a_step(void) {
    mofo_options options = default_options();
    mofo_step_args args;
    struct twins *twins;
    options.weight_decay = 0.1;
    options.max_grad_norm = 0.3;
    twins = twins_new(&options);
    twins_add_mixed(twins);
    CASE("all defaults");
    twins_step(twins, NULL);
    twins_same(twins);
    CASE("learning rate, fraction and scale of the step");
    args = default_args();
    args.learning_rate = 0.05;
    args.update_fraction = 0.6;
    args.grad_scale = 1.0 / 1024.0;
    twins_gradients(twins, 1);
    twins_step(twins, &args);
    twins_same(twins);
    CASE("a fraction of 1 for those that have none of their own");
    args = default_args();
    args.update_fraction = 1.0;
    twins_step(twins, &args);
    twins_same(twins);
    CASE("the engine's own norm");
    args = default_args();
    args.grad_norm = 0.75;
    twins_gradients(twins, 2);
    CHECK_F64(twins_step(twins, &args).grad_norm, 0.75);
    twins_same(twins);
    CASE("a learning rate of 0");
    args = default_args();
    args.learning_rate = 0.0;
    twins_step(twins, &args);
    twins_same(twins);
    CASE("a negative scale");
    args = default_args();
    args.grad_scale = -2.0;
    twins_step(twins, &args);
    twins_same(twins);
    twins_free(twins);
}

/* Some tensors are left out: by the list, for want of a gradient, or because nothing is bound. */
static void subsets(void) {
    mofo_options options = default_options();
    mofo_step_args args = default_args();
    uint64_t list[3];
    struct twins *twins;
    struct twin *bias;
    mofo_tensor bare = named_tensor("bare", 5);
    uint64_t index;
    options.max_grad_norm = 0.2;
    twins = twins_new(&options);
    twins_add_mixed(twins);
    bias = &twins->tensors[2];
    REQUIRE_OK(mofo_add_tensor(twins->host, &bare, &index));
    REQUIRE_OK(mofo_add_tensor(twins->device, &bare, &index));
    CASE("all but the one that is not bound");
    CHECK_U64(twins_step(twins, NULL).entries, 1500 + 999 + 37 + 1);
    twins_same(twins);
    CHECK_U64(state_of(twins->device, index).step_count, 0);
    CASE("listed, in any order");
    list[0] = twins->tensors[3].index;
    list[1] = twins->tensors[1].index;
    args.tensors = list;
    args.num_tensors = 2;
    twins_gradients(twins, 1);
    CHECK_U64(twins_step(twins, &args).entries, 999 + 1);
    twins_same(twins);
    CASE("listed, without a gradient");
    list[2] = index;
    args.num_tensors = 3;
    CHECK_U64(twins_step(twins, &args).entries, 999 + 1);
    twins_same(twins);
    CASE("none");
    args.num_tensors = 0;
    CHECK_U64(twins_step(twins, &args).entries, 0);
    twins_same(twins);
    CASE("all again");
    twins_step(twins, NULL);
    twins_same(twins);
    CASE("a gradient that is gone");
    REQUIRE_OK(mofo_bind_tensor(twins->host, bias->index, bias->host.param, NULL));
    REQUIRE_OK(mofo_bind_tensor(twins->device, bias->index, bias->device.param, NULL));
    CHECK_U64(twins_step(twins, NULL).entries, 1500 + 999 + 1);
    twins_same(twins);
    CHECK_U64(state_of(twins->device, bias->index).step_count, 2);
    CASE("and is there again");
    REQUIRE_OK(mofo_bind_tensor(twins->host, bias->index, bias->host.param, bias->host.grad));
    REQUIRE_OK(mofo_bind_tensor(twins->device, bias->index, bias->device.param, bias->device.grad));
    twins_step(twins, NULL);
    twins_same(twins);
    twins_free(twins);
}

/* Tensors without entries take part, and nothing happens but that their steps are counted. */
static void empty_tensors(void) {
    static const double norms[] = {0.0, 0.2};
    size_t n;
    int t;
    for (n = 0; n < sizeof norms / sizeof norms[0]; n++) {
        mofo_options options = default_options();
        mofo_tensor empty = named_tensor("empty", 0);
        uint64_t first, last;
        struct twins *twins;
        CASE("empty tensors, clipping at %g", norms[n]);
        options.max_grad_norm = norms[n];
        twins = twins_new(&options);
        REQUIRE_OK(mofo_add_tensor(twins->host, &empty, &first));
        REQUIRE_OK(mofo_add_tensor(twins->device, &empty, &first));
        CHECK_U64(twins_step(twins, NULL).entries, 0);
        twins_add_mixed(twins);
        empty.name = "empty.everything";
        empty.update_fraction = 1.0;
        empty.param_dtype = MOFO_DTYPE_BF16;
        empty.num_blocks = 5;
        REQUIRE_OK(mofo_add_tensor(twins->host, &empty, &last));
        REQUIRE_OK(mofo_add_tensor(twins->device, &empty, &last));
        for (t = 0; t < 3; t++) {
            double expected, got;
            twins_gradients(twins, (uint64_t)t);
            CHECK_OK(mofo_grad_norm(twins->host, NULL, &expected));
            CHECK_OK(mofo_grad_norm(twins->device, NULL, &got));
            CHECK_F64(got, expected);
            CHECK_U64(twins_step(twins, NULL).entries, 1500 + 999 + 37 + 1);
            twins_same(twins);
        }
        CHECK_OK(mofo_bind_tensor(twins->device, last, NULL, NULL));
        twins_step(twins, NULL);
        twins_same(twins);
        CHECK_U64(state_of(twins->device, first).step_count, 5);
        CHECK_U64(state_of(twins->device, last).step_count, 4);
        CHECK_U64(state_of(twins->host, last).step_count, 4);
        CHECK_OK(mofo_remove_tensor(twins->host, first));
        CHECK_OK(mofo_remove_tensor(twins->device, first));
        twins_step(twins, NULL);
        twins_same(twins);
        twins_free(twins);
    }
}

/* Moments with a past: brought with the tensor, or restored through the pointers of mofo_tensor_state. */
static void resumed(void) {
    mofo_options options = default_options();
    struct twins *first;
    struct twins *second;
    struct twin *twin;
    struct twin *later;
    mofo_tensor like;
    mofo_tensor_info info;
    mofo_tensor_info fresh;
    const size_t numel = 700;
    options.master_weights = 1;
    options.state_dtype = MOFO_DTYPE_BF16;
    options.learning_rate = 0.01;
    first = twins_new(&options);
    second = twins_new(&options);
    CASE("the first steps");
    twin = twins_add_plain(first, "resumed", numel, 7, MOFO_DTYPE_BF16, MOFO_DTYPE_F32);
    twins_step(first, NULL);
    twins_gradients(first, 1);
    twins_step(first, NULL);
    twins_same(first);
    info = state_of(first->host, twin->index);

    CASE("with moments and a step count from before");
    like = named_tensor("resumed", numel);
    like.num_blocks = 7;
    like.param_dtype = MOFO_DTYPE_BF16;
    like.step_count = 2;
    like.exp_avg = info.exp_avg;
    like.exp_avg_sq = info.exp_avg_sq;
    like.master = info.master;
    later = twins_add(second, &like);
    CHECK_U64(state_of(second->device, later->index).step_count, 2);
    twins_step(second, NULL);
    twins_same(second);
    CHECK_U64(state_of(second->device, later->index).step_count, 3);

    CASE("the library's master copy starts from the parameter, whatever the step count is");
    like.name = "resumed.without";
    like.master = NULL;
    twins_add(second, &like);
    twins_step(second, NULL);
    twins_same(second);

    CASE("restored on the device alone");
    fresh = state_of(first->device, twin->index);
    device_write(fresh.exp_avg, info.exp_avg, numel * 2);
    device_write(fresh.exp_avg_sq, info.exp_avg_sq, numel * 2);
    device_write(fresh.master, info.master, numel * sizeof(float));
    REQUIRE_OK(mofo_set_step_count(first->device, twin->index, 41));
    REQUIRE_OK(mofo_set_step_count(first->host, twin->index, 41));
    CHECK_U64(state_of(first->device, twin->index).step_count, 41);
    twins_step(first, NULL);
    twins_same(first);

    CASE("a step count of 0 starts anew, whatever the moments hold");
    REQUIRE_OK(mofo_set_step_count(first->device, twin->index, 0));
    REQUIRE_OK(mofo_set_step_count(first->host, twin->index, 0));
    twins_step(first, NULL);
    twins_same(first);
    CHECK_U64(state_of(first->device, twin->index).step_count, 1);
    twins_free(first);
    twins_free(second);
}

static void removed(void) {
    static const char *const later[] = {"later.1", "later.2", "later.3"};
    mofo_options options = default_options();
    struct twins *twins;
    mofo_tensor_info info;
    int n;
    options.skip_nonfinite = 1;
    twins = twins_new(&options);
    twins_add_mixed(twins);
    twins_add_plain(twins, "large.1", 262200, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
    twins_add_plain(twins, "large.2", 349700, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_BF16);
    CASE("before");
    twins_step(twins, NULL);
    twins_same(twins);
    for (n = 1; n <= 4; n += 3) {
        struct twin *gone = &twins->tensors[n];
        CASE("tensor %d is removed", n);
        REQUIRE_OK(mofo_remove_tensor(twins->host, gone->index));
        REQUIRE_OK(mofo_remove_tensor(twins->device, gone->index));
        CHECK_STATUS(mofo_tensor_state(twins->device, gone->index, &info, sizeof info), MOFO_ERROR_NOT_FOUND);
        /* Nothing of it is used any more. */
        twin_free(gone);
        memset(gone, 0, sizeof *gone);
        twins_gradients(twins, (uint64_t)n);
        twins_step(twins, NULL);
        twins_same(twins);
    }
    for (n = 0; n < 3; n++) {
        struct twin *twin = twins_add_plain(twins, later[n], 640, n == 1 ? 10 : 1, dtypes[n], dtypes[n]);
        CASE("after another one was added");
        CHECK_U64(twin->index, 6 + (uint64_t)n);
        twins_gradients(twins, 50 + (uint64_t)n);
        twins_step(twins, NULL);
        twins_same(twins);
    }
    twins_free(twins);
}

/* More tensors than one launch tells the device about, bound to other buffers at every step. */
static void many_bound_anew(void) {
    enum { MANY = 600, ROOM = 64, SETS = 2 };
    static char names[MANY][24];
    mofo_options options = default_options();
    mofo_optimizer *host;
    mofo_optimizer *device;
    float *params[SETS];
    float *grads[SETS];
    float *device_params[SETS];
    float *device_grads[SETS];
    int n, set, t;
    options.max_grad_norm = 0.5;
    options.num_threads = 1;
    REQUIRE_OK(mofo_create(&options, &host));
    options.device = MOFO_DEVICE_CUDA;
    REQUIRE_OK(mofo_create(&options, &device));
    for (set = 0; set < SETS; set++) {
        const size_t bytes = MANY * ROOM * sizeof(float);
        params[set] = buffer_filled(MOFO_DTYPE_F32, MANY * ROOM, 1 + (uint64_t)set, 1.0);
        grads[set] = buffer_filled(MOFO_DTYPE_F32, MANY * ROOM, 11 + (uint64_t)set, 0.01);
        device_params[set] = device_copy(params[set], bytes);
        device_grads[set] = device_copy(grads[set], bytes);
    }
    for (n = 0; n < MANY; n++) {
        mofo_tensor tensor;
        uint64_t index;
        snprintf(names[n], sizeof names[n], "many.%d", n);
        tensor = named_tensor(names[n], 1 + (uint64_t)n % 40);
        REQUIRE_OK(mofo_add_tensor(host, &tensor, &index));
        REQUIRE_OK(mofo_add_tensor(device, &tensor, &index));
    }
    for (t = 0; t < 4; t++) {
        CASE("many tensors, step %d", t);
        set = t % SETS;
        for (n = 0; n < MANY; n++) {
            const size_t place = (size_t)n * ROOM;
            /* In the third step only some. */
            if (t != 2 || n % 3 == 0) {
                REQUIRE_OK(mofo_bind_tensor(host, (uint64_t)n, params[set] + place, grads[set] + place));
                REQUIRE_OK(mofo_bind_tensor(device, (uint64_t)n, device_params[set] + place,
                                            device_grads[set] + place));
            }
        }
        REQUIRE_OK(mofo_step(host, NULL));
        REQUIRE_OK(mofo_step(device, NULL));
        for (n = 0; n < SETS; n++) {
            CHECK_DEVICE(device_params[n], params[n], MANY * ROOM * sizeof(float));
        }
        for (n = 0; n < MANY; n += 83) {
            const mofo_tensor_info expected = state_of(host, (uint64_t)n);
            const mofo_tensor_info got = state_of(device, (uint64_t)n);
            CHECK_DEVICE(got.exp_avg_sq, expected.exp_avg_sq, (size_t)expected.numel * sizeof(float));
            CHECK_U64(got.step_count, expected.step_count);
        }
    }
    CASE("many tensors, some of them listed");
    {
        uint64_t list[MANY];
        mofo_step_args args = default_args();
        for (n = 0; n < MANY / 7; n++) {
            list[n] = (uint64_t)(MANY - 1 - 7 * n);
        }
        args.tensors = list;
        args.num_tensors = MANY / 7;
        REQUIRE_OK(mofo_step(host, &args));
        REQUIRE_OK(mofo_step(device, &args));
        CHECK_DEVICE(device_params[0], params[0], MANY * ROOM * sizeof(float));
        CHECK_DEVICE(device_params[1], params[1], MANY * ROOM * sizeof(float));
    }
    mofo_destroy(host);
    mofo_destroy(device);
    for (set = 0; set < SETS; set++) {
        free(params[set]);
        free(grads[set]);
        device_free(device_params[set]);
        device_free(device_grads[set]);
    }
}

static void check_norm(struct twins *twins, const mofo_step_args *args) {
    double host = 5.0;
    double device = 6.0;
    REQUIRE_OK(mofo_grad_norm(twins->host, args, &host));
    REQUIRE_OK(mofo_grad_norm(twins->device, args, &device));
    CHECK_F64(device, host);
}

static void grad_norm(void) {
    mofo_options options = default_options();
    mofo_step_args args = default_args();
    struct twins *twins = twins_new(&options);
    struct twin *matrix;
    mofo_tensor gradient_only;
    uint64_t list[2];
    float nan = NAN;
    CASE("the norm without a tensor");
    {
        double norm = 5.0;
        CHECK_STATUS(mofo_grad_norm(twins->device, NULL, &norm), MOFO_ERROR_INVALID_STATE);
        CHECK_F64(norm, 5.0);
    }
    twins_add_mixed(twins);
    /* Longer than what is summed at a time. */
    matrix = twins_add_plain(twins, "long", 3 * 4096 + 5, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F16);
    CASE("the norm of all");
    check_norm(twins, NULL);
    CASE("the norm, scaled");
    args.grad_scale = -0.125;
    check_norm(twins, &args);
    CASE("the norm of some");
    list[0] = matrix->index;
    list[1] = twins->tensors[0].index;
    args.tensors = list;
    args.num_tensors = 2;
    check_norm(twins, &args);
    CASE("the norm of none");
    args.num_tensors = 0;
    check_norm(twins, &args);
    CASE("the norm has changed nothing");
    twins_same(twins);
    CASE("a parameter need not be bound for it");
    gradient_only = twins->tensors[0].host;
    REQUIRE_OK(mofo_bind_tensor(twins->host, twins->tensors[0].index, NULL, gradient_only.grad));
    REQUIRE_OK(mofo_bind_tensor(twins->device, twins->tensors[0].index, NULL, twins->tensors[0].device.grad));
    check_norm(twins, NULL);
    CASE("a norm that is not finite");
    memcpy((char *)(uintptr_t)twins->tensors[0].host.grad + 400, &nan, sizeof nan);
    device_write((const char *)twins->tensors[0].device.grad + 400, &nan, sizeof nan);
    {
        double norm = 0.0;
        REQUIRE_OK(mofo_grad_norm(twins->device, NULL, &norm));
        CHECK(isnan(norm));
    }
    CASE("%s", "");
    twins_free(twins);
}

/* Moments and parameters of values that computers round, flush or overflow. */
static void edges(void) {
    static const float params[] = {0.0f, -0.0f, 1e-40f,   1e38f, -3e38f, INFINITY,
                                   1.0f, -1.0f, 65504.0f, 1e-7f, 5e-8f,  2.0f};
    static const float grads[] = {1e-38f, 1e-30f, -1e-22f, 1e19f,    3e38f, 1.0f,
                                  0.0f,   -0.0f,  1e-45f,  INFINITY, NAN,   -1e30f};
    enum { EDGES = 12 * 12 };
    int kind;
    for (kind = 0; kind < KINDS; kind++) {
        mofo_options options = default_options();
        struct twins *twins;
        struct twin *twin;
        int i, t;
        options.update_fraction = 0.4;
        options.weight_decay = 0.5;
        options.state_dtype = kind % 2 ? MOFO_DTYPE_BF16 : MOFO_DTYPE_F32;
        options.master_weights = kind % 4 == 2;
        twins = twins_new(&options);
        CASE("edges, parameter %s, gradient %s", dtype_names[kind / 3], dtype_names[kind % 3]);
        twin = twins_add_plain(twins, "edges", EDGES, kind % 2 ? 3 : 1, dtypes[kind / 3], dtypes[kind % 3]);
        for (i = 0; i < EDGES; i++) {
            reference_store(dtypes[kind / 3], twin->host.param, (uint64_t)i, params[i % 12], 0, 0);
            reference_store(dtypes[kind % 3], (void *)(uintptr_t)twin->host.grad, (uint64_t)i, grads[i / 12], 0, 0);
        }
        device_write(twin->device.param, twin->host.param, param_bytes(&twin->host));
        device_write(twin->device.grad, twin->host.grad, grad_bytes(&twin->host));
        for (t = 0; t < 3; t++) {
            twins_step(twins, NULL);
            twins_same(twins);
        }
        twins_free(twins);
    }
}

int main(void) {
    cuda_begin();
    all_types();
    large_blocks();
    barely_aligned_buffers();
    managed_memory();
    settings_of_a_step();
    subsets();
    empty_tensors();
    resumed();
    removed();
    many_bound_anew();
    grad_norm();
    edges();
    return cuda_finish();
}
