"""What a step costs the calling thread, and what memory an optimizer needs besides its state. Needs no PyTorch."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..figures import estimate
from ..formats import ARRAYS, CODES, encode
from ..library import Library, Optimizer, api
from ..shapes import TensorSpec, numel
from .driver import DeviceBuffer, Driver

CHUNK = 1 << 22


class Stepper:
    """An optimizer of tensors in one buffer, with gradients in another; both hold normal numbers."""

    def __init__(self, library: Library, driver: Driver, tensors: Sequence[TensorSpec], dtype: str) -> None:
        self.driver, self.tensors = driver, tensors
        self.entries, size = numel(tensors), np.dtype(ARRAYS[dtype]).itemsize
        self.buffers = [DeviceBuffer(driver, self.entries * size) for _ in range(2)]
        bits = encode(np.random.default_rng(3).standard_normal(min(self.entries, CHUNK), np.float32), dtype)
        for buffer in self.buffers:
            for first in range(0, self.entries, CHUNK):
                buffer.write(bits[: min(CHUNK, self.entries - first)], first * size)
        code = CODES[dtype]
        self.optimizer = Optimizer(library, device=api.MOFO_DEVICE_CUDA, state_dtype=code, update_fraction=0.03)
        offset = 0
        for tensor in tensors:
            description = {} if tensor.filtered else {"update_fraction": 1.0}
            places = {"param": self.buffers[0].start + offset, "grad": self.buffers[1].start + offset}
            self.optimizer.add(tensor.name, tensor.numel, param_dtype=code, grad_dtype=code, **places, **description)
            offset += tensor.numel * size
        self.report = driver.pinned_report()
        self.arguments = self.optimizer.arguments(self.report, stream=driver.stream.value)

    def step(self) -> None:
        """Launches one."""
        self.optimizer.step(ctypes.byref(self.arguments))

    def close(self) -> None:
        self.optimizer.close()
        for buffer in self.buffers:
            buffer.close()


def measure(stepper: Stepper, name: str, rounds: int, in_a_row: int) -> dict[str, Any]:
    """Microseconds that a call of `mofo_step` takes, until it returns and of the thread's time on the processor, work
    space against parameters, gradients and moments, and estimates that failed in the last step of each row.

    The device is waited for after each row of calls, so that the queue of launches never fills.
    """
    elapsed, on_processor, estimated, wrong = [], [], 0, 0
    for turn in range(rounds + 1):
        start, start_thread = time.perf_counter(), time.thread_time()
        for _ in range(in_a_row):
            stepper.step()
        if turn > 0:
            elapsed.append((time.perf_counter() - start) / in_a_row * 1e6)
            on_processor.append((time.thread_time() - start_thread) / in_a_row * 1e6)
        stepper.driver.synchronize()
        estimated += stepper.report.blocks_estimated
        wrong += stepper.report.estimates_failed
    memory = stepper.optimizer.memory()
    stepper.close()
    data = sum(buffer.size for buffer in stepper.buffers) + memory.state
    return {
        "name": name,
        "tensors": len(stepper.tensors),
        "entries": stepper.entries,
        "call_us": estimate(elapsed),
        "processor_us": float(np.median(on_processor)),
        "scratch_bytes": memory.scratch,
        "scratch_share": memory.scratch / data,
        "blocks_estimated": estimated,
        "estimates_failed": wrong,
    }
