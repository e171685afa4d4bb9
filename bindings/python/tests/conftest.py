"""For pytest, which runs the tests with PyTorch and those of the standard library alike."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent

sys.path[:0] = [str(TESTS.parent / "src"), str(TESTS)]

_STARTED = time.monotonic()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Counts as cargo does."""
    counts = {
        name: len(terminalreporter.stats.get(name, []))
        for name in ("passed", "xfailed", "failed", "error", "xpassed", "skipped")
    }
    failed = counts["failed"] + counts["error"] + counts["xpassed"]
    terminalreporter.write_line(
        f"test result: {'FAILED' if failed else 'ok'}. {counts['passed'] + counts['xfailed']} passed; {failed} failed; "
        f"{counts['skipped']} ignored; 0 measured; 0 filtered out; finished in {time.monotonic() - _STARTED:.2f}s"
    )
