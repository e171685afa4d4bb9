"""Hooks around `load_state_dict`: what is loaded is checked beforehand, copied, and keeps its types."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ._memory import STATE_PARTS, is_dense, state_tensor
from ._settings import OPTIONS, raw_options, settings_of
from ._state import step_count_of


class Kept:
    """A box whose content PyTorch does not cast."""

    def __init__(self, content: Any) -> None:
        self.content = content


def prepared(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
    """Before loading: the groups with all options, and copies of the tensors in boxes. Raises `ValueError`."""
    groups, saved_groups = optimizer.param_groups, state_dict["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved_groups]:
        # PyTorch says so.
        return None
    completed = [
        {**{option: group[option] for option in OPTIONS}, **saved} for group, saved in zip(groups, saved_groups)
    ]
    for number, saved in enumerate(completed):
        try:
            settings_of(raw_options(saved), len(saved["params"]))
        except (TypeError, ValueError) as error:
            raise ValueError(f"parameter group {number} of the state dict: {error}") from error
    params = dict(
        zip(
            chain.from_iterable(group["params"] for group in saved_groups),
            chain.from_iterable(group["params"] for group in groups),
        )
    )
    state = {
        key: _kept(params[key], value, key) if key in params else value for key, value in state_dict["state"].items()
    }
    return {**state_dict, "param_groups": completed, "state": state}


def unpacked(optimizer: torch.optim.Optimizer) -> None:
    """After loading: the tensors out of their boxes."""
    for state in optimizer.state.values():
        if isinstance(state, dict):
            for key, value in state.items():
                if isinstance(value, Kept):
                    state[key] = value.content


def _kept(param: Tensor, state: dict[str, Any], key: Any) -> dict[str, Kept]:
    return {part: Kept(_copy(param, value, part, key)) for part, value in state.items()}


def _copy(param: Tensor, value: Any, part: str, key: Any) -> Any:
    what = f"{part} of parameter {key} in the state dict"
    if part == "step":
        try:
            return torch.tensor(step_count_of(value), dtype=torch.int64)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
    if part not in STATE_PARTS:
        return value.to(device=param.device, copy=True) if isinstance(value, Tensor) else value
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout is not torch.strided:
        raise ValueError(f"{what} is no dense tensor of floating-point numbers")
    if value.shape != param.shape:
        raise ValueError(f"{what} has shape {tuple(value.shape)}, the parameter {tuple(param.shape)}")
    if param.device.type == "meta" or not is_dense(param):
        return value.clone()
    return state_tensor(param, value.dtype, part).copy_(value.detach())
