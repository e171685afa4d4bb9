// What is captured, and what a capture does not allow.

#include <functional>
#include <thread>

#include "selftest.hpp"

TEST(a_captured_fork_and_join_is_replayed) {
    CUstream main = nullptr, side = nullptr;
    CUevent fork = nullptr, join = nullptr;
    OK(cuStreamCreate(&main, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&side, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING));
    OK(cuEventCreate(&join, CU_EVENT_DISABLE_TIMING));
    const CUdeviceptr x = allocate(1), y = allocate(1);
    OK(cuMemsetD32(x, 0, 1));
    OK(cuStreamSynchronize(nullptr));
    for (const bool waits : {false, true}) {
        int status = -1;
        OK(cuStreamBeginCapture(main, CU_STREAM_CAPTURE_MODE_GLOBAL));
        OK(cuStreamIsCapturing(main, &status));
        EQUAL(status, CU_STREAM_CAPTURE_STATUS_ACTIVE);
        launch("add", 1, 1, Add{x, 1, 1}, main);
        OK(cuEventRecord(fork, main));
        OK(cuStreamWaitEvent(side, fork, 0));
        OK(cuMemsetD32Async(y, 7, 1, side));
        OK(cuEventRecord(join, side));
        if (waits) {
            OK(cuStreamWaitEvent(main, join, 0));
        }
        launch("combine", 1, 1, Combine{x, y, x, 1}, main);
        if (!waits) {
            OK(cuStreamWaitEvent(main, join, 0));
            launch("add", 1, 1, Add{x, 1, 0}, main);
        }
        std::uint64_t id = 0;
        CUgraph graph = nullptr, captured = nullptr;
        std::size_t num_nodes = 0;
        OK(cuStreamGetCaptureInfo(side, &status, &id, &captured, nullptr, &num_nodes));
        CHECK(id != 0);
        EQUAL(num_nodes, 1);
        OK(cuStreamEndCapture(main, &graph));
        CHECK(graph == captured);
        OK(cuStreamIsCapturing(side, &status));
        EQUAL(status, CU_STREAM_CAPTURE_STATUS_NONE);
        EQUAL(cuEventQuery(fork), CUDA_ERROR_CAPTURED_EVENT);
        OK(cuGraphGetNodes(graph, nullptr, &num_nodes));
        EQUAL(num_nodes, waits ? 3 : 4);
        std::vector<CUgraphNode> nodes(num_nodes);
        OK(cuGraphGetNodes(graph, nodes.data(), &num_nodes));
        int type = -1;
        OK(cuGraphNodeGetType(nodes[1], &type));
        EQUAL(type, CU_GRAPH_NODE_TYPE_MEMSET);

        CUgraphExec exec = nullptr;
        OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
        OK(cuGraphDestroy(graph));
        OK(cuMemsetD32(x, 0, 1));
        OK(cuMemsetD32(y, 0, 1));
        OK(cuStreamSynchronize(nullptr));
        const auto before = mofo_emulated_launches();
        OK(cuGraphLaunch(exec, main));
        OK(cuGraphLaunch(exec, main));
        EQUAL(mofo_emulated_launches() - before, 0);
        OK(cuGraphExecDestroy(exec));
        OK(cuStreamSynchronize(main));
        EQUAL(mofo_emulated_launches() - before, waits ? 4 : 6);
        // 3 · 7 more at each launch; without the wait the first launch finds y before it is set.
        EQUAL(word(x), waits ? 44 : 23);
        EQUAL(cuGraphLaunch(exec, main), CUDA_ERROR_INVALID_VALUE);
    }
    OK(cuEventDestroy(fork));
    OK(cuEventDestroy(join));
    OK(cuStreamDestroy(main));
    OK(cuStreamDestroy(side));
    OK(cuMemFree(x));
    OK(cuMemFree(y));
}

