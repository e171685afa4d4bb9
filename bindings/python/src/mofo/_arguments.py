"""Python values as what C takes.

ctypes cuts integers to size, and strings at a NUL, without a word: here they are refused.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from typing import Any

from ._declarations import MOFO_ERROR_INVALID_ARGUMENT, MOFO_INHERIT
from .errors import Error

DTYPES = {"f32": 0, "f16": 1, "bf16": 2, "float32": 0, "float16": 1, "bfloat16": 2}
DTYPE_NAMES = ("f32", "f16", "bf16")
ITEM_SIZES = (4, 2, 2)


def invalid(message: str) -> Error:
    """The error for a value that is out of range."""
    return Error(MOFO_ERROR_INVALID_ARGUMENT, message)


def integer(what: str, value: Any, least: int, most: int) -> int:
    """An integer (of Python, NumPy, ...) from `least` to `most`."""
    # Some versions of NumPy take their bool for an index.
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        raise TypeError(f"{what}: an integer is needed, not {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what}: an integer is needed, not {type(value).__name__}") from None
    if not least <= number <= most:
        raise invalid(f"{what} is {number}, but must be from {least} to {most}")
    return number


def count(what: str, value: Any) -> int:
    """An integer that fits into 64 bits without a sign."""
    return integer(what, value, 0, 2**64 - 1)


def real(what: str, value: Any) -> float:
    """A number as a double. Whether it is in its range the library says."""
    if isinstance(value, (bool, str, bytes, bytearray)) or type(value).__name__ == "bool_":
        raise TypeError(f"{what}: a number is needed, not {type(value).__name__}")
    try:
        return float(value)
    except TypeError:
        raise TypeError(f"{what}: a number is needed, not {type(value).__name__}") from None
    except OverflowError:
        raise invalid(f"{what} is {value}, which no double can hold") from None


def real_or_inherit(what: str, value: Any) -> float:
    """A number or, for `None`, what C calls `MOFO_INHERIT`. That number itself would be taken for `None`: refused."""
    if value is None:
        return MOFO_INHERIT
    number = real(what, value)
    if number == MOFO_INHERIT:
        raise invalid(f"{what} is {number}, but must be at least 0 (None takes the optimizer's)")
    return number


def flag(what: str, value: Any) -> int:
    """True or False, also NumPy's, as 1 or 0."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return int(bool(value))
    raise TypeError(f"{what}: True or False is needed, not {value!r}")


def choice(what: str, value: Any, values: Mapping[str, int]) -> int:
    """One of the names, as C's constant."""
    if not isinstance(value, str):
        raise TypeError(f"{what}: a string is needed, not {type(value).__name__}")
    if value not in values:
        raise invalid(f"{what} is {value!r}, but must be one of {', '.join(map(repr, values))}")
    return values[value]


def text(what: str, value: Any) -> bytes:
    """A string as UTF-8 without a NUL."""
    if not isinstance(value, str):
        raise TypeError(f"{what}: a string is needed, not {type(value).__name__}")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise invalid(f"{what} {value!r} cannot be written as UTF-8") from None
    if b"\0" in encoded:
        raise invalid(f"{what} {value!r} holds a NUL character")
    return encoded


def path(value: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> bytes:
    """The path of a file as UTF-8 without a NUL."""
    return text("the path", os.fsdecode(value))
