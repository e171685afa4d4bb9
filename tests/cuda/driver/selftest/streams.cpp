// When work is done, and in which order.

#include "selftest.hpp"

TEST(work_waits_until_it_is_asked_for) {
    CUstream one = nullptr, two = nullptr;
    OK(cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&two, CU_STREAM_NON_BLOCKING));
    const CUdeviceptr out = allocate(2);
    const auto before = mofo_emulated_launches();
    OK(cuMemsetD32Async(out, 0, 1, one));
    launch("add", 1, 32, Add{out, 1, 1}, one);
    OK(cuMemsetD32Async(out + 4, 0, 1, two));
    launch("add", 1, 32, Add{out + 4, 1, 1}, two);
    EQUAL(mofo_emulated_launches() - before, 0);
    OK(cuStreamSynchronize(one));
    EQUAL(mofo_emulated_launches() - before, 1);
    // A copy in the default stream does not wait for streams that are not blocking.
    EQUAL(read(out, 2)[1], 0xCDCDCDCDu);
    int queries = 0;
    while (cuStreamQuery(two) == CUDA_ERROR_NOT_READY) {
        queries++;
    }
    EQUAL(queries, 2);
    EQUAL(read(out, 2)[1], 1);
    OK(cuStreamDestroy(one));
    OK(cuStreamDestroy(two));
    OK(cuMemFree(out));
}

