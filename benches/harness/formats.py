"""Types of elements, and what a contender stores in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .library import api
from .memory import Array

CODES = {"f32": api.MOFO_DTYPE_F32, "f16": api.MOFO_DTYPE_F16, "bf16": api.MOFO_DTYPE_BF16}
ARRAYS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
"""How arrays hold them: NumPy has no bf16, so that is its bits."""

ROUNDINGS = {"nearest": api.MOFO_ROUNDING_NEAREST, "stochastic": api.MOFO_ROUNDING_STOCHASTIC}


@dataclass(frozen=True)
class Format:
    """How parameters, gradients and moments are stored, and how they are rounded to 16 bits."""

    param: str = "f32"
    grad: str = "f32"
    state: str = "f32"
    rounding: str = "nearest"
    masters: bool = False

    @property
    def bytes_per_entry(self) -> int:
        """What AdamW moves: gradient, moments and parameter (or master) in, all but the gradient out."""
        param, grad, state = (np.dtype(ARRAYS[dtype]).itemsize for dtype in (self.param, self.grad, self.state))
        return grad + 4 * state + (8 + param if self.masters else 2 * param)

    @property
    def stored_bytes(self) -> int:
        """Of an entry's parameter, moments and master copy."""
        param, state = (np.dtype(ARRAYS[dtype]).itemsize for dtype in (self.param, self.state))
        return param + 2 * state + (4 if self.masters else 0)

    @property
    def options(self) -> dict[str, Any]:
        """Fields of `mofo_options`."""
        return {
            "state_dtype": CODES[self.state],
            "rounding": ROUNDINGS[self.rounding],
            "master_weights": int(self.masters),
        }


FORMATS = {
    "f32": Format(),
    "bf16-nearest": Format("bf16", "bf16"),
    "bf16": Format("bf16", "bf16", "bf16", "stochastic"),
    "bf16-masters": Format("bf16", "bf16", masters=True),
}
"""By the name of the option: all f32; bf16 with f32 moments, rounded to nearest; all bf16, rounded stochastically; bf16
parameters and gradients with f32 moments and master copies."""


def encode(values: Array, dtype: str) -> Array:
    """Finite f32 numbers in a type, rounded to nearest, ties to even."""
    if dtype == "bf16":
        bits = values.view(np.uint32)
        return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    return values.astype(ARRAYS[dtype], copy=False)
