"""Steps of mofo against PyTorch's, on memory as PyTorch allocates it for a model's parameters."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from . import memory, shapes
from .contender import HYPER_PARAMETERS, Buffers, Contender, Mofo, Setting
from .formats import FORMATS, Format
from .gradients import Gradients, weights
from .library import TIERS, Library
from .memory import Array, Role, addresses
from .options import settled, timed
from .report import Report
from .rounds import CLOCKS, Schedule, measure
from .shapes import TensorSpec
from .torch_optimizers import TopkMofo, adamw

CHECKED_STEPS = 4


def allocate(role: Role, numels: Sequence[int], dtype: DTypeLike) -> list[Array]:
    """One tensor for each, from PyTorch's default allocator, as arrays."""
    types = {2: torch.int16, 4: torch.float32}
    tensors = [torch.zeros(numel, dtype=types[np.dtype(dtype).itemsize]) for numel in numels]
    return [tensor.numpy().view(dtype) for tensor in tensors]


def as_tensor(array: Array) -> Tensor:
    """The same memory."""
    if array.itemsize == 2:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class TorchContender(Contender):
    """An optimizer of PyTorch's kind, on PyTorch's tensors. Its moments have the type of the parameters."""

    def __init__(self, kind: str, tensors: Sequence[TensorSpec], gradients: Gradients, fraction: float = 1.0) -> None:
        name = f"PyTorch topk MoFO {fraction:g}" if kind == "topk" else f"PyTorch {kind} AdamW"
        super().__init__(name, shapes.numel(tensors), 28 if gradients.dtype == "f32" else 14)
        self.about = {"threads": torch.get_num_threads()}
        self.fraction = fraction
        self.arrays = weights(tensors, gradients.dtype, allocate)
        self.parameters = [torch.nn.Parameter(as_tensor(array)) for array in self.arrays]
        self.gradients = [[as_tensor(array) for array in of_step] for of_step in gradients.arrays]
        counts = [tensor.selected(fraction) for tensor in tensors]
        self.optimizer = TopkMofo(self.parameters, counts) if kind == "topk" else adamw(self.parameters, **{kind: True})

    def load(self, step: int) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients[step % len(self.gradients)]):
            parameter.grad = gradient

    def step(self) -> None:
        self.optimizer.step()


class Comparison:
    """The contenders of a table, on gradients that they have in common."""

    def __init__(self, library: Library, tensors: Sequence[TensorSpec], setting: Setting, grad_buffers: int) -> None:
        self.library, self.tensors, self.setting = library, tensors, setting
        self.gradients = Gradients(tensors, setting.format.grad, grad_buffers, allocate)
        torch.set_num_threads(setting.threads)

    def mofo(self, fraction: float) -> Mofo:
        """On PyTorch's tensors; its moments are the library's own, as by default."""
        params = weights(self.tensors, self.setting.format.param, allocate)
        name = "mofo, AdamW" if fraction == 1 else f"mofo, MoFO {fraction:g}"
        buffers = Buffers(addresses(params), arrays=params)
        setting = replace(self.setting, update_fraction=fraction)
        return Mofo(self.library, name, self.tensors, self.gradients, setting, buffers)

    def contenders(self, fractions: Sequence[float], kinds: Sequence[str]) -> list[Contender]:
        """mofo at these update fractions, and those of PyTorch; all compared to the fused AdamW and mofo's."""
        fused = TorchContender("fused", self.tensors, self.gradients)
        adamw = self.mofo(1.0)
        found: list[Contender] = [fused, adamw, *(self.mofo(fraction) for fraction in fractions)]
        if "foreach" in kinds:
            found.append(TorchContender("foreach", self.tensors, self.gradients))
        if "topk" in kinds:
            found += [TorchContender("topk", self.tensors, self.gradients, fraction) for fraction in fractions]
        for contender in found:
            contender.references["PyTorch fused"] = fused
            contender.references["mofo's AdamW"] = adamw
        del fused.references["PyTorch fused"], adamw.references["mofo's AdamW"]
        return found


