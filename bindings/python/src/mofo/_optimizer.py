"""The optimizer."""

from __future__ import annotations

import ctypes
import enum
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _arguments
from ._buffers import Need, address_of, look_at
from ._declarations import (
    MOFO_ERROR_INVALID_STATE,
    MOFO_ERROR_NOT_FOUND,
    CLoadArgs,
    CLoadReport,
    CMemoryInfo,
    CStepArgs,
    CStepReport,
    CTensorInfo,
)
from ._functions import state_size
from ._handle import Handle, Turn
from ._library import library
from ._options import CPU_TIERS, OptionChanges, Options
from ._results import LAUNCHED, LoadReport, MemoryInfo, StateSizes, StepReport
from ._state import TensorState, tensor_state
from ._tensors import Tensor, address, check_shapes, describe
from .errors import Error

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Keep(enum.Enum):
    """The default of `Optimizer.bind`: leave this buffer bound as it is."""

    KEEP = "as it is"


KEEP = Keep.KEEP


class Optimizer:
    """Takes MoFO steps on the caller's own arrays.

    `Optimizer(learning_rate=1e-4, update_fraction=0.05)`: the keywords are the fields of `Options`, which describes
    them; or `Optimizer(options)`, with keywords for what should differ from them.

    Arrays are NumPy arrays, anything with the buffer protocol (bytearray, array.array, memoryview, mmap), anything with
    `__cuda_array_interface__` for `device="cuda"`, or addresses as integers, for which the caller answers alone. They
    are used where they are, must be contiguous and, but for gradients, writable, and are kept alive as long as they are
    bound. A tensor is named by its name or by its index.

    What the library refuses raises `Error`, and has changed nothing. An argument of a wrong Python type raises
    TypeError. An optimizer is used by one thread at a time: a call during another one raises `Error`; different
    optimizers run in different threads at the same time, since calls let go of Python's global lock. `close`, or
    leaving a `with`, frees it.
    """

    def __init__(self, options: Options | None = None, /, **changes: Unpack[OptionChanges]) -> None:
        self._handle: Handle | None = None
        self._options = replace(options if options is not None else Options(), **changes)
        self._turn = Turn()
        self._tensors: dict[int, Tensor] = {}
        self._indices: dict[str, int] = {}
        self._added = 0
        self._handle = Handle(self._options.to_c())

    @property
    def options(self) -> Options:
        """The settings it was made with."""
        return self._options

    @property
    def tensors(self) -> dict[str, int]:
        """The index of every tensor by its name, in the order of their indices."""
        return dict(self._indices)

    @property
    def closed(self) -> bool:
        """Whether it was closed: every call but `close` is an error then."""
        return self._handle is None

    def add(
        self,
        name: str,
        param: Any = None,
        grad: Any = None,
        *,
        numel: int | None = None,
        dtype: str | None = None,
        grad_dtype: str | None = None,
        num_blocks: int = 1,
        update_fraction: float | None = None,
        weight_decay: float | None = None,
        learning_rate_scale: float = 1.0,
        step_count: int = 0,
        exp_avg: Any = None,
        exp_avg_sq: Any = None,
        master: Any = None,
    ) -> int:
        """Adds a parameter tensor and returns its index; indices count up from 0 and are never used again.

        - name: unique within the optimizer; the key of checkpoints and of the tensor's random bits.
        - param, grad: the arrays, or None: to be bound later; a tensor without a gradient is left alone by steps. A
          gradient has the parameter's shape, or is flat.
        - numel, dtype, grad_dtype: entries and types ("f32", "f16", "bf16"), where the arrays do not tell them:
          addresses tell neither, arrays of bytes and of uint16 not their type. grad_dtype is by default dtype.
        - num_blocks: cuts the tensor into so many equal contiguous blocks, each with its own largest α; divides numel.
        - update_fraction in (0, 1], weight_decay: this tensor's own; None: the optimizer's. Biases and norm weights are
          usually given update_fraction=1; the library never guesses from names.
        - learning_rate_scale: multiplies the learning rate for this tensor.
        - exp_avg, exp_avg_sq, master: the caller's own memory for them, of `state_dtype` (the master copy f32); None:
          the library allocates it. step_count: steps that these moments have already seen; with 0 they start at zero.
        """
        with self._call() as handle:
            state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "master": master}
            c_tensor, tensor = describe(self._options, name, param, grad, numel, dtype, grad_dtype, state)
            c_tensor.num_blocks = _arguments.count("num_blocks", num_blocks)
            c_tensor.update_fraction = _arguments.real_or_inherit("update_fraction", update_fraction)
            c_tensor.weight_decay = _arguments.real_or_inherit("weight_decay", weight_decay)
            c_tensor.learning_rate_scale = _arguments.real("learning_rate_scale", learning_rate_scale)
            c_tensor.step_count = _arguments.count("step_count", step_count)
            index = ctypes.c_uint64()
            handle.library.check(handle.library.functions.mofo_add_tensor(handle.pointer, c_tensor, index))
            self._tensors[index.value] = tensor
            self._indices[name] = index.value
            self._added = index.value + 1
            return index.value

    def bind(self, tensor: str | int, param: Any = KEEP, grad: Any = KEEP) -> None:
        """Binds a tensor to these arrays from now on; what is left out stays bound.

        None as `grad` says that there is no gradient: steps leave the tensor alone. None as `param` unbinds it.
        """
        with self._call() as handle:
            index = self._index(tensor)
            bound = self._tensors[index]
            new_param, new_grad, device = bound.param, bound.grad, self._options.device
            if not isinstance(param, Keep):
                need = Need(f'tensor "{bound.name}": param', device, True, bound.param_dtype, numel=bound.numel)
                new_param = None if param is None else look_at(param, need)
            if not isinstance(grad, Keep):
                need = Need(f'tensor "{bound.name}": grad', device, False, bound.grad_dtype, numel=bound.numel)
                new_grad = None if grad is None else look_at(grad, need)
            if new_grad is not None:
                check_shapes(bound.name, new_param.shape if new_param else bound.shape, new_grad)
            addresses = address(new_param), address(new_grad)
            handle.library.check(handle.library.functions.mofo_bind_tensor(handle.pointer, index, *addresses))
            bound.rebind(new_param, new_grad)

    def remove(self, tensor: str | int) -> None:
        """Removes a tensor and frees what the library allocated for it. Refused while a view of its state is alive."""
        with self._call() as handle:
            index = self._index(tensor)
            name = self._tensors[index].name
            if handle.lent(index):
                raise Error(
                    MOFO_ERROR_INVALID_STATE,
                    f"{name} cannot be removed: arrays that state({name!r}) has given are still in use",
                )
            handle.library.check(handle.library.functions.mofo_remove_tensor(handle.pointer, index))
            handle.forget(index)
            del self._tensors[index], self._indices[name]

    def find(self, name: str) -> int:
        """The index of the tensor of that name."""
        with self._call() as handle:
            index = ctypes.c_uint64()
            encoded = _arguments.text("the name", name)
            handle.library.check(handle.library.functions.mofo_find_tensor(handle.pointer, encoded, index))
            return index.value

    def step(
        self,
        *,
        learning_rate: float | None = None,
        update_fraction: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        epsilon: float | None = None,
        weight_decay: float | None = None,
        grad_scale: float = 1.0,
        grad_norm: float | None = None,
        tensors: Iterable[str | int] | None = None,
        stream: int = 0,
        report: int = 0,
        device_learning_rate: int = 0,
        device_beta1: int = 0,
        device_beta2: int = 0,
        device_epsilon: int = 0,
        device_weight_decay: int = 0,
    ) -> StepReport:
        """Takes one step of all tensors that have a gradient, or of those in `tensors` (each at most once).

        - learning_rate, beta1, beta2, epsilon, and of the tensors that have none of their own update_fraction and
          weight_decay: of this step; None: the optimizer's.
        - grad_scale: multiplies every gradient: 1 / loss scale, 1 / accumulation steps. Finite.
        - grad_norm: the global norm of the gradients, grad_scale included, if it is known; NaN or infinite says that
          some gradient is. None: the library computes it, over the tensors of this call, where it needs it.

        On CUDA, all of them addresses, 0 for none: `stream`, a cudaStream_t; `report`, `REPORT_SIZE` bytes that the
        step will write when it has run; `device_learning_rate`, `device_beta1`, `device_beta2`, `device_epsilon` and
        `device_weight_decay`, doubles to read then. The step is not waited for (`wait` does), and the report that is
        returned knows no more than that it was `launched`.
        """
        with self._call() as handle:
            of_step = {
                "learning_rate": learning_rate,
                "update_fraction": update_fraction,
                "beta1": beta1,
                "beta2": beta2,
                "epsilon": epsilon,
                "weight_decay": weight_decay,
                "grad_norm": grad_norm,
            }
            args, written = self._step_args(of_step, grad_scale, tensors)
            args.stream = _arguments.count("stream", stream) or None
            device_report = _arguments.count("report", report)
            on_cuda = self._options.device == "cuda"
            if device_report and not on_cuda:
                raise _arguments.invalid("report is for steps on CUDA; on the CPU step() returns it")
            for name, where in {
                "device_learning_rate": device_learning_rate,
                "device_beta1": device_beta1,
                "device_beta2": device_beta2,
                "device_epsilon": device_epsilon,
                "device_weight_decay": device_weight_decay,
            }.items():
                setattr(args, name, _pointer(ctypes.c_double, where, name))
            if on_cuda:
                args.report = _pointer(CStepReport, device_report, "report")
            handle.library.check(handle.library.functions.mofo_step(handle.pointer, args))
            return LAUNCHED if on_cuda else StepReport.from_c(written)

    def wait(self) -> None:
        """Waits until the steps that were launched on CUDA have ended. On the CPU there is nothing to wait for."""
        with self._call() as handle:
            handle.library.check(handle.library.functions.mofo_wait(handle.pointer))

    def grad_norm(
        self, *, grad_scale: float = 1.0, tensors: Iterable[str | int] | None = None, stream: int = 0
    ) -> float:
        """The global norm of the gradients, times |grad_scale|; infinite or NaN exactly if some gradient is."""
        with self._call() as handle:
            args, _ = self._step_args({}, grad_scale, tensors)
            args.report, args.report_size = None, 0
            args.stream = _arguments.count("stream", stream) or None
            norm = ctypes.c_double()
            handle.library.check(handle.library.functions.mofo_grad_norm(handle.pointer, args, norm))
            return norm.value

    def state(self, tensor: str | int) -> TensorState:
        """What the library keeps for a tensor: moments, master copy, thresholds, as arrays of its own memory."""
        with self._call() as handle:
            index = self._index(tensor)
            bound = self._tensors[index]
            bound.check_places(state_only=True)
            info = CTensorInfo()
            handle.library.check(
                handle.library.functions.mofo_tensor_state(handle.pointer, index, info, ctypes.sizeof(info))
            )
            return tensor_state(handle, index, info, self._options.device, tuple(bound.state.values()))

    def set_step_count(self, tensor: str | int, step_count: int) -> None:
        """Sets how many steps a tensor's moments have seen; with 0 the next step starts them at zero.

        Otherwise the moments, and the master copy if there is one, are taken as they now lie in memory: write all of
        them through the arrays of `state` first.
        """
        with self._call() as handle:
            index = self._index(tensor)
            number = _arguments.count("step_count", step_count)
            handle.library.check(handle.library.functions.mofo_set_step_count(handle.pointer, index, number))

    def save(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        """Writes a checkpoint: moments, master copies, step counts and the seed. Parameters are the caller's to save.

        A file that is there is replaced as a whole: if anything fails, the old one stays. docs/checkpoints.md has the
        format, which is safetensors.
        """
        with self._saved_state() as handle:
            handle.library.check(handle.library.functions.mofo_save(handle.pointer, _arguments.path(path)))

    def load(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes], *, partial: bool = False) -> LoadReport:
        """Takes the state from a checkpoint, into an optimizer to which the same tensors were added, in any order.

        The seed is taken from it, too; everything else stays as it was set here. The whole file is checked before
        anything is changed. Only if it changes meanwhile the state is lost: steps are refused until a load succeeds.

        With `partial` the checkpoint may have tensors more or fewer than the optimizer, as long as they have some in
        common: those are loaded, others stay as they are or are ignored, and the report tells which.
        """
        with self._saved_state() as handle:
            args = self._load_args(partial)
            where = _arguments.path(path)
            handle.library.check(handle.library.functions.mofo_load_with(handle.pointer, where, args))
            return self._load_report(args)

    def save_to_memory(self) -> bytearray:
        """What `save` would write to a file, as bytes."""
        with self._saved_state() as handle:
            size, written = ctypes.c_uint64(), ctypes.c_uint64()
            handle.library.check(handle.library.functions.mofo_save_size(handle.pointer, size))
            data = bytearray(size.value)
            buffer = (ctypes.c_ubyte * len(data)).from_buffer(data)
            handle.library.check(
                handle.library.functions.mofo_save_to_memory(handle.pointer, buffer, len(data), written)
            )
            return data

    def load_from_memory(self, data: Any, *, partial: bool = False) -> LoadReport:
        """As `load`, from what `save_to_memory` gave or a file holds: bytes or another contiguous buffer."""
        with self._saved_state() as handle, memoryview(data) as view:
            if not view.c_contiguous:
                raise _arguments.invalid("the checkpoint is not contiguous in memory")
            args, load = self._load_args(partial), handle.library.functions.mofo_load_from_memory_with
            handle.library.check(load(handle.pointer, address_of(view), view.nbytes, args))
            return self._load_report(args)

    def state_size(
        self,
        numel: int,
        *,
        dtype: str = "f32",
        num_blocks: int = 1,
        update_fraction: float | None = None,
        exp_avg: bool = False,
        exp_avg_sq: bool = False,
        master: bool = False,
    ) -> StateSizes:
        """What a tensor would need in this optimizer, as by the function `state_size`."""
        with self._call():
            return state_size(
                numel,
                dtype=dtype,
                num_blocks=num_blocks,
                update_fraction=update_fraction,
                exp_avg=exp_avg,
                exp_avg_sq=exp_avg_sq,
                master=master,
                options=self._options,
            )

    def memory(self) -> MemoryInfo:
        """The memory that the optimizer holds."""
        with self._call() as handle:
            info = CMemoryInfo()
            handle.library.check(handle.library.functions.mofo_memory(handle.pointer, info, ctypes.sizeof(info)))
            return MemoryInfo.from_c(info)

    @property
    def cpu_tier(self) -> str:
        """The instruction set of its loops: "portable", "avx2" or "avx512". Raises `Error` on CUDA."""
        with self._call() as handle:
            tier = handle.library.check(handle.library.functions.mofo_cpu_tier(handle.pointer))
            return next(name for name, number in CPU_TIERS.items() if number == tier)

    def close(self) -> None:
        """Frees the optimizer, its state and its threads; the arrays that were bound are not touched.

        Where arrays from `state` are still in use, the state's memory is freed when the last of them is gone. Closing
        twice is fine.
        """
        with self._turn.taken():
            handle, self._handle = self._handle, None
            if handle is not None and not handle.lent():
                handle.destroy()
            self._tensors, self._indices = {}, {}

    def __enter__(self) -> Optimizer:
        if self.closed:
            raise _closed()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._tensors)

    def __repr__(self) -> str:
        if self.closed:
            return "<mofo.Optimizer, closed>"
        return f"<mofo.Optimizer of {len(self)} tensors on {self._options.device}>"

    def __reduce__(self) -> Any:
        raise TypeError("an Optimizer cannot be pickled or copied: save_to_memory() gives its state as bytes")

    @contextmanager
    def _call(self) -> Iterator[Handle]:
        """The open handle, for one call."""
        with self._turn.taken():
            if self._handle is None:
                raise _closed()
            yield self._handle

    @contextmanager
    def _saved_state(self) -> Iterator[Handle]:
        """The open handle, for a call that reads or writes the whole state."""
        with self._call() as handle:
            for tensor in self._tensors.values():
                tensor.check_places(state_only=True)
            yield handle

    def _index(self, tensor: str | int) -> int:
        if isinstance(tensor, str):
            if tensor not in self._indices:
                raise Error(MOFO_ERROR_NOT_FOUND, f"no tensor is named {tensor!r}")
            return self._indices[tensor]
        index = _arguments.count("the index of a tensor", tensor)
        if index not in self._tensors:
            raise Error(MOFO_ERROR_NOT_FOUND, f"no tensor has index {index}")
        return index

    def _load_args(self, partial: bool) -> CLoadArgs:
        """The arguments of a load, with room for what it will find."""
        loaded, args, report = library(), CLoadArgs(), CLoadReport()
        loaded.check(loaded.functions.mofo_load_args_init(args, ctypes.sizeof(args)))
        args.partial = _arguments.flag("partial", partial)
        args.report, args.report_size = ctypes.pointer(report), ctypes.sizeof(report)
        # Indices count up; those of tensors that were removed may be the last ones.
        args.num_loaded = self._added
        args.loaded = (ctypes.c_uint8 * args.num_loaded)()
        return args

    def _load_report(self, args: CLoadArgs) -> LoadReport:
        loaded: list[str] = []
        missing: list[str] = []
        for name, index in self._indices.items():
            (loaded if args.loaded[index] else missing).append(name)
        return LoadReport(tuple(loaded), tuple(missing), args.report.contents.tensors_ignored)

    def _step_args(
        self, of_step: dict[str, float | None], grad_scale: float, tensors: Iterable[str | int] | None
    ) -> tuple[CStepArgs, CStepReport]:
        """The arguments of a step whose buffers are where they were, and the report that it will write on the CPU."""
        loaded = library()
        args, report = CStepArgs(), CStepReport()
        loaded.check(loaded.functions.mofo_step_args_init(args, ctypes.sizeof(args)))
        for name, value in of_step.items():
            setattr(args, name, _arguments.real_or_inherit(name, value))
        args.grad_scale = _arguments.real("grad_scale", grad_scale)
        if tensors is not None:
            if isinstance(tensors, (str, bytes)):
                raise TypeError(f"tensors: a list of names or indices is needed, not {tensors!r}")
            indices = [self._index(tensor) for tensor in tensors]
            # At least one, so that the pointer to an empty list is not NULL, which would mean all.
            args.tensors = (ctypes.c_uint64 * max(len(indices), 1))(*indices)
            args.num_tensors = len(indices)
        for bound in self._tensors.values():
            if bound.grad is not None:
                bound.check_places()
        args.report = ctypes.pointer(report)
        args.report_size = ctypes.sizeof(report)
        return args, report


def _closed() -> Error:
    return Error(MOFO_ERROR_INVALID_STATE, "the optimizer was closed")


def _pointer(kind: Any, where: int, what: str) -> Any:
    return ctypes.cast(_arguments.count(what, where), ctypes.POINTER(kind))
