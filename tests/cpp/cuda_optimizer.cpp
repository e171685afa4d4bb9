// mofo.hpp on CUDA: the same calls, with device pointers, a stream and a report on the device.

#include <cmath>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "mofo.hpp"
#include "../c/cuda_device.h"

namespace {

constexpr std::uint64_t NUMEL = 1000;

// A vector of the device's.
class DeviceFloats {
  public:
    explicit DeviceFloats(const std::vector<float> &from)
        : start_(static_cast<float *>(device_copy(from.data(), from.size() * sizeof(float)))), size_(from.size()) {}
    DeviceFloats(const DeviceFloats &) = delete;
    DeviceFloats &operator=(const DeviceFloats &) = delete;
    ~DeviceFloats() { device_free(start_); }

    float *data() const { return start_; }

    std::vector<float> read() const {
        std::vector<float> copy(size_);
        device_read(copy.data(), start_, size_ * sizeof(float));
        return copy;
    }

  private:
    float *start_;
    std::size_t size_;
};

std::vector<float> numbers(float scale) {
    std::vector<float> all(NUMEL);
    for (std::uint64_t i = 0; i < NUMEL; i++) {
        all[i] = scale * (static_cast<float>(i * 7919 % 2003) / 1001.5f - 1.0f);
    }
    return all;
}

mofo::Options options_on(mofo::Device device) {
    mofo::Options options;
    options.set(device);
    options.learning_rate = 0.01;
    options.max_grad_norm = 0.1;
    return options;
}

void steps() {
    std::vector<float> param = numbers(1.0f);
    const std::vector<float> grad = numbers(0.02f);
    const DeviceFloats device_param(param);
    const DeviceFloats device_grad(grad);
    mofo::Optimizer host(options_on(mofo::Device::cpu));
    mofo::Optimizer device(options_on(mofo::Device::cuda));
    const float *const const_grad = device_grad.data();
    host.add(mofo::Tensor("weight", param.data(), grad.data(), NUMEL));
    const std::uint64_t index = device.add(mofo::Tensor("weight", device_param.data(), const_grad, NUMEL));

    CASE("a step without arguments");
    CHECK(host.step());
    CHECK(device.step());
    CHECK(device_param.read() == param);

    CASE("a step with a stream, a report and a learning rate on the device");
    CUstream stream;
    REQUIRE_CUDA(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    void *pinned = nullptr;
    REQUIRE_CUDA(cuMemAllocHost(&pinned, 4096));
    auto *report = new (pinned) mofo::Report;
    auto *rate = new (static_cast<char *>(pinned) + 1024) double(0.005);
    mofo::StepArgs args;
    args.stream = stream;
    args.report_to(*report);
    args.device_learning_rate = rate;
    CHECK(device.step(args));
    device.wait();
    mofo::StepArgs host_args;
    mofo::Report host_report;
    host_args.learning_rate = 0.005;
    host_args.report_to(host_report);
    CHECK(host.step(host_args));
    CHECK_F64(report->grad_norm, host_report.grad_norm);
    CHECK_U64(report->entries_selected, host_report.entries_selected);
    CHECK(report->entries == NUMEL && report->skipped == 0 && report->status == MOFO_OK);
    CHECK(device_param.read() == param);
    CHECK_U64(device.tensor_state(index).step_count, 2);

    CASE("the norm");
    mofo::StepArgs norm_args;
    norm_args.stream = stream;
    CHECK_F64(device.grad_norm(norm_args), host.grad_norm());

    CASE("an optimizer that moves");
    mofo::Optimizer moved(std::move(device));
    device = std::move(moved);
    CHECK(device.step());
    CHECK(host.step());
    CHECK(device_param.read() == param);

    CASE("destroyed after a step that was not waited for");
    CHECK(device.step());
    REQUIRE_CUDA(cuMemFreeHost(pinned));
    REQUIRE_CUDA(cuStreamDestroy(stream));
}

void errors() {
    std::vector<float> on_host = numbers(1.0f);
    mofo::Optimizer optimizer(options_on(mofo::Device::cuda));
    CASE("a host pointer");
    try {
        optimizer.add(mofo::Tensor("host", on_host.data(), on_host.data(), NUMEL));
        CHECK(!"throws");
    } catch (const mofo::Error &error) {
        CHECK(error.status() == mofo::Status::invalid_buffer);
        CHECK_TEXT(error.what(), "host");
    }
    CASE("a device that is not there");
    mofo::Options options = options_on(mofo::Device::cuda);
    options.device_index = -1;
    mofo::Optimizer none;
    CHECK(mofo::Optimizer::try_create(options, none) == mofo::Status::invalid_argument);
    CHECK_TEXT(mofo::last_error(), "device_index");
    CASE("the CPU tier");
    mofo::CpuTier tier;
    CHECK(optimizer.try_cpu_tier(tier) == mofo::Status::invalid_state);
    CASE("the name of CUDA's errors");
    CHECK(std::string(mofo::status_name(mofo::Status::cuda)) == "MOFO_ERROR_CUDA");
}

} // namespace

int main() {
    cuda_begin();
    steps();
    errors();
    return cuda_finish();
}
