/*
 * mofo.hpp: C++17 over mofo.h, and over nothing else. Header only.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 *     mofo::Options options;                              // the defaults of mofo_options_init
 *     options.learning_rate = 1e-4;
 *     mofo::Optimizer optimizer(options);
 *     optimizer.add(mofo::Tensor("w", weights, gradients, numel));   // types are taken from float *
 *     optimizer.step();
 *
 * - What a field or a call means is said in mofo.h; the names are the same.
 * - Every call exists as `try_...`, which returns a `Status` and never throws. Where exceptions are on, it
 *   also exists without the prefix: it returns its result and throws `mofo::Error`. So the header works with
 *   -fno-exceptions and -fno-rtti.
 * - `Options`, `Tensor` and `StepArgs` are the C structs, initialised, with setters for the fields whose type
 *   says less than it could. They own nothing: names, buffers and lists are the caller's and stay alive as
 *   long as mofo.h asks.
 * - An `Optimizer` owns its handle, moves and does not copy. As in C, one thread at a time uses it.
 */

#ifndef MOFO_HPP
#define MOFO_HPP

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__cpp_exceptions)
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>
#endif

#if __cplusplus > 202002L && defined(__has_include)
#if __has_include(<stdfloat>)
#include <stdfloat>
#endif
#endif

#include "mofo.h"

/* What other headers define as macros, until the end of this one: <X11/Xlib.h>, and Apple's <AssertMacros.h>. */
#pragma push_macro("Status")
#pragma push_macro("check")
#undef Status
#undef check

namespace mofo {

/** "As the optimizer has it": `MOFO_INHERIT`. */
inline constexpr double inherit = MOFO_INHERIT;

/** Outcome of a call: errors are negative. */
enum class [[nodiscard]] Status : std::int32_t {
    ok = MOFO_OK,
    skipped = MOFO_SKIPPED,
    invalid_argument = MOFO_ERROR_INVALID_ARGUMENT,
    invalid_buffer = MOFO_ERROR_INVALID_BUFFER,
    not_found = MOFO_ERROR_NOT_FOUND,
    invalid_state = MOFO_ERROR_INVALID_STATE,
    out_of_memory = MOFO_ERROR_OUT_OF_MEMORY,
    unsupported = MOFO_ERROR_UNSUPPORTED,
    not_finite = MOFO_ERROR_NOT_FINITE,
    parallel_for = MOFO_ERROR_PARALLEL_FOR,
    cuda = MOFO_ERROR_CUDA,
    checkpoint = MOFO_ERROR_CHECKPOINT,
    io = MOFO_ERROR_IO,
    internal = MOFO_ERROR_INTERNAL
};

/** Another name of it, for programs in which `Status` is a macro. */
using StatusCode = Status;

/** Whether the call failed. `Status::skipped` is no failure. */
constexpr bool failed(Status status) noexcept { return static_cast<std::int32_t>(status) < 0; }

/** The C name of a status, for example "MOFO_ERROR_INVALID_ARGUMENT". */
inline const char *status_name(Status status) noexcept {
    return mofo_status_name(static_cast<std::int32_t>(status));
}

/** What went wrong in this thread's last failing call. Valid until its next failing call. */
inline const char *last_error() noexcept { return mofo_last_error(); }

enum class Device : std::int32_t { cpu = MOFO_DEVICE_CPU, cuda = MOFO_DEVICE_CUDA };

enum class Dtype : std::int32_t { f32 = MOFO_DTYPE_F32, f16 = MOFO_DTYPE_F16, bf16 = MOFO_DTYPE_BF16 };

enum class Filter : std::int32_t {
    momentum = MOFO_FILTER_MOMENTUM,
    gradient = MOFO_FILTER_GRADIENT,
    update = MOFO_FILTER_UPDATE,
    random = MOFO_FILTER_RANDOM
};

enum class WeightDecayScope : std::int32_t {
    selected = MOFO_WEIGHT_DECAY_SELECTED,
    all = MOFO_WEIGHT_DECAY_ALL
};

enum class Rounding : std::int32_t {
    nearest = MOFO_ROUNDING_NEAREST,
    stochastic = MOFO_ROUNDING_STOCHASTIC
};

enum class CpuTier : std::int32_t {
    best = MOFO_CPU_TIER_BEST,
    portable = MOFO_CPU_TIER_PORTABLE,
    avx2 = MOFO_CPU_TIER_AVX2,
    avx512 = MOFO_CPU_TIER_AVX512
};

#if defined(__cpp_exceptions)
#if defined(__clang__)
#pragma clang diagnostic push
// There is no source file that its virtual table could be in.
#pragma clang diagnostic ignored "-Wweak-vtables"
#pragma clang diagnostic ignored "-Wpadded"
#endif
/** What the throwing calls throw: a status, and the text of `last_error`. */
class Error : public std::runtime_error {
  public:
    Error(Status status, const char *message) : std::runtime_error(message), status_(status) {}

