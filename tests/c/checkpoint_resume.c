/* Training that stops, saves and goes on, in another process, ends with the same bits as training that never stopped. */

#define _POSIX_C_SOURCE 200809L

#include "checkpoint.h"

enum { STEPS = 6, REMOVED = 5, REMOVED_AFTER = 2 };

/* `brought` has moments from elsewhere and steps late: when the run stops, its master copy has not started yet. */
static const struct spec specs[] = {
    {"embed", 1000, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"heads", 9 * 37, 9, MOFO_DTYPE_BF16, MOFO_DTYPE_BF16, MOFO_INHERIT, 0, 1, 1},
    {"half \"quoted\"\\\n\xC3\xA9", 333, 1, MOFO_DTYPE_F16, MOFO_DTYPE_F32, 0.5, 0, 1, 1},
    {"bias", 17, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F16, 1.0, 0, 1, 1},
    {"sometimes", 50, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 2, 2},
    {"removed", 40, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"brought", 60, 2, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 7, 5, 1},
    {"counted", 33, 1, MOFO_DTYPE_F16, MOFO_DTYPE_F32, MOFO_INHERIT, 41, 1, 1},
    {"never", 20, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 0, 1},
    {"late", 44, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 6, 1},
    {"one", 1, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
};
enum { COUNT = sizeof specs / sizeof specs[0] };

/* How the run is taken up again. */
enum { REVERSED = 1, OWNED = 2, IN_MEMORY = 4, USED = 8, WAYS = 16 };

static void run(struct model *model, int from, int to) {
    int t;
    for (t = from; t <= to; t++) {
        model_step(model, t);
        if (t == REMOVED_AFTER) {
            model_remove(model, REMOVED);
        }
    }
}

/* Parameters are the engine's to save. */
static void save_params(const struct model *model) {
    FILE *file = fopen("params", "wb");
    int n;
    REQUIRE(file != NULL);
    for (n = 0; n < COUNT; n++) {
        if (model->is_there[n]) {
            REQUIRE(fwrite(model->tensors[n].param, model_param_bytes(model, n), 1, file) == 1);
        }
    }
    REQUIRE(fclose(file) == 0);
}

static void load_params(struct model *model) {
    FILE *file = fopen("params", "rb");
    int n;
    REQUIRE(file != NULL);
    for (n = 0; n < COUNT; n++) {
        if (model->is_there[n]) {
            REQUIRE(fread(model->tensors[n].param, model_param_bytes(model, n), 1, file) == 1);
        }
    }
    REQUIRE(fgetc(file) == EOF);
    fclose(file);
}

/* The first part of the run, in a process of its own. */
static void first_part(const mofo_options *options, int stop, int way) {
    struct model *model = model_new(options, specs, COUNT);
    int n;
    for (n = 0; n < COUNT; n++) {
        model_add(model, n, way & OWNED, 1);
    }
    run(model, 1, stop);
    save_params(model);
    if (way & IN_MEMORY) {
        struct bytes bytes = saved_to_memory(model->optimizer);
        file_write("state", bytes.data, bytes.size);
        bytes_free(&bytes);
    } else {
        CHECK_OK(mofo_save(model->optimizer, "state"));
    }
    model_free(model);
    end_child();
}

/* An optimizer that the checkpoint is taken into; maybe one that has had other steps. */
static struct model *second_part(const mofo_options *options, int stop, int way) {
    mofo_options other = *options;
    struct model *model;
    int i;
    other.seed += 77;
    model = model_new(&other, specs, COUNT);
    for (i = 0; i < COUNT; i++) {
        int n = way & REVERSED ? COUNT - 1 - i : i;
        if (n != REMOVED || stop < REMOVED_AFTER) {
            model_add(model, n, (way & OWNED) == 0, 0);
        }
    }
    if (way & USED) {
        model_step(model, 10);
        model_step(model, 6);
    }
    load_params(model);
    if (way & IN_MEMORY) {
        struct bytes bytes = file_read("state");
        CHECK_OK(mofo_load_from_memory(model->optimizer, bytes.data, bytes.size));
        bytes_free(&bytes);
    } else {
        CHECK_OK(mofo_load(model->optimizer, "state"));
    }
    return model;
}

static void stops_and_goes_on(const char *name, const mofo_options *options) {
    struct model *unstopped[STEPS + 1];
    int stop, way;
    for (stop = 0; stop <= STEPS; stop++) {
        unstopped[stop] = model_whole(options, specs, COUNT);
        run(unstopped[stop], 1, stop);
    }
    for (stop = 0; stop < STEPS; stop += check_quick() ? 3 : 1) {
        for (way = 0; way < WAYS; way += check_quick() ? 5 : 1) {
            /* Bringing files to the disk takes time. */
            const int by_file = (way & IN_MEMORY) == 0;
            struct model *model;
            struct bytes first;
            struct bytes again;
            pid_t child;
            if (by_file && stop != 3) {
                continue;
            }
            child = begin_child();
            CASE("%s, stopped after %d steps, way %d", name, stop, way);
            if (child == 0) {
                first_part(options, stop, way);
            }
            check_child(child);
            CHECK_U64(temporary_files("."), 0);
            model = second_part(options, stop, way);
            /* Nothing is lost on the way, and in the same order the bytes are the same. */
            CASE("%s, stopped after %d steps, way %d, just loaded", name, stop, way);
            check_same_models(model, unstopped[stop], 0);
            if ((way & REVERSED) == 0) {
                first = file_read("state");
                again = saved_to_memory(model->optimizer);
                CHECK_U64(again.size, first.size);
                /* The description records the seed, which is restored. */
                CHECK_BYTES(again.data, first.data, first.size);
                bytes_free(&first);
                bytes_free(&again);
            }
            CASE("%s, stopped after %d steps, way %d, at the end", name, stop, way);
            run(model, stop + 1, STEPS);
            check_same_models(model, unstopped[STEPS], STEPS);
            model_free(model);
        }
    }
    for (stop = 0; stop <= STEPS; stop++) {
        model_free(unstopped[stop]);
    }
    REQUIRE(remove("params") == 0 && remove("state") == 0);
}

/* The master copy of a tensor whose parameter the checkpoint has no master for starts from the parameter. */
static void master_from_the_parameter(void) {
    static const struct spec spec = {"w", 100, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1};
    mofo_options options = default_options();
    struct model *without;
    struct model *with;
    struct bytes bytes;
    mofo_tensor_info info;
    uint64_t i;
    CASE("%s", "a checkpoint without master copies");
    options.learning_rate = 0.0;
    without = model_whole(&options, &spec, 1);
    model_step(without, 1);
    bytes = saved_to_memory(without->optimizer);
    options.master_weights = 1;
    with = model_whole(&options, &spec, 1);
    model_step(with, 5);
    buffer_fill(with->tensors[0].param, MOFO_DTYPE_BF16, 100, 9, 1.0);
    CHECK_OK(mofo_load_from_memory(with->optimizer, bytes.data, bytes.size));
    model_step(with, 2);
    info = state_of(with->optimizer, with->indices[0]);
    CHECK_U64(info.step_count, 2);
    for (i = 0; i < 100; i++) {
        float param = reference_load(MOFO_DTYPE_BF16, with->tensors[0].param, i);
        REQUIRE(CHECK_BYTES(&info.master[i], &param, sizeof param));
    }
    bytes_free(&bytes);
    model_free(without);
    model_free(with);
}

/* The hyper-parameters of a checkpoint are not restored; its step counts are, up to the largest. */
static void what_is_restored(void) {
    static const struct spec spec = {"w", 100, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1};
    static const uint64_t counts[] = {0, 1, 5, 4294967296u, 9223372036854775807u};
    mofo_options options = default_options();
    size_t c;
    for (c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        struct model *from = model_whole(&options, &spec, 1);
        struct model *to;
        struct bytes bytes;
        mofo_options other = options;
        CASE("step count %llu", (unsigned long long)counts[c]);
        model_step(from, 1);
        REQUIRE_OK(mofo_set_step_count(from->optimizer, from->indices[0], counts[c]));
        bytes = saved_to_memory(from->optimizer);
        other.learning_rate = 0.0;
        to = model_whole(&other, &spec, 1);
        model_step(to, 1);
        model_step(to, 2);
        CHECK_OK(mofo_load_from_memory(to->optimizer, bytes.data, bytes.size));
        CHECK_U64(state_of(to->optimizer, to->indices[0]).step_count, counts[c]);
        if (counts[c] < 9223372036854775807u) {
            void *before = buffer_copy(to->tensors[0].param, model_param_bytes(to, 0));
            model_step(to, 3);
            CHECK_BYTES(to->tensors[0].param, before, model_param_bytes(to, 0));
            CHECK_U64(state_of(to->optimizer, to->indices[0]).step_count, counts[c] + 1);
            free(before);
        }
        bytes_free(&bytes);
        model_free(from);
        model_free(to);
    }
}

int main(void) {
    mofo_options options = default_options();
    folder_begin();
    options.learning_rate = 0.01;
    options.weight_decay = 0.1;
    options.seed = 0xFEDCBA9876543210u;
    stops_and_goes_on("f32 moments", &options);
    options.master_weights = 1;
    stops_and_goes_on("master copies", &options);
    options.state_dtype = MOFO_DTYPE_BF16;
    options.max_grad_norm = 0.05;
    stops_and_goes_on("master copies and bf16 moments", &options);
    options.master_weights = 0;
    options.filter = MOFO_FILTER_RANDOM;
    stops_and_goes_on("bf16 moments and a random filter", &options);
    options.rounding = MOFO_ROUNDING_NEAREST;
    options.filter = MOFO_FILTER_UPDATE;
    options.weight_decay_scope = MOFO_WEIGHT_DECAY_ALL;
    options.skip_nonfinite = 1;
    stops_and_goes_on("rounding to nearest", &options);
    master_from_the_parameter();
    what_is_restored();
    folder_end();
    return check_finish();
}
