"""The example programs run, and print and draw what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from support import environment

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / program), *arguments]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, encoding="utf-8", timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fine_tuning_on_digits(tmp_path):
    output = run("finetune_digits.py", "--smoke", "--plot", str(tmp_path / "plot.svg"))
    steps = {name: int(number) for name, number in re.findall(r"^(AdamW|MoFO).*?, lr 0.001 +(\d+) ", output, re.M)}
    assert set(steps) == {"AdamW", "MoFO"} and all(0 < number < 200 for number in steps.values())
    assert "at the same learning rate 0.001" in output
    assert "<svg" in (tmp_path / "plot.svg").read_text(encoding="utf-8")


def test_timing_a_step():
    output = run("time_step.py", "--shrink", "4096", "--rounds", "3")
    assert output.startswith("148 tensors")
    assert re.search(r"^AdamW \(fused\) +[\d.]+ ms +1\.00 x", output, re.M)
    assert len(re.findall(r"^MoFO α = [\d.]+ +[\d.]+ ms +[\d.]+ x", output, re.M)) == 3
