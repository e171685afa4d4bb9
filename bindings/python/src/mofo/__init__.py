"""mofo: the Momentum-Filtered Optimizer (MoFO) on your own arrays.

`Optimizer` is the whole C library; docs/python.md is the guide. No call needs more than the standard library; NumPy is
used where it is installed.
"""

from ._version import __version__
from .errors import Error, LibraryError

__all__ = ["Error", "LibraryError", "__version__"]
