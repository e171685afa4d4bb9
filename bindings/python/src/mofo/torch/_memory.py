"""Memory layouts: what can be stepped in place, and where the optimizer's own tensors lie."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from ._replicated import plain

# Those of src/memory.rs, for the same reason: a step goes through parameter, gradient and moments in lock-step, and
# buffers that start at the same place modulo a large power of two compete for the same cache sets. PyTorch places all
# large CPU tensors alike, just above a page boundary.
_PERIOD = 1 << 16
_STAGGER = _PERIOD // 4 + 1344
_LARGE = 1 << 20
_CACHE_LINE = 64

STATE_PARTS = {"exp_avg": 0, "exp_avg_sq": 1, "master": 2}
"""The tensors of a parameter's state, and which offset of the period each one starts at."""


Span = tuple[str, int, int, int]
"""Device, first address and the one after the last."""


def span_of(tensor: Tensor) -> Span | None:
    """The memory of a dense tensor, to be compared with others; None for a tensor without memory."""
    if isinstance(tensor, UninitializedParameter) or tensor.device.type == "meta" or not tensor.numel():
        return None
    address = plain(tensor).data_ptr()
    if not address:
        return None
    return tensor.device.type, tensor.device.index or 0, address, address + tensor.numel() * tensor.element_size()


def same_order(tensor: Tensor, like: Tensor) -> bool:
    """Whether two dense tensors of one shape have their elements in the same order in memory."""
    # The strides of dimensions of size 1 say nothing, so that equal strides are not the only case.
    return tensor.stride() == like.stride() or (tensor.is_contiguous() and like.is_contiguous())


def in_order_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of `tensor` with the strides of `like`, which has its shape."""
    return torch.empty_strided(like.size(), like.stride(), dtype=tensor.dtype, device=like.device).copy_(tensor)


def state_tensor(like: Tensor, dtype: torch.dtype, part: str) -> Tensor:
    """A tensor of zeros for a part of the state, with the shape, strides and device of the dense tensor `like`."""
    itemsize = dtype.itemsize
    numel = like.numel()
    if like.device.type != "cpu" or numel * itemsize < _LARGE:
        return torch.zeros(numel, dtype=dtype, device=like.device).as_strided(like.size(), like.stride())
    memory = torch.zeros(numel + _PERIOD // itemsize, dtype=dtype, device=like.device)
    place = (STATE_PARTS[part] + 1) * _STAGGER // _CACHE_LINE * _CACHE_LINE
    offset = (place - memory.data_ptr()) % _PERIOD // itemsize
    return memory.as_strided(like.size(), like.stride(), offset)
