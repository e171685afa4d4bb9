"""Options that commands have in common."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .library import default_library
from .rounds import CLOCKS


def common(parser: argparse.ArgumentParser) -> None:
    """Of every command that steps."""
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes, few rounds: shows that it runs, measures nothing")
    add("--library", nargs="+", type=Path, default=[default_library()], metavar="PATH", help="the shared library")
    add("--json", type=Path, metavar="PATH", help="write settings, figures and every sample here, too")


def timed(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Of every command that times steps on the CPU."""
    common(parser)
    add = parser.add_argument
    add("--alpha", nargs="+", type=float, default=[0.03, 0.1, 0.2, 0.5], metavar="A", help="update fractions")
    add("--threads", nargs="+", type=int, default=[os.cpu_count() or 1], metavar="N", help="(all)")
    add("--rounds", type=int, default=rounds, help="each a step of every contender (%(default)s)")
    add("--warm-up", type=int, default=3, help="rounds before the first that counts (%(default)s)")
    add("--clock", choices=CLOCKS, default="wall", help="processor: on one thread, where others use the machine (wall)")
    add("--pause-ms", type=float, default=10.0, help="rest before each step (%(default)s)")


def settled(arguments: argparse.Namespace) -> argparse.Namespace:
    """With few rounds, if it is to be quick."""
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 3)
    return arguments
