/* What is no sound checkpoint of the optimizer's tensors is refused, with the reason, and nothing has changed. */

#define _POSIX_C_SOURCE 200809L

#include "checkpoint_edit.h"

static const struct spec specs[] = {
    {"w", 6, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"v", 4, 2, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"n", 5, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 0, 1},
    {"more", 5, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
};
enum { COUNT = 3 };

static mofo_options with_masters(void) {
    mofo_options options = default_options();
    options.master_weights = 1;
    options.seed = 5;
    return options;
}

static struct model *stepped(const mofo_options *options, const struct spec *list, int count, int steps) {
    struct model *model = model_whole(options, list, count);
    int t;
    for (t = 1; t <= steps; t++) {
        model_step(model, t);
    }
    return model;
}

/* What is loaded into, how it is now, and a twin of it that nothing was loaded into. */
static struct model *into;
static struct model *twin;
static struct bytes before;
/* Sound, of other numbers than those of `into`, and its parts. */
static struct bytes sound;
static struct parts parts;

static void begin(void) {
    mofo_options options = with_masters();
    struct model *from;
    into = stepped(&options, specs, COUNT, 3);
    twin = stepped(&options, specs, COUNT, 3);
    before = model_snapshot(into);
    options.seed = 6;
    from = stepped(&options, specs, COUNT, 2);
    sound = saved_to_memory(from->optimizer);
    parts = parts_of(&sound);
    model_free(from);
}

/* It is refused, from memory and from a file. */
static void check_refused_by(struct model *model, const struct bytes *unchanged, const void *data, size_t size,
                             const char *reason) {
    CHECK_STATUS(mofo_load_from_memory(model->optimizer, data, size), MOFO_ERROR_CHECKPOINT);
    CHECK_TEXT(mofo_last_error(), reason);
    check_unchanged(model, unchanged);
    file_write("file", data, size);
    CHECK_STATUS(mofo_load(model->optimizer, "file"), MOFO_ERROR_CHECKPOINT);
    CHECK_TEXT(mofo_last_error(), reason);
    CHECK_TEXT(mofo_last_error(), "file: ");
    check_unchanged(model, unchanged);
    REQUIRE(remove("file") == 0);
}

static void check_refused(struct bytes file, const char *reason) {
    check_refused_by(into, &before, file.data, file.size, reason);
    bytes_free(&file);
}

/* It is taken: then a table of wrong ones is wrong for the reasons that it gives. */
static void check_taken(struct bytes file) {
    mofo_options options = with_masters();
    struct model *model = stepped(&options, specs, COUNT, 3);
    struct bytes now;
    CHECK_OK(mofo_load_from_memory(model->optimizer, file.data, file.size));
    now = saved_to_memory(model->optimizer);
    if (CHECK_U64(now.size, sound.size)) {
        CHECK_BYTES(now.data, sound.data, now.size);
    }
    bytes_free(&now);
    bytes_free(&file);
    model_free(model);
}

static void cut_short_or_longer(void) {
    size_t size;
    struct bytes longer = {NULL, 0};
    int n;
    for (size = 0; size < sound.size; size += check_quick() ? 11 : 1) {
        /* A copy: sanitizers see what lies beyond it. */
        void *copy = buffer_copy(sound.data, size);
        CASE("%d of %d bytes", (int)size, (int)sound.size);
        CHECK_STATUS(mofo_load_from_memory(into->optimizer, copy, size), MOFO_ERROR_CHECKPOINT);
        CHECK_TEXT(mofo_last_error(), size < 8 ? "are no checkpoint" : "cut short");
        check_memory_unchanged(into, &before);
        if (size % 29 == 0 || size + 1 == sound.size) {
            check_refused_by(into, &before, copy, size, size < 8 ? "are no checkpoint" : "cut short");
        }
        free(copy);
    }
    bytes_append(&longer, sound.data, sound.size);
    for (n = 1; n <= 16; n++) {
        CASE("%d bytes too many", n);
        bytes_append(&longer, n % 2 ? " " : "\0", 1);
        check_refused_by(into, &before, longer.data, longer.size, "bytes of data, but there are");
    }
    bytes_append(&longer, sound.data, sound.size);
    check_refused_by(into, &before, longer.data, longer.size, "bytes of data, but there are");
    bytes_free(&longer);
}

static void every_flipped_bit(void) {
    const size_t data = sound.size - parts.data_size;
    unsigned char *copy = buffer_copy(sound.data, sound.size);
    size_t bit;
    for (bit = 0; bit < 8 * sound.size; bit += check_quick() ? 31 : 1) {
        CASE("bit %d of byte %d", (int)(bit % 8), (int)(bit / 8));
        copy[bit / 8] ^= (unsigned char)(1u << bit % 8);
        CHECK_STATUS(mofo_load_from_memory(into->optimizer, copy, sound.size), MOFO_ERROR_CHECKPOINT);
        if (bit >= 8 * data) {
            CHECK_TEXT(mofo_last_error(), "its data is damaged: the CRC-32 is");
            /* Master copies come first. */
            CHECK_TEXT(mofo_last_error(), bit < 8 * (data + 6 * 12) ? "\"w\"" : "\"v\"");
        } else {
            CHECK(strlen(mofo_last_error()) > 20);
        }
        if (bit % 64 == 0) {
            check_unchanged(into, &before);
        } else {
            check_memory_unchanged(into, &before);
        }
        copy[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    free(copy);
}

static void the_description(void) {
    static const struct {
        const char *from, *to, *reason;
    } cases[] = {
        {"\"format_version\":1", "\"format_version\":2", "format_version is 2; this library reads 1"},
        {"\"format_version\":1", "\"format_version\":0", "format_version is 0"},
        {"\"format_version\":1", "\"format_version\":-1", "not understood"},
        {"\"format_version\":1", "\"format_version\":1.0", "not understood"},
        {"\"format_version\":1", "\"format_version\":\"1\"", "not understood"},
        {"\"format_version\":1", "\"format_version\":18446744073709551617", "not understood"},
        {"\"format_version\":1,", "", "format_version"},
        {"\"format_version\":1", "\"format_version\":1,\"format_version\":1", "duplicate field"},
        {"\"seed\":6", "\"seed\":-1", "not understood"},
        {"\"seed\":6", "\"seed\":6.5", "not understood"},
        {"\"seed\":6", "\"seed\":\"6\"", "not understood"},
        {"\"seed\":6", "\"seed\":null", "not understood"},
        {"\"seed\":6", "\"seed\":18446744073709551616", "not understood"},
        {"\"seed\":6,", "", "missing field `seed`"},
        {"\"seed\":6", "\"seed\":6,\"seed\":7", "duplicate field `seed`"},
        {"\"state_dtype\":\"F32\"", "\"state_dtype\":\"BF16\"", "its moments are BF16"},
        {"\"state_dtype\":\"F32\"", "\"state_dtype\":\"F16\"", "unknown variant"},
        {"\"state_dtype\":\"F32\"", "\"state_dtype\":0", "not understood"},
        {"\"state_dtype\":\"F32\",", "", "missing field `state_dtype`"},
        {"\"tensors\":[", "\"tensorz\":[", "missing field `tensors`"},
        {"\"tensors\":[", "\"tensors\":0,\"tensorz\":[", "not understood"},
        {"\"tensors\":[", "\"tensors\":[],\"tensorz\":[", "it has no tensor \"w\""},
        {"\"tensors\":[", "\"tensors\":[7,", "not understood"},
        {"\"name\":\"w\"", "\"name\":\"x\"", "it has a tensor \"x\", which the optimizer has not"},
        {"\"name\":\"w\"", "\"name\":\"W\"", "it has a tensor \"W\", which the optimizer has not"},
        {"\"name\":\"w\"", "\"name\":\"v\"", "tensor \"v\" is there twice"},
        {"\"name\":\"w\"", "\"name\":3", "not understood"},
        {"\"name\":\"w\"", "\"name\":\"\\ud800\"", "not understood"},
        {"\"name\":\"w\",", "", "missing field `name`"},
        {"\"tensors\":[",
         "\"tensors\":[{\"name\":\"z\",\"numel\":1,\"step_count\":0,\"master\":false,\"crc32\":0},",
         "it has a tensor \"z\", which the optimizer has not"},
        {"\"numel\":6", "\"numel\":7", "it has 7 entries there; the optimizer's has 6"},
        {"\"numel\":6", "\"numel\":5", "it has 5 entries there"},
        {"\"numel\":6", "\"numel\":0", "it has 0 entries there"},
        {"\"numel\":6", "\"numel\":-6", "not understood"},
        {"\"numel\":6", "\"numel\":6.0", "not understood"},
        {"\"numel\":6", "\"numel\":6e0", "not understood"},
        {"\"numel\":6", "\"numel\":[6]", "not understood"},
        {"\"numel\":6", "\"numel\":18446744073709551615", "it has 18446744073709551615 entries there"},
        {"\"step_count\":2", "\"step_count\":9223372036854775808", "above 2^63 - 1"},
        {"\"step_count\":2", "\"step_count\":-2", "not understood"},
        {"\"step_count\":2", "\"step_count\":2.0", "not understood"},
        {"\"step_count\":2", "\"step_count\":true", "not understood"},
        {"\"step_count\":2,", "", "missing field `step_count`"},
        {"\"step_count\":2", "\"step_count\":0", "before the first step"},
        {"\"step_count\":2,\"master\":false", "\"step_count\":0,\"master\":false",
         "it has 5 arrays; those of its tensors are 3"},
        {"\"step_count\":0", "\"step_count\":1", "the array \"n.exp_avg\" is missing"},
        {"\"step_count\":0,\"master\":false", "\"step_count\":0,\"master\":true", "before the first step"},
        {"\"master\":true", "\"master\":false", "it has 5 arrays; those of its tensors are 4"},
        {"\"step_count\":2,\"master\":false", "\"step_count\":2,\"master\":true",
         "that takes master_weights and a parameter of 16 bits"},
        {"\"master\":true", "\"master\":1", "not understood"},
        {"\"master\":true,", "", "missing field `master`"},
        {"\"crc32\":", "\"crc32\":1,\"crc33\":", "tensor \"w\": its data is damaged"},
        {"\"crc32\":0", "\"crc32\":1", "tensor \"n\": its data is damaged"},
        {"\"crc32\":0", "\"crc32\":-1", "not understood"},
        {"\"crc32\":0", "\"crc32\":4294967296", "not understood"},
        {"\"crc32\":0", "\"crc32\":\"0\"", "not understood"},
        {"\"crc32\":0,", "", "missing field `crc32`"},
    };
    static const char *const whole[] = {"", "{", "[]", "null", "7", "\"\"", "{}", "{\"format_version\":1}"};
    size_t n;
    for (n = 0; n < sizeof cases / sizeof cases[0]; n++) {
        CASE("in the description %.90s for %.90s", cases[n].to, cases[n].from);
        check_refused(with_description(&parts, cases[n].from, cases[n].to), cases[n].reason);
    }
    for (n = 0; n < sizeof whole / sizeof whole[0]; n++) {
        CASE("the description %.90s", whole[n]);
        check_refused(with_description(&parts, parts.description, whole[n]), "not understood");
    }
    CASE("%s", "something after the description");
    check_refused(with_description(&parts, "]}", "]}x"), "not understood");
}

static void the_header(void) {
    static const struct {
        const char *from, *to, *reason;
    } cases[] = {
        {"\"mofo\":", "\"mogo\":", "not a checkpoint of mofo"},
        {"\"__metadata__\"", "\"__metadatb__\"", "safetensors header is damaged"},
        {"\"mofo_crc32\":", "\"mofo_crc33\":", "the description is damaged"},
        {"\"mofo_crc32\":\"", "\"mofo_crc32\":\"0", "the description is damaged"},
        {"\"mofo_crc32\":\"", "\"mofo_crc32\":\"\",\"x\":\"", "the description is damaged"},
        {"\"seed", "\"sead", "the description is damaged"},
        {"\"w.exp_avg\"", "\"w.exp_avh\"", "the array \"w.exp_avg\" is missing"},
        {"\"w.exp_avg_sq\"", "\"w.exp_avg_sr\"", "the array \"w.exp_avg_sq\" is missing"},
        {"\"w.master\"", "\"n.master\"", "the array \"w.master\" is missing"},
        {"\"v.exp_avg\"", "\"n.exp_avg\"", "the array \"v.exp_avg\" is missing"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"I32\"", "it must be F32 of shape [6]"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"U32\"", "it must be F32 of shape [6]"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"F16\"", "safetensors header is damaged"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"X\"", "safetensors header is damaged"},
        {"\"dtype\":\"F32\"", "\"dtype\":32", "safetensors header is damaged"},
        {"\"shape\":[6]", "\"shape\":[2,3]", "it must be F32 of shape [6]"},
        {"\"shape\":[6]", "\"shape\":[6,1]", "it must be F32 of shape [6]"},
        {"\"shape\":[6]", "\"shape\":[]", "safetensors header is damaged"},
        {"\"shape\":[6]", "\"shape\":[-6]", "safetensors header is damaged"},
        {"\"shape\":[6]", "\"shape\":[6.0]", "safetensors header is damaged"},
        {"\"shape\":[6]", "\"shape\":[7]", "safetensors header is damaged"},
        {"\"shape\":[6]", "\"shape\":[18446744073709551615,2]", "safetensors header is damaged"},
        {"\"shape\":[6]", "\"shape\":[4611686018427387910]", "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[48,24]", "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[0,24]", "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[23,47]", "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[25,49]", "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[24,47]", "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[48,72]", "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[1000024,1000048]", "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[-24,0]", "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[24.0,48.0]", "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[18446744073709551592,18446744073709551615]",
         "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[24]", "safetensors header is damaged"},
        {"\"data_offsets\":[24,48]", "\"data_offsets\":[24,48,72]", "safetensors header is damaged"},
        {",\"data_offsets\":[24,48]", "", "safetensors header is damaged"},
        {"}}", "}}}", "safetensors header is damaged"},
        {",\"v.exp_avg\":{", ",\"v.exp_avg\":{},\"v.exp_avg\":{", "safetensors header is damaged"},
        {",\"v.exp_avg\":{", ",\"v.exp_avg\":{\"dtype\":\"F32\",", "safetensors header is damaged"},
        {",\"v.exp_avg\":{", ",\"z\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},\"v.exp_avg\":{",
         "it has 6 arrays; those of its tensors are 5"},
        {",\"v.exp_avg\":{", ",\xFF\"v.exp_avg\":{", "safetensors header is damaged"},
        {"\"v.exp_avg\":{", "\"v.\xC3(exp_avg\":{", "safetensors header is damaged"},
    };
    static const char *const whole[] = {"", "x", "[]", "null", "\"\"", "7", "{", "{\"__metadata__\":7}", "{}}",
                                        "{\"__metadata__\":{\"mofo\":7}}"};
    size_t n;
    for (n = 0; n < sizeof cases / sizeof cases[0]; n++) {
        CASE("in the header %.90s for %.90s", cases[n].to, cases[n].from);
        check_refused(with_changed_header(&parts, cases[n].from, cases[n].to), cases[n].reason);
    }
    for (n = 0; n < sizeof whole / sizeof whole[0]; n++) {
        CASE("the header %.90s", whole[n]);
        check_refused(with_header(whole[n], "", 0), "safetensors header is damaged");
    }
    CASE("%s", "an empty header");
    check_refused(with_header("{}", "", 0), "not a checkpoint of mofo");
    check_refused(with_header("{}", "data", 4), "describes 0 bytes of data, but there are 4");
    check_refused(with_header("{\"__metadata__\":{}}", "", 0), "not a checkpoint of mofo");
    CASE("%s", "another model's file");
    check_refused(with_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", "data", 4),
                  "not a checkpoint of mofo");
}

/* The checksum is that of zlib over first moment, second moment and master copy, and the data is where it says. */
static void the_checksums(void) {
    const unsigned char *w = parts.data;
    struct bytes bytes = {NULL, 0};
    char text[40];
    CASE("%s", "checksums");
    /* The master copy of w, its moments, those of v. */
    CHECK_U64(parts.data_size, 3 * 24 + 2 * 16);
    bytes_append(&bytes, w + 24, 48);
    bytes_append(&bytes, w, 24);
    snprintf(text, sizeof text, "\"crc32\":%lu,", (unsigned long)crc32_of(bytes.data, bytes.size));
    CHECK_TEXT(parts.description, text);
    snprintf(text, sizeof text, "\"crc32\":%lu,", (unsigned long)crc32_of(w + 72, 32));
    CHECK_TEXT(parts.description, text);
    CHECK_TEXT(parts.description, "\"crc32\":0,");
    CHECK_U64(crc32_of("123456789", 9), 0xCBF43926u);
    CHECK_U64((sound.size - parts.data_size) % 8, 0);
    bytes_free(&bytes);
}

/* A sound file by somebody else: keys that nobody knows, others left out, spaces, other orders. */
static void by_other_writers(void) {
    char *header;
    CASE("%s", "as it was");
    check_taken(with_description(&parts, "\"seed\":6", "\"seed\":6"));
    check_taken(with_description(&parts, "\"seed\":6", " \"new\" : [1, {\"x\": null}] , \"seed\" : 6 "));
    check_taken(with_description(&parts, "\"library_version\":\"0.1.0\",", ""));
    check_taken(with_description(&parts, "\"options\":", "\"optionz\":"));
    check_taken(with_description(&parts, "\"num_blocks\":2,\"param_dtype\":\"F32\",\"update_fraction\":null,", ""));
    check_taken(with_description(&parts, "\"num_blocks\":2", "\"num_blocks\":-7.5"));
    check_taken(with_description(&parts, "\"name\":\"w\"", "\"name\":\"\\u0077\""));
    check_taken(with_changed_header(&parts, "{\"__metadata__\":{", "{ \"__metadata__\" : {\"format\":\"pt\",\n"));
    CASE("%s", "the metadata last");
    header = header_of(parts.description, "}");
    {
        char *turned = buffer_new(2 * strlen(header) + strlen(parts.arrays));
        struct bytes file;
        /* ,"v...":{...}} and {"__metadata__":{...}} */
        sprintf(turned, "{%.*s,%s", (int)strlen(parts.arrays) - 2, parts.arrays + 1, header + 1);
        file = with_header(turned, parts.data, parts.data_size);
        check_taken(file);
        free(turned);
    }
    free(header);
}

static void hostile_lengths(void) {
    static const uint64_t lengths[] = {0x7FFFFFFFFFFFFFFFu, 0x8000000000000000u, 0xFFFFFFFFFFFFFFFFu,
                                       0xFFFFFFFFFFFFFFF8u, 0x100000000u, 0x7FFFFFFFu, 100000000u};
    struct bytes file = {NULL, 0};
    char *deep;
    size_t n;
    bytes_append(&file, sound.data, sound.size);
    for (n = 0; n < sizeof lengths / sizeof lengths[0]; n++) {
        CASE("a header of %llu bytes", (unsigned long long)lengths[n]);
        write_length(file.data, lengths[n]);
        check_refused_by(into, &before, file.data, file.size, "its header should be");
        check_refused_by(into, &before, file.data, 8, "its header should be");
    }
    write_length(file.data, sound.size - 7);
    check_refused_by(into, &before, file.data, file.size, "its header should be");
    write_length(file.data, 0);
    check_refused_by(into, &before, file.data, file.size, "safetensors header is damaged");
    check_refused_by(into, &before, file.data, 8, "safetensors header is damaged");
    bytes_free(&file);

    CASE("%s", "deep nesting");
    deep = buffer_new(200001);
    memset(deep, '[', 50000);
    check_refused(with_header(deep, "", 0), "safetensors header is damaged");
    check_refused(with_description(&parts, "\"seed\":6", deep), "not understood");
    for (n = 0; n < 50000 - 5; n += 5) {
        memcpy(deep + n, "{\"a\":", 5);
    }
    check_refused(with_header(deep, "", 0), "safetensors header is damaged");
    free(deep);
    CASE("%s", "a header of spaces");
    deep = buffer_new(4000001);
    memset(deep, ' ', 4000000);
    check_refused(with_header(deep, "", 0), "its header should be 4000000 bytes long");
    deep[60000] = 0;
    check_refused(with_header(deep, "", 0), "safetensors header is damaged");
    free(deep);
}

static void garbage(void) {
    const int rounds = check_quick() ? 20 : 300;
    int round;
    for (round = 0; round < rounds; round++) {
        uint64_t seed = reference_mix64((uint64_t)round);
        size_t size = (size_t)(seed % 3000);
        unsigned char *bytes = buffer_new(sound.size > size ? sound.size : size);
        size_t i;
        memcpy(bytes, sound.data, sound.size);
        if (round % 2 == 0) {
            /* All of it. */
            for (i = 0; i < size; i++) {
                bytes[i] = (unsigned char)reference_mix64(seed + i);
            }
        } else {
            /* A few bytes of a sound one. */
            size = sound.size;
            for (i = 0; i < 1 + seed % 5; i++) {
                bytes[reference_mix64(seed + i) % size] ^= (unsigned char)(1 + reference_mix64(seed - i) % 255);
            }
        }
        CASE("garbage %d", round);
        check_refused_by(into, &before, bytes, size, "");
        free(bytes);
    }
}

/* Optimizers that the sound checkpoint does not fit, or does. */
static void other_optimizers(void) {
    static const struct {
        const char *what, *reason;
        int n;            /* whose ... */
        uint64_t numel;   /* is so many, if not 0 */
        int32_t dtype;    /* is this */
        int count;        /* how many tensors */
        int no_masters, bf16;
    } cases[] = {
        {"another size", "tensor \"w\": it has 6 entries there; the optimizer's has 7", 0, 7, MOFO_DTYPE_BF16, 3, 0, 0},
        {"bf16 moments", "its moments are F32; those of the optimizer are BF16", 0, 0, MOFO_DTYPE_BF16, 3, 0, 1},
        {"no master copies", "tensor \"w\": it has a master copy there", 0, 0, MOFO_DTYPE_BF16, 3, 1, 0},
        {"an f32 parameter", "tensor \"w\": it has a master copy there", 0, 0, MOFO_DTYPE_F32, 3, 0, 0},
        {"a tensor too few", "it has a tensor \"n\", which the optimizer has not", 0, 0, MOFO_DTYPE_BF16, 2, 0, 0},
        {"a tensor too many", "it has no tensor \"more\"", 0, 0, MOFO_DTYPE_BF16, 4, 0, 0},
        {"no tensors", "it has a tensor \"w\", which the optimizer has not", 0, 0, MOFO_DTYPE_BF16, 0, 0, 0},
        {"a parameter of f16", NULL, 0, 0, MOFO_DTYPE_F16, 3, 0, 0},
        {"master copies where there are none", NULL, 1, 0, MOFO_DTYPE_BF16, 3, 0, 0},
    };
    size_t n;
    for (n = 0; n < sizeof cases / sizeof cases[0]; n++) {
        mofo_options options = with_masters();
        struct spec list[4];
        struct model *model;
        struct bytes unchanged;
        CASE("an optimizer with %s", cases[n].what);
        memcpy(list, specs, sizeof list);
        list[cases[n].n].numel = cases[n].numel ? cases[n].numel : list[cases[n].n].numel;
        list[cases[n].n].param_dtype = cases[n].dtype;
        options.master_weights = !cases[n].no_masters;
        options.state_dtype = cases[n].bf16 ? MOFO_DTYPE_BF16 : MOFO_DTYPE_F32;
        model = stepped(&options, list, cases[n].count, cases[n].count > 0);
        unchanged = model_snapshot(model);
        if (cases[n].reason != NULL) {
            check_refused_by(model, &unchanged, sound.data, sound.size, cases[n].reason);
        } else {
            CHECK_OK(mofo_load_from_memory(model->optimizer, sound.data, sound.size));
            CHECK_U64(state_of(model->optimizer, model->indices[0]).step_count, 2);
            model_step(model, 3);
        }
        bytes_free(&unchanged);
        model_free(model);
    }
    {
        /* Blocks, fractions and types of gradients may differ. */
        mofo_options options = with_masters();
        struct spec list[3];
        struct model *model;
        CASE("%s", "an optimizer with other blocks");
        memcpy(list, specs, sizeof list);
        list[0].num_blocks = 3;
        list[0].grad_dtype = MOFO_DTYPE_BF16;
        list[1].num_blocks = 1;
        list[1].update_fraction = 1.0;
        options.update_fraction = 0.5;
        options.filter = MOFO_FILTER_RANDOM;
        model = stepped(&options, list, 3, 1);
        CHECK_OK(mofo_load_from_memory(model->optimizer, sound.data, sound.size));
        CHECK_U64(state_of(model->optimizer, model->indices[0]).step_count, 2);
        model_step(model, 3);
        model_free(model);
    }
}

/* After all that, the next step has the bits of an optimizer that nothing was loaded into. */
static void finish(void) {
    CASE("%s", "the step after all refused loads");
    check_unchanged(into, &before);
    model_step(into, 4);
    model_step(twin, 4);
    check_same_models(into, twin, 4);
    CASE("%s", "a sound load at last");
    CHECK_OK(mofo_load_from_memory(into->optimizer, sound.data, sound.size));
    {
        struct bytes now = saved_to_memory(into->optimizer);
        CHECK_U64(now.size, sound.size);
        CHECK_BYTES(now.data, sound.data, sound.size);
        bytes_free(&now);
    }
    model_free(into);
    model_free(twin);
    bytes_free(&before);
    bytes_free(&sound);
    parts_free(&parts);
}

int main(void) {
    folder_begin();
    begin();
    the_checksums();
    by_other_writers();
    cut_short_or_longer();
    every_flipped_bit();
    the_description();
    the_header();
    hostile_lengths();
    garbage();
    other_optimizers();
    finish();
    folder_end();
    return check_finish();
}
