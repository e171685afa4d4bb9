"""Memory for tensors, laid out alike for all contenders, on huge or on normal pages.

A step reads and writes four buffers in lock-step. Buffers that start at the same place modulo a large power of two
compete for the same sets of the caches, and small pages cost misses of the TLB. Both would measure where the buffers
happen to lie, not the step.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

HUGE_PAGE = 2 << 20
"""Bytes; of x86-64, and of aarch64 with small pages of 4 KiB."""

PERIOD = 1 << 16
"""Bytes, modulo which buffers of one step start at different places, and so modulo every larger power of two."""

CACHE_LINE = 64


class Role(Enum):
    """What a buffer holds, and where it starts within a period, in bytes. All starts differ modulo a small page, too.

    The moments start where the library puts those that it allocates itself, the others in between.
    """

    PARAM = 8832
    EXP_AVG = 17728
    GRAD = 26560
    EXP_AVG_SQ = 35456
    MASTER = 44352


def round_up(value: int, multiple: int) -> int:
    """The next multiple, or the value itself if it is one."""
    return -(-value // multiple) * multiple


Allocator = Callable[[Role, Sequence[int], DTypeLike], list[Array]]
"""Makes arrays of so many entries each, all of them zero."""


def mapped(pages: str) -> Allocator:
    """Arrays of a role in one mapping, which lives as long as any of them, on huge or on normal pages."""
    return lambda role, numels, dtype: allocate(role, numels, dtype, pages)


def allocate(role: Role, numels: Sequence[int], dtype: DTypeLike, pages: str) -> list[Array]:
    """Arrays of at least a period start where their role says, smaller ones at the next cache line."""
    itemsize = np.dtype(dtype).itemsize
    starts, end = [], role.value
    for numel in numels:
        size = numel * itemsize
        starts.append(role.value + round_up(end - role.value, PERIOD if size >= PERIOD else CACHE_LINE))
        end = starts[-1] + size
    mapping = mmap.mmap(-1, round_up(end, HUGE_PAGE) + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice = getattr(mmap, "MADV_HUGEPAGE" if pages == "huge" else "MADV_NOHUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # A system without huge pages: `huge_share` tells.
            mapping.madvise(advice)
    base = -ctypes.addressof(ctypes.c_char.from_buffer(mapping)) % HUGE_PAGE
    memory = np.frombuffer(mapping, np.uint8)[base : base + end]
    memory.fill(0)  # The first touch.
    return [memory[start : start + numel * itemsize].view(dtype) for start, numel in zip(starts, numels)]


def addresses(arrays: Sequence[Array]) -> list[int]:
    """Where arrays start."""
    return [array.ctypes.data for array in arrays]


def huge_share() -> float | None:
    """Which share of this process's anonymous memory lies on huge pages. Linux only."""
    fields = _fields(Path("/proc/self/smaps_rollup"))
    return fields["AnonHugePages"] / fields["Anonymous"] if fields.get("Anonymous") else None


def available() -> int | None:
    """Bytes that can be allocated, where the system says so."""
    return _fields(Path("/proc/meminfo")).get("MemAvailable")


def _fields(path: Path) -> dict[str, int]:
    """Of a file with lines like "MemAvailable:  123 kB", the bytes of each field."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}
