/* The file that mofo_save writes: where it goes, what it replaces and what it leaves alone, and that there is always a
 * whole one. */

/* For setgroups; POSIX has none. */
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE
#define _POSIX_C_SOURCE 200809L

#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <time.h>

#include "checkpoint.h"

static const struct spec specs[] = {
    {"w", 5000, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, MOFO_INHERIT, 0, 1, 1},
    {"b", 7, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32, 1.0, 0, 1, 1},
};
enum { COUNT = 2 };

static struct model *stepped(int steps) {
    mofo_options options = default_options();
    struct model *model;
    int t;
    options.master_weights = 1;
    model = model_whole(&options, specs, COUNT);
    for (t = 1; t <= steps; t++) {
        model_step(model, t);
    }
    return model;
}

/* Neither saving to nor loading from `path` is possible; nothing has changed. */
static void check_refused(struct model *model, const char *path, const char *save_says, const char *load_says) {
    struct bytes before = model_snapshot(model);
    CASE("path %.200s", path);
    CHECK_STATUS(mofo_save(model->optimizer, path), MOFO_ERROR_IO);
    CHECK_TEXT(mofo_last_error(), save_says);
    CHECK_STATUS(mofo_load(model->optimizer, path), MOFO_ERROR_IO);
    CHECK_TEXT(mofo_last_error(), load_says);
    check_unchanged(model, &before);
    CHECK_U64(temporary_files("."), 0);
    bytes_free(&before);
}

static void what_is_no_file(void) {
    struct model *model = stepped(1);
    char name[6000];
    struct stat found;
    REQUIRE(mkdir("folder", 0755) == 0);
    check_refused(model, "missing/file", "missing", "No such file");
    check_refused(model, "missing/", "cannot write", "No such file");
    check_refused(model, "folder", "not a regular file", "not a regular file");
    check_refused(model, "folder/", "not a regular file", "not a regular file");
    check_refused(model, "folder/.", "not a regular file", "not a regular file");
    check_refused(model, "folder/..", "not a regular file", "not a regular file");
    check_refused(model, ".", "not a regular file", "not a regular file");
    check_refused(model, "/", "not a regular file", "not a regular file");
    CHECK_U64(count_files("folder", ""), 0);
    file_write("file", "x", 1);
    check_refused(model, "file/inside", "Not a directory", "Not a directory");
    check_refused(model, "file/", "Not a directory", "Not a directory");
    check_refused(model, "new/", "the name of a folder", "No such file or directory");
    REQUIRE(remove("file") == 0);
    memset(name, 'n', sizeof name);
    name[300] = 0;
    check_refused(model, name, "name too long", "name too long");
    name[300] = 'n';
    name[sizeof name - 1] = 0;
    check_refused(model, name, "cannot write nnn", "cannot read nnn");
    REQUIRE(symlink("loop", "loop") == 0);
    check_refused(model, "loop", "symbolic link", "symbolic link");
    REQUIRE(remove("loop") == 0);

    CASE("%s", "a FIFO");
    REQUIRE(mkfifo("fifo", 0600) == 0);
    {
        /* To open one waits for the other end: a child is ended if it comes to that. */
        pid_t child;
        child = begin_child();
        if (child == 0) {
            alarm(check_quick() ? 60 : 20);
            check_refused(model, "fifo", "not a regular file", "not a regular file");
            model_free(model);
            end_child();
        }
        check_child(child);
    }
    REQUIRE(stat("fifo", &found) == 0);
    CHECK(S_ISFIFO(found.st_mode));
    REQUIRE(remove("fifo") == 0);
    REQUIRE(rmdir("folder") == 0);
    model_free(model);
}

