"""The C optimizer: one thread at a time, alive as long as something in Python looks at its memory."""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._declarations import MOFO_ERROR_INVALID_STATE, COptions, OptimizerPointer
from ._library import library
from .errors import Error


class Handle:
    """A `mofo_optimizer`, destroyed by `destroy` or with this object, which views of its memory keep alive."""

    def __init__(self, options: COptions) -> None:
        self.library = library()
        self.pointer = OptimizerPointer()
        self.library.check(self.library.functions.mofo_create(options, self.pointer))
        self._views: dict[int, list[weakref.ref[Any]]] = {}
        self.destroy = weakref.finalize(self, self.library.functions.mofo_destroy, self.pointer)
        # Other threads may be in the library when the process ends, which frees everything anyway.
        self.destroy.atexit = False

    def memory(self, index: int, address: int, size: int) -> ctypes.Array[ctypes.c_ubyte]:
        """`size` bytes of a tensor's state as an object with the buffer protocol."""
        memory = (ctypes.c_ubyte * size).from_address(address)
        self.lend(index, memory)
        return memory

    def lend(self, index: int, view: Any) -> None:
        """Keeps the optimizer alive as long as `view`, which looks at the tensor's state, is."""
        view._handle = self
        views = self._views.setdefault(index, [])
        views[:] = [lent for lent in views if lent() is not None]
        views.append(weakref.ref(view))

    def forget(self, index: int) -> None:
        """Of a tensor that is removed: its index is never used again."""
        self._views.pop(index, None)

    def lent(self, index: int | None = None) -> bool:
        """Whether a view of the tensor's state, or of any tensor's, is alive."""
        lists = list(self._views.values()) if index is None else [self._views.get(index, [])]
        return any(lent() is not None for views in lists for lent in views)


_running: set[Turn] = set()
_exiting = False


def _wait_for_calls() -> None:
    """Before the process ends: daemon threads finish the call that they are in, and begin no other."""
    global _exiting
    _exiting = True
    for turn in list(_running):
        while turn in _running:
            time.sleep(1e-3)


atexit.register(_wait_for_calls)
if hasattr(os, "register_at_fork"):
    # A child has none of its parent's other threads, and must not wait for them.
    os.register_at_fork(after_in_child=_running.clear)


class Turn:
    """Who may call: one at a time. The C library leaves that to its callers; a race there would be undefined."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """For the time of a call. Raises `Error` if another call is under way: nobody waits."""
        if not self._lock.acquire(blocking=False):
            raise Error(
                MOFO_ERROR_INVALID_STATE,
                "the optimizer is in use by another call: it is used by one thread at a time",
            )
        try:
            _running.add(self)
            if _exiting and threading.current_thread() is not threading.main_thread():
                raise Error(MOFO_ERROR_INVALID_STATE, "the process is ending")
            yield
        finally:
            _running.discard(self)
            self._lock.release()
