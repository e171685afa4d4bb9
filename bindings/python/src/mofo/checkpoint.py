"""Checkpoints of PyTorch's AdamW as mofo's, and back: the same moments, bit for bit, and the same step counts.

    python -m mofo.checkpoint from-adamw adamw.pt state.safetensors --names names.txt
    python -m mofo.checkpoint to-adamw state.safetensors adamw.pt --like fresh-adamw.pt

Or in a program, `from_adamw` and `to_adamw`, which take state dicts. mofo's file is written and read by the library
itself, from and into the memory of PyTorch's tensors: nothing is copied on the way, and what `mofo_load` would refuse
is refused here. Needs PyTorch and safetensors. Files are loaded with `weights_only=True`, so that they can run no code.

PyTorch numbers parameters where mofo names them. The names come from the state dict, if the optimizer was given
`model.named_parameters()` (`param_names` of its groups), or are given: one for each parameter, in the order of the
groups. Entries are in the order of their indices, whatever the tensors' layout in memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from ._arguments import DTYPE_NAMES
from ._declarations import MOFO_ERROR_CHECKPOINT
from ._optimizer import Optimizer
from .errors import Error

if TYPE_CHECKING:
    import torch

    StateDict = Mapping[str, Any]
    FilePath = str | os.PathLike[str]

_MOMENTS = ("exp_avg", "exp_avg_sq")


def parameter_names(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> list[str]:
    """The names that `model` has for the parameters of `optimizer`, in the order of its groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        if id(parameter) not in names:
            raise _unfit(f"parameter {number}, of shape {tuple(parameter.shape)}, is none of the model's")
    return [names[id(parameter)] for parameter in parameters]