// Without the wait the result is another one, whichever stream is asked for first.
TEST(events_order_streams) {
    CUstream one = nullptr, two = nullptr;
    CUevent event = nullptr;
    OK(cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
    OK(cuStreamCreate(&two, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    const CUdeviceptr out = allocate(2);
    for (const bool waits : {false, true}) {
        OK(cuMemsetD32(out, 1, 2));
        OK(cuCtxSynchronize());
        launch("add", 1, 32, Add{out, 1, 10}, one);
        OK(cuEventRecord(event, one));
        launch("add", 1, 32, Add{out, 1, 100}, one);
        if (waits) {
            OK(cuStreamWaitEvent(two, event, 0));
        }
        launch("combine", 1, 32, Combine{out + 4, out, out, 1}, two);
        OK(cuStreamSynchronize(two));
        EQUAL(read(out, 2)[1], waits ? 4 * 11 : 4);
        EQUAL(read(out, 2)[0], waits ? 11 : 1);
        OK(cuStreamSynchronize(one));
        EQUAL(word(out), 111);
    }
    OK(cuEventSynchronize(event));
    OK(cuEventQuery(event));
    OK(cuEventDestroy(event));
    OK(cuStreamDestroy(one));
    OK(cuStreamDestroy(two));
    OK(cuMemFree(out));
}

TEST_IN_ANY_ORDER(default_stream_waits_for_blocking_ones) {
    CUstream blocking = nullptr;
    OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    const CUdeviceptr out = allocate(1);
    OK(cuMemsetD32(out, 1, 1));
    launch("add", 1, 1, Add{out, 1, 1}, blocking);
    launch("combine", 1, 1, Combine{out, out, out, 1});
    launch("add", 1, 1, Add{out, 1, 5}, blocking);
    OK(cuStreamSynchronize(blocking));
    EQUAL(word(out), 13);
    launch("add", 1, 1, Add{out, 1, 5}, blocking);
    OK(cuStreamSynchronize(nullptr));
    EQUAL(cuStreamQuery(blocking), CUDA_SUCCESS);
    OK(cuStreamDestroy(blocking));
    OK(cuMemFree(out));
}

TEST(work_of_a_destroyed_stream_is_done) {
    CUstream stream = nullptr;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    const CUdeviceptr out = allocate(1), other = allocate(1);
    OK(cuMemsetD32(out, 0, 1));
    launch("add", 1, 1, Add{out, 1, 1}, stream);
    OK(cuStreamDestroy(stream));
    EQUAL(cuStreamSynchronize(stream), CUDA_ERROR_INVALID_HANDLE);
    EQUAL(word(out), 0);
    // A free waits for the device.
    OK(cuMemFree(other));
    EQUAL(word(out), 1);
    OK(cuMemFree(out));
}

TEST(times_of_events) {
    CUevent start = nullptr, stop = nullptr, untimed = nullptr;
    OK(cuEventCreate(&start, 0));
    OK(cuEventCreate(&stop, 0));
    OK(cuEventCreate(&untimed, CU_EVENT_DISABLE_TIMING));
    float time = -1;
    EQUAL(cuEventElapsedTime(&time, start, stop), CUDA_ERROR_INVALID_HANDLE);
    OK(cuEventQuery(start));
    OK(cuEventSynchronize(start));
    OK(cuEventRecord(start, nullptr));
    OK(cuEventRecord(stop, nullptr));
    EQUAL(cuEventElapsedTime(&time, start, stop), CUDA_ERROR_NOT_READY);
    OK(cuEventSynchronize(stop));
    OK(cuEventElapsedTime(&time, start, stop));
    CHECK(time >= 0 && time < 1000);
    OK(cuEventRecord(untimed, nullptr));
    EQUAL(cuEventElapsedTime(&time, start, untimed), CUDA_ERROR_INVALID_HANDLE);
    for (const CUevent event : {start, stop, untimed}) {
        OK(cuEventDestroy(event));
        EQUAL(cuEventDestroy(event), CUDA_ERROR_INVALID_HANDLE);
    }
}

static void count(void *counter) {
    ++*static_cast<int *>(counter);
    EQUAL(cuCtxSynchronize(), CUDA_ERROR_NOT_PERMITTED);
}

TEST(host_functions) {
    int calls = 0;
    OK(cuLaunchHostFunc(nullptr, count, &calls));
    EQUAL(calls, 0);
    OK(cuCtxSynchronize());
    EQUAL(calls, 1);
}

TEST(copies) {
    CUstream stream = nullptr;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    const CUdeviceptr a = allocate(4), b = allocate(4);
    void *pinned = nullptr;
    OK(cuMemAllocHost(&pinned, 16));
    unsigned pageable[4] = {1, 2, 3, 4};
    std::memcpy(pinned, pageable, 16);
    OK(cuMemcpyHtoDAsync(a, pageable, 16, stream));
    OK(cuMemcpyHtoDAsync(b, pinned, 16, stream));
    // What is not pinned has been taken already; what is, is read when the copy runs.
    std::memset(pageable, 0, 16);
    static_cast<unsigned *>(pinned)[0] = 5;
    OK(cuStreamSynchronize(stream));
    EQUAL(word(a), 1);
    EQUAL(word(b), 5);
    OK(cuMemcpyDtoDAsync(a, b + 4, 8, stream));
    OK(cuMemcpyDtoHAsync(pinned, a, 8, stream));
    OK(cuStreamSynchronize(stream));
    EQUAL(static_cast<unsigned *>(pinned)[0], 2);
    OK(cuMemcpyDtoD(b, a, 16));
    EQUAL(read(b, 2)[1], 3);
    OK(cuMemcpy(b, reinterpret_cast<std::uintptr_t>(pageable), 16));
    EQUAL(word(b), 0);
    OK(cuMemsetD8(b, 0x11, 3));
    EQUAL(word(b), 0x00111111);
    EQUAL(cuMemcpyHtoD(a, pageable, 17), CUDA_ERROR_INVALID_VALUE);
    EQUAL(cuMemcpyHtoD(reinterpret_cast<std::uintptr_t>(pageable), pageable, 4), CUDA_ERROR_INVALID_VALUE);
    EQUAL(cuMemsetD32(a + 2, 0, 1), CUDA_ERROR_INVALID_VALUE);
    EQUAL(cuMemsetD8(a + 8, 0, 9), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFreeHost(pinned));
    OK(cuMemFree(a));
    OK(cuMemFree(b));
    OK(cuStreamDestroy(stream));
}
