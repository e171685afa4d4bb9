/* The conventions about errors: what may be NULL, where the text lives, and how versions of a struct meet. */

#define _DEFAULT_SOURCE

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "buffers.h"

/* No version of a struct is larger. */
enum { MAX_STRUCT_SIZE = 4096 };

/* Room for any size, aligned for every struct. */
union room {
    uint64_t align;
    unsigned char bytes[2 * MAX_STRUCT_SIZE];
};

static mofo_optimizer *one_tensor(float *param, const float *grad) {
    mofo_options options = default_options();
    mofo_optimizer *optimizer = NULL;
    mofo_tensor tensor = named_tensor("p", 1);
    uint64_t index;
    options.num_threads = 1;
    tensor.param = param;
    tensor.grad = grad;
    REQUIRE_OK(mofo_create(&options, &optimizer));
    REQUIRE_OK(mofo_add_tensor(optimizer, &tensor, &index));
    return optimizer;
}

static void no_error_yet(void) { CHECK(strcmp(mofo_last_error(), "") == 0); }

static void destroying_null_is_fine(void) { mofo_destroy(NULL); }

static void status_names(void) {
#define CHECK_NAME(status) CHECK(strcmp(mofo_status_name(status), #status) == 0)
    CHECK_NAME(MOFO_OK);
    CHECK_NAME(MOFO_SKIPPED);
    CHECK_NAME(MOFO_ERROR_INVALID_ARGUMENT);
    CHECK_NAME(MOFO_ERROR_INVALID_BUFFER);
    CHECK_NAME(MOFO_ERROR_NOT_FOUND);
    CHECK_NAME(MOFO_ERROR_INVALID_STATE);
    CHECK_NAME(MOFO_ERROR_OUT_OF_MEMORY);
    CHECK_NAME(MOFO_ERROR_UNSUPPORTED);
    CHECK_NAME(MOFO_ERROR_NOT_FINITE);
    CHECK_NAME(MOFO_ERROR_PARALLEL_FOR);
    CHECK_NAME(MOFO_ERROR_INTERNAL);
    CHECK(strcmp(mofo_status_name(2), "unknown status") == 0);
    CHECK(strcmp(mofo_status_name(-99), "unknown status") == 0);
    CHECK(strcmp(mofo_status_name(INT32_MIN), "unknown status") == 0);
    CHECK(strcmp(mofo_status_name(INT32_MAX), "unknown status") == 0);
}

/* The text stays until this thread's next failing call; calls that succeed leave it. */
static void lifetime_of_the_text(void) {
    float param = 1.0f;
    float grad = 1.0f;
    mofo_optimizer *optimizer = one_tensor(&param, &grad);
    char text[1024];
    const char *pointer;
    uint64_t index = 0;
    CHECK_STATUS(mofo_find_tensor(optimizer, "nobody", &index), MOFO_ERROR_NOT_FOUND);
    pointer = mofo_last_error();
    CHECK_TEXT(pointer, "nobody");
    snprintf(text, sizeof text, "%s", pointer);
    CHECK_OK(mofo_find_tensor(optimizer, "p", &index));
    CHECK_OK(mofo_step(optimizer, NULL));
    CHECK(mofo_last_error() == pointer);
    CHECK(strcmp(pointer, text) == 0);
    mofo_destroy(optimizer);
    CHECK(strcmp(mofo_last_error(), text) == 0);
    CHECK_STATUS(mofo_step(NULL, NULL), MOFO_ERROR_INVALID_ARGUMENT);
    CHECK(strcmp(mofo_last_error(), text) != 0);
}

/* Messages are text whatever a name holds, and end somewhere. */
static void texts_of_odd_names(void) {
    float param = 1.0f;
    float grad = 1.0f;
    mofo_optimizer *optimizer = one_tensor(&param, &grad);
    char *name = buffer_new(10001);
    uint64_t index = 0;
    size_t i;
    CHECK_STATUS(mofo_find_tensor(optimizer, "%s%n%d", &index), MOFO_ERROR_NOT_FOUND);
    CHECK_TEXT(mofo_last_error(), "%s%n%d");
    /* Three bytes a character, so that a cut could fall inside one. */
    for (i = 0; i + 3 <= 10000; i += 3) {
        memcpy(name + i, "\xE2\x82\xAC", 3);
    }
    CHECK_STATUS(mofo_find_tensor(optimizer, name, &index), MOFO_ERROR_NOT_FOUND);
    {
        const char *text = mofo_last_error();
        size_t length = strlen(text);
        CHECK(length > 100 && length < 10000);
        /* The last character is whole: it is ASCII, or the third byte of the sign. */
        CHECK((unsigned char)text[length - 1] < 0x80 || (unsigned char)text[length - 1] == 0xAC);
    }
    free(name);
    mofo_destroy(optimizer);
}

