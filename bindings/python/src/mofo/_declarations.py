"""What include/mofo.h declares, in ctypes' terms: constants, structs, functions.

Names are the header's, but for the structs' classes. tests/test_header.py compares all of it with the header: every
constant's value, every struct's fields in order, every function's arguments and result.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any

MOFO_ABI_VERSION = 1

MOFO_OK = 0
MOFO_SKIPPED = 1
MOFO_ERROR_INVALID_ARGUMENT = -1
MOFO_ERROR_INVALID_BUFFER = -2
MOFO_ERROR_NOT_FOUND = -3
MOFO_ERROR_INVALID_STATE = -4
MOFO_ERROR_OUT_OF_MEMORY = -5
MOFO_ERROR_UNSUPPORTED = -6
MOFO_ERROR_NOT_FINITE = -7
MOFO_ERROR_PARALLEL_FOR = -8
MOFO_ERROR_CUDA = -9
MOFO_ERROR_CHECKPOINT = -10
MOFO_ERROR_IO = -11
MOFO_ERROR_INTERNAL = -100

MOFO_INHERIT = -1.0

MOFO_DEVICE_CPU = 0
MOFO_DEVICE_CUDA = 1

MOFO_DTYPE_F32 = 0
MOFO_DTYPE_F16 = 1
MOFO_DTYPE_BF16 = 2

MOFO_FILTER_MOMENTUM = 0
MOFO_FILTER_GRADIENT = 1
MOFO_FILTER_UPDATE = 2
MOFO_FILTER_RANDOM = 3

MOFO_WEIGHT_DECAY_SELECTED = 0
MOFO_WEIGHT_DECAY_ALL = 1

MOFO_ROUNDING_NEAREST = 0
MOFO_ROUNDING_STOCHASTIC = 1

MOFO_CPU_TIER_BEST = 0
MOFO_CPU_TIER_PORTABLE = 1
MOFO_CPU_TIER_AVX2 = 2
MOFO_CPU_TIER_AVX512 = 3

Task = ctypes.CFUNCTYPE(None, c_void_p, c_int64)
ParallelFor = ctypes.CFUNCTYPE(None, c_void_p, c_int64, Task, c_void_p)

CALLBACKS: dict[str, Any] = {"mofo_task": Task, "mofo_parallel_for": ParallelFor}


class COptimizer(ctypes.Structure):
    """`mofo_optimizer`, whose fields are the library's own: only pointers to it exist."""


class COptions(ctypes.Structure):
    """`mofo_options`."""

    _fields_ = [
        ("struct_size", c_uint64),
        ("device", c_int32),
        ("device_index", c_int32),
        ("learning_rate", c_double),
        ("beta1", c_double),
        ("beta2", c_double),
        ("epsilon", c_double),
        ("weight_decay", c_double),
        ("weight_decay_scope", c_int32),
        ("filter", c_int32),
        ("update_fraction", c_double),
        ("state_dtype", c_int32),
        ("master_weights", c_int32),
        ("rounding", c_int32),
        ("skip_nonfinite", c_int32),
        ("seed", c_uint64),
        ("max_grad_norm", c_double),
        ("num_threads", c_int32),
        ("cpu_tier", c_int32),
        ("parallel_for", ParallelFor),
        ("parallel_for_ctx", c_void_p),
    ]


class CTensor(ctypes.Structure):
    """`mofo_tensor`."""

    _fields_ = [
        ("struct_size", c_uint64),
        ("name", c_char_p),
        ("numel", c_uint64),
        ("num_blocks", c_uint64),
        ("param_dtype", c_int32),
        ("grad_dtype", c_int32),
        ("param", c_void_p),
        ("grad", c_void_p),
        ("update_fraction", c_double),
        ("weight_decay", c_double),
        ("learning_rate_scale", c_double),
        ("step_count", c_uint64),
        ("exp_avg", c_void_p),
        ("exp_avg_sq", c_void_p),
        ("master", c_void_p),
    ]


class CStateSizes(ctypes.Structure):
    """`mofo_state_sizes`."""

    _fields_ = [
        ("exp_avg", c_uint64),
        ("exp_avg_sq", c_uint64),
        ("master", c_uint64),
        ("allocated", c_uint64),
        ("scratch", c_uint64),
    ]


class CTensorInfo(ctypes.Structure):
    """`mofo_tensor_info`."""

    _fields_ = [
        ("name", c_char_p),
        ("numel", c_uint64),
        ("num_blocks", c_uint64),
        ("step_count", c_uint64),
        ("exp_avg", c_void_p),
        ("exp_avg_sq", c_void_p),
        ("master", POINTER(c_float)),
        ("thresholds", POINTER(c_float)),
        ("param_dtype", c_int32),
        ("grad_dtype", c_int32),
        ("state_dtype", c_int32),
        ("reserved", c_int32),
    ]


class CStepReport(ctypes.Structure):
    """`mofo_step_report`."""

    _fields_ = [
        ("grad_norm", c_double),
        ("entries", c_uint64),
        ("entries_selected", c_uint64),
        ("skipped", c_int32),
        ("status", c_int32),
        ("blocks_estimated", c_uint64),
        ("estimates_failed", c_uint64),
        ("tensors", c_uint64),
        ("entries_nonfinite", c_uint64),
    ]


