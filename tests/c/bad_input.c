/* Every kind of bad input: a status of the right kind, a message that says what was wrong, outputs as they were,
 * and nothing changed. In the end the optimizer that has seen all of it steps like one that has seen none. */

#include "buffers.h"

enum { NUMEL = 24, GUARD = 64 };

/* The parts that a message must have. */
struct says {
    const char *parts[4];
};

/*
 * Three tensors in one optimizer: "scene.full" with buffers all of the caller's, "scene.half" in 16 bits with
 * state of the library's, "scene.bare" not bound. Buffers are surrounded by guard bytes.
 */
struct scene {
    mofo_options options;
    mofo_optimizer *optimizer;
    mofo_tensor full;
    mofo_tensor half;
    unsigned char *memory;
    unsigned char *memory_before;
    size_t memory_size;
    size_t used;
    uint64_t indices[3];
    mofo_tensor_info info[3];
    unsigned char *state_before[3][4];
    mofo_memory_info memory_info;
};

static size_t state_bytes(const mofo_tensor_info *info, int which) {
    size_t numel = (size_t)info->numel;
    switch (which) {
    case 0:
    case 1:
        return numel * reference_size(info->state_dtype);
    case 2:
        return info->master != NULL ? numel * sizeof(float) : 0;
    default:
        return (size_t)info->num_blocks * sizeof(float);
    }
}

static const void *state_pointer(const mofo_tensor_info *info, int which) {
    const void *pointers[4];
    pointers[0] = info->exp_avg;
    pointers[1] = info->exp_avg_sq;
    pointers[2] = info->master;
    pointers[3] = info->thresholds;
    return pointers[which];
}

static void *scene_buffer(struct scene *scene, size_t bytes) {
    void *buffer = scene->memory + scene->used + GUARD;
    scene->used += 2 * GUARD + (bytes + 63) / 64 * 64;
    REQUIRE(scene->used <= scene->memory_size);
    return buffer;
}

static void scene_snapshot(struct scene *scene) {
    int n, which;
    memcpy(scene->memory_before, scene->memory, scene->memory_size);
    for (n = 0; n < 3; n++) {
        scene->info[n] = state_of(scene->optimizer, scene->indices[n]);
        for (which = 0; which < 4; which++) {
            size_t bytes = state_bytes(&scene->info[n], which);
            free(scene->state_before[n][which]);
            scene->state_before[n][which] =
                bytes ? buffer_copy(state_pointer(&scene->info[n], which), bytes) : NULL;
        }
    }
    REQUIRE_OK(mofo_memory(scene->optimizer, &scene->memory_info, sizeof scene->memory_info));
}

static void scene_unchanged(struct scene *scene) {
    mofo_memory_info memory_info;
    int n, which;
    CHECK_BYTES(scene->memory, scene->memory_before, scene->memory_size);
    for (n = 0; n < 3; n++) {
        mofo_tensor_info info = state_of(scene->optimizer, scene->indices[n]);
        CHECK_BYTES(&info, &scene->info[n], sizeof info);
        for (which = 0; which < 4; which++) {
            CHECK_BYTES(state_pointer(&info, which), scene->state_before[n][which], state_bytes(&info, which));
        }
    }
    REQUIRE_OK(mofo_memory(scene->optimizer, &memory_info, sizeof memory_info));
    CHECK_U64(memory_info.state, scene->memory_info.state);
    CHECK_U64(memory_info.caller_state, scene->memory_info.caller_state);
    CHECK_U64(memory_info.num_tensors, scene->memory_info.num_tensors);
    CHECK_U64(memory_info.entries, scene->memory_info.entries);
}

static struct scene scene_new(void) {
    struct scene scene;
    mofo_tensor bare;
    memset(&scene, 0, sizeof scene);
    scene.options = default_options();
    scene.options.num_threads = 1;
    scene.options.master_weights = 1;
    scene.memory_size = 1 << 14;
    scene.memory = buffer_new(scene.memory_size);
    scene.memory_before = buffer_new(scene.memory_size);
    memset(scene.memory, 0x5A, scene.memory_size);
    REQUIRE_OK(mofo_create(&scene.options, &scene.optimizer));

    scene.full = named_tensor("scene.full", NUMEL);
    scene.full.num_blocks = 2;
    scene.full.param = scene_buffer(&scene, NUMEL * sizeof(float));
    scene.full.grad = scene_buffer(&scene, NUMEL * sizeof(float));
    scene.full.exp_avg = scene_buffer(&scene, NUMEL * sizeof(float));
    scene.full.exp_avg_sq = scene_buffer(&scene, NUMEL * sizeof(float));
    buffer_fill(scene.full.param, MOFO_DTYPE_F32, NUMEL, 1, 1.0);
    buffer_fill((void *)(uintptr_t)scene.full.grad, MOFO_DTYPE_F32, NUMEL, 2, 0.01);
    REQUIRE_OK(mofo_add_tensor(scene.optimizer, &scene.full, &scene.indices[0]));

    scene.half = named_tensor("scene.half", NUMEL);
    scene.half.param_dtype = MOFO_DTYPE_BF16;
    scene.half.grad_dtype = MOFO_DTYPE_F16;
    scene.half.param = scene_buffer(&scene, NUMEL * 2);
    scene.half.grad = scene_buffer(&scene, NUMEL * 2);
    buffer_fill(scene.half.param, MOFO_DTYPE_BF16, NUMEL, 3, 1.0);
    buffer_fill((void *)(uintptr_t)scene.half.grad, MOFO_DTYPE_F16, NUMEL, 4, 0.01);
    REQUIRE_OK(mofo_add_tensor(scene.optimizer, &scene.half, &scene.indices[1]));

    bare = named_tensor("scene.bare", 3);
    REQUIRE_OK(mofo_add_tensor(scene.optimizer, &bare, &scene.indices[2]));

    /* So that there are moments, masters and thresholds to keep. */
    REQUIRE_OK(mofo_step(scene.optimizer, NULL));
    REQUIRE_OK(mofo_step(scene.optimizer, NULL));
    scene_snapshot(&scene);
    return scene;
}

static void scene_free(struct scene *scene) {
    int n, which;
    mofo_destroy(scene->optimizer);
    for (n = 0; n < 3; n++) {
        for (which = 0; which < 4; which++) {
            free(scene->state_before[n][which]);
        }
    }
    free(scene->memory);
    free(scene->memory_before);
}

static void check_refused(int32_t status, int32_t expected, struct says says) {
    int n;
    CHECK_STATUS(status, expected);
    for (n = 0; n < 4 && says.parts[n] != NULL; n++) {
        CHECK_TEXT(mofo_last_error(), says.parts[n]);
    }
}

