"""What a parameter and its gradient must be like, said in words where they are not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .. import _declarations as c
from .._torch_memory import check_storage, is_dense
from ..errors import Error
from ._memory import span_of
from ._replicated import is_dtensor, is_replicated, plain
from ._settings import DTYPES

_TYPES = "float32, float16 or bfloat16"


def what_is_wrong_with(param: Tensor, num_blocks: int) -> str | None:
    """Why a parameter cannot be stepped, or None. Where it lies is not looked at: it may be moved yet."""
    if param.layout is not torch.strided:
        return f"is of layout {param.layout}: only dense tensors can be stepped"
    if param.dtype not in DTYPES:
        return f"is of type {param.dtype}, but must be of {_TYPES}"
    if is_dtensor(param):
        if not is_replicated(param):
            placements = getattr(param, "placements", None)
            return (
                f"is a DTensor with placements {placements}: its shards would be filtered one by one, which is "
                "another algorithm; MoFO needs whole tensors"
            )
        param = plain(param)
    if is_traceable_wrapper_subclass(param):
        return (
            f"is a {type(param).__name__}, a subclass of Tensor that keeps its numbers elsewhere: MoFO steps plain "
            "tensors, and DTensors that are replicated"
        )
    if param.is_neg():
        return "is a negated view, whose numbers lie in memory with the other sign: resolve_neg() makes a plain tensor"
    if not is_dense(param):
        return (
            f"has gaps or overlaps in memory (shape {tuple(param.shape)}, strides {param.stride()}): "
            "make it contiguous, or step the tensor that it is a view of"
        )
    if num_blocks > 1:
        if param.numel() % num_blocks:
            return f"has {param.numel()} entries, which num_blocks = {num_blocks} does not divide"
        if not param.is_contiguous():
            return f"must be contiguous for num_blocks = {num_blocks}: blocks are stretches of its entries"
    return None


def check_param(param: Tensor, name: str, num_blocks: int) -> None:
    """Raises the library's error for a parameter that cannot be stepped here and now."""
    problem = what_is_wrong_with(param, num_blocks)
    if problem is not None:
        raise Error(c.MOFO_ERROR_INVALID_BUFFER, f"parameter {name} {problem}")
    if param.device.type not in ("cpu", "cuda"):
        raise Error(
            c.MOFO_ERROR_UNSUPPORTED,
            f"parameter {name} is on {param.device}, but must be on the CPU or on a CUDA device",
        )
    check_storage(plain(param), f"parameter {name}")


def check_grad(grad: Tensor, param: Tensor, name: str) -> None:
    if grad.layout is not torch.strided:
        raise Error(
            c.MOFO_ERROR_UNSUPPORTED,
            f"parameter {name} has a gradient of layout {grad.layout}, but sparse gradients cannot be stepped: "
            "an Embedding makes dense ones with sparse=False",
        )
    if grad.dtype not in DTYPES:
        raise Error(
            c.MOFO_ERROR_INVALID_ARGUMENT,
            f"parameter {name} has a gradient of type {grad.dtype}, but it must be of {_TYPES}",
        )
    if grad.shape != param.shape or grad.device != param.device:
        raise Error(
            c.MOFO_ERROR_INVALID_BUFFER,
            f"parameter {name} has shape {tuple(param.shape)} on {param.device}, "
            f"its gradient shape {tuple(grad.shape)} on {grad.device}",
        )
    if is_traceable_wrapper_subclass(grad):
        raise Error(
            c.MOFO_ERROR_UNSUPPORTED,
            f"parameter {name} has a gradient that is a {type(grad).__name__}: it must be a plain tensor",
        )


def overlapping(named: Iterable[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """The names of two of these dense tensors that share memory, or None."""
    spans = sorted((*span, name) for name, tensor in named if (span := span_of(tensor)) is not None)
    for before, after in zip(spans, spans[1:]):
        if before[:2] == after[:2] and before[3] > after[2]:
            return before[4], after[4]
    return None
