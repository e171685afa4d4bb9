"""What is compared: things that make a step, over and over, on buffers of their own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .formats import ARRAYS, CODES, Format
from .gradients import Gradients, weights
from .library import TIERS, Library, Optimizer, api
from .memory import Allocator, Array, Role, addresses
from .shapes import TensorSpec, numel

HYPER_PARAMETERS = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0}
"""No decay, as in all scripts of the MoFO authors."""

FORCED = "MOFO_TEST_PATHS"
"""Read by a library with the feature `forced-paths`: which ways a step takes that few gradients take."""


class Contender:
    """Something that makes a step, with the times of its steps."""

    def __init__(self, name: str, entries: int, bytes_per_entry: float) -> None:
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
    def allocated(tensors: Sequence[TensorSpec], stored: Format, allocate: Allocator) -> Buffers:
        """Weights and room for moments."""
        numels = [tensor.numel for tensor in tensors]
        param = weights(tensors, stored.param, allocate)
        moments = [allocate(role, numels, ARRAYS[stored.state]) for role in (Role.EXP_AVG, Role.EXP_AVG_SQ)]
        master: list[Array] = allocate(Role.MASTER, numels, ARRAYS["f32"]) if stored.masters else []
        arrays = [param, *moments, master]
        found = [addresses(of_role) for of_role in arrays]
        return Buffers(found[0], found[1], found[2], found[3] or None, arrays)


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
        # The norm reads the gradient once more.
        norm = {"max_grad_norm", "skip_nonfinite"} & setting.options.keys()
        again = np.dtype(ARRAYS[setting.format.grad]).itemsize if norm else 0
        super().__init__(name, numel(tensors), setting.format.bytes_per_entry + again)
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
        self.about = {"alpha": setting.update_fraction, "threads": setting.threads, "tier": self.optimizer.tier()}
        self.about.update(blocks_estimated=0, estimates_failed=0)

    def _add(self, i: int, tensor: TensorSpec) -> None:
        buffers, description = self.buffers, {}
        for name in ("exp_avg", "exp_avg_sq", "master"):
            of_tensors = getattr(buffers, name)
            if of_tensors is not None:
                description[name] = of_tensors[i]
        if not tensor.filtered:
            description["update_fraction"] = 1.0
        stored, steps = self.setting.format, self.setting.step_count
        types = {"param_dtype": CODES[stored.param], "grad_dtype": CODES[stored.grad], "num_blocks": tensor.num_blocks}
        self.optimizer.add(tensor.name, tensor.numel, step_count=steps, **types, **description)

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
        # Entries that tie with a threshold move, too, many of them in bf16. Of sparse gradients, zeros do not.
        exact = self.gradients.dtype == "f32" and self.setting.format.state == "f32"
        least, most = 0 if self.setting.step_count else expected, expected * (1.001 if exact else 1.2) + 1
        if not least <= self.report.entries_selected <= most:
            raise SystemExit(f"{self.name} moved {self.report.entries_selected} entries, not {expected}")

    def close(self) -> None:
        self.optimizer.close()
        os.environ.pop(FORCED, None)


class PlainLoop(Contender):
    """AdamW as a plain loop in C: adamw.c, one thread, f32."""

    def __init__(self, functions: ctypes.CDLL, entries: int, gradients: Gradients, buffers: Buffers) -> None:
        super().__init__("plain loop in C", entries, Format().bytes_per_entry)
        assert buffers.exp_avg is not None and buffers.exp_avg_sq is not None
        self.gradients, self.buffers, self._steps = gradients, buffers, 0
        self._function = functions.adamw_step
        self._settings = (ctypes.c_double * len(HYPER_PARAMETERS))(*HYPER_PARAMETERS.values())
        moments = buffers.exp_avg[0], buffers.exp_avg_sq[0]
        self._param, self._exp_avg, self._exp_avg_sq = map(ctypes.c_void_p, (buffers.param[0], *moments))
        self._entries = ctypes.c_size_t(entries)

    def load(self, step: int) -> None:
        self._grad = ctypes.c_void_p(self.gradients.of_step(step)[0])

    def step(self) -> None:
        self._steps += 1
        buffers = self._param, self._grad, self._exp_avg, self._exp_avg_sq
        self._function(self._settings, self._steps, *buffers, self._entries)
