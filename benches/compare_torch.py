"""Times one optimizer step of mofo against PyTorch's AdamW and against MoFO written in PyTorch.

All contenders run in one process, with the same number of threads, on f32 tensors of the same size. In each round
every contender makes one step, on the same gradient, so that a change of the machine's speed reaches all of them;
ratios are taken within a round, then their median over the rounds. Run with --help for the settings.
"""

import argparse
import ctypes
import gc
import importlib
import importlib.util
import json
import math
import os
import platform
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from ctypes import byref, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import torch
from libmofo import CPU_TIERS, MOFO_DTYPE_F32, Library, Options, StepArgs, StepReport, TensorDescription
from torch import Tensor

LEARNING_RATE = 1e-4
BETA1 = 0.9
BETA2 = 0.999
EPSILON = 1e-8
WEIGHT_DECAY = 0.0  # As in all scripts of the MoFO authors, whose code would need one more pass for it.

DEFAULT_CONTENDERS = [
    "mofo-0.03",
    "mofo-0.1",
    "mofo-1",
    "torch-fused",
    "torch-foreach",
    "topk-0.03",
    "copy",
    "in-place",
]
BASELINE = "torch-fused"
BYTES_PER_ENTRY = 28  # A fused AdamW reads the gradient, both moments and the parameter, and writes all but the first.


# Contenders


class Contender(ABC):
    """Something that makes a step, over and over, with a parameter tensor and moments of its own."""

    slow = False
    update_fraction: float | None = None
    parameter: Tensor

    @abstractmethod
    def load(self, gradient: Tensor) -> None:
        """Takes the gradient of the next step. Not timed."""

    @abstractmethod
    def step(self) -> None:
        """Makes one step. Timed."""

    def close(self) -> None:
        """Frees what Python does not."""


class Mofo(Contender):
    """mofo through its C ABI, on the tensors' own memory. With an update fraction of 1 it is AdamW."""

    def __init__(self, library: Library, parameter: Tensor, update_fraction: float, threads: int) -> None:
        self.library = library
        self.parameter = parameter
        self.update_fraction = update_fraction
        self.gradient: Tensor | None = None
        c = library.functions
        self._step = c.mofo_step
        self._optimizer = c_void_p()
        self._index = c_uint64()

        options = Options()
        library.check(c.mofo_options_init(byref(options), ctypes.sizeof(options)))
        options.learning_rate = LEARNING_RATE
        options.beta1 = BETA1
        options.beta2 = BETA2
        options.epsilon = EPSILON
        options.weight_decay = WEIGHT_DECAY
        options.update_fraction = update_fraction
        options.num_threads = threads
        library.check(c.mofo_create(byref(options), byref(self._optimizer)))

        tensor = TensorDescription()
        library.check(c.mofo_tensor_init(byref(tensor), ctypes.sizeof(tensor)))
        tensor.name = b"weight"
        tensor.numel = parameter.numel()
        tensor.param_dtype = MOFO_DTYPE_F32
        tensor.grad_dtype = MOFO_DTYPE_F32
        library.check(c.mofo_add_tensor(self._optimizer, byref(tensor), byref(self._index)))

    def load(self, gradient: Tensor) -> None:
        for tensor in (self.parameter, gradient):
            assert tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.device.type == "cpu"
        self.gradient = gradient  # Keeps the memory alive while the library has its address.
        c = self.library.functions
        status = c.mofo_bind_tensor(self._optimizer, self._index, self.parameter.data_ptr(), gradient.data_ptr())
        self.library.check(status)

    def step(self) -> None:
        self.library.check(self._step(self._optimizer, None))

    def step_and_count(self) -> int:
        """A step that also says how many entries moved."""
        report = StepReport()
        args = StepArgs()
        self.library.check(self.library.functions.mofo_step_args_init(byref(args), ctypes.sizeof(args)))
        args.report = ctypes.pointer(report)
        args.report_size = ctypes.sizeof(report)
        self.library.check(self._step(self._optimizer, byref(args)))
        return int(report.entries_selected)

    def cpu_tier(self) -> str:
        tier = self.library.functions.mofo_cpu_tier(self._optimizer)
        return CPU_TIERS.get(tier, f"tier {tier}")

    def close(self) -> None:
        self.library.functions.mofo_destroy(self._optimizer)
        self._optimizer = c_void_p()


