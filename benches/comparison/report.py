"""What is printed and written."""

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from libmofo import Library

from .buffers import PERIOD, anonymous_memory
from .figures import Record
from .measure import nanoseconds_of_a_call, nanoseconds_of_the_clock
from .roster import BASELINE
from .workload import Workload

LEAST_DISTANCE = 512
"""Bytes, modulo `PERIOD`, between the starts of two buffers: less is worth a word."""


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Bytes that can be allocated, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def environment(library: Library, threads: int) -> Record:
    """On what is measured, and how much of a time is Python's."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mofo": library.version(),
        "threads": threads,
        "ctypes_call_ns": round(nanoseconds_of_a_call(library)),
        "clock_ns": round(nanoseconds_of_the_clock()),
    }


def describe_memory() -> str:
    """Whether the system gave huge pages."""
    memory = anonymous_memory()
    if memory is None:
        return "huge pages: the system does not say"
    total, huge = memory
    return f"huge pages: {huge / 2**30:.2f} of {total / 2**30:.2f} GiB of anonymous memory"


def print_point(workload: Workload, point: Record) -> None:
    """One comparison: what it was made on, a table, and notes."""
    tensors = f"{len(workload.tensors)} tensors" if len(workload.tensors) > 1 else "1 tensor"
    each = "" if point["batch"] == 1 else f" of {point['batch']} steps each"
    print(f"\n{workload.numel} entries in {tensors}, gradients of {point['gradient_steps']} steps")
    tiers = {record["cpu_tier"] for record in point["contenders"] if "cpu_tier" in record}
    print(f"{point['rounds']} rounds{each}; mofo's CPU tier: {', '.join(tiers) or '-'}")
    print(point["memory"])
    print(f"ratio: to {BASELINE}, median of the paired rounds; estimates failed: of the thresholds that mofo estimated")
    print_table(point["contenders"])
    for note in notes(point["contenders"]):
        print(note)


def print_table(records: Sequence[Record]) -> None:
    """One line a contender, in columns as wide as they need to be."""
    columns: dict[str, Callable[[Record], str]] = {
        "contender": lambda record: str(record["name"]),
        "types": lambda record: record["types"] or "-",
        "bytes/entry": lambda record: str(record["bytes_per_entry"]),
        "huge": lambda record: percentage(record["huge_share"], 0),
        "samples": lambda record: str(record["samples"]),
        "median ms": lambda record: f"{record['median_ms']:.4g}",
        "min ms": lambda record: f"{record['min_ms']:.4g}",
        "ns/entry": lambda record: f"{record['ns_per_entry']:.3f}",
        "ratio": lambda record: f"{record['ratio']:.3f}" if "ratio" in record else "-",
        "95 % interval": interval,
        "estimates failed": lambda record: percentage(record.get("failed_share"), 2),
    }
    rows = [list(columns)] + [[cell(record) for cell in columns.values()] for record in records]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


def percentage(share: float | None, digits: int) -> str:
    """A share as text."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def interval(record: Record) -> str:
    """The interval of the ratio, and its confidence where that is less than it should be."""
    if "ratio_interval" not in record:
        return "-"
    low, high = record["ratio_interval"]
    confidence = record["ratio_interval_confidence"]
    return f"{low:.3f} to {high:.3f}" + ("" if confidence >= 0.95 else f" (all values; {confidence:.0%})")


def notes(records: Sequence[Record]) -> list[str]:
    """What a reader of the table should know."""
    found = []
    if any(record["types"] == "bf16, f32 moments, nearest" for record in records):
        found.append(
            "PyTorch has no AdamW with bf16 parameters and f32 moments: its moments are bf16, its traffic is less."
        )
    for record in records:
        distance = record.get("closest_starts")
        if distance is not None and distance < LEAST_DISTANCE:
            found.append(f"{record['name']}: two buffers start only {distance} bytes apart modulo {PERIOD >> 10} KiB.")
    return found
