"""PyTorch's AdamW, and MoFO written in PyTorch, on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .contender import HYPER_PARAMETERS

BETAS = HYPER_PARAMETERS["beta1"], HYPER_PARAMETERS["beta2"]


def adamw(parameters: Sequence[Tensor], **kind: Any) -> torch.optim.AdamW:
    """`torch.optim.AdamW`; `kind`: fused, foreach, capturable."""
    rate, epsilon, decay = (HYPER_PARAMETERS[name] for name in ("learning_rate", "epsilon", "weight_decay"))
    return torch.optim.AdamW(parameters, lr=rate, betas=BETAS, eps=epsilon, weight_decay=decay, **kind)


class TopkMofo:
    """MoFO as one writes it down in PyTorch: Adam's moments, `torch.topk`'s threshold, a masked update."""

    def __init__(self, parameters: Sequence[Tensor], counts: Sequence[int]) -> None:
        """`counts`: of each parameter, how many entries move."""
        self.parameters, self.counts, self.steps = parameters, counts, 0
        self.exp_avg = [torch.zeros_like(parameter) for parameter in parameters]
        self.exp_avg_sq = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        beta1, beta2 = BETAS
        correction = math.sqrt(1 - beta2**self.steps)
        rate = -HYPER_PARAMETERS["learning_rate"] / (1 - beta1**self.steps)
        for p, m, v, count in zip(self.parameters, self.exp_avg, self.exp_avg_sq, self.counts):
            assert p.grad is not None
            m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
            v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            denominator = v.sqrt().div_(correction).add_(HYPER_PARAMETERS["epsilon"])
            p.addcdiv_(largest(m, count), denominator, value=rate)


def largest(exp_avg: Tensor, count: int) -> Tensor:
    """The `count` momenta of the largest magnitude and those that tie with the least of them; 0 for the others."""
    if count == exp_avg.numel():
        return exp_avg
    magnitude = exp_avg.abs()
    threshold = torch.topk(magnitude, count, sorted=False).values.min()
    return torch.where(magnitude >= threshold, exp_avg, 0.0)
