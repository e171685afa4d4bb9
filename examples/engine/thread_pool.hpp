// The engine's threads. They run the model's loops and, between two backward passes, the optimizer's.
// SPDX-License-Identifier: MIT OR Apache-2.0

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace engine {

// One thread at a time calls `run`, and tasks do not call it.
class ThreadPool {
  public:
    // The calling thread works too: `threads` of 1 starts none.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls `task(i)` for every i from 0 to n - 1, on any of the threads, and returns when all have returned. Tasks
    // must not throw.
    template <class Task> void run(std::int64_t n, const Task &task) {
        run_job({n, [](const void *self, std::int64_t i) { (*static_cast<const Task *>(self))(i); }, &task});
    }

  private:
    struct Job {
        std::int64_t n;
        void (*function)(const void *, std::int64_t);
        const void *task;
    };

    void run_job(const Job &job);
    void take_tasks(const Job &job);
    void worker();

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable job_is_there_, workers_are_done_;
    Job job_ = {};                  // guarded by mutex_, like the next three
    std::uint64_t job_number_ = 0;
    std::size_t busy_workers_ = 0;
    bool stopping_ = false;
    std::atomic<std::int64_t> next_task_{0};
};

}  // namespace engine
