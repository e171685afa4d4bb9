"""No optimizers, but what the memory can do: as much traffic as AdamW in one pass on mofo's types."""

import torch
from torch import Tensor

from .buffers import Role, allocate
from .contender import Contender
from .workload import Gradients


def allocate_floats(role: Role, gradients: Gradients) -> Tensor:
    """As many f32 as are the traffic of a step if each is read once and written once."""
    workload = gradients.workload
    (values,) = allocate(role, [workload.numel * workload.types.bytes_per_entry // 8], torch.float32)
    return values


class Copy(Contender):
    """Copies. Memory traffic is half as much again where the processor reads a cache line before it overwrites it."""

    def __init__(self, gradients: Gradients) -> None:
        super().__init__(gradients, gradients.workload.types)
        self.source = allocate_floats(Role.GRADIENT, gradients)
        self.target = allocate_floats(Role.PARAMETER, gradients)

    def load(self, step: int) -> None:
        pass

    def step(self) -> None:
        self.target.copy_(self.source)

    def buffers(self) -> list[Tensor]:
        return [self.source, self.target]


class InPlace(Contender):
    """Multiplies in place."""

    def __init__(self, gradients: Gradients) -> None:
        super().__init__(gradients, gradients.workload.types)
        self.values = allocate_floats(Role.PARAMETER, gradients)

    def load(self, step: int) -> None:
        pass

    def step(self) -> None:
        self.values.mul_(1.0)

    def buffers(self) -> list[Tensor]:
        return [self.values]
