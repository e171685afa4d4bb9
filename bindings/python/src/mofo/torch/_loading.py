"""Hooks around `load_state_dict`: what is loaded is checked beforehand, and keeps its types."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .._state_dicts import of_other_algorithms
from .._torch_memory import is_dense
from ._memory import STATE_PARTS, state_tensor
from ._replicated import is_dtensor, plain
from ._settings import OPTIONS, raw_options, settings_of
from ._state import borrow, step_count_of

RESTORED = ("lr", "betas", "eps", "weight_decay", "maximize", "seed")
"""The options that a state dict brings along: PyTorch's own, which schedulers go on from, and that of random bits.

All others are the optimizer's, as with the library's checkpoints (docs/checkpoints.md).
"""


class Kept:
    """A box whose content PyTorch does not cast."""

    def __init__(self, content: Any) -> None:
        self.content = content


def prepared(groups: list[dict[str, Any]], names: list[list[str]], state_dict: dict[str, Any]) -> dict[str, Any] | None:
    """Before loading: the groups with all options, and the tensors in boxes. Raises `ValueError`."""
    saved_groups = state_dict["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved_groups]:
        # PyTorch says so.
        return None
    saved_groups = _in_order_of_names(groups, names, saved_groups)
    completed = [
        _with_options_of(group, of_group, saved) for group, of_group, saved in zip(groups, names, saved_groups)
    ]
    for number, (saved, group) in enumerate(zip(completed, saved_groups)):
        try:
            settings_of(raw_options(saved), len(saved["params"]))
            _check_algorithm(saved)
            if group.get("state_dtype", saved["state_dtype"]) is not saved["state_dtype"]:
                raise ValueError(
                    f"state_dtype is {group['state_dtype']}, but the optimizer's {saved['state_dtype']}: make it with "
                    "the same"
                )
        except (TypeError, ValueError) as error:
            raise ValueError(f"parameter group {number} of the state dict: {error}") from error
    params = dict(
        zip(
            chain.from_iterable(group["params"] for group in saved_groups),
            chain.from_iterable(group["params"] for group in groups),
        )
    )
    for saved in completed:
        for key in saved["params"]:
            _check_parts(params[key], state_dict["state"].get(key) or {}, saved, key)
    held = _held_elsewhere(state_dict["state"])
    state = {
        key: _kept(params[key], value or {}, key, key in held) if key in params else value
        for key, value in state_dict["state"].items()
    }
    return {**state_dict, "param_groups": completed, "state": state}


def unpacked(optimizer: torch.optim.Optimizer) -> None:
    """After loading: the tensors out of their boxes."""
    for state in optimizer.state.values():
        if isinstance(state, dict):
            for key, value in state.items():
                if isinstance(value, Kept):
                    state[key] = value.content


def _with_options_of(group: dict[str, Any], names: list[str], saved: dict[str, Any]) -> dict[str, Any]:
    """The saved group with all options: those that it does not bring along, or lacks, are the optimizer's."""
    own = {option: group[option] for option in OPTIONS if option not in RESTORED or option not in saved}
    if len(saved.get("param_names", names)) != len(saved["params"]):
        own["param_names"] = names
    return {**saved, **own}


def _held_elsewhere(content: Mapping[Any, Any]) -> set[Any]:
    """The keys of the values that more than this mapping holds: those of a state dict that a live optimizer gave.

    Its tensors are still being stepped; those of a file that was just read are nobody else's.
    """
    if not hasattr(sys, "getrefcount"):
        return set(content)
    # Counted in the same way: an object that is in a mapping alone, and a tensor that has its memory alone.
    references = next(sys.getrefcount(value) for _, value in {0: object()}.items())
    owners = _owners(torch.empty(1, device="cpu"))
    counts = [(key, sys.getrefcount(value)) for key, value in content.items()]
    held = {key for key, count in counts if count > references}
    for key, value in content.items():
        has_memory = isinstance(value, Tensor) and value.layout is torch.strided and not is_dtensor(value)
        if has_memory and (owners is None or _owners(value) != owners):
            held.add(key)
    return held


def _owners(tensor: Tensor) -> int | None:
    """How many tensors have the memory of this one, and some more; None if this PyTorch does not tell."""
    storage = tensor.untyped_storage()
    count = getattr(torch._C, "_storage_Use_Count", None)
    return None if count is None else count(storage._cdata)


