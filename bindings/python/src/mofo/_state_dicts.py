"""State dicts of PyTorch's optimizers, which anybody may have written: what conversions rely on is checked here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._arguments import DTYPE_NAMES
from ._declarations import MOFO_ERROR_CHECKPOINT
from .errors import Error

if TYPE_CHECKING:
    import torch

    StateDict = Mapping[str, Any]

MOMENTS = ("exp_avg", "exp_avg_sq")


# Of PyTorch's other optimizers (amsgrad is a kind of Adam), and of some that keep `exp_avg` and `exp_avg_sq`, too.
_OF_OTHER_ALGORITHMS = {
    *("acc_delta", "ax", "col_var", "eta", "exp_inf", "grad_avg", "max_exp_avg_sq", "momentum_buffer", "mu"),
    *("mu_product", "prev", "row_var", "square_avg", "step_size", "sum", "variance"),
    *(
        "exp_avg_diff",
        "exp_avg_slow",
        "exp_avg_sq_col",
        "exp_avg_sq_row",
        "exp_avg_var",
        "hessian",
        "neg_pre_grad",
        "p0",
    ),
}


def of_other_algorithms(state: Mapping[str, Any]) -> list[str]:
    """The keys of a parameter's state that belong to another algorithm than AdamW and MoFO.

    Others, which are not known, are of a wrapper (Lookahead, say) that keeps something beside the optimizer's own.
    """
    return [key for key in state if key in _OF_OTHER_ALGORITHMS]


def unfit(message: str) -> Error:
    """The error for what cannot be converted."""
    return Error(MOFO_ERROR_CHECKPOINT, message)


def check_structure(state_dict: Any, what: str) -> None:
    """Raises unless this is what `state_dict()` of an optimizer gives: `state` by key, and groups that have keys."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        held = (
            f"a dict of {', '.join(map(str, state_dict)) or 'nothing'}"
            if isinstance(state_dict, Mapping)
            else type(state_dict).__name__
        )
        raise unfit(f"{what} is {held}, not an optimizer's state and param_groups")
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Mapping) for value in state.values()):
        raise unfit(f"{what} has a `state` that is no dict of dicts")
    if not _is_list(groups) or not all(isinstance(group, Mapping) for group in groups):
        raise unfit(f"{what} has `param_groups` that are no list of dicts")
    for number, group in enumerate(groups):
        keys = group.get("params")
        if not _is_list(keys) or not all(isinstance(key, (int, str)) for key in keys):
            raise unfit(f"{what} has no list of numbers in `params` of group {number}")


def keys_by_name(state_dict: StateDict, names: Sequence[str] | None, by_place: bool) -> dict[str, Any]:
    """The key of every parameter by its name, in the order of the groups.

    `by_place` names parameters that have no names as `MoFO` does: "<group>.<position>".
    """
    groups = state_dict["param_groups"]
    keys = [key for group in groups for key in group["params"]]
    if len(set(keys)) != len(keys):
        raise unfit("the state dict lists a parameter twice")
    if names is None:
        names = []
        for number, group in enumerate(groups):
            of_group = group.get("param_names")
            if of_group is None and by_place and all(isinstance(key, int) for key in group["params"]):
                of_group = [f"{number}.{position}" for position in range(len(group["params"]))]
            if of_group is None and all(isinstance(key, str) for key in group["params"]):
                # FSDP and torch.distributed.checkpoint have the model's names in place of numbers.
                of_group = group["params"]
            if of_group is None:
                raise unfit(
                    f"the state dict has no names for its {len(keys)} parameters (it has if the optimizer is given "
                    "model.named_parameters()): give them"
                )
            if not _is_list(of_group) or len(of_group) != len(group["params"]):
                raise unfit(f"`param_names` of group {number} is no list of as many names as there are parameters")
            names.extend(of_group)
    if not _is_list(names) or not all(isinstance(name, str) for name in names):
        raise unfit(f"a list of texts is needed as names, not {names!r:.80}")
    if len(names) != len(keys):
        raise unfit(f"there are {len(keys)} parameters, but {len(names)} names")
    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise unfit(f"two parameters are named {twice!r}")
    return dict(zip(names, keys))


def check_state(name: str, state: Mapping[str, Any], parts: tuple[str, ...], whose: str) -> None:
    """Raises unless a parameter's state has a `step` and these tensors, of one shape, on the CPU.

    What else a wrapper keeps there is not looked at, but nothing may be of another algorithm.
    """
    import torch

    strange = of_other_algorithms(state) or ("master" in state and "master" not in parts)
    if strange or not {"step", *parts} <= set(state):
        raise unfit(
            f"the state of {name!r} is {', '.join(map(str, state))}, but {whose}'s is step, {', '.join(parts)}"
            + (": with amsgrad there is more than mofo has" if "max_exp_avg_sq" in state else "")
        )
    for part in parts:
        tensor = state[part]
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            raise unfit(f"{part} of {name!r} is no dense tensor, but {type(tensor).__name__}")
        if tensor.device.type != "cpu":
            raise unfit(f"{part} of {name!r} is on {tensor.device}: load the state dict to the CPU")
        if tensor.shape != state[parts[0]].shape:
            raise unfit(f"{parts[0]} and {part} of {name!r} differ in shape")
        if part != "master" and tensor.dtype != state[parts[0]].dtype:
            raise unfit(f"{parts[0]} and {part} of {name!r} differ in type")
        if part == "master" and tensor.dtype != torch.float32:
            raise unfit(f"the master copy of {name!r} is of {tensor.dtype}, not of float32")


def steps_of(name: str, state: Mapping[str, Any]) -> int:
    """How many steps a parameter's `step` stands for."""
    value = state["step"]
    try:
        steps = value.item() if hasattr(value, "item") else value
        whole = not isinstance(steps, (bool, str)) and int(steps) == steps
    except (TypeError, ValueError, OverflowError, RuntimeError):
        whole = False
    if not whole or not 0 <= steps < 2**63:
        raise unfit(f"the step of {name!r} is {steps if whole else value!r}, no number of steps")
    return int(steps)


def moment_kind(moment: torch.Tensor) -> str:
    """The library's name for the moments' type."""
    kind = dtype_name(moment.dtype)
    if kind not in ("f32", "bf16"):
        raise unfit(f"moments of {moment.dtype}: mofo's are of float32 or bfloat16")
    return kind


def dtype_name(dtype: torch.dtype) -> str:
    """The library's name for a type, or PyTorch's if it has none."""
    import torch

    kinds = dict(zip((torch.float32, torch.float16, torch.bfloat16), DTYPE_NAMES))
    return kinds.get(dtype, str(dtype))


def shape_of(
    name: str, state: Mapping[str, Any] | None, shapes: Mapping[str, Sequence[int]] | None
) -> tuple[int, ...] | None:
    """A parameter's shape, as its state or `shapes` tells it, or None."""
    if state:
        shape = getattr(state.get("exp_avg"), "shape", None)
        if shape is None:
            raise unfit(f"the state of {name!r} has no tensor exp_avg that would tell its shape")
        return tuple(shape)
    if shapes is None or name not in shapes:
        return None
    try:
        given = tuple(int(length) for length in shapes[name])
    except (TypeError, ValueError):
        given = (-1,)
    if any(length < 0 for length in given):
        raise unfit(f"the shape of {name!r} is given as {shapes[name]!r}, which is none")
    return given


def numel_of(shape: Sequence[int]) -> int:
    """The number of entries."""
    return math.prod(shape)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
