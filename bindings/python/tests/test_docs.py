"""Every Python program of the guide and of the README runs, in a process of its own."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from support import ROOT, environment

GUIDES = {"docs/python.md": 6, "bindings/python/README.md": 2}
"""And how many programs each has at least."""

OPTIONAL = ("numpy", "torch", "safetensors")


def programs(guide: str) -> list[str]:
    text = (ROOT / guide).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


class Guides(unittest.TestCase):
    def test_have_programs(self) -> None:
        for guide, number in GUIDES.items():
            self.assertGreaterEqual(len(programs(guide)), number, guide)


def _check(guide: str, number: int, program: str) -> None:
    """Gives `Guides` a test of its own for each program, so that each that is skipped is counted."""
    needed = [name for name in OPTIONAL if re.search(rf"^(import|from) {name}\b", program, flags=re.MULTILINE)]
    if "mofo.checkpoint" in program:
        needed.append("safetensors")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]

    @unittest.skipIf(missing, f"not installed: {', '.join(missing)}")
    def test(self: unittest.TestCase) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", program]
            done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
            self.assertEqual((done.returncode, done.stderr), (0, ""), program)

    setattr(Guides, f"test_{Path(guide).stem.lower()}_{number}", test)


for _guide in GUIDES:
    for _number, _program in enumerate(programs(_guide), start=1):
        _check(_guide, _number, _program)


if __name__ == "__main__":
    unittest.main()
