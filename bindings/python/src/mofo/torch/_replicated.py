"""DTensors that are replicated: every process has the whole tensor, and steps its own copy of it."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def is_dtensor(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which there is none as long as its module has not been imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_replicated(tensor: Any) -> bool:
    """Whether a DTensor is whole in every process."""
    return all(placement.is_replicate() for placement in tensor.placements)


def plain(tensor: Any) -> Tensor:
    """The tensor itself, or what a DTensor stands for as a plain tensor: its own memory if it is replicated.

    Gradients may be sums that are still to be made over all processes: then this waits for them.
    """
    if not is_dtensor(tensor):
        return tensor  # type: ignore[no-any-return]
    whole: Tensor = (tensor.to_local() if is_replicated(tensor) else tensor.full_tensor()).detach()
    return whole
