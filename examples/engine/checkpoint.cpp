// SPDX-License-Identifier: MIT OR Apache-2.0

#include "checkpoint.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <unistd.h>
#include <utility>
#include <vector>

#include "error.hpp"

namespace engine {

namespace {

constexpr char magic[] = "mofo engine example, version 1\n";

struct Header {
    char magic[sizeof engine::magic];
    RunIdentity identity;
    Progress progress;
    std::uint64_t floats;
};
static_assert(sizeof(Header) % 8 == 0 && sizeof engine::magic % 8 == 0, "no bytes without a value");

struct Close {
    void operator()(std::FILE *file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

[[noreturn]] void fail(const std::string &path, const char *what) { throw Error(path + ": " + what); }

void write_all(const std::string &path, const std::vector<std::pair<const void *, std::size_t>> &parts) {
    File file(std::fopen(path.c_str(), "wb"));
    bool good = file != nullptr;
    std::uint64_t hash = hash_of(nullptr, 0);
    for (const auto &[bytes, size] : parts) {
        hash = hash_of(bytes, size, hash);
        good = good && std::fwrite(bytes, 1, size, file.get()) == size;
    }
    good = good && std::fwrite(&hash, 1, sizeof hash, file.get()) == sizeof hash && std::fflush(file.get()) == 0 &&
           fsync(fileno(file.get())) == 0;
    if (!good) {
        fail(path, std::strerror(errno));
    }
}

// The new name is on the disk, too, before the files of the last checkpoint go.
void sync_folder_of(const std::string &path) {
    const std::size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    const int descriptor = open(folder.c_str(), O_RDONLY);
    const bool good = descriptor >= 0 && (fsync(descriptor) == 0 || errno == EINVAL);
    const int error = errno;
    if (descriptor >= 0) {
        close(descriptor);
    }
    if (!good) {
        fail(folder, std::strerror(error));
    }
}

void read_all(const std::string &path, std::FILE *file, void *to, std::size_t size, std::uint64_t &hash) {
    if (std::fread(to, 1, size, file) != size) {
        fail(path, std::ferror(file) != 0 ? std::strerror(errno) : "the file is too short");
    }
    hash = hash_of(to, size, hash);
}

}  // namespace

std::uint64_t hash_of(const void *bytes, std::size_t size, std::uint64_t hash) {
    for (std::size_t i = 0; i < size; ++i) {
        hash = (hash ^ static_cast<const unsigned char *>(bytes)[i]) * 0x100000001B3;
    }
    return hash;
}

std::string optimizer_path(const std::string &path, const Progress &progress) {
    return path + ".optimizer-" + std::to_string(progress.phase) + "-" + std::to_string(progress.step);
}

void save_checkpoint(const std::string &path, const RunIdentity &identity, const Progress &progress,
                     const SavedArenas &arenas, Optimizer *optimizer) {
    if (optimizer != nullptr) {
        optimizer->save(optimizer_path(path, progress));
    }
    Header header{};
    std::memcpy(header.magic, magic, sizeof magic);
    header.identity = identity;
    header.progress = progress;
    header.floats = arenas.floats;
    const std::size_t bytes = arenas.floats * sizeof(float);
    const std::string temporary = path + ".temporary";
    write_all(temporary, {{&header, sizeof header}, {arenas.params, bytes}, {arenas.pretrained, bytes}});
    if (std::rename(temporary.c_str(), path.c_str()) != 0) {
        fail(path, std::strerror(errno));
    }
    sync_folder_of(path);
}

Progress load_checkpoint(const std::string &path, const RunIdentity &identity, const SavedArenas &arenas) {
    const File file(std::fopen(path.c_str(), "rb"));
    if (file == nullptr) {
        fail(path, std::strerror(errno));
    }
    Header header{};
    std::uint64_t hash = hash_of(nullptr, 0), stored = 0, ignored = 0;
    read_all(path, file.get(), &header, sizeof header, hash);
    if (std::memcmp(header.magic, magic, sizeof magic) != 0) {
        fail(path, "no file of this engine");
    }
    if (std::memcmp(&header.identity, &identity, sizeof identity) != 0 || header.floats != arenas.floats) {
        fail(path, "saved by a run with other options (--steps, --text, --seed, --learning-rate, --update-fraction, "
                   "--bf16 and --smoke must be as they were)");
    }
    read_all(path, file.get(), arenas.params, arenas.floats * sizeof(float), hash);
    read_all(path, file.get(), arenas.pretrained, arenas.floats * sizeof(float), hash);
    read_all(path, file.get(), &stored, sizeof stored, ignored);
    if (stored != hash || std::fgetc(file.get()) != EOF || header.progress.phase > phases) {
        fail(path, "damaged");
    }
    return header.progress;
}

}  // namespace engine
