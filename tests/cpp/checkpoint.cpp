// mofo.hpp: saving and loading, with statuses and with exceptions.

#include <cstdio>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <stdlib.h>
#include <unistd.h>

#include "mofo.hpp"
#include "../c/check.h"

namespace {

static_assert(std::is_same_v<decltype(std::declval<mofo::Optimizer &>().save_to_memory()), std::vector<unsigned char>>);
static_assert(noexcept(std::declval<mofo::Optimizer &>().try_save("")));
static_assert(noexcept(std::declval<mofo::Optimizer &>().try_load("")));
static_assert(noexcept(std::declval<mofo::Optimizer &>().try_load_from_memory(nullptr, 0)));

constexpr std::uint64_t NUMEL = 100;

// Runs `call` and expects that it throws a `mofo::Error` of that status, whose text is the last error's.
template <class Call> void check_throws(mofo::Status expected, const char *part, Call call) {
    try {
        call();
        CHECK(!"throws");
    } catch (const mofo::Error &error) {
        CHECK(error.status() == expected);
        CHECK_TEXT(error.what(), part);
        CHECK(std::string(error.what()) == mofo::last_error());
    }
}

// A tensor, and an optimizer of it.
struct Model {
    std::vector<float> param = std::vector<float>(NUMEL, 1.0F);
    std::vector<float> grad = std::vector<float>(NUMEL);
    mofo::Optimizer optimizer;

    explicit Model(std::uint64_t seed) {
        mofo::Options options;
        options.num_threads = 1;
        options.seed = seed;
        options.set(mofo::Filter::random);
        optimizer = mofo::Optimizer(options);
        optimizer.add(mofo::Tensor("w", param.data(), grad.data(), NUMEL));
    }

