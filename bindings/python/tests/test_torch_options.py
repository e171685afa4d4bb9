"""Every option of the C API can be set in mofo.torch, or is here with the reason why not."""

from __future__ import annotations

import inspect
import unittest

from mofo.torch import MoFO
from mofo.torch._settings import OPTIONS
from support import header_fields

NAMES = {
    "learning_rate": "lr",
    "beta1": "betas",
    "beta2": "betas",
    "epsilon": "eps",
}
"""Where PyTorch has a name of its own."""

NOT_SET = {
    "struct_size": "of the C API alone",
    "device": "where the parameters are",
    "device_index": "where the parameters are",
    "max_grad_norm": "torch.nn.utils.clip_grad_norm_ clips, over all parameters of a model",
    "cpu_tier": "every tier gives the same bits; the environment variable MOFO_CPU_TIER can name one",
    "parallel_for": "its tasks would wait for the interpreter's lock one after the other",
    "parallel_for_ctx": "goes with parallel_for",
    "grad_scale": "`maximize` sets its sign; GradScaler scales gradients itself",
    "grad_norm": "serves max_grad_norm",
    "tensors": "those that have a gradient",
    "num_tensors": "goes with tensors",
    "stream": "PyTorch's current one",
    "report": "what it says of skipped steps is `skipped_steps`",
    "report_size": "goes with report",
    "device_learning_rate": "a learning rate in a tensor is read at each step, which cannot be captured in a graph",
    "device_beta1": "likewise",
    "device_beta2": "likewise",
    "device_epsilon": "likewise",
    "device_weight_decay": "likewise",
}


class EveryOptionOfC(unittest.TestCase):
    def test_can_be_set_or_has_its_reason(self) -> None:
        fields = {*header_fields("mofo_options"), *header_fields("mofo_step_args")}
        arguments = inspect.signature(MoFO).parameters
        settable = {field for field in fields if NAMES.get(field, field) in arguments}
        self.assertEqual(fields - settable, set(NOT_SET))
        of_groups = {NAMES.get(field, field) for field in settable} - {"num_threads", "skip_nonfinite"}
        self.assertEqual(set(OPTIONS) - of_groups, {"num_blocks", "maximize"})


if __name__ == "__main__":
    unittest.main()
