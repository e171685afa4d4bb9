"""Who goes when in a round, and what can be said about a median of rounds. Needs no PyTorch."""

import math
from collections.abc import Iterator, Sequence


def orders(count: int) -> Iterator[list[int]]:
    """Orders of `count` contenders, rotated from round to round.

    They are the rows of a Williams square, then the same backwards: each contender runs equally often in each place,
    and equally often after each other one, so that none profits from what its predecessor leaves behind.
    """
    first = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(count)]
    while True:
        for backwards in (False, True):
            for shift in range(max(count, 1)):
                row = [(place + shift) % count for place in first]
                yield row[::-1] if backwards else row


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The interval between two order statistics that holds the median, and its actual confidence.

    It assumes nothing about the distribution. With fewer than six values it is the whole range, at less confidence.
    """
    ordered = sorted(values)
    count = len(ordered)

    def held(skipped: int) -> float:
        """Probability that the median lies within the values, `skipped` of them left out at either end."""
        outside: int = 2 * sum(math.comb(count, below) for below in range(skipped + 1))
        return 1 - outside / (1 << count)

    skipped = 0
    while 2 * skipped + 2 < count and held(skipped + 1) >= confidence:
        skipped += 1
    return ordered[skipped], ordered[count - 1 - skipped], held(skipped)
