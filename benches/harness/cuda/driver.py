"""The part of CUDA's driver API that measurements without PyTorch need, through ctypes."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

from ..library import api
from ..memory import Array

STREAM_NON_BLOCKING = 1


class Driver:
    """The driver, with the primary context of a device current in this thread, and a stream."""

    def __init__(self) -> None:
        self.functions = ctypes.CDLL("libcuda.so.1")
        self.device, context, self.stream = c_int(), c_void_p(), c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", byref(self.device), 0)
        self.call("cuDevicePrimaryCtxRetain", byref(context), self.device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", byref(self.stream), STREAM_NON_BLOCKING)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls the driver, and raises its error. Addresses and sizes must have their ctypes."""
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
        emulated = hasattr(self.functions, "mofo_emulated_launches")
        return {"gpu": name.value.decode(), "cuda_driver": version.value, "emulated": emulated}

    def memory(self) -> int:
        """All bytes of the device."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return total.value

    def synchronize(self) -> None:
        self.call("cuCtxSynchronize")

    def pinned_report(self) -> api.CStepReport:
        """A report in page-locked memory, which is kept to the program's end."""
        start = c_void_p()
        self.call("cuMemAllocHost_v2", byref(start), c_size_t(ctypes.sizeof(api.CStepReport)))
        assert start.value is not None
        return api.CStepReport.from_address(start.value)


class DeviceBuffer:
    """Memory of the device."""

    def __init__(self, driver: Driver, size: int) -> None:
        start = c_uint64()
        driver.call("cuMemAlloc_v2", byref(start), c_size_t(max(size, 1)))
        self.driver, self.start, self.size = driver, start.value, size

    def write(self, words: Array, offset: int) -> None:
        """Copies them to so many bytes from the start."""
        assert offset + words.nbytes <= self.size
        source = c_void_p(words.ctypes.data)
        self.driver.call("cuMemcpyHtoD_v2", c_uint64(self.start + offset), source, c_size_t(words.nbytes))
        self.driver.synchronize()

    def close(self) -> None:
        self.driver.call("cuMemFree_v2", c_uint64(self.start))
