// What is captured of streams, and graphs.

#include "driver.hpp"

#include <algorithm>

namespace emulation {
namespace {

// What cuThreadExchangeStreamCaptureMode sets.
thread_local int thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

CUgraphNode node_handle(const Graph &graph, std::size_t index) {
    return reinterpret_cast<CUgraphNode>(reinterpret_cast<std::uintptr_t>(graph.handle) + 1 + index);
}

// Ends a capture: its streams are as others again.
void end(const std::shared_ptr<Capture> &capture) {
    for (const auto &stream : capture->streams) {
        stream->capture.reset();
        stream->tail.clear();
        stream->shown.clear();
    }
    capture->ended = true;
    capture->streams.clear();
    capture->origin.reset();
    auto &captures = driver().captures;
    captures.erase(std::remove(captures.begin(), captures.end(), capture), captures.end());
}

void discard(const std::shared_ptr<Capture> &capture) {
    driver().graphs.remove(capture->graph->handle);
    end(capture);
}

// Whether every node comes before the end of the stream that the capture began with.
bool all_joined(const Capture &capture) {
    const auto &nodes = capture.graph->nodes;
    std::vector<bool> joined(nodes.size());
    std::vector<std::size_t> pending = capture.origin->tail;
    while (!pending.empty()) {
        const std::size_t node = pending.back();
        pending.pop_back();
        if (!joined[node]) {
            joined[node] = true;
            pending.insert(pending.end(), nodes[node].after.begin(), nodes[node].after.end());
        }
    }
    return std::find(joined.begin(), joined.end(), false) == joined.end();
}

// An order that the edges allow. As with streams, a node is done when one is that needs it, its own stream's
// before those of others: a missing edge shows.
Sequence order(const Graph &graph) {
    const auto &nodes = graph.nodes;
    const bool reversed = driver().reversed;
    std::vector<bool> needed(nodes.size());
    for (const Node &node : nodes) {
        for (const std::size_t before : node.after) {
            needed[before] = true;
        }
    }
    auto sequence = std::make_shared<std::vector<Work>>();
    std::vector<bool> placed(nodes.size());
    struct Visit {
        std::size_t node;
        std::size_t next;
    };
    std::vector<Visit> path;
    for (std::size_t last = 0; last < nodes.size(); last++) {
        if (needed[last]) {
            continue;
        }
        path.push_back({last, 0});
        while (!path.empty()) {
            Visit &visit = path.back();
            const auto &after = nodes[visit.node].after;
            if (placed[visit.node]) {
                path.pop_back();
            } else if (visit.next == after.size()) {
                placed[visit.node] = true;
                sequence->push_back(nodes[visit.node].work);
                path.pop_back();
            } else {
                const std::size_t i = visit.next++;
                path.push_back({after[reversed ? after.size() - 1 - i : i], 0});
            }
        }
    }
    return sequence;
}

CUresult instantiate(CUgraphExec *exec, CUgraph handle) {
    const auto *graph = driver().graphs.find(handle);
    if (exec == nullptr || graph == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *exec = driver().execs.add(order(**graph));
    return CUDA_SUCCESS;
}

CUresult capture_info(const Call &call, CUstream handle, int *status, std::uint64_t *id, CUgraph *graph,
                      const CUgraphNode **dependencies, std::size_t *num_dependencies) {
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (status == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (stream->legacy) {
        if (const CUresult error = check_legacy(*call.context, true)) {
            return error;
        }
    }
    const Capture *capture = stream->capture.get();
    if (capture == nullptr) {
        *status = CU_STREAM_CAPTURE_STATUS_NONE;
        return CUDA_SUCCESS;
    }
    if (capture->invalidated) {
        *status = CU_STREAM_CAPTURE_STATUS_INVALIDATED;
        return CUDA_SUCCESS;
    }
    *status = CU_STREAM_CAPTURE_STATUS_ACTIVE;
    if (id != nullptr) {
        *id = capture->id;
    }
    if (graph != nullptr) {
        *graph = capture->graph->handle;
    }
    stream->shown.clear();
    for (const std::size_t node : stream->tail) {
        stream->shown.push_back(node_handle(*capture->graph, node));
    }
    if (dependencies != nullptr) {
        *dependencies = stream->shown.data();
    }
    if (num_dependencies != nullptr) {
        *num_dependencies = stream->shown.size();
    }
    return CUDA_SUCCESS;
}

} // namespace

void invalidate(Context &context) {
    for (const auto &stream : context.streams) {
        if (stream->capture != nullptr) {
            stream->capture->invalidated = true;
        }
    }
}

void abandon_captures(const Context &context) {
    const auto streams = context.streams;
    for (const auto &stream : streams) {
        if (stream->capture != nullptr) {
            discard(std::shared_ptr<Capture>(stream->capture));
        }
    }
}

void abandon_capture(const Stream &stream) {
    const std::shared_ptr<Capture> capture = stream.capture;
    if (capture == nullptr) {
        return;
    }
    capture->invalidated = true;
    if (capture->origin.get() == &stream) {
        discard(capture);
    }
}

bool is_captured(const Context &context) {
    return std::any_of(context.streams.begin(), context.streams.end(),
                       [](const auto &stream) { return stream->capture != nullptr; });
}

CUresult check_legacy(Context &context, bool may_query) {
    CUresult error = CUDA_SUCCESS;
    for (const auto &stream : context.streams) {
        if (stream->blocking && stream->capture != nullptr) {
            error = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
            stream->capture->invalidated |= !may_query;
        }
    }
    return error;
}

CUresult check_unsafe() {
    CUresult error = CUDA_SUCCESS;
    for (const auto &capture : driver().captures) {
        const bool own = capture->thread == std::this_thread::get_id();
        const bool counts = own ? capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED
                                : capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                                      thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (counts && thread_mode != CU_STREAM_CAPTURE_MODE_RELAXED) {
            capture->invalidated = true;
            error = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return error;
}

CUresult capture_work(Stream &stream, Work work) {
    if (stream.capture->invalidated) {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    auto &nodes = stream.capture->graph->nodes;
    nodes.push_back({std::move(work), std::move(stream.tail)});
    stream.tail = {nodes.size() - 1};
    return CUDA_SUCCESS;
}

void capture_record(Stream &stream, Event &event) {
    event.capture = stream.capture;
    event.nodes = stream.tail;
    event.recorded = {};
    event.time.reset();
}

CUresult capture_wait(Stream &stream, const Event &event) {
    if (stream.capture != nullptr && stream.capture->invalidated) {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    if (event.capture == nullptr) {
        if (event.recorded.stream == nullptr) {
            return CUDA_SUCCESS;
        }
        stream.capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (event.capture->ended) {
        if (stream.capture != nullptr) {
            stream.capture->invalidated = true;
            return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        }
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    if (event.capture->invalidated) {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    if (stream.legacy) {
        event.capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    if (stream.capture == nullptr) {
        stream.capture = event.capture;
        stream.capture->streams.push_back(stream.shared_from_this());
    } else if (stream.capture != event.capture) {
        stream.capture->invalidated = true;
        event.capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    for (const std::size_t node : event.nodes) {
        if (std::find(stream.tail.begin(), stream.tail.end(), node) == stream.tail.end()) {
            stream.tail.push_back(node);
        }
    }
    return CUDA_SUCCESS;
}

} // namespace emulation

using namespace emulation;

CUresult cuStreamIsCapturing(CUstream handle, int *status) {
    MOFO_CALL(NEEDS_CONTEXT)
    return capture_info(call, handle, status, nullptr, nullptr, nullptr, nullptr);
}

CUresult cuStreamGetCaptureInfo_v2(CUstream handle, int *status, uint64_t *id, CUgraph *graph,
                                   const CUgraphNode **dependencies, size_t *num_dependencies) {
    MOFO_CALL(NEEDS_CONTEXT)
    return capture_info(call, handle, status, id, graph, dependencies, num_dependencies);
}

CUresult cuStreamGetCaptureInfo_v3(CUstream handle, int *status, uint64_t *id, CUgraph *graph,
                                   const CUgraphNode **dependencies, const void **edges,
                                   size_t *num_dependencies) {
    MOFO_CALL(NEEDS_CONTEXT)
    if (edges != nullptr) {
        *edges = nullptr;
    }
    return capture_info(call, handle, status, id, graph, dependencies, num_dependencies);
}

CUresult cuStreamBeginCapture_v2(CUstream handle, int mode) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (stream->legacy) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (stream->capture != nullptr) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    const auto capture = std::make_shared<Capture>();
    capture->id = ++driver().numbers;
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->origin = stream;
    capture->streams = {stream};
    capture->graph = std::make_shared<Graph>();
    capture->graph->handle = driver().graphs.add(capture->graph);
    stream->capture = capture;
    driver().captures.push_back(capture);
    return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(handle, stream)) {
        return error;
    }
    if (graph == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const std::shared_ptr<Capture> capture = stream->capture;
    if (capture == nullptr) {
        return CUDA_ERROR_ILLEGAL_STATE;
    }
    if (capture->thread != std::this_thread::get_id() && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED) {
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    CUresult error = CUDA_SUCCESS;
    if (capture->invalidated) {
        error = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    } else if (capture->origin != stream) {
        capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    } else if (!all_joined(*capture)) {
        error = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    }
    if (error != CUDA_SUCCESS) {
        *graph = nullptr;
        discard(capture);
        return error;
    }
    *graph = capture->graph->handle;
    end(capture);
    return CUDA_SUCCESS;
}

CUresult cuThreadExchangeStreamCaptureMode(int *mode) {
    MOFO_CALL(0)
    if (mode == nullptr || *mode < CU_STREAM_CAPTURE_MODE_GLOBAL || *mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    std::swap(*mode, thread_mode);
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long) {
    MOFO_CALL(NEEDS_CONTEXT)
    return instantiate(exec, graph);
}

CUresult cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log,
                               size_t log_size) {
    MOFO_CALL(NEEDS_CONTEXT)
    if (error_node != nullptr) {
        *error_node = nullptr;
    }
    if (log != nullptr && log_size != 0) {
        *log = '\0';
    }
    return instantiate(exec, graph);
}

CUresult cuGraphUpload(CUgraphExec handle, CUstream stream_handle) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(stream_handle, stream)) {
        return error;
    }
    return driver().execs.find(handle) == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
    MOFO_CALL(NEEDS_CONTEXT)
    std::shared_ptr<Stream> stream;
    if (const CUresult error = call.find(stream_handle, stream)) {
        return error;
    }
    const Sequence *found = driver().execs.find(handle);
    if (found == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return submit(*stream, {CU_GRAPH_NODE_TYPE_GRAPH, [sequence = *found] {
                                for (const Work &work : *sequence) {
                                    work.run();
                                }
                            }});
}

CUresult cuGraphExecDestroy(CUgraphExec handle) {
    MOFO_CALL(0)
    if (driver().execs.find(handle) == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    driver().execs.remove(handle);
    return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph handle) {
    MOFO_CALL(0)
    if (driver().graphs.find(handle) == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    driver().graphs.remove(handle);
    return CUDA_SUCCESS;
}

CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode *nodes, size_t *num_nodes) {
    MOFO_CALL(0)
    const auto *found = driver().graphs.find(handle);
    if (found == nullptr || num_nodes == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const Graph &graph = **found;
    if (nodes != nullptr) {
        for (std::size_t i = 0; i < *num_nodes; i++) {
            nodes[i] = i < graph.nodes.size() ? node_handle(graph, i) : nullptr;
        }
        *num_nodes = std::min(*num_nodes, graph.nodes.size());
    } else {
        *num_nodes = graph.nodes.size();
    }
    return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetType(CUgraphNode handle, int *type) {
    MOFO_CALL(0)
    const auto number = reinterpret_cast<std::uintptr_t>(handle);
    const std::uintptr_t offset = number % decltype(driver().graphs)::SPACING;
    const auto *graph = driver().graphs.find(reinterpret_cast<CUgraph>(number - offset));
    if (type == nullptr || graph == nullptr || offset == 0 || offset > (*graph)->nodes.size()) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *type = (*graph)->nodes[offset - 1].work.type;
    return CUDA_SUCCESS;
}
