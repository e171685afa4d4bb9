// Memory, copies, and what pointers point to.
//
// Device memory consists of pages of its own, which are closed while no work is done: a host that follows a
// pointer to it ends as it would with a device. It lies at the end of them, before a page that is always closed.
// With AddressSanitizer it is the heap's instead: that finds the first byte that a kernel accesses beyond its end.

#include "driver.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <sys/mman.h>
#include <unistd.h>

#include "sanitizer.hpp"

namespace emulation {
namespace {

constexpr std::size_t ALIGNMENT = 256;
constexpr int NEW = 0xCD;
constexpr int FREED = 0xDD;

#ifdef MOFO_ADDRESS_SANITIZER
constexpr bool OWN_PAGES = false;
#else
constexpr bool OWN_PAGES = true;
#endif

using Entry = std::map<std::uintptr_t, Allocation>::value_type;

// The allocation that an address lies in.
const Entry *find(CUdeviceptr pointer) {
    const auto &memory = driver().memory;
    const auto after = memory.upper_bound(static_cast<std::uintptr_t>(pointer));
    if (after == memory.begin()) {
        return nullptr;
    }
    const Entry &entry = *std::prev(after);
    return pointer - entry.first < entry.second.bytes ? &entry : nullptr;
}

bool holds(const Entry *entry, CUdeviceptr pointer, std::size_t bytes) {
    return entry != nullptr && bytes <= entry->second.bytes - (pointer - entry->first);
}

void *address(CUdeviceptr pointer) { return reinterpret_cast<void *>(static_cast<std::uintptr_t>(pointer)); }

CUdeviceptr pointer_to(const void *address) { return reinterpret_cast<std::uintptr_t>(address); }

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Gives an allocation its pages; null if there are none.
void *map(Allocation &allocation) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    allocation.pages_bytes = round_up(allocation.bytes, page);
    void *pages = mmap(nullptr, allocation.pages_bytes + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        return nullptr;
    }
    if (mprotect(pages, allocation.pages_bytes, PROT_READ | PROT_WRITE) != 0) {
        munmap(pages, allocation.pages_bytes + page);
        return nullptr;
    }
    allocation.pages = pages;
    return static_cast<char *>(pages) + allocation.pages_bytes - round_up(allocation.bytes, ALIGNMENT);
}

void unmap(const Allocation &allocation) {
    munmap(allocation.pages, allocation.pages_bytes + static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
}

void protect(const Allocation &allocation, int protection) {
    if (allocation.pages != nullptr && mprotect(allocation.pages, allocation.pages_bytes, protection) != 0) {
        std::perror("emulated CUDA: device memory cannot be opened and closed");
        std::abort();
    }
}

// The allocations with pages of their own. Beyond some number, opening and closing all of them takes too long.
std::vector<Allocation> with_pages;
constexpr std::size_t MOST_WITH_PAGES = 64;

void protect_all(int protection) {
    for (const Allocation &allocation : with_pages) {
        protect(allocation, protection);
    }
}

// How many there are of DeviceMemory.
int accesses;

CUresult allocate(Context &context, std::size_t bytes, Memory kind, void *&pointer) {
    if (bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    Device &device = *context.device;
    if (kind == Memory::device && (device.used > device.total || bytes > device.total - device.used)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    Allocation allocation{bytes, kind, &context, ++driver().numbers, nullptr, 0};
    if (kind == Memory::device && OWN_PAGES && with_pages.size() < MOST_WITH_PAGES) {
        pointer = map(allocation);
    } else if (posix_memalign(&pointer, ALIGNMENT, bytes) != 0) {
        pointer = nullptr;
    }
    if (pointer == nullptr) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    std::memset(pointer, NEW, bytes);
    if (kind == Memory::device) {
        device.used += bytes;
        if (allocation.pages != nullptr) {
            with_pages.push_back(allocation);
            protect(allocation, PROT_NONE);
        }
    }
    driver().memory.emplace(reinterpret_cast<std::uintptr_t>(pointer), allocation);
    return CUDA_SUCCESS;
}

using Place = std::map<std::uintptr_t, Allocation>::iterator;

Place release(Place place) {
    const Allocation &allocation = place->second;
    if (allocation.kind == Memory::device) {
        allocation.context->device->used -= allocation.bytes;
    }
    if (allocation.pages != nullptr) {
        const auto is_this = [&](const Allocation &other) { return other.pages == allocation.pages; };
        with_pages.erase(std::remove_if(with_pages.begin(), with_pages.end(), is_this), with_pages.end());
        unmap(allocation);
    } else {
        void *pointer = reinterpret_cast<void *>(place->first);
        std::memset(pointer, FREED, allocation.bytes);
        std::free(pointer);
    }
    return driver().memory.erase(place);
}

// Work that is done later may find that its memory is gone: a graph's, for instance.
void check_still_there(CUdeviceptr pointer, std::size_t bytes) {
    if (!holds(find(pointer), pointer, bytes)) {
        std::fprintf(stderr, "emulated CUDA: a copy or a memset finds no memory at %p\n", address(pointer));
        std::abort();
    }
}

// What a copy is told about one of its ends.
enum class End { device, host, either };

struct Copy {
    CUdeviceptr to;
    End to_end;
    CUdeviceptr from;
    End from_end;
    std::size_t bytes;
};

// Whether `pointer` can be that end; `known` says whether it is memory of the driver.
CUresult check_end(CUdeviceptr pointer, End end, std::size_t bytes, bool &known, bool &host) {
    const Entry *entry = find(pointer);
    known = entry != nullptr;
    host = !known || entry->second.kind == Memory::host;
    if (known ? !holds(entry, pointer, bytes) || (end == End::host && entry->second.kind == Memory::device)
              : end == End::device || pointer == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult copy(const Copy &copy, Stream &stream, bool blocks, const char *name) {
    if (copy.bytes == 0) {
        return CUDA_SUCCESS;
    }
    bool to_known = false, from_known = false, to_host = false, from_host = false;
    if (const CUresult error = check_end(copy.to, copy.to_end, copy.bytes, to_known, to_host)) {
        return error;
    }
    if (const CUresult error = check_end(copy.from, copy.from_end, copy.bytes, from_known, from_host)) {
        return error;
    }
    if (!to_known && !from_known) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (to_host || from_host) {
        check_forbidden(name);
    }
    // A copy from memory that the driver does not know takes its bytes at once. (In a graph it takes them when
    // the graph runs.)
    std::shared_ptr<std::vector<unsigned char>> staged;
    if (!from_known && !blocks && stream.capture == nullptr) {
        const auto *begin = static_cast<const unsigned char *>(address(copy.from));
        staged = std::make_shared<std::vector<unsigned char>>(begin, begin + copy.bytes);
    }
    const CUresult error = submit(stream, {CU_GRAPH_NODE_TYPE_MEMCPY, [=] {
                                               if (to_known) {
                                                   check_still_there(copy.to, copy.bytes);
                                               }
                                               if (from_known) {
                                                   check_still_there(copy.from, copy.bytes);
                                               }
                                               std::memmove(address(copy.to),
                                                            staged ? staged->data() : address(copy.from),
                                                            copy.bytes);
                                           }});
    if (error == CUDA_SUCCESS && blocks) {
        finish(stream);
    }
    return error;
}

CUresult copy_in_stream(const Call &call, const Copy &description, CUstream handle, const char *name) {
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    return copy(description, *stream, false, name);
}

// In the default stream. A copy within the device does not make the calling thread wait.
CUresult copy_now(const Call &call, const Copy &description, bool blocks, const char *name) {
    if (const CUresult error = check_legacy(*call.context)) {
        return error;
    }
    if (const CUresult error = check_unsafe()) {
        return error;
    }
    return copy(description, *call.context->legacy, blocks, name);
}

template <class T> CUresult fill(const Call &call, CUdeviceptr to, T value, std::size_t count, CUstream handle) {
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (to % sizeof(T) != 0 || count > SIZE_MAX / sizeof(T)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (count == 0) {
        return CUDA_SUCCESS;
    }
    const std::size_t bytes = count * sizeof(T);
    if (!holds(find(to), to, bytes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return submit(*stream, {CU_GRAPH_NODE_TYPE_MEMSET, [=] {
                                check_still_there(to, bytes);
                                std::fill_n(static_cast<T *>(address(to)), count, value);
                            }});
}

template <class T> void put(void *to, T value) { std::memcpy(to, &value, sizeof value); }

// Writes an attribute of a pointer; that of no allocation is null or 0.
CUresult attribute(void *value, int attribute, CUdeviceptr pointer, const Entry *entry) {
    const Allocation *allocation = entry == nullptr ? nullptr : &entry->second;
    const bool device = allocation != nullptr && allocation->kind == Memory::device;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        put(value, allocation == nullptr ? nullptr : allocation->context->handle);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        put(value, allocation == nullptr               ? 0u
                   : allocation->kind == Memory::host ? unsigned{CU_MEMORYTYPE_HOST}
                                                      : unsigned{CU_MEMORYTYPE_DEVICE});
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        put(value, allocation == nullptr ? CUdeviceptr{0} : pointer);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        put(value, allocation == nullptr || device ? nullptr : address(pointer));
        return device ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        put(value, allocation == nullptr ? 0ull : static_cast<unsigned long long>(allocation->id));
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        put(value, unsigned{allocation != nullptr && allocation->kind == Memory::managed});
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        put(value, allocation == nullptr ? -2 : allocation->context->device->ordinal);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        put(value, entry == nullptr ? CUdeviceptr{0} : CUdeviceptr{entry->first});
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        put(value, allocation == nullptr ? std::size_t{0} : allocation->bytes);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MAPPED:
        put(value, unsigned{allocation != nullptr});
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult allocate_host(const Call &call, void **pointer, std::size_t bytes) {
    if (pointer == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return allocate(*call.context, bytes, Memory::host, *pointer);
}

CUresult allocate_device(const Call &call, CUdeviceptr *pointer, std::size_t bytes, Memory kind) {
    if (pointer == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    void *allocated = nullptr;
    const CUresult error = allocate(*call.context, bytes, kind, allocated);
    if (error == CUDA_SUCCESS) {
        *pointer = pointer_to(allocated);
    }
    return error;
}

// Waits for the device: its work may use the memory.
CUresult release_one(CUdeviceptr pointer, bool host) {
    auto &memory = driver().memory;
    const auto place = memory.find(static_cast<std::uintptr_t>(pointer));
    if (place == memory.end() || (place->second.kind == Memory::host) != host) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    finish(*place->second.context->device);
    release(place);
    return CUDA_SUCCESS;
}

} // namespace

DeviceMemory::DeviceMemory() {
    if (accesses++ == 0) {
        protect_all(PROT_READ | PROT_WRITE);
    }
}

DeviceMemory::~DeviceMemory() {
    if (--accesses == 0) {
        protect_all(PROT_NONE);
    }
}

void free_memory(Context &context) {
    auto &memory = driver().memory;
    for (auto place = memory.begin(); place != memory.end();) {
        place = place->second.context == &context ? release(place) : std::next(place);
    }
}

} // namespace emulation

using namespace emulation;

CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE | UNSAFE)
    return allocate_device(call, pointer, bytes, Memory::device);
}

CUresult cuMemAllocManaged(CUdeviceptr *pointer, size_t bytes, unsigned flags) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE | UNSAFE)
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return allocate_device(call, pointer, bytes, Memory::managed);
}

CUresult cuMemFree_v2(CUdeviceptr pointer) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE | UNSAFE)
    return release_one(pointer, false);
}

CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    MOFO_CALL(NEEDS_CONTEXT)
    if (free == nullptr || total == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const Device &device = *call.context->device;
    *free = device.total - std::min(device.used, device.total);
    *total = device.total;
    return CUDA_SUCCESS;
}

CUresult cuMemAllocHost_v2(void **pointer, size_t bytes) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE | UNSAFE)
    return allocate_host(call, pointer, bytes);
}

CUresult cuMemHostAlloc(void **pointer, size_t bytes, unsigned) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE | UNSAFE)
    return allocate_host(call, pointer, bytes);
}

