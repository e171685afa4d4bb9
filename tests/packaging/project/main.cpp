// A program of somebody else's in C++: steps with threads of the optimizer's own, and looks at what has moved.
// Usage: main VERSION.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mofo.hpp>
#include <vector>

int main(int argc, char **argv) {
    if (argc != 2 || std::strcmp(argv[1], mofo_version()) != 0) {
        std::fprintf(stderr, "version %s, which is not the one that was asked for\n", mofo_version());
        return 1;
    }
    std::vector<float> param(200000, 1.0F), grad(param.size());
    for (std::size_t i = 0; i < grad.size(); ++i) grad[i] = static_cast<float>(i + 1);
    bool thrown = false;
    try {
        mofo::Options options;
        options.num_threads = 2;
        options.update_fraction = 0.05;
        mofo::Optimizer optimizer(options);
        optimizer.add(mofo::Tensor("weight", param.data(), grad.data(), param.size()));
        optimizer.step();
        // The error comes through as an exception of this program.
        optimizer.add(mofo::Tensor("weight", param.data(), grad.data(), param.size()));
    } catch (const mofo::Error &error) {
        thrown = std::strstr(error.what(), "weight") != nullptr;
        if (!thrown) std::fprintf(stderr, "%s\n", error.what());
    }
    const auto moved = param.size() - static_cast<std::size_t>(std::count(param.begin(), param.end(), 1.0F));
    std::printf("mofo %s: %zu of %zu entries moved\n", mofo_version(), moved, param.size());
    return thrown && moved == param.size() / 20 ? 0 : 1;
}
