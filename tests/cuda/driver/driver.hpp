// What the emulated driver exports, and what it keeps: devices, contexts, streams with the work that has not run
// yet, events, graphs, memory.
//
// One lock is held during every call, and while kernels run.

#ifndef MOFO_EMULATION_DRIVER_HPP
#define MOFO_EMULATION_DRIVER_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "kernels.hpp"

#define MOFO_EMULATION_DRIVER
#pragma GCC visibility push(default)
#include "cuda_driver.h"
#include "hooks.h"

// Exported for callers that use these forms of what cuda_driver.h declares.
extern "C" {
CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags);
CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end);
CUresult cuStreamGetCaptureInfo_v3(CUstream stream, int *status, uint64_t *id, CUgraph *graph,
                                   const CUgraphNode **dependencies, const void **edges, size_t *num_dependencies);
CUresult cuFuncSetCacheConfig(CUfunction function, int config);
}
#pragma GCC visibility pop

namespace emulation {

struct Context;
struct Stream;
struct Capture;

using Clock = std::chrono::steady_clock;

// Something that a stream or a graph does: its CU_GRAPH_NODE_TYPE, and the doing.
struct Work {
    int type;
    std::function<void()> run;
};

// Reached when a stream has done so many pieces of work.
struct Point {
    std::shared_ptr<Stream> stream;
    std::uint64_t position;
};

struct Queued {
    Work work;
    std::vector<Point> after;
};

struct Stream : std::enable_shared_from_this<Stream> {
    Context *context;
    // The context's default stream: it and the context's blocking streams wait for each other.
    bool legacy;
    bool blocking;
    int priority;
    CUstream handle = nullptr;
    // What cuStreamGetId has given, or 0.
    std::uint64_t id = 0;
    // Destroyed, though its work may not have run.
    bool destroyed = false;
    std::deque<Queued> queue;
    std::uint64_t issued = 0;
    std::uint64_t done = 0;
    // While it is captured: the nodes that the next one depends on.
    std::shared_ptr<Capture> capture;
    std::vector<std::size_t> tail;
    // What cuStreamGetCaptureInfo last showed.
    std::vector<CUgraphNode> shown;

    Point end() { return {shared_from_this(), issued}; }
    bool idle() const { return done == issued; }
};

struct Event {
    Context *context;
    unsigned flags;
    // Where it was recorded last; no stream if never.
    Point recorded;
    std::shared_ptr<Clock::time_point> time;
    // Or the capture that it was recorded in last, and the nodes before it.
    std::shared_ptr<Capture> capture;
    std::vector<std::size_t> nodes;
};

struct Node {
    Work work;
    std::vector<std::size_t> after;
};

struct Graph {
    CUgraph handle = nullptr;
    std::vector<Node> nodes;
};

struct Capture {
    std::uint64_t id;
    int mode;
    std::thread::id thread;
    std::shared_ptr<Stream> origin;
    std::vector<std::shared_ptr<Stream>> streams;
    std::shared_ptr<Graph> graph;
    bool invalidated = false;
    bool ended = false;
};

// A graph's work in the order in which it is done.
using Sequence = std::shared_ptr<const std::vector<Work>>;

struct Module {
    Context *context;
};

struct Function {
    CUmodule module;
    Context *context;
    const Kernel *kernel;
    int dynamic_shared = 0;
};

enum class Memory { device, managed, host };

struct Allocation {
    std::size_t bytes;
    Memory kind;
    Context *context;
    std::uint64_t id;
    // Of device memory: the pages that are its own, or null.
    void *pages;
    std::size_t pages_bytes;
};

struct Device {
    int ordinal;
    std::size_t total;
    std::size_t used = 0;
    Context *primary = nullptr;
    unsigned retained = 0;
};

// Never freed: a handle of a destroyed context is told from others.
struct Context {
    Device *device;
    bool primary;
    bool alive = true;
    CUcontext handle = nullptr;
    // What every call gives since the context broke; 0 while it works.
    CUresult broken = CUDA_SUCCESS;
    std::shared_ptr<Stream> legacy;
    // All but the default one, in the order of their creation.
    std::vector<std::shared_ptr<Stream>> streams;
    std::map<std::thread::id, std::shared_ptr<Stream>> per_thread;
};

// Handles are numbers that are never used again, and addresses of nothing.
template <class T, class Handle> class Registry {
  public:
    explicit Registry(std::uintptr_t kind) : next_(kind << 40) {}

    Handle add(T object) {
        next_ += SPACING;
        objects_.emplace(next_, std::move(object));
        return reinterpret_cast<Handle>(next_);
    }
    // Null if there is no such object.
    T *find(Handle handle) {
        const auto found = objects_.find(reinterpret_cast<std::uintptr_t>(handle));
        return found == objects_.end() ? nullptr : &found->second;
    }
    void remove(Handle handle) { objects_.erase(reinterpret_cast<std::uintptr_t>(handle)); }
    template <class Condition> void remove_if(Condition condition) {
        for (auto i = objects_.begin(); i != objects_.end();) {
            i = condition(i->second) ? objects_.erase(i) : std::next(i);
        }
    }
    template <class Action> void for_each(Action action) {
        for (auto &entry : objects_) {
            action(entry.second);
        }
    }
    // Room for the handles of a graph's nodes.
    static constexpr std::uintptr_t SPACING = 1 << 20;

  private:
    std::uintptr_t next_;
    std::map<std::uintptr_t, T> objects_;
};

struct Driver {
    std::mutex lock;
    bool initialized = false;
    bool reversed = false;
    std::deque<Device> devices;
    Registry<std::unique_ptr<Context>, CUcontext> contexts{1};
    Registry<std::shared_ptr<Stream>, CUstream> streams{2};
    Registry<Event, CUevent> events{3};
    Registry<std::shared_ptr<Graph>, CUgraph> graphs{4};
    Registry<Sequence, CUgraphExec> execs{5};
    Registry<Module, CUmodule> modules{6};
    Registry<Function, CUfunction> functions{7};
    std::map<std::uintptr_t, Allocation> memory;
    std::vector<std::shared_ptr<Capture>> captures;
    std::uint64_t numbers = 0;
    std::uint64_t launches = 0;
    bool forbids = false;
};

Driver &driver();

// What a call needs, and what it may not be used for; see Call.
enum : unsigned {
    // A current context that works.
    NEEDS_CONTEXT = 1,
    // mofo_emulated_forbid ends the process.
    FORBIDDABLE = 2,
    // It could wait for work that is only being captured: the capture mode decides.
    UNSAFE = 4,
};

// The frame of a call: holds the lock, and has found out whether the call can be made at all.
class Call {
  public:
    Call(const char *name, unsigned traits);

