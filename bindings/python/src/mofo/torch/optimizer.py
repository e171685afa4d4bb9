"""MoFO as a `torch.optim.Optimizer`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn.parameter import UninitializedParameter
from torch.optim.optimizer import ParamsT

from ._checks import overlapping, what_is_wrong_with
from ._engine import Engine
from ._listed import Listed
from ._loading import prepared, unpacked
from ._names import Names, listed_names
from ._settings import MAX_THREADS, OPTIONS, flag, integer, raw_options, settings_of


class MoFO(torch.optim.Optimizer):
    """AdamW whose update reaches, in each block, only the fraction α of the entries with the largest |momentum|.

    Moments are kept of every entry; a block is a parameter tensor unless `num_blocks` says otherwise. With
    `update_fraction=1` it is AdamW. Works on float32, float16 and bfloat16 parameters of any shape on the CPU and on
    CUDA devices (there on the current stream, without waiting). A parameter may have its dimensions in any order in
    memory, such as `channels_last` or a transposed weight, but no gaps. The result has the same bits on every device
    and with any number of threads.

    Every option can be set for each group; `mofo.torch.param_groups` makes the usual groups. `load_state_dict`,
    schedulers, closures, hooks, `GradScaler`, pickling and `copy.deepcopy` work as with PyTorch's own optimizers;
    options may be changed between steps, betas and weight decay too.

    `state[param]` has `step` (int64, on the CPU), `exp_avg` and `exp_avg_sq` (the parameter's shape and strides, of
    `state_dtype`) and, with `master_weights`, `master` (float32). They are what the optimizer works on, not copies.

    Random bits, where something is rounded stochastically or drawn, depend on `seed`, the parameter's name, its step
    and the entry's place in memory. The name is that of `param_names` if the groups have them (they come from
    `param_groups`, or from `model.named_parameters()` in place of `parameters()`), else "<group>.<position>", counted
    from 0: then a resumed run must make the same groups to get the same bits.

    Args:
        params: parameters, named parameters, or dicts that define groups.
        lr: learning rate, finite, at least 0. A tensor is read at each step.
        betas: decay rates of the moments, each in [0, 1).
        eps: added to the root of the second moment, finite, at least 0.
        weight_decay: decoupled weight decay, finite, at least 0.
        update_fraction: α in (0, 1]; the paper uses 0.03 to 0.2. `floor(α · entries)` entries of a block move, at least
            one, those that tie with the smallest of them too, and never an entry whose momentum is 0.
        num_blocks: cuts a contiguous parameter into this many equal stretches of its entries, in the order of their
            indices, each with its own largest α: for a weight that stacks those of several layers or heads along its
            first dimensions. Must divide the number of entries; whether it divides a dimension is not asked. A
            sequence has one number for each parameter of the group.
        filter: what is compared: "momentum" (MoFO) or, for experiments, "gradient", "update" or "random".
        weight_decay_scope: "selected": weight decay reaches the entries that move; "all": every entry, as in the
            authors' code.
        state_dtype: `torch.float32`, or `torch.bfloat16`, rounded stochastically, of both moments.
        master_weights: keep a float32 copy of each float16 or bfloat16 parameter, whose rounding the parameter is.
            In-place changes of the parameter are taken over, but not those through `param.data`, which PyTorch does
            not tell.
        rounding: of float16 and bfloat16 parameters without a master copy: "stochastic" or "nearest" (updates below
            half a unit in the last place are lost).
        seed: of all random bits, from 0 to 2^64 - 1.
        maximize: climb instead of descend.
        num_threads: threads of a step on the CPU, from 1 to 1024; None: `torch.get_num_threads()`, as it is at each
            step. Of the whole optimizer, not of a group, and no part of the state dict. It changes no bit.
        skip_nonfinite: leave a step out, for all parameters, when a gradient holds a NaN or an infinity, which would
            stop its entries for ever. `skipped_steps` counts such steps, and the first one is a RuntimeWarning that
            names a parameter. Of the whole optimizer, like `num_threads`; may be set between steps. Costs another
            reading of the gradients; on CUDA a step then waits for the backward pass, as with `GradScaler`.

    Attributes:
        skip_nonfinite: as above.
        skipped_steps: how many steps were left out by `skip_nonfinite`. Copied and pickled with the optimizer, but no
            part of the state dict.

    Raises:
        ValueError: an option is out of range; a parameter is neither float32, float16 nor bfloat16, not dense, a
            sharded tensor, or shares memory with another one; a name occurs twice.
        TypeError: an option is of the wrong type.
        mofo.LibraryError: the shared library cannot be loaded. (At the first step.)
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        update_fraction: float = 0.1,
        *,
        num_blocks: int | list[int] | tuple[int, ...] = 1,
        filter: str = "momentum",
        weight_decay_scope: str = "selected",
        state_dtype: torch.dtype = torch.float32,
        master_weights: bool = False,
        rounding: str = "stochastic",
        seed: int = 0,
        maximize: bool = False,
        num_threads: int | None = None,
        skip_nonfinite: bool = True,
    ) -> None:
        values = (
            lr,
            betas,
            eps,
            weight_decay,
            update_fraction,
            num_blocks,
            filter,
            weight_decay_scope,
            state_dtype,
            master_weights,
            rounding,
            seed,
            maximize,
        )
        defaults = dict(zip(OPTIONS, values))
        # The numbers of blocks are of a group's parameters: they are looked at with the group.
        settings_of(raw_options({**defaults, "num_blocks": 1}), 0)
        self._num_threads = None if num_threads is None else integer("num_threads", num_threads, 1, MAX_THREADS)
        self.skip_nonfinite = flag("skip_nonfinite", skip_nonfinite)
        self.skipped_steps = 0
        self._start()
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Loading, copying and unpickling end here, with other tensors than the library knows.
        self._start()
        for name, value in (("_num_threads", None), ("skip_nonfinite", True), ("skipped_steps", 0)):
            self.__dict__.setdefault(name, value)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_num_threads", "skip_nonfinite", "skipped_steps")
        groups = [
            {**group, "param_names": names} if "param_names" in group else group
            for group, names in zip(self.param_groups, self._names.of(self.param_groups))
        ]
        return {**super().__getstate__(), "param_groups": groups, **{name: getattr(self, name) for name in own}}

    def _start(self) -> None:
        """With nothing told to the library, and no parameter listed."""
        self._names = Names()
        self._engine = Engine(self._names)
        self._listed = Listed()

    @_disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in PyTorch. Raises what the constructor raises, and has added nothing then."""
        params = param_group.get("params") if isinstance(param_group, dict) else None
        if not isinstance(params, (Tensor, set)) and isinstance(params, Iterable):
            params = list(params)
            param_group["params"] = params
            if params and all(isinstance(item, tuple) and len(item) == 2 for item in params):
                # Named parameters, which PyTorch knows since 2.6.
                param_group["param_names"] = [name for name, _ in params]
                param_group["params"] = [param for _, param in params]
        super().add_param_group(param_group)
        try:
            self._check_last_group()
        except BaseException:
            self.param_groups.pop()
            raise

    def _check_last_group(self) -> None:
        group = self.param_groups[-1]
        params = group["params"]
        settings = settings_of(raw_options(group), len(params))
        blocks = (settings.num_blocks,) * len(params) if isinstance(settings.num_blocks, int) else settings.num_blocks
        names = listed_names(group, len(self.param_groups) - 1)
        for param, name, num_blocks in zip(params, names, blocks):
            if not isinstance(name, str) or not name or "\0" in name:
                raise ValueError(f"a parameter's name must be a text that is not empty and has no NUL, not {name!r}")
            problem = None if isinstance(param, UninitializedParameter) else what_is_wrong_with(param, num_blocks)
            if problem is not None:
                raise ValueError(f"parameter {name} {problem}")
        if not self._listed.add(names, params, len(self.param_groups) - 1):
            self._check_all_groups(names)
        self._names.add(params, names)

    def _check_all_groups(self, names_of_last: list[str]) -> None:
        names = [*self._names.of(self.param_groups[:-1]), names_of_last]
        named = [item for of_group, group in zip(names, self.param_groups) for item in zip(of_group, group["params"])]
        repeated = _repeated(name for name, _ in named)
        if repeated is not None:
            raise ValueError(f"two parameters are named {repeated}")
        seen: dict[int, str] = {}
        for name, param in named:
            if id(param) in seen:
                raise ValueError(f"parameter {seen[id(param)]} is listed twice, the second time as {name}")
            seen[id(param)] = name
        pair = overlapping(item for item in named if not isinstance(item[1], UninitializedParameter))
        if pair is not None:
            raise ValueError(f"parameters {pair[0]} and {pair[1]} share memory: list only one of them")
        self._listed = Listed()
        for number, group in enumerate(self.param_groups):
            self._listed.add(names[number], group["params"], number)

    def state_dict(self) -> dict[str, Any]:
        """The state and the options, as in PyTorch; `param_names`, where groups have them, are those of `params`."""

        def with_own_names(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            for saved, names in zip(state_dict["param_groups"], self._names.of(self.param_groups)):
                if "param_names" in saved:
                    saved["param_names"] = names

        after = self.register_state_dict_post_hook(with_own_names, prepend=True)
        try:
            return super().state_dict()
        finally:
            after.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` gave, here or of an AdamW.

        The tensors are copied, to the parameters' devices and layouts, and keep their type (PyTorch would cast moments
        to the type of the parameter): at once if somebody else has them too, such as the optimizer that gave them, else
        one after the other in the first step, so that a file which was read is not in memory twice. Training goes on
        with the bits that it would have had. What others keep in the state is passed on as PyTorch does it.

        Parameters are matched by their place in the groups, as in PyTorch; but if both sides have the same
        `param_names` in another order, by their names.

        `lr`, `betas`, `eps`, `weight_decay`, `maximize` and `seed` are those of the state dict, of the groups at the
        same place; all other options, and those that it lacks, stay as the optimizer was made with.

        Raises `ValueError`, and has changed nothing, if groups, shapes, types or steps do not fit, if `state_dtype` is
        another one, or if the state is of another algorithm than AdamW or MoFO: of SGD, with amsgrad, of Adam with a
        weight decay.
        """
        # A hook that comes after all others sees what is to be loaded at last; tensors are boxed, so that PyTorch
        # passes them on as they are; and unpacked before any other hook sees what was loaded.
        before = self.register_load_state_dict_pre_hook(
            lambda _, given: prepared(self.param_groups, self._names.of(self.param_groups), given)
        )
        after = self.register_load_state_dict_post_hook(unpacked, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Steps every parameter that has a gradient; the others, and their state, are left alone.

        If a gradient holds a NaN or an infinity nothing is stepped, unless `skip_nonfinite` is off.

        Args:
            closure: computes the loss with gradients, and returns it.

        Returns what the closure returned, or None.

        Raises:
            mofo.Error: a gradient is sparse, or neither float32, float16 nor bfloat16; a parameter has changed its
                type or its number of entries, has lost its memory, is a negated view, or is on another kind of device
                than CPU and CUDA; the state does not fit. The text names the parameter. Nothing has been stepped.
            ValueError, TypeError: an option of a group was changed to one that is out of range. Nothing has been
                stepped.

        All that is checked before the first parameter is stepped. What only the library can find while it works (no
        memory left, an error of CUDA) comes as a `mofo.Error`, too, but groups that differ in more than `num_blocks`,
        and parameters on several devices, are stepped one call after the other: those of earlier calls are stepped
        then. So it is when Ctrl-C interrupts a step. `step` of each state tells what was stepped.

        A parameter whose memory has moved (`model.to(device)`, `param.data = ...`, `set_`) is followed, and its state
        with it, as long as type and number of entries are the same.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        skip_nonfinite = flag("skip_nonfinite", self.skip_nonfinite)
        was_frozen = self._engine.frozen is not None
        nonfinite = self._engine.step(self.param_groups, self.state, self._num_threads, skip_nonfinite)
        if nonfinite is not None:
            self.skipped_steps += 1
            if self.skipped_steps == 1:
                warnings.warn(
                    f"a step is skipped: the gradient of parameter {nonfinite} holds a NaN or an infinity "
                    "(`skip_nonfinite`; `skipped_steps` counts from now on, without a warning)",
                    RuntimeWarning,
                    stacklevel=2,
                )
        if self._engine.frozen is not None and not was_frozen:
            warnings.warn(
                f"entries of parameter {self._engine.frozen} will never move again: their moments are not finite, "
                "because a gradient was not (`skip_nonfinite` would have skipped the step), or was so large that its "
                "square is not",
                RuntimeWarning,
                stacklevel=2,
            )
        return loss


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
