// Streams and events. Work runs when something waits for it, and not before.

#include "driver.hpp"

#include <algorithm>

namespace emulation {
namespace {

// Does a stream's next piece of work, after what that waits for.
void step(Stream &stream) {
    const Queued next = std::move(stream.queue.front());
    stream.queue.pop_front();
    for (const Point &point : next.after) {
        finish(point);
    }
    if (next.work.run) {
        next.work.run();
    }
    stream.done++;
}

// What a stream waits for without being told: the default stream for all blocking ones, and these for it.
void add_implicit(const Stream &stream, std::vector<Point> &after) {
    if (stream.legacy) {
        for (const auto &other : stream.context->streams) {
            if (other->blocking && !other->idle()) {
                after.push_back(other->end());
            }
        }
    } else if (stream.blocking && !stream.context->legacy->idle()) {
        after.push_back(stream.context->legacy->end());
    }
}

// The streams of a context, in the order in which a call that waits for all of them begins with them.
std::vector<std::shared_ptr<Stream>> all_streams(const Context &context) {
    auto streams = context.streams;
    if (context.legacy != nullptr) {
        streams.push_back(context.legacy);
    }
    if (driver().reversed) {
        std::reverse(streams.begin(), streams.end());
    }
    return streams;
}

void forget_destroyed(Context &context) {
    auto &streams = context.streams;
    streams.erase(std::remove_if(streams.begin(), streams.end(),
                                 [](const auto &stream) { return stream->destroyed && stream->idle(); }),
                  streams.end());
}

CUresult create(const Call &call, CUstream *handle, unsigned flags, int priority) {
    if (handle == nullptr || flags > CU_STREAM_NON_BLOCKING) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const auto stream = std::make_shared<Stream>();
    stream->context = call.context;
    stream->legacy = false;
    stream->blocking = flags == CU_STREAM_DEFAULT;
    stream->priority = std::max(-5, std::min(priority, 0));
    stream->handle = driver().streams.add(stream);
    call.context->streams.push_back(stream);
    *handle = stream->handle;
    return CUDA_SUCCESS;
}

// For what CUDA does not tell of a stream that is captured; to ask ends the capture. Only whether it is captured, and
// how, can be asked.
CUresult check_not_captured(const Stream &stream) {
    if (stream.capture == nullptr) {
        return CUDA_SUCCESS;
    }
    stream.capture->invalidated = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

} // namespace

CUresult submit(Stream &stream, Work work, std::vector<Point> after) {
    if (stream.capture != nullptr) {
        return capture_work(stream, std::move(work));
    }
    if (stream.legacy) {
        if (const CUresult error = check_legacy(*stream.context)) {
            return error;
        }
    }
    add_implicit(stream, after);
    stream.queue.push_back({std::move(work), std::move(after)});
    stream.issued++;
    return CUDA_SUCCESS;
}

void finish(const Point &point) {
    if (point.stream->done < point.position) {
        const DeviceMemory accessible;
        do {
            step(*point.stream);
        } while (point.stream->done < point.position);
    }
}

void finish(Stream &stream) { finish(stream.end()); }

void finish(Context &context) {
    for (const auto &stream : all_streams(context)) {
        finish(*stream);
    }
    forget_destroyed(context);
}

void finish(Device &device) {
    driver().contexts.for_each([&](const auto &context) {
        if (context->device == &device && context->alive) {
            finish(*context);
        }
    });
}

void drop_work(Context &context) {
    for (const auto &stream : all_streams(context)) {
        stream->queue.clear();
        stream->done = stream->issued;
    }
    forget_destroyed(context);
}

// So that a loop of queries ends.
CUresult query(const Point &point) {
    if (point.stream == nullptr || point.stream->done >= point.position) {
        return CUDA_SUCCESS;
    }
    const DeviceMemory accessible;
    step(*point.stream);
    return CUDA_ERROR_NOT_READY;
}

} // namespace emulation

using namespace emulation;

CUresult cuStreamCreate(CUstream *handle, unsigned flags) {
    MOFO_CALL(NEEDS_CONTEXT)
    return create(call, handle, flags, 0);
}

CUresult cuStreamCreateWithPriority(CUstream *handle, unsigned flags, int priority) {
    MOFO_CALL(NEEDS_CONTEXT)
    return create(call, handle, flags, priority);
}

CUresult cuStreamDestroy_v2(CUstream handle) {
    MOFO_CALL(NEEDS_CONTEXT)
    const auto *found = driver().streams.find(handle);
    if (found == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const std::shared_ptr<Stream> stream = *found;
    abandon_capture(*stream);
    stream->destroyed = true;
    driver().streams.remove(handle);
    // Work that it still has is done when something waits for its context, or for an event in it.
    forget_destroyed(*stream->context);
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream handle) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE)
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (const CUresult error = check_not_captured(*stream)) {
        return error;
    }
    if (stream->legacy) {
        // It waits for the blocking streams even if it has no work itself.
        if (const CUresult error = submit(*stream, {CU_GRAPH_NODE_TYPE_EMPTY, nullptr})) {
            return error;
        }
    }
    finish(*stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamQuery(CUstream handle) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (const CUresult error = check_not_captured(*stream)) {
        return error;
    }
    if (stream->legacy) {
        if (const CUresult error = check_legacy(*call.context)) {
            return error;
        }
        std::vector<Point> others;
        add_implicit(*stream, others);
        for (const Point &point : others) {
            if (const CUresult error = query(point)) {
                return error;
            }
        }
    }
    return query(stream->end());
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    Event *event = nullptr;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (const CUresult error = call.find(event_handle, event)) {
        return error;
    }
    if (flags > CU_EVENT_WAIT_EXTERNAL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (stream->capture != nullptr || event->capture != nullptr) {
        return flags == CU_EVENT_WAIT_EXTERNAL ? CUDA_ERROR_NOT_SUPPORTED : capture_wait(*stream, *event);
    }
    if (event->recorded.stream == nullptr) {
        return CUDA_SUCCESS;
    }
    return submit(*stream, {CU_GRAPH_NODE_TYPE_WAIT_EVENT, nullptr}, {event->recorded});
}

CUresult cuStreamGetCtx(CUstream handle, CUcontext *context) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (context == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (const CUresult error = check_not_captured(*stream)) {
        return error;
    }
    *context = stream->context->handle;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetFlags(CUstream handle, unsigned *flags) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (flags == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (const CUresult error = check_not_captured(*stream)) {
        return error;
    }
    *flags = stream->blocking ? CU_STREAM_DEFAULT : CU_STREAM_NON_BLOCKING;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetPriority(CUstream handle, int *priority) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (priority == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (const CUresult error = check_not_captured(*stream)) {
        return error;
    }
    *priority = stream->priority;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetId(CUstream handle, unsigned long long *id) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (id == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (const CUresult error = check_not_captured(*stream)) {
        return error;
    }
    if (stream->id == 0) {
        stream->id = ++driver().numbers;
    }
    *id = stream->id;
    return CUDA_SUCCESS;
}

CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *user_data) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (function == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return submit(*stream, {CU_GRAPH_NODE_TYPE_HOST, [=] {
                                in_host_function = true;
                                function(user_data);
                                in_host_function = false;
                            }});
}

CUresult cuEventCreate(CUevent *handle, unsigned flags) {
    MOFO_CALL(NEEDS_CONTEXT)
    if (handle == nullptr || flags > (CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    Event event{};
    event.context = call.context;
    event.flags = flags;
    *handle = driver().events.add(std::move(event));
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent handle) {
    MOFO_CALL(NEEDS_CONTEXT)
    if (driver().events.find(handle) == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    driver().events.remove(handle);
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    return cuEventRecordWithFlags(handle, stream_handle, 0);
}

CUresult cuEventRecordWithFlags(CUevent handle, CUstream stream_handle, unsigned flags) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    Event *event = nullptr;
    if (const CUresult error = call.find(stream_handle, stream)) {
        return error;
    }
    if (const CUresult error = call.find(handle, event)) {
        return error;
    }
    if (event->context != stream->context) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (flags > 1) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (stream->capture != nullptr) {
        if (stream->capture->invalidated) {
            return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        }
        if (flags != 0) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
        capture_record(*stream, *event);
        return CUDA_SUCCESS;
    }
    const auto time = std::make_shared<Clock::time_point>();
    const CUresult error =
        submit(*stream, {CU_GRAPH_NODE_TYPE_EVENT_RECORD, [=] { *time = Clock::now(); }});
    if (error == CUDA_SUCCESS) {
        event->time = time;
        event->recorded = stream->end();
        event->capture.reset();
        event->nodes.clear();
    }
    return error;
}

namespace {

// The point of an event that can be asked for, or waited for by the calling thread.
CUresult find_recorded(const Call &call, CUevent handle, Event *&event) {
    if (const CUresult error = call.find(handle, event)) {
        return error;
    }
    if (event->capture != nullptr) {
        event->capture->invalidated = true;
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    return CUDA_SUCCESS;
}

} // namespace

CUresult cuEventSynchronize(CUevent handle) {
    MOFO_CALL(NEEDS_CONTEXT | FORBIDDABLE)
    Event *event = nullptr;
    if (const CUresult error = find_recorded(call, handle, event)) {
        return error;
    }
    if (event->recorded.stream != nullptr) {
        finish(event->recorded);
    }
    return CUDA_SUCCESS;
}

CUresult cuEventQuery(CUevent handle) {
    MOFO_CALL(NEEDS_CONTEXT | UNSAFE)
    Event *event = nullptr;
    if (const CUresult error = find_recorded(call, handle, event)) {
        return error;
    }
    return query(event->recorded);
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start_handle, CUevent end_handle) {
    MOFO_CALL(NEEDS_CONTEXT)
    Event *events[2] = {};
    const CUevent handles[2] = {start_handle, end_handle};
    for (int i = 0; i < 2; i++) {
        if (const CUresult error = find_recorded(call, handles[i], events[i])) {
            return error;
        }
        if (events[i]->recorded.stream == nullptr || (events[i]->flags & CU_EVENT_DISABLE_TIMING)) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
    }
    if (milliseconds == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (const Event *event : events) {
        if (event->recorded.stream->done < event->recorded.position) {
            return CUDA_ERROR_NOT_READY;
        }
    }
    *milliseconds = std::chrono::duration<float, std::milli>(*events[1]->time - *events[0]->time).count();
    return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    return cuEventElapsedTime(milliseconds, start, end);
}
