// A small training engine whose optimizer is mofo. README.md is the way through it.
// SPDX-License-Identifier: MIT OR Apache-2.0

#include <algorithm>
#include <cstdio>
#include <exception>
#include <thread>

#include "error.hpp"
#include "gradient_check.hpp"
#include "options.hpp"
#include "run.hpp"
#include "thread_pool.hpp"

int main(int count, char **arguments) {
    try {
        const engine::CommandLine line = engine::parse(count, arguments);
        if (line.help) {
            std::fputs(engine::usage, stdout);
            return 0;
        }
        const int processors = static_cast<int>(std::min(std::thread::hardware_concurrency(), 256U));
        engine::ThreadPool pool(line.threads != 0 ? line.threads : std::max(processors, 1));
        if (line.check_gradients) {
            return engine::check_gradients(pool, line.seed) ? 0 : 1;
        }
        engine::Run(line, pool).go();
    } catch (const mofo::Error &error) {
        std::fprintf(stderr, "engine: %s: %s\n", mofo::status_name(error.status()), error.what());
        return 1;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "engine: %s\n", error.what());
        return 1;
    }
    return 0;
}
