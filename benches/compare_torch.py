"""Times optimizer steps of mofo against PyTorch's AdamW and against MoFO written in PyTorch.

All contenders run in one process, with the same number of threads, on tensors of the same sizes, in memory that is
laid out alike. In each round every contender makes a step, on the same gradients, so that a change of the machine's
speed reaches all of them; ratios are taken within a round, then their median over the rounds. README.md says more.
"""

import argparse
import gc
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from comparison.figures import Record, summarize
from comparison.measure import Schedule, measure
from comparison.report import available_memory, describe_memory, environment, print_point
from comparison.roster import BASELINE, NAMES, Name, Roster, memory_needed
from comparison.verify import verify, warm_up
from comparison.workload import TYPES, Workload, gpt2, make_gradients, one_tensor
from libmofo import CPU_TIERS, Library

ROOT = Path(__file__).resolve().parent.parent

NUMEL = 66_000_000
FIELD = ["mofo-0.03", "mofo-0.1", "mofo-1", "torch-fused", "torch-foreach"]
YARDSTICKS = ["copy", "in-place"]
FRACTIONS = [0.001, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]
NUMELS = [1 << exponent for exponent in range(12, 29)]
LEAST_ROW = 1 << 21
"""Entries that a row of steps goes over at least: so many take some milliseconds."""


@dataclass(frozen=True)
class Point:
    """One comparison: who, on what, with the gradients of how many steps."""

    names: list[str]
    workload: Workload
    gradient_steps: int

    def fits(self) -> bool:
        """Whether the memory suffices."""
        available = available_memory()
        return available is None or self.bytes_needed() <= available

    def bytes_needed(self) -> int:
        """Memory, with something to spare."""
        return int(1.05 * memory_needed(self.names, self.workload, self.gradient_steps))


def plan(arguments: argparse.Namespace) -> Iterator[Point]:
    """The comparisons to make. Memory is looked at when each of them is about to start."""
    types = TYPES[arguments.dtype]
    if arguments.sweep_numel is not None:
        for numel in arguments.sweep_numel:
            yield from smaller(Point(arguments.contenders, one_tensor(numel, types), arguments.grad_buffers))
        return
    workload = gpt2(types) if arguments.tensors == "gpt2" else one_tensor(arguments.numel or NUMEL, types)
    if arguments.sweep_alpha is not None:
        yield from fractions(arguments, workload)
        return
    point = Point(arguments.contenders, workload, arguments.grad_buffers)
    if not point.fits():
        needed = f"{point.bytes_needed() / 2**30:.1f} GiB"
        raise SystemExit(f"needs about {needed}, more than there is: name fewer --contenders, or less --grad-buffers")
    yield point


def smaller(point: Point) -> Iterator[Point]:
    """The point, or what of it the memory has room for: fewer gradients first, then no foreach, then no other mofo."""
    few = min(point.gradient_steps, 2)
    without_foreach = [name for name in point.names if not name.startswith("torch-foreach")]
    pair = [name for name in point.names if name in (FIELD[0], BASELINE)]
    for names, steps in ((point.names, point.gradient_steps), (point.names, few), (without_foreach, few), (pair, few)):
        fitting = Point(names, point.workload, steps)
        if names and fitting.fits():
            yield fitting
            return
    print(f"\n{point.workload.numel} entries: left out, for lack of memory")


def fractions(arguments: argparse.Namespace, workload: Workload) -> Iterator[Point]:
    """All update fractions in one comparison, or in as many as the memory makes necessary."""
    names = [f"mofo-{fraction:g}" for fraction in arguments.sweep_alpha]
    others = [name for name in arguments.contenders if not name.startswith("mofo-")]
    for count in range(len(names), 0, -1):
        points = [
            Point(names[i : i + count] + others, workload, arguments.grad_buffers) for i in range(0, len(names), count)
        ]
        if all(point.fits() for point in points):
            yield from points
            return
    raise SystemExit("too little memory for the sweep")


