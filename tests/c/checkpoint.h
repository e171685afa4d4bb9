/* A small model for the tests of checkpoints: tensors of every kind that a checkpoint tells apart, and all that can be
 * seen of an optimizer that has them. Needs POSIX. */

#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include <dirent.h>
#include <errno.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "buffers.h"

/* A tensor of a model. It has a gradient in step `first` and every `period` steps after it; never, if `first` is 0.
 * Where `step_count` is not 0, the program brings moments that have seen so many steps. */
struct spec {
    const char *name;
    uint64_t numel, num_blocks;
    int32_t param_dtype, grad_dtype;
    double update_fraction;
    uint64_t step_count;
    int first, period;
};

enum { MODEL_TENSORS = 12 };

struct model {
    mofo_options options;
    mofo_optimizer *optimizer;
    const struct spec *specs;
    int count;
    int is_there[MODEL_TENSORS];
    mofo_tensor tensors[MODEL_TENSORS];
    uint64_t indices[MODEL_TENSORS];
};

static inline int has_grad(const struct spec *spec, int t) {
    return spec->first > 0 && t >= spec->first && (t - spec->first) % spec->period == 0;
}

static inline size_t model_param_bytes(const struct model *model, int n) {
    return (size_t)model->specs[n].numel * reference_size(model->specs[n].param_dtype);
}

static inline size_t model_moment_bytes(const struct model *model, int n) {
    return (size_t)model->specs[n].numel * reference_size(model->options.state_dtype);
}

/* Moments that somebody else has made: the second is not negative. */
static inline void bring_moments(struct model *model, int n) {
    const struct spec *spec = &model->specs[n];
    mofo_tensor *tensor = &model->tensors[n];
    uint64_t i;
    buffer_fill(tensor->exp_avg, model->options.state_dtype, spec->numel, 300 + (uint64_t)n, 0.01);
    for (i = 0; i < spec->numel; i++) {
        float m = reference_load(model->options.state_dtype, tensor->exp_avg, i);
        reference_store(model->options.state_dtype, tensor->exp_avg_sq, i, m * m, 0, 0);
    }
    tensor->step_count = spec->step_count;
}

static inline void model_add(struct model *model, int n, int owns_state, int brings) {
    const struct spec *spec = &model->specs[n];
    mofo_tensor tensor = named_tensor(spec->name, spec->numel);
    tensor.num_blocks = spec->num_blocks;
    tensor.param_dtype = spec->param_dtype;
    tensor.grad_dtype = spec->grad_dtype;
    tensor.update_fraction = spec->update_fraction;
    tensor.param = buffer_filled(spec->param_dtype, spec->numel, 100 + (uint64_t)n, 1.0);
    tensor.grad = buffer_new((size_t)spec->numel * reference_size(spec->grad_dtype));
    brings = brings && spec->step_count > 0;
    if (owns_state || brings) {
        tensor.exp_avg = buffer_new(model_moment_bytes(model, n));
        tensor.exp_avg_sq = buffer_new(model_moment_bytes(model, n));
        memset(tensor.exp_avg, 0xA5, model_moment_bytes(model, n));
        memset(tensor.exp_avg_sq, 0xA5, model_moment_bytes(model, n));
    }
    if (owns_state && !brings && model->options.master_weights && spec->param_dtype != MOFO_DTYPE_F32) {
        tensor.master = buffer_new((size_t)spec->numel * sizeof(float));
        memset(tensor.master, 0xA5, (size_t)spec->numel * sizeof(float));
    }
    model->tensors[n] = tensor;
    if (brings) {
        bring_moments(model, n);
    }
    REQUIRE_OK(mofo_add_tensor(model->optimizer, &model->tensors[n], &model->indices[n]));
    model->is_there[n] = 1;
}

/* Without tensors. */
static inline struct model *model_new(const mofo_options *options, const struct spec *specs, int count) {
    struct model *model = buffer_new(sizeof *model);
    REQUIRE(count <= MODEL_TENSORS);
    model->options = *options;
    model->options.num_threads = 1;
    model->specs = specs;
    model->count = count;
    REQUIRE_OK(mofo_create(&model->options, &model->optimizer));
    return model;
}

/* With all of its tensors; the library keeps their state. */
static inline struct model *model_whole(const mofo_options *options, const struct spec *specs, int count) {
    struct model *model = model_new(options, specs, count);
    int n;
    for (n = 0; n < count; n++) {
        model_add(model, n, 0, 1);
    }
    return model;
}