    Status status() const noexcept { return status_; }

  private:
    Status status_;
};
#if defined(__clang__)
#pragma clang diagnostic pop
#endif
#endif

/**
 * The element type that a C++ type stands for. A program with 16-bit types of its own adds them:
 *
 *     template <> struct mofo::dtype_of<my_half> { static constexpr mofo::Dtype value = mofo::Dtype::f16; };
 *
 * `std::uint16_t` stands for none: give `Dtype::f16` or `Dtype::bf16` explicitly.
 */
template <class T> struct dtype_of {
    static_assert(!std::is_same_v<T, T>,
                  "this type has no dtype: pass a mofo::Dtype, or specialise mofo::dtype_of");
};
template <> struct dtype_of<float> {
    static constexpr Dtype value = Dtype::f32;
};
template <class T> struct dtype_of<const T> : dtype_of<T> {};
#if defined(__STDCPP_FLOAT32_T__)
template <> struct dtype_of<std::float32_t> {
    static constexpr Dtype value = Dtype::f32;
};
#endif
#if defined(__STDCPP_FLOAT16_T__)
template <> struct dtype_of<std::float16_t> {
    static constexpr Dtype value = Dtype::f16;
};
#endif
#if defined(__STDCPP_BFLOAT16_T__)
template <> struct dtype_of<std::bfloat16_t> {
    static constexpr Dtype value = Dtype::bf16;
};
#endif

/**
 * One task of a step, as the engine's loop gets it: `task(i)` runs task number `i`. Cheap to copy; any thread
 * may call it; never throws. Dead once the loop has returned.
 */
class Task {
  public:
    Task(mofo_task function, void *context) noexcept : function_(function), context_(context) {}

    void operator()(std::int64_t i) const noexcept { function_(context_, i); }

  private:
    mofo_task function_;
    void *context_;
};

/**
 * Makes a C++ callable an engine's parallel loop: `loop(std::int64_t n, mofo::Task task)` calls `task(i)`
 * once for every i from 0 to n - 1, on any threads, and comes back, by return or by exception, only when none
 * of them is running any more.
 *
 *     mofo::ParallelFor loop([&pool](std::int64_t n, mofo::Task task) { pool.run(n, task); });
 *     options.use(loop);
 *
 * It stays where it is (neither moves nor copies) and must outlive the optimizers that use it.
 *
 * No exception crosses the C border. One that the callable throws is kept, and the step goes on without the
 * tasks that were not run: if nothing has been written yet it fails with `Status::parallel_for` (the throwing
 * calls throw `mofo::Error`), else the library runs them itself and the step succeeds. Either way
 * `take_exception` has the original.
 */
template <class Loop> class ParallelFor {
  public:
    explicit ParallelFor(Loop loop) : loop_(std::move(loop)) {}
    ParallelFor(const ParallelFor &) = delete;
    ParallelFor &operator=(const ParallelFor &) = delete;

    /** The C function, to be passed with `this` as its context. */
    static void call(void *self, std::int64_t n, mofo_task task, void *task_context) noexcept {
        ParallelFor &parallel_for = *static_cast<ParallelFor *>(self);
#if defined(__cpp_exceptions)
        try {
            parallel_for.loop_(n, Task(task, task_context));
        } catch (...) {
            parallel_for.exception_ = std::current_exception();
        }
#else
        parallel_for.loop_(n, Task(task, task_context));
#endif
    }

#if defined(__cpp_exceptions)
    /** The last exception of the callable, if there was one since the last time; then forgets it. */
    std::exception_ptr take_exception() noexcept { return std::exchange(exception_, nullptr); }
#endif

  private:
    Loop loop_;
#if defined(__cpp_exceptions)
    std::exception_ptr exception_;
#endif
};

/** `mofo_options` with its defaults. */
struct Options : mofo_options {
    Options() noexcept : mofo_options() {
        // Cannot fail: the pointer is not NULL, and the size is that of the header.
        (void)mofo_options_init(this, sizeof(mofo_options));
    }

