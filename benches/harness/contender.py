"""What is compared: things that make a step, over and over, on buffers of their own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass, field, replace
from typing import Any

from .formats import ARRAYS, CODES, Format
from .gradients import Gradients, weights
from .library import TIERS, Library, Optimizer, api
from .memory import Array, Role, addresses, allocate
from .shapes import TensorSpec, numel

HYPER_PARAMETERS = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0}
"""No decay, as in all scripts of the MoFO authors."""

FORCED = "MOFO_TEST_PATHS"
"""Read by a library with the feature `forced-paths`: which ways a step takes that few gradients take."""


class Contender:
    """Something that makes a step, with the times of its steps."""

    def __init__(self, name: str, entries: int, bytes_per_entry: float | None = None) -> None:
        self.name = name
        self.entries = entries
        self.bytes_per_entry = bytes_per_entry
        self.times: list[float] = []
        """Seconds a step, in each round."""
        self.references: dict[str, Contender] = {}
        """To which others it is compared, by the table's column."""
        self.about: dict[str, Any] = {}
        """What else the table and the file say."""

    def load(self, step: int) -> None:
        """Takes the gradients of that step. Not timed."""

    def step(self) -> None:
        """Makes one step. Timed."""
        raise NotImplementedError

    def settle(self) -> None:
        """Keeps the books after a step. Not timed."""

    def check(self) -> None:
        """Stops the program if the last step did not do what it should."""

    def close(self) -> None:
        """Frees what Python does not."""


@dataclass(frozen=True)
class Buffers:
    """Addresses of each tensor's buffers, and what keeps the memory alive. Moments may be left to the library."""

    param: list[int]
    exp_avg: list[int] | None = None
    exp_avg_sq: list[int] | None = None
    master: list[int] | None = None
    arrays: Any = None

    @staticmethod
    def allocated(tensors: Sequence[TensorSpec], stored: Format, pages: str) -> Buffers:
        """Weights and room for moments, laid out as `memory` says."""
        numels = [tensor.numel for tensor in tensors]
        param = weights(tensors, stored.param, pages)
        moments = [allocate(role, numels, ARRAYS[stored.state], pages) for role in (Role.EXP_AVG, Role.EXP_AVG_SQ)]
        master: list[Array] = allocate(Role.MASTER, numels, ARRAYS["f32"], pages) if stored.masters else []
        arrays = [param, *moments, master]
        return Buffers(*map(addresses, arrays[:3]), addresses(master) if master else None, arrays)


@dataclass(frozen=True)
class Setting:
    """How mofo makes its steps. With an update fraction of 1 it is AdamW."""

    update_fraction: float = 1.0
    format: Format = field(default_factory=Format)
    threads: int = 1
    tier: str = "best"
    options: dict[str, Any] = field(default_factory=dict)
    """Further fields of `mofo_options`."""
    forced: str = ""
    """What MOFO_TEST_PATHS says while it makes a step."""
    step_count: int = 0
    """Steps that the moments have seen already."""

    def of(self, update_fraction: float) -> Setting:
        """The same with another update fraction."""
        return replace(self, update_fraction=update_fraction)