static void *other_thread(void *argument) {
    static char seen[2][1024];
    const char **texts = argument;
    snprintf(seen[0], sizeof seen[0], "%s", mofo_last_error());
    (void)mofo_create(NULL, NULL);
    snprintf(seen[1], sizeof seen[1], "%s", mofo_last_error());
    texts[0] = seen[0];
    texts[1] = seen[1];
    return NULL;
}

static void each_thread_has_its_own_text(void) {
    pthread_t thread;
    const char *texts[2] = {NULL, NULL};
    char mine[1024];
    CHECK_STATUS(mofo_step(NULL, NULL), MOFO_ERROR_INVALID_ARGUMENT);
    snprintf(mine, sizeof mine, "%s", mofo_last_error());
    REQUIRE(pthread_create(&thread, NULL, other_thread, texts) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    CHECK(strcmp(texts[0], "") == 0);
    CHECK_TEXT(texts[1], "options");
    CHECK(strcmp(mofo_last_error(), mine) == 0);
}

static int all_bytes(const unsigned char *bytes, size_t from, size_t to, unsigned char value) {
    size_t i;
    for (i = from; i < to; i++) {
        if (bytes[i] != value) {
            return 0;
        }
    }
    return 1;
}

static int32_t init_options(void *out, uint64_t size) { return mofo_options_init(out, size); }
static int32_t init_tensor(void *out, uint64_t size) { return mofo_tensor_init(out, size); }
static int32_t init_args(void *out, uint64_t size) { return mofo_step_args_init(out, size); }

static float the_param;
static float the_grad;

/* Each use makes the call that takes the struct, on a fresh optimizer. */
static int32_t use_options(void *in) {
    mofo_optimizer *optimizer = NULL;
    int32_t status = mofo_create(in, &optimizer);
    CHECK((status == MOFO_OK) == (optimizer != NULL));
    mofo_destroy(optimizer);
    return status;
}

static int32_t use_options_for_sizes(void *in) {
    mofo_tensor tensor = named_tensor("q", 2);
    mofo_state_sizes sizes;
    return mofo_state_size(in, &tensor, &sizes, sizeof sizes);
}

static int32_t use_tensor(void *in) {
    mofo_optimizer *optimizer = one_tensor(&the_param, &the_grad);
    mofo_tensor *tensor = in;
    uint64_t index = 77;
    int32_t status;
    tensor->name = "q";
    tensor->numel = 2;
    status = mofo_add_tensor(optimizer, tensor, &index);
    CHECK_U64(index, status == MOFO_OK ? 1 : 77);
    mofo_destroy(optimizer);
    return status;
}

static int32_t use_tensor_for_sizes(void *in) {
    mofo_options options = default_options();
    mofo_tensor *tensor = in;
    mofo_state_sizes sizes;
    tensor->numel = 2;
    return mofo_state_size(&options, tensor, &sizes, sizeof sizes);
}

static int32_t add_untouched_tensor(void *in) {
    mofo_optimizer *optimizer = one_tensor(&the_param, &the_grad);
    uint64_t index = 77;
    int32_t status = mofo_add_tensor(optimizer, in, &index);
    CHECK_U64(index, 77);
    mofo_destroy(optimizer);
    return status;
}

static int32_t size_untouched_tensor(void *in) {
    mofo_options options = default_options();
    mofo_state_sizes sizes;
    return mofo_state_size(&options, in, &sizes, sizeof sizes);
}

static int32_t use_args(void *in) {
    float param = 1.0f;
    float grad = 1.0f;
    mofo_optimizer *optimizer = one_tensor(&param, &grad);
    int32_t status = mofo_step(optimizer, in);
    CHECK((status == MOFO_OK) == (param != 1.0f));
    CHECK_U64(state_of(optimizer, 0).step_count, status == MOFO_OK);
    mofo_destroy(optimizer);
    return status;
}

static int32_t use_args_for_norm(void *in) {
    float param = 1.0f;
    float grad = 1.0f;
    double norm = -3.0;
    mofo_optimizer *optimizer = one_tensor(&param, &grad);
    int32_t status = mofo_grad_norm(optimizer, in, &norm);
    CHECK_F64(norm, status == MOFO_OK ? 1.0 : -3.0);
    mofo_destroy(optimizer);
    return status;
}

static void versions_of_input_structs(void) {
    static const struct {
        const char *name;
        size_t size;
        int32_t (*init)(void *, uint64_t);
        int32_t (*use)(void *);
    } structs[] = {
        {"mofo_options", sizeof(mofo_options), init_options, use_options},
        {"mofo_options", sizeof(mofo_options), init_options, use_options_for_sizes},
        {"mofo_tensor", sizeof(mofo_tensor), init_tensor, use_tensor},
        {"mofo_tensor", sizeof(mofo_tensor), init_tensor, use_tensor_for_sizes},
        {"mofo_step_args", sizeof(mofo_step_args), init_args, use_args},
        {"mofo_step_args", sizeof(mofo_step_args), init_args, use_args_for_norm},
    };
    size_t n;
    for (n = 0; n < sizeof structs / sizeof structs[0]; n++) {
        static union room room;
        const size_t known = structs[n].size;
        const uint64_t too_small[] = {0, 1, 8, known - 8, known - 1};
        const uint64_t too_large[] = {MAX_STRUCT_SIZE + 1, (uint64_t)1 << 32, UINT64_MAX};
        const uint64_t larger[] = {known + 1, known + 8, MAX_STRUCT_SIZE};
        char number[32];
        size_t i;
        CASE("%s, case %zu", structs[n].name, n);

        CHECK_STATUS(structs[n].init(NULL, known), MOFO_ERROR_INVALID_ARGUMENT);
        CHECK_TEXT(mofo_last_error(), structs[n].name);
        for (i = 0; i < 5 + 3; i++) {
            uint64_t size = i < 5 ? too_small[i] : too_large[i - 5];
            snprintf(number, sizeof number, "%llu", (unsigned long long)size);
            memset(&room, 0xAA, sizeof room);
            CHECK_STATUS(structs[n].init(&room, size), MOFO_ERROR_INVALID_ARGUMENT);
            CHECK_TEXT(mofo_last_error(), structs[n].name);
            CHECK_TEXT(mofo_last_error(), number);
            CHECK(all_bytes(room.bytes, 0, sizeof room, 0xAA));

            REQUIRE_OK(structs[n].init(&room, known));
            room.align = size;
            CHECK_STATUS(structs[n].use(&room), MOFO_ERROR_INVALID_ARGUMENT);
            CHECK_TEXT(mofo_last_error(), structs[n].name);
            CHECK_TEXT(mofo_last_error(), number);
        }

        memset(&room, 0xAA, sizeof room);
        REQUIRE_OK(structs[n].init(&room, known));
        CHECK(all_bytes(room.bytes, known, sizeof room, 0xAA));
        CHECK_OK(structs[n].use(&room));

        for (i = 0; i < sizeof larger / sizeof larger[0]; i++) {
            size_t size = (size_t)larger[i];
            memset(&room, 0xAA, sizeof room);
            REQUIRE_OK(structs[n].init(&room, size));
            CHECK_U64(room.align, size);
            CHECK(all_bytes(room.bytes, known, size, 0));
            CHECK(all_bytes(room.bytes, size, sizeof room, 0xAA));
            CHECK_OK(structs[n].use(&room));

            /* A newer caller uses a field that this library does not know: it must be told. */
            REQUIRE_OK(structs[n].init(&room, size));
            room.bytes[size - 1] = 1;
            CHECK_STATUS(structs[n].use(&room), MOFO_ERROR_INVALID_ARGUMENT);
            CHECK_TEXT(mofo_last_error(), structs[n].name);
            snprintf(number, sizeof number, "%zu", size - 1);
            CHECK_TEXT(mofo_last_error(), number);
            REQUIRE_OK(structs[n].init(&room, size));
            room.bytes[known] = 0x80;
            CHECK_STATUS(structs[n].use(&room), MOFO_ERROR_INVALID_ARGUMENT);
        }
    }
    CASE("%s", "");
}

/* Of a struct whose size is garbage nothing but the size is read: here no other byte of it can be. */
static void size_of_garbage(void) {
    static int32_t (*const uses[])(void *) = {
        use_options, use_options_for_sizes, add_untouched_tensor,
        size_untouched_tensor, use_args, use_args_for_norm,
    };
    static const uint64_t sizes[] = {0, 7, MAX_STRUCT_SIZE + 1, 0xAAAAAAAAAAAAAAAAu, UINT64_MAX};
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    uint64_t *last;
    size_t n, i;
    REQUIRE(pages != MAP_FAILED);
    REQUIRE(mprotect(pages + page, page, PROT_NONE) == 0);
    last = (uint64_t *)(void *)(pages + page - sizeof *last);
    for (n = 0; n < sizeof uses / sizeof uses[0]; n++) {
        for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            CASE("a struct_size of garbage: use %zu, size %zu", n, i);
            *last = sizes[i];
            CHECK_STATUS(uses[n](last), MOFO_ERROR_INVALID_ARGUMENT);
            CHECK_U64(*last, sizes[i]);
        }
    }
    CASE("%s", "");
    REQUIRE(munmap(pages, 2 * page) == 0);
}

