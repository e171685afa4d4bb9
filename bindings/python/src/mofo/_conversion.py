"""The state of PyTorch's optimizers as the library's checkpoint, and back: moments, masters, step counts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._optimizer import Optimizer
from ._state_dicts import (
    MOMENTS,
    check_state,
    check_structure,
    dtype_name,
    keys_by_name,
    moment_kind,
    numel_of,
    shape_of,
    steps_of,
    unfit,
)

if TYPE_CHECKING:
    import torch

    from ._state_dicts import StateDict

    FilePath = str | os.PathLike[str]
    Shapes = Mapping[str, Sequence[int]]


def parameter_names(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> list[str]:
    """The names that `model` has for the parameters of `optimizer`, in the order of its groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        if id(parameter) not in names:
            raise unfit(f"parameter {number}, of shape {tuple(parameter.shape)}, is none of the model's")
    return [names[id(parameter)] for parameter in parameters]


def from_adamw(
    state_dict: StateDict, path: FilePath, *, names: Sequence[str] | None = None, shapes: Shapes | None = None
) -> None:
    """Writes mofo's checkpoint of what `AdamW.state_dict()` gave.

    Moments are f32 or bf16: the `state_dtype` of the optimizer that will load it. Where some are f32 and some bf16, as
    in a model of mixed types, all become f32, which changes no value. Parameters that were never stepped have no state
    in AdamW, and so no size: `shapes` tells theirs, by name.
    """
    check_structure(state_dict, "the state dict")
    _write(state_dict, path, names, shapes, "AdamW")


def from_mofo(
    state_dict: StateDict, path: FilePath, *, names: Sequence[str] | None = None, shapes: Shapes | None = None
) -> None:
    """Writes the library's checkpoint of what `mofo.torch.MoFO.state_dict()` gave, with master copies and the seed.

    An optimizer with the same options and names that loads it goes on with the same bits, as long as the parameters
    are contiguous: entries are in the order of their indices. `names` are by default those that MoFO uses:
    `param_names`, else "<group>.<position>". All groups must have the same seed and `state_dtype`. The rest as for
    `from_adamw`.
    """
    check_structure(state_dict, "the state dict")
    _write(state_dict, path, names, shapes, "MoFO")


def to_adamw(
    path: FilePath,
    like: StateDict,
    *,
    names: Sequence[str] | None = None,
    shapes: Shapes | None = None,
    drop_masters: bool = False,
) -> dict[str, Any]:
    """What `AdamW.load_state_dict` takes, from mofo's checkpoint.

    `like` is the state dict of an AdamW for the same parameters, which may be fresh: its groups are taken over. mofo
    knows no shapes: they are those of the moments in `like` or, for parameters that have none, those of `shapes`, by
    name. AdamW has no master copies: a checkpoint that has some is refused unless `drop_masters` leaves them out.
    """
    import torch

    check_structure(like, "like")
    description = _describe(path)
    masters = [tensor["name"] for tensor in description["tensors"] if tensor["master"]]
    if masters and not drop_masters:
        raise unfit(
            f"{path} has master copies ({masters[0]!r}), which AdamW has not: write them to the parameters first, then "
            "leave them out (drop_masters)"
        )
    state = _read(path, description, like, keys_by_name(like, names, False), shapes, "AdamW")
    for key, of_parameter in state.items():
        of_parameter.pop("master", None)
        steps = int(of_parameter["step"])
        of_parameter["step"] = torch.tensor(float(steps), dtype=torch.float32, device="cpu")
        if int(of_parameter["step"]) != steps:
            raise unfit(f"parameter {key} has taken {steps} steps, more than AdamW counts, which does it in float32")
    return {"state": state, "param_groups": [dict(group) for group in like["param_groups"]]}