CUresult cuMemFreeHost(void *pointer) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE | UNSAFE)
    return release_one(pointer_to(pointer), true);
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *device, void *host, unsigned flags) {
    MOFO_CALL(NEEDS_CONTEXT)
    const Entry *entry = find(pointer_to(host));
    if (device == nullptr || flags != 0 || entry == nullptr || entry->second.kind != Memory::host) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *device = pointer_to(host);
    return CUDA_SUCCESS;
}

CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE)
    return copy_now(call, {to, End::either, from, End::either, bytes}, true, __func__);
}

CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    MOFO_CALL(NEEDS_CONTEXT)
    return copy_in_stream(call, {to, End::either, from, End::either, bytes}, stream, __func__);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE)
    return copy_now(call, {to, End::device, pointer_to(from), End::host, bytes}, true, __func__);
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE)
    return copy_now(call, {pointer_to(to), End::host, from, End::device, bytes}, true, __func__);
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    MOFO_CALL(NEEDS_CONTEXT)
    return copy_now(call, {to, End::device, from, End::device, bytes}, false, __func__);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE)
    return copy_in_stream(call, {to, End::device, pointer_to(from), End::host, bytes}, stream, __func__);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE)
    return copy_in_stream(call, {pointer_to(to), End::host, from, End::device, bytes}, stream, __func__);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    MOFO_CALL(NEEDS_CONTEXT)
    return copy_in_stream(call, {to, End::device, from, End::device, bytes}, stream, __func__);
}

CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
    MOFO_CALL(NEEDS_CONTEXT)
    return fill(call, to, value, count, nullptr);
}

CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
    MOFO_CALL(NEEDS_CONTEXT)
    return fill(call, to, value, count, nullptr);
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
    MOFO_CALL(NEEDS_CONTEXT)
    return fill(call, to, value, count, stream);
}

CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
    MOFO_CALL(NEEDS_CONTEXT)
    return fill(call, to, value, count, stream);
}

CUresult cuPointerGetAttribute(void *value, int which, CUdeviceptr pointer) {
    MOFO_CALL(0)
    const Entry *entry = find(pointer);
    if (value == nullptr || entry == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return attribute(value, which, pointer, entry);
}

// Of a pointer that the driver does not know, this form gives nulls.
CUresult cuPointerGetAttributes(unsigned count, int *attributes, void **values, CUdeviceptr pointer) {
    MOFO_CALL(0)
    if (count == 0 || attributes == nullptr || values == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const Entry *entry = find(pointer);
    for (unsigned i = 0; i < count; i++) {
        const CUresult error = attribute(values[i], attributes[i], pointer, entry);
        if (error != CUDA_SUCCESS && attributes[i] != CU_POINTER_ATTRIBUTE_HOST_POINTER) {
            return error;
        }
    }
    return CUDA_SUCCESS;
}
