"""Checks that contenders make the steps that their names say, before they are timed."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .contender import BETA1, BETA2, EPSILON, LEARNING_RATE, Contender, Optimizer
from .mofo import Mofo
from .pytorch import TopkMofo, filtered
from .roster import Roster
from .workload import Workload, make_gradients, one_tensor, small_gpt2

STEPS = 4
FEW = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""Share of numbers of a type that may differ: rounding puts some entries on the other side of the threshold, and some
numbers on the other side of the middle of two bf16 numbers."""


def verify(names: Sequence[str], roster: Roster) -> None:
    """Stops the program unless every contender makes right steps on a small workload of the same kind.

    Where moments are f32, parameters and moments must agree with those of MoFO written in PyTorch after a few steps.
    Where they are bf16, roundings add up; so every step is repeated in f32 from the numbers that were stored before it.
    """
    small = replace(roster, gradients=make_gradients(small_workload(roster.gradients.workload), STEPS), _flat=[])
    references: dict[tuple[str, float], Optimizer] = {}
    for name in names:
        contender = small.make(name)
        if isinstance(contender, Optimizer):
            if contender.types.moments == torch.float32:
                key = contender.workload.name, contender.update_fraction
                if key not in references:
                    references[key] = TopkMofo(contender.gradients, contender.update_fraction)
                    run(references[key])
                run(contender)
                check_parameters(name, contender, references[key])
                check_moments(name, contender, references[key])
            else:
                for step in range(STEPS):
                    check_step(name, contender, step)
            if isinstance(contender, Mofo):
                check_selected(name, contender)
        contender.close()


def small_workload(workload: Workload) -> Workload:
    """One that is quick to check and has odd sizes."""
    if len(workload.tensors) > 1:
        return small_gpt2(workload.types)
    return one_tensor(3_000_017, workload.types)


def run(optimizer: Optimizer) -> None:
    """Makes the steps."""
    for step in range(STEPS):
        optimizer.load(step)
        optimizer.step()


@torch.no_grad()
def check_parameters(name: str, optimizer: Optimizer, reference: Optimizer) -> None:
    """Compares parameters; differences of a thousandth of the learning rate do not count."""
    found, expected = torch.cat(optimizer.parameters), torch.cat(reference.parameters)
    wrong = int(((found - expected).abs() > 1e-3 * LEARNING_RATE).sum())
    if wrong > FEW[found.dtype] * found.numel():
        raise SystemExit(f"{name}: {wrong} of {found.numel()} parameters differ from MoFO written in PyTorch")


def check_moments(name: str, optimizer: Optimizer, reference: Optimizer) -> None:
    """Compares moments in f32. The first may be a difference of larger numbers, of the size of the second's root."""
    exp_avg, exp_avg_sq = torch.cat(optimizer.exp_avg), torch.cat(optimizer.exp_avg_sq)
    expected, expected_sq = torch.cat(reference.exp_avg), torch.cat(reference.exp_avg_sq)
    wrong = (exp_avg - expected).abs() > 1e-5 * (expected.abs() + expected_sq.sqrt())
    wrong |= (exp_avg_sq - expected_sq).abs() > 1e-5 * expected_sq
    if int(wrong.sum()) > FEW[torch.float32] * wrong.numel():
        raise SystemExit(f"{name}: {int(wrong.sum())} of {wrong.numel()} moments differ from MoFO written in PyTorch")


def check_selected(name: str, mofo: Mofo) -> None:
    """Compares how many entries moved in the last step with how many are among the largest of the stored momenta."""
    expected = 0
    for tensor, exp_avg in zip(mofo.workload.tensors, mofo.exp_avg, strict=True):
        count = tensor.selected(mofo.update_fraction)
        expected += count if count == tensor.numel else int(filtered(exp_avg, count).count_nonzero())
    if mofo.report.entries_selected != expected:
        raise SystemExit(f"{name} moved {mofo.report.entries_selected} entries, not {expected}")


