"""Hooks around `load_state_dict`: what is loaded is checked beforehand, copied, and keeps its types."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .._torch_memory import is_dense
from ._memory import STATE_PARTS, state_tensor
from ._settings import OPTIONS, raw_options, settings_of
from ._state import step_count_of


class Kept:
    """A box whose content PyTorch does not cast."""

    def __init__(self, content: Any) -> None:
        self.content = content


def prepared(groups: list[dict[str, Any]], names: list[list[str]], state_dict: dict[str, Any]) -> dict[str, Any] | None:
    """Before loading: the groups with all options, and copies of the tensors in boxes. Raises `ValueError`."""
    saved_groups = state_dict["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved_groups]:
        # PyTorch says so.
        return None
    saved_groups = _in_order_of_names(groups, names, saved_groups)
    completed = [
        {**{option: group[option] for option in OPTIONS}, **saved} for group, saved in zip(groups, saved_groups)
    ]
    for number, saved in enumerate(completed):
        try:
            settings_of(raw_options(saved), len(saved["params"]))
            _check_algorithm(saved)
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


def _in_order_of_names(
    groups: list[dict[str, Any]], names: list[list[str]], saved_groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The saved groups with their parameters in our order, if both sides have the same names (`param_names`)."""
    if not all("param_names" in group for group in (*groups, *saved_groups)):
        return saved_groups
    own = list(chain.from_iterable(names))
    of_saved = [
        (name, key, num_blocks)
        for group in saved_groups
        for name, key, num_blocks in zip(group["param_names"], group["params"], _blocks(group))
    ]
    by_name = {name: (key, num_blocks) for name, key, num_blocks in of_saved}
    if own == [name for name, _, _ in of_saved] or set(own) != set(by_name) or len(of_saved) != len(by_name):
        return saved_groups
    ordered = []
    for of_group, saved in zip(names, saved_groups):
        found = [by_name[name] for name in of_group]
        options: dict[str, Any] = {"params": [key for key, _ in found], "param_names": of_group}
        if "num_blocks" in saved:
            options["num_blocks"] = [num_blocks for _, num_blocks in found]
        ordered.append({**saved, **options})
    return ordered


def _blocks(group: dict[str, Any]) -> list[Any]:
    num_blocks = group.get("num_blocks", 1)
    return list(num_blocks) if isinstance(num_blocks, (list, tuple)) else [num_blocks] * len(group["params"])


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
    others = [str(part) for part in state if part not in STATE_PARTS and part != "step"]
    if others:
        raise ValueError(
            f"{of_parameter} has {', '.join(others)}: it is of another optimizer than MoFO or AdamW, "
            "or of AdamW with amsgrad"
        )
    missing = [part for part in ("step", "exp_avg", "exp_avg_sq") if state and state.get(part) is None]
    if missing:
        raise ValueError(f"{of_parameter} has no {', '.join(missing)}")
    for part, value in state.items():
        if part == "step" or not isinstance(value, Tensor):
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


def _kept(param: Tensor, state: dict[str, Any], key: Any) -> dict[str, Kept]:
    return {part: Kept(_copy(param, value, part, key)) for part, value in state.items() if value is not None}


def _copy(param: Tensor, value: Any, part: str, key: Any) -> Any:
    what = f"{part} of parameter {key} in the state dict"
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
    if param.device.type == "meta" or not is_dense(param):
        return value.clone()
    return state_tensor(param, value.dtype, part).copy_(value.detach())
