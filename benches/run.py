"""Benchmarks of mofo: run.py COMMAND [OPTION...]. README.md says how they measure.

commands:
  steps      steps of mofo alone, against its own AdamW
  torch      against PyTorch's AdamW
  estimates  counts estimates of thresholds that fail
  cuda       on an NVIDIA GPU, against PyTorch's AdamW
  plots      draws what `torch` wrote
"""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "steps": "harness.cases",
    "torch": "harness.pytorch",
    "estimates": "harness.estimates",
    "cuda": "harness.cuda.command",
    "plots": "harness.plots",
}
"""The module of each, which is loaded for it alone: not every machine has PyTorch and matplotlib."""


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    name = sys.argv[1]
    command = importlib.import_module(COMMANDS[name])
    parser = argparse.ArgumentParser(
        prog=f"run.py {name}", description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.options(parser)
    command.run(parser.parse_args(sys.argv[2:]))


if __name__ == "__main__":
    main()
