"""The arrays of what the library keeps: nobody else's memory, not gone while they are there, and written to."""

from __future__ import annotations

import gc
import sys
import tempfile
import unittest
from pathlib import Path

import mofo
from support import floats, numpy, optimizer, run_python


class State(unittest.TestCase):
    def test_is_the_librarys_memory_itself(self) -> None:
        made, params, _ = optimizer("w", update_fraction=1.0)
        state = made.state("w")
        self.assertEqual((state.name, state.index, state.numel, state.num_blocks, state.step_count), ("w", 0, 8, 1, 0))
        self.assertEqual((state.param_dtype, state.grad_dtype, state.state_dtype), ("f32", "f32", "f32"))
        self.assertIsNone(state.master)
        made.step()
        first = list(state.exp_avg)
        self.assertAlmostEqual(first[0], 0.1 / 16, places=6)
        state.exp_avg[0] = 1.0
        self.assertEqual(made.state("w").exp_avg[0], 1.0)
        self.assertEqual(made.state("w").step_count, 1)

    def test_can_be_written_back(self) -> None:
        made, params, grads = optimizer("w")
        made.step()
        state, param = made.state("w"), list(params["w"])
        kept = list(state.exp_avg), list(state.exp_avg_sq)
        made.step()
        after = list(params["w"])

        again = mofo.Optimizer(num_threads=1)
        restored = floats(*param)
        again.add("w", restored, grads["w"])
        for moment, values in zip((again.state("w").exp_avg, again.state("w").exp_avg_sq), kept):
            for i, value in enumerate(values):
                moment[i] = value
        again.set_step_count("w", 1)
        again.step()
        self.assertEqual(list(restored), after)
        for count in (-1, 2**63, 2**64):
            with self.assertRaises(mofo.Error):
                again.set_step_count("w", count)
        self.assertEqual(again.state("w").step_count, 2)

    def test_of_16_bits_and_masters(self) -> None:
        with mofo.Optimizer(state_dtype="bf16", master_weights=True, num_threads=1) as made:
            import array

            made.add("w", array.array("H", [0x3F80] * 4), floats(1, 1, 1, 1), dtype="bf16")
            made.step()
            state = made.state("w")
            self.assertEqual((state.param_dtype, state.grad_dtype, state.state_dtype), ("bf16", "f32", "bf16"))
            self.assertTrue(all(0x3DCC <= value <= 0x3DCD for value in state.exp_avg), list(state.exp_avg))
            self.assertEqual(len(state.master), 4)
            self.assertAlmostEqual(state.master[0], 0.999, places=4)

    def test_thresholds_are_read_only(self) -> None:
        made, _, _ = optimizer("w")
        with self.assertRaises((TypeError, ValueError)):
            made.state("w").thresholds[0] = 1.0

    def test_is_of_numpy_where_it_is(self) -> None:
        made, _, _ = optimizer("w")
        self.assertIs(type(made.state("w").exp_avg), memoryview if numpy is None else numpy.ndarray)

    def test_outlives_the_optimizer(self) -> None:
        made, _, _ = optimizer("w", numel=100_000)
        made.step()
        state = made.state("w")
        last = state.exp_avg_sq[-10:]
        expected = list(last)
        made.close()
        del made, state
        gc.collect()
        others = [bytearray(100_000) for _ in range(100)]
        self.assertEqual(list(last), expected)
        del others

    def test_is_freed_by_close_if_nobody_looks_at_it(self) -> None:
        made, _, _ = optimizer("w")
        made.step()
        handle = made._handle
        assert handle is not None
        moment = made.state("w").exp_avg
        self.assertTrue(handle.lent())
        del moment
        self.assertFalse(handle.lent())
        self.assertTrue(handle.destroy.alive)
        made.close()
        self.assertFalse(handle.destroy.alive)

    def test_keeps_its_tensor_from_being_removed(self) -> None:
        made, _, _ = optimizer("a", "b")
        state = made.state("a")
        moment = state.exp_avg
        del state
        with self.assertRaisesRegex(mofo.Error, "in use") as raised:
            made.remove("a")
        self.assertEqual(raised.exception.status_name, "MOFO_ERROR_INVALID_STATE")
        self.assertEqual(made.step().entries, 16)
        made.remove("b")
        del moment
        made.remove("a")

    def test_is_freed_when_nobody_looks_at_it_any_more(self) -> None:
        # Each has 16 MB of state; what is not freed shows.
        program = """
import array, mofo, resource
param, grad = array.array("f", bytes(8_000_000)), array.array("f", bytes(8_000_000))
for i in range(40):
    optimizer = mofo.Optimizer(num_threads=1)
    optimizer.add("w", param, grad)
    optimizer.step()
    state = optimizer.state("w")
    if i % 2:
        optimizer.close()
    if i == 4:
        early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert state.exp_avg[0] == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early)
"""
        done = run_python(program)
        self.assertEqual(done.stderr, "")
        self.assertLess(int(done.stdout) * (1 if sys.platform == "darwin" else 1024), 100e6)


