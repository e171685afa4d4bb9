"""The names of parameters: each stays with its parameter from when it was listed, whoever edits the groups since.

Groups are edited by others: to freeze layers, their parameters are taken out of `params`; ZeroRedundancyOptimizer gives
each process a part of them, in another order. `param_names` stays as it was then, and tells by its places no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# Those that `param_groups` gave last, by parameter.
_given: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def remember(params: Iterable[Tensor], names: Iterable[str]) -> None:
    """Notes the names that a group is made with, for when only a part of it comes here."""
    for param, name in zip(params, names):
        _given[param] = name


def listed_names(group: Mapping[str, Any], number: int) -> list[str]:
    """The names of a group's parameters: those that were given, else "<group>.<position>".

    Raises `ValueError` if `param_names` does not tell them, `TypeError` if it is no list.
    """
    count, given = len(group["params"]), group.get("param_names")
    if given is None:
        return [f"{number}.{position}" for position in range(count)]
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"param_names must be a list of names, not {given!r}")
    found = _proposed(group["params"], given)
    if found is None:
        raise ValueError(f"parameter group {number} has {count} parameters and {len(given)} names (param_names)")
    return found


def _proposed(params: Sequence[Tensor], given: Sequence[str]) -> list[str] | None:
    """The names that were made together with these parameters, if they are among those given; else by their places."""
    remembered = [_given[param] for param in params if param in _given]
    if len(remembered) == len(params) and set(remembered) <= set(given):
        return remembered
    return list(given) if len(given) == len(params) else None


class Names:
    """The names of an optimizer's parameters."""

    def __init__(self) -> None:
        self._of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def add(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        """Lists parameters under these names."""
        for param, name in zip(params, names):
            self._of[param] = name

    def of(self, groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """The names of all parameters, group by group; those that are seen for the first time are listed now."""
        taken = {self._of[param] for group in groups for param in group["params"] if param in self._of}
        found = []
        for number, group in enumerate(groups):
            params, given = group["params"], group.get("param_names")
            proposed = None if given is None else _proposed(params, given)
            for position, param in enumerate(params):
                if param in self._of:
                    continue
                name = f"{number}.{position}" if proposed is None else proposed[position]
                while name in taken:
                    position += 1
                    name = f"{number}.{position}"
                taken.add(name)
                self._of[param] = name
            found.append([self._of[param] for param in params])
        return found
