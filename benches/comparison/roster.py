"""Contenders by their names."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from libmofo import Library

from .contender import Contender
from .mofo import Mofo
from .pytorch import AuthorsMofo, TopkMofo, TorchAdamW
from .workload import Gradients, Workload
from .yardsticks import Copy, InPlace

BASELINE = "torch-fused"
FLAT = "-flat"

NAMES = (
    "mofo-A, topk-A, authors-A (A is the update fraction; 1 is AdamW), torch-fused, torch-foreach, copy, in-place; "
    f"with {FLAT} at its end: on all tensors as one"
)


@dataclass(frozen=True)
class Name:
    """A contender's name taken apart, for example mofo-0.03-flat."""

    kind: str
    update_fraction: float | None
    flat: bool

    @staticmethod
    def parse(name: str) -> "Name":
        """Stops the program if it is no contender's name."""
        stem = name.removesuffix(FLAT)
        flat = stem != name
        if stem in ("torch-fused", "torch-foreach"):
            return Name(stem, 1.0, flat)
        if stem in ("copy", "in-place"):
            return Name(stem, None, flat)
        kind, _, fraction = stem.partition("-")
        try:
            update_fraction = float(fraction)
        except ValueError:
            update_fraction = -1.0
        if kind not in ("mofo", "topk", "authors") or not 0 < update_fraction <= 1:
            raise SystemExit(f"there is no contender {name!r}; there are {NAMES}")
        return Name(kind, update_fraction, flat)


@dataclass
class Roster:
    """Makes contenders that step these gradients' workload."""

    library: Library
    gradients: Gradients
    threads: int
    cpu_tier: int
    authors: Path | None
    _flat: list[Gradients] = field(default_factory=list)

    def make(self, name: str) -> Contender:
        """A new contender of that name."""
        parsed = Name.parse(name)
        gradients = self.flat_gradients() if parsed.flat else self.gradients
        types = gradients.workload.types
        if parsed.kind.startswith("torch-"):
            return TorchAdamW(gradients, fused=parsed.kind == "torch-fused")
        if parsed.update_fraction is None:
            return Copy(gradients) if parsed.kind == "copy" else InPlace(gradients)
        if parsed.kind == "mofo":
            return Mofo(self.library, gradients, parsed.update_fraction, self.threads, self.cpu_tier)
        if types.moments.itemsize != 4:
            raise SystemExit(f"{name} keeps its moments in f32: not with --dtype bf16")
        if parsed.kind == "topk":
            return TopkMofo(gradients, parsed.update_fraction)
        if types.parameter.itemsize != 4 or self.authors is None:
            raise SystemExit(f"{name} needs --authors and --dtype f32")
        return AuthorsMofo(self.authors, gradients, parsed.update_fraction)

    def flat_gradients(self) -> Gradients:
        """The gradients of the contenders that step all tensors as one; made when first asked for."""
        if not self._flat:
            self._flat.append(self.gradients.flat())
        return self._flat[0]


def memory_needed(names: Sequence[str], workload: Workload, gradient_steps: int) -> int:
    """Bytes, roughly: what all contenders keep, the gradients, and what the neediest allocates within a step."""
    types = workload.types
    gradients = gradient_steps * types.parameter.itemsize
    kept, peak = gradients, 0
    parsed = [Name.parse(name) for name in names]
    if any(name.flat for name in parsed):
        kept += gradients
    for name in parsed:
        if name.kind == "copy":
            kept += types.bytes_per_entry
        elif name.kind == "in-place":
            kept += types.bytes_per_entry // 2
        elif name.kind == "mofo":
            kept += types.parameter.itemsize + 2 * types.moments.itemsize
        elif name.kind.startswith("torch-"):
            kept += 3 * types.parameter.itemsize
        else:
            kept += types.parameter.itemsize + 8
            peak = max(peak, 32)  # torch.topk pairs every value with a 64-bit index.
        if name.kind == "torch-foreach":
            peak = max(peak, 2 * types.parameter.itemsize)
    return (kept + peak) * workload.numel
