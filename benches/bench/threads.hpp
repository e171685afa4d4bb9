// Threads of the benchmark itself: for making data and for the copy.
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef MOFO_BENCH_THREADS_HPP
#define MOFO_BENCH_THREADS_HPP

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace bench {

/** How many threads the process may run at once. */
unsigned usable_cores();

/** Threads that work together with the calling one, and sleep between calls. */
class ThreadTeam {
  public:
    explicit ThreadTeam(unsigned width);
    ThreadTeam(const ThreadTeam &) = delete;
    ThreadTeam &operator=(const ThreadTeam &) = delete;
    ~ThreadTeam();

    unsigned width() const noexcept { return static_cast<unsigned>(threads_.size()) + 1; }

    /** Runs `task(i)` for i from 0 to `tasks` - 1, each on a thread: at most `width()` tasks, which must not throw. */
    void run(unsigned tasks, const std::function<void(unsigned)> &task);

    /** Cuts 0 to `count` - 1 into one piece a thread, at multiples of `grain`: `work(begin, end)`. */
    void split(std::uint64_t count, std::uint64_t grain,
               const std::function<void(std::uint64_t, std::uint64_t)> &work);

  private:
    void work(unsigned index);

    std::mutex mutex_;
    std::condition_variable changed_;
    const std::function<void(unsigned)> *task_ = nullptr;
    unsigned tasks_ = 0;
    unsigned running_ = 0;
    std::uint64_t turn_ = 0;
    bool stopping_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace bench

#endif  // MOFO_BENCH_THREADS_HPP
