"""The part of CUDA's driver API that measurements without PyTorch need, through ctypes."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from libmofo import StepReport

STREAM_NON_BLOCKING = 1
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76
MULTIPROCESSORS = 16
Words = NDArray[Any]


class Driver:
    """The driver, with the primary context of a device current in this thread, and a stream."""

    SIGNATURES: ClassVar[dict[str, list[Any]]] = {
        "cuInit": [c_uint],
        "cuDriverGetVersion": [POINTER(c_int)],
        "cuDeviceGet": [POINTER(c_int), c_int],
        "cuDeviceGetName": [c_char_p, c_int, c_int],
        "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
        "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
        "cuCtxSetCurrent": [c_void_p],
        "cuCtxSynchronize": [],
        "cuMemGetInfo_v2": [POINTER(c_size_t), POINTER(c_size_t)],
        "cuMemAlloc_v2": [POINTER(c_uint64), c_size_t],
        "cuMemFree_v2": [c_uint64],
        "cuMemAllocHost_v2": [POINTER(c_void_p), c_size_t],
        "cuMemFreeHost": [c_void_p],
        "cuMemcpyHtoD_v2": [c_uint64, c_void_p, c_size_t],
        "cuMemcpyDtoH_v2": [c_void_p, c_uint64, c_size_t],
        "cuStreamCreate": [POINTER(c_void_p), c_uint],
        "cuStreamSynchronize": [c_void_p],
        "cuGetErrorName": [c_int, POINTER(c_char_p)],
    }

    def __init__(self, device_index: int = 0) -> None:
        self.functions = ctypes.CDLL("libcuda.so.1")
        for name, argtypes in self.SIGNATURES.items():
            function = getattr(self.functions, name)
            function.restype = c_int
            function.argtypes = argtypes
        self.call("cuInit", 0)
        device, context, stream = c_int(), c_void_p(), c_void_p()
        self.call("cuDeviceGet", byref(device), device_index)
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", byref(stream), STREAM_NON_BLOCKING)
        self.device = device.value
        self.stream = stream.value

    def call(self, name: str, *arguments: Any) -> None:
        """Calls the driver, and raises its error."""
        code = getattr(self.functions, name)(*arguments)
        if code != 0:
            text = c_char_p()
            self.functions.cuGetErrorName(code, byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else code}")

    def describe(self) -> dict[str, Any]:
        """The device and the driver."""
        name, version = ctypes.create_string_buffer(256), c_int()
        self.call("cuDeviceGetName", name, len(name), self.device)
        self.call("cuDriverGetVersion", byref(version))
        capability = f"{self.attribute(COMPUTE_CAPABILITY_MAJOR)}.{self.attribute(COMPUTE_CAPABILITY_MINOR)}"
        return {
            "gpu": name.value.decode(),
            "compute_capability": capability,
            "multiprocessors": self.attribute(MULTIPROCESSORS),
            "memory_gib": round(self.memory()[1] / 2**30, 1),
            "cuda_driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
            "emulated": hasattr(self.functions, "mofo_emulated_launches"),
        }

    def attribute(self, number: int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), number, self.device)
        return value.value

    def memory(self) -> tuple[int, int]:
        """Free and all bytes of the device."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def synchronize(self) -> None:
        self.call("cuCtxSynchronize")


class DeviceBuffer:
    """Memory of the device."""

    def __init__(self, driver: Driver, size: int) -> None:
        start = c_uint64()
        driver.call("cuMemAlloc_v2", byref(start), max(size, 1))
        self.driver = driver
        self.start = start.value
        self.size = size

    def write(self, words: Words) -> None:
        """Waits for everything on the device before and after."""
        assert words.nbytes <= self.size
        self.driver.synchronize()
        self.driver.call("cuMemcpyHtoD_v2", self.start, words.ctypes.data, words.nbytes)
        self.driver.synchronize()

    def close(self) -> None:
        self.driver.call("cuMemFree_v2", self.start)


def read(driver: Driver, start: int, words: Words) -> None:
    """Fills an array from the device, after all that was asked of the device."""
    driver.synchronize()
    driver.call("cuMemcpyDtoH_v2", words.ctypes.data, start, words.nbytes)


def upload(driver: Driver, words: Words) -> DeviceBuffer:
    """A copy on the device."""
    buffer = DeviceBuffer(driver, words.nbytes)
    buffer.write(words)
    return buffer


def pinned_report(driver: Driver) -> StepReport:
    """A report in page-locked memory, which is kept to the program's end."""
    start = c_void_p()
    driver.call("cuMemAllocHost_v2", byref(start), ctypes.sizeof(StepReport))
    assert start.value is not None
    return StepReport.from_address(start.value)


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounds finite numbers to nearest, ties to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
