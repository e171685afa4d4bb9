"""`make bench`: steps of mofo through the C API, against its own AdamW in the same rounds."""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from . import memory, shapes
from .contender import Buffers, Contender, Mofo, PlainLoop, Setting
from .formats import FORMATS, Format
from .gradients import Gradients
from .library import ROOT, TIERS, Library, Optimizer, api
from .memory import Array
from .report import Report
from .rounds import Schedule, measure
from .shapes import TensorSpec

LARGE = 16_000_000
"""Entries that no cache holds."""

SIZES = [1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 66_000_000, 106_202_880, 1 << 27]
"""The last but one is as many as SmolLM2's layers have, the last a power of two."""

BLOCKS = [1, 16, 256, 4096, 1 << 16, 1 << 20]
BLOCKED = 1 << 24


@dataclass(frozen=True)
class Variant:
    """A way to make steps, at several update fractions."""

    label: str
    tensors: Sequence[TensorSpec]
    setting: Setting = field(default_factory=Setting)
    rows: float = 1.0
    """The share of rows of a tensor that have a gradient."""
    fractions: Sequence[float] | None = None
    """Other update fractions than the command line's."""
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
        """One table. `base`: what the first variant is called, to which the others are compared at the same fraction."""
        for pages in self.arguments.pages:
            needed, room = self.needed(variants), memory.available()
            if room is not None and needed > 0.9 * room:
                text = f"needs {needed / 2**30:.1f} GiB of memory, {room / 2**30:.1f} GiB are free; --share needs less"
                self.report.table(case, title, {"step": str}, [{"name": title, "error": f"left out: {text}"}])
                continue
            contenders = self.contenders(variants, base, pages)
            row = measure(contenders, self.schedule)
            self.report.times(case, f"{title}, {pages} pages", contenders, row, pages=pages)
            for contender in contenders:
                contender.close()

    def fractions(self, variant: Variant) -> list[float]:
        """Its update fractions, AdamW first."""
        given = self.arguments.alpha if variant.fractions is None else variant.fractions
        return [1.0, *given]

    def buffers_of(self, count: int) -> int:
        """Gradients that take turns: few enough for the caches where a tensor is small, for memory where it is large."""
        return self.arguments.grad_buffers or (64 if count <= 1 << 14 else 8 if count <= 1 << 20 else 4)

    def needed(self, variants: Sequence[Variant]) -> float:
        """Bytes, about."""
        total, shared = 0.0, 0.0
        for variant in variants:
            count, stored = shapes.numel(list(variant.tensors)), variant.setting.format
            own = float(count * stored.stored_bytes)
            shared = max(shared, own)
            total += own * len(self.fractions(variant)) * len(self.libraries)
        gradients = {(v.setting.format.grad, v.rows, len(v.tensors)): shapes.numel(list(v.tensors)) for v in variants}
        sizes = sum(n * self.buffers_of(n) * (4 if grad == "f32" else 2) for (grad, _, _), n in gradients.items())
        return sizes + (shared if self.arguments.share else total)

    def contenders(self, variants: Sequence[Variant], base: str, pages: str) -> list[Contender]:
        """All of a table, each with those that it is compared to."""
        gradients: dict[object, Gradients] = {}
        shared: dict[object, Buffers] = {}
        found: list[Contender] = []
        firsts: dict[object, Mofo] = {}
        for variant in variants:
            setting = variant.setting
            layout = tuple((tensor.numel, tensor.columns) for tensor in variant.tensors)
            key = (layout, setting.format.grad, variant.rows)
            if key not in gradients:
                count = self.buffers_of(shapes.numel(list(variant.tensors)))
                gradients[key] = Gradients(variant.tensors, setting.format.grad, count, pages, variant.rows)
            for number, library in enumerate(self.libraries):
                adamw = None
                for place, fraction in enumerate(self.fractions(variant)):
                    buffers = shared.get((layout, setting.format)) if self.arguments.share else None
                    if buffers is None:
                        buffers = Buffers.allocated(variant.tensors, setting.format, pages)
                        if variant.prepare is not None:
                            variant.prepare(buffers)
                        shared[layout, setting.format] = buffers
                    name = ("AdamW" if fraction == 1 else f"MoFO {fraction:g}") + (" again" if place and fraction == 1 else "")
                    label = f"{name}, {variant.label}" if variant.label else name
                    if number:
                        label += f", library {number + 1}"
                    mofo = Mofo(library, label, variant.tensors, gradients[key], setting.of(fraction), buffers)
                    adamw = adamw or mofo
                    if mofo is not adamw:
                        mofo.references["AdamW"] = adamw
                    first = firsts.setdefault((place, number, "base"), mofo)
                    if base and first is not mofo:
                        mofo.references[base] = first
                    first = firsts.setdefault((place, variant.label, "library"), mofo)
                    if first is not mofo:
                        mofo.references["library 1"] = first
                    found.append(mofo)
        return found

    def each_thread_count(self) -> Iterator[tuple[int, str]]:
        """Numbers of threads, and how to say so."""
        for threads in self.arguments.threads:
            yield threads, "1 thread" if threads == 1 else f"{threads} threads"

    def format(self) -> Iterator[tuple[str, Format]]:
        """The types of elements of the command line."""
        for name in self.arguments.dtypes:
            yield name, FORMATS[name]

    def size(self, usual: int) -> list[int]:
        """Entries of one tensor."""
        return [count // (64 if self.arguments.quick else 1) for count in self.arguments.numel or [usual]]

    def setting(self, threads: int) -> Setting:
        """What all cases start from."""
        return Setting(threads=threads, tier=self.arguments.tier)


def models(bench: Bench) -> None:
    """The tensors of real models, as many layers as fit into the memory; norms and biases move as a whole."""
    for name in bench.arguments.models:
        model = shapes.MODELS[name]
        for types, stored in bench.format():
            for threads, how in bench.each_thread_count():
                setting = replace(bench.setting(threads), format=stored)
                layers = model.layers
                variant = Variant("", model.tensors(layers), setting)
                while layers > 1 and bench.needed([variant]) > 0.85 * (memory.available() or 1 << 62):
                    layers -= 1
                    variant = Variant("", model.tensors(layers), setting)
                if bench.arguments.quick:
                    variant = replace(variant, tensors=shapes.shrunk(model.tensors(2), 64))
                cut = "" if layers == model.layers else f", {layers} of its {model.layers} layers"
                entries = f"{len(variant.tensors)} tensors, {shapes.numel(list(variant.tensors)):,} entries"
                bench.compare("models", f"{model.title}{cut}: {entries}, {types}, {how}", [variant])


def sizes(bench: Bench) -> None:
    """One f32 tensor of several sizes."""
    counts = bench.arguments.numel or ([1 << 12, 1 << 17] if bench.arguments.quick else SIZES)
    for count in counts:
        for threads, how in bench.each_thread_count():
            bench.compare("sizes", f"{count:,} entries, {how}", [Variant("", shapes.one(count), bench.setting(threads))])


def small(bench: Bench) -> None:
    """A tensor that the caches hold, against a plain loop in C."""
    plain = compile_plain_loop()
    for count in bench.arguments.numel or [1 << 12]:
        variant = Variant("", shapes.one(count), bench.setting(1))
        contenders = bench.contenders([variant], "", "normal")
        gradients = Gradients(variant.tensors, "f32", bench.buffers_of(count), "normal")
        buffers = Buffers.allocated(variant.tensors, Format(), "normal")
        loop = PlainLoop(plain, variant.tensors[0], gradients, buffers)
        for contender in contenders:
            contender.references["plain loop in C"] = loop
        row = measure([*contenders, loop], bench.schedule)
        bench.report.times("small", f"{count:,} entries, 1 thread", [*contenders, loop], row)
        for contender in contenders:
            contender.close()


def compile_plain_loop() -> ctypes.CDLL:
    """adamw.c as a shared library in build/."""
    path = ROOT / "build" / "adamw.so"
    path.parent.mkdir(exist_ok=True)
    flags = ["-std=c99", "-O3", os.environ.get("NATIVE", "-march=native"), "-fno-math-errno", "-shared", "-fPIC"]
    source = Path(__file__).parents[1] / "adamw.c"
    subprocess.run([os.environ.get("CC", "cc"), *flags, str(source), "-o", str(path), "-lm"], check=True)
    return ctypes.CDLL(str(path))


def dtypes(bench: Bench) -> None:
    """Types of elements, against everything in f32."""
    for count in bench.size(LARGE):
        for threads, how in bench.each_thread_count():
            setting = bench.setting(threads)
            variants = [
                Variant(name, shapes.one(count), replace(setting, format=stored)) for name, stored in FORMATS.items()
            ]
            bench.compare("dtypes", f"{count:,} entries, {how}", variants, "f32")


def tiers(bench: Bench) -> None:
    """Vector instructions that the machine has, against the portable loops."""
    for count in bench.size(LARGE):
        for threads, how in bench.each_thread_count():
            variants = [
                Variant(tier, shapes.one(count), replace(bench.setting(threads), tier=tier))
                for tier in TIERS
                if tier != "best" and has_tier(bench.libraries[0], tier)
            ]
            bench.compare("tiers", f"{count:,} entries, {how}", variants, "portable")


def has_tier(library: Library, tier: str) -> bool:
    """Whether this processor and this build have it."""
    try:
        Optimizer(library, cpu_tier=TIERS[tier]).close()
    except Exception as error:
        if getattr(error, "status", None) == api.MOFO_ERROR_UNSUPPORTED:
            return False
        raise
    return True


def blocks(bench: Bench) -> None:
    """One tensor in more and more blocks, each with a threshold of its own, against one block."""
    for count in bench.size(BLOCKED):
        for threads, how in bench.each_thread_count():
            variants = [
                Variant(f"{number:,} blocks", shapes.one(count // number * number, number), bench.setting(threads))
                for number in BLOCKS
                if number <= count // 16
            ]
            bench.compare("blocks", f"{count:,} entries, {how}", variants, "1 block")


def norm(bench: Bench) -> None:
    """Steps that need the norm of the gradients first."""
    settings = {
        "neither": {},
        "skip_nonfinite": {"skip_nonfinite": 1},
        "max_grad_norm": {"max_grad_norm": 1.0},
        "both": {"skip_nonfinite": 1, "max_grad_norm": 1.0},
    }
    for count in bench.size(LARGE):
        for threads, how in bench.each_thread_count():
            variants = [
                Variant(label, shapes.one(count), replace(bench.setting(threads), options=options))
                for label, options in settings.items()
            ]
            bench.compare("norm", f"{count:,} entries, {how}", variants, "neither")


def sparse(bench: Bench) -> None:
    """An embedding of which a step's gradient touches 1 % of the rows, after many such steps, against dense gradients."""
    rows, columns, touched, steps = 50257 // (64 if bench.arguments.quick else 1), 768, 0.01, 2000

    def prepare(buffers: Buffers) -> None:
        """Moments of rows that were touched some time ago, in f32."""
        rng = np.random.default_rng(5)
        age = rng.geometric(touched, rows).astype(np.float64)[:, None]
        gradient = 1e-3 * rng.standard_normal((rows, columns))
        exp_avg, exp_avg_sq = (array[0].reshape(rows, columns) for array in buffers.arrays[1:3])
        exp_avg[:] = flushed(0.1 * 0.9**age * gradient)
        exp_avg_sq[:] = flushed(0.001 * 0.999**age * gradient**2)

    tensors = [shapes.matrix("embedding", rows, columns)]
    for threads, how in bench.each_thread_count():
        setting = bench.setting(threads)
        sparse_setting = replace(setting, step_count=steps)
        variants = [
            Variant("dense", tensors, setting),
            Variant("sparse", tensors, sparse_setting, rows=touched, prepare=prepare),
        ]
        bench.compare("sparse", f"an embedding of {rows:,} x {columns}, {how}", variants, "dense")


def flushed(values: Array) -> Array:
    """As the library stores moments: no denormal numbers."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values).astype(np.float32)


def threads(bench: Bench) -> None:
    """More and more threads, against one."""
    most = os.cpu_count() or 1
    counts = sorted({1 << i for i in range(most.bit_length()) if 1 << i <= most} | {most})
    for count in bench.size(LARGE):
        variants = [
            Variant("1 thread" if n == 1 else f"{n} threads", shapes.one(count), bench.setting(n)) for n in counts
        ]
        bench.compare("threads", f"{count:,} entries", variants, "1 thread")


def failing(bench: Bench) -> None:
    """Steps whose estimate is forced to fail, or what it collects to find no room. For a library with `forced-paths`."""
    ways = {
        "as usual": "",
        "estimate too low": "bracket=too-low",
        "estimate too high": "bracket=too-high",
        "estimate anywhere": "bracket=anywhere",
        "no room": "no-room",
        "too high, no room": "bracket=too-high,no-room",
    }
    for count in bench.size(LARGE):
        for threads, how in bench.each_thread_count():
            variants = [
                Variant(label, shapes.one(count), replace(bench.setting(threads), forced=words))
                for label, words in ways.items()
            ]
            bench.compare("failing", f"{count:,} entries, {how}", variants, "as usual")
            records = bench.report.document["tables"][-1]["records"]
            if not any(record.get("estimates_failed") for record in records):
                bench.report.note("No estimate failed: this library does not read MOFO_TEST_PATHS.")


CASES: dict[str, Callable[[Bench], None]] = {
    case.__name__: case
    for case in (models, sizes, small, dtypes, tiers, blocks, norm, sparse, threads, failing)
}
