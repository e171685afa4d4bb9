// What ends the process.

#include <functional>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "selftest.hpp"

// What ends the process, and with which words. The driver does not survive a fork, so the child begins with it.
static void ends(const char *words, const std::function<void()> &act) {
    int pipe_ends[2];
    CHECK(pipe(pipe_ends) == 0);
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(pipe_ends[1], STDERR_FILENO);
        begin();
        act();
        _exit(0);
    }
    close(pipe_ends[1]);
    std::string text;
    char part[512];
    for (ssize_t length; (length = ::read(pipe_ends[0], part, sizeof part)) > 0;) {
        text.append(part, static_cast<std::size_t>(length));
    }
    close(pipe_ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if ((WIFEXITED(status) && WEXITSTATUS(status) == 0) || text.find(words) == std::string::npos) {
        std::printf("status 0x%x, and not \"%s\" but: %s\n", static_cast<unsigned>(status), words, text.c_str());
        failures++;
    }
}

void check_mistakes();

void check_mistakes() {
    const auto mistake = [](unsigned number) {
        return [=] {
            const CUdeviceptr out = allocate(64 + 4);
            launch("mistake", 1, 64, Numbered{out, number});
            (void)cuCtxSynchronize();
        };
    };
    ends("threads 0 to 31: at __syncthreads", mistake(0));
    ends("thread 32 is at __syncthreads, thread 0 at __syncthreads", mistake(1));
    ends("lane 0 is not in its mask", mistake(2));
    ends("have ended or do not exist", mistake(3));
    ends("which the mask 0x55555555 does not name", mistake(4));
    ends("width is 12", mistake(5));
    ends("at __any_sync", mistake(6));
    ends("__trap", mistake(7));
    // These say nothing of themselves unless a sanitizer does.
    ends("", mistake(8));
    ends("", mistake(9));
#if defined(__SANITIZE_ADDRESS__)
    ends("", mistake(10));
#else
    ends("", [] { (void)*reinterpret_cast<volatile unsigned *>(allocate(1)); });
#endif
    ends("cuMemAlloc_v2 is called", [] {
        EQUAL(mofo_emulated_forbid(1), 0);
        allocate(1);
    });
    ends("cuStreamSynchronize is called", [] {
        mofo_emulated_forbid(1);
        std::thread([] {
            OK(cuCtxSetCurrent(context));
            OK(cuCtxSynchronize());
        }).join();
        EQUAL(mofo_emulated_forbid(2), 1);
        std::thread([] {
            OK(cuCtxSetCurrent(context));
            (void)cuStreamSynchronize(nullptr);
        }).join();
    });
}