/* Longest names, other folders, and bytes that are no UTF-8. */
static void names_of_files(void) {
    struct model *model = stepped(2);
    struct bytes saved = saved_to_memory(model->optimizer);
    char longest[256];
    char absolute[1024];
    const char *names[5];
    size_t n;
    memset(longest, 'n', 255);
    longest[255] = 0;
    snprintf(absolute, sizeof absolute, "%s/absolute", working_folder);
    names[0] = longest;
    names[1] = absolute;
    names[2] = "./here";
    names[3] = "folder/../folder/there";
#ifdef __linux__
    names[4] = "\xFF\xFE bytes";
#else
    names[4] = "\xC3\xA9";
#endif
    REQUIRE(mkdir("folder", 0755) == 0);
    for (n = 0; n < 5; n++) {
        int again;
        for (again = 0; again < 2; again++) {
            CASE("file %.100s", names[n]);
            CHECK_OK(mofo_save(model->optimizer, names[n]));
            check_file(names[n], &saved);
            CHECK_U64(count_files("folder", "."), 0);
            CHECK_OK(mofo_load(model->optimizer, names[n]));
        }
        REQUIRE(remove(names[n]) == 0);
    }
    REQUIRE(rmdir("folder") == 0);
    bytes_free(&saved);
    model_free(model);
}

static void links(void) {
    struct model *old = stepped(1);
    struct model *model = stepped(2);
    struct bytes before = saved_to_memory(old->optimizer);
    struct bytes saved = saved_to_memory(model->optimizer);
    struct stat found;
    CASE("%s", "a symbolic link to a file in another folder");
    REQUIRE(mkdir("folder", 0755) == 0);
    CHECK_OK(mofo_save(old->optimizer, "folder/target"));
    REQUIRE(symlink("folder/target", "link") == 0 && symlink("link", "chain") == 0);
    CHECK_OK(mofo_save(model->optimizer, "chain"));
    REQUIRE(lstat("link", &found) == 0);
    CHECK(S_ISLNK(found.st_mode));
    REQUIRE(lstat("chain", &found) == 0);
    CHECK(S_ISLNK(found.st_mode));
    REQUIRE(lstat("folder/target", &found) == 0);
    CHECK(S_ISREG(found.st_mode));
    check_file("folder/target", &saved);
    CHECK_U64(temporary_files("folder"), 0);
    CHECK_OK(mofo_load(model->optimizer, "chain"));

    CASE("%s", "a symbolic link to a file that is not there yet");
    REQUIRE(remove("folder/target") == 0);
    CHECK_STATUS(mofo_load(model->optimizer, "chain"), MOFO_ERROR_IO);
    CHECK_OK(mofo_save(model->optimizer, "chain"));
    REQUIRE(lstat("link", &found) == 0);
    CHECK(S_ISLNK(found.st_mode));
    REQUIRE(lstat("chain", &found) == 0);
    CHECK(S_ISLNK(found.st_mode));
    check_file("chain", &saved);
    CHECK_U64(count_files("folder", ""), 1);
    REQUIRE(remove("chain") == 0 && remove("link") == 0);
    (void)remove("folder/target");
    REQUIRE(symlink("nowhere/target", "link") == 0);
    CHECK_STATUS(mofo_save(model->optimizer, "link"), MOFO_ERROR_IO);
    REQUIRE(lstat("link", &found) == 0);
    CHECK(S_ISLNK(found.st_mode));
    REQUIRE(remove("link") == 0 && rmdir("folder") == 0);

    CASE("%s", "a second name");
    CHECK_OK(mofo_save(old->optimizer, "file"));
    REQUIRE(link("file", "second") == 0);
    CHECK_OK(mofo_save(model->optimizer, "file"));
    check_file("file", &saved);
    check_file("second", &before);
    REQUIRE(remove("file") == 0 && remove("second") == 0);
    bytes_free(&before);
    bytes_free(&saved);
    model_free(old);
    model_free(model);
}

