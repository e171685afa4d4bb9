"""Writes the random bits of docs/numerics.md to standard output, without end, for batteries of statistical tests.

    python stream.py entries | dieharder -g 200 -d 0

The bits of an entry follow one another as a step may use them: the 16 of the first moment, the 16 of the second, the upper
16 of the parameter's, the upper 16 of the filter's. Which entries follow one another is the first argument:

    entries   those of one tensor in one step
    steps     one entry, step after step
    small     64 entries, step after step
    seeds     one entry of the first step, seed after seed

The second argument, if there is one, is the seed, or the first one. Needs what ../reference needs.
"""

import itertools
import pathlib
import signal
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "reference"))
import reference as ref

CHUNK = 1 << 16


def interleaved(seed, t, entries):
    drawn = {stream: ref.random_bits(seed, "weight", t, number, entries) for stream, number in ref.STREAMS.items()}
    for_m, for_v = ref.moment_bits(drawn["moments"])
    each = np.stack([for_m, for_v, drawn["param"], drawn["filter"]], axis=1)
    return (each >> np.uint32(16)).astype("<u2").tobytes()


def chunk(order, seed, i):
    numbers = np.arange(i * CHUNK, (i + 1) * CHUNK, dtype=np.uint64)
    if order == "entries":
        return interleaved(seed, 1, numbers)
    if order == "steps":
        return interleaved(seed, 1 + numbers, 7)
    if order == "small":
        return interleaved(seed, 1 + numbers // 64, numbers % 64)
    if order == "seeds":
        return interleaved(seed + numbers, 1, 7)
    sys.exit(__doc__)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    seed = np.uint64(sys.argv[2] if len(sys.argv) == 3 else 0)
    # A battery that has read enough closes the pipe.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for i in itertools.count():
        sys.stdout.buffer.write(chunk(sys.argv[1], seed, i))


if __name__ == "__main__":
    main()
