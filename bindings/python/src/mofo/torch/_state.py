"""The state of a parameter: the tensors of `optimizer.state[param]`, which are the library's memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .. import _declarations as c
from .._torch_memory import fits_storage, is_dense
from ..errors import Error
from ._memory import STATE_PARTS, same_order, state_tensor

MAX_STEP = 2**63 - 1


def needs_master(param: Tensor, master_weights: bool) -> bool:
    return master_weights and param.dtype is not torch.float32


def step_count_of(value: Any) -> int:
    """How many steps a `step` stands for: ours is an int64 tensor, AdamW's a float32 one. Raises `ValueError`."""
    if isinstance(value, Tensor) and value.device.type == "meta":
        raise ValueError("step is a tensor on the meta device, without a number")
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not float(number).is_integer():
        raise ValueError(f"step must be a whole number, not {value!r}")
    if not 0 <= number <= MAX_STEP:
        raise ValueError(f"step must be from 0 to 2^63 - 1, not {number}")
    return int(number)


# Tensors of state dicts that were loaded, which are copied before they are stepped.
_borrowed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def borrow(tensor: Tensor) -> None:
    """Notes that a tensor of a state is another's, whose values must not change."""
    _borrowed[tensor] = True


def complete(state: dict[str, Any], param: Tensor, name: str, state_dtype: torch.dtype, master: bool) -> None:
    """Makes a parameter's state one that can be stepped in place.

    Tensors that are missing at the beginning are made; those that are borrowed, with other strides than the
    parameter's, on another device or of a narrower type are replaced, one after the other, by such as fit, with the
    same values. Raises `Error`, and leaves everything as it was, where something would be lost.
    """
    wanted = {"exp_avg": state_dtype, "exp_avg_sq": state_dtype}
    if master:
        wanted["master"] = torch.float32
    elif state.get("master") is not None:
        raise _invalid(
            name,
            "has a master copy in its state, but master_weights is off or it is of float32: "
            "the master copy would be lost (delete `master` from the state to go on without it)",
        )
    steps = _steps(state, name)
    for part, dtype in wanted.items():
        _check(state.get(part), param, name, part, dtype, steps)
    for part, dtype in wanted.items():
        tensor = state.get(part)
        if tensor is None:
            state[part] = state_tensor(param, dtype, part)
            if part == "master":
                state[part].copy_(param.detach())
        elif not _fits(tensor, param, dtype):
            state[part] = state_tensor(param, dtype, part).copy_(tensor.detach().reshape(param.shape))
    step = state.get("step")
    if not (isinstance(step, Tensor) and step.dtype is torch.int64 and step.device.type == "cpu" and step.dim() == 0):
        state["step"] = torch.tensor(steps, dtype=torch.int64, device="cpu")


def follow_param(master: Tensor, param: Tensor) -> None:
    """Where the parameter is not the rounding of its master copy, somebody has written to it: that counts."""
    value = param.detach()
    master.copy_(torch.where(master.to(value.dtype) == value, master, value.to(torch.float32)))


def _steps(state: dict[str, Any], name: str) -> int:
    if "step" not in state:
        if any(state.get(part) is not None for part in STATE_PARTS):
            raise _invalid(name, "has moments in its state, but no `step`")
        return 0
    try:
        return step_count_of(state["step"])
    except ValueError as error:
        raise _invalid(name, f"has a wrong state: {error}") from error


def _check(tensor: Any, param: Tensor, name: str, part: str, dtype: torch.dtype, steps: int) -> None:
    """Raises `Error` for a part of the state that is missing, or that no tensor which fits could be copied from."""
    if tensor is None:
        if steps > 0 and part != "master":
            raise _invalid(name, f"has made {steps} steps, but there is no `{part}` in its state")
        return
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        raise _invalid(name, f"has a `{part}` in its state that is no dense tensor")
    if tensor.numel() != param.numel() or (
        tensor.shape != param.shape and not (tensor.is_contiguous() and param.is_contiguous())
    ):
        raise _invalid(
            name,
            f"has shape {tuple(param.shape)}, but `{part}` of its state has {tuple(tensor.shape)}: "
            "after a change of the shape delete the parameter's state, or make a new optimizer",
        )
    if tensor.device.type == "meta":
        raise _invalid(name, f"has a `{part}` in its state that is on the meta device, without numbers")
    if not fits_storage(tensor):
        raise _invalid(name, f"has a `{part}` in its state that has lost its memory")
    if torch.promote_types(tensor.dtype, dtype) is not dtype:
        raise _invalid(name, f"has `{part}` of {tensor.dtype} in its state, which {dtype} (state_dtype) cannot hold")


def _fits(tensor: Tensor, param: Tensor, dtype: torch.dtype) -> bool:
    """Whether the library can work in a tensor of the state."""
    return (
        tensor.dtype is dtype
        and tensor.device == param.device
        and tensor.shape == param.shape
        and is_dense(tensor)
        and same_order(tensor, param)
        and not tensor.requires_grad
        and not tensor.is_neg()
        and tensor not in _borrowed
    )


def _invalid(name: str, problem: str) -> Error:
    return Error(c.MOFO_ERROR_INVALID_STATE, f"parameter {name} {problem}")
