"""Memory for tensors: on huge pages where the system has them, staggered, and first written by PyTorch's threads.

A step reads and writes four buffers in lock-step. Buffers that start at the same place modulo a large power of two
compete for the same sets of the caches, and small pages cost misses of the TLB. Both would measure where the buffers
happen to lie, not the step; so every contender's buffers lie alike.
"""

import contextlib
import ctypes
import mmap
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20
"""Bytes; of x86-64, and of aarch64 with small pages of 4 KiB."""

PERIOD = 1 << 16
"""Bytes, modulo which buffers of one step start at different places, and so modulo every larger power of two."""

CACHE_LINE = 64
LARGE = 1 << 20
"""Bytes from which on the library staggers the moments of a tensor."""


class Role(Enum):
    """What a buffer holds, and where it starts within a period, in bytes.

    The moments start where the library puts those that it allocates itself, the others half-way between. All starts
    differ modulo a small page, too.
    """

    PARAMETER = 8832
    EXP_AVG = 17728
    GRADIENT = 26560
    EXP_AVG_SQ = 35456


def round_up(value: int, multiple: int) -> int:
    """The next multiple, or the value itself if it is one."""
    return -(-value // multiple) * multiple


def allocate(role: Role, numels: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Zeros: one tensor of each number of entries, all in one mapping, which lives as long as any of them.

    Tensors of at least a period start where their role says, smaller ones at the next cache line.
    """
    starts = []
    end = role.value
    for numel in numels:
        size = numel * dtype.itemsize
        starts.append(role.value + round_up(end - role.value, PERIOD if size >= PERIOD else CACHE_LINE))
        end = starts[-1] + size
    mapping, base = map_memory(round_up(end, HUGE_PAGE))
    # This is the first touch: by PyTorch's threads, in equal shares, as for everything else that a contender uses.
    torch.frombuffer(mapping, dtype=torch.uint8, offset=base, count=end).zero_()
    return [
        torch.frombuffer(mapping, dtype=dtype, offset=base + start, count=numel)
        for start, numel in zip(starts, numels, strict=True)
    ]


def map_memory(size: int) -> tuple[mmap.mmap, int]:
    """Untouched memory, and the offset at which `size` bytes start that begin with a huge page."""
    if hasattr(mmap, "MAP_ANONYMOUS"):
        mapping = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        mapping = mmap.mmap(-1, size + HUGE_PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # A system without huge pages: `huge_share` tells.
            mapping.madvise(mmap.MADV_HUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    return mapping, -address % HUGE_PAGE


def at_address(address: int, numel: int, dtype: torch.dtype) -> Tensor:
    """A tensor on memory of the library, which must outlive it."""
    memory = (ctypes.c_char * (numel * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype)


def closest_starts(buffers: Iterable[Tensor]) -> int:
    """The least distance between the starts of any two buffers, modulo a period: bytes, 0 at the worst."""
    starts = sorted(buffer.data_ptr() % PERIOD for buffer in buffers)
    following = [*starts[1:], starts[0] + PERIOD]
    return min(after - before for before, after in zip(starts, following, strict=True))


def huge_share(buffers: Iterable[Tensor]) -> float | None:
    """Which share of the buffers lies on huge pages, as far as the system says: per mapping. Linux only."""
    mappings = list(read_mappings())
    if not mappings:
        return None
    total, huge = 0, 0.0
    for buffer in buffers:
        size = buffer.nbytes
        total += size
        for start, end, resident, on_huge_pages in mappings:
            if start <= buffer.data_ptr() < end and resident > 0:
                huge += size * on_huge_pages / resident
    return huge / total if total else None


def read_mappings() -> Iterator[tuple[int, int, int, int]]:
    """Start, end, resident bytes and bytes on huge pages of each of this process's mappings."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return
    start = end = resident = 0
    for line in lines:
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(address, 16) for address in first.split("-"))
        elif first == "Rss:":
            resident = int(rest[0]) * 1024
        elif first == "AnonHugePages:":
            yield start, end, resident, int(rest[0]) * 1024


def anonymous_memory() -> tuple[int, int] | None:
    """Bytes of this process's anonymous memory, and how many of them lie on huge pages. Linux only."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return kibibytes["Anonymous"] * 1024, kibibytes["AnonHugePages"] * 1024