#define SAYS(...) ((struct says){{__VA_ARGS__}})

static void bad_options(const mofo_options *options, int32_t expected, struct says says) {
    mofo_tensor tensor = named_tensor("t", NUMEL);
    mofo_optimizer *sentinel = (mofo_optimizer *)(uintptr_t)0x1230;
    mofo_optimizer *optimizer = sentinel;
    mofo_state_sizes sizes;
    mofo_state_sizes sizes_before;
    check_refused(mofo_create(options, &optimizer), expected, says);
    CHECK(optimizer == sentinel);
    memset(&sizes, 0xAA, sizeof sizes);
    sizes_before = sizes;
    check_refused(mofo_state_size(options, &tensor, &sizes, sizeof sizes), expected, says);
    CHECK_BYTES(&sizes, &sizes_before, sizeof sizes);
}

#define BAD_OPTION_STATUS(field, value, status, ...)                                                         \
    do {                                                                                                     \
        mofo_options bad = default_options();                                                                \
        bad.field = (value);                                                                                 \
        CASE("options." #field " = " #value);                                                                \
        bad_options(&bad, status, SAYS(#field, __VA_ARGS__));                                                \
    } while (0)
#define BAD_OPTION(field, value, ...)                                                                        \
    BAD_OPTION_STATUS(field, value, MOFO_ERROR_INVALID_ARGUMENT, __VA_ARGS__)

/* Every way to miss [0, infinity). */
#define NEGATIVE_OR_NOT_FINITE(bad, field)                                                                   \
    do {                                                                                                     \
        bad(field, -2.5, "-2.5", "at least 0");                                                              \
        bad(field, -5e-324, "at least 0");                                                                   \
        bad(field, NAN, "NaN", "finite");                                                                    \
        bad(field, INFINITY, "inf", "finite");                                                               \
        bad(field, -INFINITY, "-inf", "finite");                                                             \
    } while (0)

static void options(void) {
    static unsigned char bytes[sizeof(mofo_options) + 8];
    mofo_options good = default_options();
    mofo_optimizer *sentinel = (mofo_optimizer *)(uintptr_t)0x1230;
    mofo_optimizer *optimizer = sentinel;
    CASE("options NULL");
    bad_options(NULL, MOFO_ERROR_INVALID_ARGUMENT, SAYS("mofo_options", "NULL"));
    CASE("options misaligned");
    memcpy(bytes + 1, &good, sizeof good);
    bad_options((mofo_options *)(void *)(bytes + 1), MOFO_ERROR_INVALID_ARGUMENT, SAYS("mofo_options", "8"));
    CASE("optimizer NULL");
    check_refused(mofo_create(&good, NULL), MOFO_ERROR_INVALID_ARGUMENT, SAYS("optimizer", "NULL"));
    CASE("struct_size");
    good.struct_size = sizeof good - 8;
    check_refused(mofo_create(&good, &optimizer), MOFO_ERROR_INVALID_ARGUMENT, SAYS("mofo_options", "120", "128"));
    CHECK(optimizer == sentinel);

    NEGATIVE_OR_NOT_FINITE(BAD_OPTION, learning_rate);
    NEGATIVE_OR_NOT_FINITE(BAD_OPTION, epsilon);
    NEGATIVE_OR_NOT_FINITE(BAD_OPTION, weight_decay);
    NEGATIVE_OR_NOT_FINITE(BAD_OPTION, max_grad_norm);
    /* There is nobody to inherit from. */
    BAD_OPTION(learning_rate, MOFO_INHERIT, "-1");
    BAD_OPTION(weight_decay, MOFO_INHERIT, "-1");
    BAD_OPTION(update_fraction, MOFO_INHERIT, "-1");

    BAD_OPTION(beta1, 1.0, "1", "below 1");
    BAD_OPTION(beta1, 1.5, "1.5", "below 1");
    BAD_OPTION(beta1, -0.5, "-0.5", "at least 0");
    BAD_OPTION(beta1, NAN, "NaN");
    BAD_OPTION(beta1, INFINITY, "inf");
    BAD_OPTION(beta1, -INFINITY, "-inf");
    BAD_OPTION(beta2, 1.0, "1", "below 1");
    BAD_OPTION(beta2, 1.5, "1.5", "below 1");
    BAD_OPTION(beta2, -0.5, "-0.5", "at least 0");
    BAD_OPTION(beta2, NAN, "NaN");
    BAD_OPTION(beta2, INFINITY, "inf");
    BAD_OPTION(beta2, -INFINITY, "-inf");

    BAD_OPTION(update_fraction, 0.0, "0", "above 0", "at most 1");
    BAD_OPTION(update_fraction, -0.0, "above 0");
    BAD_OPTION(update_fraction, -0.25, "-0.25", "above 0");
    BAD_OPTION(update_fraction, 1.0000000000000002, "1.0000000000000002", "at most 1");
    BAD_OPTION(update_fraction, 10.0, "10", "at most 1");
    BAD_OPTION(update_fraction, NAN, "NaN");
    BAD_OPTION(update_fraction, INFINITY, "inf");

    BAD_OPTION(device, 2, "2");
    BAD_OPTION(device, -1, "-1");
    BAD_OPTION(device, INT32_MIN, "-2147483648");
    BAD_OPTION(filter, 4, "4");
    BAD_OPTION(filter, -1, "-1");
    BAD_OPTION(filter, INT32_MAX, "2147483647");
    BAD_OPTION(weight_decay_scope, 2, "2");
    BAD_OPTION(weight_decay_scope, -1, "-1");
    BAD_OPTION(state_dtype, MOFO_DTYPE_F16, "1");
    BAD_OPTION(state_dtype, 3, "3");
    BAD_OPTION(state_dtype, -1, "-1");
    BAD_OPTION(master_weights, 2, "2");
    BAD_OPTION(master_weights, -1, "-1");
    BAD_OPTION(rounding, 2, "2");
    BAD_OPTION(rounding, -1, "-1");
    BAD_OPTION(skip_nonfinite, 2, "2");
    BAD_OPTION(skip_nonfinite, -1, "-1");
    BAD_OPTION(cpu_tier, 4, "4");
    BAD_OPTION(cpu_tier, -1, "-1");
    BAD_OPTION(num_threads, -1, "-1", "1024");
    BAD_OPTION(num_threads, 1025, "1025", "1024");
    BAD_OPTION(num_threads, INT32_MIN, "-2147483648");
    if (mofo_cuda_available()) {
        SKIP("a CUDA device is there, so that asking for one is no error");
    } else {
        mofo_options bad = default_options();
        optimizer = sentinel;
        bad.device = MOFO_DEVICE_CUDA;
        CASE("CUDA");
        check_refused(mofo_create(&bad, &optimizer), MOFO_ERROR_UNSUPPORTED, SAYS("CUDA"));
        CHECK(optimizer == sentinel);
    }
    CASE("%s", "");
}

static void null_pointers(struct scene *scene) {
    mofo_tensor tensor = named_tensor("scene.new", NUMEL);
    mofo_options good = default_options();
    mofo_tensor_info info;
    mofo_memory_info memory;
    mofo_state_sizes sizes;
    uint64_t index = 5;
    double norm = 5.0;
    CASE("NULL handle");
#define NO_HANDLE(call) check_refused(call, MOFO_ERROR_INVALID_ARGUMENT, SAYS("optimizer", "NULL"))
    NO_HANDLE(mofo_add_tensor(NULL, &tensor, &index));
    NO_HANDLE(mofo_remove_tensor(NULL, 0));
    NO_HANDLE(mofo_find_tensor(NULL, "scene.full", &index));
    NO_HANDLE(mofo_bind_tensor(NULL, 0, scene->full.param, scene->full.grad));
    NO_HANDLE(mofo_step(NULL, NULL));
    NO_HANDLE(mofo_wait(NULL));
    NO_HANDLE(mofo_grad_norm(NULL, NULL, &norm));
    memset(&info, 0xAA, sizeof info);
    NO_HANDLE(mofo_tensor_state(NULL, 0, &info, sizeof info));
    CHECK_U64(info.numel, 0xAAAAAAAAAAAAAAAAu);
    NO_HANDLE(mofo_set_step_count(NULL, 0, 1));
    memset(&memory, 0xAA, sizeof memory);
    NO_HANDLE(mofo_memory(NULL, &memory, sizeof memory));
    CHECK_U64(memory.entries, 0xAAAAAAAAAAAAAAAAu);
    NO_HANDLE(mofo_cpu_tier(NULL));

    CASE("NULL input or output");
#define NULL_IS_BAD(call, name) check_refused(call, MOFO_ERROR_INVALID_ARGUMENT, SAYS(name, "NULL"))
    NULL_IS_BAD(mofo_add_tensor(scene->optimizer, NULL, &index), "mofo_tensor");
    NULL_IS_BAD(mofo_add_tensor(scene->optimizer, &tensor, NULL), "index");
    NULL_IS_BAD(mofo_find_tensor(scene->optimizer, "scene.full", NULL), "index");
    NULL_IS_BAD(mofo_find_tensor(scene->optimizer, NULL, &index), "name");
    NULL_IS_BAD(mofo_grad_norm(scene->optimizer, NULL, NULL), "norm");
    NULL_IS_BAD(mofo_tensor_state(scene->optimizer, scene->indices[0], NULL, sizeof info), "mofo_tensor_info");
    NULL_IS_BAD(mofo_memory(scene->optimizer, NULL, sizeof memory), "mofo_memory_info");
    NULL_IS_BAD(mofo_state_size(&good, NULL, &sizes, sizeof sizes), "mofo_tensor");
    NULL_IS_BAD(mofo_state_size(&good, &tensor, NULL, sizeof sizes), "mofo_state_sizes");
    CHECK_U64(index, 5);
    CHECK_F64(norm, 5.0);
    scene_unchanged(scene);
    CASE("%s", "");
}

static mofo_tensor new_tensor(void) { return named_tensor("scene.new", NUMEL); }

static void bad_tensor(struct scene *scene, const mofo_tensor *tensor, int32_t expected, struct says says) {
    uint64_t index = 0xDEAD;
    uint64_t found = 0xDEAD;
    check_refused(mofo_add_tensor(scene->optimizer, tensor, &index), expected, says);
    CHECK_U64(index, 0xDEAD);
    CHECK_STATUS(mofo_find_tensor(scene->optimizer, "scene.new", &found), MOFO_ERROR_NOT_FOUND);
    scene_unchanged(scene);
}

/* A bad value that mofo_state_size refuses as well. */
#define BAD_VALUE(field, value, ...)                                                                         \
    do {                                                                                                     \
        mofo_tensor bad = new_tensor();                                                                      \
        mofo_state_sizes sizes;                                                                              \
        bad.field = (value);                                                                                 \
        CASE("tensor." #field " = " #value);                                                                 \
        bad_tensor(scene, &bad, MOFO_ERROR_INVALID_ARGUMENT, SAYS("scene.new", #field, __VA_ARGS__));        \
        memset(&sizes, 0xAA, sizeof sizes);                                                                  \
        check_refused(mofo_state_size(&scene->options, &bad, &sizes, sizeof sizes),                          \
                      MOFO_ERROR_INVALID_ARGUMENT, SAYS(#field));                                            \
        CHECK_U64(sizes.exp_avg, 0xAAAAAAAAAAAAAAAAu);                                                       \
        CHECK_U64(sizes.scratch, 0xAAAAAAAAAAAAAAAAu);                                                       \
    } while (0)

static void tensor_values(struct scene *scene) {
    BAD_VALUE(numel, (uint64_t)1 << 63, "9223372036854775808");
    BAD_VALUE(numel, UINT64_MAX, "18446744073709551615");
    /* The bytes of four-byte elements no longer fit into what a buffer can be. */
    BAD_VALUE(numel, (uint64_t)1 << 61, "2305843009213693952");
    BAD_VALUE(numel, (uint64_t)1 << 62, "4611686018427387904");
    BAD_VALUE(num_blocks, 0, "0", "24");
    BAD_VALUE(num_blocks, 5, "5", "24");
    BAD_VALUE(num_blocks, 25, "25", "24");
    BAD_VALUE(num_blocks, UINT64_MAX, "18446744073709551615", "24");
    BAD_VALUE(param_dtype, 3, "3");
    BAD_VALUE(param_dtype, -1, "-1");
    BAD_VALUE(param_dtype, INT32_MAX, "2147483647");
    BAD_VALUE(grad_dtype, 3, "3");
    BAD_VALUE(grad_dtype, -1, "-1");
    BAD_VALUE(grad_dtype, INT32_MIN, "-2147483648");
    BAD_VALUE(update_fraction, 0.0, "0", "above 0");
    BAD_VALUE(update_fraction, -0.5, "-0.5");
    BAD_VALUE(update_fraction, -1.0000000000000002, "-1.0000000000000002");
    BAD_VALUE(update_fraction, 1.25, "1.25", "at most 1");
    BAD_VALUE(update_fraction, NAN, "NaN");
    BAD_VALUE(update_fraction, INFINITY, "inf");
    BAD_VALUE(update_fraction, -INFINITY, "-inf");
    NEGATIVE_OR_NOT_FINITE(BAD_VALUE, weight_decay);
    NEGATIVE_OR_NOT_FINITE(BAD_VALUE, learning_rate_scale);
    BAD_VALUE(learning_rate_scale, MOFO_INHERIT, "-1");
    BAD_VALUE(step_count, (uint64_t)1 << 63, "9223372036854775808", "9223372036854775807");
    BAD_VALUE(step_count, UINT64_MAX, "18446744073709551615", "9223372036854775807");
    CASE("%s", "");
}

static void tensor_names(struct scene *scene) {
    static unsigned char bytes[sizeof(mofo_tensor) + 8];
    static const char *const not_utf8[] = {"\xFF\xFE", "abc\x80", "\xC3", "\xED\xA0\x80", "\xC0\xAF"};
    mofo_tensor tensor = new_tensor();
    uint64_t index = 5;
    size_t n;
    CASE("names");
    tensor.name = NULL;
    bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_ARGUMENT, SAYS("name", "NULL"));
    tensor.name = "";
    bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_ARGUMENT, SAYS("name", "empty"));
    check_refused(mofo_find_tensor(scene->optimizer, "", &index), MOFO_ERROR_INVALID_ARGUMENT,
                  SAYS("name", "empty"));
    for (n = 0; n < sizeof not_utf8 / sizeof not_utf8[0]; n++) {
        tensor.name = not_utf8[n];
        bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_ARGUMENT, SAYS("name", "UTF-8"));
        check_refused(mofo_find_tensor(scene->optimizer, not_utf8[n], &index), MOFO_ERROR_INVALID_ARGUMENT,
                      SAYS("name", "UTF-8"));
    }
    CHECK_U64(index, 5);
    tensor.name = "scene.half";
    bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_ARGUMENT, SAYS("scene.half"));

    CASE("tensor's struct");
    tensor = new_tensor();
    tensor.struct_size = sizeof tensor - 1;
    bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_ARGUMENT, SAYS("mofo_tensor", "111", "112"));
    tensor = new_tensor();
    memcpy(bytes + 4, &tensor, sizeof tensor);
    bad_tensor(scene, (mofo_tensor *)(void *)(bytes + 4), MOFO_ERROR_INVALID_ARGUMENT, SAYS("mofo_tensor", "8"));
    CASE("%s", "");
}

/* Which buffers of a new tensor lie where, in elements from the start of one block of memory. */
static void tensor_buffers(struct scene *scene) {
    /* Room for five buffers of NUMEL floats, with space between them. */
    enum { ROOM = 32 };
    static float room[5 * ROOM];
    static const char *const names[5] = {"param", "grad", "exp_avg", "exp_avg_sq", "master"};
    float room_before[5 * ROOM];
    int a, b, shift;
    memcpy(room_before, room, sizeof room);
    for (a = 0; a < 5; a++) {
        for (shift = 1; shift < 4; shift++) {
            mofo_tensor tensor = new_tensor();
            void *pointers[5] = {&room[0], &room[ROOM], &room[2 * ROOM], &room[3 * ROOM], &room[4 * ROOM]};
            if (a == 4) {
                /* Only parameters of 16 bits have masters; an odd shift is enough there for the others. */
                tensor.param_dtype = MOFO_DTYPE_BF16;
            }
            CASE("%s misaligned by %d", names[a], shift);
            pointers[a] = (char *)pointers[a] + shift;
            tensor.param = pointers[0];
            tensor.grad = pointers[1];
            tensor.exp_avg = pointers[2];
            tensor.exp_avg_sq = pointers[3];
            tensor.master = a == 4 ? pointers[4] : NULL;
            bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("scene.new", names[a], "4"));
        }
    }
    for (a = 0; a < 2; a++) {
        mofo_tensor tensor = new_tensor();
        tensor.param_dtype = a ? MOFO_DTYPE_F16 : MOFO_DTYPE_BF16;
        tensor.grad_dtype = a ? MOFO_DTYPE_BF16 : MOFO_DTYPE_F16;
        CASE("16 bits misaligned");
        tensor.param = (char *)room + 1;
        bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("scene.new", "param", "2"));
        tensor.param = NULL;
        tensor.grad = (char *)room + 1;
        bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("scene.new", "grad", "2"));
    }

    for (a = 0; a < 5; a++) {
        for (b = a + 1; b < 5; b++) {
            /* From "the last element of a is the first of b" to the reverse. */
            static const int shifts[] = {NUMEL - 1, 1, 0, -1, -(NUMEL - 1)};
            size_t n;
            for (n = 0; n < sizeof shifts / sizeof shifts[0]; n++) {
                mofo_tensor tensor = new_tensor();
                static float wide[9 * ROOM];
                /* The two in the middle, with room on both sides; the others far from them. */
                static const int places[3] = {0, 7, 8};
                float *pointers[5];
                int next = 0;
                int i;
                for (i = 0; i < 5; i++) {
                    pointers[i] = &wide[(i == a || i == b ? 4 : places[next++]) * ROOM];
                }
                pointers[b] = pointers[a] + shifts[n];
                tensor.param = pointers[0];
                tensor.grad = pointers[1];
                tensor.exp_avg = pointers[2];
                tensor.exp_avg_sq = pointers[3];
                if (b == 4) {
                    /* A 16-bit parameter has half the bytes: overlap it at its start only. */
                    tensor.param_dtype = MOFO_DTYPE_F16;
                    tensor.master = pointers[4];
                    if (a == 0 && shifts[n] > 0) {
                        continue;
                    }
                }
                CASE("%s overlaps %s, shifted by %d", names[a], names[b], shifts[n]);
                bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("scene.new", names[a], names[b]));
            }
        }
    }

    CASE("buffer at the end of the address space");
    {
        mofo_tensor tensor = new_tensor();
        tensor.param = (void *)(UINTPTR_MAX - 7);
        bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("scene.new", "param"));
        tensor = new_tensor();
        tensor.grad = (const void *)(UINTPTR_MAX - 7);
        bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("scene.new", "grad"));
        tensor = new_tensor();
        tensor.exp_avg = (void *)(UINTPTR_MAX - 7);
        bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_BUFFER, SAYS("scene.new", "exp_avg"));
    }

    CASE("a master that is not wanted");
    {
        mofo_tensor tensor = new_tensor();
        tensor.master = &room[4 * ROOM];
        bad_tensor(scene, &tensor, MOFO_ERROR_INVALID_ARGUMENT, SAYS("scene.new", "master", "must be NULL"));
    }

    CASE("more than memory");
    {
        mofo_tensor tensor = new_tensor();
        tensor.numel = (uint64_t)1 << 60;
        bad_tensor(scene, &tensor, MOFO_ERROR_OUT_OF_MEMORY, SAYS("scene.new"));
        tensor.numel = ((uint64_t)1 << 61) - 1;
        bad_tensor(scene, &tensor, MOFO_ERROR_OUT_OF_MEMORY, SAYS("scene.new"));
    }
    CHECK_BYTES(room, room_before, sizeof room);
    CASE("%s", "");
}

