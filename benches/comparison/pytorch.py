"""PyTorch's AdamW, and MoFO written in PyTorch."""

import importlib
import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .contender import BETA1, BETA2, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Optimizer
from .workload import Gradients, Types


class TorchOptimizer(Optimizer):
    """An optimizer that finds its gradients in the parameters, as PyTorch's do."""

    optimizer: torch.optim.Optimizer

    def __init__(self, gradients: Gradients, types: Types, update_fraction: float) -> None:
        super().__init__(gradients, types, update_fraction)
        self.parameters = [torch.nn.Parameter(parameter) for parameter in self.parameters]

    def load(self, step: int) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients.of_step(step), strict=True):
            parameter.grad = gradient

    def step(self) -> None:
        self.optimizer.step()


class TorchAdamW(TorchOptimizer):
    """`torch.optim.AdamW`, fused or foreach. Its moments have the type of the parameters: it knows no other."""

    def __init__(self, gradients: Gradients, fused: bool) -> None:
        dtype = gradients.workload.types.parameter
        super().__init__(gradients, Types(dtype, dtype, "nearest" if fused else "each operation"), 1.0)
        self.allocate_moments()
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=LEARNING_RATE,
            betas=(BETA1, BETA2),
            eps=EPSILON,
            weight_decay=WEIGHT_DECAY,
            fused=fused,
            foreach=not fused,
        )
        # What its first step would put here, were it not there already.
        for parameter, exp_avg, exp_avg_sq in zip(self.parameters, self.exp_avg, self.exp_avg_sq, strict=True):
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": exp_avg,
                "exp_avg_sq": exp_avg_sq,
            }


class TopkMofo(Optimizer):
    """MoFO as one writes it down in PyTorch: Adam's moments in f32, `torch.topk`'s threshold, a masked update."""

    slow = True

    def __init__(self, gradients: Gradients, update_fraction: float) -> None:
        types = Types(gradients.workload.types.parameter, torch.float32, "nearest")
        super().__init__(gradients, types, update_fraction)
        self.allocate_moments()
        self.loaded: list[Tensor] = []
        self.steps = 0

    def load(self, step: int) -> None:
        self.loaded = self.gradients.of_step(step)

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        for i, (tensor, gradient) in enumerate(zip(self.workload.tensors, self.loaded, strict=True)):
            gradient = gradient.float()
            exp_avg, exp_avg_sq = self.exp_avg[i], self.exp_avg_sq[i]
            exp_avg.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
            exp_avg_sq.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            count = tensor.selected(self.update_fraction)
            self._update(self.parameters[i], filtered(exp_avg, count), exp_avg_sq)

    def _update(self, parameter: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        denominator = exp_avg_sq.sqrt().div_(math.sqrt(1 - BETA2**self.steps)).add_(EPSILON)
        rate = -LEARNING_RATE / (1 - BETA1**self.steps)
        if parameter.dtype == torch.float32:
            parameter.addcdiv_(exp_avg, denominator, value=rate)
        else:
            parameter.copy_(parameter.float().addcdiv_(exp_avg, denominator, value=rate))


def filtered(exp_avg: Tensor, count: int) -> Tensor:
    """The `count` momenta of the largest magnitude and those that tie with the least of them; 0 for the others."""
    if count == exp_avg.numel():
        return exp_avg
    magnitude = exp_avg.abs()
    threshold = torch.topk(magnitude, count, sorted=False).values.min()
    return torch.where(magnitude >= threshold, exp_avg, 0.0)


class AuthorsMofo(TorchOptimizer):
    """The class `AdamW_MoFO` of the MoFO authors, from a file of theirs."""

    slow = True

    def __init__(self, path: Path, gradients: Gradients, update_fraction: float) -> None:
        super().__init__(gradients, gradients.workload.types, update_fraction)
        self.allocate_moments()
        model = torch.nn.Module()
        for i, (tensor, parameter) in enumerate(zip(self.workload.tensors, self.parameters, strict=True)):
            # The name matters: "bias" and "norm" are not filtered.
            setattr(model, f"{'weight' if tensor.filtered else 'norm'}_{i}", parameter)
        self.optimizer = self._load_class(path)(
            model=model,
            weight_decay=WEIGHT_DECAY,
            lr=LEARNING_RATE,
            beta1=BETA1,
            beta2=BETA2,
            fraction=update_fraction,
            epsilon=EPSILON,
        )
        for parameter, exp_avg, exp_avg_sq in zip(self.parameters, self.exp_avg, self.exp_avg_sq, strict=True):
            self.optimizer.state[parameter] = {"iteration": 0, "m": exp_avg, "v": exp_avg_sq}

    @staticmethod
    def _load_class(path: Path) -> Any:
        # The file imports `_dispatch_sqrt` from torch.optim.optimizer, where current PyTorch has it no more. It was
        # math.sqrt for Python floats, which is all that the file passes to it.
        optimizer = importlib.import_module("torch.optim.optimizer")
        if not hasattr(optimizer, "_dispatch_sqrt"):
            vars(optimizer)["_dispatch_sqrt"] = math.sqrt
        spec = importlib.util.spec_from_file_location("authors_mofo", path)
        if spec is None or spec.loader is None:
            raise SystemExit(f"--authors {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.AdamW_MoFO