static void permissions(void) {
    static const mode_t modes[] = {0600, 0640, 0644, 0666, 0444, 0400, 0755};
    static const mode_t masks[] = {0022, 0077, 0000, 0027};
    struct model *model = stepped(1);
    struct stat found;
    size_t n;
    for (n = 0; n < sizeof modes / sizeof modes[0]; n++) {
        CASE("permissions %o", (unsigned)modes[n]);
        file_write("file", "x", 1);
        REQUIRE(chmod("file", modes[n]) == 0);
        CHECK_OK(mofo_save(model->optimizer, "file"));
        REQUIRE(stat("file", &found) == 0);
        CHECK_U64(found.st_mode & 07777, modes[n]);
        CHECK(found.st_size > 60000);
        REQUIRE(remove("file") == 0);
    }
    for (n = 0; n < sizeof masks / sizeof masks[0]; n++) {
        const mode_t before = umask(masks[n]);
        CASE("a new file with umask %o", (unsigned)masks[n]);
        CHECK_OK(mofo_save(model->optimizer, "file"));
        (void)umask(before);
        REQUIRE(stat("file", &found) == 0);
        CHECK_U64(found.st_mode & 07777, 0666 & ~masks[n]);
        REQUIRE(remove("file") == 0);
    }
    model_free(model);
}

/* Root may write everywhere: the child becomes somebody who may not. 0 if it cannot. */
static int becomes_nobody(void) {
    if (geteuid() != 0) {
        return 1;
    }
    return setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0 && geteuid() == 65534;
}

enum { DONE = 0, CANNOT = 42 };

static void what_is_not_allowed(void) {
    struct model *model = stepped(2);
    struct bytes saved = saved_to_memory(model->optimizer);
    pid_t child;
    int status = -1;
    CASE("%s", "without permission");
    REQUIRE(chmod(".", 0755) == 0);
    REQUIRE(mkdir("locked", 0755) == 0 && mkdir("open", 0777) == 0 && chmod("open", 0777) == 0);
    CHECK_OK(mofo_save(model->optimizer, "locked/file"));
    CHECK_OK(mofo_save(model->optimizer, "locked/secret"));
    REQUIRE(chmod("locked/file", 0666) == 0 && chmod("locked/secret", 0) == 0 && chmod("locked", 0555) == 0);
    child = begin_child();
    if (child == 0) {
        if (!becomes_nobody()) {
            _exit(CANNOT);
        }
        model_step(model, 3);
        CHECK_STATUS(mofo_save(model->optimizer, "locked/new"), MOFO_ERROR_IO);
        CHECK_TEXT(mofo_last_error(), "Permission denied");
        CHECK_TEXT(mofo_last_error(), "locked");
        CHECK_STATUS(mofo_save(model->optimizer, "locked/file"), MOFO_ERROR_IO);
        CHECK_TEXT(mofo_last_error(), "Permission denied");
        check_file("locked/file", &saved);
        CHECK_STATUS(mofo_load(model->optimizer, "locked/secret"), MOFO_ERROR_IO);
        CHECK_TEXT(mofo_last_error(), "Permission denied");
        CHECK_OK(mofo_load(model->optimizer, "locked/file"));
        /* A folder that takes files and does not show them. */
        CASE("%s", "a folder that cannot be read");
        REQUIRE(mkdir("open/hidden", 0300) == 0);
        CHECK_OK(mofo_save(model->optimizer, "open/hidden/file"));
        CHECK_OK(mofo_load(model->optimizer, "open/hidden/file"));
        REQUIRE(chmod("open/hidden", 0700) == 0);
        check_file("open/hidden/file", &saved);
        CHECK_U64(count_files("open/hidden", ""), 1);
        REQUIRE(remove("open/hidden/file") == 0 && rmdir("open/hidden") == 0);
        bytes_free(&saved);
        model_free(model);
        end_child();
    }
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    if (WEXITSTATUS(status) == CANNOT) {
        SKIP("root cannot become anybody else here, and may write everywhere");
    } else {
        CHECK(WEXITSTATUS(status) == DONE);
    }
    check_file("locked/file", &saved);
    CHECK_U64(count_files("locked", ""), 2);
    REQUIRE(chmod("locked", 0755) == 0);
    REQUIRE(remove("locked/file") == 0 && remove("locked/secret") == 0 && rmdir("locked") == 0);
    REQUIRE(rmdir("open") == 0);
    bytes_free(&saved);
    model_free(model);
}

