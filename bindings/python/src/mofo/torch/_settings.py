"""The options of a parameter group: their ranges, and what they are to the library."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .. import _declarations as c
from .._options import FILTERS, ROUNDINGS, WEIGHT_DECAY_SCOPES

DTYPES = {torch.float32: c.MOFO_DTYPE_F32, torch.float16: c.MOFO_DTYPE_F16, torch.bfloat16: c.MOFO_DTYPE_BF16}
"""The element types of parameters and gradients."""

STATE_DTYPES = {torch.float32: c.MOFO_DTYPE_F32, torch.bfloat16: c.MOFO_DTYPE_BF16}

OPTIONS = (
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "update_fraction",
    "num_blocks",
    "filter",
    "weight_decay_scope",
    "state_dtype",
    "master_weights",
    "rounding",
    "seed",
    "maximize",
)
"""Of a parameter group, `params` aside."""

MAX_THREADS = 1024
_MAX_F32 = 3.4028234663852886e38


class HandleSettings(NamedTuple):
    """What a library optimizer is created with: tensors that differ in one of these need different ones."""

    filter: int
    weight_decay_scope: int
    state_dtype: int
    master_weights: bool
    rounding: int
    seed: int
    num_threads: int


class StepSettings(NamedTuple):
    """What a call of the library steps with: tensors that differ in one of these need calls of their own."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    update_fraction: float
    grad_scale: float


class GroupSettings(NamedTuple):
    """A group's options at one step, found to be in range."""

    handle: HandleSettings
    step: StepSettings
    state_dtype: torch.dtype
    num_blocks: int | tuple[int, ...]


def raw_options(group: Mapping[str, Any], num_threads: int | None = None) -> tuple[Any, ...]:
    """A group's options as they stand, to see whether they have changed; and threads, by default PyTorch's."""
    values = [group[option] for option in OPTIONS]
    betas, num_blocks = values[1], values[5]
    # A tensor may change its value, a list its items, without becoming another object.
    for place in (0, 2, 3, 4):
        if isinstance(values[place], torch.Tensor):
            values[place] = float(values[place])
    if isinstance(betas, (list, tuple)):
        values[1] = tuple(float(beta) if isinstance(beta, torch.Tensor) else beta for beta in betas)
    if type(num_blocks) is not int and isinstance(num_blocks, Sequence):
        values[5] = tuple(num_blocks)
    return (*values, num_threads or torch.get_num_threads())


def settings_of(raw: tuple[Any, ...], num_params: int) -> GroupSettings:
    """Of what `raw_options` gave. Raises `ValueError` for what is out of range, `TypeError` for what is no number."""
    options = dict(zip(OPTIONS, raw))
    beta1, beta2 = _betas(options["betas"])
    lr = _number(options, "lr", 0.0)
    weight_decay = _number(options, "weight_decay", 0.0)
    # The factors of a step are 32-bit floats. 1 - β1 is the smallest denominator that the learning rate meets.
    if lr / (1.0 - beta1) > _MAX_F32 or abs(1.0 - lr * weight_decay) > _MAX_F32:
        raise ValueError(f"lr = {lr} with betas[0] = {beta1} and weight_decay = {weight_decay} exceeds 32-bit floats")
    eps = _number(options, "eps", 0.0)
    if eps > _MAX_F32:
        raise ValueError(f"eps = {eps} exceeds 32-bit floats")
    update_fraction = _number(options, "update_fraction", 0.0)
    if not 0.0 < update_fraction <= 1.0:
        raise ValueError(f"update_fraction must be above 0 and at most 1, not {update_fraction}")
    state_dtype = options["state_dtype"]
    handle = HandleSettings(
        filter=_choice(options, "filter", FILTERS),
        weight_decay_scope=_choice(options, "weight_decay_scope", WEIGHT_DECAY_SCOPES),
        state_dtype=_choice(options, "state_dtype", STATE_DTYPES),
        master_weights=flag("master_weights", options["master_weights"]),
        rounding=_choice(options, "rounding", ROUNDINGS),
        seed=integer("seed", options["seed"], 0, 2**64 - 1),
        num_threads=min(raw[-1], MAX_THREADS),
    )
    step = StepSettings(
        learning_rate=lr,
        beta1=beta1,
        beta2=beta2,
        epsilon=eps,
        weight_decay=weight_decay,
        update_fraction=update_fraction,
        grad_scale=-1.0 if flag("maximize", options["maximize"]) else 1.0,
    )
    return GroupSettings(
        handle=handle,
        step=step,
        state_dtype=state_dtype,
        num_blocks=_num_blocks(options["num_blocks"], num_params),
    )


def _number(options: dict[str, Any], name: str, least: float) -> float:
    number = _real(name, options[name])
    if not (math.isfinite(number) and number >= least):
        raise ValueError(f"{name} must be finite and at least {least:g}, not {number}")
    return number


def _real(name: str, value: Any) -> float:
    # A text of a configuration file is no number, though float() would read it, and True is no 1.
    try:
        if isinstance(value, (bool, str, bytes, bytearray)) or type(value).__name__ == "bool_":
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None


def _betas(value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"betas must be two numbers, not {value!r}")
    beta1, beta2 = (_real(f"betas[{index}]", beta) for index, beta in enumerate(value))
    for index, beta in enumerate((beta1, beta2)):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"betas[{index}] must be at least 0 and below 1, not {beta}")
    return beta1, beta2


def integer(name: str, value: Any, least: int, most: int) -> int:
    # NumPy's integers and bools are as good as Python's, as in `mofo.Options`.
    try:
        # Some versions of NumPy take a bool for an index.
        if isinstance(value, (bool, torch.Tensor)) or type(value).__name__ == "bool_":
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    if not least <= number <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {number}")
    return number


def flag(name: str, value: Any) -> bool:
    if not (isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def _choice(options: dict[str, Any], name: str, choices: Mapping[Any, int]) -> int:
    value = options[name]
    try:
        return choices[value]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}") from error


def _num_blocks(value: Any, num_params: int) -> int | tuple[int, ...]:
    if not isinstance(value, tuple):
        return integer("num_blocks", value, 1, 2**63 - 1)
    if len(value) != num_params:
        raise ValueError(f"num_blocks has {len(value)} numbers for {num_params} parameters")
    return tuple(integer("num_blocks", number, 1, 2**63 - 1) for number in value)
