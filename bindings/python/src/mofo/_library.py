"""Finds and loads the shared library, once, and makes sure that it is the one that this package was written for."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path

from ._declarations import FUNCTIONS, MOFO_ABI_VERSION, MOFO_ERROR_UNSUPPORTED
from ._version import __version__
from .errors import Error, LibraryError

ENVIRONMENT_VARIABLE = "MOFO_LIBRARY"

FILE_NAME = {"darwin": "libmofo.dylib", "win32": "mofo.dll"}.get(sys.platform, "libmofo.so")
"""What cargo calls the shared library on this system."""


class Library:
    """The loaded library. `functions` has every function of the header with its argument types declared."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise LibraryError(MOFO_ERROR_UNSUPPORTED, f"cannot load {path}: {error}") from error
        # The versions first: a library of another ABI may well lack other functions, too.
        for name in ("mofo_abi_version", "mofo_version"):
            self._declare(name)
        abi_version = self.functions.mofo_abi_version()
        self.version: str = self.functions.mofo_version().decode()
        if abi_version != MOFO_ABI_VERSION:
            raise LibraryError(
                MOFO_ERROR_UNSUPPORTED,
                f"{path} (version {self.version}) has ABI version {abi_version}, "
                f"mofo {__version__} for Python needs {MOFO_ABI_VERSION}",
            )
        if _number(self.version) < _number(__version__):
            raise LibraryError(
                MOFO_ERROR_UNSUPPORTED,
                f"{path} has version {self.version}, mofo {__version__} for Python needs {__version__} or newer",
            )
        for name in FUNCTIONS:
            self._declare(name)

    def _declare(self, name: str) -> None:
        try:
            function = getattr(self.functions, name)
        except AttributeError as error:
            raise LibraryError(
                MOFO_ERROR_UNSUPPORTED,
                f"{self.path} has no function {name}: it is not libmofo, or not of version {__version__}",
            ) from error
        function.restype, function.argtypes = FUNCTIONS[name]

    def check(self, status: int) -> int:
        """Raises the library's error for a negative status; returns any other one.

        To be called in the thread of the failing call, before its next one: the message belongs to the thread.
        """
        if status < 0:
            raise Error(status, self.functions.mofo_last_error().decode(errors="replace"))
        return status


_loaded: Library | None = None
_loading = threading.Lock()


def library() -> Library:
    """The library, loaded at the first call. Raises `LibraryError` where there is none that can be used."""
    global _loaded
    if _loaded is None:
        with _loading:
            if _loaded is None:
                _loaded = Library(find())
    return _loaded


def find() -> Path:
    """Where the library is: what `MOFO_LIBRARY` names or, if it is not set or empty, the file in the package."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file():
            raise LibraryError(MOFO_ERROR_UNSUPPORTED, f"{ENVIRONMENT_VARIABLE} names {named}, which is not a file")
        # With no folder in its name the system would look for it elsewhere.
        return path.resolve()
    package = Path(__file__).resolve().parent
    path = package / FILE_NAME
    if not path.is_file():
        raise LibraryError(
            MOFO_ERROR_UNSUPPORTED,
            f"no {FILE_NAME} in {package}. To use a checkout as it is, run `cargo build --release` there and set "
            f"{ENVIRONMENT_VARIABLE} to its target/release/{FILE_NAME}; or install the package with its library: "
            "`pip install bindings/python`",
        )
    return path


def _number(version: str) -> tuple[int, ...]:
    """A version as numbers to compare; what is appended with "-" or "+" does not count."""
    core = version.split("-")[0].split("+")[0]
    return tuple(int(part) for part in core.split(".") if part.isdigit())
