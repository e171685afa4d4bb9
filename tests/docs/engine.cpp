// An engine in the middle of its training: what the fragments of the guides find declared.
#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <mofo.hpp>
#include <thread>
#include <vector>

int main() {
    std::vector<float> param(6144, 1.0F), grad(6144, 0.5F);
    mofo::Options options;
    mofo::Optimizer optimizer(options);
    const std::uint64_t weight = optimizer.add(mofo::Tensor("weight", param.data(), grad.data(), param.size()));
    optimizer.step();
    assert(optimizer.find("weight") == weight);
    {
// the block
    }
    return 0;
}
