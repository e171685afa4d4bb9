/* The calls that save and load: what they refuse, what they write, and to where. */

#define _POSIX_C_SOURCE 200809L

#include "checkpoint.h"

static const struct spec specs[] = {
    {"w", 30, 3, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"b", 7, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 1.0, 0, 1, 1},
    {"never", 9, 1, MOFO_DTYPE_F16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 0, 1},
};
enum { COUNT = 3 };

static mofo_options with_masters(void) {
    mofo_options options = default_options();
    options.master_weights = 1;
    return options;
}

static struct model *stepped(void) {
    const mofo_options options = with_masters();
    struct model *model = model_whole(&options, specs, COUNT);
    model_step(model, 1);
    model_step(model, 2);
    return model;
}

static void bad_arguments(void) {
    struct model *model = stepped();
    struct bytes saved = saved_to_memory(model->optimizer);
    struct bytes before = model_snapshot(model);
    struct bytes buffer = {NULL, 0};
    mofo_optimizer *const optimizer = model->optimizer;
    uint64_t number = 77;
    union {
        uint64_t aligned[2];
        unsigned char bytes[16];
    } odd;
    uint64_t *const misaligned = (uint64_t *)(void *)(odd.bytes + 1);
    CASE("%s", "bad arguments");
    memset(&odd, 0x5A, sizeof odd);
    bytes_append(&buffer, saved.data, saved.size);

    CHECK_STATUS(mofo_save(NULL, "file"), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "optimizer is NULL");
    CHECK_STATUS(mofo_save(optimizer, NULL), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "path is NULL");
    CHECK_STATUS(mofo_save(optimizer, ""), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "path is empty");
    CHECK_STATUS(mofo_load(NULL, "file"), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "optimizer is NULL");
    CHECK_STATUS(mofo_load(optimizer, NULL), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "path is NULL");
    CHECK_STATUS(mofo_load(optimizer, ""), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "path is empty");

    CHECK_STATUS(mofo_save_size(NULL, &number), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "optimizer is NULL");
    CHECK_STATUS(mofo_save_size(optimizer, NULL), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "bytes is NULL");
    CHECK_STATUS(mofo_save_size(optimizer, misaligned), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "bytes");

    memset(buffer.data, 0x5A, buffer.size);
    CHECK_STATUS(mofo_save_to_memory(NULL, buffer.data, buffer.size, &number), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "optimizer is NULL");
    CHECK_STATUS(mofo_save_to_memory(optimizer, NULL, buffer.size, &number), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "buffer is NULL");
    CHECK_STATUS(mofo_save_to_memory(optimizer, NULL, 0, &number), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_STATUS(mofo_save_to_memory(optimizer, buffer.data, buffer.size, NULL), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "written is NULL");
    CHECK_STATUS(mofo_save_to_memory(optimizer, buffer.data, buffer.size, misaligned), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "written");

    CHECK_STATUS(mofo_load_from_memory(NULL, saved.data, saved.size), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "optimizer is NULL");
    CHECK_STATUS(mofo_load_from_memory(optimizer, NULL, saved.size), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "buffer is NULL");
    CHECK_STATUS(mofo_load_from_memory(optimizer, NULL, 0), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_STATUS(mofo_load_from_memory(optimizer, saved.data, UINT64_MAX), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_TEXT(mofo_last_error(), "size is 18446744073709551615");
    CHECK_STATUS(mofo_load_from_memory(optimizer, saved.data, 0x8000000000000000u), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_STATUS(mofo_load_from_memory(optimizer, saved.data, 0), MOFO_ERROR_CHECKPOINT);
    CHECK_TEXT(mofo_last_error(), "0 bytes are no checkpoint");

    /* Nothing was written to any of them. */
    CHECK_U64(number, 77);
    {
        unsigned char untouched[16];
        size_t i;
        memset(untouched, 0x5A, sizeof untouched);
        CHECK_BYTES(odd.bytes, untouched, sizeof untouched);
        for (i = 0; i < buffer.size && buffer.data[i] == 0x5A; i++) {
        }
        CHECK_U64(i, buffer.size);
    }
    CHECK_U64(count_files(".", ""), 0);
    check_unchanged(model, &before);
    bytes_free(&saved);
    bytes_free(&before);
    bytes_free(&buffer);
    model_free(model);
}

/* The size is exact; so many bytes are written to a buffer of any alignment, and none besides. */
static void buffers_of_every_size(void) {
    enum { MARGIN = 64 };
    struct model *model = stepped();
    struct bytes saved = saved_to_memory(model->optimizer);
    struct bytes before = model_snapshot(model);
    unsigned char *room = buffer_new(saved.size + 3 * MARGIN);
    unsigned char *expected = buffer_new(saved.size + 3 * MARGIN);
    size_t offset, extra, missing;
    for (offset = 0; offset < 9; offset++) {
        for (extra = 0; extra < MARGIN; extra += 21) {
            uint64_t written = 77;
            CASE("at an offset of %d, %d bytes larger", (int)offset, (int)extra);
            memset(room, 0xC3, saved.size + 3 * MARGIN);
            memset(expected, 0xC3, saved.size + 3 * MARGIN);
            memcpy(expected + MARGIN + offset, saved.data, saved.size);
            CHECK_OK(mofo_save_to_memory(model->optimizer, room + MARGIN + offset, saved.size + extra, &written));
            CHECK_U64(written, saved.size);
            CHECK_BYTES(room, expected, saved.size + 3 * MARGIN);
            CHECK_OK(mofo_load_from_memory(model->optimizer, room + MARGIN + offset, saved.size));
            check_unchanged(model, &before);
        }
    }
    for (missing = 1; missing <= saved.size; missing += missing < 20 ? 1 : 97) {
        uint64_t written = 77;
        char text[64];
        CASE("%d bytes too small", (int)missing);
        memset(room, 0xC3, saved.size + 3 * MARGIN);
        memset(expected, 0xC3, saved.size + 3 * MARGIN);
        CHECK_STATUS(mofo_save_to_memory(model->optimizer, room + MARGIN, saved.size - missing, &written),
                     MOFO_ERROR_INVALID_ARGUMENT);
        snprintf(text, sizeof text, "takes %llu bytes", (unsigned long long)saved.size);
        CHECK_TEXT(mofo_last_error(), text);
        CHECK_U64(written, 77);
        CHECK_BYTES(room, expected, saved.size + 3 * MARGIN);
    }
    check_unchanged(model, &before);
    bytes_free(&saved);
    bytes_free(&before);
    free(room);
    free(expected);
    model_free(model);
}

/* An exact buffer of its own, which sanitizers watch. */
static void the_size_is_exact(void) {
    const mofo_options options = with_masters();
    struct model *model = model_whole(&options, specs, COUNT);
    uint64_t bytes_before = 0;
    int t, n;
    for (t = 0; t <= 12; t++) {
        struct bytes memory;
        struct bytes again;
        struct bytes file;
        CASE("the size after %d steps", t);
        if (t > 0) {
            model_step(model, t);
        }
        memory = saved_to_memory(model->optimizer);
        again = saved_to_memory(model->optimizer);
        CHECK_OK(mofo_save(model->optimizer, "file"));
        file = file_read("file");
        CHECK_U64(file.size, memory.size);
        CHECK_BYTES(file.data, memory.data, memory.size);
        CHECK_BYTES(again.data, memory.data, memory.size);
        CHECK(t != 1 || memory.size >= bytes_before + 30 * 12 + 7 * 8);
        bytes_before = memory.size;
        bytes_free(&memory);
        bytes_free(&again);
        bytes_free(&file);
    }
    /* And without tensors. */
    for (n = 0; n < COUNT; n++) {
        struct bytes memory;
        struct bytes before;
        CASE("the size after %d tensors were removed", n + 1);
        model_remove(model, n);
        memory = saved_to_memory(model->optimizer);
        CHECK_AT_MOST(memory.size, bytes_before);
        before = model_snapshot(model);
        CHECK_OK(mofo_load_from_memory(model->optimizer, memory.data, memory.size));
        check_unchanged(model, &before);
        bytes_before = memory.size;
        bytes_free(&memory);
        bytes_free(&before);
    }
    REQUIRE(remove("file") == 0);
    model_free(model);
}

/* State that is in the file may be of any kind of number. */
static void numbers_of_every_kind(void) {
    static const uint32_t bits[] = {0x00000000u, 0x80000000u, 0x00000001u, 0x7F7FFFFFu, 0x7F800000u,
                                    0xFF800000u, 0x7FC00000u, 0xFFFFFFFFu, 0x7F800001u, 0x3F800000u};
    static const struct spec spec = {"w", 10, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1};
    const mofo_options options = with_masters();
    struct model *from = model_whole(&options, &spec, 1);
    struct model *to = model_whole(&options, &spec, 1);
    struct bytes saved;
    mofo_tensor_info info;
    CASE("%s", "numbers of every kind");
    model_step(from, 1);
    info = state_of(from->optimizer, from->indices[0]);
    memcpy(info.exp_avg, bits, sizeof bits);
    memcpy(info.exp_avg_sq, bits, sizeof bits);
    memcpy(info.master, bits, sizeof bits);
    saved = saved_to_memory(from->optimizer);
    CHECK_OK(mofo_load_from_memory(to->optimizer, saved.data, saved.size));
    info = state_of(to->optimizer, to->indices[0]);
    CHECK_BYTES(info.exp_avg, bits, sizeof bits);
    CHECK_BYTES(info.exp_avg_sq, bits, sizeof bits);
    CHECK_BYTES(info.master, bits, sizeof bits);
    bytes_free(&saved);
    model_free(from);
    model_free(to);
}

/* Data goes through a buffer of 1 MiB: arrays that are longer, as long, and shorter. */
static void arrays_of_every_length(void) {
    static const uint64_t numels[] = {262143, 262144, 262145, 524288, 600001};
    const mofo_options options = with_masters();
    struct spec spec = {"w", 0, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1};
    size_t n;
    for (n = 0; n < (check_quick() ? 3 : sizeof numels / sizeof numels[0]); n++) {
        struct model *from;
        struct model *to;
        CASE("%llu entries", (unsigned long long)numels[n]);
        spec.numel = numels[n];
        from = model_whole(&options, &spec, 1);
        to = model_whole(&options, &spec, 1);
        model_step(from, 1);
        CHECK_OK(mofo_save(from->optimizer, "file"));
        CHECK_OK(mofo_load(to->optimizer, "file"));
        memcpy(to->tensors[0].param, from->tensors[0].param, model_param_bytes(from, 0));
        model_step(from, 2);
        model_step(to, 2);
        check_same_models(to, from, 2);
        model_free(from);
        model_free(to);
    }
    REQUIRE(remove("file") == 0);
}

/* Names may have any character, and be long. */
static void names_of_every_kind(void) {
    enum { LONG = 20000 };
    static const char *const given[] = {"\"", "\\", "\x01\x02\x1F\x7F", "/../x", "w.exp_avg", "w", "w.exp_avg_sq",
                                        "__metadata__", "mofo", "\xF0\x9F\x8C\xB1 \xE2\x80\xA8", " ", "{}[]:,"};
    enum { NAMES = sizeof given / sizeof given[0] };
    char *control = buffer_new(LONG + 1);
    struct spec named[MODEL_TENSORS];
    const mofo_options options = with_masters();
    int n;
    REQUIRE((int)NAMES <= (int)MODEL_TENSORS);
    memset(control, 1, LONG);
    for (n = 0; n < (int)NAMES; n++) {
        struct spec spec = {NULL, 4, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1};
        spec.name = given[n];
        named[n] = spec;
    }
    for (n = 0; n < 2; n++) {
        struct model *from = model_whole(&options, named, NAMES);
        struct model *to = model_whole(&options, named, NAMES);
        struct bytes saved;
        CASE("%s", n ? "a name of control characters" : "names of every kind");
        model_step(from, 1);
        saved = saved_to_memory(from->optimizer);
        CHECK_OK(mofo_load_from_memory(to->optimizer, saved.data, saved.size));
        {
            struct bytes again = saved_to_memory(to->optimizer);
            CHECK_U64(again.size, saved.size);
            CHECK_BYTES(again.data, saved.data, saved.size);
            bytes_free(&again);
        }
        bytes_free(&saved);
        model_free(from);
        model_free(to);
        named[0].name = control;
    }
    free(control);
}

int main(void) {
    folder_begin();
    bad_arguments();
    buffers_of_every_size();
    the_size_is_exact();
    numbers_of_every_kind();
    arrays_of_every_length();
    names_of_every_kind();
    folder_end();
    return check_finish();
}
