"""Steps have the bits of tests/reference/reference.py, which is written in NumPy from docs/numerics.md alone."""

from __future__ import annotations

import sys
import unittest
from typing import Any

import mofo
from support import NO_NUMPY, ROOT, numpy

CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]] = {
    # Options, tensors, arguments of the steps.
    "plain": ({}, [{}, {}], [{}, {}, {}]),
    "decay, blocks, overrides": (
        {"weight_decay": 0.1, "weight_decay_scope": "all", "learning_rate": 0.01},
        [{"num_blocks": 4}, {"update_fraction": 1.0, "weight_decay": 0.0}, {"learning_rate_scale": 0.5}],
        [{}, {"learning_rate": 0.1, "update_fraction": 0.5}, {"tensors": [0, 2]}],
    ),
    "16 bits": (
        {"state_dtype": "bf16", "seed": 2**64 - 1},
        [{"param_dtype": "bf16", "grad_dtype": "bf16"}, {"param_dtype": "f16"}, {"grad_dtype": "f16"}],
        [{"grad_scale": 0.25}, {}, {}],
    ),
    "masters": (
        {"master_weights": True},
        [{"param_dtype": "bf16", "grad_dtype": "bf16"}, {"param_dtype": "f16", "grad_dtype": "f16"}, {}],
        [{}, {}, {}],
    ),
    "rounding to nearest, other betas": (
        {"rounding": "nearest", "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6},
        [{"param_dtype": "bf16"}],
        [{}, {}],
    ),
    "clipping": ({"max_grad_norm": 0.5, "skip_nonfinite": True}, [{}, {}], [{}, {"grad_norm": 3.0}, {}]),
    "filter gradient": ({"filter": "gradient"}, [{}], [{}, {}]),
    "filter update": ({"filter": "update"}, [{}], [{}, {}]),
    "filter random": ({"filter": "random", "seed": 5}, [{}], [{}, {}]),
}

NUMEL = 1000


@unittest.skipIf(numpy is None, NO_NUMPY)
class Reference(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        sys.path.append(str(ROOT / "tests" / "reference"))
        import reference

        cls.reference: Any = reference

    def data(self, random: Any, dtype: str, exponent: float) -> Any:
        values = (random.standard_normal(NUMEL) * 2.0**exponent).astype(numpy.float32)
        return values if dtype == "f32" else self.reference.nearest(values, dtype)

    def assert_same_bits(self, expected: Any, found: Any, what: str) -> None:
        unsigned = {4: numpy.uint32, 2: numpy.uint16}[found.dtype.itemsize]
        same = expected.view(unsigned) == found.view(unsigned)
        self.assertTrue(same.all(), f"{what}: {(~same).sum()} of {same.size} differ")

    def test_bits(self) -> None:
        for case, (options, tensors, steps) in CASES.items():
            with self.subTest(case), mofo.Optimizer(**options) as made:
                self.run_case(made, options, tensors, steps)

    def run_case(self, made: mofo.Optimizer, options: dict[str, Any], tensors: Any, steps: Any) -> None:
        random = numpy.random.default_rng(1)
        expected = self.reference.Optimizer(**options)
        params, grads = [], []
        for index, own in enumerate(tensors):
            types = {"param_dtype": "f32", "grad_dtype": "f32", **own}
            params.append(self.data(random, types["param_dtype"], 0))
            grads.append(self.data(random, types["grad_dtype"], -4))
            expected.add_tensor(self.reference.Tensor(str(index), params[-1], **types))
            types["dtype"] = types.pop("param_dtype")
            made.add(str(index), params[-1], grads[-1], **types)
        for step, arguments in enumerate(steps):
            for index, grad in enumerate(grads):
                grad[:] = self.data(random, tensors[index].get("grad_dtype", "f32"), step - 4)
            _, report = expected.step(grads, **arguments)
            found = made.step(**arguments)
            for name, value in report.items():
                self.assertEqual(getattr(found, name), value, f"step {step}: {name}")
            for index, tensor in enumerate(expected.tensors):
                state = made.state(index)
                self.assertEqual(state.step_count, tensor.step_count)
                self.assert_same_bits(tensor.param, params[index], f"step {step}: {index}: param")
                for what in ("exp_avg", "exp_avg_sq", "thresholds"):
                    self.assert_same_bits(getattr(tensor, what), getattr(state, what), f"step {step}: {index}: {what}")
                if state.master is not None:
                    self.assert_same_bits(tensor.master, state.master, f"step {step}: {index}: master")


if __name__ == "__main__":
    unittest.main()