static void indices(struct scene *scene) {
    const uint64_t removed = 3;
    const uint64_t nobodys[] = {removed, 4, 1000, UINT64_MAX};
    mofo_tensor tensor = new_tensor();
    mofo_step_args args = default_args();
    uint64_t index = 0;
    size_t n;
    tensor.name = "scene.removed";
    REQUIRE_OK(mofo_add_tensor(scene->optimizer, &tensor, &index));
    REQUIRE(index == removed);
    REQUIRE_OK(mofo_remove_tensor(scene->optimizer, index));
    for (n = 0; n < sizeof nobodys / sizeof nobodys[0]; n++) {
        uint64_t list[2];
        mofo_tensor_info info;
        char number[32];
        double norm = 5.0;
        snprintf(number, sizeof number, "%llu", (unsigned long long)nobodys[n]);
        CASE("index %s", number);
        memset(&info, 0xAA, sizeof info);
#define NOT_FOUND(call) check_refused(call, MOFO_ERROR_NOT_FOUND, SAYS(number))
        NOT_FOUND(mofo_remove_tensor(scene->optimizer, nobodys[n]));
        NOT_FOUND(mofo_bind_tensor(scene->optimizer, nobodys[n], NULL, NULL));
        NOT_FOUND(mofo_set_step_count(scene->optimizer, nobodys[n], 1));
        NOT_FOUND(mofo_tensor_state(scene->optimizer, nobodys[n], &info, sizeof info));
        CHECK_U64(info.numel, 0xAAAAAAAAAAAAAAAAu);
        list[0] = scene->indices[0];
        list[1] = nobodys[n];
        args.tensors = list;
        args.num_tensors = 2;
        NOT_FOUND(mofo_step(scene->optimizer, &args));
        NOT_FOUND(mofo_grad_norm(scene->optimizer, &args, &norm));
        CHECK_F64(norm, 5.0);
        scene_unchanged(scene);
    }
    CASE("name of nobody");
    index = 5;
    check_refused(mofo_find_tensor(scene->optimizer, "scene.removed", &index), MOFO_ERROR_NOT_FOUND,
                  SAYS("scene.removed"));
    check_refused(mofo_find_tensor(scene->optimizer, "scene.ful", &index), MOFO_ERROR_NOT_FOUND,
                  SAYS("scene.ful"));
    CHECK_U64(index, 5);
    CASE("step count");
    check_refused(mofo_set_step_count(scene->optimizer, scene->indices[0], (uint64_t)1 << 63),
                  MOFO_ERROR_INVALID_ARGUMENT, SAYS("scene.full", "9223372036854775808", "9223372036854775807"));
    scene_unchanged(scene);
    CASE("%s", "");
}