def to_mofo(
    path: FilePath, like: StateDict, *, names: Sequence[str] | None = None, shapes: Shapes | None = None
) -> dict[str, Any]:
    """What `mofo.torch.MoFO.load_state_dict` takes, from the library's checkpoint.

    `like` is the state dict of a MoFO for the same parameters, which may be fresh. Its groups are taken over, but for
    `seed`, `state_dtype` and `master_weights`, which are the checkpoint's. If `names` are given they become the
    groups' `param_names`, so that random bits are those of the library. Shapes are found as by `to_adamw`.
    """
    import torch

    check_structure(like, "like")
    description = _describe(path)
    by_name = keys_by_name(like, names, True)
    state = _read(path, description, like, by_name, shapes, "MoFO")
    groups = []
    names_left = iter(by_name)
    for group in like["param_groups"]:
        of_group = [next(names_left) for _ in group["params"]]
        taken = {
            **group,
            "seed": description["seed"],
            "state_dtype": torch.float32 if description["state_dtype"] == "F32" else torch.bfloat16,
            "master_weights": description["options"]["master_weights"],
        }
        if names is not None:
            taken["param_names"] = of_group
        groups.append(taken)
    return {"state": state, "param_groups": groups}


def _write(
    state_dict: StateDict, path: FilePath, names: Sequence[str] | None, shapes: Shapes | None, whose: str
) -> None:
    import torch

    is_mofo = whose == "MoFO"
    by_name = keys_by_name(state_dict, names, is_mofo)
    states = {}
    for name, key in by_name.items():
        state = state_dict["state"].get(key) or {}
        parts = (*MOMENTS, "master") if is_mofo and state.get("master") is not None else MOMENTS
        if state:
            check_state(name, state, parts, whose)
        states[name] = {part: state[part] for part in ("step", *parts)} if state else {}
    blocks = dict.fromkeys(by_name, 1)
    settings: dict[str, Any] = {}
    kinds = {moment_kind(state["exp_avg"]) for state in states.values() if state}
    kind = "bf16" if kinds == {"bf16"} else "f32"
    if is_mofo:
        seed, state_dtype = (_of_all_groups(state_dict, option) for option in ("seed", "state_dtype"))
        settings["seed"] = 0 if seed is None else seed
        if not kinds:
            kind = dtype_name(state_dtype) if isinstance(state_dtype, torch.dtype) else "f32"
        blocks = _blocks(state_dict, by_name)
    with_masters = any("master" in state for state in states.values()) or (
        is_mofo and any(group.get("master_weights") is True for group in state_dict["param_groups"])
    )
    dtype = torch.float32 if kind == "f32" else torch.bfloat16
    with Optimizer(state_dtype=kind, master_weights=with_masters, num_threads=1, **settings) as optimizer:
        kept = []
        for name, state in states.items():
            shape = shape_of(name, state, shapes)
            if shape is None:
                raise unfit(f"parameter {name!r} was never stepped, so that {whose} has no size of it: give its shape")
            steps = steps_of(name, state) if state else 0
            if steps == 0:
                if state and not is_mofo:
                    raise unfit(f"the step of {name!r} is 0, no number of steps")
                optimizer.add(name, numel=numel_of(shape), num_blocks=blocks[name])
                continue
            # A copy, where one is needed, is kept until the end. AdamW's moments have the type of their parameter;
            # of MoFO's nothing tells it but a master copy, which only types of 16 bits have: it is a record only.
            tensors = {
                part: tensor.detach().to(torch.float32 if part == "master" else dtype).contiguous()
                for part, tensor in state.items()
                if part != "step"
            }
            kept.append(tensors)
            param_dtype = dtype_name(state["exp_avg"].dtype)
            if is_mofo:
                param_dtype = "bf16" if "master" in tensors else "f32"
            _add(optimizer, name, tensors, param_dtype, steps, blocks[name])
        optimizer.save(path)


