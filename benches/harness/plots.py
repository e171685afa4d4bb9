"""Draws what `run.py torch --json` wrote, into docs/plots.

time-over-size.svg: nanoseconds an entry over the entries of one tensor (--numel), where there are several sizes.
ratio-over-alpha.svg: ratios to PyTorch's fused AdamW over update fractions, a line for each model or size, where there
are at least three fractions besides 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from .figures import Record
from .library import ROOT

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mofo",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    # Told apart with every kind of colour vision (Okabe and Ito); markers tell the rest.
    "axes.prop_cycle": cycler(
        color=["#0072b2", "#d55e00", "#009e73", "#56b4e9", "#e69f00", "#cc79a7", "#000000"],
        marker=["o", "^", "D", "s", "v", "P", "x"],
    ),
    "lines.markersize": 4.5,
}
REFERENCE = "PyTorch fused"


def sizes(tables: Sequence[Record], axes: Axes) -> None:
    """Nanoseconds an entry over entries."""
    for name in dict.fromkeys(record["name"] for table in tables for record in table["records"]):
        records = [record for table in tables for record in table["records"] if record["name"] == name]
        axes.plot([record["entries"] for record in records], [record["ns_per_entry"] for record in records], label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("entries of the tensor")
    axes.set_ylabel("nanoseconds an entry")
    axes.legend()


def fractions(tables: Sequence[Record], axes: Axes) -> None:
    """Ratios over update fractions, with their intervals."""
    for table in tables:
        records = sorted((r for r in table["records"] if "alpha" in r), key=lambda record: float(record["alpha"]))
        found = [record["ratios"][REFERENCE] for record in records]
        middle = [ratio["median"] for ratio in found]
        below = [ratio["median"] - (ratio["low"] or ratio["median"]) for ratio in found]
        above = [(ratio["high"] or ratio["median"]) - ratio["median"] for ratio in found]
        axes.errorbar(
            [r["alpha"] for r in records], middle, [below, above], capsize=3, label=table["title"].split(";")[0]
        )
    axes.axhline(1, color="#606060", marker="", label="PyTorch's fused AdamW")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xticks([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("update fraction α (1 is AdamW)")
    axes.set_ylabel("time of a step, PyTorch's fused AdamW = 1")
    axes.legend(loc="lower left", fontsize=9)


def draw(plot: Callable[[Sequence[Record], Axes], None], tables: Sequence[Record], path: Path) -> None:
    """Writes one plot; the same bytes for the same tables."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.3), layout="constrained")
        plot(tables, figure.add_subplot())
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    print(path)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, help="JSON of run.py torch")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "plots", help="folder of the plots (%(default)s)")


def run(arguments: argparse.Namespace) -> None:
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.files]
    tables = [table for document in documents for table in document["tables"] if table["case"] == "torch"]
    single = sorted((t for t in tables if t["title"].startswith("one tensor")), key=lambda t: int(t["entries"]))
    over_alpha = [table for table in tables if sum("alpha" in record for record in table["records"]) >= 4]
    if len({table["entries"] for table in single}) > 1:
        draw(sizes, single, arguments.out / "time-over-size.svg")
    if over_alpha:
        draw(fractions, over_alpha, arguments.out / "ratio-over-alpha.svg")