def check(library: Library, setting: Setting, fractions: Sequence[float], kinds: Sequence[str]) -> None:
    """Stops the program unless contenders make the same steps, on a small model.

    Parameters are compared after some steps, with all in f32: those of AdamW with each other, those of MoFO with
    `torch.topk`'s. With everything in bf16, where roundings add up and mofo rounds stochastically, after one step, and
    for AdamW alone.
    """
    exact = setting.format == Format()
    comparison = Comparison(library, shapes.shrunk(shapes.gpt2(1), 50), setting, CHECKED_STEPS)
    found = comparison.contenders([1.0, *fractions] if exact else [1.0], [*kinds, *(["topk"] if exact else [])])
    references: dict[float, Array] = {}
    for contender in reversed(found):  # The last ones are what the others are compared to.
        for step in range(CHECKED_STEPS if exact else 1):
            contender.load(step)
            contender.step()
        if isinstance(contender, Mofo):
            fraction, arrays = contender.setting.update_fraction, contender.buffers.arrays
        else:
            assert isinstance(contender, TorchContender)
            fraction, arrays = contender.fraction, contender.arrays
        values = np.concatenate([as_f32(array) for array in arrays])
        reference = references.setdefault(fraction, values)
        # bf16 has 8 bits: moments that are rounded in other directions differ by as much, and so does the update.
        rate = HYPER_PARAMETERS["learning_rate"]
        allowed = 1e-3 * rate if exact else 2**-7 * np.abs(reference) + 2**-6 * rate
        # In f32, rounding puts some entries on the other side of the threshold.
        wrong = int(np.count_nonzero(np.abs(values - reference) > allowed))
        if wrong > 1e-5 * values.size:
            raise SystemExit(f"{contender.name}: {wrong} of {values.size} parameters differ from the others'")
        contender.close()


def as_f32(array: Array) -> Array:
    """f32 as it is, and bf16, of which there are the bits."""
    if array.itemsize == 4:
        return array
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def workloads(arguments: argparse.Namespace, stored: Format) -> list[tuple[str, list[TensorSpec]]]:
    """Title and tensors of each comparison; of a model as many layers as fit into the memory."""
    found = [(f"one tensor of {count:,} entries", shapes.one(count)) for count in arguments.numel or []]
    copies = (2 + len(arguments.alpha) * (1 + ("topk" in arguments.contenders))) * stored.stored_bytes
    copies += arguments.grad_buffers * (4 if stored.grad == "f32" else 2)
    room = 0.85 * (memory.available() or 1 << 62) / copies
    for name in arguments.models if arguments.models is not None else ([] if found else ["smollm2", "gpt2"]):
        found.append(shapes.MODELS[name].fitting(room, arguments.quick))
    return found


def options(parser: argparse.ArgumentParser) -> None:
    timed(parser, 21)
    add = parser.add_argument
    add("--models", nargs="+", choices=shapes.MODELS, help="(smollm2 gpt2)")
    add("--numel", nargs="+", type=int, metavar="N", help="one tensor of so many entries, in place of models")
    add("--dtypes", nargs="+", choices=FORMATS, default=["f32", "bf16"], help="of mofo; PyTorch has all in one type")
    add("--contenders", nargs="+", choices=["foreach", "topk"], default=[], help="of PyTorch, besides fused")
    add("--grad-buffers", type=int, default=4, help="gradients that take turns (%(default)s)")
    add("--tier", choices=TIERS, default="best", help="vector instructions of mofo (%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    settled(arguments)
    library = Library(arguments.library[0])
    torch_about = {"torch": torch.__version__, "torch_cpu": torch.backends.cpu.get_cpu_capability()}
    torch_about["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "not set")
    report = Report(arguments.json, **Report.machine(library), **torch_about)
    for name in arguments.dtypes:
        for threads in arguments.threads:
            setting = Setting(format=FORMATS[name], threads=threads, tier=arguments.tier)
            check(library, setting, arguments.alpha, arguments.contenders)
            for title, tensors in workloads(arguments, setting.format):
                comparison = Comparison(library, tensors, setting, arguments.grad_buffers)
                how = f"{title}, {name}, {threads} thread{'s' if threads > 1 else ''}"
                compare(how, comparison, arguments, report)
    report.write(vars(arguments))


def compare(title: str, comparison: Comparison, arguments: argparse.Namespace, report: Report) -> None:
    """One table."""
    contenders = comparison.contenders(arguments.alpha, arguments.contenders)
    schedule = Schedule(arguments.rounds, arguments.warm_up, arguments.pause_ms / 1e3)
    row = measure(contenders, schedule, CLOCKS[arguments.clock])
    report.times("torch", title, contenders, row, entries=shapes.numel(comparison.tensors))
    slowest = [max(contender.times) for contender in contenders[:2]]
    if comparison.setting.threads > 1 and slowest[0] > 3 * slowest[1]:
        report.note("PyTorch takes more than 3 times as long: perhaps its threads wait for a busy core. See README.md.")
    for contender in contenders:
        contender.close()
