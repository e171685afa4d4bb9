"""Parameter tensors: what was said of them, checked, and the buffers that are theirs."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from . import _arguments
from ._arguments import DTYPES
from ._buffers import Buffer, Need, bad_buffer, look_at
from ._declarations import CTensor
from ._library import library
from ._options import Options


@dataclass
class Tensor:
    """A tensor's buffers, which must not go before the library lets go of them."""

    name: str
    numel: int
    shape: tuple[int, ...] | None
    param_dtype: int
    grad_dtype: int
    param: Buffer | None
    grad: Buffer | None
    state: dict[str, Buffer]

    def check_places(self, *, state_only: bool = False) -> None:
        """Raises if an array that the library would use is not where it was when it was bound."""
        bound = {} if state_only else {"param": self.param, "grad": self.grad}
        for what, buffer in (*bound.items(), *self.state.items()):
            if buffer is not None and buffer.moved():
                again = "bind the tensor again" if what in bound else "remove the tensor and add it again"
                raise bad_buffer(
                    f'tensor "{self.name}": the array that is bound as {what} was resized, moved or given another '
                    f"type: {again}"
                )
            if buffer is not None and buffer.locked() and not state_only:
                raise bad_buffer(f'tensor "{self.name}": the array that is bound as {what} has become read-only')

    def rebind(self, param: Buffer | None, grad: Buffer | None) -> None:
        """Takes these buffers in place of those that were bound."""
        self.param, self.grad = param, grad
        if param is not None and param.shape is not None:
            self.shape = param.shape


def describe(
    options: Options,
    name: str,
    param: Any,
    grad: Any,
    numel: int | None,
    dtype: str | None,
    grad_dtype: str | None,
    state: dict[str, Any],
) -> tuple[CTensor, Tensor]:
    """The buffers of a tensor to be, looked at, and the C struct with them, its size and its types."""
    c_tensor = CTensor()
    library().check(library().functions.mofo_tensor_init(c_tensor, ctypes.sizeof(c_tensor)))
    c_tensor.name = _arguments.text("the name", name)
    device = options.device
    entries = None if numel is None else _arguments.count("numel", numel)
    param_type = None if dtype is None else _arguments.choice("dtype", dtype, DTYPES)
    grad_type = None if grad_dtype is None else _arguments.choice("grad_dtype", grad_dtype, DTYPES)
    bound_param = bound_grad = None
    if param is not None:
        bound_param = look_at(param, Need(f'tensor "{name}": param', device, True, param_type, numel=entries))
        param_type, entries = bound_param.dtype, bound_param.numel
    if grad is not None:
        bound_grad = look_at(grad, Need(f'tensor "{name}": grad', device, False, grad_type, param_type, entries))
        grad_type, entries = bound_grad.dtype, bound_grad.numel
    if entries is None:
        raise _arguments.invalid(
            f'tensor "{name}": with neither param nor grad, how many entries are there? (numel=...)'
        )
    # Without a parameter its type is that of the gradient, and C's default without either.
    if param_type is None:
        param_type = grad_type or 0
    tensor = Tensor(
        name=name,
        numel=entries,
        shape=None if bound_param is None else bound_param.shape,
        param_dtype=param_type,
        grad_dtype=param_type if grad_type is None else grad_type,
        param=bound_param,
        grad=bound_grad,
        state={},
    )
    if bound_grad is not None:
        check_shapes(name, tensor.shape, bound_grad)
    for what, source in state.items():
        if source is not None:
            kind = 0 if what == "master" else DTYPES[options.state_dtype]
            tensor.state[what] = look_at(source, Need(f'tensor "{name}": {what}', device, True, kind, numel=entries))
            setattr(c_tensor, what, tensor.state[what].address)
    c_tensor.numel, c_tensor.param_dtype, c_tensor.grad_dtype = tensor.numel, tensor.param_dtype, tensor.grad_dtype
    c_tensor.param, c_tensor.grad = address(tensor.param), address(tensor.grad)
    return c_tensor, tensor


def address(buffer: Buffer | None) -> int | None:
    """Where a buffer is; None, which is NULL, for none."""
    return None if buffer is None else buffer.address


def check_shapes(name: str, shape: tuple[int, ...] | None, grad: Buffer) -> None:
    """A gradient has the parameter's shape, unless one of them is flat or has none."""
    if shape is None or grad.shape is None or len(shape) == 1 or len(grad.shape) == 1:
        return
    if grad.shape != shape:
        raise bad_buffer(f'tensor "{name}": grad has shape {grad.shape}, but param has {shape}')
