"""Times optimizer steps of mofo on an NVIDIA GPU against PyTorch's fused AdamW and against MoFO written in PyTorch.

Everything runs in one process on one stream, in rounds in which every contender makes a step on new gradients; times
are those of CUDA events, ratios are taken within a round. Bandwidths are set against that of a copy in the same rounds.
Some parts need no PyTorch: whether the bits are those of the CPU, what a call costs the host, and the memory.

The tables of the results come last. README.md says more.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from comparison.shapes import TensorSpec, llama, transformer
from gpu import tables
from libmofo import Library

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_TORCH = ["equality", "host", "memory"]
WITH_TORCH = ["large", "blocks", "llama", "gpt2", "topk", "topk_large"]
Record = dict[str, Any]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = WITHOUT_TORCH + WITH_TORCH
    parser.add_argument("--parts", nargs="+", choices=parts, metavar="PART", help=f"any of {', '.join(parts)} (all)")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: shows that it runs")
    parser.add_argument(
        "--rehearse", action="store_true", help="parts with PyTorch on the CPU in place of a GPU, small sizes"
    )
    parser.add_argument("--numel", type=int, help="entries of the large tensor (2^30)")
    parser.add_argument("--rounds", type=int, help="rounds (50)")
    parser.add_argument("--slow-rounds", type=int, help="rounds with torch.topk (8)")
    parser.add_argument("--steps", type=int, help="steps of the check against the CPU (100)")
    parser.add_argument("--library", type=Path, default=ROOT / "target/release/libmofo.so", help="the shared library")
    parser.add_argument("--header", type=Path, default=ROOT / "include/mofo.h", help="the library's header")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write settings, figures and every time here, too")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts or parts
    arguments.quick = arguments.quick or arguments.rehearse
    defaults = {"numel": 1 << 20, "rounds": 4, "slow_rounds": 2, "steps": 5}
    if not arguments.quick:
        defaults = {"numel": 1 << 30, "rounds": 50, "slow_rounds": 8, "steps": 100}
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
        elif getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return arguments


def say(what: str) -> None:
    """Progress goes to standard error."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def without_torch(arguments: argparse.Namespace, library: Library, results: dict[str, list[Record]]) -> Record:
    """The parts that need the driver only; what describes the device."""
    from gpu.driver import Driver
    from gpu.equality import compare
    from gpu.launches import host_time, scratch

    driver = Driver()
    quick = arguments.quick
    if "equality" in arguments.parts:
        say("equality")
        results["equality"] = compare(library, driver, arguments.steps)
    if "host" in arguments.parts:
        say("host")
        gpt2 = transformer(5003, 101, 60, 12) if quick else transformer(50257, 1024, 768, 12)
        thousand = [TensorSpec(f"weight {i}", 64 if quick else 4096) for i in range(1000)]
        results["host"] = [
            host_time(library, driver, specs, name, rounds=3 if quick else 50, in_a_row=2 if quick else 20)
            for name, specs in (("GPT-2 124M", gpt2), ("1,000 small tensors", thousand))
        ]
    if "memory" in arguments.parts:
        say("memory")
        count = 1 << 20 if quick else min(1 << 30, driver.memory()[0] // 20)
        few = {"width": 64, "hidden": 172, "vocabulary": 5000} if quick else {}
        gpt2 = transformer(5003, 101, 60, 12) if quick else transformer(50257, 1024, 768, 12)
        results["memory"] = [
            scratch(library, driver, [TensorSpec("weight", count)], "one tensor", "f32"),
            scratch(library, driver, gpt2, "GPT-2 124M", "f32"),
            scratch(library, driver, llama(2, **few), "Llama 7B, 2 layers", "bf16"),
        ]
    return driver.describe()


def with_torch(arguments: argparse.Namespace, library: Library, results: dict[str, list[Record]]) -> Record:
    """The comparisons with PyTorch; what describes it."""
    import torch

    from gpu.comparisons import Comparisons, Scale, run
    from gpu.machine import Gpu, Rehearsal

    if not arguments.rehearse and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device; --parts equality host memory need no PyTorch")
    torch.manual_seed(1)
    machine = Rehearsal() if arguments.rehearse else Gpu()
    scale = Scale(
        arguments.rounds, arguments.slow_rounds, 1 if arguments.quick else 5, arguments.numel, arguments.quick
    )
    comparisons = Comparisons(library, machine, scale)
    results["times"] = []
    for part in WITH_TORCH:
        if part in arguments.parts:
            say(part)
            results["times"] += run(part, getattr(comparisons, part), machine)
    return {"torch": torch.__version__, "torch_cuda": torch.version.cuda}


def main() -> None:
    arguments = parse_arguments()
    library = Library(arguments.library, arguments.header)
    surroundings: Record = {"mofo": library.version(), "python": platform.python_version()}
    results: dict[str, list[Record]] = {}
    if any(part in WITHOUT_TORCH for part in arguments.parts) or not arguments.rehearse:
        if not library.functions.mofo_cuda_available():
            raise SystemExit("no CUDA device")
        surroundings |= without_torch(arguments, library, results)
    if any(part in WITH_TORCH for part in arguments.parts):
        surroundings |= with_torch(arguments, library, results)

    print("\n".join(f"{key}: {value}" for key, value in surroundings.items()))
    for name, title, columns in (
        ("times", "Time of a step", tables.TIMES),
        ("host", "What mofo_step costs the thread that calls it", tables.HOST),
        ("memory", "Work space", tables.MEMORY),
        ("equality", "Bits", tables.EQUALITY),
    ):
        if name in results:
            tables.print_table(title, columns, results[name])
    if arguments.json is not None:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        document = {"environment": surroundings, "settings": settings, "results": results}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if not all(record["equal"] for record in results.get("equality", [])):
        raise SystemExit("the bits on the GPU are not those of the CPU")


if __name__ == "__main__":
    main()
