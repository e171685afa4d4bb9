"""MoFO as a PyTorch optimizer.

`MoFO` is a `torch.optim.Optimizer` for parameters on the CPU and on NVIDIA GPUs; `param_groups` makes the groups that
the paper's authors use. docs/python.md is the guide. Needs PyTorch 2.4 or newer.
"""

from ._groups import param_groups
from .optimizer import MoFO

__all__ = ["MoFO", "param_groups"]
