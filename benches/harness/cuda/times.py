"""The comparisons on the device: their tensors and contenders, rounds and tables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..library import Library
from ..report import Report, Shown, failed
from ..rounds import Schedule, measure
from ..shapes import TensorSpec, gpt2, llama, numel, one, shrunk
from .contenders import Gradients, Mofo, MofoStep, OnDevice, copy, pytorch
from .machine import Rehearsal

FRACTIONS = ["fused 1", "copy 1", "mofo 0.03", "mofo 0.1", "mofo 0.2", "mofo 0.5", "mofo 1"]
GRAPHS = ["fused 1", "fused 1 graph", "copy 1", "mofo 0.03", "mofo 0.03 graph", "mofo 1", "mofo 1 graph"]
TOPK = ["topk 0.03", "copy 1", "mofo 0.03"]

EXTRA: Shown = {
    "of copy": lambda r: f"{100 * r['of_copy']:.0f} %",
    "call µs": lambda r: f"{r['call_us']:.0f}",
    "work space": lambda r: f"{100 * r['scratch_share']:.2f} %" if "scratch_share" in r else "-",
}


class Comparisons:
    """All of them, on one machine. Those of `slow` need fewer rounds."""

    slow = ("topk", "topk_large")

    def __init__(self, library: Library, machine: Rehearsal, report: Report, entries: int, quick: bool) -> None:
        self.library, self.machine, self.report = library, machine, report
        small = shrunk(gpt2(12), 64) if quick else gpt2(12)
        self.parts: dict[str, tuple[str, Callable[[], list[TensorSpec]], str, list[str]]] = {
            "large": ("one tensor", lambda: one(entries), "f32", FRACTIONS),
            # A tensor that stacks 16 matrices, each with a threshold of its own.
            "blocks": ("16 blocks", lambda: one(entries // 16 * 16, 16), "f32", FRACTIONS),
            "llama": ("Llama 7B, as many layers as fit", lambda: self.llama(quick), "bf16", FRACTIONS),
            "gpt2": ("GPT-2 124M", lambda: small, "f32", GRAPHS),
            "topk": ("GPT-2 124M", lambda: small, "f32", TOPK),
            "topk_large": ("one tensor", lambda: one(entries), "f32", TOPK),
        }

    def llama(self, quick: bool) -> list[TensorSpec]:
        """For parameters and moments of both, gradients, what makes them, the copy's target and work space."""
        room = self.machine.free_memory() * 0.95 - (3 << 30)
        for layers in range(2 if quick else 32, 0, -1):
            tensors = llama(layers, 4096, 4096, 11008, 32000, head=True)
            if 15.2 * numel(tensors) <= room or quick:
                break
        return shrunk(tensors, 1000) if quick else tensors

    def run(self, part: str, schedule: Schedule) -> None:
        """A comparison; if the memory does not suffice for it, a line that says so."""
        title, tensors, dtype, kinds = self.parts[part]
        self.machine.settle()
        try:
            with contextlib.ExitStack() as stack:
                gradients = Gradients(self.machine, tensors(), dtype)
                self.measure(title, self.contenders(kinds, gradients, stack), schedule)
        except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.cuda.OutOfMemoryError) and "OUT_OF_MEMORY" not in str(error):
                raise
            self.report.table("cuda", part, {}, [{"name": part, "error": str(error).splitlines()[0]}])

    def contenders(self, kinds: Sequence[str], gradients: Gradients, stack: contextlib.ExitStack) -> list[OnDevice]:
        """By kind, update fraction and perhaps "graph". Steps of mofo share an optimizer, but for captured ones."""
        found: list[OnDevice] = []
        shared = Mofo(self.library, gradients)
        stack.callback(shared.close)
        for kind, fraction, *graph in (words.split() for words in kinds):
            if kind == "copy":
                found.append(copy(gradients))
            elif kind != "mofo":
                found.append(pytorch(kind, gradients, float(fraction), bool(graph)))
            else:
                mofo = Mofo(self.library, gradients) if graph else shared
                stack.callback(mofo.close)
                found.append(MofoStep(mofo, float(fraction), bool(graph)))
        return found

    def measure(self, workload: str, contenders: Sequence[OnDevice], schedule: Schedule) -> None:
        """The rounds and their table. All are compared to the first contender and to the copy."""
        first, gradients = contenders[0], contenders[0].gradients
        row = measure(contenders, schedule, lambda contender: contender.clock())  # type: ignore[attr-defined]
        copied = next(contender for contender in contenders if contender.name == "copy")
        for contender in contenders:
            if contender is not first:
                contender.references[first.name] = first
            slower = float(np.median(contender.times)) / float(np.median(copied.times))
            contender.about["of_copy"] = contender.bytes_per_entry / copied.bytes_per_entry / slower
        title = f"{workload}: {len(gradients.specs)} tensors, {numel(gradients.specs):,} entries, {gradients.dtype}"
        self.report.times("cuda", title, contenders, row, {**EXTRA, "failed": failed})