/* What a process that died has left is removed; what a process is still writing, and what is no file, is not. */
static void left_behind(void) {
    struct model *model = stepped(1);
    struct bytes saved = saved_to_memory(model->optimizer);
    int alive;
    CASE("%s", "temporary files of others");
    file_write(".file.mofo-0.tmp", "dead", 4);
    file_write(".file.mofo-3.tmp", "dead", 4);
    file_write(".file.mofo-1.tmp", "alive", 5);
    file_write(".other.mofo-0.tmp", "another's", 9);
    REQUIRE(mkdir(".file.mofo-2.tmp", 0700) == 0);
    alive = open(".file.mofo-1.tmp", O_RDONLY);
    REQUIRE(alive >= 0 && flock(alive, LOCK_EX) == 0);
    CHECK_OK(mofo_save(model->optimizer, "file"));
    check_holds("file", &saved);
    CHECK_U64(temporary_files("."), 3);
    {
        struct bytes left = file_read(".file.mofo-1.tmp");
        CHECK(left.size == 5 && memcmp(left.data, "alive", 5) == 0);
        bytes_free(&left);
    }
    close(alive);
    CHECK_OK(mofo_save(model->optimizer, "file"));
    CHECK_U64(temporary_files("."), 2);
    REQUIRE(remove(".other.mofo-0.tmp") == 0 && rmdir(".file.mofo-2.tmp") == 0);

    CASE("%s", "all numbers that are looked at are taken");
    {
        char name[64];
        int n;
        for (n = 0; n < 12; n++) {
            snprintf(name, sizeof name, ".file.mofo-%d.tmp", n);
            REQUIRE(mkdir(name, 0700) == 0);
        }
        CHECK_OK(mofo_save(model->optimizer, "file"));
        check_holds("file", &saved);
        for (n = 0; n < 12; n++) {
            snprintf(name, sizeof name, ".file.mofo-%d.tmp", n);
            REQUIRE(rmdir(name) == 0);
        }
    }
    REQUIRE(remove("file") == 0);
    bytes_free(&saved);
    model_free(model);
}