    CUresult error = CUDA_SUCCESS;
    // The current one; null unless it is needed.
    Context *context = nullptr;

    // The stream of a handle. Fails for a stream that is destroyed, or whose context is or is broken.
    CUresult find(CUstream handle, std::shared_ptr<Stream> &stream) const;
    CUresult find(CUevent handle, Event *&event) const;

  private:
    std::unique_lock<std::mutex> lock_;
};

#define MOFO_CALL(traits)                                                                                    \
    const ::emulation::Call call(__func__, traits);                                                          \
    if (call.error != CUDA_SUCCESS) {                                                                        \
        return call.error;                                                                                   \
    }

// call.cpp

// Ends the process if mofo_emulated_forbid forbids this.
void check_forbidden(const char *name);
// Whether it forbids it in this thread only.
extern thread_local bool thread_forbids;
// True while a function of cuLaunchHostFunc runs in this thread: it may not call the driver.
extern thread_local bool in_host_function;

// device.cpp

// Null if there is no such device.
Device *find_device(CUdevice device);

// context.cpp

// Null if there is none.
Context *current_context();

// stream.cpp

// Adds work to a stream, or to what is captured of it.
CUresult submit(Stream &stream, Work work, std::vector<Point> after = {});
// Does a stream's work to the end of its present queue, and only what that waits for of others.
void finish(Stream &stream);
void finish(const Point &point);
void finish(Context &context);
void finish(Device &device);
// Forgets all work that has not run.
void drop_work(Context &context);
// For cuStreamQuery and cuEventQuery: does one piece of the work that is left before `point`.
CUresult query(const Point &point);

// graph.cpp

void invalidate(Context &context);
// Ends all captures of a context's streams, or of one, that is destroyed.
void abandon_captures(const Context &context);
void abandon_capture(const Stream &stream);
bool is_captured(const Context &context);
// Whether the default stream may be used: it must not wait for a captured stream. `may_query`: a violation leaves
// the capture valid.
CUresult check_legacy(Context &context, bool may_query = false);
// For a call that could wait for captured work; invalidates what forbids it.
CUresult check_unsafe();
CUresult capture_work(Stream &stream, Work work);
void capture_record(Stream &stream, Event &event);
CUresult capture_wait(Stream &stream, const Event &event);

// memory.cpp

// Frees all memory of a context.
void free_memory(Context &context);

// While there is one, device memory can be accessed: work is done.
class DeviceMemory {
  public:
    DeviceMemory();
    ~DeviceMemory();
    DeviceMemory(const DeviceMemory &) = delete;
    DeviceMemory &operator=(const DeviceMemory &) = delete;
};

} // namespace emulation

#endif
