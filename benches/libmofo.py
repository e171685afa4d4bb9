"""The part of mofo's C API that a step needs, as include/mofo.h declares it, through ctypes."""

import ctypes
import re
from ctypes import POINTER, c_char_p, c_double, c_int32, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

MOFO_ABI_VERSION = 1
MOFO_DEVICE_CPU = 0
MOFO_DEVICE_CUDA = 1
MOFO_DTYPE_F32 = 0
MOFO_DTYPE_F16 = 1
MOFO_DTYPE_BF16 = 2
MOFO_ROUNDING_NEAREST = 0
MOFO_ROUNDING_STOCHASTIC = 1
MOFO_CPU_TIER_BEST = 0
MOFO_CPU_TIER_PORTABLE = 1
MOFO_CPU_TIER_AVX2 = 2
MOFO_CPU_TIER_AVX512 = 3

CPU_TIERS = {
    MOFO_CPU_TIER_BEST: "best",
    MOFO_CPU_TIER_PORTABLE: "portable",
    MOFO_CPU_TIER_AVX2: "avx2",
    MOFO_CPU_TIER_AVX512: "avx512",
}


class Options(ctypes.Structure):
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
        ("parallel_for", c_void_p),
        ("parallel_for_ctx", c_void_p),
    ]


class TensorDescription(ctypes.Structure):
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


class TensorInfo(ctypes.Structure):
    """`mofo_tensor_info`."""

    _fields_ = [
        ("name", c_char_p),
        ("numel", c_uint64),
        ("num_blocks", c_uint64),
        ("step_count", c_uint64),
        ("exp_avg", c_void_p),
        ("exp_avg_sq", c_void_p),
        ("master", c_void_p),
        ("thresholds", c_void_p),
        ("param_dtype", c_int32),
        ("grad_dtype", c_int32),
        ("state_dtype", c_int32),
        ("reserved", c_int32),
    ]


class StepReport(ctypes.Structure):
    """`mofo_step_report`."""

    _fields_ = [
        ("grad_norm", c_double),
        ("entries", c_uint64),
        ("entries_selected", c_uint64),
        ("skipped", c_int32),
        ("status", c_int32),
        ("blocks_estimated", c_uint64),
        ("estimates_failed", c_uint64),
    ]


class StepArgs(ctypes.Structure):
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
        ("report", POINTER(StepReport)),
        ("report_size", c_uint64),
        ("device_learning_rate", c_void_p),
    ]


class MemoryInfo(ctypes.Structure):
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
    "mofo_options": Options,
    "mofo_tensor": TensorDescription,
    "mofo_tensor_info": TensorInfo,
    "mofo_step_report": StepReport,
    "mofo_step_args": StepArgs,
    "mofo_memory_info": MemoryInfo,
}


def check_header(path: Path) -> None:
    """Raises an error unless the header declares these constants and structs: the same fields, in the same order."""
    header = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    constants = {name: int(value) for name, value in re.findall(r"#define (\w+) (-?\d+)\n", header)}
    for name, value in globals().items():
        if name.startswith("MOFO_") and constants.get(name) != value:
            raise RuntimeError(f"{path} has {constants.get(name)} for {name}, this program has {value}")
    sizes = {"uint64_t": 8, "double": 8, "int32_t": 4, "mofo_parallel_for": 8}
    for name, struct in STRUCTS.items():
        body = re.search(rf"typedef struct {name} {{([^}}]*)}}", header)
        fields = re.findall(r"([\w ]+?)\s*(\*?)\s*(\w+);", body[1]) if body else []
        declared = [(field, 8 if pointer else sizes.get(kind.strip())) for kind, pointer, field in fields]
        here = [(field, ctypes.sizeof(kind)) for field, kind, *_ in struct._fields_]
        if here != declared:
            raise RuntimeError(f"{path} has {declared} for {name}, this program has {here}")


class Library:
    """The functions of libmofo that a step needs, each with its signature."""

    SIGNATURES: ClassVar[dict[str, tuple[Any, list[Any]]]] = {
        "mofo_version": (c_char_p, []),
        "mofo_abi_version": (c_uint32, []),
        "mofo_last_error": (c_char_p, []),
        "mofo_status_name": (c_char_p, [c_int32]),
        "mofo_options_init": (c_int32, [POINTER(Options), c_uint64]),
        "mofo_create": (c_int32, [POINTER(Options), POINTER(c_void_p)]),
        "mofo_destroy": (None, [c_void_p]),
        "mofo_cpu_tier": (c_int32, [c_void_p]),
        "mofo_tensor_init": (c_int32, [POINTER(TensorDescription), c_uint64]),
        "mofo_add_tensor": (c_int32, [c_void_p, POINTER(TensorDescription), POINTER(c_uint64)]),
        "mofo_bind_tensor": (c_int32, [c_void_p, c_uint64, c_void_p, c_void_p]),
        "mofo_tensor_state": (c_int32, [c_void_p, c_uint64, POINTER(TensorInfo), c_uint64]),
        "mofo_step_args_init": (c_int32, [POINTER(StepArgs), c_uint64]),
        "mofo_memory": (c_int32, [c_void_p, POINTER(MemoryInfo), c_uint64]),
        "mofo_cuda_available": (c_int32, []),
        "mofo_step": (c_int32, [c_void_p, POINTER(StepArgs)]),
    }

    def __init__(self, path: Path, header: Path) -> None:
        check_header(header)
        self.functions = ctypes.CDLL(str(path))
        for name, (restype, argtypes) in self.SIGNATURES.items():
            function = getattr(self.functions, name)
            function.restype = restype
            function.argtypes = argtypes
        abi_version = self.functions.mofo_abi_version()
        if abi_version != MOFO_ABI_VERSION:
            raise RuntimeError(f"{path} has ABI version {abi_version}, this program was written for {MOFO_ABI_VERSION}")

    def version(self) -> str:
        version: bytes = self.functions.mofo_version()
        return version.decode()

    def check(self, status: int) -> None:
        """Raises what the library says about a call that did not do all it should."""
        if status != 0:
            name = self.functions.mofo_status_name(status).decode()
            raise RuntimeError(f"{name}: {self.functions.mofo_last_error().decode()}")
