"""Times steps of mofo on an NVIDIA GPU against PyTorch's fused AdamW and against MoFO written in PyTorch.

Everything runs in one process on one stream, in rounds in which every contender makes a step on new gradients; times
are those of CUDA events, ratios are taken within a round. Bandwidths are set against that of a copy in the same rounds.
The part host needs no PyTorch: what a call costs the thread that calls, and the work space.
"""

from __future__ import annotations

import argparse

from ..library import Library
from ..options import common
from ..report import Report, failed, interval
from ..rounds import Schedule
from ..shapes import TensorSpec, gpt2, llama, one, shrunk

WITH_TORCH = ["large", "blocks", "llama", "gpt2", "topk", "topk_large"]


def options(parser: argparse.ArgumentParser) -> None:
    common(parser)
    parts = ["host", *WITH_TORCH]
    add = parser.add_argument
    add("--parts", nargs="+", choices=parts, default=parts, metavar="PART", help=f"any of {', '.join(parts)} (all)")
    add("--rehearse", action="store_true", help="parts with PyTorch on the CPU in place of a GPU, small sizes")
    add("--numel", type=int, default=1 << 30, help="entries of the large tensor (%(default)s)")
    add("--rounds", type=int, default=50, help="each a step of every contender (%(default)s)")
    add("--slow-rounds", type=int, default=8, help="the same with torch.topk (%(default)s)")


def host(arguments: argparse.Namespace, library: Library, report: Report) -> None:
    """The part that needs the driver only."""
    from .driver import Driver
    from .host import Stepper, measure

    driver, quick = Driver(), arguments.quick
    report.describe(**driver.describe())
    workloads = {
        "one tensor, f32": (one(min(1 << 30, driver.memory() // 20)), "f32"),
        "GPT-2 124M, f32": (gpt2(12), "f32"),
        "small tensors, f32": ([TensorSpec(f"weight {i}", 4096) for i in range(1000)], "f32"),
        "Llama 7B, 2 layers, bf16": (llama(2, 4096, 4096, 11008, 32000, head=True), "bf16"),
    }
    found = []
    for name, (tensors, dtype) in workloads.items():
        stepper = Stepper(library, driver, shrunk(tensors, 200) if quick else tensors, dtype)
        found.append(measure(stepper, name, 3 if quick else 50, 2 if quick else 20))
    shown = {
        "workload": lambda r: str(r["name"]),
        "tensors": lambda r: f"{r['tensors']:,}",
        "call µs": lambda r: interval(r["call_us"], 1),
        "of that on the processor": lambda r: f"{r['processor_us']:.1f}",
        "work space, MiB": lambda r: f"{r['scratch_bytes'] / 2**20:.2f}",
        "of parameters, gradients and moments": lambda r: f"{100 * r['scratch_share']:.3f} %",
        "failed": failed,
    }
    report.table("host", "What mofo_step costs the thread that calls it, and the work space", shown, found)


def with_torch(arguments: argparse.Namespace, library: Library, report: Report) -> None:
    """The comparisons with PyTorch."""
    import torch

    from .machine import Gpu, Rehearsal
    from .times import Comparisons

    if not arguments.rehearse and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device; --parts host needs no PyTorch")
    report.describe(torch=torch.__version__, torch_cuda=torch.version.cuda)
    torch.manual_seed(1)
    machine = Rehearsal() if arguments.rehearse else Gpu()
    comparisons = Comparisons(library, machine, report, arguments.numel, arguments.quick)
    for part in WITH_TORCH:
        if part in arguments.parts:
            rounds = arguments.slow_rounds if part in comparisons.slow else arguments.rounds
            comparisons.run(part, Schedule(rounds, 1 if arguments.quick else 5, 0.0))


def run(arguments: argparse.Namespace) -> None:
    arguments.quick = arguments.quick or arguments.rehearse
    if arguments.quick:
        arguments.numel, arguments.rounds, arguments.slow_rounds = 1 << 20, 4, 2
    library = Library(arguments.library[0])
    report = Report(arguments.json, **Report.machine(library))
    if "host" in arguments.parts:
        if not library.functions.mofo_cuda_available():
            raise SystemExit("no CUDA device")
        host(arguments, library, report)
    if set(WITH_TORCH) & set(arguments.parts):
        with_torch(arguments, library, report)
    report.write(vars(arguments))