/* Files may not grow beyond some size: as on a full disk, a write comes back short, and the next one fails. */
static void full_disk(void) {
    struct model *old = stepped(1);
    struct model *model = stepped(2);
    struct bytes before = saved_to_memory(old->optimizer);
    struct bytes saved = saved_to_memory(model->optimizer);
    pid_t child;
    CHECK_OK(mofo_save(old->optimizer, "file"));
    child = begin_child();
    if (child == 0) {
        const size_t limits[] = {0, 1, 8, 1000, saved.size / 2, saved.size - 1};
        size_t n;
        struct rlimit limit;
        struct bytes snapshot = model_snapshot(model);
        REQUIRE(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
        REQUIRE(getrlimit(RLIMIT_FSIZE, &limit) == 0);
        /* What the test prints goes to a file too. */
        for (n = 0; n < sizeof limits / sizeof limits[0]; n++) {
            const rlim_t usual = limit.rlim_cur;
            int32_t status;
            limit.rlim_cur = (rlim_t)limits[n];
            REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
            status = mofo_save(model->optimizer, "file");
            limit.rlim_cur = usual;
            REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
            CASE("files of %d bytes at most", (int)limits[n]);
            CHECK_STATUS(status, MOFO_ERROR_IO);
            CHECK_TEXT(mofo_last_error(), "File too large");
            check_file("file", &before);
            CHECK_U64(count_files(".", ""), 1);
            CHECK_OK(mofo_load(old->optimizer, "file"));
            check_unchanged(model, &snapshot);
        }
        limit.rlim_cur = (rlim_t)saved.size;
        REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
        {
            const int32_t status = mofo_save(model->optimizer, "file");
            limit.rlim_cur = limit.rlim_max;
            REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
            CASE("%s", "files as large as this one");
            CHECK_OK(status);
            check_file("file", &saved);
        }
        bytes_free(&snapshot);
        bytes_free(&before);
        bytes_free(&saved);
        model_free(old);
        model_free(model);
        end_child();
    }
    CASE("%s", "a full disk");
    check_child(child);
    REQUIRE(remove("file") == 0);
    bytes_free(&before);
    bytes_free(&saved);
    model_free(old);
    model_free(model);
}

/* Saves one and the other in turn, until it is ended. */
static pid_t saving_in_a_loop(struct model *one, struct model *other) {
    pid_t child;
    child = begin_child();
    if (child == 0) {
        for (;;) {
            if (mofo_save(one->optimizer, "file") != MOFO_OK || mofo_save(other->optimizer, "file") != MOFO_OK) {
                _exit(1);
            }
        }
    }
    return child;
}

static void check_is_one_of(const struct bytes *one, const struct bytes *other) {
    struct bytes found = file_read("file");
    const struct bytes *same = found.size == one->size && memcmp(found.data, one->data, one->size) == 0 ? one : other;
    if (CHECK_U64(found.size, same->size)) {
        CHECK_BYTES(found.data, same->data, found.size);
    }
    bytes_free(&found);
}

/* A process that dies while it saves leaves a whole file, whenever that is. */
static void killed_at_any_moment(void) {
    struct model *one = stepped(1);
    struct model *other = stepped(2);
    struct model *loaded = stepped(0);
    struct bytes ones = saved_to_memory(one->optimizer);
    struct bytes others = saved_to_memory(other->optimizer);
    const int rounds = check_quick() ? 4 : 25;
    int round;
    CHECK_OK(mofo_save(one->optimizer, "file"));
    for (round = 0; round < rounds; round++) {
        pid_t child = saving_in_a_loop(one, other);
        struct timespec pause = {0, 0};
        int status = 0;
        CASE("killed while saving, round %d", round);
        pause.tv_nsec = (long)(reference_mix64((uint64_t)round) % 50000000u);
        nanosleep(&pause, NULL);
        REQUIRE(kill(child, SIGKILL) == 0);
        REQUIRE(waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status));
        check_is_one_of(&ones, &others);
        CHECK_OK(mofo_load(loaded->optimizer, "file"));
        CHECK_AT_MOST(temporary_files("."), 1);
    }
    CHECK_OK(mofo_save(one->optimizer, "file"));
    CHECK_U64(temporary_files("."), 0);
    REQUIRE(remove("file") == 0);
    bytes_free(&ones);
    bytes_free(&others);
    model_free(one);
    model_free(other);
    model_free(loaded);
}

/* Two processes save to one path while a third loads from it: it always finds a whole file. */
static void at_the_same_time(void) {
    struct model *one = stepped(1);
    struct model *other = stepped(2);
    struct model *loaded = stepped(0);
    struct bytes ones = saved_to_memory(one->optimizer);
    struct bytes others = saved_to_memory(other->optimizer);
    const int loads = check_quick() ? 10 : 200;
    pid_t children[2];
    int n;
    CHECK_OK(mofo_save(one->optimizer, "file"));
    children[0] = saving_in_a_loop(one, other);
    children[1] = saving_in_a_loop(one, other);
    CASE("%s", "while others save");
    for (n = 0; n < loads; n++) {
        struct timespec pause = {0, 1000000};
        CHECK_OK(mofo_load(loaded->optimizer, "file"));
        check_is_one_of(&ones, &others);
        nanosleep(&pause, NULL);
    }
    for (n = 0; n < 2; n++) {
        int status = 0;
        REQUIRE(kill(children[n], SIGKILL) == 0);
        REQUIRE(waitpid(children[n], &status, 0) == children[n]);
        CHECK(WIFSIGNALED(status));
    }
    CHECK_OK(mofo_save(one->optimizer, "file"));
    CHECK_U64(temporary_files("."), 0);
    REQUIRE(remove("file") == 0);
    bytes_free(&ones);
    bytes_free(&others);
    model_free(one);
    model_free(other);
    model_free(loaded);
}

int main(void) {
    folder_begin();
    what_is_no_file();
    names_of_files();
    links();
    permissions();
    what_is_not_allowed();
    left_behind();
    full_disk();
    killed_at_any_moment();
    at_the_same_time();
    folder_end();
    return check_finish();
}
