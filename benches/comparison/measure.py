"""Rounds: every contender's step, in turns, on the clock."""

import gc
import time
from ctypes import c_void_p
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from libmofo import Library

from .contender import Contender
from .rounds import orders

Times: TypeAlias = list[float | None]
"""Seconds a step, in each round; None where a slow contender sat the round out."""


@dataclass(frozen=True)
class Schedule:
    """How to measure."""

    rounds: int
    slow_rounds: int
    """In how many of them each slow contender takes part."""
    batch: int
    """Steps in a row that make one time, their mean. With more than one, the row starts with a step not timed."""
    pause: float
    """Seconds of rest before each row: threads of the contender before may still be spinning."""


def slow_turns(slow: list[str], schedule: Schedule) -> list[list[str]]:
    """The slow contenders of each round: each takes part in rounds spread evenly, different ones where possible."""
    turns: list[list[str]] = [[] for _ in range(schedule.rounds)]
    for place, name in enumerate(slow):
        for i in range(schedule.slow_rounds):
            turns[int((i + place / len(slow)) * schedule.rounds / schedule.slow_rounds)].append(name)
    return turns


def measure(contenders: dict[str, Contender], schedule: Schedule) -> dict[str, Times]:
    """Times all contenders.

    In a round all of them get the same gradients. The slow ones come last in their rounds. They allocate and free
    gigabytes, from which the system takes a while to recover: so the others make a step that is not timed after them.
    """
    fast = [name for name, contender in contenders.items() if not contender.slow]
    slow = [name for name, contender in contenders.items() if contender.slow]
    times: dict[str, Times] = {name: [None] * schedule.rounds for name in contenders}
    gc.collect()
    gc.disable()
    order = orders(len(fast))
    for turn, slow_ones in enumerate(slow_turns(slow, schedule)):
        for name in [fast[i] for i in next(order)] + slow_ones:
            times[name][turn] = time_row(contenders[name], turn * schedule.batch, schedule)
        if slow_ones:
            for name in fast:
                contenders[name].step()
    gc.enable()
    return times


def time_row(contender: Contender, first: int, schedule: Schedule) -> float:
    """The mean time of the row of steps from number `first` on, in seconds."""
    time.sleep(schedule.pause)
    if schedule.batch > 1:
        contender.load(first - 1)
        contender.step()
    seconds = 0.0
    for step in range(first, first + schedule.batch):
        contender.load(step)
        start = time.perf_counter()
        contender.step()
        seconds += time.perf_counter() - start
        contender.settle()
    return seconds / schedule.batch


def nanoseconds_of_a_call(library: Library) -> float:
    """What a call of the library through ctypes takes: that of one pointer argument which returns at once."""
    function, argument = library.functions.mofo_destroy, c_void_p()

    def sample(calls: int = 10_000) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function(argument)
        return (time.perf_counter() - start) / calls * 1e9

    return median(sample() for _ in range(11))


def nanoseconds_of_the_clock() -> float:
    """What is measured where nothing lies between two readings of the clock."""
    differences = []
    for _ in range(10_000):
        start = time.perf_counter()
        differences.append(time.perf_counter() - start)
    return median(differences) * 1e9
