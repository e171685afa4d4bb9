/* Checkpoints of an optimizer on CUDA: the same bytes as on the CPU, from one to the other and back, while steps are on
 * their way, and when the driver fails. */

/* For RTLD_NEXT. */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <time.h>

#include "checkpoint.h"
#include "cuda_buffers.h"

/* The context breaks at this call of read or write from now on, counted from 1; 0: at none. */
static int breaks_at;
static int calls;

static void count_call(void) {
    if (breaks_at > 0 && ++calls == breaks_at) {
        (void)mofo_emulated_fail(CUDA_ERROR_LAUNCH_FAILED);
    }
}

/* These take the place of the C library's for the library too, linked or loaded. */
ssize_t read(int file, void *to, size_t size) {
    static ssize_t (*next)(int, void *, size_t);
    if (next == NULL) {
        *(void **)&next = dlsym(RTLD_NEXT, "read");
    }
    count_call();
    return next(file, to, size);
}

ssize_t write(int file, const void *from, size_t size) {
    static ssize_t (*next)(int, const void *, size_t);
    if (next == NULL) {
        *(void **)&next = dlsym(RTLD_NEXT, "write");
    }
    count_call();
    return next(file, from, size);
}

static mofo_options options_of(int kind) {
    mofo_options options = default_options();
    options.learning_rate = 0.01;
    options.seed = 11;
    options.master_weights = kind != 1;
    options.state_dtype = kind == 0 ? MOFO_DTYPE_F32 : MOFO_DTYPE_BF16;
    options.filter = kind == 1 ? MOFO_FILTER_RANDOM : MOFO_FILTER_MOMENTUM;
    return options;
}
enum { KINDS = 3 };

/* Data goes through a buffer of 1 MiB. */
enum { ONE_PART = 5000, TWO_PARTS = 270000 };

/* With tensors of several types, one of them without a gradient, one in the caller's memory, one that is longer. */
static struct twins *model_twins(const mofo_options *options, uint64_t longest) {
    struct twins *twins = twins_new(options);
    mofo_tensor like;
    void *moments = buffer_new(700 * sizeof(float));
    twins_add_mixed(twins);
    like = named_tensor("owned", 700);
    like.param_dtype = MOFO_DTYPE_BF16;
    like.exp_avg = moments;
    like.exp_avg_sq = moments;
    twins_add(twins, &like);
    free(moments);
    twins_add_plain(twins, "long", longest, 1, MOFO_DTYPE_BF16, MOFO_DTYPE_BF16);
    twins_add_plain(twins, "never", 44, 1, MOFO_DTYPE_F32, MOFO_DTYPE_F32);
    return twins;
}

static void run(struct twins *twins, int from, int to) {
    int t;
    for (t = from; t <= to; t++) {
        struct twin *never = &twins->tensors[twins->count - 1];
        twins_gradients(twins, (uint64_t)t);
        REQUIRE_OK(mofo_bind_tensor(twins->host, never->index, never->host.param, NULL));
        REQUIRE_OK(mofo_bind_tensor(twins->device, never->index, never->device.param, NULL));
        twins_step(twins, NULL);
    }
}

/* Parameters are not in a checkpoint. */
static void copy_params(struct twins *to, const struct twins *from) {
    uint64_t n;
    for (n = 0; n < to->count; n++) {
        const size_t bytes = param_bytes(&from->tensors[n].host);
        memcpy(to->tensors[n].host.param, from->tensors[n].host.param, bytes);
        device_write(to->tensors[n].device.param, from->tensors[n].host.param, bytes);
    }
}

static void check_saved(mofo_optimizer *optimizer, const struct bytes *expected) {
    struct bytes now = saved_to_memory(optimizer);
    if (CHECK_U64(now.size, expected->size)) {
        CHECK_BYTES(now.data, expected->data, now.size);
    }
    bytes_free(&now);
}

