"""The parameters of an optimizer as they were listed, so that a new group is not compared with each of the others."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from torch import Tensor

from ._memory import Span, span_of


class Listed:
    """Names, identities and places in memory. What has changed since is not noticed: a conflict must be looked at."""

    def __init__(self) -> None:
        self._num_groups = 0
        self._names: set[str] = set()
        self._ids: set[int] = set()
        self._spans: list[Span] = []

    def add(self, names: Sequence[str], params: Sequence[Tensor], number: int) -> bool:
        """Adds group `number`; False, and nothing is added, if there may be a conflict: then look at all."""
        spans = sorted(span for param in params if (span := span_of(param)) is not None)
        new_ids = {id(param) for param in params}
        if (
            number != self._num_groups
            or len(set(names)) < len(names)
            or not self._names.isdisjoint(names)
            or len(new_ids) < len(params)
            or not self._ids.isdisjoint(new_ids)
            or any(_overlap(before, after) for before, after in zip(spans, spans[1:]))
            or any(self._meets(span) for span in spans)
        ):
            return False
        self._num_groups += 1
        self._names.update(names)
        self._ids |= new_ids
        if len(spans) > len(self._spans):
            self._spans = sorted([*self._spans, *spans])
        else:
            for span in spans:
                insort(self._spans, span)
        return True

    def _meets(self, span: Span) -> bool:
        place = bisect_left(self._spans, span)
        return (place > 0 and _overlap(self._spans[place - 1], span)) or (
            place < len(self._spans) and _overlap(span, self._spans[place])
        )


def _overlap(before: Span, after: Span) -> bool:
    return before[:2] == after[:2] and before[3] > after[2]