def compare(point: Point, unchecked: list[str], arguments: argparse.Namespace, library: Library) -> Record:
    """Makes one comparison, after a check of those contenders that are still to be checked."""
    gradients = make_gradients(point.workload, point.gradient_steps)
    roster = Roster(library, gradients, arguments.threads, arguments.tier, arguments.authors)
    verify(unchecked, roster)
    contenders = {name: roster.make(name) for name in point.names}
    for contender in sorted(contenders.values(), key=lambda contender: not contender.slow):
        warm_up(contender, arguments.slow_warm_up if contender.slow else arguments.warm_up)
    batch = arguments.batch or max(1, LEAST_ROW // point.workload.numel)
    schedule = Schedule(arguments.rounds, arguments.slow_rounds, batch, arguments.pause_ms / 1e3)
    memory = describe_memory()
    load_before = os.getloadavg()
    times = measure(contenders, schedule)
    record: Record = {
        "workload": point.workload.name,
        "entries": point.workload.numel,
        "rounds": schedule.rounds,
        "batch": schedule.batch,
        "gradient_steps": point.gradient_steps,
        "memory": memory,
        "load_before": load_before,
        "load_after": os.getloadavg(),
        "contenders": summarize(contenders, times),
    }
    for contender in contenders.values():
        contender.close()
    return record


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tiers = {name: number for number, name in CPU_TIERS.items()}

    what = parser.add_argument_group("what to compare")
    what.add_argument("--numel", type=int, help=f"entries of the tensor ({NUMEL})")
    what.add_argument("--tensors", choices=["one", "gpt2"], default="one", help="one tensor, or GPT-2 124M's 148")
    what.add_argument("--dtype", choices=list(TYPES), default="f32", help="types of mofo and, if it can, of PyTorch")
    what.add_argument("--contenders", nargs="+", metavar="NAME", help=f"any of {NAMES}")
    what.add_argument("--authors", type=Path, metavar="PATH", help="the MoFO authors' algorithms_MoFO.py")
    sweep = what.add_mutually_exclusive_group()
    sweep.add_argument("--sweep-alpha", nargs="*", type=float, metavar="A", help="mofo at these update fractions")
    sweep.add_argument("--sweep-numel", nargs="*", type=int, metavar="N", help="one comparison at each of these sizes")

    how = parser.add_argument_group("how to measure")
    how.add_argument("--threads", type=int, default=2, help="threads of every contender (%(default)s)")
    how.add_argument("--tier", choices=list(tiers), default="best", help="mofo's vector instructions (%(default)s)")
    how.add_argument("--rounds", type=int, default=60, help="rounds (%(default)s)")
    how.add_argument("--slow-rounds", type=int, default=6, help="rounds of topk and authors (%(default)s)")
    how.add_argument("--warm-up", type=int, default=10, help="steps before the first round (%(default)s)")
    how.add_argument("--slow-warm-up", type=int, default=2, help="the same for topk and authors (%(default)s)")
    how.add_argument("--grad-buffers", type=int, default=6, help="different gradients (%(default)s)")
    how.add_argument("--batch", type=int, help=f"steps in a row per time (as many as make {LEAST_ROW} entries)")
    how.add_argument("--pause-ms", type=float, default=20.0, help="idle time before each step or row (%(default)s)")

    files = parser.add_argument_group("files")
    files.add_argument("--library", type=Path, default=ROOT / "target/release/libmofo.so", help="the shared library")
    files.add_argument("--header", type=Path, default=ROOT / "include/mofo.h", help="the library's header")
    files.add_argument("--json", type=Path, metavar="PATH", help="write settings, figures and every time here, too")

    arguments = parser.parse_args()
    check_arguments(parser, arguments)
    arguments.tier = tiers[arguments.tier]
    return arguments


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program if some make no sense, and fills in those that depend on others."""
    if arguments.contenders is None:
        arguments.contenders = default_contenders(arguments)
    for name in arguments.contenders:
        if Name.parse(name).flat and arguments.tensors == "one":
            parser.error(f"{name} needs --tensors gpt2")
    if len(set(arguments.contenders)) != len(arguments.contenders):
        parser.error("a contender is named twice")
    if arguments.tensors != "one" and (arguments.numel is not None or arguments.sweep_numel is not None):
        parser.error("--numel and --sweep-numel need --tensors one")
    for name in ("numel", "threads", "rounds", "slow_rounds", "warm_up", "slow_warm_up", "grad_buffers", "batch"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.sweep_alpha == []:
        arguments.sweep_alpha = FRACTIONS
    if arguments.sweep_numel == []:
        arguments.sweep_numel = NUMELS
    arguments.slow_rounds = min(arguments.slow_rounds, arguments.rounds)


def default_contenders(arguments: argparse.Namespace) -> list[str]:
    """Who takes part if nobody is named."""
    if arguments.sweep_alpha is not None:
        return [BASELINE]
    if arguments.sweep_numel is not None:
        return FIELD
    if arguments.tensors == "gpt2":
        return ["mofo-0.03", "mofo-0.03-flat", "mofo-0.1", "mofo-1", "torch-fused", "torch-foreach"]
    if arguments.dtype != "f32":
        return FIELD + YARDSTICKS
    return FIELD + ["topk-0.03"] + (["authors-0.03"] if arguments.authors else []) + YARDSTICKS


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    library = Library(arguments.library, arguments.header)
    surroundings = environment(library, arguments.threads)
    for key, value in surroundings.items():
        print(f"{key}: {value}")
    points: list[Record] = []
    checked: set[str] = set()
    for point in plan(arguments):
        points.append(compare(point, [name for name in point.names if name not in checked], arguments, library))
        checked.update(point.names)
        print_point(point.workload, points[-1])
        gc.collect()
    if arguments.json is not None:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        document = {"environment": surroundings, "settings": settings, "points": points}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
