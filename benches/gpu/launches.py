"""What a step costs the calling thread, and what memory an optimizer needs besides its state."""

import time
from typing import Any

import numpy as np

from comparison.rounds import median_interval
from comparison.shapes import TensorSpec
from libmofo import MOFO_DEVICE_CUDA, MOFO_DTYPE_BF16, MOFO_DTYPE_F32, Library

from .driver import DeviceBuffer, Driver, pinned_report
from .optimizer import Optimizer

DTYPES = {"f32": (MOFO_DTYPE_F32, 4), "bf16": (MOFO_DTYPE_BF16, 2)}


def build(
    library: Library, driver: Driver, tensors: list[TensorSpec], dtype: str, **options: Any
) -> tuple[Optimizer, list[DeviceBuffer]]:
    """An optimizer of tensors in one buffer, with gradients in another; both hold normal numbers."""
    code, size = DTYPES[dtype]
    numel = sum(tensor.numel for tensor in tensors)
    generator = np.random.default_rng(3)
    buffers = [DeviceBuffer(driver, numel * size) for _ in range(2)]
    chunk = min(numel, 1 << 22)
    values = generator.standard_normal(chunk, np.float32)
    bits = values.view(np.uint32) if size == 4 else (values.view(np.uint32) >> 16).astype(np.uint16)
    for buffer in buffers:
        for start in range(0, numel, chunk):
            part = bits[: min(chunk, numel - start)]
            driver.call("cuMemcpyHtoD_v2", buffer.start + start * size, part.ctypes.data, part.nbytes)
    driver.synchronize()
    optimizer = Optimizer(library, device=MOFO_DEVICE_CUDA, state_dtype=code, **options)
    offset = 0
    for tensor in tensors:
        optimizer.add(
            tensor.name,
            tensor.numel,
            param=buffers[0].start + offset,
            grad=buffers[1].start + offset,
            param_dtype=code,
            grad_dtype=code,
            update_fraction=-1.0 if tensor.filtered else 1.0,
        )
        offset += tensor.numel * size
    return optimizer, buffers


def host_time(
    library: Library, driver: Driver, tensors: list[TensorSpec], name: str, rounds: int, in_a_row: int
) -> dict[str, Any]:
    """Microseconds that a call of `mofo_step` takes: until it returns, and of the thread's time on the processor.

    The device is waited for after each row of calls, so that the queue of launches never fills.
    """
    optimizer, buffers = build(library, driver, tensors, "f32", update_fraction=0.03)
    arguments = optimizer.arguments(pinned_report(driver), driver.stream)
    optimizer.step(arguments)
    driver.synchronize()
    elapsed, on_processor = [], []
    for _ in range(rounds):
        start, start_thread = time.perf_counter(), time.thread_time()
        for _ in range(in_a_row):
            optimizer.step(arguments)
        elapsed.append((time.perf_counter() - start) / in_a_row * 1e6)
        on_processor.append((time.thread_time() - start_thread) / in_a_row * 1e6)
        driver.synchronize()
    optimizer.close()
    for buffer in buffers:
        buffer.close()
    low, high, _ = median_interval(elapsed)
    return {
        "workload": name,
        "tensors": len(tensors),
        "entries": sum(tensor.numel for tensor in tensors),
        "median_us": float(np.median(elapsed)),
        "interval_us": [low, high],
        "processor_us": float(np.median(on_processor)),
    }


def scratch(library: Library, driver: Driver, tensors: list[TensorSpec], name: str, dtype: str) -> dict[str, Any]:
    """Work space against parameters, gradients and moments, and how many estimates fail in a few steps."""
    optimizer, buffers = build(library, driver, tensors, dtype, update_fraction=0.03)
    report = pinned_report(driver)
    arguments = optimizer.arguments(report, driver.stream)
    estimated = failed = 0
    for _ in range(3):
        optimizer.step(arguments)
        driver.synchronize()
        estimated += report.blocks_estimated
        failed += report.estimates_failed
    memory = optimizer.memory()
    optimizer.close()
    for buffer in buffers:
        buffer.close()
    data = sum(buffer.size for buffer in buffers) + memory.state
    return {
        "workload": name,
        "dtype": dtype,
        "tensors": len(tensors),
        "entries": memory.entries,
        "scratch_bytes": memory.scratch,
        "bookkeeping_bytes": memory.bookkeeping,
        "data_bytes": data,
        "share": memory.scratch / data,
        "blocks_estimated": estimated,
        "estimates_failed": failed,
    }
