"""Counts how many estimates of thresholds fail: a step is as exact then, but takes longer.

A table for each combination of types; a cell is a size of blocks, a learning rate and a size of the weights (rows), and
an update fraction (columns). Every cell sees at least so many estimates, on gradients as in training. Nothing is timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product

from . import memory
from .contender import Buffers, Mofo, Setting
from .figures import Record
from .formats import Format
from .gradients import Gradients, weights
from .library import Library
from .memory import addresses
from .options import common
from .report import Report, Shown, failed
from .shapes import TensorSpec

FORMATS = {"f32": Format(), "f32, bf16 moments": Format(state="bf16")}
for dtype, state, way in product(("bf16", "f16"), ("f32", "bf16"), ("nearest", "stochastic", "masters")):
    rounding = "stochastic" if way == "stochastic" else "nearest"
    FORMATS[f"{dtype}, {state} moments, {way}"] = Format(dtype, dtype, state, rounding, way == "masters")

ENTRIES = 1 << 23
"""Of the tensor whose blocks are counted, at least."""

GRADIENTS = 4


class Count:
    """Counts cell after cell. Cells of a size of blocks and a type have their gradients in common."""

    def __init__(self, library: Library, estimates: int, threads: int) -> None:
        self.library, self.estimates, self.threads = library, estimates, threads
        self.key: tuple[int, str] | None = None

    def cell(self, stored: Format, fraction: float, block: int, rate: float, size: float) -> Record:
        """Steps until there were enough estimates, if there are any."""
        number = max(1, min(self.estimates, ENTRIES // block))
        tensors = [TensorSpec("weight", number * block, columns=1024, num_blocks=number)]
        if self.key != (block, stored.grad):
            self.key = block, stored.grad
            self.gradients = Gradients(tensors, stored.grad, GRADIENTS, memory.mapped("huge"))
        params = weights(tensors, stored.param, memory.mapped("huge"), size)
        setting = Setting(fraction, stored, self.threads)
        mofo = Mofo(self.library, "", tensors, self.gradients, setting, Buffers(addresses(params), arrays=params))
        mofo.arguments.learning_rate = rate
        for step in range(-(-self.estimates // number)):
            mofo.load(step)
            mofo.step()
            mofo.settle()
        mofo.close()
        name = f"{block:,} entries, learning rate {rate:g}, weights {size:g}"
        return {"name": name, **mofo.about}


def table(report: Report, title: str, cells: Sequence[Record], alphas: Sequence[float]) -> None:
    """Cells that have a name in common in one row, update fractions side by side."""
    rows: dict[str, Record] = {}
    for cell in cells:
        rows.setdefault(cell["name"], {"name": cell["name"], "cells": {}})["cells"][cell["alpha"]] = cell
    shown: Shown = {"blocks of": lambda row: str(row["name"])}
    for alpha in alphas:
        shown[f"α {alpha:g}"] = partial(of_alpha, alpha)
    report.table("estimates", title, shown, list(rows.values()))


def of_alpha(alpha: float, row: Record) -> str:
    """A cell."""
    return failed(row["cells"][alpha])


def options(parser: argparse.ArgumentParser) -> None:
    common(parser)
    add = parser.add_argument
    add("--estimates", type=int, default=1000, help="of each cell, at least (%(default)s)")
    add("--alpha", nargs="+", type=float, default=[0.01, 0.03, 0.1, 0.2, 0.5], metavar="A", help="update fractions")
    add("--learning-rates", nargs="+", type=float, default=[1e-5, 1e-4, 1e-3, 1e-2], metavar="R")
    add("--weights", nargs="+", type=float, default=[0.002, 0.02, 0.2, 1.0], metavar="W", help="their size")
    add("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="F", help=f"of {'; '.join(FORMATS)}")
    add("--block", type=int, default=1 << 17, help="entries of a block (%(default)s)")
    add("--blocks", nargs="+", type=int, default=[1 << 19, 1 << 21], metavar="N", help="others, at 1e-4 and 0.02")
    add("--threads", type=int, default=0, help="(all)")


def run(arguments: argparse.Namespace) -> None:
    if arguments.quick:
        arguments.estimates = 4
        arguments.learning_rates, arguments.weights = arguments.learning_rates[:1], arguments.weights[:1]
        arguments.blocks = arguments.blocks[:1]
    library = Library(arguments.library[0])
    report = Report(arguments.json, **Report.machine(library))
    count = Count(library, arguments.estimates, arguments.threads)
    points = [(arguments.block, *point) for point in product(arguments.learning_rates, arguments.weights)]
    points += [(block, 1e-4, 0.02) for block in arguments.blocks]
    every: list[Record] = []
    for name in arguments.formats:
        cells = [count.cell(FORMATS[name], alpha, *point) for point in points for alpha in arguments.alpha]
        table(report, name, cells, arguments.alpha)
        every += cells
    estimated = [cell for cell in every if cell["blocks_estimated"]]
    if not estimated:
        raise SystemExit("nothing was estimated")
    worst = max(estimated, key=lambda cell: cell["estimates_failed"] / cell["blocks_estimated"])
    many = sum(cell["estimates_failed"] > cell["blocks_estimated"] / 1000 for cell in estimated)
    report.note(
        f"{many} of {len(estimated)} cells have more failures than 1 in 1,000; most has {failed(worst)}: {worst}"
    )
    report.write(vars(arguments))
