"""The caller's buffers: where they are, what they hold, and that they stay there as long as the library uses them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from . import _arguments
from ._arguments import DTYPE_NAMES, ITEM_SIZES
from ._declarations import MOFO_ERROR_INVALID_BUFFER
from .errors import Error

# Formats of the struct module, which memoryviews have. "H" is 16 bits of anything: NumPy has no bf16 of its own.
_DTYPES_OF_FORMAT = {"f": (0,), "e": (1,), "H": (2, 1), "h": (2, 1)}
_BYTES = ("B", "b", "c")
_DTYPES_OF_TYPESTR = {"<f4": (0,), "<f2": (1,), "<u2": (2, 1), "<i2": (2, 1), "<V2": (2, 1)}


class _PyBuffer(ctypes.Structure):
    """`Py_buffer`, which has been the same since Python 3.0."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_PyBuffer)]
_release_buffer.restype = None


@dataclass(frozen=True)
class Need:
    """What a buffer must be. `what` names it in errors; `dtype` and `numel` are None where the buffer may tell.

    `fallback_dtype` is taken for a buffer that does not tell its type, where `dtype` is None.
    """

    what: str
    device: str
    writable: bool
    dtype: int | None = None
    fallback_dtype: int | None = None
    numel: int | None = None


# Address, bytes and type.
_Place = tuple[int, int, Any]


@dataclass(frozen=True)
class Buffer:
    """A buffer that has been looked at.

    `view` keeps it alive and, where the object knows such a thing (bytearray, array.array, mmap), from being resized.
    NumPy arrays do not know it: `resize(refcheck=False)` moves one under every view; so `moved` looks at them again.
    """

    address: int
    numel: int
    dtype: int
    shape: tuple[int, ...] | None
    view: object = None
    places: tuple[tuple[Any, _Place], ...] = field(default=(), repr=False)
    writable: bool = False

    def moved(self) -> bool:
        """Whether an array is elsewhere, or of another size or type, since the buffer was looked at."""
        return any(_place(array) != place for array, place in self.places)

    def locked(self) -> bool:
        """Whether an array that is written to has become read-only since."""
        return self.writable and bool(self.places) and not self.places[0][0].flags.writeable


def bad_buffer(message: str) -> Error:
    """The error for a buffer that the library could not use."""
    return Error(MOFO_ERROR_INVALID_BUFFER, message)


def look_at(source: Any, need: Need) -> Buffer:
    """The buffer of an array, of anything with the buffer protocol, or at an address. Raises what is wrong with it."""
    if isinstance(source, Integral):
        return _at_address(source, need)
    interface = getattr(source, "__cuda_array_interface__", None)
    if (need.device == "cuda") != (interface is not None):
        here = "in the memory of a GPU" if interface is not None else "not in the memory of a GPU"
        if interface is None and not _has_buffer(source):
            raise _no_buffer(source, need)
        raise bad_buffer(f"{need.what} is {here}, but the optimizer's device is {need.device!r}")
    return _on_host(source, need) if interface is None else _on_gpu(source, interface, need)


def _no_buffer(source: Any, need: Need) -> TypeError:
    hint = " (mofo.torch has an optimizer for PyTorch)" if type(source).__module__.split(".")[0] == "torch" else ""
    return TypeError(
        f"{need.what}: an array, an object with the buffer protocol or an address is needed, "
        f"not {type(source).__name__}{hint}"
    )


def _has_buffer(source: Any) -> bool:
    try:
        memoryview(source).release()
    except TypeError:
        return False
    except (ValueError, BufferError):
        # NumPy's answer for a type of elements that the protocol has no format for.
        return True
    return True


def _at_address(source: Any, need: Need) -> Buffer:
    address = _arguments.integer(f"the address of {need.what}", source, 0, 2**64 - 1)
    if need.numel is None:
        raise _arguments.invalid(f"{need.what} is an address: how many entries are there? (numel=...)")
    if address == 0 and need.numel > 0:
        raise bad_buffer(f"{need.what} is at address 0 (None says that there is none)")
    return Buffer(address, need.numel, _untold_dtype(need, "an address"), None)