static int32_t write_memory(void *out, uint64_t size) {
    mofo_optimizer *optimizer = one_tensor(&the_param, &the_grad);
    int32_t status = mofo_memory(optimizer, out, size);
    mofo_destroy(optimizer);
    return status;
}

static int32_t write_tensor_info(void *out, uint64_t size) {
    mofo_optimizer *optimizer = one_tensor(&the_param, &the_grad);
    int32_t status = mofo_tensor_state(optimizer, 0, out, size);
    mofo_destroy(optimizer);
    return status;
}

static int32_t write_state_sizes(void *out, uint64_t size) {
    mofo_options options = default_options();
    mofo_tensor tensor = named_tensor("q", 2);
    return mofo_state_size(&options, &tensor, out, size);
}

static int32_t write_report(void *out, uint64_t size) {
    float param = 1.0f;
    float grad = 1.0f;
    mofo_optimizer *optimizer = one_tensor(&param, &grad);
    mofo_step_args args = default_args();
    int32_t status;
    args.report = out;
    args.report_size = size;
    status = mofo_step(optimizer, &args);
    if (out != NULL) {
        CHECK((status == MOFO_OK) == (param != 1.0f));
        CHECK_U64(state_of(optimizer, 0).step_count, status == MOFO_OK);
    }
    mofo_destroy(optimizer);
    return status;
}

