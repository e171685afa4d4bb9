"""Medians of steps, ratios within rounds and their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from scipy import stats

from .contender import Contender

Record = dict[str, Any]
"""What JSON can hold."""


class Estimate(TypedDict):
    """A median, and the interval between two order statistics that holds it with 95 % confidence.

    That assumes nothing about the distribution. Less than six values have no such interval.
    """

    median: float
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Of the distribution from which these values come."""
    median = float(np.median(values))
    interval = stats.quantile_test(values, q=median, p=0.5).confidence_interval(0.95)
    low, high = (None if math.isnan(bound) else float(bound) for bound in (interval.low, interval.high))
    return {"median": median, "low": low, "high": high}


def ratio(contender: Contender, reference: Contender) -> Estimate:
    """The median of the ratios within the rounds."""
    return estimate([mine / theirs for mine, theirs in zip(contender.times, reference.times)])


def record(contender: Contender) -> Record:
    """All that is known of a contender."""
    median = float(np.median(contender.times))
    found: Record = {"name": contender.name, "entries": contender.entries, **contender.about}
    found["median_ms"] = median * 1e3
    found["ns_per_entry"] = median * 1e9 / contender.entries
    found["bytes_per_entry"] = contender.bytes_per_entry
    speeds = contender.bytes_per_entry * contender.entries / np.array(contender.times) / 1e9
    found["gb_per_s"] = float(np.median(speeds))
    found["gb_per_s_range"] = [float(speeds.min()), float(speeds.max())]
    found["ratios"] = {column: ratio(contender, other) for column, other in contender.references.items()}
    found["seconds"] = contender.times
    return found