class Mofo(Contender):
    """mofo through its C API, all tensors in one optimizer."""

    def __init__(
        self,
        library: Library,
        name: str,
        tensors: Sequence[TensorSpec],
        gradients: Gradients,
        setting: Setting,
        buffers: Buffers,
    ) -> None:
        super().__init__(name, numel(tensors), setting.format.bytes_per_entry)
        if setting.options.get("max_grad_norm") or setting.options.get("skip_nonfinite"):
            assert self.bytes_per_entry is not None
            self.bytes_per_entry += ARRAYS[setting.format.grad]().itemsize  # The norm reads the gradient once more.
        self.tensors, self.gradients, self.setting, self.buffers = tensors, gradients, setting, buffers
        self.optimizer = Optimizer(
            library,
            **HYPER_PARAMETERS,
            **setting.format.options,
            update_fraction=setting.update_fraction,
            num_threads=setting.threads,
            cpu_tier=TIERS[setting.tier],
            **setting.options,
        )
        for i, tensor in enumerate(tensors):
            self._add(i, tensor)
        self.report = api.CStepReport()
        self.arguments = self.optimizer.arguments(self.report)
        self._reference = byref(self.arguments)
        self.about = {
            "alpha": setting.update_fraction,
            "threads": setting.threads,
            "tier": self.optimizer.tier(),
            "blocks_estimated": 0,
            "estimates_failed": 0,
        }

    def _add(self, i: int, tensor: TensorSpec) -> None:
        buffers, description = self.buffers, {}
        for name in ("exp_avg", "exp_avg_sq", "master"):
            of_tensors = getattr(buffers, name)
            if of_tensors is not None:
                description[name] = of_tensors[i]
        if not tensor.filtered:
            description["update_fraction"] = 1.0
        self.optimizer.add(
            tensor.name,
            tensor.numel,
            num_blocks=tensor.num_blocks,
            param_dtype=CODES[self.setting.format.param],
            grad_dtype=CODES[self.setting.format.grad],
            step_count=self.setting.step_count,
            **description,
        )

    def load(self, step: int) -> None:
        gradients = self.gradients.of_step(step)
        for i, (param, grad) in enumerate(zip(self.buffers.param, gradients)):
            self.optimizer.bind(i, param, grad)
        if self.setting.forced:
            os.environ[FORCED] = self.setting.forced
        else:
            os.environ.pop(FORCED, None)

    def step(self) -> None:
        self.optimizer.step(self._reference)

    def settle(self) -> None:
        self.about["blocks_estimated"] += self.report.blocks_estimated
        self.about["estimates_failed"] += self.report.estimates_failed

    def check(self) -> None:
        expected = sum(tensor.selected(self.setting.update_fraction) for tensor in self.tensors)
        # Entries that tie with a threshold move, too; there are many of them where gradients are bf16. Where few blocks
        # have a gradient, zeros do not move.
        ties = 0.001 if self.gradients.dtype == "f32" and self.setting.format.state == "f32" else 0.2
        most = expected * (1 + ties) + 1
        if not (expected <= self.report.entries_selected or self.setting.step_count) or self.report.entries_selected > most:
            raise SystemExit(f"{self.name} moved {self.report.entries_selected} entries, not {expected}")

    def close(self) -> None:
        self.optimizer.close()
        os.environ.pop(FORCED, None)


class PlainLoop(Contender):
    """AdamW as a plain loop in C: adamw.c, one thread, f32."""

    class Settings(ctypes.Structure):
        """`adamw_settings`."""

        _fields_ = [(name, ctypes.c_double) for name in HYPER_PARAMETERS]  # noqa: RUF012

    def __init__(self, functions: ctypes.CDLL, tensor: TensorSpec, gradients: Gradients, buffers: Buffers) -> None:
        super().__init__("plain loop in C", tensor.numel, 28)
        self.gradients = gradients
        self.buffers = buffers
        assert buffers.exp_avg is not None and buffers.exp_avg_sq is not None
        pointers = [ctypes.c_void_p(part[0]) for part in (buffers.param, buffers.exp_avg, buffers.exp_avg_sq)]
        self._param, self._exp_avg, self._exp_avg_sq = pointers
        self._settings = self.Settings(*HYPER_PARAMETERS.values())
        self._function = functions.adamw_step
        self._function.restype = None
        self._steps = 0
        self._grad = ctypes.c_void_p()
        self._numel = ctypes.c_size_t(tensor.numel)

    def load(self, step: int) -> None:
        self._grad = ctypes.c_void_p(self.gradients.of_step(step)[0])

    def step(self) -> None:
        self._steps += 1
        self._function(
            byref(self._settings), self._steps, self._param, self._grad, self._exp_avg, self._exp_avg_sq, self._numel
        )
