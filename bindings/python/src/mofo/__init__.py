"""mofo: the Momentum-Filtered Optimizer (MoFO) on your own arrays.

`Optimizer` is the whole C library; docs/python.md is the guide. No call needs more than the standard library; NumPy is
used where it is installed.
"""

from ._functions import cuda_available, library_version, state_size
from ._optimizer import KEEP, Optimizer
from ._options import Options
from ._results import REPORT_SIZE, LoadReport, MemoryInfo, StateSizes, StepReport
from ._state import DeviceArray, TensorState
from ._version import __version__
from .errors import Error, LibraryError

__all__ = [
    "KEEP",
    "REPORT_SIZE",
    "DeviceArray",
    "Error",
    "LibraryError",
    "LoadReport",
    "MemoryInfo",
    "Optimizer",
    "Options",
    "StateSizes",
    "StepReport",
    "TensorState",
    "__version__",
    "cuda_available",
    "library_version",
    "state_size",
]
