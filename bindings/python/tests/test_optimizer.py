"""Steps, names and indices, overrides, and what becomes of an optimizer."""

from __future__ import annotations

import copy
import math
import pickle
import unittest
from typing import Any

import mofo
from support import floats, optimizer


def adamw(param: list[float], grads: list[list[float]], *options: dict[str, float]) -> list[float]:
    """AdamW of one tensor in doubles, one step for each of `grads`, with the options of each step in turn."""
    first, second = [0.0] * len(param), [0.0] * len(param)
    for t, grad in enumerate(grads, start=1):
        values = options[(t - 1) % len(options)]
        rate, decay = values.get("learning_rate", 1e-3), values.get("weight_decay", 0.0)
        beta1, beta2 = values.get("beta1", 0.9), values.get("beta2", 0.999)
        first = [beta1 * m + (1 - beta1) * g for m, g in zip(first, grad)]
        second = [beta2 * v + (1 - beta2) * g * g for v, g in zip(second, grad)]
        for i, (m, v) in enumerate(zip(first, second)):
            update = (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + values.get("epsilon", 1e-8))
            param[i] -= rate * decay * param[i] + rate * update
    return param


class Steps(unittest.TestCase):
    def assert_close(self, one: Any, other: Any) -> None:
        self.assertEqual(len(one), len(other))
        for a, b in zip(one, other):
            self.assertAlmostEqual(a, b, places=5)

    def test_with_an_update_fraction_of_1_are_adamw(self) -> None:
        options = {"learning_rate": 0.01, "weight_decay": 0.1}
        made, params, grads = optimizer("w", update_fraction=1.0, **options)
        start, all_grads = list(params["w"]), []
        for step in range(5):
            grads["w"][step] = step / 3
            all_grads.append(list(grads["w"]))
            made.step()
        self.assert_close(params["w"], adamw(start, all_grads, options))

    def test_take_their_own_betas_epsilon_and_weight_decay(self) -> None:
        schedule = [
            {"learning_rate": 0.01, "beta1": 0.95, "beta2": 0.9, "epsilon": 0.01, "weight_decay": 0.5},
            {"learning_rate": 0.02, "beta1": 0.5, "beta2": 0.99, "epsilon": 1e-4, "weight_decay": 0.0},
            {"learning_rate": 0.01, "beta1": 0.0, "beta2": 0.0, "epsilon": 0.1, "weight_decay": 1.0},
            {},
        ]
        made, params, grads = optimizer("w", update_fraction=1.0)
        start, all_grads = list(params["w"]), []
        for step in range(8):
            grads["w"][step] = step / 3
            all_grads.append(list(grads["w"]))
            made.step(**schedule[step % 4])
        self.assert_close(params["w"], adamw(start, all_grads, *schedule))
        for wrong in ({"beta1": 1.0}, {"beta2": -0.5}, {"epsilon": -1.0}, {"weight_decay": math.nan}):
            before = list(params["w"])
            with self.assertRaisesRegex(mofo.Error, next(iter(wrong))):
                made.step(**wrong)
            self.assertEqual(list(params["w"]), before)
        made.wait()

    def test_move_the_largest_share_of_each_block(self) -> None:
        made = mofo.Optimizer(update_fraction=0.25, num_threads=1)
        param = floats(*[1.0] * 8)
        made.add("w", param, floats(1, 2, 3, 4, -8, 7, 6, 5), num_blocks=2)
        self.assertEqual(made.step().entries_selected, 2)
        self.assertEqual([value != 1 for value in param], [False] * 3 + [True] * 2 + [False] * 3)
        self.assertEqual(made.state("w").num_blocks, 2)
        self.assert_close(made.state("w").thresholds, [0.4, 0.8])

    def test_count_tensors_without_entries(self) -> None:
        made, params, _ = optimizer("w", update_fraction=0.25)
        expected, expected_params, _ = optimizer("w", update_fraction=0.25)
        made.add("array", floats(), floats())
        made.add("address", 0, 0, numel=0, dtype="bf16")
        made.add("unbound", numel=0)
        self.assertEqual(made.step().entries, 8)
        expected.step()
        self.assertEqual(params, expected_params)
        self.assertEqual(made.grad_norm(), expected.grad_norm())
        for name in ("array", "address", "unbound"):
            state = made.state(name)
            self.assertEqual((state.numel, state.step_count, state.master), (0, 1, None))
            self.assertEqual((len(state.exp_avg), len(state.exp_avg_sq), len(state.thresholds)), (0, 0, 1))
        with self.assertRaisesRegex(mofo.Error, "address 0"):
            made.add("v", 0, numel=1, dtype="f32")

    def test_report_what_they_did(self) -> None:
        made, _, grads = optimizer("a", "b", update_fraction=0.25)
        norm = math.sqrt(2 * sum(g * g for g in grads["a"]))
        report = made.step()
        self.assertEqual((report.entries, report.entries_selected, report.skipped, report.status), (16, 4, False, 0))
        self.assertEqual(report.tensors, 2)
        self.assertIsNone(report.grad_norm)
        self.assertFalse(report.launched)
        self.assertAlmostEqual(made.grad_norm(grad_scale=-2), 2 * norm, places=5)
        self.assertAlmostEqual(made.grad_norm(tensors=["a"]), norm / math.sqrt(2), places=5)
        self.assertEqual(made.step(grad_norm=5.0).grad_norm, 5.0)

    def test_take_their_own_rate_fraction_and_scale(self) -> None:
        made, params, _ = optimizer("w")
        before = list(params["w"])
        report = made.step(learning_rate=0.5, update_fraction=1.0, grad_scale=0.5)
        self.assertEqual(report.entries_selected, 8)
        for i, (old, new) in enumerate(zip(before, params["w"])):
            self.assertAlmostEqual(new, old - 0.5 * (-1) ** i, places=5)
        self.assert_close(made.state("w").exp_avg, [0.05 * (i + 1) / 16 * (-1) ** i for i in range(8)])

    def test_of_some_tensors_leave_the_others_alone(self) -> None:
        made, params, _ = optimizer("a", "b", "c")
        before = list(params["b"])
        self.assertEqual(made.step(tensors=["c", 0]).entries, 16)
        self.assertEqual(list(params["b"]), before)
        self.assertEqual([made.state(name).step_count for name in "abc"], [1, 0, 1])
        self.assertEqual(made.step(tensors=[]).tensors, 0)
        self.assertEqual(made.step(tensors=(name for name in "b")).entries, 8)
        with self.assertRaisesRegex(mofo.Error, "'d'") as raised:
            made.step(tensors=["a", "d"])
        self.assertEqual(raised.exception.status_name, "MOFO_ERROR_NOT_FOUND")
        with self.assertRaises(mofo.Error):
            made.step(tensors=["a", "a"])
        with self.assertRaises(TypeError):
            made.step(tensors="a")
        self.assertEqual([made.state(name).step_count for name in "abc"], [1, 1, 1])

    def test_that_are_skipped_change_nothing(self) -> None:
        made, params, grads = optimizer("w", skip_nonfinite=True)
        grads["w"][3] = math.nan
        before = list(params["w"])
        report = made.step()
        self.assertTrue(report.skipped)
        self.assertEqual((report.status, report.entries, report.entries_selected), (1, 8, 0))
        self.assertTrue(math.isnan(report.grad_norm or 0.0))
        self.assertEqual((list(params["w"]), made.state("w").step_count), (before, 0))

    def test_clip_by_the_norm(self) -> None:
        made, _, _ = optimizer("w", max_grad_norm=0.5)
        report = made.step(grad_norm=5.0)
        self.assertEqual(report.grad_norm, 5.0)
        self.assert_close(made.state("w").exp_avg, [0.01 * (i + 1) / 16 * (-1) ** i for i in range(8)])

    def test_overrides_of_a_tensor_hold(self) -> None:
        made, params, grads = optimizer(learning_rate=0.5, update_fraction=0.125, weight_decay=0.5)
        arrays = {name: floats(*[1.0] * 8) for name in ("plain", "all", "no decay", "slow", "late")}
        for name, own in {
            "plain": {},
            "all": {"update_fraction": 1},
            "no decay": {"weight_decay": 0.0, "update_fraction": 1.0},
            "slow": {"learning_rate_scale": 0.0, "update_fraction": 1.0},
        }.items():
            made.add(name, arrays[name], floats(*[1.0] * 7, 2.0), **own)
        made.step()
        self.assertEqual(sum(value != 1 for value in arrays["plain"]), 1)
        self.assert_close(arrays["all"], [0.25] * 8)
        self.assert_close(arrays["no decay"], [0.5] * 8)
        self.assertEqual(list(arrays["slow"]), [1.0] * 8)

    def test_out_of_range_are_refused_and_change_nothing(self) -> None:
        made, params, _ = optimizer("w", update_fraction=1.0)
        before = list(params["w"])
        for arguments, text in [
            ({"learning_rate": -1.0}, "learning_rate is -1.0"),
            ({"learning_rate": -2.0}, "learning_rate"),
            ({"update_fraction": 2.0}, "update_fraction"),
            ({"update_fraction": -1}, "update_fraction is -1"),
            ({"grad_scale": math.inf}, "grad_scale"),
            ({"grad_norm": -1.0}, "grad_norm"),
            ({"stream": 4096}, "stream"),
            ({"report": 4096}, "report"),
            ({"device_learning_rate": 4096}, "device_learning_rate"),
        ]:
            with self.subTest(arguments), self.assertRaisesRegex(mofo.Error, text) as raised:
                made.step(**arguments)
            self.assertEqual(raised.exception.status_name, "MOFO_ERROR_INVALID_ARGUMENT")
        with self.assertRaisesRegex(TypeError, "learning_rate"):
            made.step(learning_rate="fast")
        self.assertEqual((list(params["w"]), made.state("w").step_count), (before, 0))

    def test_before_there_is_a_tensor_are_refused(self) -> None:
        with mofo.Optimizer() as made, self.assertRaises(mofo.Error) as raised:
            made.step()
        self.assertEqual(raised.exception.status_name, "MOFO_ERROR_INVALID_STATE")


