"""Whether steps on the device are those of the CPU, bit for bit."""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from libmofo import (
    MOFO_DEVICE_CPU,
    MOFO_DEVICE_CUDA,
    MOFO_DTYPE_BF16,
    MOFO_DTYPE_F16,
    MOFO_DTYPE_F32,
    MOFO_ROUNDING_NEAREST,
    MOFO_ROUNDING_STOCHASTIC,
    Library,
    StepReport,
)

from .driver import Driver, Words, bfloat16, pinned_report, read, upload
from .optimizer import Optimizer

SIZES = {MOFO_DTYPE_F32: 4, MOFO_DTYPE_F16: 2, MOFO_DTYPE_BF16: 2}
WORDS = {4: np.uint32, 2: np.uint16}
TENSORS = ((1, 1), (1000, 1), (70_001, 1), (300_007, 1), (2 * 270_000, 2), (64 * 100, 64))
"""Entries and blocks: some above 262,144 entries, where thresholds are estimated."""


@dataclass(frozen=True)
class Case:
    """Types and settings."""

    name: str
    dtype: int
    options: dict[str, Any]


CASES = (
    Case("f32", MOFO_DTYPE_F32, {}),
    Case("f32, bf16 moments", MOFO_DTYPE_F32, {"state_dtype": MOFO_DTYPE_BF16}),
    Case("bf16, stochastic", MOFO_DTYPE_BF16, {"rounding": MOFO_ROUNDING_STOCHASTIC, "state_dtype": MOFO_DTYPE_BF16}),
    Case("bf16, to nearest, clipped", MOFO_DTYPE_BF16, {"rounding": MOFO_ROUNDING_NEAREST, "max_grad_norm": 1.0}),
    Case("f16, master weights, decay", MOFO_DTYPE_F16, {"master_weights": 1, "weight_decay": 0.01}),
)


def words(values: Words, dtype: int) -> Words:
    """The bits of numbers in a type."""
    if dtype == MOFO_DTYPE_BF16:
        return bfloat16(values)
    return values.view(np.uint32) if dtype == MOFO_DTYPE_F32 else values.astype(np.float16).view(np.uint16)


def gradients(generator: np.random.Generator, dtype: int) -> Iterator[list[Words]]:
    """Gradients of step after step: heavy-tailed noise around a mean that stays."""
    means = [generator.standard_normal(numel, np.float32) for numel, _ in TENSORS]
    while True:
        step = []
        for mean in means:
            noise = generator.standard_normal(mean.size, np.float32)
            step.append(words(np.float32(1e-3) * (mean + 2 * noise * np.abs(noise)), dtype))
        yield step


def compare(library: Library, driver: Driver, steps: int) -> list[dict[str, Any]]:
    """One record a case; raises no error where bits differ, but says so."""
    return [compare_case(case, library, driver, steps) for case in CASES]


def compare_case(case: Case, library: Library, driver: Driver, steps: int) -> dict[str, Any]:
    generator = np.random.default_rng(7)
    settings = {"update_fraction": 0.1, "seed": 11, "learning_rate": 1e-3} | case.options
    cpu = Optimizer(library, device=MOFO_DEVICE_CPU, **settings)
    gpu = Optimizer(library, device=MOFO_DEVICE_CUDA, **settings)
    size = SIZES[case.dtype]
    host = [words(np.float32(0.02) * generator.standard_normal(n, np.float32), case.dtype) for n, _ in TENSORS]
    host_grads = [np.empty(n, WORDS[size]) for n, _ in TENSORS]
    device = [upload(driver, array) for array in host]
    device_grads = [upload(driver, array) for array in host_grads]
    for i, (numel, blocks) in enumerate(TENSORS):
        types = {"num_blocks": blocks, "param_dtype": case.dtype, "grad_dtype": case.dtype}
        cpu.add(f"{i}", numel, param=host[i].ctypes.data, grad=host_grads[i].ctypes.data, **types)
        gpu.add(f"{i}", numel, param=device[i].start, grad=device_grads[i].start, **types)
    cpu_report, gpu_report = StepReport(), pinned_report(driver)
    on_cpu, on_gpu = cpu.arguments(cpu_report), gpu.arguments(gpu_report, driver.stream)
    wrong: list[str] = []
    estimated = failed = 0
    for step, new in zip(range(1, steps + 1), gradients(generator, case.dtype), strict=False):
        for kept, buffer, gradient in zip(host_grads, device_grads, new, strict=True):
            kept[:] = gradient
            buffer.write(gradient)
        cpu.step(on_cpu)
        gpu.step(on_gpu)
        driver.synchronize()
        estimated += gpu_report.blocks_estimated
        failed += gpu_report.estimates_failed
        for field in ("grad_norm", "entries", "entries_selected", "skipped", "status"):
            if getattr(cpu_report, field) != getattr(gpu_report, field):
                wrong.append(f"step {step}: the report's {field}")
        if step in (1, 10, steps):
            for i, array in enumerate(host):
                wrong += differences(f"step {step}, tensor {i}", driver, array, device[i].start, cpu, gpu, i, settings)
        if wrong:
            break
    cpu.close()
    gpu.close()
    for buffer in [*device, *device_grads]:
        buffer.close()
    return {
        "case": case.name,
        "steps": step,
        "entries": sum(numel for numel, _ in TENSORS),
        "equal": not wrong,
        "differences": wrong[:10],
        "blocks_estimated": estimated,
        "estimates_failed": failed,
    }


def differences(
    what: str,
    driver: Driver,
    param: Words,
    device_param: int,
    cpu: Optimizer,
    gpu: Optimizer,
    index: int,
    settings: dict[str, Any],
) -> list[str]:
    """Which buffers of a tensor differ."""
    expected, found = cpu.state(index), gpu.state(index)
    state_size = SIZES[settings.get("state_dtype", MOFO_DTYPE_F32)]
    pairs = [
        ("param", param.ctypes.data, device_param, param.nbytes),
        ("exp_avg", expected.exp_avg, found.exp_avg, param.size * state_size),
        ("exp_avg_sq", expected.exp_avg_sq, found.exp_avg_sq, param.size * state_size),
        ("thresholds", expected.thresholds, found.thresholds, 4 * expected.num_blocks),
    ]
    if settings.get("master_weights") and param.itemsize == 2:
        pairs.append(("master", expected.master, found.master, 4 * param.size))
    wrong = []
    for name, on_cpu, on_gpu, size in pairs:
        here = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(on_cpu))
        there = np.empty(size, np.uint8)
        read(driver, on_gpu, there)
        if not np.array_equal(here, there):
            wrong.append(f"{what}: {name}, {int(np.count_nonzero(here != there))} of {size} bytes")
    if expected.step_count != found.step_count:
        wrong.append(f"{what}: step_count")
    return wrong
