"""Times an optimizer step from PyTorch: MoFO against torch.optim.AdamW, fused and foreach, on the tensors of GPT-2.

    python bindings/python/examples/time_step.py                 # 148 tensors, 124 million entries: 6.5 GB
    python bindings/python/examples/time_step.py --shrink 4096   # as many tensors, few entries: what Python costs
    python bindings/python/examples/time_step.py --device cuda --dtype bfloat16

Every optimizer makes one step in each round, in changing order, on gradients that lie elsewhere than in the round
before, as after zero_grad(). Printed are medians, and medians of the ratios to AdamW (fused) within a round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from mofo.torch import MoFO

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BASELINE = "AdamW (fused)"


def gpt2_shapes(shrink: int) -> list[tuple[int, ...]]:
    """Of the 148 parameters of GPT-2 (124M); a shrunk one has a number of entries that is that many times smaller."""
    width = 768
    layer: list[tuple[int, ...]] = [
        (width,),
        (width,),
        (width, 3 * width),
        (3 * width,),
        (width, width),
        (width,),
        (width,),
        (width,),
        (width, 4 * width),
        (4 * width,),
        (4 * width, width),
        (width,),
    ]
    shapes = [(50257, width), (1024, width), *(12 * layer), (width,), (width,)]
    if shrink == 1:
        return shapes
    return [(max(torch.Size(shape).numel() // shrink, 1),) for shape in shapes]


def optimizers(
    params: list[Tensor], update_fractions: list[float], skip_nonfinite: bool
) -> dict[str, torch.optim.Optimizer]:
    made: dict[str, torch.optim.Optimizer] = {
        BASELINE: torch.optim.AdamW(params, lr=1e-6, fused=True),
        "AdamW (foreach)": torch.optim.AdamW(params, lr=1e-6, foreach=True),
    }
    for fraction in update_fractions:
        made[f"MoFO α = {fraction:g}"] = MoFO(params, lr=1e-6, update_fraction=fraction, skip_nonfinite=skip_nonfinite)
    return made


def timed(step: Callable[[], object], device: str) -> float:
    """Seconds, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shrink", type=int, default=1, help="divide each tensor's number of entries by this")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument(
        "--new-betas", action="store_true", help="give MoFO other betas at every step, as OneCycleLR does"
    )
    parser.add_argument("--skip-nonfinite", action="store_true", help="let MoFO look for bad gradients, its default")
    parser.add_argument("--update-fractions", type=float, nargs="+", default=[0.03, 0.1, 1.0])
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    make = {"device": arguments.device, "dtype": DTYPES[arguments.dtype]}
    params = [torch.randn(shape, **make).mul_(0.02).requires_grad_() for shape in gpt2_shapes(arguments.shrink)]
    gradients = [[torch.randn(param.shape, **make) for param in params] for _ in range(2)]
    contenders = optimizers(params, arguments.update_fractions, arguments.skip_nonfinite)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(arguments.rounds + 2):
        for param, gradient in zip(params, gradients[number % 2]):
            param.grad = gradient
        names = list(contenders)
        if arguments.new_betas:
            for optimizer in contenders.values():
                if isinstance(optimizer, MoFO):
                    optimizer.param_groups[0]["betas"] = (0.85 + 1e-4 * (number % 100), 0.999)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = timed(contenders[name].step, arguments.device)
            # The first two rounds warm up.
            if number >= 2:
                samples[name].append(seconds)
    entries = sum(param.numel() for param in params)
    threads = "" if arguments.device == "cuda" else f", {torch.get_num_threads()} threads"
    print(f"{len(params)} tensors, {entries} entries of {arguments.dtype} on {arguments.device}{threads}")
    for name, times in samples.items():
        ratio = median(a / b for a, b in zip(times, samples[BASELINE]))
        print(f"{name:16} {1e3 * median(times):9.3f} ms   {ratio:5.2f} x {BASELINE}")


if __name__ == "__main__":
    main()