static void binding(struct scene *scene) {
    float elsewhere[NUMEL];
    const uint64_t full = scene->indices[0];
    const uint64_t half = scene->indices[1];
    float *param = scene->full.param;
    const float *grad = scene->full.grad;
    float *exp_avg = scene->full.exp_avg;
    memset(elsewhere, 0, sizeof elsewhere);
#define BAD_BINDING(index, param, grad, ...)                                                                 \
    do {                                                                                                     \
        CASE("bind %s to %s and %s", #index, #param, #grad);                                                 \
        check_refused(mofo_bind_tensor(scene->optimizer, index, param, grad), MOFO_ERROR_INVALID_BUFFER,     \
                      SAYS(__VA_ARGS__));                                                                    \
        scene_unchanged(scene);                                                                              \
    } while (0)
    BAD_BINDING(full, (char *)param + 2, grad, "scene.full", "param", "4");
    BAD_BINDING(full, param, (const char *)grad + 1, "scene.full", "grad", "4");
    BAD_BINDING(half, (char *)scene->half.param + 1, scene->half.grad, "scene.half", "param", "2");
    BAD_BINDING(half, scene->half.param, (const char *)scene->half.grad + 1, "scene.half", "grad", "2");
    BAD_BINDING(full, elsewhere, elsewhere, "scene.full", "param", "grad");
    BAD_BINDING(full, param, param + NUMEL - 1, "scene.full", "param", "grad");
    BAD_BINDING(full, exp_avg, grad, "scene.full", "param", "exp_avg");
    BAD_BINDING(full, exp_avg + 1, grad, "scene.full", "param", "exp_avg");
    BAD_BINDING(full, param, exp_avg, "scene.full", "grad", "exp_avg");
    BAD_BINDING(full, param, scene->full.exp_avg_sq, "scene.full", "grad", "exp_avg_sq");
    /* State of the library's own, as mofo_tensor_state shows it, is no place for a parameter either. */
    BAD_BINDING(half, scene->info[1].exp_avg, scene->half.grad, "scene.half", "param", "exp_avg");
    BAD_BINDING(half, scene->half.param, scene->info[1].exp_avg_sq, "scene.half", "grad", "exp_avg_sq");
    BAD_BINDING(half, scene->info[1].master, scene->half.grad, "scene.half", "param", "master");
    BAD_BINDING(full, (void *)(UINTPTR_MAX - 3), grad, "scene.full", "param");
    BAD_BINDING(full, param, (const void *)(UINTPTR_MAX - 3), "scene.full", "grad");
    CASE("%s", "");
}

/* Unchanged, and the report too. */
static void bad_step(struct scene *scene, mofo_step_args *args, int32_t expected, struct says says) {
    mofo_step_report report;
    mofo_step_report before;
    memset(&report, 0xAA, sizeof report);
    before = report;
    args->report = &report;
    args->report_size = sizeof report;
    check_refused(mofo_step(scene->optimizer, args), expected, says);
    CHECK_BYTES(&report, &before, sizeof report);
    scene_unchanged(scene);
    /* The arguments outlive it. */
    args->report = NULL;
    args->report_size = 0;
}

static void bad_norm(struct scene *scene, const mofo_step_args *args, int32_t expected, struct says says) {
    double norm = 5.0;
    check_refused(mofo_grad_norm(scene->optimizer, args, &norm), expected, says);
    CHECK_F64(norm, 5.0);
    scene_unchanged(scene);
}

#define BAD_ARG(field, value, ...)                                                                           \
    do {                                                                                                     \
        mofo_step_args bad = default_args();                                                                 \
        bad.field = (value);                                                                                 \
        CASE("args." #field " = " #value);                                                                   \
        bad_step(scene, &bad, MOFO_ERROR_INVALID_ARGUMENT, SAYS(#field, __VA_ARGS__));                       \
        bad_norm(scene, &bad, MOFO_ERROR_INVALID_ARGUMENT, SAYS(#field, __VA_ARGS__));                       \
    } while (0)

static void step_args(struct scene *scene) {
    static unsigned char bytes[sizeof(mofo_step_args) + 8];
    static const uint64_t no_list[2] = {0, 0};
    mofo_step_args args;
    NEGATIVE_OR_NOT_FINITE(BAD_ARG, learning_rate);
    BAD_ARG(update_fraction, 0.0, "0", "above 0");
    BAD_ARG(update_fraction, -0.5, "-0.5");
    BAD_ARG(update_fraction, 1.5, "1.5", "at most 1");
    BAD_ARG(update_fraction, NAN, "NaN");
    BAD_ARG(update_fraction, INFINITY, "inf");
#define NO_BETA(field)                                                                                       \
    BAD_ARG(field, 1.0, "1", "below 1");                                                                     \
    BAD_ARG(field, -0.5, "-0.5", "at least 0");                                                              \
    BAD_ARG(field, NAN, "NaN");                                                                              \
    BAD_ARG(field, INFINITY, "inf")
    NO_BETA(beta1);
    NO_BETA(beta2);
    NEGATIVE_OR_NOT_FINITE(BAD_ARG, epsilon);
    NEGATIVE_OR_NOT_FINITE(BAD_ARG, weight_decay);
    BAD_ARG(grad_scale, NAN, "NaN", "finite");
    BAD_ARG(grad_scale, INFINITY, "inf", "finite");
    BAD_ARG(grad_scale, -INFINITY, "-inf", "finite");
    BAD_ARG(grad_norm, -2.0, "-2", "at least 0");
    BAD_ARG(grad_norm, -INFINITY, "-inf", "at least 0");
    BAD_ARG(stream, (void *)(uintptr_t)8, "0x8", "NULL");
#define NOT_ON_THE_CPU(field) BAD_ARG(field, (const double *)(const void *)no_list, "NULL")
    NOT_ON_THE_CPU(device_learning_rate);
    NOT_ON_THE_CPU(device_beta1);
    NOT_ON_THE_CPU(device_beta2);
    NOT_ON_THE_CPU(device_epsilon);
    NOT_ON_THE_CPU(device_weight_decay);
    BAD_ARG(num_tensors, 3, "3", "NULL");
    args = default_args();
    CASE("args.tensors misaligned");
    args.tensors = (const uint64_t *)(const void *)((const char *)no_list + 1);
    args.num_tensors = 1;
    bad_step(scene, &args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("tensors", "8"));
    CASE("args.num_tensors without end");
    args.tensors = no_list;
    args.num_tensors = UINT64_MAX;
    bad_step(scene, &args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("num_tensors", "18446744073709551615"));
    CASE("args' struct");
    args = default_args();
    args.struct_size = sizeof args - 8;
    bad_step(scene, &args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("mofo_step_args", "144", "152"));
    bad_norm(scene, &args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("mofo_step_args", "144", "152"));
    args = default_args();
    memcpy(bytes + 4, &args, sizeof args);
    check_refused(mofo_step(scene->optimizer, (mofo_step_args *)(void *)(bytes + 4)),
                  MOFO_ERROR_INVALID_ARGUMENT, SAYS("mofo_step_args", "8"));
    scene_unchanged(scene);
    CASE("report too small");
    {
        unsigned char report[sizeof(mofo_step_report)];
        unsigned char before[sizeof(mofo_step_report)];
        memset(report, 0xAA, sizeof report);
        memcpy(before, report, sizeof report);
        args = default_args();
        args.report = (mofo_step_report *)(void *)report;
        args.report_size = sizeof report - 8;
        check_refused(mofo_step(scene->optimizer, &args), MOFO_ERROR_INVALID_ARGUMENT,
                      SAYS("mofo_step_report", "56", "64"));
        CHECK_BYTES(report, before, sizeof report);
        scene_unchanged(scene);
    }
    CASE("a tensor twice");
    {
        uint64_t twice[3];
        twice[0] = scene->indices[1];
        twice[1] = scene->indices[0];
        twice[2] = scene->indices[1];
        args = default_args();
        args.tensors = twice;
        args.num_tensors = 3;
        bad_step(scene, &args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("scene.half"));
        bad_norm(scene, &args, MOFO_ERROR_INVALID_ARGUMENT, SAYS("scene.half"));
    }
    CASE("%s", "");
}

/* Each of these is a valid double, and no finite float comes of it. */
static void derived_numbers(struct scene *scene) {
    static const char *const text = "finite";
    mofo_step_args args = default_args();
    CASE("learning_rate 1e300");
    args.learning_rate = 1e300;
    bad_step(scene, &args, MOFO_ERROR_NOT_FINITE, SAYS("scene.", text));
    CASE("beta1 just below 1");
    args.learning_rate = 1e30;
    args.beta1 = 0.9999999999999999;
    bad_step(scene, &args, MOFO_ERROR_NOT_FINITE, SAYS("scene.", "beta1", text));
    CASE("epsilon 1e300");
    args = default_args();
    args.epsilon = 1e300;
    bad_step(scene, &args, MOFO_ERROR_NOT_FINITE, SAYS("scene.", "epsilon", text));
    CASE("weight_decay 1e300");
    args = default_args();
    args.weight_decay = 1e300;
    bad_step(scene, &args, MOFO_ERROR_NOT_FINITE, SAYS("scene.", "weight_decay", text));
    CASE("grad_scale 1e300");
    args = default_args();
    args.grad_scale = 1e300;
    bad_step(scene, &args, MOFO_ERROR_NOT_FINITE, SAYS(text));
    args.grad_scale = -1e300;
    bad_step(scene, &args, MOFO_ERROR_NOT_FINITE, SAYS(text));
    CASE("%s", "");
}

/* The same from the options, the tensor's overrides, and the gradients. */
static void derived_numbers_of_options(void) {
    static const struct {
        const char *what;
        double learning_rate, beta1, epsilon, weight_decay, scale, max_grad_norm;
        float grad;
    } cases[] = {
        {"learning_rate", 1e300, 0.9, 1e-8, 0.0, 1.0, 0.0, 0.5f},
        {"learning_rate over 1 - beta1", 1e30, 0.9999999999999999, 1e-8, 0.0, 1.0, 0.0, 0.5f},
        {"learning_rate times scale", 1e200, 0.9, 1e-8, 0.0, 1e200, 0.0, 0.5f},
        {"epsilon", 1e-3, 0.9, 1e300, 0.0, 1.0, 0.0, 0.5f},
        {"weight_decay", 1.0, 0.9, 1e-8, 1e300, 1.0, 0.0, 0.5f},
        {"norm of NaN with clipping", 1e-3, 0.9, 1e-8, 0.0, 1.0, 1.0, NAN},
    };
    size_t n;
    for (n = 0; n < sizeof cases / sizeof cases[0]; n++) {
        mofo_options bad = default_options();
        mofo_optimizer *optimizer = NULL;
        mofo_tensor first;
        mofo_tensor second;
        mofo_tensor first_before;
        mofo_tensor second_before;
        uint64_t index;
        CASE("derived from %s", cases[n].what);
        bad.num_threads = 1;
        bad.learning_rate = cases[n].learning_rate;
        bad.beta1 = cases[n].beta1;
        bad.epsilon = cases[n].epsilon;
        bad.weight_decay = cases[n].weight_decay;
        bad.max_grad_norm = cases[n].max_grad_norm;
        first = owned_tensor(&bad, "first", NUMEL, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 8);
        /* The one that is fine must not be stepped before the other is looked at. */
        first.learning_rate_scale = cases[n].scale != 1.0 ? 0.0 : 1.0;
        second = owned_tensor(&bad, "second", NUMEL, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 9);
        second.learning_rate_scale = cases[n].scale;
        ((float *)(uintptr_t)second.grad)[3] = cases[n].grad;
        first_before = owned_tensor_copy(&bad, &first);
        second_before = owned_tensor_copy(&bad, &second);
        REQUIRE_OK(mofo_create(&bad, &optimizer));
        REQUIRE_OK(mofo_add_tensor(optimizer, &first, &index));
        REQUIRE_OK(mofo_add_tensor(optimizer, &second, &index));
        check_refused(mofo_step(optimizer, NULL), MOFO_ERROR_NOT_FINITE, SAYS("finite"));
        if (cases[n].scale != 1.0) {
            CHECK_TEXT(mofo_last_error(), "second");
        }
        CHECK_U64(state_of(optimizer, 0).step_count, 0);
        CHECK_U64(state_of(optimizer, 1).step_count, 0);
        check_same_tensor(&bad, &first, &first_before);
        check_same_tensor(&bad, &second, &second_before);
        mofo_destroy(optimizer);
        owned_tensor_free(&first);
        owned_tensor_free(&second);
        owned_tensor_free(&first_before);
        owned_tensor_free(&second_before);
    }
    CASE("%s", "");
}

/* Buffers of different tensors are compared at the step, those of the tensors that it steps. */
static void overlaps_between_tensors(struct scene *scene) {
    const uint64_t full = scene->indices[0];
    const uint64_t bare = scene->indices[2];
    static float elsewhere[8];
    static const float some_grad[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    float *param = scene->full.param;
    float *exp_avg = scene->full.exp_avg;
    /* "scene.bare" has three entries. */
    const struct {
        const char *what;
        void *param;
        const void *grad;
    } cases[] = {
        {"parameter on the first entries of a parameter", param, some_grad},
        {"parameter on the last entry of a parameter", param + NUMEL - 1, some_grad},
        {"parameter into the start of a parameter", param - 2, some_grad},
        {"parameter on a first moment", exp_avg + 3, some_grad},
        {"parameter on a second moment", (float *)scene->full.exp_avg_sq + 3, some_grad},
        {"parameter on a gradient", (float *)(uintptr_t)scene->full.grad + 3, some_grad},
        {"gradient on a parameter", elsewhere, param + 2},
        {"gradient on a first moment", elsewhere, exp_avg + 2},
        {"gradient on a second moment", elsewhere, (float *)scene->full.exp_avg_sq + NUMEL - 1},
        {"parameter on the library's first moment", scene->info[1].exp_avg, some_grad},
        {"parameter on the library's second moment", scene->info[1].exp_avg_sq, some_grad},
        {"parameter on the library's master", scene->info[1].master, some_grad},
        {"gradient on the library's master", elsewhere, scene->info[1].master + 1},
    };
    size_t n;
    for (n = 0; n < sizeof cases / sizeof cases[0]; n++) {
        mofo_step_args args = default_args();
        CASE("%s", cases[n].what);
        /* Binding alone compares nothing between tensors, so that they may be moved one after the other. */
        CHECK_OK(mofo_bind_tensor(scene->optimizer, bare, cases[n].param, cases[n].grad));
        bad_step(scene, &args, MOFO_ERROR_INVALID_BUFFER, SAYS("scene.", "overlap"));
        CHECK_TEXT(mofo_last_error(), "scene.bare");
    }
    CASE("the caller's moments of two tensors");
    {
        mofo_tensor tensor = new_tensor();
        mofo_step_args args = default_args();
        float new_param[NUMEL] = {0};
        float new_grad[NUMEL] = {0};
        float spare[NUMEL] = {0};
        uint64_t index = 0;
        CHECK_OK(mofo_bind_tensor(scene->optimizer, bare, NULL, NULL));
        tensor.param = new_param;
        tensor.grad = new_grad;
        tensor.exp_avg = spare;
        tensor.exp_avg_sq = exp_avg;
        REQUIRE_OK(mofo_add_tensor(scene->optimizer, &tensor, &index));
        check_refused(mofo_step(scene->optimizer, &args), MOFO_ERROR_INVALID_BUFFER,
                      SAYS("scene.full", "scene.new", "exp_avg"));
        CHECK_BYTES(scene->memory, scene->memory_before, scene->memory_size);
        CHECK_U64(state_of(scene->optimizer, index).step_count, 0);
        CHECK_OK(mofo_remove_tensor(scene->optimizer, index));
    }
    CASE("overlaps are found even if only the other tensor is stepped");
    {
        mofo_step_args args = default_args();
        float bare_param[3] = {1, 1, 1};
        CHECK_OK(mofo_bind_tensor(scene->optimizer, bare, param, some_grad));
        args.tensors = &scene->indices[1];
        args.num_tensors = 1;
        bad_step(scene, &args, MOFO_ERROR_INVALID_BUFFER, SAYS("overlaps", "param"));
        CASE("a parameter without a gradient may lie anywhere");
        CHECK_OK(mofo_bind_tensor(scene->optimizer, bare, param, NULL));
        CHECK_OK(mofo_step(scene->optimizer, &args));
        /* A gradient on a gradient is fine. */
        CHECK_OK(mofo_bind_tensor(scene->optimizer, bare, bare_param, scene->full.grad));
        CHECK_OK(mofo_step(scene->optimizer, NULL));
        CHECK(bare_param[0] != 1.0f || bare_param[1] != 1.0f || bare_param[2] != 1.0f);
        CHECK_U64(state_of(scene->optimizer, full).step_count, 3);
        CHECK_OK(mofo_bind_tensor(scene->optimizer, bare, NULL, NULL));
    }
    CASE("%s", "");
    scene_snapshot(scene);
}

/* A gradient without a parameter to go with it; and nothing at all to step. */
static void not_bound(struct scene *scene) {
    static const float some_grad[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    static const float new_grad[NUMEL] = {3, 4};
    static float new_param[NUMEL];
    mofo_step_args args = default_args();
    mofo_options good = default_options();
    mofo_optimizer *empty = NULL;
    mofo_tensor tensor = new_tensor();
    uint64_t index = 0;
    double norm = 5.0;
    CASE("gradient without a parameter");
    CHECK_OK(mofo_bind_tensor(scene->optimizer, scene->indices[2], NULL, some_grad));
    bad_step(scene, &args, MOFO_ERROR_INVALID_BUFFER, SAYS("scene.bare", "param"));
    CHECK_OK(mofo_bind_tensor(scene->optimizer, scene->indices[2], NULL, NULL));

    CASE("no tensor");
    good.num_threads = 1;
    REQUIRE_OK(mofo_create(&good, &empty));
    CHECK_STATUS(mofo_step(empty, NULL), MOFO_ERROR_INVALID_STATE);
    CHECK_TEXT(mofo_last_error(), "tensor");
    CHECK_STATUS(mofo_grad_norm(empty, NULL, &norm), MOFO_ERROR_INVALID_STATE);
    CASE("no bound tensor");
    REQUIRE_OK(mofo_add_tensor(empty, &tensor, &index));
    CHECK_STATUS(mofo_step(empty, NULL), MOFO_ERROR_INVALID_STATE);
    CHECK_TEXT(mofo_last_error(), "bound");
    CHECK_STATUS(mofo_grad_norm(empty, NULL, &norm), MOFO_ERROR_INVALID_STATE);
    CHECK_U64(state_of(empty, index).step_count, 0);
    CHECK_F64(norm, 5.0);
    norm = 0.0;
    CASE("a gradient alone");
    REQUIRE_OK(mofo_bind_tensor(empty, index, NULL, new_grad));
    CHECK_STATUS(mofo_step(empty, NULL), MOFO_ERROR_INVALID_BUFFER);
    CHECK_OK(mofo_grad_norm(empty, NULL, &norm));
    CHECK_F64(norm, 5.0);
    CASE("no step left to count");
    REQUIRE_OK(mofo_bind_tensor(empty, index, new_param, new_grad));
    REQUIRE_OK(mofo_set_step_count(empty, index, INT64_MAX));
    CHECK_STATUS(mofo_step(empty, NULL), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "step_count");
    CHECK_U64(state_of(empty, index).step_count, INT64_MAX);
    CASE("no tensor any more");
    REQUIRE_OK(mofo_remove_tensor(empty, index));
    CHECK_STATUS(mofo_step(empty, NULL), MOFO_ERROR_INVALID_STATE);
    mofo_destroy(empty);
    CASE("%s", "");
}

static void skipped_steps_change_nothing(void) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    size_t n;
    for (n = 0; n < 3; n++) {
        mofo_options o = default_options();
        mofo_optimizer *optimizer = NULL;
        mofo_tensor tensor;
        mofo_tensor before;
        uint64_t index = 0;
        int t;
        CASE("gradient %g", (double)bad[n]);
        o.num_threads = 1;
        o.skip_nonfinite = 1;
        tensor = owned_tensor(&o, "w", NUMEL, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 31);
        REQUIRE_OK(mofo_create(&o, &optimizer));
        REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
        for (t = 0; t < 2; t++) {
            float *grad = (float *)(uintptr_t)tensor.grad + NUMEL - 1;
            float good = *grad;
            float threshold = *state_of(optimizer, index).thresholds;
            *grad = bad[n];
            before = owned_tensor_copy(&o, &tensor);
            CHECK_STATUS(mofo_step(optimizer, NULL), MOFO_SKIPPED);
            check_same_tensor(&o, &tensor, &before);
            CHECK_U64(state_of(optimizer, index).step_count, (uint64_t)t);
            CHECK_BYTES(state_of(optimizer, index).thresholds, &threshold, sizeof threshold);
            *grad = good;
            owned_tensor_free(&before);
            CHECK_OK(mofo_step(optimizer, NULL));
        }
        mofo_destroy(optimizer);
        owned_tensor_free(&tensor);
    }
    CASE("%s", "");
}

static void steps_like_one_that_saw_nothing(struct scene *scene) {
    struct scene fresh = scene_new();
    uint64_t list[2];
    mofo_step_args args = default_args();
    float bare_param[3] = {1, 1, 1};
    int n, which;
    /* What overlaps_between_tensors stepped. */
    args.tensors = &fresh.indices[1];
    args.num_tensors = 1;
    REQUIRE_OK(mofo_step(fresh.optimizer, &args));
    REQUIRE_OK(mofo_bind_tensor(fresh.optimizer, fresh.indices[2], bare_param, fresh.full.grad));
    REQUIRE_OK(mofo_step(fresh.optimizer, NULL));
    REQUIRE_OK(mofo_bind_tensor(fresh.optimizer, fresh.indices[2], NULL, NULL));
    list[0] = fresh.indices[1];
    list[1] = fresh.indices[0];
    args.tensors = list;
    args.num_tensors = 2;
    for (n = 0; n < 3; n++) {
        CHECK_OK(mofo_step(fresh.optimizer, &args));
        CHECK_OK(mofo_step(scene->optimizer, n == 0 ? NULL : &args));
    }
    CHECK_BYTES(scene->memory, fresh.memory, scene->memory_size);
    for (n = 0; n < 3; n++) {
        mofo_tensor_info got = state_of(scene->optimizer, scene->indices[n]);
        mofo_tensor_info expected = state_of(fresh.optimizer, fresh.indices[n]);
        CHECK_U64(got.step_count, expected.step_count);
        for (which = 0; which < 4; which++) {
            CHECK_BYTES(state_pointer(&got, which), state_pointer(&expected, which), state_bytes(&got, which));
        }
    }
    scene_free(&fresh);
}

int main(void) {
    struct scene scene = scene_new();
    options();
    null_pointers(&scene);
    tensor_values(&scene);
    tensor_names(&scene);
    tensor_buffers(&scene);
    indices(&scene);
    binding(&scene);
    step_args(&scene);
    derived_numbers(&scene);
    derived_numbers_of_options();
    not_bound(&scene);
    overlaps_between_tensors(&scene);
    skipped_steps_change_nothing();
    steps_like_one_that_saw_nothing(&scene);
    scene_free(&scene);
    return check_finish();
}
