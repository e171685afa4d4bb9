"""An optimizer on CUDA: a GPU or, where LD_LIBRARY_PATH finds the emulated driver (`make emulated-cuda`), the CPU.

Memory comes from the driver itself, through ctypes.
"""

from __future__ import annotations

import ctypes
import os
import struct
import unittest
from typing import Any

import mofo
from support import floats, optimizer

MISSING = "no CUDA driver, or no GPU"


def available() -> bool:
    if mofo.cuda_available():
        return True
    if os.environ.get("MOFO_REQUIRE_CUDA") == "1":
        raise RuntimeError(f"MOFO_REQUIRE_CUDA is 1, and there is {MISSING}")
    return False


class Device:
    """The first GPU's memory."""

    def __init__(self) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.driver, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name}: {status}")

    def copy_of(self, data: bytes) -> int:
        """The address of a copy in device memory."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(len(data)))
        self.call("cuMemcpyHtoD_v2", address, data, ctypes.c_size_t(len(data)))
        return address.value

    def read(self, address: int, size: int) -> bytes:
        """What is there once all work is done."""
        self.call("cuCtxSynchronize")
        data = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(size))
        return data.raw


class OnDevice:
    """What CuPy's arrays tell of themselves."""

    def __init__(self, address: int, numel: int) -> None:
        self.__cuda_array_interface__ = {"shape": (numel,), "typestr": "<f4", "data": (address, False), "version": 3}


class Cuda(unittest.TestCase):
    def setUp(self) -> None:
        if not available():
            self.skipTest(MISSING)

    def test_steps_have_the_bits_of_the_cpu(self) -> None:
        device = Device()
        on_cpu, params, grads = optimizer("w", numel=1000, max_grad_norm=0.5, weight_decay=0.1)
        param, grad = device.copy_of(params["w"].tobytes()), device.copy_of(grads["w"].tobytes())
        report, rate = device.copy_of(bytes(mofo.REPORT_SIZE)), device.copy_of(struct.pack("d", 0.25))
        values = {"beta1": 0.5, "beta2": 0.75, "epsilon": 0.125, "weight_decay": 0.25}
        on_device = {f"device_{name}": device.copy_of(struct.pack("d", value)) for name, value in values.items()}
        with mofo.Optimizer(device="cuda", max_grad_norm=0.5, weight_decay=0.1) as made:
            made.add("w", OnDevice(param, 1000), OnDevice(grad, 1000))
            launched = made.step()
            self.assertTrue(launched.launched)
            self.assertIsNone(launched.grad_norm)
            on_cpu.step()
            made.step(report=report, device_learning_rate=rate, **on_device)
            made.wait()
            expected = on_cpu.step(learning_rate=0.25, **values)
            self.assertEqual(device.read(param, 4000), params["w"].tobytes())
            self.assertEqual(mofo.StepReport.from_bytes(device.read(report, mofo.REPORT_SIZE)), expected)
            self.assertEqual(made.grad_norm(), on_cpu.grad_norm())

            state, state_on_cpu = made.state("w"), on_cpu.state("w")
            self.assertEqual(state.step_count, 2)
            for moment in ("exp_avg", "exp_avg_sq"):
                array = getattr(state, moment)
                self.assertEqual((array.numel, array.dtype), (1000, "f32"))
                address, readonly = array.__cuda_array_interface__["data"]
                self.assertEqual((address, readonly), (array.address, False))
                self.assertEqual(device.read(address, 4000), bytes(memoryview(getattr(state_on_cpu, moment)).cast("B")))
            self.assertTrue(state.thresholds.__cuda_array_interface__["data"][1])
            with self.assertRaisesRegex(mofo.Error, "in use"):
                made.remove("w")
            self.assertEqual(made.save_to_memory()[-8000:], on_cpu.save_to_memory()[-8000:])

    def test_host_memory_is_refused(self) -> None:
        with mofo.Optimizer(device="cuda") as made:
            with self.assertRaisesRegex(mofo.Error, "not in the memory of a GPU, but the optimizer's device is 'cuda'"):
                made.add("w", floats(1, 2))
            with self.assertRaises(mofo.Error):
                made.cpu_tier  # noqa: B018
            with self.assertRaises(mofo.Error) as raised:
                made.add("w", floats(1, 2).buffer_info()[0], numel=2, dtype="f32")
                made.bind("w", grad=floats(1, 2).buffer_info()[0])
                made.step()
            self.assertEqual(raised.exception.status_name, "MOFO_ERROR_INVALID_BUFFER")


if __name__ == "__main__":
    unittest.main()
