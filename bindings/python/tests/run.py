"""Runs the tests that need no more than the standard library (and NumPy, if it is there), and counts as cargo does.

    python3 bindings/python/tests/run.py [--installed] [MODULE...]

`MOFO_LIBRARY` names the shared library. --installed tests the package that is installed, not the one of the checkout.
"""

from __future__ import annotations

import argparse
import sys
import time
import unittest
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parent


class Result(unittest.TextTestResult):
    """Counts what passed: whether `testsRun` has the skipped ones depends on the version of Python."""

    passed = 0

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addSuccess(test)
        self.passed += 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the tests of the Python package.")
    parser.add_argument("--installed", action="store_true", help="test the installed package")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="test_header, ...; default: all")
    arguments = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    if not arguments.installed:
        sys.path.insert(0, str(TESTS.parent / "src"))
    # Those of mofo.torch and of its checkpoints are pytest's, and need what is in requirements.txt.
    names = sorted(path.stem for path in TESTS.glob("test_*.py") if not path.stem.startswith("test_torch"))
    names = arguments.modules or names
    import mofo

    try:
        mofo.library_version()
    except mofo.LibraryError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"testing {mofo.__path__[0]} with Python {sys.version.split()[0]}: {', '.join(names)}", flush=True)
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    started = time.monotonic()
    result = unittest.TextTestRunner(stream=sys.stdout, warnings="error", resultclass=Result).run(suite)
    for reason, number in Counter(reason for _, reason in result.skipped).items():
        print(f"skipped: {number} tests: {reason}")
    if not arguments.modules:
        print("skipped: the tests with PyTorch: `make test-torch` runs them")
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    passed = result.passed
    print(
        f"test result: {'FAILED' if failed else 'ok'}. {passed} passed; {failed} failed; "
        f"{len(result.skipped)} ignored; 0 measured; 0 filtered out; finished in {time.monotonic() - started:.2f}s"
    )
    return 1 if failed or not (passed or result.skipped) else 0


if __name__ == "__main__":
    sys.exit(main())
