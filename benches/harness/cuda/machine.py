"""On what the comparison with PyTorch runs: a GPU, or the CPU to rehearse it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import torch

from ..library import api

Step = Callable[[], object]


class Rehearsal:
    """The CPU in place of a GPU: for small sizes, to try all but the device. There are no graphs."""

    mofo_device = api.MOFO_DEVICE_CPU
    torch_device = torch.device("cpu")

    def timed(self, step: Step) -> tuple[float, float]:
        """Seconds that a step takes on the device, and until the call returns. Waits for the device."""
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        return seconds, seconds

    def stream(self) -> int | None:
        """PyTorch's current stream, as the library takes it."""
        return None

    def capture(self, step: Step) -> Step:
        """What replays a step."""
        return step

    def new_report(self) -> api.CStepReport:
        """A report that the device can write to."""
        return api.CStepReport()

    def free_memory(self) -> int:
        """Bytes that can be allocated."""
        return 64 << 20

    def settle(self) -> None:
        """Waits for the device, and gives back what PyTorch holds but does not use."""


class Gpu(Rehearsal):
    """A CUDA device."""

    mofo_device = api.MOFO_DEVICE_CUDA
    torch_device = torch.device("cuda")

    def __init__(self) -> None:
        self._pinned: list[torch.Tensor] = []

    def timed(self, step: Step) -> tuple[float, float]:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        _, call = super().timed(step)
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3, call

    def stream(self) -> int | None:
        return torch.cuda.current_stream().cuda_stream or None

    def capture(self, step: Step) -> Step:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def new_report(self) -> api.CStepReport:
        memory = torch.zeros(ctypes.sizeof(api.CStepReport), dtype=torch.uint8, pin_memory=True)
        self._pinned.append(memory)
        return api.CStepReport.from_address(memory.data_ptr())

    def free_memory(self) -> int:
        self.settle()
        free: int = torch.cuda.mem_get_info()[0]
        return free

    def settle(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