    void run(int from, int to) {
        for (int t = from; t <= to; t++) {
            for (std::uint64_t i = 0; i < NUMEL; i++) {
                grad[i] = static_cast<float>((i * 37 + static_cast<std::uint64_t>(t) * 11) % 101) - 50.0F;
            }
            CHECK(optimizer.step());
        }
    }
};

bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<unsigned char> contents(const std::string &path) {
    std::vector<unsigned char> all;
    std::FILE *file = std::fopen(path.c_str(), "rb");
    REQUIRE(file != nullptr);
    for (int byte = std::fgetc(file); byte != EOF; byte = std::fgetc(file)) {
        all.push_back(static_cast<unsigned char>(byte));
    }
    std::fclose(file);
    return all;
}

void resumed(const std::string &path) {
    Model unstopped(3);
    unstopped.run(1, 2);
    const std::vector<unsigned char> saved = unstopped.optimizer.save_to_memory();
    const std::vector<float> params = unstopped.param;
    unstopped.optimizer.save(path);
    CHECK(contents(path) == saved);
    unstopped.run(3, 4);

    for (int way = 0; way < 4; way++) {
        CASE("resumed, way %d", way);
        Model model(4);
        model.param = params;
        model.optimizer.bind(0, model.param.data(), model.grad.data());
        if (way == 0) {
            model.optimizer.load(path);
        } else if (way == 1) {
            model.optimizer.load_from_memory(saved.data(), saved.size());
        } else if (way == 2) {
            CHECK(model.optimizer.try_load(path.c_str()) == mofo::Status::ok);
        } else {
            CHECK(model.optimizer.try_load_from_memory(saved.data(), saved.size()) == mofo::Status::ok);
        }
        CHECK(model.optimizer.save_to_memory() == saved);
        CHECK_U64(model.optimizer.tensor_state(0).step_count, 2);
        model.run(3, 4);
        CHECK(same_bits(model.param, unstopped.param));
        CHECK(model.optimizer.save_to_memory() == unstopped.optimizer.save_to_memory());

        std::uint64_t bytes = 0;
        CHECK(model.optimizer.try_save_size(bytes) == mofo::Status::ok);
        std::vector<unsigned char> buffer(bytes + 3, 0xEE);
        std::uint64_t written = 0;
        CHECK(model.optimizer.try_save_to_memory(buffer.data(), buffer.size(), written) == mofo::Status::ok);
        CHECK_U64(written, bytes);
        CHECK(buffer[written] == 0xEE);
        buffer.resize(bytes);
        CHECK(model.optimizer.try_save(path.c_str()) == mofo::Status::ok);
        CHECK(contents(path) == buffer);
        model.optimizer.load_from_memory(saved.data(), saved.size());
        model.optimizer.save(path);
        CHECK(contents(path) == saved);
    }
    CHECK(std::remove(path.c_str()) == 0);
}

void in_part(const std::string &path) {
    CASE("%s", "in part");
    Model model(5);
    model.run(1, 1);
    mofo::Optimizer &optimizer = model.optimizer;
    const std::vector<unsigned char> saved = optimizer.save_to_memory();
    optimizer.save(path);
    std::vector<float> more(3);
    optimizer.add(mofo::Tensor("new", more.data(), more.data(), 0));
    check_throws(mofo::Status::checkpoint, "\"new\"", [&] { optimizer.load(path); });
    mofo::LoadReport report;
    std::uint8_t loaded[2] = {7, 7};
    mofo::LoadArgs args;
    args.set_partial(true).report_to(report).mark_loaded(loaded, 2);
    optimizer.load(path, args);
    CHECK(report.tensors_loaded == 1 && report.tensors_missing == 1 && report.tensors_ignored == 0);
    CHECK(loaded[0] == 1 && loaded[1] == 0);
    optimizer.load_from_memory(saved.data(), saved.size(), args);
    CHECK(optimizer.try_load(path.c_str(), args) == mofo::Status::ok);
    CHECK(optimizer.try_load_from_memory(saved.data(), saved.size(), args.set_partial(false)) ==
          mofo::Status::checkpoint);
    CHECK(std::remove(path.c_str()) == 0);
}

void errors(const std::string &path) {
    CASE("%s", "errors");
    Model model(5);
    model.run(1, 1);
    mofo::Optimizer &optimizer = model.optimizer;
    const std::vector<unsigned char> saved = optimizer.save_to_memory();
    std::vector<unsigned char> damaged = saved;
    damaged.back() ^= 1;
    std::uint64_t number = 77;
    unsigned char byte = 9;

    check_throws(mofo::Status::io, path.c_str(), [&] { optimizer.load(path); });
    CHECK(optimizer.try_load(path.c_str()) == mofo::Status::io);
    check_throws(mofo::Status::io, path.c_str(), [&] { optimizer.save(path + "/inside"); });
    CHECK(optimizer.try_save((path + "/inside").c_str()) == mofo::Status::io);
    check_throws(mofo::Status::invalid_argument, "path is empty", [&] { optimizer.save(""); });
    check_throws(mofo::Status::invalid_argument, "path is empty", [&] { optimizer.load(""); });
    CHECK(optimizer.try_save(nullptr) == mofo::Status::invalid_argument);
    CHECK(optimizer.try_load(nullptr) == mofo::Status::invalid_argument);
    check_throws(mofo::Status::checkpoint, "its data is damaged",
                 [&] { optimizer.load_from_memory(damaged.data(), damaged.size()); });
    CHECK(optimizer.try_load_from_memory(damaged.data(), damaged.size()) == mofo::Status::checkpoint);
    check_throws(mofo::Status::checkpoint, "cut short",
                 [&] { optimizer.load_from_memory(saved.data(), saved.size() - 1); });
    check_throws(mofo::Status::invalid_argument, "buffer is NULL", [&] { optimizer.load_from_memory(nullptr, 8); });
    CHECK(optimizer.try_save_to_memory(&byte, 1, number) == mofo::Status::invalid_argument);
    CHECK_TEXT(mofo::last_error(), "mofo_save_size");
    CHECK(byte == 9 && number == 77);
    CHECK(optimizer.save_to_memory() == saved);

    mofo::Optimizer empty;
    CHECK(empty.try_save(path.c_str()) == mofo::Status::invalid_argument);
    CHECK(empty.try_load(path.c_str()) == mofo::Status::invalid_argument);
    CHECK(empty.try_save_size(number) == mofo::Status::invalid_argument);
    CHECK(empty.try_save_to_memory(&byte, 1, number) == mofo::Status::invalid_argument);
    CHECK(empty.try_load_from_memory(saved.data(), saved.size()) == mofo::Status::invalid_argument);
    check_throws(mofo::Status::invalid_argument, "NULL", [&] { (void)empty.save_to_memory(); });
    CHECK(number == 77);
    CHECK(std::string(mofo::status_name(mofo::Status::checkpoint)) == "MOFO_ERROR_CHECKPOINT");
    CHECK(std::string(mofo::status_name(mofo::Status::io)) == "MOFO_ERROR_IO");
}

}  // namespace

int main() {
    const char *temporary = std::getenv("TMPDIR");
    std::string folder = std::string(temporary != nullptr ? temporary : "/tmp") + "/mofo-test-XXXXXX";
    REQUIRE(mkdtemp(&folder[0]) != nullptr);
    resumed(folder + "/checkpoint");
    in_part(folder + "/checkpoint");
    errors(folder + "/missing/checkpoint");
    CHECK(rmdir(folder.c_str()) == 0);
    return check_finish();
}
