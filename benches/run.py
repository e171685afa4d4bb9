"""Times steps of mofo. `run.py COMMAND --help` says what a command measures; README.md says how."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from harness.cases import CASES, Bench
from harness.formats import FORMATS
from harness.library import TIERS, Library, default_library
from harness.report import Report
from harness.shapes import MODELS

USUAL_CASES = [case for case in CASES if case != "failing"]


def common(parser: argparse.ArgumentParser) -> None:
    """Options of every command that measures."""
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: shows that it runs, measures nothing")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write settings, figures and every sample here, too")


def timed(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Options of every command that times steps."""
    parser.add_argument("--alpha", nargs="+", type=float, default=[0.03, 0.1, 0.2, 0.5], metavar="A", help="update fractions")
    parser.add_argument("--rounds", type=int, help=f"rounds, each a step of every contender ({rounds})")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds before the first that counts (%(default)s)")
    parser.add_argument("--pause-ms", type=float, default=10.0, help="rest before each step (%(default)s)")
    parser.add_argument("--grad-buffers", type=int, help="gradients that take turns (4, more if small)")
    parser.set_defaults(usual_rounds=rounds)


def steps_options(parser: argparse.ArgumentParser) -> None:
    timed(parser, 15)
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=USUAL_CASES, metavar="CASE", help=f"any of {', '.join(CASES)}")
    add("--models", nargs="+", choices=MODELS, default=["smollm2", "gpt2"], help="of the case `models`")
    add("--numel", nargs="+", type=int, metavar="N", help="entries, of the cases with one tensor")
    add("--dtypes", nargs="+", choices=FORMATS, default=["f32"], help="of the case `models`")
    add("--threads", nargs="+", type=int, default=[os.cpu_count() or 1], metavar="N", help="(all)")
    add("--tier", choices=TIERS, default="best", help="vector instructions (%(default)s)")
    add("--pages", nargs="+", choices=["huge", "normal"], default=["huge"], help="of the buffers (%(default)s)")
    add("--share", action="store_true", help="contenders take turns in one set of buffers, which needs less memory")
    add("--library", nargs="+", type=Path, default=[default_library()], help="shared libraries; each is a contender")


def steps(arguments: argparse.Namespace) -> None:
    libraries = [Library(path) for path in arguments.library]
    report = Report(arguments.json, **Report.machine(libraries[0]))
    bench = Bench(arguments, libraries, report)
    for name in arguments.cases:
        CASES[name](bench)
    report.write(vars(arguments))


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]] = {
    "steps": ("mofo alone, against its own AdamW", steps_options, steps),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (summary, options, command) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        common(sub)
        options(sub)
        sub.set_defaults(command=command)
    arguments = parser.parse_args()
    if hasattr(arguments, "usual_rounds") and arguments.rounds is None:
        arguments.rounds = 3 if arguments.quick else arguments.usual_rounds
    arguments.command(arguments)


if __name__ == "__main__":
    main()
