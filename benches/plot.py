"""Draws what compare_torch.py --json wrote of its sweeps: time over size, and ratio to PyTorch over update fraction."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from comparison.figures import Record
from comparison.roster import BASELINE

ROOT = Path(__file__).resolve().parent.parent

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mofo",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#606060",
    "axes.labelcolor": "#202020",
    "text.color": "#202020",
    "xtick.color": "#404040",
    "ytick.color": "#404040",
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

# Colours that are told apart with every kind of colour vision (Okabe and Ito); markers tell the rest.
SERIES = {
    "mofo-0.03": ("MoFO, α = 0.03", "#0072b2", "o"),
    "mofo-0.1": ("MoFO, α = 0.1", "#56b4e9", "s"),
    "mofo-1": ("mofo as AdamW", "#009e73", "D"),
    "torch-fused": ("PyTorch fused AdamW", "#d55e00", "^"),
    "torch-foreach": ("PyTorch foreach AdamW", "#e69f00", "v"),
}
"""Contenders of the plot over size: label, colour, marker."""


def read_points(paths: Sequence[Path]) -> tuple[list[Record], list[Record]]:
    """The comparisons of the sweeps over size, and those of the sweeps over the update fraction."""
    documents = [json.loads(path.read_text()) for path in paths]
    over: dict[str, list[Record]] = {"sweep_numel": [], "sweep_alpha": []}
    for sweep, points in over.items():
        for document in documents:
            if document["settings"][sweep] is not None:
                points += document["points"]
    return over["sweep_numel"], over["sweep_alpha"]


def binary(count: int) -> str:
    """A power of two with its unit."""
    for shift, unit in ((30, " Gi"), (20, " Mi"), (10, " Ki")):
        if count >= 1 << shift:
            return f"{count >> shift}{unit}"
    return str(count)


def plot_sizes(points: Sequence[Record], axes: Axes) -> None:
    """Nanoseconds an entry over entries."""
    points = sorted(points, key=lambda point: point["entries"])
    for name, (label, colour, marker) in SERIES.items():
        records = [record for point in points for record in point["contenders"] if record["name"] == name]
        if records:
            sizes = [record["entries"] for record in records]
            times = [record["ns_per_entry"] for record in records]
            axes.plot(sizes, times, label=label, color=colour, marker=marker, markersize=4.5, linewidth=1.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=16))
    axes.xaxis.set_major_formatter(lambda entries, _: binary(round(entries)))
    axes.set_yscale("log")
    axes.set_xlabel("entries of the tensor")
    axes.set_ylabel("nanoseconds an entry")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend()


def plot_fractions(points: Sequence[Record], axes: Axes) -> None:
    """Ratio to PyTorch's fused AdamW over update fraction, with its interval."""
    records = [record for point in points for record in point["contenders"] if record["name"].startswith("mofo-")]
    records.sort(key=lambda record: float(record["update_fraction"]))
    fractions = [record["update_fraction"] for record in records]
    ratios = [record["ratio"] for record in records]
    low = [record["ratio_interval"][0] for record in records]
    high = [record["ratio_interval"][1] for record in records]
    below = [ratio - bound for ratio, bound in zip(ratios, low, strict=True)]
    above = [bound - ratio for ratio, bound in zip(ratios, high, strict=True)]
    _, colour, marker = SERIES["mofo-0.03"]
    filtered = [i for i, fraction in enumerate(fractions) if fraction < 1]
    axes.plot([fractions[i] for i in filtered], [ratios[i] for i in filtered], color=colour, linewidth=1.0)
    axes.errorbar(
        *(fractions, ratios, [below, above]),
        fmt=marker,
        color=colour,
        markersize=4.5,
        elinewidth=1.6,
        capsize=3,
        label="mofo, 95 % interval of the median",
    )
    label, colour, _ = SERIES[BASELINE]
    axes.axhline(1, color=colour, linewidth=1.6, label=label)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xticks([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("update fraction α (1 is AdamW)")
    axes.set_ylabel("time of a step, PyTorch fused AdamW = 1")
    axes.legend(loc="lower left")


def draw(plot: Callable[[Sequence[Record], Axes], None], points: Sequence[Record], path: Path) -> None:
    """Writes one plot; the same bytes for the same points."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.3), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(True)
        axes.set_axisbelow(True)
        plot(points, axes)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="JSON of --sweep-numel, of --sweep-alpha, or both")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/plots", help="folder for the SVG files (%(default)s)")
    arguments = parser.parse_args()
    sizes, fractions = read_points(arguments.files)
    if sizes:
        draw(plot_sizes, sizes, arguments.out / "time-over-size.svg")
    if fractions:
        draw(plot_fractions, fractions, arguments.out / "ratio-over-alpha.svg")
    if not sizes and not fractions:
        raise SystemExit("none of the files is of a sweep")


if __name__ == "__main__":
    main()