class CStepArgs(ctypes.Structure):
    """`mofo_step_args`."""

    _fields_ = [
        ("struct_size", c_uint64),
        ("learning_rate", c_double),
        ("update_fraction", c_double),
        ("grad_scale", c_double),
        ("grad_norm", c_double),
        ("tensors", POINTER(c_uint64)),
        ("num_tensors", c_uint64),
        ("stream", c_void_p),
        ("report", POINTER(CStepReport)),
        ("report_size", c_uint64),
        ("device_learning_rate", POINTER(c_double)),
        ("beta1", c_double),
        ("beta2", c_double),
        ("epsilon", c_double),
        ("weight_decay", c_double),
        ("device_beta1", POINTER(c_double)),
        ("device_beta2", POINTER(c_double)),
        ("device_epsilon", POINTER(c_double)),
        ("device_weight_decay", POINTER(c_double)),
    ]


class CLoadReport(ctypes.Structure):
    """`mofo_load_report`."""

    _fields_ = [
        ("tensors_loaded", c_uint64),
        ("tensors_missing", c_uint64),
        ("tensors_ignored", c_uint64),
    ]


class CLoadArgs(ctypes.Structure):
    """`mofo_load_args`."""

    _fields_ = [
        ("struct_size", c_uint64),
        ("partial", c_int32),
        ("reserved", c_int32),
        ("report", POINTER(CLoadReport)),
        ("report_size", c_uint64),
        ("loaded", POINTER(c_uint8)),
        ("num_loaded", c_uint64),
    ]


class CMemoryInfo(ctypes.Structure):
    """`mofo_memory_info`."""

    _fields_ = [
        ("state", c_uint64),
        ("caller_state", c_uint64),
        ("scratch", c_uint64),
        ("bookkeeping", c_uint64),
        ("num_tensors", c_uint64),
        ("entries", c_uint64),
    ]


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "mofo_options": COptions,
    "mofo_tensor": CTensor,
    "mofo_state_sizes": CStateSizes,
    "mofo_tensor_info": CTensorInfo,
    "mofo_step_report": CStepReport,
    "mofo_step_args": CStepArgs,
    "mofo_memory_info": CMemoryInfo,
    "mofo_load_report": CLoadReport,
    "mofo_load_args": CLoadArgs,
}

OptimizerPointer = POINTER(COptimizer)

FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "mofo_version": (c_char_p, []),
    "mofo_abi_version": (c_uint32, []),
    "mofo_cuda_available": (c_int32, []),
    "mofo_status_name": (c_char_p, [c_int32]),
    "mofo_last_error": (c_char_p, []),
    "mofo_options_init": (c_int32, [POINTER(COptions), c_uint64]),
    "mofo_tensor_init": (c_int32, [POINTER(CTensor), c_uint64]),
    "mofo_step_args_init": (c_int32, [POINTER(CStepArgs), c_uint64]),
    "mofo_create": (c_int32, [POINTER(COptions), POINTER(OptimizerPointer)]),
    "mofo_destroy": (None, [OptimizerPointer]),
    "mofo_add_tensor": (c_int32, [OptimizerPointer, POINTER(CTensor), POINTER(c_uint64)]),
    "mofo_remove_tensor": (c_int32, [OptimizerPointer, c_uint64]),
    "mofo_find_tensor": (c_int32, [OptimizerPointer, c_char_p, POINTER(c_uint64)]),
    "mofo_bind_tensor": (c_int32, [OptimizerPointer, c_uint64, c_void_p, c_void_p]),
    "mofo_state_size": (c_int32, [POINTER(COptions), POINTER(CTensor), POINTER(CStateSizes), c_uint64]),
    "mofo_tensor_state": (c_int32, [OptimizerPointer, c_uint64, POINTER(CTensorInfo), c_uint64]),
    "mofo_set_step_count": (c_int32, [OptimizerPointer, c_uint64, c_uint64]),
    "mofo_step": (c_int32, [OptimizerPointer, POINTER(CStepArgs)]),
    "mofo_wait": (c_int32, [OptimizerPointer]),
    "mofo_grad_norm": (c_int32, [OptimizerPointer, POINTER(CStepArgs), POINTER(c_double)]),
    "mofo_memory": (c_int32, [OptimizerPointer, POINTER(CMemoryInfo), c_uint64]),
    "mofo_cpu_tier": (c_int32, [OptimizerPointer]),
    "mofo_save": (c_int32, [OptimizerPointer, c_char_p]),
    "mofo_load": (c_int32, [OptimizerPointer, c_char_p]),
    "mofo_load_args_init": (c_int32, [POINTER(CLoadArgs), c_uint64]),
    "mofo_load_with": (c_int32, [OptimizerPointer, c_char_p, POINTER(CLoadArgs)]),
    "mofo_save_size": (c_int32, [OptimizerPointer, POINTER(c_uint64)]),
    "mofo_save_to_memory": (c_int32, [OptimizerPointer, c_void_p, c_uint64, POINTER(c_uint64)]),
    "mofo_load_from_memory": (c_int32, [OptimizerPointer, c_void_p, c_uint64]),
    "mofo_load_from_memory_with": (c_int32, [OptimizerPointer, c_void_p, c_uint64, POINTER(CLoadArgs)]),
}
"""Of each function its result and its arguments."""
