// SPDX-License-Identifier: MIT OR Apache-2.0

#include "environment.hpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "group.hpp"
#include "threads.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/utsname.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace bench {
namespace {

std::string cpu_model() {
#if defined(__APPLE__)
    char brand[256];
    std::size_t size = sizeof brand;
    if (sysctlbyname("machdep.cpu.brand_string", brand, &size, nullptr, 0) == 0) {
        return brand;
    }
#endif
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        const std::size_t colon = line.find(": ");
        if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
            return line.substr(colon + 2);
        }
    }
    return "unknown";
}

std::string operating_system() {
#if defined(__unix__) || defined(__APPLE__)
    utsname system{};
    if (uname(&system) == 0) {
        return std::string(system.sysname) + " " + system.release + " " + system.machine;
    }
#endif
    return "unknown";
}

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

std::string huge_pages() {
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
    std::string line;
    return std::getline(file, line) ? line : "unknown";
}

std::string chosen_tier(mofo::CpuTier tier) {
    mofo::Options options;
    options.set(tier);
    return name_of(mofo::Optimizer(options).cpu_tier());
}

std::string nanoseconds(std::chrono::duration<double> time) {
    char text[32];
    std::snprintf(text, sizeof text, "%.0f ns", time.count() * 1e9);
    return text;
}

}  // namespace

Facts describe_environment(const Settings &settings) {
    return {
        {"mofo", mofo_version()},
        {"cpu", cpu_model()},
        {"cores", std::to_string(usable_cores()) + " of " + std::to_string(std::thread::hardware_concurrency())},
        {"cpu tier", chosen_tier(settings.tier)},
        {"threads", std::to_string(settings.threads)},
        {"system", operating_system()},
        {"compiler", compiler()},
        {"transparent huge pages", huge_pages()},
        {"reading the clock", nanoseconds(clock_cost())},
        {"load average at the start", load_average()},
    };
}

std::string load_average() {
#if defined(__unix__) || defined(__APPLE__)
    double loads[3];
    if (getloadavg(loads, 3) == 3) {
        char text[64];
        std::snprintf(text, sizeof text, "%.2f %.2f %.2f", loads[0], loads[1], loads[2]);
        return text;
    }
#endif
    return "unknown";
}

}  // namespace bench