@torch.no_grad()
def check_step(name: str, optimizer: Optimizer, step: int) -> None:
    """Makes one step and compares what is stored with the same step in f32."""
    before = [widen(tensors) for tensors in (optimizer.parameters, optimizer.exp_avg, optimizer.exp_avg_sq)]
    optimizer.load(step)
    optimizer.step()
    after = [widen(tensors) for tensors in (optimizer.parameters, optimizer.exp_avg, optimizer.exp_avg_sq)]
    correction, rate = math.sqrt(1 - BETA2 ** (step + 1)), -LEARNING_RATE / (1 - BETA1 ** (step + 1))
    expected: list[list[Tensor]] = [[], [], []]
    for i, tensor in enumerate(optimizer.workload.tensors):
        parameter, exp_avg, exp_avg_sq = (tensors[i] for tensors in before)
        gradient = optimizer.gradients.of_step(step)[i].float()
        # PyTorch's form of the sum: with numbers of 8 bits, other forms often fall on another side of a tie.
        exp_avg = torch.lerp(exp_avg, gradient, 1 - BETA1)
        exp_avg_sq = BETA2 * exp_avg_sq + (1 - BETA2) * gradient.square()
        expected[1].append(exp_avg)
        expected[2].append(exp_avg_sq)
        if optimizer.types.rounding != "nearest":  # The fused kernel goes on with the moments before it rounds them.
            exp_avg, exp_avg_sq = after[1][i], after[2][i]
        denominator = exp_avg_sq.sqrt().div_(correction).add_(EPSILON)
        moved = filtered(exp_avg, tensor.selected(optimizer.update_fraction))
        expected[0].append(parameter.addcdiv(moved, denominator, value=rate))
    for what, *tensors in zip(("parameter", "exp_avg", "exp_avg_sq"), before, expected, after, strict=True):
        check_rounding(f"{name}: {what}", optimizer.types.rounding, *(torch.cat(parts) for parts in tensors))


def widen(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in f32."""
    return [tensor.detach().to(torch.float32, copy=True) for tensor in tensors]


def check_rounding(what: str, rounding: str, before: Tensor, expected: Tensor, stored: Tensor) -> None:
    """Stops the program unless the stored bf16 numbers are roundings of the expected ones."""
    exponent = torch.frexp(torch.maximum(stored.abs(), expected.abs())).exponent
    error = (stored - expected) / torch.ldexp(torch.ones_like(stored), exponent - 8)
    if rounding == "nearest":
        wrong = stored != expected.bfloat16().float()
    else:
        wrong = error.abs() > (1.0 if rounding == "stochastic" else 2.0)
    if int(wrong.sum()) > FEW[torch.bfloat16] * stored.numel():
        raise SystemExit(f"{what}: {int(wrong.sum())} of {stored.numel()} are not what one step gives")
    direction = (expected - before).sign()
    changed = float(direction.abs().sum())
    bias = float((error.clamp(-1, 1) * direction).sum()) / changed
    # The standard deviation of an error is at most half of the spacing.
    if rounding == "stochastic" and abs(bias) > 5 * 0.5 / math.sqrt(changed):
        raise SystemExit(f"{what}: rounding is biased by {bias:.3f} of the distance of two bf16 numbers")


def warm_up(contender: Contender, steps: int) -> None:
    """Makes the first steps. After each, asks mofo whether it moved as many entries as it should."""
    for step in range(steps):
        contender.load(step)
        contender.step()
        if isinstance(contender, Mofo):
            selected = contender.report.entries_selected
            expected = contender.workload.selected(contender.update_fraction)
            # Entries that tie with a threshold move, too; there are many of them where gradients are bf16.
            ties = 0.001 if contender.types.parameter == torch.float32 else 0.1
            if not expected <= selected <= expected * (1 + ties) + 1:
                raise SystemExit(f"mofo moved {selected} entries, not {expected}")
