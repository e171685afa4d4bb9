"""On what the comparison with PyTorch runs: a GPU, or the CPU to rehearse it."""

import ctypes
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from libmofo import MOFO_DEVICE_CPU, MOFO_DEVICE_CUDA, StepReport

Step = Callable[[], object]


class Machine(ABC):
    """Where the tensors are."""

    torch_device: torch.device
    mofo_device: int

    @abstractmethod
    def timed(self, step: Step) -> tuple[float, float]:
        """Milliseconds that a step takes on the device, and microseconds until the call returns. Waits for it."""

    @abstractmethod
    def stream(self) -> int | None:
        """PyTorch's current stream, as the library takes it."""

    @abstractmethod
    def capture(self, step: Step) -> Step:
        """What replays a step."""

    @abstractmethod
    def new_report(self) -> StepReport:
        """A report that the device can write to."""

    @abstractmethod
    def free_memory(self) -> int:
        """Bytes that can be allocated."""

    def settle(self) -> None:
        """Waits for the device, and gives back what PyTorch holds but does not use."""


class Gpu(Machine):
    """A CUDA device."""

    mofo_device = MOFO_DEVICE_CUDA

    def __init__(self) -> None:
        self.torch_device = torch.device("cuda")
        self._pinned: list[torch.Tensor] = []

    def timed(self, step: Step) -> tuple[float, float]:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        start = time.perf_counter()
        step()
        microseconds = (time.perf_counter() - start) * 1e6
        after.record()
        after.synchronize()
        return before.elapsed_time(after), microseconds

    def stream(self) -> int | None:
        return torch.cuda.current_stream().cuda_stream or None

    def capture(self, step: Step) -> Step:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def new_report(self) -> StepReport:
        memory = torch.zeros(ctypes.sizeof(StepReport), dtype=torch.uint8, pin_memory=True)
        self._pinned.append(memory)
        return StepReport.from_address(memory.data_ptr())

    def free_memory(self) -> int:
        self.settle()
        free: int = torch.cuda.mem_get_info()[0]
        return free

    def settle(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Rehearsal(Machine):
    """The CPU in place of a GPU: for small sizes, to try all but the device. There are no graphs."""

    mofo_device = MOFO_DEVICE_CPU

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")

    def timed(self, step: Step) -> tuple[float, float]:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        return seconds * 1e3, seconds * 1e6

    def stream(self) -> int | None:
        return None

    def capture(self, step: Step) -> Step:
        return step

    def new_report(self) -> StepReport:
        return StepReport()

    def free_memory(self) -> int:
        return 64 << 20
