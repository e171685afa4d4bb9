/*
 * Every system call of a save and of a load fails once, comes back early, or is the last one of its process. A save that
 * fails leaves the old file; a load that fails leaves everything as it was, or an optimizer that refuses to go on.
 *
 * Linked statically, with the system's functions wrapped by the linker (--wrap).
 */

#define _POSIX_C_SOURCE 200809L

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>

#include "checkpoint.h"

/* What happens at call number `at`. */
enum fault {
    NOTHING,
    FAILS,       /* with `fault_errno` */
    INTERRUPTED, /* a read, write or open: by a signal, once */
    SHORT,       /* a read or write does one byte of what it should */
    ENDS,        /* a read finds the file's end, a write writes nothing */
    CHANGES,     /* a read finds another byte than there was */
    KILLS        /* the process is ended before the call */
};
static int armed;
static enum fault fault;
static int fault_errno;
static int at;
static int calls;
static int happened;
/* One letter for each call. */
static char log_of_calls[10000];

static enum fault call_of(char letter) {
    if (!armed) {
        return NOTHING;
    }
    if (calls < (int)sizeof log_of_calls - 1) {
        log_of_calls[calls] = letter;
        log_of_calls[calls + 1] = 0;
    }
    calls++;
    if (calls != at) {
        return NOTHING;
    }
    if (fault == KILLS) {
        raise(SIGKILL);
    }
    if (strchr("RW", letter) == NULL && (fault == SHORT || fault == ENDS || fault == CHANGES)) {
        return NOTHING;
    }
    if (letter == 'W' && fault == CHANGES) {
        return NOTHING;
    }
    if (strchr("ORW", letter) == NULL && fault == INTERRUPTED) {
        return NOTHING;
    }
    happened = 1;
    errno = fault == INTERRUPTED ? EINTR : fault_errno;
    return fault;
}

ssize_t __real_read(int file, void *to, size_t size);
ssize_t __wrap_read(int file, void *to, size_t size);
ssize_t __real_write(int file, const void *from, size_t size);
ssize_t __wrap_write(int file, const void *from, size_t size);
int64_t __real_lseek64(int file, int64_t offset, int whence);
int64_t __wrap_lseek64(int file, int64_t offset, int whence);
int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __real_fsync(int file);
int __wrap_fsync(int file);
int __real_fchmod(int file, mode_t mode);
int __wrap_fchmod(int file, mode_t mode);
int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);

ssize_t __wrap_read(int file, void *to, size_t size) {
    const enum fault now = call_of('R');
    ssize_t count;
    if (now == FAILS || now == INTERRUPTED) {
        return -1;
    }
    if (now == ENDS) {
        return 0;
    }
    count = __real_read(file, to, now == SHORT && size > 1 ? 1 : size);
    if (now == CHANGES && count > 0) {
        ((unsigned char *)to)[count / 2] ^= 0x10;
    }
    return count;
}

ssize_t __wrap_write(int file, const void *from, size_t size) {
    const enum fault now = call_of('W');
    if (now == FAILS || now == INTERRUPTED) {
        return -1;
    }
    if (now == ENDS) {
        return 0;
    }
    return __real_write(file, from, now == SHORT && size > 1 ? 1 : size);
}

int64_t __wrap_lseek64(int file, int64_t offset, int whence) {
    return call_of('L') == FAILS ? -1 : __real_lseek64(file, offset, whence);
}

int __wrap_open64(const char *path, int flags, ...) {
    const enum fault now = call_of('O');
    mode_t mode;
    va_list rest;
    va_start(rest, flags);
    mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return now == FAILS || now == INTERRUPTED ? -1 : __real_open64(path, flags, mode);
}

int __wrap_fsync(int file) { return call_of('F') == FAILS ? -1 : __real_fsync(file); }

int __wrap_fchmod(int file, mode_t mode) { return call_of('M') == FAILS ? -1 : __real_fchmod(file, mode); }

int __wrap_rename(const char *from, const char *to) {
    return call_of('N') == FAILS ? -1 : __real_rename(from, to);
}

