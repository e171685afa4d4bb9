"""Who is compared on PyTorch's tensors. All of them step the same gradients, on parameters of their own."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from comparison.contender import BETA1, BETA2, EPSILON, LEARNING_RATE, WEIGHT_DECAY
from comparison.pytorch import filtered
from comparison.shapes import TensorSpec
from libmofo import MOFO_DTYPE_BF16, MOFO_DTYPE_F32, Library, MemoryInfo, StepReport

from .machine import Machine, Step
from .optimizer import Optimizer

DTYPES = {torch.float32: MOFO_DTYPE_F32, torch.bfloat16: MOFO_DTYPE_BF16}
CHUNK = 1 << 26
ROW = 4096


class Buffers:
    """Tensors of a workload, each its own allocation, as a model has them."""

    def __init__(self, machine: Machine, specs: list[TensorSpec], dtype: torch.dtype) -> None:
        self.specs = specs
        self.tensors = [torch.zeros(spec.numel, dtype=dtype, device=machine.torch_device) for spec in specs]

    @property
    def numel(self) -> int:
        return sum(spec.numel for spec in self.specs)


class Gradients(Buffers):
    """Gradients, made anew before every step: noise around a mean that stays, of a scale for each row."""

    def __init__(self, machine: Machine, specs: list[TensorSpec], dtype: torch.dtype) -> None:
        super().__init__(machine, specs, dtype)
        count = min(CHUNK, max(spec.numel for spec in specs))
        rows = -(-count // ROW)
        self.mean = torch.randn(count, dtype=dtype, device=machine.torch_device).mul_(0.5)
        scale = torch.randn(rows, dtype=torch.float32, device=machine.torch_device).mul_(0.5).exp_().mul_(1e-3)
        self.scale = scale.to(dtype).repeat_interleave(ROW)[:count].contiguous()
        self.refresh()

    def refresh(self) -> None:
        for tensor in self.tensors:
            for part in torch.split(tensor, CHUNK):
                count = part.numel()
                part.normal_().add_(self.mean[:count]).mul_(self.scale[:count])


def parameters(machine: Machine, specs: list[TensorSpec], dtype: torch.dtype) -> list[Tensor]:
    buffers = Buffers(machine, specs, dtype)
    for tensor in buffers.tensors:
        tensor.normal_(std=0.02)
    return buffers.tensors


@dataclass
class Contender:
    """Something that makes a step, with what is known about it."""

    name: str
    step: Step
    update_fraction: float | None = None
    """None for what is no optimizer."""
    report: StepReport | None = None
    memory: Callable[[], MemoryInfo] | None = None
    samples: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    blocks_estimated: int = 0
    estimates_failed: int = 0


class TorchAdamW:
    """`torch.optim.AdamW(fused=True)`."""

    def __init__(self, machine: Machine, gradients: Gradients, capturable: bool = False) -> None:
        dtype = gradients.tensors[0].dtype
        self.parameters = [torch.nn.Parameter(p) for p in parameters(machine, gradients.specs, dtype)]
        for parameter, gradient in zip(self.parameters, gradients.tensors, strict=True):
            parameter.grad = gradient
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=LEARNING_RATE,
            betas=(BETA1, BETA2),
            eps=EPSILON,
            weight_decay=WEIGHT_DECAY,
            fused=True,
            capturable=capturable and machine.torch_device.type == "cuda",
        )
        self.step = self.optimizer.step


class Mofo:
    """The library on PyTorch's tensors and stream, with moments of its own.

    Moments do not depend on the update fraction, so that steps of several fractions can take turns on one optimizer.
    """

    def __init__(self, library: Library, machine: Machine, gradients: Gradients, blocks: int = 1) -> None:
        dtype = DTYPES[gradients.tensors[0].dtype]
        self.machine = machine
        self.parameters = parameters(machine, gradients.specs, gradients.tensors[0].dtype)
        self.optimizer = Optimizer(
            library,
            device=machine.mofo_device,
            device_index=machine.torch_device.index or 0,
            learning_rate=LEARNING_RATE,
            beta1=BETA1,
            beta2=BETA2,
            epsilon=EPSILON,
            weight_decay=WEIGHT_DECAY,
            state_dtype=dtype,
        )
        for spec, parameter, gradient in zip(gradients.specs, self.parameters, gradients.tensors, strict=True):
            self.optimizer.add(
                spec.name,
                spec.numel,
                num_blocks=blocks,
                param=parameter.data_ptr(),
                grad=gradient.data_ptr(),
                param_dtype=dtype,
                grad_dtype=dtype,
                update_fraction=-1.0 if spec.filtered else 1.0,
            )

    def contender(self, name: str, update_fraction: float, captured: bool = False) -> Contender:
        """A step with that update fraction, replayed from a graph if captured."""
        report = self.machine.new_report()

        def step() -> None:
            # The stream of a capture is another than that of eager steps.
            arguments.stream = self.machine.stream()
            self.optimizer.step(arguments)

        arguments = self.optimizer.arguments(report, update_fraction=update_fraction)
        contender = Contender(name, step, update_fraction, report, self.optimizer.memory)
        if captured:
            step()
            contender.step = self.machine.capture(step)
        return contender

    def close(self) -> None:
        self.machine.settle()
        self.optimizer.close()


class TopkMofo:
    """MoFO as one writes it down in PyTorch, with `torch.topk`; on f32."""

    def __init__(self, machine: Machine, gradients: Gradients, update_fraction: float) -> None:
        self.specs = gradients.specs
        self.gradients = gradients.tensors
        self.update_fraction = update_fraction
        self.parameters = parameters(machine, self.specs, torch.float32)
        self.exp_avg = Buffers(machine, self.specs, torch.float32).tensors
        self.exp_avg_sq = Buffers(machine, self.specs, torch.float32).tensors
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        correction, rate = math.sqrt(1 - BETA2**self.steps), -LEARNING_RATE / (1 - BETA1**self.steps)
        for i, (spec, gradient) in enumerate(zip(self.specs, self.gradients, strict=True)):
            exp_avg, exp_avg_sq = self.exp_avg[i], self.exp_avg_sq[i]
            exp_avg.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
            exp_avg_sq.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            moved = filtered(exp_avg, spec.selected(self.update_fraction))
            denominator = exp_avg_sq.sqrt().div_(correction).add_(EPSILON)
            self.parameters[i].addcdiv_(moved, denominator, value=rate)
