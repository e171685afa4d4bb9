// mofo.hpp: ownership, defaults, deduced types, and errors both returned and thrown.

#include <cmath>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "mofo.hpp"
#include "../c/check.h"

namespace {

static_assert(!std::is_copy_constructible_v<mofo::Optimizer>);
static_assert(!std::is_copy_assignable_v<mofo::Optimizer>);
static_assert(std::is_nothrow_move_constructible_v<mofo::Optimizer>);
static_assert(std::is_nothrow_move_assignable_v<mofo::Optimizer>);
static_assert(std::is_nothrow_default_constructible_v<mofo::Optimizer>);
static_assert(std::is_base_of_v<std::runtime_error, mofo::Error>);
static_assert(mofo::dtype_of<const float>::value == mofo::Dtype::f32);

// A program's own 16-bit type.
struct Half {
    std::uint16_t bits;
};

}  // namespace

template <> struct mofo::dtype_of<Half> {
    static constexpr mofo::Dtype value = mofo::Dtype::f16;
};

namespace {

// Runs `call` and expects that it throws a `mofo::Error` of that status, whose text is the last error's.
template <class Call> void check_throws(mofo::Status expected, const char *part, Call call) {
    try {
        call();
        CHECK(!"throws");
    } catch (const std::runtime_error &error) {
        const auto *ours = dynamic_cast<const mofo::Error *>(&error);
        REQUIRE(ours != nullptr);
        CHECK(ours->status() == expected);
        CHECK_TEXT(error.what(), part);
        CHECK(std::string(error.what()) == mofo::last_error());
    }
}

mofo::Options one_thread() {
    mofo::Options options;
    options.num_threads = 1;
    return options;
}

void defaults() {
    mofo_options c_options;
    mofo_tensor c_tensor;
    mofo_step_args c_args;
    REQUIRE_OK(mofo_options_init(&c_options, sizeof c_options));
    REQUIRE_OK(mofo_tensor_init(&c_tensor, sizeof c_tensor));
    REQUIRE_OK(mofo_step_args_init(&c_args, sizeof c_args));
    const mofo::Options options;
    const mofo::Tensor tensor;
    const mofo::StepArgs args;
    CHECK_BYTES(static_cast<const mofo_options *>(&options), &c_options, sizeof c_options);
    CHECK_BYTES(static_cast<const mofo_tensor *>(&tensor), &c_tensor, sizeof c_tensor);
    CHECK_BYTES(static_cast<const mofo_step_args *>(&args), &c_args, sizeof c_args);
    CHECK(mofo::inherit == MOFO_INHERIT);
}

void setters() {
    mofo::Options options;
    options.set(mofo::Device::cuda)
        .set(mofo::Filter::update)
        .set(mofo::WeightDecayScope::all)
        .set(mofo::Rounding::nearest)
        .set(mofo::CpuTier::portable)
        .set_state_dtype(mofo::Dtype::bf16);
    CHECK(options.device == MOFO_DEVICE_CUDA);
    CHECK(options.filter == MOFO_FILTER_UPDATE);
    CHECK(options.weight_decay_scope == MOFO_WEIGHT_DECAY_ALL);
    CHECK(options.rounding == MOFO_ROUNDING_NEAREST);
    CHECK(options.cpu_tier == MOFO_CPU_TIER_PORTABLE);
    CHECK(options.state_dtype == MOFO_DTYPE_BF16);

    float param[2] = {};
    const float grad[2] = {};
    Half half_param[2] = {};
    const std::uint16_t bits[2] = {};
    const mofo::Tensor deduced("a", param, grad, 2);
    CHECK(deduced.param == param && deduced.grad == grad && deduced.numel == 2);
    CHECK(deduced.param_dtype == MOFO_DTYPE_F32 && deduced.grad_dtype == MOFO_DTYPE_F32);
    const mofo::Tensor mixed("b", half_param, grad, 2);
    CHECK(mixed.param_dtype == MOFO_DTYPE_F16 && mixed.grad_dtype == MOFO_DTYPE_F32);
    mofo::Tensor given("c", 2);
    CHECK(given.param == nullptr && given.grad == nullptr);
    given.set_param(half_param).set_grad(bits, mofo::Dtype::bf16);
    CHECK(given.param_dtype == MOFO_DTYPE_F16 && given.grad_dtype == MOFO_DTYPE_BF16);
    CHECK(given.param == half_param && given.grad == bits);
}

void returned_statuses() {
    mofo::Optimizer optimizer;
    std::uint64_t index = 77;
    double norm = 77.0;
    mofo_tensor_info info{};
    mofo_memory_info memory{};
    mofo_state_sizes sizes{};
    mofo::CpuTier tier = mofo::CpuTier::best;
    CHECK(!optimizer);
    // An empty one refuses everything, and says so.
    CHECK(optimizer.try_step() == mofo::Status::invalid_argument);
    CHECK_TEXT(mofo::last_error(), "NULL");
    CHECK(optimizer.try_step(mofo::StepArgs()) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_add(mofo::Tensor("w", 3), index) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_remove(0) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_find("w", index) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_bind(0, nullptr, nullptr) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_wait() == mofo::Status::invalid_argument);
    CHECK(optimizer.try_grad_norm(norm) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_grad_norm(mofo::StepArgs(), norm) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_tensor_state(0, info) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_set_step_count(0, 0) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_memory(memory) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_cpu_tier(tier) == mofo::Status::invalid_argument);
    CHECK(tier == mofo::CpuTier::best);
    CHECK(index == 77 && norm == 77.0);

    mofo::Options bad = one_thread();
    bad.beta1 = 2.0;
    CHECK(mofo::Optimizer::try_create(bad, optimizer) == mofo::Status::invalid_argument);
    CHECK_TEXT(mofo::last_error(), "beta1");
    CHECK(!optimizer);
    CHECK(mofo::Optimizer::try_create(one_thread(), optimizer) == mofo::Status::ok);
    CHECK(static_cast<bool>(optimizer));
    // A failed creation leaves what is there.
    mofo_optimizer *const handle = optimizer.get();
    CHECK(mofo::Optimizer::try_create(bad, optimizer) == mofo::Status::invalid_argument);
    CHECK(optimizer.get() == handle);

    CHECK(optimizer.try_step() == mofo::Status::invalid_state);
    CHECK(mofo::Optimizer::try_state_size(one_thread(), mofo::Tensor("w", 3), sizes) == mofo::Status::ok);
    CHECK_U64(sizes.exp_avg, 12);
    CHECK(optimizer.try_add(mofo::Tensor("w", 3), index) == mofo::Status::ok);
    CHECK_U64(index, 0);
    CHECK(optimizer.try_add(mofo::Tensor("w", 3), index) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_find("w", index) == mofo::Status::ok);
    CHECK(optimizer.try_find("v", index) == mofo::Status::not_found);
    float param[3] = {1, 1, 1};
    const float grad[3] = {3, 4, 0};
    CHECK(optimizer.try_bind(0, param, param) == mofo::Status::invalid_buffer);
    CHECK(optimizer.try_bind(0, param, grad) == mofo::Status::ok);
    CHECK(optimizer.try_grad_norm(norm) == mofo::Status::ok);
    CHECK_F64(norm, 5.0);
    CHECK(optimizer.try_step() == mofo::Status::ok);
    CHECK(optimizer.try_wait() == mofo::Status::ok);
    CHECK(param[0] == 1.0F && param[1] < 1.0F && param[2] == 1.0F);
    CHECK(optimizer.try_tensor_state(0, info) == mofo::Status::ok);
    CHECK_U64(info.step_count, 1);
    CHECK(optimizer.try_set_step_count(0, 5) == mofo::Status::ok);
    CHECK(optimizer.try_memory(memory) == mofo::Status::ok);
    CHECK_U64(memory.entries, 3);
    CHECK(optimizer.try_cpu_tier(tier) == mofo::Status::ok);
    CHECK(tier != mofo::CpuTier::best);
    CHECK(optimizer.try_remove(0) == mofo::Status::ok);

    CHECK(mofo::failed(mofo::Status::not_finite));
    CHECK(!mofo::failed(mofo::Status::ok) && !mofo::failed(mofo::Status::skipped));
    CHECK(std::string(mofo::status_name(mofo::Status::parallel_for)) == "MOFO_ERROR_PARALLEL_FOR");
}

void thrown_errors() {
    mofo::Options bad = one_thread();
    bad.update_fraction = 1.5;
    check_throws(mofo::Status::invalid_argument, "update_fraction", [&] { mofo::Optimizer optimizer(bad); });

    mofo::Optimizer optimizer(one_thread());
    check_throws(mofo::Status::invalid_state, "tensor", [&] { optimizer.step(); });
    check_throws(mofo::Status::invalid_argument, "num_blocks", [&] {
        mofo::Tensor cut("cut", 4);
        cut.num_blocks = 3;
        optimizer.add(cut);
    });
    check_throws(mofo::Status::invalid_argument, "num_blocks", [&] {
        mofo::Tensor tensor("odd", 3);
        tensor.num_blocks = 2;
        (void)mofo::Optimizer::state_size(one_thread(), tensor);
    });
    float param[4] = {1, 1, 1, 1};
    float grad[4] = {1, 2, 3, 4};
    const std::uint64_t index = optimizer.add(mofo::Tensor("w", param, grad, 4));
    CHECK_U64(optimizer.find("w"), index);
    check_throws(mofo::Status::not_found, "v", [&] { optimizer.find("v"); });
    check_throws(mofo::Status::not_found, "9", [&] { optimizer.remove(9); });
    check_throws(mofo::Status::not_found, "9", [&] { optimizer.tensor_state(9); });
    check_throws(mofo::Status::not_found, "9", [&] { optimizer.set_step_count(9, 0); });
    check_throws(mofo::Status::invalid_buffer, "w", [&] { optimizer.bind(index, param, param); });
    mofo::StepArgs args;
    args.learning_rate = 1e300;
    check_throws(mofo::Status::not_finite, "finite", [&] { optimizer.step(args); });
    CHECK(param[3] == 1.0F);

    mofo::Report report;
    args = mofo::StepArgs();
    args.only(&index, 1).report_to(report);
    args.learning_rate = 0.5;
    args.beta1 = 0.5;
    args.weight_decay = 0.0;
    CHECK(optimizer.step(args));
    optimizer.wait();
    CHECK_U64(report.entries, 4);
    CHECK_U64(report.tensors, 1);
    CHECK_U64(report.entries_selected, 1);
    CHECK(std::abs(param[3] - 0.5F) < 1e-6F && param[2] == 1.0F);
    // An empty list is empty, even if it has no address.
    const std::vector<std::uint64_t> none;
    mofo::StepArgs nothing;
    nothing.only(none.data(), none.size()).report_to(report);
    CHECK(optimizer.step(nothing));
    CHECK_U64(report.entries, 0);
    CHECK_U64(report.tensors, 0);
    CHECK(std::abs(optimizer.grad_norm(args) - std::sqrt(30.0)) < 1e-12);
    CHECK(std::abs(optimizer.grad_norm() - std::sqrt(30.0)) < 1e-12);
    CHECK_U64(optimizer.tensor_state(index).step_count, 1);
    optimizer.set_step_count(index, 10);
    CHECK_U64(optimizer.tensor_state(index).step_count, 10);
    CHECK_U64(optimizer.memory().num_tensors, 1);
    CHECK_U64(mofo::Optimizer::state_size(one_thread(), mofo::Tensor("w", 4)).exp_avg_sq, 16);
    CHECK(optimizer.cpu_tier() != mofo::CpuTier::best);
    optimizer.bind(index, param, nullptr);
    optimizer.remove(index);
    CHECK_U64(optimizer.memory().num_tensors, 0);

    mofo::Optimizer empty;
    check_throws(mofo::Status::invalid_argument, "NULL", [&] { empty.memory(); });
    check_throws(mofo::Status::invalid_argument, "NULL", [&] { empty.cpu_tier(); });
    check_throws(mofo::Status::invalid_argument, "NULL", [&] { empty.wait(); });
    check_throws(mofo::Status::invalid_argument, "NULL", [&] { empty.grad_norm(); });
}

void a_skipped_step_is_no_error() {
    mofo::Options options = one_thread();
    options.skip_nonfinite = 1;
    mofo::Optimizer optimizer(options);
    float param[1] = {1};
    float grad[1] = {INFINITY};
    optimizer.add(mofo::Tensor("w", param, grad, 1));
    CHECK(optimizer.try_step() == mofo::Status::skipped);
    CHECK(!optimizer.step());
    CHECK(param[0] == 1.0F);
    grad[0] = 1.0F;
    CHECK(optimizer.step());
    CHECK(param[0] < 1.0F);
}

void moves() {
    float param[1] = {1};
    const float grad[1] = {1};
    mofo::Optimizer first(one_thread());
    first.add(mofo::Tensor("w", param, grad, 1));
    mofo_optimizer *const handle = first.get();
    mofo::Optimizer second(std::move(first));
    CHECK(!first && second.get() == handle);
    CHECK(first.try_step() == mofo::Status::invalid_argument);
    CHECK(second.step());

    mofo::Optimizer third(one_thread());
    third = std::move(second);
    CHECK(!second && third.get() == handle);
    CHECK(third.step());
    mofo::Optimizer &self = third;
    third = std::move(self);
    CHECK(third.get() == handle);
    CHECK(third.step());
    std::swap(second, third);
    CHECK(second.get() == handle && !third);

    std::vector<mofo::Optimizer> many;
    for (int n = 0; n < 20; n++) {
        many.emplace_back(one_thread());
    }
    many.push_back(std::move(second));
    CHECK(many.back().get() == handle);
    CHECK(many.back().step());
    CHECK_U64(many.back().tensor_state(0).step_count, 4);

    mofo_optimizer *const released = many.back().release();
    CHECK(released == handle && !many.back());
    mofo_destroy(released);
}

// Optimizers are destroyed when an exception passes; nothing leaks (which the sanitizers see).
void unwinding() {
    try {
        mofo::Optimizer optimizer(one_thread());
        optimizer.add(mofo::Tensor("w", 100000));
        optimizer.remove(5);
        CHECK(!"reached");
    } catch (const mofo::Error &error) {
        CHECK(error.status() == mofo::Status::not_found);
    }
}

}  // namespace

int main() {
    defaults();
    setters();
    returned_statuses();
    thrown_errors();
    a_skipped_step_is_no_error();
    moves();
    unwinding();
    return check_finish();
}