class Tensors(unittest.TestCase):
    def test_are_found_by_name_and_by_index(self) -> None:
        made, _, _ = optimizer("a", "b")
        self.assertEqual((made.find("b"), made.tensors, len(made)), (1, {"a": 0, "b": 1}, 2))
        self.assertEqual(made.state(1).name, "b")
        made.remove("a")
        self.assertEqual(made.tensors, {"b": 1})
        self.assertEqual(made.add("a", floats(1)), 2)
        for call in (made.find, made.state, made.remove, made.bind):
            with self.subTest(call), self.assertRaisesRegex(mofo.Error, "nothing") as raised:
                call("nothing")
            self.assertEqual(raised.exception.status_name, "MOFO_ERROR_NOT_FOUND")
        for index in (0, 7):
            with self.assertRaisesRegex(mofo.Error, f"index {index}"):
                made.state(index)
        with self.assertRaises(mofo.Error):
            made.state(-1)
        with self.assertRaises(TypeError):
            made.state(None)  # type: ignore[arg-type]

    def test_say_what_they_need(self) -> None:
        sizes = mofo.state_size(1000, dtype="bf16", options=mofo.Options(state_dtype="bf16", master_weights=True))
        self.assertEqual((sizes.exp_avg, sizes.exp_avg_sq, sizes.master), (2000, 2000, 4000))
        self.assertGreaterEqual(sizes.allocated, 8000)
        own = mofo.state_size(1000, exp_avg=True, exp_avg_sq=True)
        self.assertLess(own.allocated, 8000)
        with mofo.Optimizer(state_dtype="bf16") as made:
            self.assertEqual(made.state_size(1000).exp_avg, 2000)
        with self.assertRaises(mofo.Error):
            mofo.state_size(10, num_blocks=3)
        with self.assertRaises(TypeError):
            mofo.state_size(10, master=1)  # type: ignore[arg-type]

    def test_memory_is_that_of_all(self) -> None:
        made, _, _ = optimizer("a", "b")
        memory = made.memory()
        self.assertEqual((memory.num_tensors, memory.entries, memory.caller_state), (2, 16, 0))
        self.assertGreaterEqual(memory.state, 2 * 2 * 32)


