"""The comparisons with PyTorch: each a workload, its contenders, and rounds in which all of them make a step."""

import contextlib
import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from comparison.rounds import median_interval, orders
from comparison.shapes import TensorSpec, llama, transformer
from libmofo import Library

from .contenders import Contender, Gradients, Mofo, TopkMofo, TorchAdamW
from .machine import Machine
from .traffic import bytes_per_entry

FRACTIONS = (0.03, 0.1, 0.2, 0.5, 1.0)
BASELINE = "torch-fused"
Record = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much to do."""

    rounds: int
    slow_rounds: int
    warm_up: int
    large: int
    """Entries of the one tensor."""
    quick: bool


class Comparisons:
    """All of them, on one machine."""

    def __init__(self, library: Library, machine: Machine, scale: Scale) -> None:
        self.library = library
        self.machine = machine
        self.scale = scale

    def large(self) -> list[Record]:
        """One large tensor of f32."""
        return self.one("large", [TensorSpec("weight", self.scale.large)], torch.float32)

    def blocks(self) -> list[Record]:
        """The same in 16 blocks: a tensor that stacks 16 matrices, each with a threshold of its own."""
        specs = [TensorSpec("stack", self.scale.large // 16 * 16)]
        return self.one("16 blocks", specs, torch.float32, blocks=16)

    def llama(self) -> list[Record]:
        """Everything in bf16: the tensors of Llama 7B, as many layers as fit."""
        sizes = {"width": 64, "hidden": 172, "vocabulary": 500} if self.scale.quick else {}
        # Both contenders' parameters and moments, the gradients, what makes them, the copy's target, and work space.
        needed = 2 * (3 + 3 + 1) * 1.08
        budget = self.machine.free_memory() * 0.95 - (3 << 30 if not self.scale.quick else 0)
        layers = 32
        while layers > 1 and needed * sum(spec.numel for spec in llama(layers, **sizes)) > budget:
            layers -= 1
        return self.one(f"Llama 7B, {layers} layers", llama(layers, **sizes), torch.bfloat16)

    def one(self, workload: str, specs: list[TensorSpec], dtype: torch.dtype, blocks: int = 1) -> list[Record]:
        """AdamW, MoFO with every update fraction, and a copy."""
        gradients = Gradients(self.machine, specs, dtype)
        adamw = TorchAdamW(self.machine, gradients)
        with contextlib.closing(Mofo(self.library, self.machine, gradients, blocks)) as mofo:
            contenders = [Contender(BASELINE, adamw.step, 1.0), self.copy(gradients)]
            contenders += [mofo.contender(f"mofo-{fraction:g}", fraction) for fraction in FRACTIONS]
            self.measure(contenders, gradients, self.scale.rounds)
            return self.records(workload, gradients, contenders)

    def gpt2(self) -> list[Record]:
        """The 148 tensors of GPT-2 124M in f32: each step launched, and replayed from a CUDA graph."""
        shape = (5003, 101, 60, 12) if self.scale.quick else (50257, 1024, 768, 12)
        gradients = Gradients(self.machine, transformer(*shape), torch.float32)
        replayed = TorchAdamW(self.machine, gradients, capturable=True)
        replayed.step()
        contenders = [
            Contender(BASELINE, TorchAdamW(self.machine, gradients).step, 1.0),
            Contender("torch-fused, graph", self.machine.capture(replayed.step), 1.0),
            self.copy(gradients),
        ]
        with contextlib.ExitStack() as stack:
            for fraction in (0.03, 1.0):
                for captured in (False, True):
                    mofo = stack.enter_context(contextlib.closing(Mofo(self.library, self.machine, gradients)))
                    name = f"mofo-{fraction:g}" + (", graph" if captured else "")
                    contenders.append(mofo.contender(name, fraction, captured))
            self.measure(contenders, gradients, self.scale.rounds)
            return self.records("GPT-2 124M", gradients, contenders)

    def topk(self) -> list[Record]:
        """MoFO written in PyTorch, on the tensors of GPT-2."""
        shape = (5003, 101, 60, 12) if self.scale.quick else (50257, 1024, 768, 12)
        return self.against_topk("GPT-2 124M", transformer(*shape))

    def topk_large(self) -> list[Record]:
        """The same on one large tensor."""
        return self.against_topk("large", [TensorSpec("weight", self.scale.large)])

    def against_topk(self, workload: str, specs: list[TensorSpec]) -> list[Record]:
        """MoFO written in PyTorch, mofo and a copy."""
        gradients = Gradients(self.machine, specs, torch.float32)
        written = TopkMofo(self.machine, gradients, 0.03)
        with contextlib.closing(Mofo(self.library, self.machine, gradients)) as mofo:
            contenders = [mofo.contender("mofo-0.03", 0.03), self.copy(gradients)]
            contenders.append(Contender("topk-0.03", written.step, 0.03))
            self.measure(contenders, gradients, self.scale.slow_rounds)
            return self.records(workload, gradients, contenders, baseline="topk-0.03")

    def copy(self, gradients: Gradients) -> Contender:
        """Copies the gradients: what the memory can do, with as many bytes read as written."""
        # A tensor of a size that many have serves all of them.
        targets = {spec.numel: torch.empty_like(t) for spec, t in zip(gradients.specs, gradients.tensors, strict=True)}

        def step() -> None:
            for tensor in gradients.tensors:
                targets[tensor.numel()].copy_(tensor)

        return Contender("copy", step)

    def measure(self, contenders: Sequence[Contender], gradients: Gradients, rounds: int) -> None:
        """Rounds, with other orders and new gradients. The device makes gradients while the step is being launched."""
        order = orders(len(contenders))
        self.machine.settle()
        gc.collect()
        for turn in range(-self.scale.warm_up, rounds):
            for place in next(order):
                contender = contenders[place]
                gradients.refresh()
                milliseconds, microseconds = self.machine.timed(contender.step)
                if contender.report is not None:
                    check_report(contender, gradients)
                if turn >= 0:
                    contender.samples.append(milliseconds)
                    contender.host.append(microseconds)

    def records(
        self, workload: str, gradients: Gradients, contenders: Sequence[Contender], baseline: str = BASELINE
    ) -> list[Record]:
        """One record a contender."""
        size = gradients.tensors[0].element_size()
        numel = gradients.numel
        base = next(contender for contender in contenders if contender.name == baseline)
        copy = next(contender for contender in contenders if contender.name == "copy")
        copied = 2 * size * numel / statistics.median(copy.samples)
        records = []
        for contender in contenders:
            median = statistics.median(contender.samples)
            low, high, confidence = median_interval(contender.samples)
            record: Record = {
                "workload": workload,
                "contender": contender.name,
                "tensors": len(gradients.specs),
                "entries": numel,
                "dtype": str(gradients.tensors[0].dtype).removeprefix("torch."),
                "median_ms": median,
                "interval_ms": [low, high],
                "confidence": confidence,
                "host_us": statistics.median(contender.host),
                "samples_ms": contender.samples,
            }
            moved = float(2 * size)
            if contender.update_fraction is not None:
                ratios = [t / b for t, b in zip(contender.samples, base.samples, strict=True)]
                low, high, _ = median_interval(ratios)
                record |= {"baseline": baseline, "ratio": statistics.median(ratios), "ratio_interval": [low, high]}
                filtered = sum(spec.numel for spec in gradients.specs if spec.filtered)
                moved = (
                    filtered * bytes_per_entry(size, size, contender.update_fraction)
                    + (numel - filtered) * bytes_per_entry(size, size, 1.0)
                ) / numel
            record |= {
                "bytes_per_entry": moved,
                "gb_per_s": moved * numel / median / 1e6,
                "of_copy": moved * numel / median / copied,
            }
            if contender.memory is not None:
                memory = contender.memory()
                record |= {
                    "blocks_estimated": contender.blocks_estimated,
                    "estimates_failed": contender.estimates_failed,
                    "scratch_bytes": memory.scratch,
                    "scratch_share": memory.scratch / (2 * size * numel + memory.state),
                }
            records.append(record)
        return records


def check_report(contender: Contender, gradients: Gradients) -> None:
    """Stops the program unless the step was taken and moved as many entries as it should; counts estimates."""
    report, fraction = contender.report, contender.update_fraction
    assert report is not None and fraction is not None
    if report.status != 0 or report.entries != gradients.numel:
        raise SystemExit(f"{contender.name}: status {report.status}, {report.entries} entries")
    least = sum(int(spec.numel * fraction) if spec.filtered else spec.numel for spec in gradients.specs)
    # Several blocks round down separately; entries that tie with a threshold move, too, and bf16 has many.
    if not 0.999 * least - 16 <= report.entries_selected <= 1.1 * least + len(gradients.specs) + 16:
        raise SystemExit(f"{contender.name} moved {report.entries_selected} entries, not {least}")
    contender.blocks_estimated += report.blocks_estimated
    contender.estimates_failed += report.estimates_failed


def run(what: str, part: Callable[[], list[Record]], machine: Machine) -> list[Record]:
    """A comparison; if the memory does not suffice for it, a record that says so."""
    try:
        records = part()
    except torch.cuda.OutOfMemoryError as error:
        records = [{"workload": what, "error": str(error).splitlines()[0]}]
    except RuntimeError as error:
        if "OUT_OF_MEMORY" not in str(error):
            raise
        records = [{"workload": what, "error": str(error)}]
    gc.collect()
    machine.settle()
    return records
