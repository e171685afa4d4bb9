"""Checkpoints of PyTorch's AdamW and of MoFO in PyTorch as the library's, and back: the same bits and step counts.

    python -m mofo.checkpoint from-adamw adamw.pt state.safetensors --names names.txt
    python -m mofo.checkpoint to-adamw state.safetensors adamw.pt --like fresh-adamw.pt
    python -m mofo.checkpoint from-mofo training.pt state.safetensors --key optimizer
    python -m mofo.checkpoint to-mofo state.safetensors resumed.pt --like training.pt --key optimizer

Or in a program, `from_adamw`, `to_adamw`, `from_mofo` and `to_mofo`, which take state dicts. mofo's file is written and
read by the library itself, from and into the memory of PyTorch's tensors, and what `mofo_load` would refuse is refused
here. Needs PyTorch and safetensors. Files are loaded with `weights_only=True`, so that they can run no code.

PyTorch numbers parameters where mofo names them. The names come from the state dict, if the optimizer was given
`model.named_parameters()` (`param_names` of its groups), or are given: one for each parameter, in the order of the
groups. Entries are in the order of their indices, whatever the tensors' layout in memory.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._conversion import from_adamw, from_mofo, parameter_names, to_adamw, to_mofo
from ._state_dicts import check_structure, unfit
from .errors import Error

if TYPE_CHECKING:
    from ._state_dicts import StateDict

__all__ = ["from_adamw", "from_mofo", "main", "parameter_names", "to_adamw", "to_mofo"]


def _load(path: str) -> Any:
    """A file that torch.save wrote, its tensors left on the disk until they are read."""
    import torch

    if Path(path).is_dir():
        raise unfit(
            f"{path} is a folder: one of torch.distributed.checkpoint becomes a file by "
            f"`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} FILE`"
        )
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files in PyTorch's old format cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # A damaged file makes PyTorch raise nearly anything.
        raise unfit(f"{path} cannot be loaded as a file that torch.save wrote: {error!r}") from error


def _state_dict(loaded: Any, path: str, key: str | None) -> StateDict:
    """The optimizer's state dict in what a file holds."""
    if key is not None:
        for step in _way(loaded, path, key):
            loaded = loaded[step]
    check_structure(loaded, f"what {path} holds" + ("" if key else " (--key picks an entry)"))
    found: StateDict = loaded
    return found


def _way(loaded: Any, path: str, key: str) -> list[Any]:
    """The keys and indices that lead to the entry `key` in what a file holds; slashes separate its levels."""
    if isinstance(loaded, dict) and key in loaded:
        return [key]
    way: list[Any] = []
    for word in key.split("/"):
        if isinstance(loaded, dict):
            steps = [step for step in loaded if str(step) == word]
        else:
            steps = [int(word)] if isinstance(loaded, (list, tuple)) and word in map(str, range(len(loaded))) else []
        if not steps:
            raise unfit(f"{path} has no entry {key!r}" + (f": there is no {word!r}" if "/" in key else ""))
        way.append(steps[0])
        loaded = loaded[steps[0]]
    return way


def _with(loaded: Any, way: Sequence[Any], content: Any) -> Any:
    """A copy of what a file holds with `content` at the end of the way."""
    if not way:
        return content
    inner = _with(loaded[way[0]], way[1:], content)
    if isinstance(loaded, dict):
        return {**loaded, way[0]: inner}
    return [*loaded[: way[0]], inner, *loaded[way[0] + 1 :]]


def _save(content: Any, path: str) -> None:
    """Writes a file by torch.save: the old one stays as it is until the new one is on the disk as a whole."""
    import torch

    target = Path(path).resolve()
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _model_shapes(path: str | None, key: str | None) -> dict[str, Sequence[int]] | None:
    if path is None:
        return None
    if path.endswith(".safetensors"):
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise unfit(f"{path} cannot be read: {error}") from error
    weights = _load(path)
    if key is not None:
        for step in _way(weights, path, key):
            weights = weights[step]
    if not isinstance(weights, dict):
        raise unfit(f"{path} holds {type(weights).__name__}, not a model's state dict")
    return {name: tensor.shape for name, tensor in weights.items() if hasattr(tensor, "shape")}


def _names(path: str | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise unfit(f"{path} is no text in UTF-8: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mofo.checkpoint",
        description="Converts checkpoints between PyTorch's AdamW, or MoFO in PyTorch, and the mofo library.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for word, name in (("adamw", "AdamW"), ("mofo", "MoFO in PyTorch")):
        there = commands.add_parser(f"from-{word}", help=f"the library's checkpoint from a file of {name}'s state dict")
        there.add_argument("torch", help="a file that torch.save wrote: the state dict, or a dict that has it")
        there.add_argument("library", help="the checkpoint to write")
        back = commands.add_parser(f"to-{word}", help=f"a file of {name}'s state dict from the library's checkpoint")
        back.add_argument("library", help="a checkpoint of the library")
        back.add_argument("torch", help="the file to write, by torch.save")
        back.add_argument(
            "--like",
            required=True,
            metavar="FILE",
            help="a state dict for the same parameters; with --key, all else that this file holds is written, too",
        )
        if word == "adamw":
            back.add_argument("--drop-masters", action="store_true", help="leave out master copies")
        for command in (there, back):
            command.add_argument(
                "--key",
                help="the entry of PyTorch's file that is the state dict, such as optimizer or optimizer_states/0",
            )
            command.add_argument(
                "--names", metavar="FILE", help="the parameters' names, one a line, as the groups have them"
            )
            command.add_argument(
                "--model",
                metavar="FILE",
                help="the model's weights (.safetensors, or a state dict): tells shapes by name",
            )
            command.add_argument("--model-key", help="the entry of that file that is the model's state dict")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given = _parser().parse_args(arguments)
    try:
        options: dict[str, Any] = {"names": _names(given.names), "shapes": _model_shapes(given.model, given.model_key)}
        if given.command.startswith("from-"):
            convert = from_adamw if given.command == "from-adamw" else from_mofo
            convert(_state_dict(_load(given.torch), given.torch, given.key), given.library, **options)
            return
        whole = _load(given.like)
        like = _state_dict(whole, given.like, given.key)
        if given.command == "to-adamw":
            converted = to_adamw(given.library, like, drop_masters=given.drop_masters, **options)
        else:
            converted = to_mofo(given.library, like, **options)
        # With a key the file is a training script's own: its weights, epoch and the like belong to it.
        way = [] if given.key is None else _way(whole, given.like, given.key)
        _save(_with(whole, way, converted), given.torch)
    except (Error, OSError, RuntimeError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