def _read(
    path: FilePath,
    description: dict[str, Any],
    like: StateDict,
    by_name: dict[str, Any],
    shapes: Shapes | None,
    whose: str,
) -> dict[Any, dict[str, Any]]:
    """The state by key: `step` as int64, moments, and `master` where the checkpoint has one."""
    import torch

    tensors = {tensor["name"]: tensor for tensor in description["tensors"]}
    found = {name: shape_of(name, like["state"].get(key), shapes) for name, key in by_name.items()}
    empty = [name for name, shape in found.items() if shape is not None and numel_of(shape) == 0]
    wanted = [name for name in by_name if name not in empty or name in tensors]
    for one, other, where in ((wanted, tensors, str(path)), (tensors, by_name, whose)):
        missing = [name for name in one if name not in other]
        if missing:
            raise unfit(f"{len(missing)} of the parameters are not in {where}, {missing[0]!r} among them")
    kind = torch.float32 if description["state_dtype"] == "F32" else torch.bfloat16
    state: dict[Any, dict[str, Any]] = {}
    masters = any(tensor["master"] for tensor in tensors.values())
    with Optimizer(state_dtype=dtype_name(kind), master_weights=masters, num_threads=1) as optimizer:
        for name in wanted:
            shape, numel = found[name], tensors[name]["numel"]
            if shape is None:
                raise unfit(f"parameter {name!r} has no state in {whose}'s that would tell its shape: give it")
            if numel_of(shape) != numel:
                raise unfit(f"{name!r} has {numel} entries in mofo's checkpoint, but shape {shape} in {whose}")
            parts = {moment: torch.empty(shape, dtype=kind, device="cpu") for moment in MOMENTS}
            if tensors[name]["master"]:
                parts["master"] = torch.empty(shape, dtype=torch.float32, device="cpu")
            _add(optimizer, name, parts, tensors[name]["param_dtype"].lower(), 0, 1)
            state[by_name[name]] = dict(parts)
        optimizer.load(path)
        for name in wanted:
            steps = optimizer.state(name).step_count
            if steps == 0:
                del state[by_name[name]]
            else:
                state[by_name[name]]["step"] = torch.tensor(steps, dtype=torch.int64, device="cpu")
    return state


def _add(
    optimizer: Optimizer, name: str, tensors: dict[str, torch.Tensor], dtype: str, steps: int, num_blocks: int
) -> None:
    """Adds a tensor whose state lies in these of PyTorch."""
    import torch

    from ._torch_memory import address_of

    numel, kind = tensors["exp_avg"].numel(), tensors["exp_avg"].dtype
    addresses: dict[str, Any] = {
        part: address_of(
            tensor,
            f"{part} of {name!r}",
            dtype=torch.float32 if part == "master" else kind,
            device=torch.device("cpu"),
            numel=numel,
        )
        for part, tensor in tensors.items()
    }
    optimizer.add(name, numel=numel, dtype=dtype, num_blocks=num_blocks, step_count=steps, **addresses)


def _of_all_groups(state_dict: StateDict, option: str) -> Any:
    values = [group[option] for group in state_dict["param_groups"] if option in group]
    if any(value != values[0] for value in values):
        raise unfit(f"the groups have several values of {option} ({values[0]}, ...): a checkpoint has one")
    return values[0] if values else None


def _blocks(state_dict: StateDict, by_name: dict[str, Any]) -> dict[str, int]:
    """`num_blocks` of every parameter, which the checkpoint records."""
    numbers: list[Any] = []
    for group in state_dict["param_groups"]:
        given = group.get("num_blocks", 1)
        numbers += [given] * len(group["params"]) if isinstance(given, int) else given
    return dict(zip(by_name, numbers))


def _describe(path: FilePath) -> dict[str, Any]:
    """What mofo's checkpoint says of itself. The library checks it when it loads it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise unfit(f"{path} cannot be read: {error}") from error
    if "mofo" not in metadata:
        raise unfit(f"{path} is no checkpoint of mofo")
    try:
        description: dict[str, Any] = json.loads(metadata["mofo"])
        version = description["format_version"]
        if version == 1:
            # What is read of it here.
            for tensor in description["tensors"]:
                _ = tensor["name"], tensor["numel"], tensor["master"], tensor["param_dtype"].lower()
            _ = description["seed"], description["options"]["master_weights"]
            if description["state_dtype"] in ("F32", "BF16"):
                return description
    except (AttributeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise unfit(f"{path} has a damaged description: {error!r}") from error
    raise unfit(f"{path} has a damaged description, or one of a newer format (version {version}; this is for 1)")
