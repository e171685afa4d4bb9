"""An optimizer of the library on buffers given by their addresses."""

import ctypes
from ctypes import POINTER, byref, c_uint64, c_void_p
from typing import Any

from libmofo import Library, MemoryInfo, Options, StepArgs, StepReport, TensorDescription, TensorInfo


class Optimizer:
    """`mofo_optimizer`. Keyword arguments set the fields of `mofo_options`."""

    def __init__(self, library: Library, **options: Any) -> None:
        self.library = library
        self.c = library.functions
        fields = Options()
        self.check(self.c.mofo_options_init(byref(fields), ctypes.sizeof(fields)))
        for name, value in options.items():
            assert hasattr(fields, name), name
            setattr(fields, name, value)
        self.handle = c_void_p()
        self.check(self.c.mofo_create(byref(fields), byref(self.handle)))

    def check(self, status: int) -> None:
        self.library.check(status)

    def add(self, name: str, numel: int, **description: Any) -> int:
        """Adds a tensor. Keyword arguments set the fields of `mofo_tensor`."""
        fields = TensorDescription()
        self.check(self.c.mofo_tensor_init(byref(fields), ctypes.sizeof(fields)))
        fields.name = name.encode()
        fields.numel = numel
        for field, value in description.items():
            assert hasattr(fields, field), field
            setattr(fields, field, value)
        index = c_uint64()
        self.check(self.c.mofo_add_tensor(self.handle, byref(fields), byref(index)))
        return index.value

    def arguments(self, report: StepReport | None, stream: int | None = None, **arguments: Any) -> StepArgs:
        """`mofo_step_args`, for many steps. Keyword arguments set its fields."""
        fields = StepArgs()
        self.check(self.c.mofo_step_args_init(byref(fields), ctypes.sizeof(fields)))
        fields.stream = stream
        if report is not None:
            fields.report = ctypes.cast(ctypes.addressof(report), POINTER(StepReport))
            fields.report_size = ctypes.sizeof(StepReport)
        for name, value in arguments.items():
            assert hasattr(fields, name), name
            setattr(fields, name, value)
        return fields

    def step(self, arguments: StepArgs) -> None:
        """Takes a step, or on CUDA launches it."""
        status = self.c.mofo_step(self.handle, byref(arguments))
        if status != 0:
            self.check(status)

    def state(self, index: int) -> TensorInfo:
        info = TensorInfo()
        self.check(self.c.mofo_tensor_state(self.handle, index, byref(info), ctypes.sizeof(info)))
        return info

    def memory(self) -> MemoryInfo:
        info = MemoryInfo()
        self.check(self.c.mofo_memory(self.handle, byref(info), ctypes.sizeof(info)))
        return info

    def close(self) -> None:
        self.c.mofo_destroy(self.handle)
        self.handle = c_void_p()
