"""Finding the shared library, and refusing one that is not the right one."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import mofo
from mofo._library import FILE_NAME, library
from support import ROOT, run_python

LOAD = """
import mofo
try:
    print("loaded", mofo.library_version())
except mofo.LibraryError as error:
    assert isinstance(error, mofo.Error) and isinstance(error, ImportError)
    print(error.status_name, error)
"""

FAKE = """
#include <stdint.h>
const char *mofo_version(void) { return "%s"; }
uint32_t mofo_abi_version(void) { return %d; }
"""

COMPILER = os.environ.get("CC", "cc")


class TheLibrary(unittest.TestCase):
    def test_has_the_packages_version(self) -> None:
        manifest = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
        version = re.search(r'^version = "(.*)"$', manifest, flags=re.MULTILINE)
        assert version is not None
        self.assertEqual(mofo.__version__, version[1])
        self.assertEqual(mofo.library_version(), mofo.__version__)

    def test_is_the_one_that_the_variable_names(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(library().path, Path(folder) / "another-name.so")
            done = run_python(
                "import mofo; from mofo._library import library; print(library().path)",
                MOFO_LIBRARY=str(Path(folder) / "another-name.so"),
            )
            self.assertEqual(done.stdout.strip(), str((Path(folder) / "another-name.so").resolve()), done.stderr)

    def test_is_else_the_one_in_the_package(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            package = shutil.copytree(Path(mofo.__file__).parent, Path(folder) / "mofo")
            shutil.copy(library().path, package / FILE_NAME)
            program = f"import sys; sys.path.insert(0, {folder!r})\n" + LOAD
            done = run_python(program, MOFO_LIBRARY="")
            self.assertEqual(done.stdout, f"loaded {mofo.__version__}\n", done.stderr)

            (package / FILE_NAME).unlink()
            done = run_python(program, MOFO_LIBRARY="")
            self.assertIn(f"MOFO_ERROR_UNSUPPORTED no {FILE_NAME} in {package}", done.stdout, done.stderr)
            self.assertIn("cargo build --release", done.stdout)
            self.assertIn("pip install bindings/python", done.stdout)

    def test_is_not_needed_to_import_the_package(self) -> None:
        self.assertEqual(run_python("import mofo", MOFO_LIBRARY="/nowhere").returncode, 0)

    def test_that_is_no_file_is_refused(self) -> None:
        done = run_python(LOAD, MOFO_LIBRARY="/nowhere/libmofo.so")
        self.assertIn("MOFO_LIBRARY names /nowhere/libmofo.so, which is not a file", done.stdout, done.stderr)

    def test_that_is_no_library_is_refused(self) -> None:
        done = run_python(LOAD, MOFO_LIBRARY=__file__)
        self.assertIn(f"cannot load {__file__}", done.stdout, done.stderr)


@unittest.skipIf(shutil.which(COMPILER) is None, "no C compiler")
class AnotherLibrary(unittest.TestCase):
    def answer(self, source: str) -> str:
        """What loading a library made of this source says."""
        with tempfile.TemporaryDirectory() as folder:
            code, fake = Path(folder) / "fake.c", Path(folder) / "fake.so"
            code.write_text(source, encoding="utf-8")
            subprocess.run([COMPILER, "-shared", "-fPIC", code, "-o", fake], check=True)
            done = run_python(LOAD, MOFO_LIBRARY=str(fake))
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout

    def test_of_another_abi_is_refused(self) -> None:
        said = self.answer(FAKE % ("7.0.0", 2))
        self.assertIn("(version 7.0.0) has ABI version 2", said)
        self.assertIn(f"mofo {mofo.__version__} for Python needs 1", said)

    def test_that_is_older_is_refused(self) -> None:
        said = self.answer(FAKE % ("0.0.9", 1))
        self.assertIn("has version 0.0.9", said)
        self.assertIn(f"needs {mofo.__version__} or newer", said)

    def test_that_lacks_a_function_is_refused(self) -> None:
        self.assertIn("has no function mofo_cuda_available", self.answer(FAKE % ("7.0.0", 1)))

    def test_that_is_not_mofo_is_refused(self) -> None:
        self.assertIn("has no function mofo_abi_version: it is not libmofo", self.answer("int x;"))


class Errors(unittest.TestCase):
    def test_keep_their_status_when_they_are_pickled(self) -> None:
        error = pickle.loads(pickle.dumps(mofo.Error(-2, "w: grad has 3 entries")))
        self.assertEqual((error.status, str(error)), (-2, "w: grad has 3 entries"))
        self.assertEqual(error.status_name, "MOFO_ERROR_INVALID_BUFFER")


if __name__ == "__main__":
    unittest.main()
