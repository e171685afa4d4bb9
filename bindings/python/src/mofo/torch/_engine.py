"""What keeps the library in step with groups, parameters, gradients and state, all of which may change."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn.parameter import UninitializedParameter

from .. import _declarations as c
from .._handle import Turn
from .._torch_memory import address_of, check_storage
from ..errors import Error
from ._checks import check_grad, check_param, overlapping
from ._handle import DeviceHandle
from ._memory import in_order_of, same_order
from ._names import Names
from ._replicated import is_dtensor, plain
from ._settings import DTYPES, GroupSettings, HandleSettings, StepSettings, raw_options, settings_of
from ._state import complete, follow_param, needs_master

# With fewer entries threads are not worth being started.
_SMALL = 1 << 16

_NONE = torch.empty(0, device="cpu")

_CPU = torch.device("cpu")

_Call = tuple[DeviceHandle, StepSettings]


class Row:
    """A parameter, and what the library was told of it. `handle` is None as long as it was told nothing."""

    __slots__ = (
        "added_with",
        "checked_for",
        "device",
        "exp_avg",
        "exp_avg_ptr",
        "exp_avg_sq",
        "exp_avg_sq_ptr",
        "grad_bytes",
        "grad_dtype",
        "grad_ptr",
        "grad_size",
        "handle",
        "index",
        "is_dtensor",
        "master",
        "master_ptr",
        "name",
        "num_blocks",
        "param",
        "param_dtype",
        "param_ptr",
        "plain",
        "shape",
        "state",
        "step",
        "step_cell",
        "step_ptr",
        "steps",
        "stride",
        "version",
    )

    def __init__(self, param: Tensor, name: str) -> None:
        self.param = param
        # What the library steps: the parameter itself, or the memory of a DTensor.
        self.plain = param
        self.is_dtensor = is_dtensor(param)
        self.name = name
        self.handle: DeviceHandle | None = None
        self.index = 0
        self.added_with: object = None
        self.checked_for: object = None
        self.num_blocks = 1
        self.param_dtype: torch.dtype | None = None
        self.param_ptr = 0
        self.grad_ptr: int | None = None
        self.grad_dtype: torch.dtype | None = None
        self.grad_size = 0
        self.grad_bytes = 0
        self.device = _CPU
        self.shape = torch.Size()
        self.stride: tuple[int, ...] = ()
        self.version = 0
        self.state: dict[str, Any] | None = None
        self.exp_avg = _NONE
        self.exp_avg_ptr = 0
        self.exp_avg_sq = _NONE
        self.exp_avg_sq_ptr = 0
        self.master: Tensor | None = None
        self.master_ptr = 0
        self.step = _NONE
        self.step_ptr = 0
        self.step_cell = ctypes.c_int64()
        self.steps = 0

    def knows_state(self, state: dict[str, Any] | None) -> bool:
        """Whether this is the state that the library works on, in the same memory."""
        if state is not self.state or state is None:
            return False
        master = self.master
        if master is not None and master.data_ptr() != self.master_ptr:
            return False
        return (
            state.get("exp_avg") is self.exp_avg
            and self.exp_avg.data_ptr() == self.exp_avg_ptr
            and state.get("exp_avg_sq") is self.exp_avg_sq
            and self.exp_avg_sq.data_ptr() == self.exp_avg_sq_ptr
            and state.get("step") is self.step
            and self.step.data_ptr() == self.step_ptr
            and state.get("master") is master
        )

    def detach(self) -> None:
        """Takes the parameter out of the library. Its state stays: it is the optimizer's."""
        if self.handle is not None:
            self.handle.remove(self.index)
            self.handle = None
            self.grad_ptr = None

    def release(self) -> None:
        """Takes the parameter out of the library and lets go of its state, which the optimizer may have dropped."""
        self.detach()
        self.state = self.master = None
        self.exp_avg = self.exp_avg_sq = self.step = _NONE
        self.param_dtype = None
        self.step_cell = ctypes.c_int64()


