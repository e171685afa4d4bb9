// The parallel loop of a C++ engine, on std::thread; and that its exceptions stop at the C border.

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "mofo.hpp"
#include "../c/check.h"

namespace {

constexpr std::uint64_t numel = 100000;

std::vector<float> numbers(std::uint64_t seed, float scale) {
    std::vector<float> out(numel);
    std::uint64_t x = seed;
    for (float &value : out) {
        x = x * 6364136223846793005U + 1442695040888963407U;
        value = (static_cast<float>(x >> 40) / 8388608.0F - 1.0F) * scale;
    }
    return out;
}

// The parameters after three steps with these options.
std::vector<float> train(const mofo::Options &options) {
    std::vector<float> param = numbers(1, 1.0F);
    std::vector<float> grad = numbers(2, 0.01F);
    mofo::Optimizer optimizer(options);
    optimizer.add(mofo::Tensor("w", param.data(), grad.data(), numel));
    for (int t = 0; t < 3; t++) {
        CHECK(optimizer.step());
    }
    return param;
}

std::vector<float> expected() {
    mofo::Options options;
    options.num_threads = 1;
    options.max_grad_norm = 0.5;
    return train(options);
}

void on_threads() {
    mofo::Options options;
    options.num_threads = 4;
    options.max_grad_norm = 0.5;
    std::atomic<int> tasks{0};
    mofo::ParallelFor loop([&tasks](std::int64_t n, mofo::Task task) {
        std::vector<std::thread> threads;
        for (std::int64_t i = 0; i < n; i++) {
            threads.emplace_back([&tasks, task, i] {
                tasks++;
                task(i);
            });
        }
        for (std::thread &thread : threads) {
            thread.join();
        }
    });
    options.use(loop);
    const std::vector<float> got = train(options);
    CHECK_BYTES(got.data(), expected().data(), numel * sizeof(float));
    CHECK(tasks > 4);
    CHECK(loop.take_exception() == nullptr);
}

// Any callable will do: a class of the engine's, passed by value.
struct Serial {
    void operator()(std::int64_t n, mofo::Task task) const {
        for (std::int64_t i = 0; i < n; i++) {
            task(i);
        }
    }
};

void a_callable_object() {
    mofo::Options options;
    options.max_grad_norm = 0.5;
    mofo::ParallelFor<Serial> loop{Serial()};
    options.use(loop);
    CHECK_BYTES(train(options).data(), expected().data(), numel * sizeof(float));
}

void exceptions() {
    std::vector<float> param = numbers(1, 1.0F);
    const std::vector<float> before = param;
    const std::vector<float> grad = numbers(2, 0.01F);
    bool throws = true;
    mofo::ParallelFor loop([&throws](std::int64_t n, mofo::Task task) {
        for (std::int64_t i = 0; i < n; i++) {
            if (throws && i == n - 1) {
                throw std::runtime_error("the pool is gone");
            }
            task(i);
        }
    });
    mofo::Options options;
    options.num_threads = 3;
    options.max_grad_norm = 0.5;
    options.use(loop);
    mofo::Optimizer optimizer(options);
    optimizer.add(mofo::Tensor("w", param.data(), grad.data(), numel));

    CHECK(optimizer.try_step() == mofo::Status::parallel_for);
    CHECK_BYTES(param.data(), before.data(), numel * sizeof(float));
    try {
        optimizer.step();
        CHECK(!"throws");
    } catch (const mofo::Error &error) {
        CHECK(error.status() == mofo::Status::parallel_for);
    }
    try {
        std::rethrow_exception(loop.take_exception());
    } catch (const std::runtime_error &error) {
        CHECK(std::string(error.what()) == "the pool is gone");
    }
    CHECK(loop.take_exception() == nullptr);
    CHECK_U64(optimizer.tensor_state(0).step_count, 0);

    throws = false;
    for (int t = 0; t < 3; t++) {
        CHECK(optimizer.step());
    }
    CHECK_BYTES(param.data(), expected().data(), numel * sizeof(float));
}

}  // namespace

int main() {
    on_threads();
    a_callable_object();
    exceptions();
    return check_finish();
}