def from_adamw(
    state_dict: StateDict,
    path: FilePath,
    *,
    names: Sequence[str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Writes mofo's checkpoint of what `AdamW.state_dict()` gave.

    Moments are f32 or bf16, all of the same type: the `state_dtype` of the optimizer that will load it. Parameters that
    were never stepped have no state in AdamW, and so no size: `shapes` tells theirs, by name.
    """
    states = state_dict["state"]
    by_name = dict(_named(state_dict, names))
    stepped = {name: states[key] for name, key in by_name.items() if states.get(key)}
    for name, state in stepped.items():
        _check_state(name, state)
    kinds = {_dtype(state[moment]) for state in stepped.values() for moment in _MOMENTS}
    if len(kinds) > 1:
        raise _unfit(f"the moments are of several types ({', '.join(sorted(kinds))}): mofo's are all of one")
    with Optimizer(state_dtype=kinds.pop() if kinds else "f32", num_threads=1) as optimizer:
        kept = []
        for name in by_name:
            if name in stepped:
                # AdamW's moments have the type of their parameter. A copy, where one is needed, is kept until the end.
                moments = [stepped[name][moment].detach().contiguous() for moment in _MOMENTS]
                kept.append(moments)
                _add(optimizer, name, moments, _kind(moments[0].dtype), _steps(name, stepped[name]))
            elif shapes is not None and name in shapes:
                optimizer.add(name, numel=math.prod(shapes[name]))
            else:
                raise _unfit(f"parameter {name!r} was never stepped, so that AdamW has no size of it: give its shape")
        optimizer.save(path)


def to_adamw(
    path: FilePath,
    like: StateDict,
    *,
    names: Sequence[str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    drop_masters: bool = False,
) -> dict[str, Any]:
    """What `AdamW.load_state_dict` takes, from mofo's checkpoint.

    `like` is the state dict of an AdamW for the same parameters, which may be fresh: its groups are taken over. mofo
    knows no shapes: they are those of the moments in `like` or, for parameters that have none, those of `shapes`, by
    name. AdamW has no master copies: a checkpoint that has some is refused unless `drop_masters` leaves them out.
    """
    import torch

    description = _describe(path)
    tensors = {tensor["name"]: tensor for tensor in description["tensors"]}
    by_name = dict(_named(like, names))
    for one, other, where in ((by_name, tensors, path), (tensors, by_name, "AdamW")):
        missing = [name for name in one if name not in other]
        if missing:
            raise _unfit(f"{len(missing)} of the parameters are not in {where}, {missing[0]!r} among them")
    masters = [name for name, tensor in tensors.items() if tensor["master"]]
    if masters and not drop_masters:
        raise _unfit(
            f"{path} has master copies ({masters[0]!r}), which AdamW has not: write them to the parameters first, then "
            "leave them out (drop_masters)"
        )
    kind = torch.float32 if description["state_dtype"] == "F32" else torch.bfloat16
    state: dict[Any, dict[str, Any]] = {}
    with Optimizer(state_dtype=_kind(kind), master_weights=bool(masters), num_threads=1) as optimizer:
        for name, key in by_name.items():
            shape = _shape(name, like["state"].get(key), shapes, tensors[name]["numel"])
            moments = {moment: torch.empty(shape, dtype=kind) for moment in _MOMENTS}
            _add(optimizer, name, list(moments.values()), tensors[name]["param_dtype"].lower(), 0)
            state[key] = moments
        optimizer.load(path)
        for name, key in by_name.items():
            steps = optimizer.state(name).step_count
            if steps == 0:
                del state[key]
            else:
                state[key]["step"] = torch.tensor(float(steps), dtype=torch.float32)
                if int(state[key]["step"]) != steps:
                    raise _unfit(f"{name!r} has taken {steps} steps, more than AdamW counts, which does it in float32")
    return {"state": state, "param_groups": [dict(group) for group in like["param_groups"]]}


def _add(optimizer: Optimizer, name: str, moments: list[torch.Tensor], dtype: str, steps: int) -> None:
    """Adds a tensor whose moments lie in these of PyTorch."""
    optimizer.add(
        name,
        numel=moments[0].numel(),
        dtype=dtype,
        exp_avg=moments[0].data_ptr(),
        exp_avg_sq=moments[1].data_ptr(),
        step_count=steps,
    )


def _named(state_dict: StateDict, names: Sequence[str] | None) -> Iterable[tuple[str, Any]]:
    """Name and key of every parameter, in the order of the groups."""
    groups = state_dict["param_groups"]
    keys = [key for group in groups for key in group["params"]]
    if names is None:
        if not all("param_names" in group for group in groups):
            raise _unfit(
                f"the state dict has no names for its {len(keys)} parameters (it has if AdamW is given "
                "model.named_parameters()): give them"
            )
        names = [name for group in groups for name in group["param_names"]]
    if len(names) != len(keys):
        raise _unfit(f"there are {len(keys)} parameters, but {len(names)} names")
    if len(set(names)) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise _unfit(f"two parameters are named {twice!r}")
    return zip(names, keys)


def _check_state(name: str, state: Mapping[str, Any]) -> None:
    if set(state) != {"step", *_MOMENTS}:
        raise _unfit(
            f"the state of {name!r} is {', '.join(map(str, state))}, but AdamW's is step, exp_avg and exp_avg_sq"
            + (": with amsgrad there is more than mofo has" if "max_exp_avg_sq" in state else "")
        )
    first, second = (state[moment] for moment in _MOMENTS)
    if first.shape != second.shape or first.dtype != second.dtype:
        raise _unfit(f"exp_avg and exp_avg_sq of {name!r} differ in shape or type")
    if first.device.type != "cpu":
        raise _unfit(f"the moments of {name!r} are on {first.device}: load the state dict to the CPU")


def _steps(name: str, state: Mapping[str, Any]) -> int:
    steps = float(state["step"])
    if not steps.is_integer() or steps < 1:
        raise _unfit(f"the step of {name!r} is {steps}, no number of steps")
    return int(steps)


def _dtype(moment: torch.Tensor) -> str:
    kind = _kind(moment.dtype)
    if kind not in ("f32", "bf16"):
        raise _unfit(f"moments of {moment.dtype}: mofo's are of float32 or bfloat16")
    return kind


def _kind(dtype: torch.dtype) -> str:
    import torch

    kinds = dict(zip((torch.float32, torch.float16, torch.bfloat16), DTYPE_NAMES))
    return kinds.get(dtype, str(dtype))


def _shape(
    name: str, state: Mapping[str, Any] | None, shapes: Mapping[str, Sequence[int]] | None, numel: int
) -> tuple[int, ...]:
    if state:
        shape = tuple(state["exp_avg"].shape)
    elif shapes is not None and name in shapes:
        shape = tuple(shapes[name])
    else:
        raise _unfit(f"parameter {name!r} has no state in AdamW's state dict that would tell its shape: give it")
    if math.prod(shape) != numel:
        raise _unfit(f"{name!r} has {numel} entries in mofo's checkpoint, but shape {shape} in AdamW")
    return shape


def _describe(path: FilePath) -> dict[str, Any]:
    """What mofo's checkpoint says of itself. The library checks it when it loads it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unfit(f"{path} cannot be read: {error}") from error
    if "mofo" not in metadata:
        raise _unfit(f"{path} is no checkpoint of mofo")
    try:
        description: dict[str, Any] = json.loads(metadata["mofo"])
        version = description["format_version"]
        if version == 1:
            # What is read of it here.
            for tensor in description["tensors"]:
                _ = tensor["name"], tensor["numel"], tensor["master"], tensor["param_dtype"].lower()
            if description["state_dtype"] in ("F32", "BF16"):
                return description
    except (AttributeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise _unfit(f"{path} has a damaged description: {error!r}") from error
    raise _unfit(f"{path} has a damaged description, or one of a newer format (version {version}; this is for 1)")


def _unfit(message: str) -> Error:
    return Error(MOFO_ERROR_CHECKPOINT, message)


def _load(path: str, key: str | None) -> Any:
    """A file that torch.save wrote, its tensors left on the disk until they are read."""
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        # Files in PyTorch's old format cannot be mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if key is not None:
        if not isinstance(loaded, dict) or key not in loaded:
            raise _unfit(f"{path} has no entry {key!r}")
        loaded = loaded[key]
    return loaded


def _adamw(path: str, key: str | None) -> StateDict:
    loaded = _load(path, key)
    if not isinstance(loaded, dict) or not {"state", "param_groups"} <= set(loaded):
        held = f"a dict of {', '.join(map(str, loaded))}" if isinstance(loaded, dict) else type(loaded).__name__
        raise _unfit(f"{path} holds {held}, not an optimizer's state and param_groups (--key picks an entry)")
    return loaded


def _model_shapes(path: str | None) -> dict[str, Sequence[int]] | None:
    if path is None:
        return None
    if path.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    weights = _load(path, None)
    if not isinstance(weights, dict):
        raise _unfit(f"{path} holds {type(weights).__name__}, not a model's state dict")
    return {name: tensor.shape for name, tensor in weights.items() if hasattr(tensor, "shape")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mofo.checkpoint", description="Converts checkpoints between PyTorch's AdamW and mofo."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    there = commands.add_parser("from-adamw", help="mofo's checkpoint from a file of AdamW's state dict")
    there.add_argument("adamw", help="a file that torch.save wrote: the state dict, or a dict that has it")
    there.add_argument("mofo", help="the checkpoint to write")
    back = commands.add_parser("to-adamw", help="a file of AdamW's state dict from mofo's checkpoint")
    back.add_argument("mofo", help="a checkpoint of mofo")
    back.add_argument("adamw", help="the file to write, by torch.save")
    back.add_argument("--like", required=True, metavar="FILE", help="a state dict of an AdamW for the same parameters")
    back.add_argument("--drop-masters", action="store_true", help="leave out master copies, which AdamW has not")
    for command in (there, back):
        command.add_argument("--key", help="the entry of AdamW's file that is the state dict, such as optimizer")
        command.add_argument(
            "--names", metavar="FILE", help="the parameters' names, one a line, as the groups have them"
        )
        command.add_argument(
            "--model", metavar="FILE", help="the model's weights (.safetensors, or a state dict): tells shapes by name"
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given = _parser().parse_args(arguments)
    try:
        names = Path(given.names).read_text(encoding="utf-8").splitlines() if given.names else None
        shapes = _model_shapes(given.model)
        if given.command == "from-adamw":
            from_adamw(_adamw(given.adamw, given.key), given.mofo, names=names, shapes=shapes)
            return
        import torch

        like = _adamw(given.like, given.key)
        state_dict = to_adamw(given.mofo, like, names=names, shapes=shapes, drop_masters=given.drop_masters)
        partial = f"{given.adamw}.partial"
        torch.save(state_dict, partial)
        Path(partial).replace(given.adamw)
    except (Error, OSError, RuntimeError, ImportError, UnpicklingError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
