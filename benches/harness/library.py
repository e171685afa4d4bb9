"""The library through its C API, by the declarations of the Python package in bindings/python."""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, byref
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bindings" / "python" / "src"))

from mofo import _declarations as api  # noqa: E402
from mofo._library import FILE_NAME, Library  # noqa: E402

__all__ = ["ROOT", "TIERS", "Library", "Optimizer", "api", "default_library"]

TIERS = {
    "best": api.MOFO_CPU_TIER_BEST,
    "portable": api.MOFO_CPU_TIER_PORTABLE,
    "avx2": api.MOFO_CPU_TIER_AVX2,
    "avx512": api.MOFO_CPU_TIER_AVX512,
}


def default_library() -> Path:
    """Where cargo puts the library of the optimised build."""
    return ROOT / "target" / "release" / FILE_NAME


class Optimizer:
    """`mofo_optimizer`, on buffers given by their addresses. Keyword arguments set the fields of `mofo_options`."""

    def __init__(self, library: Library, **options: Any) -> None:
        self.library = library
        self.c = library.functions
        self._step = self.c.mofo_step
        fields = self._filled(api.COptions(), self.c.mofo_options_init, options)
        self.handle = api.OptimizerPointer()
        library.check(self.c.mofo_create(byref(fields), byref(self.handle)))

    def _filled(self, fields: Any, init: Any, values: dict[str, Any]) -> Any:
        self.library.check(init(byref(fields), ctypes.sizeof(fields)))
        for name, value in values.items():
            if not hasattr(fields, name):
                raise AttributeError(f"{type(fields).__name__} has no field {name}")
            setattr(fields, name, value)
        return fields

    def add(self, name: str, numel: int, **description: Any) -> int:
        """Adds a tensor. Keyword arguments set the fields of `mofo_tensor`."""
        values = {"name": name.encode(), "numel": numel, **description}
        fields = self._filled(api.CTensor(), self.c.mofo_tensor_init, values)
        index = ctypes.c_uint64()
        self.library.check(self.c.mofo_add_tensor(self.handle, byref(fields), byref(index)))
        return index.value

    def bind(self, index: int, param: int, grad: int) -> None:
        """Names the buffers of a tensor from the next step on."""
        self.library.check(self.c.mofo_bind_tensor(self.handle, index, param, grad))

    def arguments(self, report: api.CStepReport | None, **arguments: Any) -> api.CStepArgs:
        """`mofo_step_args`, for many steps. Keyword arguments set its fields."""
        if report is not None:
            arguments["report"] = ctypes.cast(ctypes.addressof(report), POINTER(api.CStepReport))
            arguments["report_size"] = ctypes.sizeof(api.CStepReport)
        filled: api.CStepArgs = self._filled(api.CStepArgs(), self.c.mofo_step_args_init, arguments)
        return filled

    def step(self, arguments: Any) -> None:
        """Takes a step, or on CUDA launches it. `arguments`: a reference to what `arguments` returned."""
        status = self._step(self.handle, arguments)
        if status != 0:
            self.library.check(status)

    def memory(self) -> api.CMemoryInfo:
        """Bytes of state and work space."""
        info = api.CMemoryInfo()
        self.library.check(self.c.mofo_memory(self.handle, byref(info), ctypes.sizeof(info)))
        return info

    def tier(self) -> str:
        """The vector instructions that the library chose."""
        number = self.c.mofo_cpu_tier(self.handle)
        return next((name for name, value in TIERS.items() if value == number), str(number))

    def close(self) -> None:
        """Destroys it; what the library allocated for it is gone then."""
        self.c.mofo_destroy(self.handle)
        self.handle = api.OptimizerPointer()
