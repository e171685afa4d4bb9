"""Steps of mofo through the C API, against its own AdamW in the same rounds. Several libraries can be compared."""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import memory, shapes
from .compare import Bench, Variant
from .contender import Buffers, PlainLoop, Setting
from .formats import FORMATS, Format
from .library import ROOT, TIERS, Library, Optimizer, api
from .memory import Array
from .options import settled, timed
from .report import Report
from .rounds import CLOCKS, measure

LARGE = 16_000_000
"""Entries that no cache holds."""

SIZES = [1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 66_000_000, 106_202_880, 1 << 27]
"""The last but one is as many as SmolLM2's layers have, the last a power of two."""

BLOCKS = [1, 16, 256, 4096, 1 << 16, 1 << 20]


def models(bench: Bench) -> None:
    """The tensors of real models, as many layers as fit into the memory; norms and biases move as a whole."""
    for name in bench.arguments.models:
        for types in bench.arguments.dtypes:
            for setting, how in settings(bench):
                setting = replace(setting, format=FORMATS[types])
                needed = bench.needed([Variant("", shapes.one(LARGE), setting)])
                room = 0.85 * (memory.available() or 1 << 62) / needed * LARGE
                title, tensors = shapes.MODELS[name].fitting(room, bench.arguments.quick)
                bench.compare("models", f"{title}, {types}, {how}", [Variant("", tensors, setting)])


def settings(bench: Bench) -> list[tuple[Setting, str]]:
    """For each number of threads, what all cases start from, and how to call it."""
    counts = bench.arguments.threads
    return [(Setting(threads=n, tier=bench.arguments.tier), f"{n} thread{'s' if n > 1 else ''}") for n in counts]


