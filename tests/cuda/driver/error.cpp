#include "driver.hpp"

namespace {

struct Error {
    CUresult code;
    const char *name;
    const char *text;
};

#define MOFO_ERROR(name, text) {name, #name, text}
const Error ERRORS[] = {
    MOFO_ERROR(CUDA_SUCCESS, "no error"),
    MOFO_ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    MOFO_ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    MOFO_ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    MOFO_ERROR(CUDA_ERROR_DEINITIALIZED, "driver shutting down"),
    MOFO_ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    MOFO_ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    MOFO_ERROR(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    MOFO_ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    MOFO_ERROR(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    MOFO_ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    MOFO_ERROR(CUDA_ERROR_ILLEGAL_STATE,
               "the operation cannot be performed in the present state"),
    MOFO_ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    MOFO_ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    MOFO_ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    MOFO_ERROR(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    MOFO_ERROR(CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE, "cannot set while device is active in this process"),
    MOFO_ERROR(CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"),
    MOFO_ERROR(CUDA_ERROR_ASSERT, "device-side assert triggered"),
    MOFO_ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    MOFO_ERROR(CUDA_ERROR_NOT_PERMITTED, "operation not permitted"),
    MOFO_ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    MOFO_ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    MOFO_ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
               "operation failed due to a previous error during capture"),
    MOFO_ERROR(CUDA_ERROR_STREAM_CAPTURE_MERGE,
               "operation would result in a merge of separate capture sequences"),
    MOFO_ERROR(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began"),
    MOFO_ERROR(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    MOFO_ERROR(CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
               "dependency created on uncaptured work in another stream"),
    MOFO_ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
               "operation would make the legacy stream depend on a capturing blocking stream"),
    MOFO_ERROR(CUDA_ERROR_CAPTURED_EVENT,
               "operation not permitted on an event last recorded in a capturing stream"),
    MOFO_ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
               "attempt to terminate a thread-local capture sequence from another thread"),
    MOFO_ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
};
#undef MOFO_ERROR

const Error *find(CUresult code) {
    for (const Error &error : ERRORS) {
        if (error.code == code) {
            return &error;
        }
    }
    return nullptr;
}

} // namespace

CUresult cuGetErrorName(CUresult code, const char **name) {
    const Error *error = find(code);
    if (name == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *name = error == nullptr ? nullptr : error->name;
    return error == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult code, const char **text) {
    const Error *error = find(code);
    if (text == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *text = error == nullptr ? nullptr : error->text;
    return error == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
