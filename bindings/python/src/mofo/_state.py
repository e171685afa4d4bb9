"""What the library keeps for a tensor, as arrays of its own memory."""

from __future__ import annotations

import array
import ctypes
from dataclasses import dataclass
from typing import Any

from ._arguments import DTYPE_NAMES, ITEM_SIZES
from ._declarations import CTensorInfo
from ._handle import Handle

_FORMATS = ("f", "e", "H")
_NUMPY_TYPES = ("float32", "float16", "uint16")
_TYPESTRS = ("<f4", "<f2", "<u2")


class DeviceArray:
    """Memory of a GPU, for whoever knows `__cuda_array_interface__` (CuPy, PyTorch, Numba)."""

    def __init__(self, address: int, numel: int, dtype: int, readonly: bool) -> None:
        self.address = address
        self.numel = numel
        self.dtype = DTYPE_NAMES[dtype]
        self.__cuda_array_interface__ = {
            "shape": (numel,),
            "typestr": _TYPESTRS[dtype],
            "data": (address, readonly),
            "version": 3,
        }


@dataclass(frozen=True)
class TensorState:
    """What the library keeps for a tensor. Nothing is copied: the arrays are its memory.

    - exp_avg, exp_avg_sq: the moments, `numel` entries of `state_dtype`; those of bf16 as uint16.
    - master: the f32 master copy, or None.
    - thresholds: `num_blocks` f32, read-only: each block's threshold in its last step, of what the filter looks at.
    - step_count: steps taken so far.

    The arrays are NumPy's where it is installed, else memoryviews; on CUDA they are `DeviceArray`s. Read and write them
    between calls only. The optimizer's memory is freed when the last of them is gone, even if it is closed before; and
    while there is one, its tensor cannot be removed.
    """

    name: str
    index: int
    numel: int
    num_blocks: int
    step_count: int
    exp_avg: Any
    exp_avg_sq: Any
    master: Any
    thresholds: Any
    param_dtype: str
    grad_dtype: str
    state_dtype: str


def tensor_state(handle: Handle, index: int, info: CTensorInfo, device: str, owners: tuple[object, ...]) -> TensorState:
    """From the C struct. `owners` are what the caller's own buffers of the state belong to."""

    def view(pointer: Any, numel: int, dtype: int, readonly: bool = False) -> Any:
        # NULL for what has no entries.
        address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
        if device == "cuda":
            on_device = DeviceArray(address, numel, dtype, readonly)
            handle.lend(index, on_device)
            return on_device
        memory = handle.memory(index, address, numel * ITEM_SIZES[dtype])
        memory._owners = owners  # type: ignore[attr-defined]
        return _view(memory, dtype, readonly)

    return TensorState(
        name=info.name.decode(),
        index=index,
        numel=info.numel,
        num_blocks=info.num_blocks,
        step_count=info.step_count,
        exp_avg=view(info.exp_avg, info.numel, info.state_dtype),
        exp_avg_sq=view(info.exp_avg_sq, info.numel, info.state_dtype),
        master=view(info.master, info.numel, 0) if info.master else None,
        thresholds=view(info.thresholds, info.num_blocks, 0, readonly=True),
        param_dtype=DTYPE_NAMES[info.param_dtype],
        grad_dtype=DTYPE_NAMES[info.grad_dtype],
        state_dtype=DTYPE_NAMES[info.state_dtype],
    )


def _view(memory: ctypes.Array[ctypes.c_ubyte], dtype: int, readonly: bool) -> Any:
    view = memoryview(memory)
    if readonly:
        view = view.toreadonly()
    try:
        import numpy
    except ImportError:
        if not view.nbytes:
            # Python casts no view without entries.
            return memoryview(array.array("H" if dtype else "f"))
        return view.cast("B").cast(_FORMATS[dtype])  # type: ignore[call-overload]
    return numpy.frombuffer(view, dtype=_NUMPY_TYPES[dtype])
