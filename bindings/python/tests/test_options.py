"""The settings of an optimizer: C's names, C's defaults, and nothing that ctypes would cut to size."""

from __future__ import annotations

import ctypes
import inspect
import unittest
from dataclasses import fields
from typing import Any

import mofo
from mofo import _declarations as declarations
from mofo import _options
from mofo._library import library
from support import header_fields

DIFFERENT: dict[str, Any] = {
    "device_index": 1,
    "learning_rate": 0.25,
    "beta1": 0.5,
    "beta2": 0.75,
    "epsilon": 0.125,
    "weight_decay": 0.0625,
    "weight_decay_scope": "all",
    "filter": "random",
    "update_fraction": 0.5,
    "state_dtype": "bf16",
    "master_weights": True,
    "rounding": "nearest",
    "skip_nonfinite": True,
    "seed": 2**64 - 1,
    "max_grad_norm": 2.0,
    "num_threads": 3,
    "cpu_tier": "portable",
}
"""A value of each setting that is not its default; the device is left alone, where there is only one."""


class TheOptions(unittest.TestCase):
    def test_are_the_fields_of_the_c_struct_but_for_the_parallel_loop(self) -> None:
        of_c = header_fields("mofo_options")
        expected = [name for name in of_c if name not in ("struct_size", "parallel_for", "parallel_for_ctx")]
        self.assertEqual([field.name for field in fields(mofo.Options)], expected)
        self.assertEqual(list(_options.OptionChanges.__annotations__), expected)

    def test_of_a_step_are_the_fields_of_the_c_struct_but_for_sizes(self) -> None:
        # `report` is returned, and its address only given on CUDA.
        expected = set(header_fields("mofo_step_args")) - {"struct_size", "num_tensors", "report_size"}
        self.assertEqual(set(inspect.signature(mofo.Optimizer.step).parameters) - {"self"}, expected)

    def test_have_the_defaults_of_c(self) -> None:
        defaults = declarations.COptions()
        library().functions.mofo_options_init(defaults, ctypes.sizeof(defaults))
        self.assertEqual(bytes(mofo.Options().to_c()), bytes(defaults))

    def test_reach_c(self) -> None:
        default = mofo.Options().to_c()
        for name, value in DIFFERENT.items():
            with self.subTest(name):
                changed = mofo.Options(**{name: value}).to_c()
                differing = [
                    field[0]
                    for field in changed._fields_
                    if field[0] != "parallel_for" and getattr(changed, field[0]) != getattr(default, field[0])
                ]
                self.assertEqual(differing, [name])
                if isinstance(value, (int, float)):
                    self.assertEqual(getattr(changed, name), value)
        self.assertEqual(set(DIFFERENT) | {"device"}, {field.name for field in fields(mofo.Options)})

    def test_names_are_cs_constants(self) -> None:
        for prefix, values in {
            "MOFO_DEVICE_": _options.DEVICES,
            "MOFO_FILTER_": _options.FILTERS,
            "MOFO_WEIGHT_DECAY_": _options.WEIGHT_DECAY_SCOPES,
            "MOFO_ROUNDING_": _options.ROUNDINGS,
            "MOFO_CPU_TIER_": _options.CPU_TIERS,
        }.items():
            of_c = {name[len(prefix) :].lower(): v for name, v in vars(declarations).items() if name.startswith(prefix)}
            self.assertEqual(values, of_c)

    def test_of_an_optimizer_can_be_read_and_changed_for_another(self) -> None:
        with mofo.Optimizer(learning_rate=0.5, num_threads=1) as first, mofo.Optimizer(first.options, seed=3) as second:
            self.assertEqual(second.options, mofo.Options(learning_rate=0.5, num_threads=1, seed=3))

    def test_out_of_range_are_refused(self) -> None:
        for options, text in [
            ({"learning_rate": float("nan")}, "learning_rate"),
            ({"beta1": 1.0}, "beta1"),
            ({"update_fraction": 0.0}, "update_fraction"),
            ({"learning_rate": 10**400}, "learning_rate"),
            ({"num_threads": 2**32}, "num_threads"),
            ({"num_threads": 1025}, "num_threads"),
            ({"seed": -1}, "seed is -1"),
            ({"seed": 2**64}, "seed"),
            ({"filter": "momentums"}, "'momentums'"),
            ({"state_dtype": "f64"}, "'f64'"),
            ({"state_dtype": "f16"}, "state_dtype"),
        ]:
            with self.subTest(options), self.assertRaisesRegex(mofo.Error, text) as raised:
                mofo.Optimizer(**options)
            self.assertEqual(raised.exception.status_name, "MOFO_ERROR_INVALID_ARGUMENT")

    def test_of_a_wrong_type_are_refused(self) -> None:
        for name, value in [
            ("learning_rate", "1e-3"),
            ("learning_rate", None),
            ("learning_rate", True),
            ("seed", 1.5),
            ("seed", True),
            ("filter", 1),
            ("master_weights", 1),
            ("learning_rates", 0.1),
        ]:
            with self.subTest(name), self.assertRaisesRegex(TypeError, name):
                mofo.Optimizer(**{name: value})

    def test_cuda_is_there_or_says_why_not(self) -> None:
        if mofo.cuda_available():
            mofo.Optimizer(device="cuda").close()
            return
        with self.assertRaises(mofo.Error) as raised:
            mofo.Optimizer(device="cuda")
        self.assertEqual(raised.exception.status_name, "MOFO_ERROR_UNSUPPORTED")


if __name__ == "__main__":
    unittest.main()
