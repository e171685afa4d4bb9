"""Threads and processes: one call at a time on an optimizer, many optimizers at once, and forks."""

from __future__ import annotations

import os
import threading
import unittest

import mofo
from support import optimizer, run_python

ENTRIES = 4_000_000


class Threads(unittest.TestCase):
    def test_a_call_during_another_ones_is_refused(self) -> None:
        # That a second thread gets anywhere while the first is in its step shows, too, that the step lets go of the
        # interpreter's lock.
        made, _, _ = optimizer("w", numel=ENTRIES)
        refused, steps, ready = [], [], threading.Barrier(2)

        def run() -> None:
            ready.wait()
            while len(steps) < 2000 and not refused:
                try:
                    made.step()
                    steps.append(1)
                except mofo.Error as error:
                    refused.append(error)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertTrue(refused, f"{len(steps)} steps of two threads, none of them at the same time")
        self.assertEqual(refused[0].status_name, "MOFO_ERROR_INVALID_STATE")
        self.assertIn("in use by another call", str(refused[0]))
        self.assertEqual(made.state("w").step_count, len(steps))

    def test_optimizers_of_their_own_step_at_once(self) -> None:
        results: dict[int, list[float]] = {}

        def train(number: int) -> None:
            made, params, _ = optimizer("w", numel=10_000)
            for _ in range(20):
                made.step()
            results[number] = list(params["w"])
            try:
                made.find(f"missing {number}")
            except mofo.Error as error:
                assert f"missing {number}" in str(error), error
            made.close()

        threads = [threading.Thread(target=train, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(set(results), set(range(8)))
        self.assertTrue(all(result == results[0] for result in results.values()))


@unittest.skipUnless(hasattr(os, "fork"), "this system has no fork")
class Forks(unittest.TestCase):
    def test_a_child_steps_on_with_the_same_bits(self) -> None:
        # A program of its own: children of a process with threads are what newer Pythons warn of.
        program = f"""
import array, os, sys, warnings
warnings.simplefilter("ignore")
import mofo
param = array.array("f", [1.0]) * {ENTRIES}
grad = array.array("f", (i % 977 / 977 for i in range({ENTRIES})))
optimizer = mofo.Optimizer(num_threads=2)
optimizer.add("w", param, grad)
optimizer.step()
read, write = os.pipe()
sys.stdout.flush()
child = os.fork()
optimizer.step()
digest = hash(param.tobytes())
if child == 0:
    os.write(write, str(digest).encode())
    optimizer.close()
    sys.exit(0)
status = os.waitpid(child, 0)[1]
assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, status
assert int(os.read(read, 100)) == digest
optimizer.step()
print("the same")
"""
        done = run_python(program, PYTHONHASHSEED="0")
        self.assertEqual((done.stdout, done.stderr), ("the same\n", ""))

    def test_a_process_ends_with_optimizers_left_open(self) -> None:
        program = """
import array, mofo
optimizer = mofo.Optimizer(num_threads=2)
param, grad = array.array("f", bytes(8_000_000)), array.array("f", bytes(8_000_000))
optimizer.add("w", param, grad)
optimizer.step()
state = optimizer.state("w")
optimizer.cycle = optimizer
print("left open")
"""
        done = run_python(program)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "left open\n", ""))


class TheEnd(unittest.TestCase):
    def test_a_process_ends_while_a_daemon_thread_steps(self) -> None:
        program = f"""
import array, atexit, threading
# Registered before the package is imported, and so called when it has let the others finish.
atexit.register(lambda: at_the_end())
import mofo
param, grad = array.array("f", bytes({4 * ENTRIES})), array.array("f", bytes({4 * ENTRIES}))
optimizer, other = mofo.Optimizer(num_threads=2), mofo.Optimizer(num_threads=1)
for made in (optimizer, other):
    made.add("w", param if made is optimizer else array.array("f", [1.0]), grad if made is optimizer else grad[:1])
stepped, refused = threading.Event(), threading.Event()

def run():
    while True:
        try:
            optimizer.step()
        except mofo.Error as error:
            assert "the process is ending" in str(error), error
            refused.set()
            return
        stepped.set()

thread = threading.Thread(target=run, daemon=True)

def at_the_end():
    assert refused.wait(60)
    thread.join()
    other.step()
    print("the main thread steps on", other.state("w").step_count)

thread.start()
stepped.wait()
"""
        for _ in range(5):
            done = run_python(program)
            self.assertEqual(
                (done.returncode, done.stdout, done.stderr), (0, "the main thread steps on 1\n", ""), done.stderr
            )


if __name__ == "__main__":
    unittest.main()