static inline void model_remove(struct model *model, int n) {
    if (model->is_there[n]) {
        REQUIRE_OK(mofo_remove_tensor(model->optimizer, model->indices[n]));
        owned_tensor_free(&model->tensors[n]);
        model->is_there[n] = 0;
    }
}

static inline void model_free(struct model *model) {
    int n;
    mofo_destroy(model->optimizer);
    for (n = 0; n < model->count; n++) {
        if (model->is_there[n]) {
            owned_tensor_free(&model->tensors[n]);
        }
    }
    free(model);
}

/* Step number t of the run; the gradients depend on it alone. */
static inline void model_step(struct model *model, int t) {
    int n;
    for (n = 0; n < model->count; n++) {
        const struct spec *spec = &model->specs[n];
        const mofo_tensor *tensor = &model->tensors[n];
        if (model->is_there[n]) {
            buffer_fill((void *)(uintptr_t)tensor->grad, spec->grad_dtype, spec->numel, (uint64_t)(t * 40 + n), 0.02);
            REQUIRE_OK(mofo_bind_tensor(model->optimizer, model->indices[n], tensor->param,
                                        has_grad(spec, t) ? tensor->grad : NULL));
        }
    }
    REQUIRE_OK(mofo_step(model->optimizer, NULL));
}

struct bytes {
    unsigned char *data;
    size_t size;
};

static inline void bytes_free(struct bytes *bytes) {
    free(bytes->data);
    bytes->data = NULL;
    bytes->size = 0;
}

static inline void bytes_append(struct bytes *bytes, const void *from, size_t size) {
    unsigned char *data = realloc(bytes->data, bytes->size + size + 1);
    REQUIRE(data != NULL);
    if (size > 0) {
        memcpy(data + bytes->size, from, size);
    }
    bytes->data = data;
    bytes->size += size;
}

static inline struct bytes saved_to_memory(mofo_optimizer *optimizer) {
    struct bytes bytes = {NULL, 0};
    uint64_t size = 0;
    uint64_t written = 0;
    REQUIRE_OK(mofo_save_size(optimizer, &size));
    bytes.data = buffer_new((size_t)size);
    bytes.size = (size_t)size;
    REQUIRE_OK(mofo_save_to_memory(optimizer, bytes.data, size, &written));
    CHECK_U64(written, size);
    return bytes;
}

/* What a load may change, as it lies in memory: state and step counts, thresholds, parameters. */
static inline struct bytes model_memory(const struct model *model) {
    struct bytes all = {NULL, 0};
    int n;
    for (n = 0; n < model->count; n++) {
        if (model->is_there[n]) {
            mofo_tensor_info info = state_of(model->optimizer, model->indices[n]);
            bytes_append(&all, &info.step_count, sizeof info.step_count);
            if (info.step_count > 0) {
                bytes_append(&all, info.exp_avg, model_moment_bytes(model, n));
                bytes_append(&all, info.exp_avg_sq, model_moment_bytes(model, n));
            }
            bytes_append(&all, info.thresholds, (size_t)info.num_blocks * sizeof(float));
            bytes_append(&all, model->tensors[n].param, model_param_bytes(model, n));
        }
    }
    return all;
}

/* And what only saving shows: the seed, which master copies have started, and their bits. */
static inline struct bytes model_snapshot(const struct model *model) {
    struct bytes all = model_memory(model);
    struct bytes saved = saved_to_memory(model->optimizer);
    bytes_append(&all, saved.data, saved.size);
    bytes_free(&saved);
    return all;
}

static inline void check_unchanged(const struct model *model, const struct bytes *before) {
    struct bytes now = model_snapshot(model);
    if (CHECK_U64(now.size, before->size)) {
        CHECK_BYTES(now.data, before->data, now.size);
    }
    bytes_free(&now);
}

/* Faster, where it is asked a thousand times. */
static inline void check_memory_unchanged(const struct model *model, const struct bytes *before) {
    struct bytes now = model_memory(model);
    if (CHECK(now.size < before->size)) {
        CHECK_BYTES(now.data, before->data, now.size);
    }
    bytes_free(&now);
}

