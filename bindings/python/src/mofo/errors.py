"""The exceptions of the package."""

from __future__ import annotations

from . import _declarations

_STATUS_NAMES = {
    value: name
    for name, value in vars(_declarations).items()
    if name in ("MOFO_OK", "MOFO_SKIPPED") or name.startswith("MOFO_ERROR_")
}


class Error(Exception):
    """A call that did not do what it should; nothing has changed, unless the status is `MOFO_ERROR_INTERNAL`
    or the call, such as `Optimizer.load`, says otherwise.

    `status` is the C library's number for what was wrong and `status_name` its name, such as
    `"MOFO_ERROR_INVALID_BUFFER"`; the text names the tensor, the value and the allowed range. What this package finds
    wrong before it calls the library has the status that the library would have given.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.status_name = _STATUS_NAMES.get(status, "unknown status")

    def __reduce__(self) -> tuple[type[Error], tuple[int, str]]:
        # Exceptions are pickled by their `args`, which leave out the status: multiprocessing would lose the error.
        return type(self), (self.status, str(self))


class LibraryError(Error, ImportError):
    """The shared library is missing, cannot be loaded, or has another version: `MOFO_ERROR_UNSUPPORTED`."""