static void arm(enum fault what, int error, int when) {
    fault = what;
    fault_errno = error;
    at = when;
    calls = 0;
    happened = 0;
    log_of_calls[0] = 0;
    armed = 1;
}

/* The array of `long` is read in two parts. */
static const struct spec specs[] = {
    {"w", 50, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"never", 9, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 0, 1},
    {"b", 7, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 1.0, 0, 1, 1},
    {"long", 300000, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
};
enum { ALL = 4, SHORT_ONES = 3 };
/* What a reading of the data of the first three does: five arrays, each looked for and read. */
enum { CALLS_OF_A_READING = 5 * 2 };

static struct model *stepped(int count, uint64_t seed, int steps) {
    mofo_options options = default_options();
    struct model *model;
    int t;
    options.master_weights = 1;
    options.seed = seed;
    options.rounding = MOFO_ROUNDING_STOCHASTIC;
    model = model_whole(&options, specs, count);
    for (t = 1; t <= steps; t++) {
        model_step(model, t);
    }
    return model;
}

static int32_t armed_save(struct model *model, enum fault what, int error, int when) {
    int32_t status;
    arm(what, error, when);
    status = mofo_save(model->optimizer, "file");
    armed = 0;
    return status;
}

static int32_t armed_load(struct model *model, enum fault what, int error, int when) {
    int32_t status;
    arm(what, error, when);
    status = mofo_load(model->optimizer, "file");
    armed = 0;
    return status;
}

/* The position of the last `letter`, or of the first; counted from 1. */
static int last_call(char letter) {
    const char *found = strrchr(log_of_calls, letter);
    REQUIRE(found != NULL);
    return (int)(found - log_of_calls) + 1;
}

static int first_call(char letter) {
    const char *found = strchr(log_of_calls, letter);
    REQUIRE(found != NULL);
    return (int)(found - log_of_calls) + 1;
}

static void every_call_of_a_save(void) {
    static const struct {
        enum fault what;
        int error;
        const char *reason;
    } faults[] = {{FAILS, ENOSPC, "No space left"},
                  {FAILS, EIO, "Input/output error"},
                  {ENDS, 0, ""},
                  {INTERRUPTED, EINTR, ""},
                  {SHORT, 0, ""},
                  {KILLS, 0, ""}};
    struct model *old = stepped(ALL, 1, 1);
    struct model *model = stepped(ALL, 1, 2);
    struct bytes olds = saved_to_memory(old->optimizer);
    struct bytes news = saved_to_memory(model->optimizer);
    struct bytes before = model_snapshot(model);
    int total, rename_at, mode_at, n;
    size_t f;
    int failures[3] = {0, 0, 0};
    CASE("%s", "a save without faults");
    CHECK_OK(mofo_save(old->optimizer, "file"));
    CHECK_OK(armed_save(model, NOTHING, 0, 0));
    printf("the calls of a save: %s\n", log_of_calls);
    total = calls;
    rename_at = last_call('N');
    mode_at = last_call('M');
    /* All is written, then on the disk, then there under its name, which then is on the disk too. */
    CHECK(rename_at == first_call('N'));
    CHECK(last_call('W') < first_call('F'));
    /* Nobody reads in the new file what the old one kept from him. */
    CHECK(mode_at == first_call('M'));
    CHECK(mode_at < first_call('W'));
    CHECK(first_call('F') < rename_at);
    CHECK(rename_at < last_call('F'));
    CHECK(first_call('W') < last_call('W'));
    check_file("file", &news);
    for (f = 0; f < sizeof faults / sizeof faults[0]; f++) {
        for (n = 1; n <= total; n++) {
            int32_t status = MOFO_OK;
            file_write("file", olds.data, olds.size);
            CASE("a save, fault %d (errno %d) at call %d of %.100s", (int)faults[f].what, faults[f].error, n, log_of_calls);
            if (faults[f].what == KILLS) {
                const pid_t child = begin_child();
                int how = 0;
                if (child == 0) {
                    (void)armed_save(model, KILLS, 0, n);
                    _exit(1);
                }
                REQUIRE(waitpid(child, &how, 0) == child);
                CHECK(WIFSIGNALED(how));
                CHECK_U64(temporary_files("."), n > 1 && n <= rename_at);
                if (n > 1 && n <= rename_at) {
                    char name[64];
                    /* The child counts on from where this process is. */
                    DIR *list = opendir(".");
                    struct dirent *entry;
                    REQUIRE(list != NULL);
                    while ((entry = readdir(list)) != NULL) {
                        if (is_temporary(entry->d_name)) {
                            snprintf(name, sizeof name, "%.60s", entry->d_name);
                        }
                    }
                    closedir(list);
                    REQUIRE(remove(name) == 0);
                }
                check_file("file", n <= rename_at ? &olds : &news);
                continue;
            }
            status = armed_save(model, faults[f].what, faults[f].error, n);
            if (!happened || faults[f].what == INTERRUPTED || faults[f].what == SHORT || n == mode_at) {
                CHECK_OK(status);
                check_file("file", &news);
            } else {
                CHECK_STATUS(status, MOFO_ERROR_IO);
                CHECK_TEXT(mofo_last_error(), faults[f].reason);
                check_file("file", n <= rename_at ? &olds : &news);
                failures[faults[f].what == ENDS]++;
            }
            CHECK_U64(count_files(".", ""), 1);
            check_unchanged(model, &before);
            if (faults[f].error == EIO) {
                CHECK_OK(mofo_save(model->optimizer, "file"));
                check_file("file", &news);
            }
        }
    }
    CHECK_U64((uint64_t)failures[0], 2 * ((uint64_t)total - 1));
    CHECK(failures[1] >= 8);
    /* Some file systems cannot sync a folder. */
    CASE("%s", "a folder that cannot be synced");
    CHECK_OK(armed_save(model, FAILS, EINVAL, total));
    CHECK(happened);
    REQUIRE(remove("file") == 0);
    bytes_free(&olds);
    bytes_free(&news);
    bytes_free(&before);
    model_free(old);
    model_free(model);
}

/* After a load that broke off while it was changing things. */
static void check_half_loaded(struct model *model, const struct model *as_before) {
    struct bytes file = file_read("file");
    struct bytes written = {NULL, 0};
    mofo_step_report report;
    mofo_step_args args = default_args();
    uint64_t number = 77;
    int n;
    bytes_append(&written, file.data, file.size);
    memset(&report, 0x5A, sizeof report);
    args.report = &report;
    args.report_size = sizeof report;
    CHECK_STATUS(mofo_step(model->optimizer, &args), MOFO_ERROR_INVALID_STATE);
    CHECK_TEXT(mofo_last_error(), "broke off half-way");
    CHECK_STATUS(mofo_save(model->optimizer, "file"), MOFO_ERROR_INVALID_STATE);
    CHECK_TEXT(mofo_last_error(), "broke off half-way");
    CHECK_STATUS(mofo_save(model->optimizer, "other"), MOFO_ERROR_INVALID_STATE);
    CHECK_STATUS(mofo_save_size(model->optimizer, &number), MOFO_ERROR_INVALID_STATE);
    CHECK_TEXT(mofo_last_error(), "broke off half-way");
    CHECK_STATUS(mofo_save_to_memory(model->optimizer, written.data, written.size, &number), MOFO_ERROR_INVALID_STATE);
    CHECK_TEXT(mofo_last_error(), "broke off half-way");
    CHECK_U64(number, 77);
    CHECK_BYTES(written.data, file.data, file.size);
    check_file("file", &file);
    CHECK_U64(count_files(".", ""), 1);
    /* Only a load makes it good again, and one that succeeds. */
    CHECK_STATUS(mofo_load_from_memory(model->optimizer, file.data, file.size - 1), MOFO_ERROR_CHECKPOINT);
    CHECK_STATUS(mofo_load(model->optimizer, "other"), MOFO_ERROR_IO);
    CHECK_STATUS(mofo_step(model->optimizer, NULL), MOFO_ERROR_INVALID_STATE);
    REQUIRE_OK(mofo_set_step_count(model->optimizer, model->indices[0], 3));
    CHECK_STATUS(mofo_step(model->optimizer, NULL), MOFO_ERROR_INVALID_STATE);
    for (n = 0; n < model->count; n++) {
        CHECK_BYTES(model->tensors[n].param, as_before->tensors[n].param, model_param_bytes(model, n));
    }
    bytes_free(&file);
    bytes_free(&written);
}

static void every_call_of_a_load(int count) {
    static const struct {
        enum fault what;
        int error;
        int32_t status;
        const char *reason;
    } faults[] = {{FAILS, EIO, MOFO_ERROR_IO, "Input/output error"},
                  {ENDS, 0, MOFO_ERROR_IO, "cannot read file"},
                  {CHANGES, 0, MOFO_ERROR_CHECKPOINT, "file: "},
                  {INTERRUPTED, EINTR, MOFO_OK, ""},
                  {SHORT, 0, MOFO_OK, ""}};
    struct model *from = stepped(count, 1, 2);
    struct model *as_before = stepped(count, 2, 3);
    struct bytes saved = saved_to_memory(from->optimizer);
    struct bytes before = model_snapshot(as_before);
    int unchanged[3] = {0, 0, 0};
    int half[3] = {0, 0, 0};
    int total, n;
    size_t f;
    CASE("%s", "a load without faults");
    CHECK_OK(mofo_save(from->optimizer, "file"));
    {
        struct model *model = stepped(count, 2, 3);
        CHECK_OK(armed_load(model, NOTHING, 0, 0));
        model_free(model);
    }
    printf("the calls of a load: %s\n", log_of_calls);
    total = calls;
    if (count == SHORT_ONES) {
        CHECK(total > 2 * CALLS_OF_A_READING);
        CHECK(strcmp(log_of_calls + total - CALLS_OF_A_READING, "LRLRLRLRLR") == 0);
    }
    for (f = 0; f < sizeof faults / sizeof faults[0]; f++) {
        for (n = 1; n <= total; n++) {
            struct model *model = stepped(count, 2, 3);
            int32_t status = armed_load(model, faults[f].what, faults[f].error, n);
            uint64_t bytes;
            CASE("a load, fault %d at call %d of %.100s", (int)faults[f].what, n, log_of_calls);
            if (!happened || faults[f].status == MOFO_OK) {
                CHECK_OK(status);
            } else {
                CHECK_STATUS(status, faults[f].status);
                CHECK_TEXT(mofo_last_error(), faults[f].reason);
                if (mofo_save_size(model->optimizer, &bytes) == MOFO_OK) {
                    unchanged[f]++;
                    check_unchanged(model, &before);
                } else {
                    half[f]++;
                    /* Not while the file was read for the first time. */
                    CHECK(count != SHORT_ONES || n > total - CALLS_OF_A_READING);
                    check_half_loaded(model, as_before);
                }
                CHECK_OK(mofo_load(model->optimizer, "file"));
            }
            {
                struct bytes now = saved_to_memory(model->optimizer);
                CHECK_U64(now.size, saved.size);
                CHECK_BYTES(now.data, saved.data, saved.size);
                bytes_free(&now);
            }
            {
                /* With the seed of the file. */
                struct model *unstopped = stepped(count, 1, 2);
                int i;
                for (i = 0; i < count; i++) {
                    memcpy(model->tensors[i].param, unstopped->tensors[i].param, model_param_bytes(model, i));
                }
                model_step(model, 3);
                model_step(unstopped, 3);
                check_same_models(model, unstopped, 3);
                model_free(unstopped);
            }
            model_free(model);
        }
    }
    CASE("%s", "how loads broke off");
    CHECK(unchanged[0] > 5 && unchanged[1] > 5 && unchanged[2] > 5);
    CHECK(half[0] >= 5 && half[1] >= 5 && half[2] >= 5);
    REQUIRE(remove("file") == 0);
    bytes_free(&saved);
    bytes_free(&before);
    model_free(from);
    model_free(as_before);
}

int main(void) {
    folder_begin();
    every_call_of_a_save();
    every_call_of_a_load(SHORT_ONES);
    if (!check_quick()) {
        every_call_of_a_load(ALL);
    }
    folder_end();
    return check_finish();
}