class Group:
    """A parameter group as it was last seen."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.raw: tuple[Any, ...] | None = None
        self.settings: GroupSettings | None = None
        # Another object whenever something has changed that parameters and their state are checked for, ...
        self.checked_for: object = None
        # ... or that the library is told when a tensor is added.
        self.added_with: object = None

    def refresh(self, group: Mapping[str, Any], num_threads: int | None) -> GroupSettings:
        raw = raw_options(group, num_threads)
        if self.settings is None or raw != self.raw:
            settings = settings_of(raw, len(group["params"]))
            before = self.settings
            if before is None or _checked(before) != _checked(settings):
                self.checked_for = object()
            if before is None or before.handle != settings.handle:
                self.added_with = object()
            self.settings, self.raw = settings, raw
        return self.settings


def _checked(settings: GroupSettings) -> tuple[Any, ...]:
    return settings.state_dtype, settings.handle.master_weights, settings.num_blocks


class Engine:
    """The library optimizers behind a `MoFO`. It is built anew after loading, copying and pickling."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._groups: list[Group] = []
        # The newest of its kind; older ones may still have tensors.
        self._handle_for: dict[tuple[HandleSettings, torch.device], DeviceHandle] = {}
        self._handles: list[DeviceHandle] = []
        self._turn = Turn()
        self._params_moved = False
        self._measured: list[HandleSettings] | None = None
        self._entries: dict[HandleSettings, int] = {}
        self.frozen: str | None = None
        """The first parameter in which entries were seen that never move again, their moments not being finite."""

    def step(
        self,
        groups: list[dict[str, Any]],
        states: Mapping[Tensor, dict[str, Any]],
        num_threads: int | None,
        skip_nonfinite: bool,
    ) -> str | None:
        """Steps every parameter that has a gradient. Everything is checked before the first parameter changes.

        With `skip_nonfinite`, nothing is stepped if a gradient holds a NaN or an infinity, and the name of its
        parameter is returned.
        """
        with self._turn.taken():
            try:
                copies: list[Tensor] = []
                calls = self._prepare(groups, states, copies, num_threads)
                if self._params_moved:
                    self._check_overlaps()
                self._check_capture(calls)
                if skip_nonfinite:
                    nonfinite = _nonfinite(calls)
                    if nonfinite is not None:
                        return nonfinite
                for (handle, settings), rows in calls.items():
                    self._call(handle, rows, settings)
            except Exception:
                raise
            except BaseException:
                # Ctrl-C comes between any two lines. What was being told to the library is told anew at the next step.
                self._forget()
                raise
        return None

    def _call(self, handle: DeviceHandle, rows: list[Row], settings: StepSettings) -> None:
        """A call of the library, after which the states count the steps that it counts, even if it is interrupted."""
        try:
            nonfinite = handle.step([row.index for row in rows], settings)
            for row in rows:
                _count_change(row)
                if row.master is not None:
                    row.version = row.plain._version
                row.steps += 1
                row.step_cell.value = row.steps
            if nonfinite and self.frozen is None:
                self.frozen = next((row.name for row in rows if not _has_finite_moments(row)), rows[0].name)
        except BaseException:
            for row in rows:
                row.steps = handle.step_count(row.index)
                if row.step_cell.value != row.steps:
                    _count_change(row)
                    row.step_cell.value = row.steps
            raise

    def _forget(self) -> None:
        """Frees the library's optimizers. All that counts is in the state, from which the next step makes them anew."""
        self._groups, self._handles, self._handle_for = [], [], {}

    def _prepare(
        self,
        groups: list[dict[str, Any]],
        states: Mapping[Tensor, dict[str, Any]],
        copies: list[Tensor],
        num_threads: int | None,
    ) -> dict[_Call, list[Row]]:
        """Brings the library up to date, and says which calls make the step."""
        # All options before all tensors: a schedule gone wrong must not leave half of them in other handles.
        self._follow_params(groups)
        settings_of_groups = [known.refresh(group, num_threads) for known, group in zip(self._groups, groups)]
        self._measure(settings_of_groups)
        calls: dict[_Call, list[Row]] = {}
        strided = torch.strided
        for known, settings in zip(self._groups, settings_of_groups):
            checked_for, added_with = known.checked_for, known.added_with
            call_of: DeviceHandle | None = None
            for position, row in enumerate(known.rows):
                param = row.param
                grad = param.grad
                state = states.get(param)
                if grad is None:
                    if row.state is not None:
                        self._rest(row, state)
                    continue
                if row.is_dtensor:
                    param = row.plain = plain(param)
                    # A gradient that is still to be summed over processes is summed into new memory.
                    grad = plain(grad)
                    copies.append(grad)
                # The common case, spelt out: it is most of what a step costs in Python.
                if not (
                    row.handle is not None
                    and row.checked_for is checked_for
                    and row.knows_state(state)
                    and param.dtype is row.param_dtype
                    and param.shape == row.shape
                    and param.stride() == row.stride
                    and grad.layout is strided
                    and grad.dtype is row.grad_dtype
                    and grad.device == row.device
                    and grad.shape == row.shape
                    and param.device == row.device
                ):
                    if not self._attach(row, grad, known, position, states):
                        continue
                elif row.added_with is not added_with:
                    self._add(row, known)
                if grad.is_neg():
                    # A view whose numbers lie in memory with the other sign.
                    grad = grad.detach().resolve_neg()
                    copies.append(grad)
                if grad.stride() != row.stride and not same_order(grad, param):
                    grad = in_order_of(grad.detach(), param)
                    copies.append(grad)
                self._bind(row, grad)
                handle = row.handle
                if handle is not call_of:
                    assert handle is not None
                    call_of = handle
                    rows = calls.setdefault((handle, settings.step), [])
                rows.append(row)
        self._destroy_unused()
        return calls

    def _follow_params(self, groups: list[dict[str, Any]]) -> None:
        """Rows for the parameters that the groups have now; parameters that have left are taken out of the library."""
        same = len(groups) == len(self._groups) and all(
            len(known.rows) == len(group["params"])
            and all(row.param is param for row, param in zip(known.rows, group["params"]))
            for known, group in zip(self._groups, groups)
        )
        if same:
            return
        rows = {id(row.param): row for row in self._rows()}
        found: list[Group] = []
        for group, names in zip(groups, self._names.of(groups)):
            known = Group()
            for param, name in zip(group["params"], names):
                row = rows.pop(id(param), None)
                known.rows.append(Row(param, name) if row is None else row)
            found.append(known)
        for row in rows.values():
            row.detach()
        self._groups = found
        self._measured = None
        self._params_moved = True

    def _rows(self) -> Iterable[Row]:
        return chain.from_iterable(known.rows for known in self._groups)

    def _rest(self, row: Row, state: dict[str, Any] | None) -> None:
        """A parameter without a gradient: the library must not look at memory that may be gone."""
        if not row.knows_state(state):
            row.release()
        elif row.handle is not None and row.grad_ptr is not None:
            row.handle.bind(row.index, row.param_ptr, None)
            row.grad_ptr = None

    def _bind(self, row: Row, grad: Tensor) -> None:
        """Tells the library where parameter and gradient lie, and how many steps were made, if that has changed."""
        handle = row.handle
        assert handle is not None
        param = row.plain
        param_ptr = param.data_ptr()
        grad_ptr = grad.data_ptr()
        if param_ptr != row.param_ptr or grad_ptr != row.grad_ptr:
            if param_ptr != row.param_ptr:
                check_param(row.param, row.name, row.num_blocks)
                self._params_moved = True
                # Other memory may hold other values.
                row.version = -1
            # `address_of` in the case that is all right, for it comes with every gradient: the rest was looked at.
            if grad_ptr == 0 or (
                grad_ptr != row.grad_ptr
                and grad.untyped_storage().nbytes() - grad.storage_offset() * row.grad_size < row.grad_bytes
            ):
                check_storage(grad, f"the gradient of parameter {row.name}")
            handle.bind(row.index, param_ptr, grad_ptr)
            row.param_ptr = param_ptr
            row.grad_ptr = grad_ptr
        if row.step_cell.value != row.steps:
            row.steps = row.step_cell.value
            if row.steps < 0:
                raise _negative_step(row)
            handle.set_step_count(row.index, row.steps)
        if row.master is not None and row.version != param._version:
            follow_param(row.master, param)
            row.version = param._version

    def _attach(
        self, row: Row, grad: Tensor, known: Group, position: int, states: Mapping[Tensor, dict[str, Any]]
    ) -> bool:
        """Adds the parameter to the library, anew if it was there; False if there is nothing in it to step."""
        param, settings = row.plain, known.settings
        assert settings is not None
        num_blocks = settings.num_blocks if isinstance(settings.num_blocks, int) else settings.num_blocks[position]
        check_param(row.param, row.name, num_blocks)
        check_grad(grad, param, row.name)
        if row.param_dtype is not None and param.dtype is not row.param_dtype:
            raise Error(
                c.MOFO_ERROR_INVALID_STATE,
                f"parameter {row.name} was of {row.param_dtype} and is now of {param.dtype}: "
                "optimizer.load_state_dict(optimizer.state_dict()) goes on with the new type",
            )
        if param.numel() == 0:
            return False
        state = states[row.param]
        master = needs_master(param, settings.handle.master_weights)
        # What the state no longer has is freed before it is made anew.
        row.release()
        complete(state, param, row.name, settings.state_dtype, master)
        row.state = state
        row.exp_avg, row.exp_avg_sq, row.step = state["exp_avg"], state["exp_avg_sq"], state["step"]
        row.master = state["master"] if master else None
        state_dtype, device, numel = settings.state_dtype, param.device, param.numel()
        of_state = f"in the state of parameter {row.name}"
        row.exp_avg_ptr = address_of(row.exp_avg, f"exp_avg {of_state}", dtype=state_dtype, device=device, numel=numel)
        row.exp_avg_sq_ptr = address_of(
            row.exp_avg_sq, f"exp_avg_sq {of_state}", dtype=state_dtype, device=device, numel=numel
        )
        row.master_ptr = 0
        if row.master is not None:
            row.master_ptr = address_of(
                row.master, f"master {of_state}", dtype=torch.float32, device=device, numel=numel
            )
        row.step_ptr = address_of(row.step, f"step {of_state}", dtype=torch.int64, device=_CPU, numel=1)
        row.step_cell = ctypes.c_int64.from_address(row.step_ptr)
        row.num_blocks = num_blocks
        row.param_dtype, row.grad_dtype = param.dtype, grad.dtype
        row.grad_size = grad.dtype.itemsize
        row.grad_bytes = row.grad_size * param.numel()
        row.shape, row.stride, row.device = param.shape, param.stride(), param.device
        row.version = -1
        row.checked_for = known.checked_for
        self._params_moved = True
        self._add(row, known)
        return True

    def _add(self, row: Row, known: Group) -> None:
        """Adds the parameter to the library with the group's present options; it and its state are sound."""
        settings, param = known.settings, row.plain
        assert settings is not None and row.param_dtype is not None and row.grad_dtype is not None
        row.detach()
        handle = self._handle(settings.handle, row.device)
        row.param_ptr = address_of(
            param, f"parameter {row.name}", dtype=row.param_dtype, device=row.device, numel=row.shape.numel()
        )
        row.steps = row.step_cell.value
        if row.steps < 0:
            raise _negative_step(row)
        row.index = handle.add(
            name=row.name,
            numel=param.numel(),
            num_blocks=row.num_blocks,
            param_dtype=DTYPES[row.param_dtype],
            grad_dtype=DTYPES[row.grad_dtype],
            param=row.param_ptr,
            grad=None,
            step_count=row.steps,
            exp_avg=row.exp_avg_ptr,
            exp_avg_sq=row.exp_avg_sq_ptr,
            master=row.master_ptr or None,
        )
        row.handle = handle
        row.added_with = known.added_with

    def _measure(self, settings_of_groups: list[GroupSettings]) -> None:
        """How many entries the groups have that share a library optimizer, if that may have changed."""
        settings = [each.handle for each in settings_of_groups]
        if settings == self._measured:
            return
        self._measured, self._entries = settings, {}
        for known, handle in zip(self._groups, settings):
            entries = sum(row.param.numel() for row in known.rows if not isinstance(row.param, UninitializedParameter))
            self._entries[handle] = self._entries.get(handle, 0) + entries

    def _handle(self, settings: HandleSettings, device: torch.device) -> DeviceHandle:
        if self._entries.get(settings, _SMALL) < _SMALL:
            # Handing work to other threads costs more than they bring.
            settings = settings._replace(num_threads=1)
        key = (settings, device)
        handle = self._handle_for.get(key)
        if handle is None or handle.is_worn:
            handle = self._handle_for[key] = DeviceHandle(settings, device)
            self._handles.append(handle)
        return handle

    def _destroy_unused(self) -> None:
        unused = [handle for handle in self._handles if handle.num_tensors == 0]
        for handle in unused:
            handle.destroy()
        if unused:
            self._handles = [handle for handle in self._handles if handle not in unused]
            self._handle_for = {key: handle for key, handle in self._handle_for.items() if handle not in unused}

    def _check_overlaps(self) -> None:
        pair = overlapping((row.name, row.param) for row in self._rows() if row.handle is not None)
        if pair is not None:
            raise Error(c.MOFO_ERROR_INVALID_BUFFER, f"parameters {pair[0]} and {pair[1]} share memory")
        self._params_moved = False

    def _check_capture(self, calls: Iterable[_Call]) -> None:
        if any(call[0].device.type == "cuda" for call in calls) and torch.cuda.is_current_stream_capturing():
            raise Error(
                c.MOFO_ERROR_UNSUPPORTED,
                "a step cannot be captured in a CUDA graph from PyTorch: `step` of the state would not count replays",
            )


def _count_change(row: Row) -> None:
    """Autograd then notices that what it has kept for a backward pass is no longer the same."""
    increment_version(row.param)
    if row.is_dtensor:
        increment_version(row.plain)


def _has_finite_moments(row: Row) -> bool:
    return bool(torch.isfinite(row.exp_avg).all() and torch.isfinite(row.exp_avg_sq).all())


def _nonfinite(calls: dict[_Call, list[Row]]) -> str | None:
    """The name of a parameter whose gradient holds a NaN or an infinity, if there is one."""
    for (handle, *_), rows in calls.items():
        if not handle.has_finite_grads([row.index for row in rows]):
            return next((row.name for row in rows if not handle.has_finite_grads([row.index])), rows[0].name)
    return None


def _negative_step(row: Row) -> Error:
    return Error(c.MOFO_ERROR_INVALID_STATE, f"parameter {row.name} has a `step` of {row.steps} in its state")