/* What the one saves the other loads. */
static void there_and_back(void) {
    int kind, used;
    for (kind = 0; kind < KINDS; kind++) {
        for (used = 0; used <= 1; used++) {
            const mofo_options options = options_of(kind);
            mofo_options other = options;
            const uint64_t longest = kind == 0 && !used ? TWO_PARTS : ONE_PART;
            struct twins *twins = model_twins(&options, longest);
            struct twins *resumed;
            struct bytes host, device;
            CASE("there and back, kind %d, used %d", kind, used);
            run(twins, 1, 2);
            host = saved_to_memory(twins->host);
            device = saved_to_memory(twins->device);
            CHECK_U64(device.size, host.size);
            CHECK_BYTES(device.data, host.data, host.size);
            CHECK_OK(mofo_save(twins->device, "from-device"));
            check_file("from-device", &host);
            CHECK_OK(mofo_save(twins->host, "from-host"));

            other.seed = 12;
            resumed = model_twins(&other, longest);
            if (used) {
                run(resumed, 7, 8);
            }
            copy_params(resumed, twins);
            CHECK_OK(mofo_load(resumed->host, "from-device"));
            CHECK_OK(mofo_load(resumed->device, "from-host"));
            check_saved(resumed->host, &host);
            check_saved(resumed->device, &host);
            run(twins, 3, longest == ONE_PART ? 4 : 3);
            run(resumed, 3, longest == ONE_PART ? 4 : 3);
            twins_same(resumed);
            bytes_free(&host);
            bytes_free(&device);
            host = saved_to_memory(twins->host);
            check_saved(resumed->host, &host);
            check_saved(resumed->device, &host);
            /* And back, from memory. */
            copy_params(resumed, twins);
            device = saved_to_memory(resumed->device);
            CHECK_OK(mofo_load_from_memory(resumed->host, device.data, device.size));
            CHECK_OK(mofo_load_from_memory(resumed->device, host.data, host.size));
            check_saved(resumed->device, &host);
            bytes_free(&host);
            bytes_free(&device);
            twins_free(resumed);
            twins_free(twins);
        }
    }
    REQUIRE(remove("from-device") == 0 && remove("from-host") == 0);
}

static void pause_stream(void *ctx) {
    struct timespec pause = {0, 80 * 1000 * 1000};
    (void)ctx;
    nanosleep(&pause, NULL);
}

/* A step that is still on its way is waited for: by a save, which has what it does, and by a load, which it cannot
 * spoil afterwards. */