class AnOptimizer(unittest.TestCase):
    def test_that_was_closed_refuses_every_call(self) -> None:
        made, _, _ = optimizer("w")
        made.close()
        made.close()
        self.assertTrue(made.closed)
        for call in (
            made.step,
            made.grad_norm,
            made.memory,
            made.save_to_memory,
            made.__enter__,
            lambda: made.cpu_tier,
            lambda: made.state("w"),
            lambda: made.add("v", floats(1)),
            lambda: made.bind("w", None),
            lambda: made.remove("w"),
            lambda: made.find("w"),
            lambda: made.set_step_count("w", 1),
            lambda: made.state_size(1),
            lambda: made.save("nowhere"),
            lambda: made.load("nowhere"),
            lambda: made.load_from_memory(b""),
        ):
            with self.assertRaisesRegex(mofo.Error, "closed") as raised:
                call()
            self.assertEqual(raised.exception.status_name, "MOFO_ERROR_INVALID_STATE")

    def test_is_closed_by_with(self) -> None:
        with mofo.Optimizer() as made:
            self.assertFalse(made.closed)
            self.assertIn("0 tensors", repr(made))
        self.assertIn("closed", repr(made))

    def test_cannot_be_copied(self) -> None:
        made, _, _ = optimizer("w")
        for copying in (copy.copy, copy.deepcopy, pickle.dumps):
            with self.assertRaisesRegex(TypeError, "save_to_memory"):
                copying(made)

    def test_has_the_tier_that_was_asked_for(self) -> None:
        with mofo.Optimizer(cpu_tier="portable") as made:
            self.assertEqual(made.cpu_tier, "portable")
        with mofo.Optimizer() as made:
            self.assertIn(made.cpu_tier, ("portable", "avx2", "avx512"))

    def test_reads_the_report_that_a_gpu_has_written(self) -> None:
        import struct

        written = struct.pack("<dQQiiQQQQ", -1.0, 10, 0, 1, 1, 3, 2, 4, 5)
        self.assertEqual(len(written), mofo.REPORT_SIZE)
        report = mofo.StepReport.from_bytes(written)
        self.assertEqual(report, mofo.StepReport(None, 10, 0, True, 3, 2, 4, 5, 1, False))


if __name__ == "__main__":
    unittest.main()