class TorchAdamW(Contender):
    """`torch.optim.AdamW` with one of its implementations."""

    update_fraction = 1.0

    def __init__(self, parameter: Tensor, **implementation: bool) -> None:
        self.parameter = torch.nn.Parameter(parameter)
        self.optimizer = torch.optim.AdamW(
            [self.parameter],
            lr=LEARNING_RATE,
            betas=(BETA1, BETA2),
            eps=EPSILON,
            weight_decay=WEIGHT_DECAY,
            **implementation,
        )

    def load(self, gradient: Tensor) -> None:
        self.parameter.grad = gradient

    def step(self) -> None:
        self.optimizer.step()


class TopkMofo(Contender):
    """MoFO as one writes it down in PyTorch: Adam's moments, the threshold from `torch.topk`, a masked update."""

    slow = True

    def __init__(self, parameter: Tensor, update_fraction: float) -> None:
        self.parameter = parameter
        self.update_fraction = update_fraction
        self.gradient = parameter
        self.exp_avg = torch.zeros_like(parameter)
        self.exp_avg_sq = torch.zeros_like(parameter)
        self.steps = 0

    def load(self, gradient: Tensor) -> None:
        self.gradient = gradient

    @torch.no_grad()
    def step(self) -> None:
        self.steps += 1
        self.exp_avg.mul_(BETA1).add_(self.gradient, alpha=1 - BETA1)
        self.exp_avg_sq.mul_(BETA2).addcmul_(self.gradient, self.gradient, value=1 - BETA2)
        magnitude = self.exp_avg.abs()
        threshold = torch.topk(magnitude, selected_count(self), sorted=False).values.min()
        denominator = self.exp_avg_sq.sqrt().div_(math.sqrt(1 - BETA2**self.steps)).add_(EPSILON)
        filtered = torch.where(magnitude >= threshold, self.exp_avg, 0.0)
        self.parameter.addcdiv_(filtered, denominator, value=-LEARNING_RATE / (1 - BETA1**self.steps))