class Checkpoints(unittest.TestCase):
    def test_bring_training_back_to_where_it_was(self) -> None:
        for way in ("memory", "str", "Path", "bytes"):
            with self.subTest(way), tempfile.TemporaryDirectory() as folder:
                made, params, grads = optimizer("a", "größe", seed=7, filter="random")
                made.step()
                made.step(tensors=["a"])
                path = str(Path(folder) / "zustand-ä.safetensors")
                data = made.save_to_memory()
                made.save(path)
                self.assertEqual(Path(path).read_bytes(), bytes(data))
                params_then = {name: floats(*values) for name, values in params.items()}
                made.step()

                # In another order, with another seed: that of the checkpoint counts.
                again = mofo.Optimizer(num_threads=1, filter="random", seed=1)
                for name in ("größe", "a"):
                    again.add(name, params_then[name], grads[name])
                if way == "memory":
                    again.load_from_memory(memoryview(data).toreadonly())
                else:
                    again.load({"str": path, "Path": Path(path), "bytes": path.encode()}[way])
                self.assertEqual([again.state(name).step_count for name in ("a", "größe")], [2, 1])
                again.step()
                self.assertEqual(params_then, params)

    def test_are_loaded_in_part_where_that_is_asked_for(self) -> None:
        made, _, _ = optimizer("a", "b", "c", seed=7)
        made.step()
        data = made.save_to_memory()
        other, _, _ = optimizer("removed", "new", "b")
        other.remove("removed")
        before = other.save_to_memory()
        with self.assertRaises(mofo.Error):
            other.load_from_memory(data)
        with self.assertRaises(TypeError):
            other.load_from_memory(data, partial=1)  # type: ignore[arg-type]
        self.assertEqual(other.save_to_memory(), before)
        report = other.load_from_memory(data, partial=True)
        self.assertEqual(report, mofo.LoadReport(loaded=("b",), missing=("new",), ignored=2))
        self.assertEqual(list(other.state("b").exp_avg), list(made.state("b").exp_avg))
        self.assertEqual([other.state(name).step_count for name in ("b", "new")], [1, 0])
        with tempfile.TemporaryDirectory() as folder:
            made.save(Path(folder) / "file")
            self.assertEqual(other.load(Path(folder) / "file", partial=True), report)
            self.assertEqual(made.load(Path(folder) / "file"), mofo.LoadReport(("a", "b", "c"), (), 0))
        strange, _, _ = optimizer("x")
        with self.assertRaisesRegex(mofo.Error, "none of the optimizer's tensors"):
            strange.load_from_memory(data, partial=True)

    def test_that_do_not_fit_are_refused_and_change_nothing(self) -> None:
        made, _, _ = optimizer("w")
        made.step()
        data = made.save_to_memory()
        other, _, _ = optimizer("other")
        other.step()
        before = other.save_to_memory()
        for broken in (data, data[:-1], b"", bytes(len(data))):
            with self.assertRaises(mofo.Error) as raised:
                other.load_from_memory(broken)
            self.assertIn(raised.exception.status_name, ("MOFO_ERROR_CHECKPOINT", "MOFO_ERROR_INVALID_ARGUMENT"))
        self.assertEqual(other.save_to_memory(), before)

    def test_that_are_not_there_or_cannot_be_written_are_errors_of_the_system(self) -> None:
        made, _, _ = optimizer("w")
        with tempfile.TemporaryDirectory() as folder:
            for call in (made.load, made.save):
                with self.subTest(call), self.assertRaises(mofo.Error) as raised:
                    call(Path(folder) / "missing" / "file")
                self.assertEqual(raised.exception.status_name, "MOFO_ERROR_IO")
        for path in ("", "a\0b"):
            with self.assertRaises(mofo.Error) as raised:
                made.save(path)
            self.assertEqual(raised.exception.status_name, "MOFO_ERROR_INVALID_ARGUMENT")
        with self.assertRaises(TypeError):
            made.save(3)  # type: ignore[arg-type]
        with self.assertRaises(TypeError):
            made.load_from_memory("text")
        self.assertEqual(made.step().entries, 8)

    def test_nothing_is_kept_of_tensors_that_were_removed(self) -> None:
        made, params, grads = optimizer("a")
        made.step()
        for _ in range(20):
            made.add("b", params["a"][:], grads["a"])
            made.state("b")
            made.remove("b")
        self.assertLessEqual(len(made._handle._views), 1)


if __name__ == "__main__":
    unittest.main()
