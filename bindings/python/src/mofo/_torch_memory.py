"""Where the elements of PyTorch's tensors lie: the only way from a tensor to an address that the library is given."""

from __future__ import annotations

import torch
from torch import Tensor

from ._declarations import MOFO_ERROR_INVALID_BUFFER
from .errors import Error


def address_of(tensor: Tensor, what: str, *, dtype: torch.dtype, device: torch.device, numel: int) -> int:
    """The address of a tensor's elements, which fill the memory from there on in whatever order of the dimensions.

    Raises `Error` unless the tensor is of this type and size, on this device, dense, and has its memory; `what` names
    it there.
    """
    if tensor.layout is not torch.strided:
        raise _unfit(what, f"is of layout {tensor.layout}, but must be dense")
    if tensor.dtype is not dtype:
        raise _unfit(what, f"is of {tensor.dtype}, but must be of {dtype}")
    if tensor.device != device:
        raise _unfit(what, f"is on {tensor.device}, but must be on {device}")
    if tensor.numel() != numel:
        raise _unfit(what, f"has {tensor.numel()} entries, but must have {numel}")
    if tensor.is_neg() or not is_dense(tensor):
        raise _unfit(what, "is a view with gaps, overlaps or another sign in memory")
    check_storage(tensor, what)
    return tensor.data_ptr()


def check_storage(tensor: Tensor, what: str) -> None:
    """Raises `Error` for a tensor whose elements are not, or no longer, in memory."""
    if tensor.numel() and (tensor.data_ptr() == 0 or not fits_storage(tensor)):
        raise _unfit(what, "has lost its memory: its storage was freed or made smaller")


def fits_storage(tensor: Tensor) -> bool:
    """Whether the storage holds the elements of the dense `tensor`: it may have been made smaller since."""
    end = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    return tensor.untyped_storage().nbytes() >= end


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory without gaps and overlaps, in whatever order of the dimensions."""
    if tensor.is_contiguous():
        return True
    # `empty_like` keeps the strides of exactly these tensors.
    like = torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format)
    return like.stride() == tensor.stride()


def _unfit(what: str, problem: str) -> Error:
    return Error(MOFO_ERROR_INVALID_BUFFER, f"{what} {problem}")