def _on_host(source: Any, need: Need) -> Buffer:
    masked = sys.modules.get("numpy.ma")
    if masked is not None and isinstance(source, masked.MaskedArray):
        raise bad_buffer(f"{need.what} is a masked array, whose mask would be ignored: pass its `data`")
    bfloat16 = str(getattr(source, "dtype", "")) == "bfloat16"
    try:
        # ml_dtypes' bfloat16 has no format in the buffer protocol. A view as another type is of the same memory.
        view = memoryview(source.view("uint16") if bfloat16 else source)
    except TypeError:
        raise _no_buffer(source, need) from None
    except (ValueError, BufferError) as error:
        raise bad_buffer(f"{need.what} gives no access to its memory: {error}") from None
    if not view.c_contiguous:
        raise bad_buffer(
            f"{need.what} is not contiguous (shape {view.shape}, strides {view.strides}): "
            "a copy would lose the update. numpy.ascontiguousarray makes one to bind instead"
        )
    if need.writable and view.readonly:
        raise bad_buffer(f"{need.what} is read-only, but is to be written")
    kind = view.format.lstrip("@=<^") if sys.byteorder == "little" else view.format
    if kind in _BYTES:
        dtype = _untold_dtype(need, f"of bytes ({type(source).__name__})")
        if view.nbytes % ITEM_SIZES[dtype]:
            raise bad_buffer(f"{need.what} has {view.nbytes} bytes, no multiple of {ITEM_SIZES[dtype]}")
        numel, shape = view.nbytes // ITEM_SIZES[dtype], None
    else:
        told: tuple[int, ...] = (2,) if bfloat16 else _DTYPES_OF_FORMAT.get(kind, ())
        dtype = _told_dtype(need, told, str(getattr(source, "dtype", f"format {view.format!r}")))
        numel, shape = view.nbytes // view.itemsize, view.shape
    _check_numel(need, numel)
    places = tuple((array, _place(array)) for array in _arrays(source))
    return Buffer(address_of(view), numel, dtype, shape, view, places, need.writable)


def _on_gpu(source: Any, interface: dict[str, Any], need: Need) -> Buffer:
    shape = tuple(interface["shape"])
    numel = 1
    for length in shape:
        numel *= length
    address, readonly = interface["data"]
    if need.writable and readonly:
        raise bad_buffer(f"{need.what} is read-only, but is to be written")
    told = _DTYPES_OF_TYPESTR.get(interface["typestr"], ())
    dtype = _told_dtype(need, told, f"type {interface['typestr']!r}")
    if interface.get("strides") is not None and not _contiguous(shape, interface["strides"], ITEM_SIZES[dtype]):
        raise bad_buffer(f"{need.what} is not contiguous (shape {shape}, strides {tuple(interface['strides'])})")
    _check_numel(need, numel)
    if not address and numel > 0:
        raise bad_buffer(f"{need.what} has no memory")
    return Buffer(address, numel, dtype, shape, source)


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> bool:
    for axis in range(len(shape) - 1, -1, -1):
        if shape[axis] != 1 and strides[axis] != size:
            return False
        size *= shape[axis]
    return True


def _untold_dtype(need: Need, kind: str) -> int:
    """The type of a buffer that does not tell it."""
    if need.dtype is not None:
        return need.dtype
    if need.fallback_dtype is not None:
        return need.fallback_dtype
    raise _arguments.invalid(f"{need.what} is {kind}: of which type are its entries? (dtype=...)")


def _told_dtype(need: Need, told: tuple[int, ...], name: str) -> int:
    """The type of a buffer that tells it, or tells 16 bits of whatever kind."""
    if told == ():
        raise bad_buffer(f"{need.what} holds {name}, but must hold f32, f16 or bf16 (uint16 can stand for bf16)")
    if need.dtype is not None:
        if need.dtype not in told:
            raise bad_buffer(f"{need.what} holds {name}, but must hold {DTYPE_NAMES[need.dtype]}")
        return need.dtype
    if len(told) == 1:
        return told[0]
    if need.fallback_dtype is not None and need.fallback_dtype in told:
        return need.fallback_dtype
    raise _arguments.invalid(f'{need.what} holds {name}, which can be bf16 or f16: say dtype="bf16" (or grad_dtype)')


def _check_numel(need: Need, numel: int) -> None:
    if need.numel is not None and numel != need.numel:
        raise bad_buffer(f"{need.what} has {numel} entries, but must have {need.numel}")


def address_of(view: memoryview) -> int:
    """Where the memory of a contiguous view is, also of a read-only one."""
    buffer = _PyBuffer()
    # 0 is PyBUF_SIMPLE. ctypes raises the exception that Python has set.
    _get_buffer(view, buffer, 0)
    address = buffer.buf or 0
    _release_buffer(buffer)
    return address


def _arrays(source: Any) -> Iterator[Any]:
    """The NumPy arrays whose memory this is, the array itself first. None if NumPy is not in use."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return
    while source is not None:
        if isinstance(source, memoryview):
            source = source.obj
        elif isinstance(source, numpy.ndarray):
            yield source
            source = source.base
        else:
            return


def _place(array: Any) -> _Place:
    return array.__array_interface__["data"][0], array.nbytes, array.dtype