// What a capture does not allow; and then it has failed.
TEST(captures_refuse) {
    CUstream stream = nullptr, other = nullptr, blocking = nullptr;
    CUevent event = nullptr, recorded = nullptr;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    OK(cuEventCreate(&event, 0));
    OK(cuEventCreate(&recorded, 0));
    OK(cuEventRecord(recorded, other));
    const CUdeviceptr memory = allocate(4);
    CUdeviceptr pointer = 0;
    unsigned value = 0, flags = 0;
    int priority = 0;
    CUcontext its_context = nullptr;
    unsigned long long id = 0;
    struct {
        const char *what;
        CUresult expected;
        std::function<CUresult()> act;
    } const cases[] = {
        {"allocate", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuMemAlloc(&pointer, 4); }},
        {"free", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuMemFree(memory); }},
        {"synchronize the stream", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
         [&] { return cuStreamSynchronize(stream); }},
        {"query the stream", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuStreamQuery(stream); }},
        {"ask for the stream's context", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
         [&] { return cuStreamGetCtx(stream, &its_context); }},
        {"ask for its flags", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
         [&] { return cuStreamGetFlags(stream, &flags); }},
        {"ask for its priority", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
         [&] { return cuStreamGetPriority(stream, &priority); }},
        {"ask for its number", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
         [&] { return cuStreamGetId(stream, &id); }},
        {"synchronize the context", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuCtxSynchronize(); }},
        {"copy in the default stream", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
         [&] { return cuMemcpyDtoH(&value, memory, 4); }},
        {"wait for what is not captured", CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
         [&] { return cuStreamWaitEvent(stream, recorded, 0); }},
        {"wait for a captured event", CUDA_ERROR_CAPTURED_EVENT,
         [&] {
             OK(cuEventRecord(event, stream));
             return cuEventSynchronize(event);
         }},
        {"make the default stream wait", CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
         [&] {
             OK(cuEventRecord(event, stream));
             return cuStreamWaitEvent(nullptr, event, 0);
         }},
        {"merge", CUDA_ERROR_STREAM_CAPTURE_MERGE,
         [&] {
             OK(cuStreamBeginCapture(other, CU_STREAM_CAPTURE_MODE_RELAXED));
             OK(cuEventRecord(event, other));
             const CUresult result = cuStreamWaitEvent(stream, event, 0);
             CUgraph graph = nullptr;
             EQUAL(cuStreamEndCapture(other, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
             return result;
         }},
        {"end another stream", CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
         [&] {
             OK(cuEventRecord(event, stream));
             OK(cuStreamWaitEvent(other, event, 0));
             CUgraph graph = nullptr;
             return cuStreamEndCapture(other, &graph);
         }},
    };
    for (const auto &one : cases) {
        const int before = failures;
        OK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
        OK(cuMemsetD8Async(memory, 0, 4, stream));
        EQUAL(one.act(), one.expected);
        EQUAL(cuMemsetD8Async(memory, 0, 4, stream), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        CUgraph graph = nullptr;
        EQUAL(cuStreamEndCapture(stream, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        CHECK(graph == nullptr);
        if (failures != before) {
            std::printf("    in the case: %s\n", one.what);
        }
    }

    CUgraph graph = nullptr;
    EQUAL(cuStreamEndCapture(stream, &graph), CUDA_ERROR_ILLEGAL_STATE);
    EQUAL(cuStreamBeginCapture(nullptr, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);

    // A fork that is not joined.
    OK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuEventRecord(event, stream));
    OK(cuStreamWaitEvent(other, event, 0));
    OK(cuMemsetD8Async(memory, 0, 4, other));
    EQUAL(cuStreamEndCapture(stream, &graph), CUDA_ERROR_STREAM_CAPTURE_UNJOINED);

    // The default stream waits for blocking streams; asking whether it is captured does no harm.
    OK(cuStreamBeginCapture(blocking, CU_STREAM_CAPTURE_MODE_RELAXED));
    int status = -1;
    EQUAL(cuStreamIsCapturing(nullptr, &status), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    OK(cuMemsetD8Async(memory, 0, 4, blocking));
    EQUAL(cuMemsetD8(memory, 0, 4), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    EQUAL(cuStreamEndCapture(blocking, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    // Other modes allow more, and other threads may not end a capture.
    for (const int mode : {CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL}) {
        OK(cuStreamBeginCapture(stream, mode));
        std::thread([&] {
            OK(cuCtxSetCurrent(context));
            EQUAL(cuStreamEndCapture(stream, &graph), CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
            const bool global = mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
            EQUAL(cuMemAlloc(&pointer, 4), global ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS);
            if (!global) {
                OK(cuMemFree(pointer));
            }
        }).join();
        EQUAL(cuStreamEndCapture(stream, &graph),
              mode == CU_STREAM_CAPTURE_MODE_GLOBAL ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS);
    }
    OK(cuGraphDestroy(graph));
    OK(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    int mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    OK(cuMemAlloc(&pointer, 4));
    OK(cuThreadExchangeStreamCaptureMode(&mode));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphDestroy(graph));
    OK(cuMemFree(pointer));

    OK(cuMemFree(memory));
    OK(cuEventDestroy(event));
    OK(cuEventDestroy(recorded));
    OK(cuStreamDestroy(stream));
    OK(cuStreamDestroy(other));
    OK(cuStreamDestroy(blocking));
}
