"""Rounds: every contender's step, in turns, on the clock."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .contender import Contender

LEAST_ROW = 1 << 20
"""Entries that a row of steps should go over: below it, a clock and what a wake-up costs say more than the step."""

MOST_STEPS = 128


@dataclass(frozen=True)
class Schedule:
    """How to measure."""

    rounds: int
    warm_up: int
    """Rounds before the first that counts."""
    pause: float
    """Seconds of rest before each row: threads of the contender before may still be spinning."""


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


Clock = Callable[[Contender], float]
"""Makes a contender's step, and says how many seconds it took."""


def timed(clock: Callable[[], float]) -> Clock:
    """By a clock of this machine."""

    def seconds(contender: Contender) -> float:
        start = clock()
        contender.step()
        return clock() - start

    return seconds


CLOCKS = {"wall": timed(time.perf_counter), "processor": timed(time.process_time)}
"""The second counts the time that this process's threads ran."""


def measure(contenders: Sequence[Contender], schedule: Schedule, clock: Clock) -> int:
    """Times all contenders, on the same gradients in a round. Returns the number of steps of a row.

    Small tensors make a row of steps for each time, on new gradients each, after one step that is not timed; the time
    is their mean.
    """
    row = min(MOST_STEPS, max(1, LEAST_ROW // max(contender.entries for contender in contenders)))
    order = orders(len(contenders))
    gc.collect()
    gc.disable()
    for turn in range(-schedule.warm_up, schedule.rounds):
        for contender in [contenders[place] for place in next(order)]:
            first = (turn + schedule.warm_up) * row
            time.sleep(schedule.pause)
            if row > 1:
                contender.load(first + row)
                contender.step()
            total = 0.0
            for step in range(first, first + row):
                contender.load(step)
                total += clock(contender)
                if turn >= 0:
                    contender.settle()
            if turn < 0:
                contender.check()
            else:
                contender.times.append(total / row)
    gc.enable()
    return row