static void while_a_step_is_on_its_way(void) {
    const mofo_options options = options_of(2);
    struct twins *twins = model_twins(&options, ONE_PART);
    mofo_step_args args = default_args();
    CUstream stream;
    struct bytes first, second;
    int n;
    CASE("%s", "a step is on its way");
    REQUIRE_CUDA(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    run(twins, 1, 1);
    first = saved_to_memory(twins->host);
    for (n = 0; n < 3; n++) {
        uint64_t size = 0;
        args.stream = NULL;
        REQUIRE_OK(mofo_step(twins->host, &args));
        second = saved_to_memory(twins->host);
        args.stream = stream;
        REQUIRE_CUDA(cuLaunchHostFunc(stream, pause_stream, NULL));
        REQUIRE_OK(mofo_step(twins->device, &args));
        if (n == 0) {
            check_saved(twins->device, &second);
        } else if (n == 1) {
            CHECK_OK(mofo_save(twins->device, "file"));
            check_file("file", &second);
            REQUIRE(remove("file") == 0);
        } else {
            CHECK_OK(mofo_save_size(twins->device, &size));
            CHECK_U64(size, second.size);
        }
        REQUIRE_CUDA(cuLaunchHostFunc(stream, pause_stream, NULL));
        REQUIRE_OK(mofo_step(twins->device, &args));
        CHECK_OK(mofo_load_from_memory(twins->device, first.data, first.size));
        CHECK_OK(mofo_load_from_memory(twins->host, first.data, first.size));
        REQUIRE_CUDA(cuCtxSynchronize());
        check_saved(twins->device, &first);
        copy_params(twins, twins);
        bytes_free(&second);
    }
    args.stream = NULL;
    run(twins, 2, 2);
    twins_same(twins);
    bytes_free(&first);
    REQUIRE_CUDA(cuStreamDestroy(stream));
    twins_free(twins);
}

/* A call that fails because the context is broken; then it is whole again. */
static void check_broken(int32_t status) {
    breaks_at = 0;
    CHECK_STATUS(status, MOFO_ERROR_CUDA);
    CHECK_TEXT(mofo_last_error(), "CUDA_ERROR_LAUNCH_FAILED");
    REQUIRE(mofo_emulated_recover() == 0);
}

static void the_driver_fails(void) {
    const mofo_options options = options_of(0);
    struct twins *from = model_twins(&options, ONE_PART);
    struct bytes saved, before;
    uint64_t size = 77;
    int n;
    int broken = 0;
    int half = 0;
    CASE("%s", "the driver fails");
    if (!cuda_is_emulated()) {
        SKIP("a real driver does not fail when it is told to");
        twins_free(from);
        return;
    }
    run(from, 1, 1);
    CHECK_OK(mofo_save(from->device, "file"));
    before = file_read("file");
    run(from, 2, 2);
    saved = saved_to_memory(from->device);
    REQUIRE(mofo_emulated_fail(CUDA_ERROR_LAUNCH_FAILED) == 0);
    check_broken(mofo_save_size(from->device, &size));
    REQUIRE(mofo_emulated_fail(CUDA_ERROR_LAUNCH_FAILED) == 0);
    check_broken(mofo_save_to_memory(from->device, saved.data, saved.size, &size));
    CHECK_U64(size, 77);
    REQUIRE(mofo_emulated_fail(CUDA_ERROR_LAUNCH_FAILED) == 0);
    check_broken(mofo_save(from->device, "file"));
    check_file("file", &before);
    check_saved(from->device, &saved);
    for (n = 1; n < 40; n++) {
        int32_t status;
        CASE("the driver fails at write %d of a save", n);
        calls = 0;
        breaks_at = n;
        status = mofo_save(from->device, "file");
        breaks_at = 0;
        if (status == MOFO_OK) {
            REQUIRE(mofo_emulated_recover() == 0);
            check_file("file", &saved);
            file_write("file", before.data, before.size);
        } else {
            broken++;
            check_broken(status);
            check_file("file", &before);
        }
        if (calls < n) {
            break;
        }
    }
    CHECK(broken >= 8 && n < 40);

    CASE("%s", "the driver fails before a load");
    CHECK_OK(mofo_load(from->device, "file"));
    REQUIRE(mofo_emulated_fail(CUDA_ERROR_LAUNCH_FAILED) == 0);
    check_broken(mofo_load_from_memory(from->device, saved.data, saved.size));
    check_saved(from->device, &before);
    for (n = 1; n < 80; n++) {
        int32_t status;
        CASE("the driver fails at read %d of a load", n);
        CHECK_OK(mofo_load_from_memory(from->device, saved.data, saved.size));
        calls = 0;
        breaks_at = n;
        status = mofo_load(from->device, "file");
        breaks_at = 0;
        if (calls < n) {
            CHECK_OK(status);
            break;
        }
        check_broken(status);
        if (mofo_save_size(from->device, &size) == MOFO_OK) {
            check_saved(from->device, &saved);
        } else {
            half++;
            CHECK_STATUS(mofo_step(from->device, NULL), MOFO_ERROR_INVALID_STATE);
            CHECK_TEXT(mofo_last_error(), "broke off half-way");
            CHECK_STATUS(mofo_save(from->device, "file"), MOFO_ERROR_INVALID_STATE);
            check_file("file", &before);
        }
        CHECK_OK(mofo_load(from->device, "file"));
        check_saved(from->device, &before);
    }
    CHECK(half >= 8 && n < 80);
    CASE("%s", "after all failures");
    CHECK_OK(mofo_load(from->host, "file"));
    copy_params(from, from);
    run(from, 2, 3);
    twins_same(from);
    REQUIRE(remove("file") == 0);
    bytes_free(&before);
    bytes_free(&saved);
    twins_free(from);
}

/* State that was loaded and has no tensor, other sizes, or damage: nothing on the device has changed. */
static void refused_loads(void) {
    const mofo_options options = options_of(2);
    struct twins *twins = model_twins(&options, ONE_PART);
    struct bytes saved, now;
    size_t byte;
    run(twins, 1, 1);
    saved = saved_to_memory(twins->device);
    run(twins, 2, 2);
    now = saved_to_memory(twins->device);
    for (byte = 0; byte < saved.size; byte += saved.size / 97) {
        CASE("byte %d damaged", (int)byte);
        saved.data[byte] ^= 4;
        CHECK_STATUS(mofo_load_from_memory(twins->device, saved.data, saved.size), MOFO_ERROR_CHECKPOINT);
        CHECK_STATUS(mofo_load_from_memory(twins->device, saved.data, byte), MOFO_ERROR_CHECKPOINT);
        saved.data[byte] ^= 4;
    }
    CASE("%s", "after refused loads");
    check_saved(twins->device, &now);
    run(twins, 3, 3);
    twins_same(twins);
    bytes_free(&saved);
    bytes_free(&now);
    twins_free(twins);
}

int main(void) {
    cuda_begin();
    folder_begin();
    there_and_back();
    while_a_step_is_on_its_way();
    refused_loads();
    the_driver_fails();
    folder_end();
    return cuda_finish();
}