    Options &set(Device value) noexcept { return put(device, value); }
    Options &set(Filter value) noexcept { return put(filter, value); }
    Options &set(WeightDecayScope value) noexcept { return put(weight_decay_scope, value); }
    Options &set(Rounding value) noexcept { return put(rounding, value); }
    Options &set(CpuTier value) noexcept { return put(cpu_tier, value); }
    /** The type of the moments. */
    Options &set_state_dtype(Dtype value) noexcept { return put(state_dtype, value); }

    /** Steps run their tasks in this loop, which must outlive the optimizer. */
    template <class Loop> Options &use(ParallelFor<Loop> &loop) noexcept {
        parallel_for = &ParallelFor<Loop>::call;
        parallel_for_ctx = &loop;
        return *this;
    }

  private:
    template <class Enum> Options &put(std::int32_t &field, Enum value) noexcept {
        field = static_cast<std::int32_t>(value);
        return *this;
    }
};

/** `mofo_tensor` with its defaults. The name is not copied before the tensor is added. */
struct Tensor : mofo_tensor {
    Tensor() noexcept : mofo_tensor() {
        // Cannot fail: the pointer is not NULL, and the size is that of the header.
        (void)mofo_tensor_init(this, sizeof(mofo_tensor));
    }

    /** Not bound yet: set the dtypes if they are not f32, and bind it later. */
    Tensor(const char *tensor_name, std::uint64_t tensor_numel) noexcept : Tensor() {
        name = tensor_name;
        numel = tensor_numel;
    }

    /** Bound, with dtypes taken from the pointers. */
    template <class Param, class Grad>
    Tensor(const char *tensor_name, Param *param_data, Grad *grad_data, std::uint64_t tensor_numel) noexcept
        : Tensor(tensor_name, tensor_numel) {
        set_param(param_data);
        set_grad(grad_data);
    }

    /** Bound, with dtypes that are known when the program runs: from `void *`, as tensors of a file or a framework have. */
    Tensor(const char *tensor_name, void *param_data, Dtype param_type, const void *grad_data, Dtype grad_type,
           std::uint64_t tensor_numel) noexcept
        : Tensor(tensor_name, tensor_numel) {
        set_param(param_data, param_type);
        set_grad(grad_data, grad_type);
    }

    /** The parameter; its dtype is that of the pointer. NULL leaves it to be bound later. */
    template <class T> Tensor &set_param(T *data) noexcept { return set_param(data, dtype_of<T>::value); }
    Tensor &set_param(void *data, Dtype dtype) noexcept {
        param = data;
        param_dtype = static_cast<std::int32_t>(dtype);
        return *this;
    }

    /** The gradient; its dtype is that of the pointer. NULL leaves it to be bound later. */
    template <class T> Tensor &set_grad(T *data) noexcept { return set_grad(data, dtype_of<T>::value); }
    Tensor &set_grad(const void *data, Dtype dtype) noexcept {
        grad = data;
        grad_dtype = static_cast<std::int32_t>(dtype);
        return *this;
    }
};

/** What a step did. */
struct Report : mofo_step_report {
    Report() noexcept : mofo_step_report() {}
};

/** `mofo_step_args` with its defaults. */
struct StepArgs : mofo_step_args {
    StepArgs() noexcept : mofo_step_args() {
        // Cannot fail: the pointer is not NULL, and the size is that of the header.
        (void)mofo_step_args_init(this, sizeof(mofo_step_args));
    }

    /** Step only these tensors: none of them if `count` is 0. The list is not copied. */
    StepArgs &only(const std::uint64_t *indices, std::size_t count) noexcept {
        // An empty vector may have no address, and NULL would mean all tensors.
        static constexpr std::uint64_t none = 0;
        tensors = count == 0 ? &none : indices;
        num_tensors = count;
        return *this;
    }

    /** Write there what the step did. */
    StepArgs &report_to(mofo_step_report &out) noexcept {
        report = &out;
        report_size = sizeof out;
        return *this;
    }
};

/** What a load has found. */
struct LoadReport : mofo_load_report {
    LoadReport() noexcept : mofo_load_report() {}
};

/** `mofo_load_args` with its defaults. */
struct LoadArgs : mofo_load_args {
    LoadArgs() noexcept : mofo_load_args() {
        // Cannot fail: the pointer is not NULL, and the size is that of the header.
        (void)mofo_load_args_init(this, sizeof(mofo_load_args));
    }

