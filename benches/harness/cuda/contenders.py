"""Who is compared on the device, on gradients that it makes anew before each step."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contender import HYPER_PARAMETERS, Contender
from ..formats import CODES
from ..library import Library, Optimizer
from ..shapes import TensorSpec, numel
from ..torch_optimizers import TopkMofo, adamw
from .machine import Rehearsal, Step

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
CHUNK = 1 << 26
ROW = 4096
SECTOR = 32
"""Bytes that the device reads and writes as a whole."""


def bytes_per_entry(size: int, update_fraction: float) -> float:
    """What a step must move, with parameter, gradient and moments of a size.

    Gradient and moments are read, moments written. A parameter is read and written with its whole sector, if any entry
    of that moves. With an update fraction of 1 that is AdamW.
    """
    return 5 * size + 2 * size * float(1 - (1 - update_fraction) ** (SECTOR / size))


class Gradients:
    """Each tensor an allocation of its own: noise around a mean that stays, of a scale for each row."""

    def __init__(self, machine: Rehearsal, specs: Sequence[TensorSpec], dtype: str) -> None:
        self.specs, self.dtype, self.machine = specs, dtype, machine
        self.options: dict[str, Any] = {"dtype": TYPES[dtype], "device": machine.torch_device}
        self.tensors = self.zeros()
        count = min(CHUNK, max(spec.numel for spec in specs))
        self.mean = torch.randn(count, **self.options).mul_(0.5)
        scale = torch.randn(-(-count // ROW), device=machine.torch_device).mul_(0.5).exp_().mul_(1e-3)
        self.scale = scale.to(TYPES[dtype]).repeat_interleave(ROW)[:count].contiguous()
        self.refresh()

    def zeros(self) -> list[Tensor]:
        return [torch.zeros(spec.numel, **self.options) for spec in self.specs]

    def parameters(self) -> list[Tensor]:
        return [tensor.normal_(std=0.02) for tensor in self.zeros()]

    def refresh(self) -> None:
        for tensor in self.tensors:
            for part in torch.split(tensor, CHUNK):
                count = part.numel()
                part.normal_().add_(self.mean[:count]).mul_(self.scale[:count])


class OnDevice(Contender):
    """Something on the gradients of the device. While it is launched, the device makes them."""

    def __init__(self, name: str, gradients: Gradients, run: Step, update_fraction: float | None = 1.0) -> None:
        size, entries = gradients.tensors[0].element_size(), numel(gradients.specs)
        vectors = sum(spec.numel for spec in gradients.specs if not spec.filtered)
        moved = 2.0 * size  # Of a copy.
        if update_fraction is not None:
            filtered = bytes_per_entry(size, update_fraction)
            moved = filtered + (bytes_per_entry(size, 1.0) - filtered) * vectors / entries
        super().__init__(name, entries, moved)
        self.gradients, self.run = gradients, run
        self.host: list[float] = []

    def load(self, step: int) -> None:
        self.gradients.refresh()

    def step(self) -> None:
        self.run()

    def clock(self) -> float:
        """Seconds of a step on the device; keeps how long the call took."""
        seconds, call = self.gradients.machine.timed(self.run)
        self.host.append(call * 1e6)
        self.about["call_us"] = float(np.median(self.host))
        return seconds


class Mofo:
    """The library on PyTorch's tensors and stream, with moments of its own.

    Moments do not depend on the update fraction, so that steps of several fractions can take turns on one optimizer.
    """

    def __init__(self, library: Library, gradients: Gradients) -> None:
        self.gradients, self.machine = gradients, gradients.machine
        self.parameters = gradients.parameters()
        code = CODES[gradients.dtype]
        device = {"device": self.machine.mofo_device, "device_index": self.machine.torch_device.index or 0}
        self.optimizer = Optimizer(library, state_dtype=code, **device, **HYPER_PARAMETERS)
        for spec, parameter, gradient in zip(gradients.specs, self.parameters, gradients.tensors):
            description = {} if spec.filtered else {"update_fraction": 1.0}
            places = {"param": parameter.data_ptr(), "grad": gradient.data_ptr()}
            types = {"param_dtype": code, "grad_dtype": code, "num_blocks": spec.num_blocks}
            self.optimizer.add(spec.name, spec.numel, **places, **types, **description)

    def close(self) -> None:
        self.machine.settle()
        self.optimizer.close()


class MofoStep(OnDevice):
    """Steps of an optimizer with one update fraction, replayed from a graph if captured."""

    def __init__(self, mofo: Mofo, fraction: float, captured: bool) -> None:
        self.mofo, self.fraction = mofo, fraction
        self.report = mofo.machine.new_report()
        self.arguments = mofo.optimizer.arguments(self.report, update_fraction=fraction)
        name = f"mofo, {'AdamW' if fraction == 1 else f'MoFO {fraction:g}'}" + (", graph" if captured else "")
        super().__init__(name, mofo.gradients, self.launch, fraction)
        self.about = {"alpha": fraction, "blocks_estimated": 0, "estimates_failed": 0}
        if captured:
            self.launch()
            self.run = mofo.machine.capture(self.launch)

    def launch(self) -> None:
        # The stream of a capture is another than that of eager steps.
        self.arguments.stream = self.mofo.machine.stream()
        self.mofo.optimizer.step(ctypes.byref(self.arguments))

    def settle(self) -> None:
        self.check()
        self.about["blocks_estimated"] += self.report.blocks_estimated
        self.about["estimates_failed"] += self.report.estimates_failed
        memory = self.mofo.optimizer.memory()
        state = memory.state + 2 * self.gradients.tensors[0].element_size() * self.entries
        self.about["scratch_share"] = memory.scratch / state

    def check(self) -> None:
        report, least = self.report, sum(spec.selected(self.fraction) for spec in self.gradients.specs)
        if report.status != 0 or report.entries != self.entries:
            raise SystemExit(f"{self.name}: status {report.status}, {report.entries} entries")
        # Entries that tie with a threshold move, too, and bf16 has many.
        if not least <= report.entries_selected <= 1.1 * least + 16:
            raise SystemExit(f"{self.name} moved {report.entries_selected} entries, not {least}")


def pytorch(kind: str, gradients: Gradients, fraction: float, captured: bool) -> OnDevice:
    """PyTorch's AdamW, fused, perhaps replayed from a graph, or MoFO with `torch.topk`."""
    parameters = [torch.nn.Parameter(parameter) for parameter in gradients.parameters()]
    for parameter, gradient in zip(parameters, gradients.tensors):
        parameter.grad = gradient
    if kind == "topk":
        topk = TopkMofo(parameters, [spec.selected(fraction) for spec in gradients.specs])
        return OnDevice(f"PyTorch topk MoFO {fraction:g}", gradients, topk.step, fraction)
    machine = gradients.machine
    optimizer = adamw(parameters, fused=True, capturable=captured and machine.torch_device.type == "cuda")
    if not captured:
        return OnDevice("PyTorch fused AdamW", gradients, optimizer.step)
    optimizer.step()
    return OnDevice("PyTorch fused AdamW, graph", gradients, machine.capture(optimizer.step))


def copy(gradients: Gradients) -> OnDevice:
    """Copies the gradients: what the memory can do, with as many bytes read as written."""
    # A tensor of a size that many have serves all of them.
    targets = {tensor.numel(): torch.empty_like(tensor) for tensor in gradients.tensors}

    def step() -> None:
        for tensor in gradients.tensors:
            targets[tensor.numel()].copy_(tensor)

    return OnDevice("copy", gradients, step, None)
