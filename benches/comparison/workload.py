"""What a step is made on: tensors, their types, starting parameters and gradients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .buffers import Role, allocate
from .shapes import TensorSpec, transformer


@dataclass(frozen=True)
class Types:
    """How a contender stores parameters and gradients (in one type) and both moments, and how it rounds to 16 bits."""

    parameter: torch.dtype
    moments: torch.dtype
    rounding: str
    """"nearest" and "stochastic": once, when a value is stored. "each operation": to nearest after every operation.
    Moments in f32 are not rounded."""

    @property
    def bytes_per_entry(self) -> int:
        """Traffic of AdamW in one pass: gradient read, parameter and both moments read and written."""
        return 3 * self.parameter.itemsize + 4 * self.moments.itemsize

    def __str__(self) -> str:
        if self.parameter == self.moments == torch.float32:
            return "f32"
        moments = "" if self.parameter == self.moments else ", f32 moments"
        return f"{NAMES[self.parameter]}{moments}, {self.rounding}"


NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}

TYPES = {
    "f32": Types(torch.float32, torch.float32, "nearest"),
    "bf16-nearest": Types(torch.bfloat16, torch.float32, "nearest"),
    "bf16": Types(torch.bfloat16, torch.bfloat16, "stochastic"),
}
"""mofo's types, by the name of the option."""


@dataclass(frozen=True)
class Workload:
    """The tensors of a step, and mofo's types of them."""

    name: str
    tensors: tuple[TensorSpec, ...]
    types: Types

    @property
    def numels(self) -> list[int]:
        """Entries of each tensor."""
        return [tensor.numel for tensor in self.tensors]

    @property
    def numel(self) -> int:
        """Entries of all tensors."""
        return sum(self.numels)

    def flat(self) -> "Workload":
        """The same number of entries as one filtered tensor."""
        return Workload(f"{self.name} as one tensor", (TensorSpec("flat", self.numel),), self.types)

    def selected(self, update_fraction: float) -> int:
        """How many entries a step moves, ties aside."""
        return sum(tensor.selected(update_fraction) for tensor in self.tensors)


def one_tensor(numel: int, types: Types) -> Workload:
    """One tensor of that many entries."""
    return Workload("one tensor", (TensorSpec("weight", numel),), types)


def gpt2(types: Types) -> Workload:
    """The tensors of GPT-2 124M."""
    workload = Workload("GPT-2 124M", tuple(transformer(50257, 1024, 768, 12)), types)
    assert len(workload.tensors) == 148 and workload.numel == 124_439_808
    return workload


def small_gpt2(types: Types) -> Workload:
    """As many tensors as GPT-2 has, each much smaller, and of sizes that are no powers of two."""
    return Workload("small GPT-2", tuple(transformer(5003, 101, 60, 12)), types)


def make_parameters(workload: Workload) -> list[Tensor]:
    """Weights of the size that they have in a transformer; the same at every call."""
    generator = torch.Generator().manual_seed(1)
    parameters = allocate(Role.PARAMETER, workload.numels, workload.types.parameter)
    for parameter in parameters:
        parameter.normal_(std=0.02, generator=generator)
    return parameters


@dataclass(frozen=True)
class Gradients:
    """Gradients of consecutive steps, shared by all contenders: a list of steps, each a list of tensors."""

    workload: Workload
    steps: list[list[Tensor]]

    def of_step(self, step: int) -> list[Tensor]:
        """One gradient for each tensor. Consecutive steps get different ones, in turns."""
        return self.steps[step % len(self.steps)]

    def flat(self) -> "Gradients":
        """A copy of the same values for the workload as one tensor."""
        workload = self.workload.flat()
        steps = []
        for gradients in self.steps:
            (flat,) = allocate(Role.GRADIENT, workload.numels, workload.types.parameter)
            torch.cat(gradients, out=flat)
            steps.append([flat])
        return Gradients(workload, steps)


def make_gradients(workload: Workload, count: int) -> Gradients:
    """Gradients of that many steps: heavy-tailed noise around a mean that moves slowly, in a circle."""
    generator = torch.Generator().manual_seed(2)
    steps = [allocate(Role.GRADIENT, workload.numels, workload.types.parameter) for _ in range(count)]
    for gradients in zip(*steps, strict=True):
        fill_gradients(gradients, generator)
    return Gradients(workload, steps)


def fill_gradients(gradients: Sequence[Tensor], generator: torch.Generator) -> None:
    """Fills one tensor's gradients of all steps. Rows have scales of their own, as in weight matrices."""
    row, chunk = 4096, 1 << 20

    def normal(count: int) -> Tensor:
        return torch.empty(count).normal_(generator=generator)

    numel = gradients[0].numel()
    for start in range(0, numel, chunk):
        count = min(chunk, numel - start)
        scale = normal(-(-count // row)).mul_(0.5).exp_().mul_(1e-3).repeat_interleave(row)[:count]
        centre, towards_x, towards_y = normal(count), normal(count), normal(count)
        for i, gradient in enumerate(gradients):
            angle = 2 * math.pi * i / len(gradients)
            mean = centre + 0.3 * (math.cos(angle) * towards_x + math.sin(angle) * towards_y)
            noise = normal(count).mul_(normal(count).exp_())
            gradient[start : start + count] = scale * (mean + 2 * noise)
