// SPDX-License-Identifier: MIT OR Apache-2.0

#include "thread_pool.hpp"

namespace engine {

ThreadPool::ThreadPool(int threads) {
    for (int i = 1; i < threads; ++i) {
        workers_.emplace_back([this] { worker(); });
    }
}

ThreadPool::~ThreadPool() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    job_is_there_.notify_all();
    for (std::thread &worker : workers_) {
        worker.join();
    }
}

void ThreadPool::run_job(const Job &job) {
    if (workers_.empty() || job.n <= 1) {
        for (std::int64_t i = 0; i < job.n; ++i) {
            job.function(job.task, i);
        }
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        job_ = job;
        ++job_number_;
        busy_workers_ = workers_.size();
        next_task_ = 0;
    }
    job_is_there_.notify_all();
    take_tasks(job);
    std::unique_lock<std::mutex> lock(mutex_);
    workers_are_done_.wait(lock, [this] { return busy_workers_ == 0; });
}

void ThreadPool::take_tasks(const Job &job) {
    for (std::int64_t i = next_task_++; i < job.n; i = next_task_++) {
        job.function(job.task, i);
    }
}

void ThreadPool::worker() {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        job_is_there_.wait(lock, [&] { return stopping_ || job_number_ != seen; });
        if (stopping_) {
            return;
        }
        seen = job_number_;
        const Job job = job_;
        lock.unlock();
        take_tasks(job);
        lock.lock();
        if (--busy_workers_ == 0) {
            workers_are_done_.notify_one();
        }
    }
}

}  // namespace engine
