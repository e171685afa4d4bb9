"""Tables of steps of mofo: variants, each at several update fractions, on buffers laid out alike."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from . import memory, shapes
from .contender import Buffers, Mofo, Setting
from .gradients import Gradients
from .library import Library
from .report import Report
from .rounds import CLOCKS, Schedule, measure
from .shapes import TensorSpec


@dataclass(frozen=True)
class Variant:
    """A way to make steps, at several update fractions."""

    label: str
    tensors: Sequence[TensorSpec]
    setting: Setting = field(default_factory=Setting)
    rows: float = 1.0
    """The share of rows of a tensor that have a gradient."""
    adamw: bool = True
    """Whether it has an AdamW of its own; otherwise it is compared to the first variant's."""
    prepare: Callable[[Buffers], None] | None = None
    """What happens to the buffers first."""


class Bench:
    """Measures variants as the command line says."""

    def __init__(self, arguments: argparse.Namespace, libraries: Sequence[Library], report: Report) -> None:
        self.arguments = arguments
        self.libraries = libraries
        self.report = report
        self.schedule = Schedule(arguments.rounds, arguments.warm_up, arguments.pause_ms / 1e3)

    def compare(self, case: str, title: str, variants: Sequence[Variant], base: str = "") -> None:
        """One table. `base`: what the first variant is called, to which the others are compared, too."""
        for pages in self.arguments.pages:
            needed, room = self.needed(variants), memory.available()
            if room is not None and needed > 0.9 * room:
                text = f"needs {needed / 2**30:.1f} GiB of memory, {room / 2**30:.1f} GiB are free; --share needs less"
                self.report.table(case, title, {"step": str}, [{"name": title, "error": f"left out: {text}"}])
                continue
            contenders = self.contenders(variants, base, pages)
            row = measure(contenders, self.schedule, CLOCKS[self.arguments.clock])
            self.report.times(case, f"{title}, {pages} pages", contenders, row, pages=pages)
            for contender in contenders:
                contender.close()

    def fractions(self, variant: Variant) -> list[float]:
        """Its update fractions, AdamW first."""
        return [1.0, *self.arguments.alpha] if variant.adamw else list(self.arguments.alpha)

    def buffers_of(self, count: int) -> int:
        """Gradients that take turns: as many as caches hold of a small tensor, and memory of a large one."""
        return self.arguments.grad_buffers or (64 if count <= 1 << 14 else 8 if count <= 1 << 20 else 4)

    def needed(self, variants: Sequence[Variant]) -> float:
        """Bytes, about."""
        total, shared = 0.0, 0.0
        for variant in variants:
            count, stored = shapes.numel(variant.tensors), variant.setting.format
            own = float(count * stored.stored_bytes)
            shared = max(shared, own)
            total += own * len(self.fractions(variant)) * len(self.libraries)
        gradients = {(v.setting.format.grad, v.rows, len(v.tensors)): shapes.numel(v.tensors) for v in variants}
        sizes = sum(n * self.buffers_of(n) * (4 if grad == "f32" else 2) for (grad, _, _), n in gradients.items())
        return sizes + (shared if self.arguments.share else total)

    def contenders(self, variants: Sequence[Variant], base: str, pages: str) -> list[Mofo]:
        """All of a table, each with those that it is compared to."""
        gradients: dict[object, Gradients] = {}
        sets: dict[object, Buffers] = {}
        known: dict[object, Mofo] = {}
        """By name, library and variant."""
        for variant in variants:
            of_variant = self.gradients(variant, gradients, pages)
            for number, library in enumerate(self.libraries):
                for place, fraction in enumerate(self.fractions(variant)):
                    name = "AdamW" if fraction == 1 else f"MoFO {fraction:g}"
                    if (name, number, variant.label) in known:
                        name += " again"
                    buffers = self.buffers(variant, None if self.arguments.share else (number, place), sets, pages)
                    label = ", ".join(filter(None, [name, variant.label, f"library {number + 1}" if number else ""]))
                    setting = replace(variant.setting, update_fraction=fraction)
                    mofo = Mofo(library, label, variant.tensors, of_variant, setting, buffers)
                    for column, owner in (
                        ("AdamW", ("AdamW", number, variant.label if variant.adamw else variants[0].label)),
                        (base, (name, number, variants[0].label)),
                        ("library 1", (name, 0, variant.label)),
                    ):
                        if column and owner in known:
                            mofo.references[column] = known[owner]
                    known[name, number, variant.label] = mofo
        return list(known.values())

    def gradients(self, variant: Variant, known: dict[object, Gradients], pages: str) -> Gradients:
        """Those that it shares with others of the same tensors and type."""
        key = (*layout(variant), variant.setting.format.grad, variant.rows)
        if key not in known:
            count = self.buffers_of(shapes.numel(variant.tensors))
            allocate = memory.mapped(pages)
            known[key] = Gradients(variant.tensors, variant.setting.format.grad, count, allocate, variant.rows)
        return known[key]

    def buffers(self, variant: Variant, owner: object, known: dict[object, Buffers], pages: str) -> Buffers:
        """Buffers of its own or, without an owner, those of all variants of the same tensors and types."""
        key = (*layout(variant), variant.setting.format, variant.label if owner else None, owner)
        if key not in known:
            known[key] = Buffers.allocated(variant.tensors, variant.setting.format, memory.mapped(pages))
            if variant.prepare is not None:
                variant.prepare(known[key])
        return known[key]


def layout(variant: Variant) -> tuple[object, ...]:
    """What tensors that can share buffers have in common."""
    return tuple((tensor.numel, tensor.columns) for tensor in variant.tensors)
