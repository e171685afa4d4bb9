// mofo.hpp where neither exceptions nor run-time type information exist (-fno-exceptions -fno-rtti).

#include <cmath>
#include <utility>

#include "mofo.hpp"
#include "../c/check.h"

#if defined(__cpp_exceptions)
#error "compile this with -fno-exceptions"
#endif
#if defined(__cpp_rtti)
#error "compile this with -fno-rtti"
#endif

int main() {
    mofo::Options options;
    options.learning_rate = 0.25;
    options.update_fraction = 0.5;
    options.num_threads = 3;
    int calls = 0;
    mofo::ParallelFor loop([&calls](std::int64_t n, mofo::Task task) {
        calls++;
        for (std::int64_t i = n - 1; i >= 0; i--) {
            task(i);
        }
    });
    options.use(loop);

    mofo::Optimizer created;
    if (!CHECK(mofo::Optimizer::try_create(options, created) == mofo::Status::ok)) {
        return check_finish();
    }
    mofo::Optimizer optimizer(std::move(created));
    CHECK(!created && optimizer);

    float param[4] = {1, 1, 1, 1};
    float grad[4] = {1, -4, 3, -2};
    std::uint64_t index = 9;
    CHECK(optimizer.try_add(mofo::Tensor("w", param, grad, 4), index) == mofo::Status::ok);
    CHECK(optimizer.try_add(mofo::Tensor("w", param, grad, 4), index) == mofo::Status::invalid_argument);
    CHECK_TEXT(mofo::last_error(), "w");
    CHECK(optimizer.try_step() == mofo::Status::ok);
    CHECK(param[0] == 1.0F && param[3] == 1.0F);
    CHECK(std::abs(param[1] - 1.25F) < 1e-6F && std::abs(param[2] - 0.75F) < 1e-6F);
    CHECK(calls > 0);

    mofo::Report report;
    mofo::StepArgs args;
    args.only(&index, 1).report_to(report);
    CHECK(optimizer.try_step(args) == mofo::Status::ok);
    CHECK_U64(report.entries_selected, 2);
    args.grad_scale = 1e300;
    CHECK(optimizer.try_step(args) == mofo::Status::not_finite);
    mofo_tensor_info info{};
    CHECK(optimizer.try_tensor_state(index, info) == mofo::Status::ok);
    CHECK_U64(info.step_count, 2);

    // Bits are a dtype only if one says which.
    const std::uint16_t ones[2] = {0x3F80, 0x3F80};
    std::uint16_t weights[2] = {0x3F80, 0x3F80};
    mofo::Tensor tensor("bf16", 2);
    tensor.set_param(weights, mofo::Dtype::bf16).set_grad(ones, mofo::Dtype::bf16);
    CHECK(optimizer.try_add(tensor, index) == mofo::Status::ok);
    CHECK(optimizer.try_step() == mofo::Status::ok);
    // Both tie, so both move: 1 - 0.25.
    CHECK(weights[0] == 0x3F40 && weights[1] == 0x3F40);

    // Or at once, as a tensor of a framework comes.
    struct {
        void *param;
        const void *grad;
        mofo::Dtype param_dtype, grad_dtype;
    } from_outside = {weights, ones, mofo::Dtype::bf16, mofo::Dtype::f16};
    const mofo::Tensor described("described", from_outside.param, from_outside.param_dtype, from_outside.grad,
                                 from_outside.grad_dtype, 2);
    CHECK(described.param == weights && described.grad == ones && described.numel == 2);
    CHECK(described.param_dtype == MOFO_DTYPE_BF16 && described.grad_dtype == MOFO_DTYPE_F16);
    CHECK(described.update_fraction == mofo::inherit && described.num_blocks == 1);

    // What is saved can be loaded.
    static unsigned char buffer[8192];
    std::uint64_t bytes = 0;
    std::uint64_t written = 0;
    CHECK(optimizer.try_save_size(bytes) == mofo::Status::ok);
    CHECK_AT_MOST(bytes, sizeof buffer);
    CHECK(optimizer.try_save_to_memory(buffer, 8, written) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_save_to_memory(buffer, sizeof buffer, written) == mofo::Status::ok);
    CHECK_U64(written, bytes);
    CHECK(optimizer.try_step() == mofo::Status::ok);
    CHECK(optimizer.try_load_from_memory(buffer, written - 1) == mofo::Status::checkpoint);
    CHECK(optimizer.try_tensor_state(index, info) == mofo::Status::ok);
    CHECK_U64(info.step_count, 2);
    CHECK(optimizer.try_load_from_memory(buffer, written) == mofo::Status::ok);
    CHECK(optimizer.try_tensor_state(index, info) == mofo::Status::ok);
    CHECK_U64(info.step_count, 1);
    CHECK(optimizer.try_save("/") == mofo::Status::io);
    CHECK(optimizer.try_load("/") == mofo::Status::io);
    return check_finish();
}