static void versions_of_output_structs(void) {
    static const struct {
        const char *name;
        size_t size;
        int32_t (*write)(void *, uint64_t);
        int32_t null_is;
    } structs[] = {
        {"mofo_memory_info", sizeof(mofo_memory_info), write_memory, MOFO_ERROR_INVALID_ARGUMENT},
        {"mofo_tensor_info", sizeof(mofo_tensor_info), write_tensor_info, MOFO_ERROR_INVALID_ARGUMENT},
        {"mofo_state_sizes", sizeof(mofo_state_sizes), write_state_sizes, MOFO_ERROR_INVALID_ARGUMENT},
        /* No report is wanted then, whatever the size says. */
        {"mofo_step_report", sizeof(mofo_step_report), write_report, MOFO_OK},
    };
    size_t n;
    for (n = 0; n < sizeof structs / sizeof structs[0]; n++) {
        static union room room;
        const size_t known = structs[n].size;
        const uint64_t wrong[] = {0, 1, 8, known - 1, MAX_STRUCT_SIZE + 1, UINT64_MAX};
        const uint64_t larger[] = {known + 1, known + 8, MAX_STRUCT_SIZE};
        size_t i;
        CASE("%s", structs[n].name);
        CHECK_STATUS(structs[n].write(NULL, known), structs[n].null_is);
        for (i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
            char number[32];
            snprintf(number, sizeof number, "%llu", (unsigned long long)wrong[i]);
            memset(&room, 0xAA, sizeof room);
            CHECK_STATUS(structs[n].write(&room, wrong[i]), MOFO_ERROR_INVALID_ARGUMENT);
            CHECK_TEXT(mofo_last_error(), structs[n].name);
            CHECK_TEXT(mofo_last_error(), number);
            CHECK(all_bytes(room.bytes, 0, sizeof room, 0xAA));
        }
        memset(&room, 0xAA, sizeof room);
        CHECK_OK(structs[n].write(&room, known));
        CHECK(!all_bytes(room.bytes, 0, known, 0xAA));
        CHECK(all_bytes(room.bytes, known, sizeof room, 0xAA));
        for (i = 0; i < sizeof larger / sizeof larger[0]; i++) {
            size_t size = (size_t)larger[i];
            memset(&room, 0xAA, sizeof room);
            CHECK_OK(structs[n].write(&room, size));
            CHECK(!all_bytes(room.bytes, 0, known, 0xAA));
            CHECK(all_bytes(room.bytes, known, size, 0));
            CHECK(all_bytes(room.bytes, size, sizeof room, 0xAA));
        }
    }
    CASE("%s", "");
}

int main(void) {
    no_error_yet();
    destroying_null_is_fine();
    no_error_yet();
    status_names();
    lifetime_of_the_text();
    texts_of_odd_names();
    each_thread_has_its_own_text();
    versions_of_input_structs();
    size_of_garbage();
    versions_of_output_structs();
    return check_finish();
}
