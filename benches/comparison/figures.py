"""Medians, ratios and their intervals."""

import statistics
from typing import Any, TypeAlias

from .buffers import huge_share
from .contender import Contender, Optimizer
from .measure import Times
from .mofo import Mofo
from .roster import BASELINE
from .rounds import median_interval

Record: TypeAlias = dict[str, Any]
"""What JSON can hold."""


def summarize(contenders: dict[str, Contender], times: dict[str, Times]) -> list[Record]:
    """One record a contender."""
    return [
        {"name": name} | describe(contender) | timing(name, contender.workload.numel, times)
        for name, contender in contenders.items()
    ]


def describe(contender: Contender) -> Record:
    """What it is, where it lies and what it did, times aside."""
    record: Record = {
        "workload": contender.workload.name,
        "tensors": len(contender.workload.tensors),
        "entries": contender.workload.numel,
        "types": str(contender.types) if isinstance(contender, Optimizer) else None,
        "bytes_per_entry": contender.types.bytes_per_entry,
        "huge_share": huge_share(contender.buffers()),
    }
    if isinstance(contender, Optimizer):
        record["update_fraction"] = contender.update_fraction
        record["closest_starts"] = contender.closest_starts()
    if isinstance(contender, Mofo):
        estimated, failed = contender.blocks_estimated, contender.estimates_failed
        record["cpu_tier"] = contender.cpu_tier()
        record["blocks_estimated"] = estimated
        record["estimates_failed"] = failed
        record["failed_share"] = failed / estimated if estimated else None
    return record


def timing(name: str, numel: int, times: dict[str, Times]) -> Record:
    """Median step and ratio to the baseline, which is the median of the ratios within the rounds."""
    taken = [t for t in times[name] if t is not None]
    median = statistics.median(taken)
    record: Record = {
        "samples": len(taken),
        "median_ms": median * 1e3,
        "min_ms": min(taken) * 1e3,
        "ns_per_entry": median * 1e9 / numel,
    }
    if BASELINE in times:
        pairs = zip(times[name], times[BASELINE], strict=True)
        ratios = [t / b for t, b in pairs if t is not None and b is not None]
        low, high, confidence = median_interval(ratios)
        record["ratio"] = statistics.median(ratios)
        record["ratio_interval"] = [low, high]
        record["ratio_interval_confidence"] = confidence
    record["seconds"] = times[name]
    return record
