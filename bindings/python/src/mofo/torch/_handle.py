"""A library optimizer for the tensors of one device that share their settings."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch

from .. import _declarations as c
from .._handle import Handle
from .._library import library
from ._settings import HandleSettings, StepSettings

_MAX_LISTS = 64
_MAX_REMOVED = 1024


class DeviceHandle:
    """The calls that a step needs; pointers are integers."""

    def __init__(self, settings: HandleSettings, device: torch.device) -> None:
        options = c.COptions()
        self.device = device
        self._set_up(options, settings)
        self._handle = Handle(options)
        self._check = self._handle.library.check
        self._pointer = self._handle.pointer
        self._functions = self._handle.library.functions
        self._bind = self._functions.mofo_bind_tensor
        self._args = c.CStepArgs()
        self._check(self._functions.mofo_step_args_init(self._args, ctypes.sizeof(self._args)))
        self._report = c.CStepReport()
        if device.type != "cuda":
            self._args.report = ctypes.pointer(self._report)
            self._args.report_size = ctypes.sizeof(self._report)
        self._lists: dict[tuple[int, ...], ctypes.Array[ctypes.c_uint64]] = {}
        self.num_tensors = 0
        self._added = 0

    def _set_up(self, options: c.COptions, settings: HandleSettings) -> None:
        loaded = library()
        loaded.check(loaded.functions.mofo_options_init(options, ctypes.sizeof(options)))
        if self.device.type == "cuda":
            options.device = c.MOFO_DEVICE_CUDA
            options.device_index = self.device.index
        options.filter = settings.filter
        options.weight_decay_scope = settings.weight_decay_scope
        options.state_dtype = settings.state_dtype
        options.master_weights = settings.master_weights
        options.rounding = settings.rounding
        options.seed = settings.seed
        options.num_threads = settings.num_threads

    @property
    def is_worn(self) -> bool:
        """Whether it has seen so many tensors come and go that a new one is better: the library keeps their places."""
        return self._added - self.num_tensors > _MAX_REMOVED

    def add(
        self,
        *,
        name: str,
        numel: int,
        num_blocks: int,
        param_dtype: int,
        grad_dtype: int,
        param: int,
        grad: int | None,
        step_count: int,
        exp_avg: int,
        exp_avg_sq: int,
        master: int | None,
    ) -> int:
        """The index of the new tensor, whose state is the memory at these addresses."""
        tensor = c.CTensor()
        self._check(self._functions.mofo_tensor_init(tensor, ctypes.sizeof(tensor)))
        tensor.name = name.encode()
        tensor.numel = numel
        tensor.num_blocks = num_blocks
        tensor.param_dtype = param_dtype
        tensor.grad_dtype = grad_dtype
        tensor.param = param
        tensor.grad = grad
        tensor.step_count = step_count
        tensor.exp_avg = exp_avg
        tensor.exp_avg_sq = exp_avg_sq
        tensor.master = master
        index = ctypes.c_uint64()
        self._check(self._functions.mofo_add_tensor(self._pointer, tensor, index))
        self.num_tensors += 1
        self._added += 1
        return index.value

    def remove(self, index: int) -> None:
        self._check(self._functions.mofo_remove_tensor(self._pointer, index))
        self.num_tensors -= 1

    def bind(self, index: int, param: int, grad: int | None) -> None:
        status: int = self._bind(self._pointer, index, param, grad)
        if status:
            self._check(status)

    def set_step_count(self, index: int, step_count: int) -> None:
        self._check(self._functions.mofo_set_step_count(self._pointer, index, step_count))

    def step_count(self, index: int) -> int:
        """How many steps the library has counted."""
        info = c.CTensorInfo()
        self._check(self._functions.mofo_tensor_state(self._pointer, index, info, ctypes.sizeof(info)))
        count: int = info.step_count
        return count

    def step(self, indices: Sequence[int], settings: StepSettings) -> int:
        """Steps these tensors; on CUDA on the current stream, without waiting. How many entries have moments that are
        not finite; on CUDA nobody knows, and it is 0."""
        args = self._args_for(indices)
        args.learning_rate = settings.learning_rate
        args.beta1 = settings.beta1
        args.beta2 = settings.beta2
        args.epsilon = settings.epsilon
        args.weight_decay = settings.weight_decay
        args.update_fraction = settings.update_fraction
        args.grad_scale = settings.grad_scale
        self._check(self._functions.mofo_step(self._pointer, args))
        nonfinite: int = self._report.entries_nonfinite
        return nonfinite

    def has_finite_grads(self, indices: Sequence[int]) -> bool:
        """Whether no gradient of these tensors holds a NaN or an infinity; on CUDA waits for the current stream."""
        args = self._args_for(indices)
        args.grad_scale = 1.0
        norm = ctypes.c_double()
        self._check(self._functions.mofo_grad_norm(self._pointer, args, norm))
        return math.isfinite(norm.value)

    def _args_for(self, indices: Sequence[int]) -> c.CStepArgs:
        """The arguments of a call for these tensors, on CUDA on the current stream."""
        key = tuple(indices)
        tensors = self._lists.get(key)
        if tensors is None:
            if len(self._lists) == _MAX_LISTS:
                self._lists.clear()
            tensors = self._lists[key] = (ctypes.c_uint64 * len(key))(*key)
        args = self._args
        args.tensors = tensors
        args.num_tensors = len(key)
        if self.device.type == "cuda":
            args.stream = torch.cuda.current_stream(self.device).cuda_stream
        return args

    def destroy(self) -> None:
        self._handle.destroy()