/* Two models have come to the same bits, after step t. */
static inline void check_same_models(const struct model *got, const struct model *expected, int t) {
    char before[sizeof check_case];
    int n;
    memcpy(before, check_case, sizeof before);
    for (n = 0; n < expected->count; n++) {
        CASE("%.150s, tensor %s", before, expected->specs[n].name);
        if (CHECK(got->is_there[n] == expected->is_there[n]) && got->is_there[n]) {
            mofo_tensor_info a = state_of(got->optimizer, got->indices[n]);
            mofo_tensor_info b = state_of(expected->optimizer, expected->indices[n]);
            CHECK_U64(a.step_count, b.step_count);
            CHECK((a.master != NULL) == (b.master != NULL));
            if (b.step_count > 0) {
                CHECK_BYTES(a.exp_avg, b.exp_avg, model_moment_bytes(expected, n));
                CHECK_BYTES(a.exp_avg_sq, b.exp_avg_sq, model_moment_bytes(expected, n));
            }
            if (has_grad(&expected->specs[n], t)) {
                CHECK_BYTES(a.thresholds, b.thresholds, (size_t)b.num_blocks * sizeof(float));
                if (b.master != NULL) {
                    CHECK_BYTES(a.master, b.master, (size_t)b.numel * sizeof(float));
                }
            }
            CHECK_BYTES(got->tensors[n].param, expected->tensors[n].param, model_param_bytes(expected, n));
        }
    }
    memcpy(check_case, before, sizeof before);
}

/* The rest of the program works in an empty folder of its own. */
static char working_folder[512];

static inline void folder_begin(void) {
    const char *temporary = getenv("TMPDIR");
    snprintf(working_folder, sizeof working_folder, "%s/mofo-test-XXXXXX", temporary != NULL ? temporary : "/tmp");
    REQUIRE(mkdtemp(working_folder) != NULL);
    REQUIRE(chdir(working_folder) == 0);
}

/* How many entries a folder has whose names begin so. */
static inline uint64_t count_files(const char *folder, const char *prefix) {
    DIR *list = opendir(folder);
    struct dirent *entry;
    uint64_t count = 0;
    REQUIRE(list != NULL);
    while ((entry = readdir(list)) != NULL) {
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
                 strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
    }
    closedir(list);
    return count;
}

/* What the library writes beside a file until it is whole. */
static inline int is_temporary(const char *name) { return name[0] == '.' && strstr(name, ".mofo-") != NULL; }

static inline uint64_t temporary_files(const char *folder) {
    DIR *list = opendir(folder);
    struct dirent *entry;
    uint64_t count = 0;
    REQUIRE(list != NULL);
    while ((entry = readdir(list)) != NULL) {
        count += (uint64_t)is_temporary(entry->d_name);
    }
    closedir(list);
    return count;
}

/* Everything that a test has made must be gone. */
static inline void folder_end(void) {
    CASE("%s", "the end");
    CHECK_U64(count_files(".", ""), 0);
    REQUIRE(chdir("/") == 0);
    CHECK(rmdir(working_folder) == 0);
}

static inline struct bytes file_read(const char *path) {
    struct bytes bytes;
    struct stat found;
    FILE *file = fopen(path, "rb");
    REQUIRE(file != NULL && fstat(fileno(file), &found) == 0);
    bytes.size = (size_t)found.st_size;
    bytes.data = buffer_new(bytes.size);
    REQUIRE(fread(bytes.data, 1, bytes.size, file) == bytes.size && fgetc(file) == EOF);
    fclose(file);
    return bytes;
}

static inline void file_write(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL);
    REQUIRE(size == 0 || fwrite(data, size, 1, file) == 1);
    REQUIRE(fclose(file) == 0);
}

/* The file has exactly these bytes. */
static inline void check_holds(const char *path, const struct bytes *expected) {
    struct bytes found = file_read(path);
    if (CHECK_U64(found.size, expected->size)) {
        CHECK_BYTES(found.data, expected->data, found.size);
    }
    bytes_free(&found);
}

/* And nothing is left beside it. */
static inline void check_file(const char *path, const struct bytes *expected) {
    check_holds(path, expected);
    CHECK_U64(temporary_files("."), 0);
}

/* As fork(), with a count of failures of the child's own. */
static inline pid_t begin_child(void) {
    pid_t child;
    fflush(stdout);
    child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        check_failures = 0;
    }
    return child;
}

/* Waits for a child that must end by itself with status 0. */
static inline void check_child(pid_t child) {
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Ends a child without what runs at the exit of its parent. */
static inline void end_child(void) {
    const int failed = check_failures != 0;
    fflush(stdout);
    _exit(failed);
}

#endif