class AuthorsMofo(Contender):
    """The class `AdamW_MoFO` of the MoFO authors, from a file of theirs."""

    slow = True

    def __init__(self, path: Path, parameter: Tensor, update_fraction: float) -> None:
        self.update_fraction = update_fraction
        model = torch.nn.Module()
        # The name matters: "bias" and "norm" are not filtered.
        model.weight = torch.nn.Parameter(parameter)
        self.parameter = model.weight
        self.optimizer = self._load_class(path)(
            model=model,
            weight_decay=WEIGHT_DECAY,
            lr=LEARNING_RATE,
            beta1=BETA1,
            beta2=BETA2,
            fraction=update_fraction,
            epsilon=EPSILON,
        )

    @staticmethod
    def _load_class(path: Path) -> Any:
        # The file imports `_dispatch_sqrt` from torch.optim.optimizer, where current PyTorch has it no more. It was
        # math.sqrt for Python floats, which is all that the file passes to it.
        optimizer = importlib.import_module("torch.optim.optimizer")
        if not hasattr(optimizer, "_dispatch_sqrt"):
            setattr(optimizer, "_dispatch_sqrt", math.sqrt)
        spec = importlib.util.spec_from_file_location("authors_mofo", path)
        if spec is None or spec.loader is None:
            raise SystemExit(f"--authors {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.AdamW_MoFO

    def load(self, gradient: Tensor) -> None:
        self.parameter.grad = gradient

    def step(self) -> None:
        self.optimizer.step()


class Copy(Contender):
    """Not an optimizer: a plain copy that reads and writes as many bytes, in sum, as a fused AdamW step does.

    Memory traffic is half as much again where the processor reads a cache line before it overwrites it.
    """

    def __init__(self, like: Tensor) -> None:
        self.parameter = like
        self.source = torch.ones(step_traffic(like))
        self.target = torch.zeros(step_traffic(like))

    def load(self, gradient: Tensor) -> None:
        pass

    def step(self) -> None:
        self.target.copy_(self.source)


class InPlace(Contender):
    """Not an optimizer: multiplies floats in place, with as many bytes read and written as in a fused AdamW step."""

    def __init__(self, like: Tensor) -> None:
        self.parameter = like
        self.values = torch.ones(step_traffic(like))

    def load(self, gradient: Tensor) -> None:
        pass

    def step(self) -> None:
        self.values.mul_(1.0)


def step_traffic(parameter: Tensor) -> int:
    """How many floats, each read once and written once, are the traffic of a fused AdamW step."""
    return parameter.numel() * BYTES_PER_ENTRY // (2 * parameter.element_size())


def selected_count(contender: Contender) -> int:
    """How many entries move, ties aside."""
    assert contender.update_fraction is not None
    return max(1, int(contender.parameter.numel() * contender.update_fraction))


class Factory:
    """Makes contenders from their names."""

    def __init__(self, library: Library, threads: int, authors: Path | None) -> None:
        self.library = library
        self.threads = threads
        self.authors = authors

    def make(self, name: str, parameter: Tensor) -> Contender:
        """The contender of that name, which takes the parameter for its own."""
        if name == "torch-fused":
            return TorchAdamW(parameter, fused=True)
        if name == "torch-foreach":
            return TorchAdamW(parameter, foreach=True)
        if name == "copy":
            return Copy(parameter)
        if name == "in-place":
            return InPlace(parameter)
        kind, _, fraction = name.partition("-")
        try:
            update_fraction = float(fraction)
        except ValueError:
            raise SystemExit(f"there is no contender {name!r}") from None
        if kind == "mofo":
            return Mofo(self.library, parameter, update_fraction, self.threads)
        if kind == "topk":
            return TopkMofo(parameter, update_fraction)
        if kind == "authors" and self.authors is not None:
            return AuthorsMofo(self.authors, parameter, update_fraction)
        raise SystemExit(f"there is no contender {name!r}" + (" without --authors" if kind == "authors" else ""))


def memory_needed(names: Sequence[str], numel: int, gradient_buffers: int) -> int:
    """Bytes, roughly: what all contenders keep, the gradients, and what the neediest allocates within a step."""
    yardsticks = {"copy": 7.0, "in-place": 3.5}
    floats = float(gradient_buffers)
    peak = 0.0
    for name in names:
        floats += yardsticks.get(name, 3.0)
        if name.startswith(("topk", "authors")):
            peak = max(peak, 8.0)  # torch.topk pairs every value with a 64-bit index.
        elif name == "torch-foreach":
            peak = max(peak, 2.0)
    return int((floats + peak) * 4 * numel)


# Data


def initial_parameter(numel: int) -> Tensor:
    """Weights of the size that they have in a transformer."""
    return torch.empty(numel).normal_(std=0.02, generator=torch.Generator().manual_seed(1))


def make_gradients(numel: int, buffers: int) -> list[Tensor]:
    """Gradients of consecutive steps: heavy-tailed noise around a mean that moves slowly, in a circle.

    Each row of 4,096 entries has a scale of its own, as rows of weight matrices have.
    """
    generator = torch.Generator().manual_seed(2)

    def normal(count: int) -> Tensor:
        return torch.empty(count).normal_(generator=generator)

    gradients = [torch.empty(numel) for _ in range(buffers)]
    row, chunk = 4096, 1 << 20
    for start in range(0, numel, chunk):
        count = min(chunk, numel - start)
        scale = normal(-(-count // row)).mul_(0.5).exp_().mul_(1e-3).repeat_interleave(row)[:count]
        centre, towards_x, towards_y = normal(count), normal(count), normal(count)
        for i, gradient in enumerate(gradients):
            angle = 2 * math.pi * i / buffers
            mean = centre + 0.3 * (math.cos(angle) * towards_x + math.sin(angle) * towards_y)
            noise = normal(count).mul_(normal(count).exp_())
            gradient[start : start + count] = scale * (mean + 2 * noise)
    return gradients


# Checks


def verify(names: Sequence[str], factory: Factory, numel: int = 3_000_017, steps: int = 4) -> None:
    """Stops the program unless contenders of the same update fraction make the same steps."""
    gradients = make_gradients(numel, steps)
    references: dict[float, Tensor] = {}
    for name in names:
        contender = factory.make(name, initial_parameter(numel))
        fraction = contender.update_fraction
        if fraction is None:
            continue
        if fraction not in references:
            reference = TopkMofo(initial_parameter(numel), fraction)
            for gradient in gradients:
                reference.load(gradient)
                reference.step()
            references[fraction] = reference.parameter
        for gradient in gradients:
            contender.load(gradient)
            contender.step()
        contender.close()
        # Rounding differs, and may put an entry next to the threshold on its other side.
        error = (contender.parameter.detach() - references[fraction]).abs_()
        wrong = int((error > 1e-3 * LEARNING_RATE).sum())
        if wrong > numel // 100_000:
            raise SystemExit(f"{name}: {wrong} of {numel} parameters differ from MoFO written in PyTorch")


def warm_up(contender: Contender, gradients: Sequence[Tensor], steps: int) -> None:
    """Makes the first steps; asks mofo whether the full-sized tensor was filtered as it should be."""
    for i in range(steps):
        contender.load(gradients[i % len(gradients)])
        if isinstance(contender, Mofo):
            selected, expected = contender.step_and_count(), selected_count(contender)
            if not expected <= selected <= expected * 1.001 + 1:
                raise SystemExit(f"mofo moved {selected} entries, not {expected}")
        else:
            contender.step()


# Measuring


def orders(count: int) -> Iterator[list[int]]:
    """Orders of `count` contenders, rotated from round to round.

    They are the rows of a Williams square, then the same backwards: each contender runs equally often in each place,
    and equally often after each other one, so that none profits from what its predecessor leaves behind.
    """
    first = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(count)]
    while True:
        for backwards in (False, True):
            for shift in range(max(count, 1)):
                row = [(place + shift) % count for place in first]
                yield row[::-1] if backwards else row


def measure(
    contenders: dict[str, Contender], gradients: Sequence[Tensor], rounds: int, slow_rounds: int, pause: float
) -> dict[str, list[float | None]]:
    """Seconds of each contender's step in each round; None where a slow one sat the round out.

    The slow ones come last in their rounds, each in rounds of its own. They allocate and free gigabytes, from which
    the system takes a while to recover: so the others make a step that is not timed after them.
    """
    names = list(contenders)
    fast = [name for name in names if not contenders[name].slow]
    slow = [name for name in names if contenders[name].slow]
    seconds: dict[str, list[float | None]] = {name: [None] * rounds for name in names}
    slow_turns: list[list[str]] = [[] for _ in range(rounds)]
    for place, name in enumerate(slow):
        for i in range(slow_rounds):
            slow_turns[int((i + place / len(slow)) * rounds / slow_rounds)].append(name)
    gc.collect()
    gc.disable()
    for turn, order in zip(range(rounds), orders(len(fast))):
        gradient = gradients[turn % len(gradients)]
        for name in [fast[i] for i in order] + slow_turns[turn]:
            contender = contenders[name]
            contender.load(gradient)
            # Threads of the contender before may still be spinning.
            time.sleep(pause)
            start = time.perf_counter()
            contender.step()
            seconds[name][turn] = time.perf_counter() - start
        if slow_turns[turn]:
            for name in fast:
                contenders[name].step()
    gc.enable()
    return seconds


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The interval between two order statistics that holds the median, and its actual confidence.

    It assumes nothing about the distribution. With fewer than six values it is the whole range, at less confidence.
    """
    ordered = sorted(values)
    count = len(ordered)

    def held(skipped: int) -> float:
        """Probability that the median lies within the values, `skipped` of them left out at either end."""
        outside: int = 2 * sum(math.comb(count, below) for below in range(skipped + 1))
        return 1 - outside / (1 << count)

    skipped = 0
    while 2 * skipped + 2 < count and held(skipped + 1) >= confidence:
        skipped += 1
    return ordered[skipped], ordered[count - 1 - skipped], held(skipped)


def summarize(seconds: dict[str, list[float | None]], numel: int) -> list[dict[str, Any]]:
    """One record a contender: its median step, and its ratio to the baseline."""
    baseline = seconds.get(BASELINE)
    records = []
    for name, times in seconds.items():
        taken = [t for t in times if t is not None]
        median = statistics.median(taken)
        record: dict[str, Any] = {
            "name": name,
            "steps": len(taken),
            "median_ms": median * 1e3,
            "min_ms": min(taken) * 1e3,
            "ns_per_entry": median * 1e9 / numel,
            "seconds": times,
        }
        if baseline is not None:
            ratios = [t / b for t, b in zip(times, baseline) if t is not None and b is not None]
            low, high, confidence = median_interval(ratios)
            record["ratio"] = statistics.median(ratios)
            record["ratio_interval"] = [low, high]
            record["ratio_interval_confidence"] = confidence
        records.append(record)
    return records


# Reporting


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Bytes that can be allocated, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def print_table(records: Sequence[dict[str, Any]]) -> None:
    print(f"{'contender':16}{'steps':>6}{'median ms':>12}{'min ms':>10}{'ns/entry':>10}{'ratio':>9}   95 % interval")
    for record in records:
        line = f"{record['name']:16}{record['steps']:6}{record['median_ms']:12.2f}{record['min_ms']:10.2f}"
        line += f"{record['ns_per_entry']:10.3f}"
        if "ratio" not in record:
            line += f"{'-':>9}"
        else:
            low, high = record["ratio_interval"]
            confidence = record["ratio_interval_confidence"]
            note = "" if confidence >= 0.95 else f"  (all values; {confidence:.0%})"
            line += f"{record['ratio']:9.3f}   {low:.3f} to {high:.3f}{note}"
        print(line)


def parse_arguments() -> argparse.Namespace:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, default=root / "target/release/libmofo.so", help="the shared library")
    parser.add_argument("--numel", type=int, default=66_000_000, help="entries of the tensor (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every contender (%(default)s)")
    parser.add_argument("--rounds", type=int, default=60, help="rounds (%(default)s)")
    parser.add_argument("--slow-rounds", type=int, default=6, help="rounds of topk and authors (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before the first round (%(default)s)")
    parser.add_argument("--slow-warm-up", type=int, default=2, help="the same for topk and authors (%(default)s)")
    parser.add_argument("--grad-buffers", type=int, default=6, help="different gradients (%(default)s)")
    parser.add_argument("--pause-ms", type=float, default=20.0, help="idle time before each step (%(default)s)")
    parser.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        help="any of mofo-A, topk-A, authors-A (A is the update fraction; 1 is AdamW), torch-fused, torch-foreach, "
        f"copy, in-place (default: {' '.join(DEFAULT_CONTENDERS)}, and authors-0.03 with --authors)",
    )
    parser.add_argument("--authors", type=Path, metavar="PATH", help="the MoFO authors' algorithms_MoFO.py")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write settings, figures and every time here, too")
    arguments = parser.parse_args()
    if arguments.contenders is None:
        arguments.contenders = DEFAULT_CONTENDERS + (["authors-0.03"] if arguments.authors else [])
    if len(set(arguments.contenders)) != len(arguments.contenders):
        parser.error("a contender is named twice")
    for name in ("numel", "threads", "rounds", "slow_rounds", "warm_up", "slow_warm_up", "grad_buffers"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    arguments.slow_rounds = min(arguments.slow_rounds, arguments.rounds)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    library = Library(arguments.library)
    factory = Factory(library, arguments.threads, arguments.authors)
    names: list[str] = arguments.contenders
    numel: int = arguments.numel

    needed, available = memory_needed(names, numel, arguments.grad_buffers), available_memory()
    if available is not None and needed > available:
        raise SystemExit(f"needs about {needed >> 20} MiB, {available >> 20} are available: name fewer --contenders")

    environment: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mofo": library.version(),
        "threads": arguments.threads,
        "load_before": os.getloadavg(),
    }
    verify(names, factory)
    gradients = make_gradients(numel, arguments.grad_buffers)
    contenders = {name: factory.make(name, initial_parameter(numel)) for name in names}
    for contender in sorted(contenders.values(), key=lambda contender: not contender.slow):
        warm_up(contender, gradients, arguments.slow_warm_up if contender.slow else arguments.warm_up)
        if isinstance(contender, Mofo):
            environment["mofo_cpu_tier"] = contender.cpu_tier()
    seconds = measure(contenders, gradients, arguments.rounds, arguments.slow_rounds, arguments.pause_ms / 1e3)
    for contender in contenders.values():
        contender.close()
    environment["load_after"] = os.getloadavg()

    records = summarize(seconds, numel)
    for key, value in environment.items():
        print(f"{key}: {value}")
    print(f"{numel} f32 entries, {arguments.rounds} rounds; ratio: to {BASELINE}, median of the paired rounds")
    print_table(records)
    if arguments.json is not None:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        document = {"environment": environment, "settings": settings, "contenders": records}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
