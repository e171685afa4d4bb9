"""The numbers that steps work on: weights, and gradients that are fresh at every step.

A gradient is heavy-tailed noise around a mean that moves slowly, in a circle, with a scale of its own for each row, as
in weight matrices. Some buffers hold those of consecutive steps and are used in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .formats import ARRAYS, encode
from .memory import Allocator, Array, Role, addresses
from .shapes import TensorSpec

CHUNK = 1 << 18
POOL = 8 * CHUNK


class Noise:
    """Random numbers, drawn once; long arrays are put together of pieces from random places, which is quick."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.normal = self.rng.standard_normal(POOL, np.float32)
        self.heavy = self.normal[::-1] * np.exp(self.rng.standard_normal(POOL, np.float32))

    def piece(self, pool: Array, count: int) -> Array:
        """So many numbers, at most a chunk."""
        start = int(self.rng.integers(POOL - count))
        return pool[start : start + count]

    def scales(self, first: int, count: int, columns: int) -> Array:
        """Of each entry, the scale of its row."""
        rows = np.arange(first // columns, -(-(first + count) // columns))
        # A row that spans several pieces keeps its scale: it depends on the row's number alone.
        scale = 1e-3 * np.exp(0.5 * self.normal[rows * 7919 % POOL])
        return np.repeat(scale, columns)[first % columns :][:count]


def weights(tensors: Sequence[TensorSpec], dtype: str, allocate: Allocator, size: float = 0.02) -> list[Array]:
    """Normal weights of that standard deviation, as a transformer has them; the same at every call."""
    noise = Noise(1)
    arrays = allocate(Role.PARAM, [tensor.numel for tensor in tensors], ARRAYS[dtype])
    for array in arrays:
        for start in range(0, array.size, CHUNK):
            part = array[start : start + CHUNK]
            part[:] = encode(np.float32(size) * noise.piece(noise.normal, part.size), dtype)
    return arrays


class Gradients:
    """Gradients of consecutive steps, shared by all contenders: `steps` has the addresses of each step's."""

    def __init__(
        self,
        tensors: Sequence[TensorSpec],
        dtype: str,
        count: int,
        allocate: Allocator,
        rows: float = 1.0,
        seed: int = 2,
    ) -> None:
        """`rows`: the share of rows that have a gradient in a step; it is 0 in the others."""
        self.dtype = dtype
        numels = [tensor.numel for tensor in tensors]
        self.arrays = [allocate(Role.GRAD, numels, ARRAYS[dtype]) for _ in range(count)]
        self.steps = [addresses(arrays) for arrays in self.arrays]
        noise = Noise(seed)
        for tensor, *of_steps in zip(tensors, *self.arrays):
            for first in range(0, tensor.numel, CHUNK):
                self._fill(noise, tensor, [array[first : first + CHUNK] for array in of_steps], first, rows)

    def _fill(self, noise: Noise, tensor: TensorSpec, parts: list[Array], first: int, rows: float) -> None:
        size = parts[0].size
        scale = noise.scales(first, size, tensor.columns)
        centre, x, y = (noise.piece(noise.normal, size) for _ in range(3))
        for i, part in enumerate(parts):
            angle = 2 * math.pi * i / len(parts)
            mean = centre + np.float32(0.3 * math.cos(angle)) * x + np.float32(0.3 * math.sin(angle)) * y
            values = scale * (mean + 2 * noise.piece(noise.heavy, size))
            if rows < 1:
                place = (np.arange(first, first + size) // tensor.columns * 2654435761 + i * 40503) % 65536
                values *= place < rows * 65536
            part[:] = encode(values, self.dtype)

    def of_step(self, step: int) -> list[int]:
        """Of each tensor, the gradient's address."""
        return self.steps[step % len(self.steps)]
