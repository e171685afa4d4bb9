"""What needs no optimizer: sizes, whether there is CUDA, the library's version."""

from __future__ import annotations

import ctypes

from . import _arguments
from ._arguments import DTYPES
from ._declarations import CStateSizes, CTensor
from ._library import library
from ._options import Options
from ._results import StateSizes


def state_size(
    numel: int,
    *,
    dtype: str = "f32",
    num_blocks: int = 1,
    update_fraction: float | None = None,
    exp_avg: bool = False,
    exp_avg_sq: bool = False,
    master: bool = False,
    options: Options | None = None,
) -> StateSizes:
    """The memory that a tensor will need in an optimizer with these options, before anything is allocated.

    `exp_avg`, `exp_avg_sq` and `master` say whether the caller brings the memory for them.
    """
    loaded = library()
    tensor, sizes = CTensor(), CStateSizes()
    loaded.check(loaded.functions.mofo_tensor_init(tensor, ctypes.sizeof(tensor)))
    tensor.numel = _arguments.count("numel", numel)
    tensor.num_blocks = _arguments.count("num_blocks", num_blocks)
    tensor.param_dtype = _arguments.choice("dtype", dtype, DTYPES)
    tensor.update_fraction = _arguments.real_or_inherit("update_fraction", update_fraction)
    # Only whether they are NULL is looked at.
    own = ctypes.addressof(tensor)
    for what, brought in {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "master": master}.items():
        setattr(tensor, what, own if _arguments.flag(what, brought) else None)
    of = (options if options is not None else Options()).to_c()
    loaded.check(loaded.functions.mofo_state_size(of, tensor, sizes, ctypes.sizeof(sizes)))
    return StateSizes.from_c(sizes)


def cuda_available() -> bool:
    """Whether optimizers for `device="cuda"` can be made here. Why not is what making one says."""
    return bool(library().functions.mofo_cuda_available())


def library_version() -> str:
    """The version of the library that is loaded, "major.minor.patch"."""
    return library().version
