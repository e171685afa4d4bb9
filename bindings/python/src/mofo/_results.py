"""What calls report."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields

from ._declarations import MOFO_INHERIT, MOFO_OK, CMemoryInfo, CStateSizes, CStepReport


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    - grad_norm: the global norm of the gradients, times |grad_scale|, before clipping; None where the step had no use
      for it: no clipping, no `skip_nonfinite` and none passed in.
    - entries: of the tensors that took part, or would have, had the step not been skipped.
    - entries_selected: how many of them moved. 0 if the step was skipped.
    - skipped: `skip_nonfinite` left the step out: a gradient holds a NaN or an infinity.
    - blocks_estimated, estimates_failed: blocks whose threshold was estimated from a sample, and those whose estimate
      was wrong. The result is exact all the same.
    - tensors: how many took part, or would have. 0: none of them has a gradient, which is often a mistake.
    - entries_nonfinite: of which a moment is infinite or NaN after the step. Above 0, a gradient that is not finite was
      taken: these entries never move again, and nothing else tells.
    - status: 0, or 1 if the step was skipped. On CUDA, where the report is written when the step runs, also the
      error that kept it from being taken.
    - launched: True only on CUDA: the step was launched, and everything else here is unknown.
    """

    grad_norm: float | None
    entries: int
    entries_selected: int
    skipped: bool
    blocks_estimated: int
    estimates_failed: int
    tensors: int
    entries_nonfinite: int
    status: int = MOFO_OK
    launched: bool = False

    @classmethod
    def from_bytes(cls, data: bytes) -> StepReport:
        """The report that a step on CUDA has written to device memory, from a copy of its `REPORT_SIZE` bytes."""
        return cls.from_c(CStepReport.from_buffer_copy(data))

    @classmethod
    def from_c(cls, report: CStepReport) -> StepReport:
        """From the C struct."""
        return cls(
            grad_norm=None if report.grad_norm == MOFO_INHERIT else report.grad_norm,
            entries=report.entries,
            entries_selected=report.entries_selected,
            skipped=bool(report.skipped),
            blocks_estimated=report.blocks_estimated,
            estimates_failed=report.estimates_failed,
            tensors=report.tensors,
            entries_nonfinite=report.entries_nonfinite,
            status=report.status,
        )


REPORT_SIZE = ctypes.sizeof(CStepReport)
"""Bytes of a report in device memory."""

LAUNCHED = StepReport(None, 0, 0, False, 0, 0, 0, 0, launched=True)


@dataclass(frozen=True)
class LoadReport:
    """What a load has found.

    - loaded: the names of the tensors whose state was taken from the checkpoint.
    - missing: the names of tensors of the optimizer that the checkpoint has not: they are as they were.
    - ignored: how many tensors of the checkpoint the optimizer has not.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    ignored: int


@dataclass(frozen=True)
class MemoryInfo:
    """The memory that an optimizer holds, in bytes.

    - state: moments and master copies that the library allocated; caller_state: those in the caller's memory.
    - scratch: work space of a step, kept between steps.
    - bookkeeping: everything else in the library: tensor records, names, thresholds.
    - num_tensors, entries: tensors at present, and entries of all of them.
    """

    state: int
    caller_state: int
    scratch: int
    bookkeeping: int
    num_tensors: int
    entries: int

    @classmethod
    def from_c(cls, info: CMemoryInfo) -> MemoryInfo:
        """From the C struct."""
        return cls(**{field.name: getattr(info, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class StateSizes:
    """The memory that a tensor will need, in bytes.

    - exp_avg, exp_avg_sq, master: of the moments and the master copy (0 if it needs none).
    - allocated: what `add` will allocate, in the library: what of them the caller does not bring, and the rest.
    - scratch: what a step of this tensor alone needs besides, at most; shared by all tensors of an optimizer.
    """

    exp_avg: int
    exp_avg_sq: int
    master: int
    allocated: int
    scratch: int

    @classmethod
    def from_c(cls, sizes: CStateSizes) -> StateSizes:
        """From the C struct."""
        return cls(**{field.name: getattr(sizes, field.name) for field in fields(cls)})
