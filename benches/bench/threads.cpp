// SPDX-License-Identifier: MIT OR Apache-2.0

#include "threads.hpp"

#include <algorithm>

#if defined(__linux__)
#include <sched.h>
#endif

namespace bench {

unsigned usable_cores() {
#if defined(__linux__)
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) == 0) {
        return std::max(1U, static_cast<unsigned>(CPU_COUNT(&cores)));
    }
#endif
    return std::max(1U, std::thread::hardware_concurrency());
}

ThreadTeam::ThreadTeam(unsigned width) {
    for (unsigned index = 1; index < width; ++index) {
        threads_.emplace_back([this, index] { work(index); });
    }
}

ThreadTeam::~ThreadTeam() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread &thread : threads_) {
        thread.join();
    }
}

void ThreadTeam::run(unsigned tasks, const std::function<void(unsigned)> &task) {
    if (tasks > 1) {
        const std::lock_guard lock(mutex_);
        task_ = &task;
        tasks_ = tasks;
        running_ = tasks - 1;
        ++turn_;
        changed_.notify_all();
    }
    if (tasks > 0) {
        task(0);
    }
    if (tasks > 1) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return running_ == 0; });
    }
}

void ThreadTeam::split(std::uint64_t count, std::uint64_t grain,
                       const std::function<void(std::uint64_t, std::uint64_t)> &work) {
    const std::uint64_t grains = (count + grain - 1) / grain;
    const auto pieces = static_cast<unsigned>(std::min<std::uint64_t>(width(), grains));
    run(pieces, [&](unsigned piece) {
        const std::uint64_t begin = grains * piece / pieces * grain;
        const std::uint64_t end = grains * (piece + 1) / pieces * grain;
        work(begin, std::min(end, count));
    });
}

void ThreadTeam::work(unsigned index) {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (true) {
        changed_.wait(lock, [&] { return stopping_ || turn_ != seen; });
        if (stopping_) {
            return;
        }
        seen = turn_;
        if (index >= tasks_) {
            continue;
        }
        const auto &task = *task_;
        lock.unlock();
        task(index);
        lock.lock();
        if (--running_ == 0) {
            changed_.notify_all();
        }
    }
}

}  // namespace bench