def one_tensor(
    case: str, bench: Bench, usual: list[int], variants: Callable[[int, Setting], list[Variant]], base: str = ""
) -> None:
    """A table for each number of entries and of threads; `variants` makes what is compared in it."""
    for count in bench.arguments.numel or [count // (64 if bench.arguments.quick else 1) for count in usual]:
        for setting, how in settings(bench):
            bench.compare(case, f"{count:,} entries, {how}", variants(count, setting), base)


def sizes(bench: Bench) -> None:
    """One f32 tensor of several sizes."""
    usual = SIZES[2:6] if bench.arguments.quick else SIZES
    one_tensor("sizes", bench, usual, lambda count, setting: [Variant("", shapes.one(count), setting)])


def dtypes(bench: Bench) -> None:
    """Types of elements, against everything in f32."""

    def variants(count: int, setting: Setting) -> list[Variant]:
        return [Variant(name, shapes.one(count), replace(setting, format=types)) for name, types in FORMATS.items()]

    one_tensor("dtypes", bench, [LARGE], variants, "f32")


def tiers(bench: Bench) -> None:
    """Vector instructions that the machine has, against the portable loops."""
    found = [tier for tier in TIERS if tier != "best" and has_tier(bench.libraries[0], tier)]

    def variants(count: int, setting: Setting) -> list[Variant]:
        return [Variant(tier, shapes.one(count), replace(setting, tier=tier)) for tier in found]

    one_tensor("tiers", bench, [LARGE], variants, "portable")


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
    """One tensor in more and more blocks, down to 16 entries, each with a threshold of its own, against one block."""

    def variants(count: int, setting: Setting) -> list[Variant]:
        numbers = [number for number in BLOCKS if number <= count // 16]
        return [Variant(f"{n:,} blocks", shapes.one(count // n * n, n), setting) for n in numbers]

    one_tensor("blocks", bench, [1 << 24], variants, "1 block")


def norm(bench: Bench) -> None:
    """Steps that need the norm of the gradients first."""
    ways: dict[str, dict[str, Any]] = {
        "neither": {},
        "skip_nonfinite": {"skip_nonfinite": 1},
        "max_grad_norm": {"max_grad_norm": 1.0},
        "both": {"skip_nonfinite": 1, "max_grad_norm": 1.0},
    }

    def variants(count: int, setting: Setting) -> list[Variant]:
        return [Variant(way, shapes.one(count), replace(setting, options=options)) for way, options in ways.items()]

    one_tensor("norm", bench, [LARGE], variants, "neither")


def threads(bench: Bench) -> None:
    """More and more threads, against one."""
    most = os.cpu_count() or 1
    bench.arguments.threads = sorted({1 << i for i in range(most.bit_length()) if 1 << i <= most} | {most})
    for count in bench.arguments.numel or [LARGE // (64 if bench.arguments.quick else 1)]:
        variants = [Variant(how, shapes.one(count), setting) for setting, how in settings(bench)]
        bench.compare("threads", f"{count:,} entries", variants, "1 thread")


def sparse(bench: Bench) -> None:
    """An embedding of which a gradient touches 1 % of the rows, after many such steps, against dense ones."""
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
    for setting, how in settings(bench):
        later = Variant("sparse", tensors, replace(setting, step_count=steps), touched, prepare=prepare)
        title = f"an embedding of {rows:,} x {columns}, {how}"
        bench.compare("sparse", title, [Variant("dense", tensors, setting), later], "dense")


def flushed(values: Array) -> Array:
    """As the library stores moments: no denormal numbers."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values).astype(np.float32)


def failing(bench: Bench) -> None:
    """Steps whose estimate is forced to fail, or to find no room. For a library with `forced-paths`."""
    ways = {
        "as usual": "",
        "estimate too low": "bracket=too-low",
        "estimate too high": "bracket=too-high",
        "estimate anywhere": "bracket=anywhere",
        "no room": "no-room",
        "too high, no room": "bracket=too-high,no-room",
    }

    def variants(count: int, setting: Setting) -> list[Variant]:
        one = shapes.one(count)
        return [Variant(way, one, replace(setting, forced=words), adamw=not words) for way, words in ways.items()]

    one_tensor("failing", bench, [LARGE], variants, "as usual")
    if not any(record.get("estimates_failed") for record in bench.report.records("failing")):
        bench.report.note("No estimate failed: this library does not read MOFO_TEST_PATHS.")


def small(bench: Bench) -> None:
    """A tensor that the caches hold, on one thread, against a plain loop in C."""
    path, source = ROOT / "build" / "adamw.so", Path(__file__).parents[1] / "adamw.c"
    path.parent.mkdir(exist_ok=True)
    flags = ["-std=c99", "-O3", os.environ.get("NATIVE", "-march=native"), "-fno-math-errno", "-shared", "-fPIC"]
    subprocess.run([os.environ.get("CC", "cc"), *flags, str(source), "-o", str(path), "-lm"], check=True)
    plain = ctypes.CDLL(str(path))
    for count in bench.arguments.numel or [1 << 12]:
        contenders = bench.contenders(
            [Variant("", shapes.one(count), Setting(tier=bench.arguments.tier))], "", "normal"
        )
        buffers = Buffers.allocated(shapes.one(count), Format(), memory.mapped("normal"))
        loop = PlainLoop(plain, count, contenders[0].gradients, buffers)
        for contender in contenders:
            contender.references["plain loop in C"] = loop
        row = measure([*contenders, loop], bench.schedule, CLOCKS[bench.arguments.clock])
        bench.report.times("small", f"{count:,} entries, 1 thread", [*contenders, loop], row)
        for contender in contenders:
            contender.close()


CASES: dict[str, Callable[[Bench], None]] = {
    case.__name__: case for case in (models, sizes, small, dtypes, tiers, blocks, norm, sparse, failing, threads)
}


def options(parser: argparse.ArgumentParser) -> None:
    timed(parser, 15)
    usual = [case for case in CASES if case != "failing"]
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=usual, metavar="CASE", help=f"any of {', '.join(CASES)}")
    add("--models", nargs="+", choices=shapes.MODELS, default=["smollm2", "gpt2"], help="of the case models")
    add("--numel", nargs="+", type=int, metavar="N", help="entries, of the cases with one tensor")
    add("--dtypes", nargs="+", choices=FORMATS, default=["f32"], help="of the case models")
    add("--tier", choices=TIERS, default="best", help="vector instructions (%(default)s)")
    add("--pages", nargs="+", choices=["huge", "normal"], default=["huge"], help="of the buffers (huge)")
    add("--grad-buffers", type=int, help="gradients that take turns (4, more if small)")
    add("--share", action="store_true", help="contenders take turns in one set of buffers, which needs less memory")


def run(arguments: argparse.Namespace) -> None:
    libraries = [Library(path) for path in arguments.library]
    report = Report(arguments.json, **Report.machine(libraries[0]))
    bench = Bench(settled(arguments), libraries, report)
    for name in arguments.cases:
        CASES[name](bench)
    report.write(vars(arguments))