    /** Whether the checkpoint may have tensors more or fewer than the optimizer. */
    LoadArgs &set_partial(bool value) noexcept {
        partial = value ? 1 : 0;
        return *this;
    }

    /** Write there what was found. */
    LoadArgs &report_to(mofo_load_report &out) noexcept {
        report = &out;
        report_size = sizeof out;
        return *this;
    }

    /** Write there, at the index of each tensor, 1 if it was loaded, else 0. */
    LoadArgs &mark_loaded(std::uint8_t *marks, std::size_t count) noexcept {
        loaded = marks;
        num_loaded = count;
        return *this;
    }
};

/** An optimizer. Empty after a move and by default; every call on an empty one is `invalid_argument`. */
class Optimizer {
  public:
    Optimizer() noexcept = default;
    Optimizer(Optimizer &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Optimizer &operator=(Optimizer &&other) noexcept {
        if (this != &other) {
            mofo_destroy(std::exchange(handle_, std::exchange(other.handle_, nullptr)));
        }
        return *this;
    }
    Optimizer(const Optimizer &) = delete;
    Optimizer &operator=(const Optimizer &) = delete;
    ~Optimizer() { mofo_destroy(handle_); }

    /** Whether it holds an optimizer. */
    explicit operator bool() const noexcept { return handle_ != nullptr; }

    /** The handle, still owned by this object. */
    mofo_optimizer *get() const noexcept { return handle_; }

    /** Gives the handle up: the caller passes it to `mofo_destroy`. */
    [[nodiscard]] mofo_optimizer *release() noexcept { return std::exchange(handle_, nullptr); }

    /** Creates an optimizer in `out`; what `out` held is destroyed, but not if the call fails. */
    static Status try_create(const mofo_options &options, Optimizer &out) noexcept {
        mofo_optimizer *handle = nullptr;
        const Status status = Status{mofo_create(&options, &handle)};
        if (!failed(status)) {
            mofo_destroy(std::exchange(out.handle_, handle));
        }
        return status;
    }

    /** The memory that `tensor` will need in an optimizer with these options. */
    static Status try_state_size(const mofo_options &options, const mofo_tensor &tensor,
                                 mofo_state_sizes &sizes) noexcept {
        return Status{mofo_state_size(&options, &tensor, &sizes, sizeof sizes)};
    }

    Status try_add(const mofo_tensor &tensor, std::uint64_t &index) noexcept {
        return Status{mofo_add_tensor(handle_, &tensor, &index)};
    }
    Status try_remove(std::uint64_t index) noexcept { return Status{mofo_remove_tensor(handle_, index)}; }
    Status try_find(const char *name, std::uint64_t &index) noexcept {
        return Status{mofo_find_tensor(handle_, name, &index)};
    }
    /** The buffers are of the dtypes that the tensor was added with. */
    Status try_bind(std::uint64_t index, void *param, const void *grad) noexcept {
        return Status{mofo_bind_tensor(handle_, index, param, grad)};
    }
    Status try_step() noexcept { return Status{mofo_step(handle_, nullptr)}; }
    Status try_step(const mofo_step_args &args) noexcept { return Status{mofo_step(handle_, &args)}; }
    /** Waits for the steps that were launched. */
    Status try_wait() noexcept { return Status{mofo_wait(handle_)}; }
    Status try_grad_norm(double &norm) noexcept { return Status{mofo_grad_norm(handle_, nullptr, &norm)}; }
    Status try_grad_norm(const mofo_step_args &args, double &norm) noexcept {
        return Status{mofo_grad_norm(handle_, &args, &norm)};
    }
    Status try_tensor_state(std::uint64_t index, mofo_tensor_info &info) noexcept {
        return Status{mofo_tensor_state(handle_, index, &info, sizeof info)};
    }
    Status try_set_step_count(std::uint64_t index, std::uint64_t step_count) noexcept {
        return Status{mofo_set_step_count(handle_, index, step_count)};
    }
    Status try_memory(mofo_memory_info &info) noexcept {
        return Status{mofo_memory(handle_, &info, sizeof info)};
    }
    Status try_cpu_tier(CpuTier &tier) noexcept {
        const std::int32_t value = mofo_cpu_tier(handle_);
        if (value < 0) {
            return Status{value};
        }
        tier = CpuTier{value};
        return Status::ok;
    }
    Status try_save(const char *path) noexcept { return Status{mofo_save(handle_, path)}; }
    Status try_load(const char *path) noexcept { return Status{mofo_load(handle_, path)}; }
    Status try_load(const char *path, const mofo_load_args &args) noexcept {
        return Status{mofo_load_with(handle_, path, &args)};
    }
    Status try_save_size(std::uint64_t &bytes) noexcept { return Status{mofo_save_size(handle_, &bytes)}; }
    Status try_save_to_memory(void *buffer, std::uint64_t size, std::uint64_t &written) noexcept {
        return Status{mofo_save_to_memory(handle_, buffer, size, &written)};
    }
    Status try_load_from_memory(const void *buffer, std::uint64_t size) noexcept {
        return Status{mofo_load_from_memory(handle_, buffer, size)};
    }
    Status try_load_from_memory(const void *buffer, std::uint64_t size, const mofo_load_args &args) noexcept {
        return Status{mofo_load_from_memory_with(handle_, buffer, size, &args)};
    }

#if defined(__cpp_exceptions)
    explicit Optimizer(const mofo_options &options) { check(try_create(options, *this)); }

    static mofo_state_sizes state_size(const mofo_options &options, const mofo_tensor &tensor) {
        mofo_state_sizes sizes{};
        check(try_state_size(options, tensor, sizes));
        return sizes;
    }

    /** Returns the index. */
    std::uint64_t add(const mofo_tensor &tensor) {
        std::uint64_t index = 0;
        check(try_add(tensor, index));
        return index;
    }
    void remove(std::uint64_t index) { check(try_remove(index)); }
    std::uint64_t find(const char *name) {
        std::uint64_t index = 0;
        check(try_find(name, index));
        return index;
    }
    void bind(std::uint64_t index, void *param, const void *grad) { check(try_bind(index, param, grad)); }
    /** Whether the step was taken: false if `skip_nonfinite` left it out. */
    bool step() { return taken(try_step()); }
    bool step(const mofo_step_args &args) { return taken(try_step(args)); }
    void wait() { check(try_wait()); }
    double grad_norm() {
        double norm = 0.0;
        check(try_grad_norm(norm));
        return norm;
    }
    double grad_norm(const mofo_step_args &args) {
        double norm = 0.0;
        check(try_grad_norm(args, norm));
        return norm;
    }
    mofo_tensor_info tensor_state(std::uint64_t index) {
        mofo_tensor_info info{};
        check(try_tensor_state(index, info));
        return info;
    }
    void set_step_count(std::uint64_t index, std::uint64_t step_count) {
        check(try_set_step_count(index, step_count));
    }
    mofo_memory_info memory() {
        mofo_memory_info info{};
        check(try_memory(info));
        return info;
    }
    CpuTier cpu_tier() {
        CpuTier tier = CpuTier::best;
        check(try_cpu_tier(tier));
        return tier;
    }
    void save(const std::string &path) { check(try_save(path.c_str())); }
    void load(const std::string &path) { check(try_load(path.c_str())); }
    void load(const std::string &path, const mofo_load_args &args) { check(try_load(path.c_str(), args)); }
    std::uint64_t save_size() {
        std::uint64_t bytes = 0;
        check(try_save_size(bytes));
        return bytes;
    }
    /** Returns how many bytes were written. */
    std::uint64_t save_to_memory(void *buffer, std::size_t size) {
        std::uint64_t written = 0;
        check(try_save_to_memory(buffer, size, written));
        return written;
    }
    std::vector<unsigned char> save_to_memory() {
        std::vector<unsigned char> buffer(save_size());
        (void)save_to_memory(buffer.data(), buffer.size());
        return buffer;
    }
    void load_from_memory(const void *buffer, std::size_t size) { check(try_load_from_memory(buffer, size)); }
    void load_from_memory(const void *buffer, std::size_t size, const mofo_load_args &args) {
        check(try_load_from_memory(buffer, size, args));
    }
    void load_from_memory(const std::vector<unsigned char> &buffer) { load_from_memory(buffer.data(), buffer.size()); }
#endif

  private:
#if defined(__cpp_exceptions)
    static void check(Status status) {
        if (failed(status)) {
            throw Error(status, last_error());
        }
    }
    static bool taken(Status status) {
        check(status);
        return status == Status::ok;
    }
#endif

    mofo_optimizer *handle_ = nullptr;
};

}  // namespace mofo

#pragma pop_macro("check")
#pragma pop_macro("Status")

#endif  // MOFO_HPP
