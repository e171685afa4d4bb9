/* mofo_load_with: checkpoints with tensors more or fewer than the optimizer has. */

#define _POSIX_C_SOURCE 200809L

#include "checkpoint.h"

/* Those that the saved run and the present one have in common come in another order, among others. */
static const struct spec saved_specs[] = {
    {"embed", 1000, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"old head", 70, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"half", 333, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"never", 20, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 0, 1},
    {"empty", 0, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
};
static const struct spec specs[] = {
    {"removed", 40, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"half", 333, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"new head", 90, 3, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"embed", 1000, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"empty", 0, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"never", 20, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
};
enum { SAVED = sizeof saved_specs / sizeof saved_specs[0], COUNT = sizeof specs / sizeof specs[0] };
enum { REMOVED, HALF, NEW_HEAD, EMBED, EMPTY, NEVER };

static struct model *model_of(const struct spec *of, int count, uint64_t seed, int steps) {
    mofo_options options = default_options();
    struct model *model;
    int t;
    options.master_weights = 1;
    options.seed = seed;
    model = model_whole(&options, of, count);
    for (t = 1; t <= steps; t++) {
        model_step(model, t);
    }
    return model;
}

/* The run that goes on with what another one has saved; one of its tensors is gone. */
static struct model *present_run(void) {
    struct model *model = model_of(specs, COUNT, 5, 1);
    model_remove(model, REMOVED);
    return model;
}

static mofo_load_args partial_args(void) {
    mofo_load_args args;
    REQUIRE_OK(mofo_load_args_init(&args, sizeof args));
    CHECK(args.partial == 0 && args.report == NULL && args.loaded == NULL);
    args.partial = 1;
    return args;
}

static int has_text(const struct bytes *bytes, const char *text) {
    const size_t length = strlen(text);
    size_t i;
    for (i = 0; i + length <= bytes->size; i++) {
        if (memcmp(bytes->data + i, text, length) == 0) {
            return 1;
        }
    }
    return 0;
}

/* Loads, from memory or from a file. */
static int32_t load(const struct model *model, const struct bytes *saved, int from_file, const mofo_load_args *args) {
    int32_t status;
    if (!from_file) {
        return mofo_load_from_memory_with(model->optimizer, saved->data, saved->size, args);
    }
    file_write("state", saved->data, saved->size);
    status = mofo_load_with(model->optimizer, "state", args);
    remove("state");
    return status;
}

static void check_taken(const struct model *got, int n, const struct model *from, int saved) {
    const mofo_tensor_info a = state_of(got->optimizer, got->indices[n]);
    const mofo_tensor_info b = state_of(from->optimizer, from->indices[saved]);
    CHECK_U64(a.step_count, b.step_count);
    if (b.step_count > 0 && b.numel > 0) {
        CHECK_BYTES(a.exp_avg, b.exp_avg, model_moment_bytes(got, n));
        CHECK_BYTES(a.exp_avg_sq, b.exp_avg_sq, model_moment_bytes(got, n));
        if (b.master != NULL) {
            CHECK_BYTES(a.master, b.master, (size_t)b.numel * sizeof(float));
        }
    }
}

static void what_both_have_is_loaded(void) {
    struct model *first = model_of(saved_specs, SAVED, 77, 3);
    struct bytes saved = saved_to_memory(first->optimizer);
    int from_file;
    for (from_file = 0; from_file < 2; from_file++) {
        static const unsigned char expected[COUNT + 1] = {0, 1, 0, 1, 1, 1, 0};
        struct model *model = present_run();
        mofo_load_args args = partial_args();
        mofo_load_report report;
        mofo_tensor_info info = state_of(model->optimizer, model->indices[NEW_HEAD]);
        const size_t moments = model_moment_bytes(model, NEW_HEAD);
        void *exp_avg = buffer_copy(info.exp_avg, moments);
        void *exp_avg_sq = buffer_copy(info.exp_avg_sq, moments);
        void *master = buffer_copy(info.master, 90 * sizeof(float));
        unsigned char loaded[COUNT + 1];
        struct bytes again;
        CASE("%s", from_file ? "from a file" : "from memory");
        memset(loaded, 0xAA, sizeof loaded);
        args.report = &report;
        args.report_size = sizeof report;
        args.loaded = loaded;
        args.num_loaded = sizeof loaded;
        CHECK_OK(load(model, &saved, from_file, &args));
        CHECK_U64(report.tensors_loaded, 4);
        CHECK_U64(report.tensors_missing, 1);
        CHECK_U64(report.tensors_ignored, 1);
        CHECK_BYTES(loaded, expected, sizeof loaded);
        check_taken(model, HALF, first, 2);
        check_taken(model, EMBED, first, 0);
        check_taken(model, EMPTY, first, 4);
        check_taken(model, NEVER, first, 3);
        /* The one that the file has not goes on as it was. */
        info = state_of(model->optimizer, model->indices[NEW_HEAD]);
        CHECK_U64(info.step_count, 1);
        CHECK_BYTES(info.exp_avg, exp_avg, moments);
        CHECK_BYTES(info.exp_avg_sq, exp_avg_sq, moments);
        CHECK_BYTES(info.master, master, 90 * sizeof(float));
        again = saved_to_memory(model->optimizer);
        CHECK(has_text(&again, "\\\"seed\\\":77,"));
        model_step(model, 4);
        CHECK_U64(state_of(model->optimizer, model->indices[EMBED]).step_count, 4);
        CHECK_U64(state_of(model->optimizer, model->indices[NEW_HEAD]).step_count, 2);
        bytes_free(&again);
        free(exp_avg);
        free(exp_avg_sq);
        free(master);
        model_free(model);
    }
    bytes_free(&saved);
    model_free(first);
}

/* A file with the same tensors is loaded as by mofo_load, and so is one without `partial`. */
static void the_same_tensors(void) {
    struct model *first = model_of(saved_specs, SAVED, 77, 3);
    struct model *second = model_of(saved_specs, SAVED, 1, 1);
    struct bytes saved = saved_to_memory(first->optimizer);
    int partial;
    for (partial = 0; partial < 2; partial++) {
        mofo_load_args args = partial_args();
        mofo_load_report report;
        CASE("the same tensors, partial %d", partial);
        args.partial = partial;
        args.report = &report;
        args.report_size = sizeof report;
        CHECK_OK(load(second, &saved, 0, &args));
        CHECK_U64(report.tensors_loaded, SAVED);
        CHECK_U64(report.tensors_missing + report.tensors_ignored, 0);
        CHECK_OK(load(second, &saved, 1, NULL));
        check_taken(second, 2, first, 2);
    }
    bytes_free(&saved);
    model_free(first);
    model_free(second);
}

/* Many more tensors than the optimizer has: the header is longer than any that it would write. */
static void a_small_part_of_a_large_file(void) {
    enum { MANY = 400, LENGTH = 600 };
    mofo_options options = default_options();
    mofo_optimizer *optimizers[2];
    struct bytes saved;
    mofo_load_args args = partial_args();
    mofo_load_report report;
    char name[LENGTH + 8];
    uint64_t index = 0, n;
    CASE("%s", "a small part");
    for (n = 0; n < 2; n++) {
        REQUIRE_OK(mofo_create(&options, &optimizers[n]));
    }
    memset(name, 'n', LENGTH);
    for (n = 0; n < MANY; n++) {
        mofo_tensor tensor = named_tensor(name, 3);
        snprintf(name + LENGTH, 8, "%d", (int)n);
        REQUIRE_OK(mofo_add_tensor(optimizers[0], &tensor, &index));
        REQUIRE_OK(mofo_set_step_count(optimizers[0], index, n));
        if (n == MANY / 2) {
            REQUIRE_OK(mofo_add_tensor(optimizers[1], &tensor, &index));
        }
    }
    saved = saved_to_memory(optimizers[0]);
    CHECK_STATUS(mofo_load_from_memory(optimizers[1], saved.data, saved.size), MOFO_ERROR_CHECKPOINT);
    args.report = &report;
    args.report_size = sizeof report;
    CHECK_OK(mofo_load_from_memory_with(optimizers[1], saved.data, saved.size, &args));
    CHECK_U64(report.tensors_loaded, 1);
    CHECK_U64(report.tensors_missing, 0);
    CHECK_U64(report.tensors_ignored, MANY - 1);
    CHECK_U64(state_of(optimizers[1], 0).step_count, MANY / 2);
    bytes_free(&saved);
    mofo_destroy(optimizers[0]);
    mofo_destroy(optimizers[1]);
}

/* Refused, with nothing changed nor written. */
static void refused(struct model *model, const struct bytes *saved, const mofo_load_args *args, int32_t status,
                    const char *text) {
    struct bytes before = model_snapshot(model);
    int from_file;
    for (from_file = 0; from_file < 2; from_file++) {
        CHECK_STATUS(load(model, saved, from_file, args), status);
        CHECK_TEXT(mofo_last_error(), text);
        check_unchanged(model, &before);
    }
    bytes_free(&before);
}

static void what_does_not_fit_is_refused(void) {
    struct spec wrong[COUNT];
    struct model *first = model_of(saved_specs, SAVED, 77, 3);
    struct model *model = present_run();
    struct bytes saved = saved_to_memory(first->optimizer);
    mofo_load_args args = partial_args();
    mofo_load_report report, untouched;
    unsigned char loaded[COUNT + 1], marks[COUNT + 1];
    size_t i;
    memset(&report, 0xAA, sizeof report);
    memset(loaded, 0xAA, sizeof loaded);
    untouched = report;
    memcpy(marks, loaded, sizeof marks);
    args.report = &report;
    args.report_size = sizeof report;
    args.loaded = loaded;
    args.num_loaded = COUNT;

    CASE("%s", "not asked for");
    args.partial = 0;
    refused(model, &saved, &args, MOFO_ERROR_CHECKPOINT, "\"old head\"");
    CASE("%s", "partial = 2");
    args.partial = 2;
    refused(model, &saved, &args, MOFO_ERROR_INVALID_ARGUMENT, "partial is 2");
    args.partial = 1;
    CASE("%s", "reserved");
    args.reserved = -1;
    refused(model, &saved, &args, MOFO_ERROR_INVALID_ARGUMENT, "reserved is -1");
    args.reserved = 0;
    CASE("%s", "too little room");
    args.num_loaded = COUNT - 1;
    refused(model, &saved, &args, MOFO_ERROR_INVALID_ARGUMENT, "num_loaded is 5; 6 tensors");
    args.num_loaded = UINT64_MAX;
    refused(model, &saved, &args, MOFO_ERROR_INVALID_ARGUMENT, "num_loaded is 18446744073709551615");
    args.num_loaded = COUNT;
    args.report_size = 8;
    refused(model, &saved, &args, MOFO_ERROR_INVALID_ARGUMENT, "mofo_load_report");
    args.report_size = sizeof report;
    args.struct_size = 4097;
    refused(model, &saved, &args, MOFO_ERROR_INVALID_ARGUMENT, "mofo_load_args");
    args.struct_size = sizeof args;

    CASE("%s", "data of a tensor that both have, damaged");
    saved.data[saved.size - 1] ^= 1;
    refused(model, &saved, &args, MOFO_ERROR_CHECKPOINT, "CRC-32");
    saved.data[saved.size - 1] ^= 1;
    CASE("%s", "cut short");
    saved.size -= 4;
    refused(model, &saved, &args, MOFO_ERROR_CHECKPOINT, "bytes of data");
    saved.size += 4;
    model_free(model);

    CASE("%s", "another size");
    memcpy(wrong, specs, sizeof wrong);
    wrong[EMBED].numel = 999;
    model = model_of(wrong, COUNT, 5, 1);
    refused(model, &saved, &args, MOFO_ERROR_CHECKPOINT, "\"embed\"");
    model_free(model);

    CASE("%s", "nothing in common");
    for (i = 0; i < COUNT; i++) {
        static const char *const others[COUNT] = {"0", "1", "2", "3", "4", "5"};
        wrong[i].name = others[i];
    }
    model = model_of(wrong, COUNT, 5, 1);
    refused(model, &saved, &args, MOFO_ERROR_CHECKPOINT, "none of the optimizer's tensors: \"embed\"");
    model_free(model);

    CHECK_BYTES(&report, &untouched, sizeof report);
    CHECK_BYTES(loaded, marks, sizeof loaded);
    CHECK_STATUS(mofo_load_args_init(NULL, sizeof args), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_STATUS(mofo_load_args_init(&args, 47), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_STATUS(mofo_load_with(NULL, "state", NULL), MOFO_ERROR_INVALID_ARGUMENT);
    bytes_free(&saved);
    model_free(first);
}

int main(void) {
    folder_begin();
    what_both_have_is_loaded();
    the_same_tensors();
    a_small_part_of_a_large_file();
    what_does_not_fit_is_refused();
    folder_end();
    return check_finish();
}