def _in_order_of_names(
    groups: list[dict[str, Any]], names: list[list[str]], saved_groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The saved groups with their parameters in our order, if both sides have the same names (`param_names`)."""
    if not all("param_names" in group for group in (*groups, *saved_groups)):
        return saved_groups
    own = list(chain.from_iterable(names))
    of_saved = [item for group in saved_groups for item in zip(group["param_names"], group["params"])]
    by_name = dict(of_saved)
    if own == [name for name, _ in of_saved] or set(own) != set(by_name) or len(of_saved) != len(by_name):
        return saved_groups
    return [
        {**saved, "params": [by_name[name] for name in of_group], "param_names": of_group}
        for of_group, saved in zip(names, saved_groups)
    ]


def _check_algorithm(group: dict[str, Any]) -> None:
    """Raises `ValueError` for the options of another algorithm, which the moments are of, too."""
    if group.get("amsgrad"):
        raise ValueError("amsgrad keeps the largest second moment, which MoFO has not")
    if group["weight_decay"] != 0 and group.get("decoupled_weight_decay") is False:
        raise ValueError(
            f"weight_decay = {group['weight_decay']} is Adam's, which goes through the moments (L2), where MoFO's is "
            "decoupled, as AdamW's: set it to 0 in the state dict to go on without it"
        )


def _check_parts(param: Tensor, state: dict[str, Any], group: dict[str, Any], key: Any) -> None:
    """Raises `ValueError` for a state that no step could go on from."""
    of_parameter = f"the state of parameter {key} in the state dict"
    others = of_other_algorithms(state)
    if others:
        raise ValueError(
            f"{of_parameter} has {', '.join(others)}: it is of another optimizer than MoFO or AdamW, "
            "or of AdamW with amsgrad"
        )
    missing = [part for part in ("step", "exp_avg", "exp_avg_sq") if state.get(part) is None]
    if missing and any(part in state for part in ("step", *STATE_PARTS)):
        raise ValueError(f"{of_parameter} has no {', '.join(missing)}")
    for part in STATE_PARTS:
        value = state.get(part)
        if not isinstance(value, Tensor):
            continue
        dtype = torch.float32 if part == "master" else group["state_dtype"]
        if torch.promote_types(value.dtype, dtype) is not dtype:
            raise ValueError(
                f"{part} of parameter {key} in the state dict is of {value.dtype}, which {dtype} cannot hold"
                + ("" if part == "master" else " (state_dtype)")
            )
    if state.get("master") is not None and not (group["master_weights"] and param.dtype is not torch.float32):
        raise ValueError(
            f"{of_parameter} has a master copy, but master_weights is off or the parameter is of float32: delete "
            "`master` from the state to go on without it"
        )


def _kept(param: Tensor, state: dict[str, Any], key: Any, is_held: bool) -> dict[str, Any]:
    """The state with what is ours in boxes; PyTorch does with the rest as it does with every optimizer's."""
    held = set(state) if is_held else _held_elsewhere(state)
    return {
        part: Kept(_own(param, value, part, key, part in held)) if part == "step" or part in STATE_PARTS else value
        for part, value in state.items()
        if value is not None
    }


def _own(param: Tensor, value: Any, part: str, key: Any, is_held: bool) -> Tensor:
    """A copy, or the tensor itself if nobody else has it and it is where the parameter is: then it is copied later.

    The first step copies it, one after the other, so that a file that was read is not in memory twice.
    """
    what = f"{part} of parameter {key} in the state dict"
    if isinstance(value, Tensor):
        param, value = plain(param), plain(value)
    if part == "step":
        try:
            return torch.tensor(step_count_of(value), dtype=torch.int64, device="cpu")
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout is not torch.strided:
        raise ValueError(f"{what} is no dense tensor of floating-point numbers")
    if value.shape != param.shape:
        raise ValueError(f"{what} has shape {tuple(value.shape)}, the parameter {tuple(param.shape)}")
    if value.device.type == "meta":
        raise ValueError(f"{what} is on the meta device, without numbers")
    if not is_held and value.device == param.device and not value.requires_grad:
        borrow(value)
        return value
    if param.device.type == "meta" or not is_dense(param):
        return value.clone()
    return state_tensor(param, value.dtype, part).copy_(value.detach())
