"""The settings of an optimizer."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypedDict

from . import _arguments
from ._declarations import COptions
from ._library import library

if TYPE_CHECKING:
    from collections.abc import Mapping

DEVICES = {"cpu": 0, "cuda": 1}
FILTERS = {"momentum": 0, "gradient": 1, "update": 2, "random": 3}
WEIGHT_DECAY_SCOPES = {"selected": 0, "all": 1}
ROUNDINGS = {"nearest": 0, "stochastic": 1}
CPU_TIERS = {"best": 0, "portable": 1, "avx2": 2, "avx512": 3}

_CHOICES: Mapping[str, Mapping[str, int]] = {
    "device": DEVICES,
    "filter": FILTERS,
    "weight_decay_scope": WEIGHT_DECAY_SCOPES,
    "rounding": ROUNDINGS,
    "cpu_tier": CPU_TIERS,
    "state_dtype": _arguments.DTYPES,
}


class OptionChanges(TypedDict, total=False):
    """The keywords that `Optimizer` takes: the fields of `Options`, which describes them."""

    device: str
    device_index: int
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    weight_decay_scope: str
    filter: str
    update_fraction: float
    state_dtype: str
    master_weights: bool
    rounding: str
    skip_nonfinite: bool
    seed: int
    max_grad_norm: float
    num_threads: int
    cpu_tier: str


@dataclass(frozen=True)
class Options:
    """The settings of an optimizer, with the library's defaults. Values are checked when an optimizer is made.

    - device: "cpu", or "cuda": all buffers are then in the memory of an NVIDIA GPU, number `device_index`.
    - learning_rate: η, finite, at least 0.
    - beta1, beta2: decay rates of the moments, in [0, 1).
    - epsilon: ε, added to the root of the second moment; finite, at least 0.
    - weight_decay: decoupled, λ, finite, at least 0. `weight_decay_scope`: "selected" reaches the entries that move,
      all others keep their bits; "all" reaches every entry.
    - filter: whose largest magnitudes of each block move: "momentum" (MoFO), or for comparisons "gradient", "update"
      (Adam's) or "random".
    - update_fraction: α, the share of each block that moves in a step, in (0, 1]; 1 is AdamW.
    - state_dtype: of both moments, "f32", or "bf16", rounded stochastically.
    - master_weights: keep an f32 copy of every parameter of 16 bits, which then is its rounding to nearest.
    - rounding: of parameters of 16 bits without a master copy, "stochastic" or "nearest".
    - skip_nonfinite: leave a step out when a gradient holds a NaN or an infinity.
    - seed: of every random draw, 0 to 2^64 - 1.
    - max_grad_norm: scale the gradients down so that their global norm is at most this; 0 turns it off.
    - num_threads: threads of a step, the calling one included; 0 is all that the process may use, at most 1024.
    - cpu_tier: "best", "portable", "avx2" or "avx512". All give the same bits. With "best" the environment variable
      `MOFO_CPU_TIER` can name one of the others.
    """

    device: str = "cpu"
    device_index: int = 0
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    weight_decay_scope: str = "selected"
    filter: str = "momentum"
    update_fraction: float = 0.1
    state_dtype: str = "f32"
    master_weights: bool = False
    rounding: str = "stochastic"
    skip_nonfinite: bool = False
    seed: int = 0
    max_grad_norm: float = 0.0
    num_threads: int = 0
    cpu_tier: str = "best"

    def to_c(self) -> COptions:
        """The C struct. Raises `Error` or TypeError for values that it could not hold."""
        loaded = library()
        options = COptions()
        loaded.check(loaded.functions.mofo_options_init(options, ctypes.sizeof(options)))
        kinds = {field[0]: field[1] for field in options._fields_}
        for field in fields(self):
            setattr(options, field.name, _to_c(field.name, getattr(self, field.name), kinds[field.name]))
        return options


def _to_c(name: str, value: object, kind: object) -> int | float:
    if name in _CHOICES:
        return _arguments.choice(name, value, _CHOICES[name])
    if name in ("master_weights", "skip_nonfinite"):
        return _arguments.flag(name, value)
    if kind is ctypes.c_uint64:
        return _arguments.count(name, value)
    if kind is ctypes.c_int32:
        return _arguments.integer(name, value, -(2**31), 2**31 - 1)
    return _arguments.real(name, value)
