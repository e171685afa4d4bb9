"""What the tests share: where things are, programs of their own, and small optimizers."""

from __future__ import annotations

import array
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mofo

ROOT = Path(__file__).resolve().parents[3]
"""The checkout."""

HEADER = ROOT / "include" / "mofo.h"

try:
    import numpy
except ImportError:
    numpy = None

NO_NUMPY = "not installed: numpy"


def environment(**variables: str) -> dict[str, str]:
    """The variables of a process that is to find this package and this library, wherever it runs."""
    paths = [str(Path(mofo.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if os.environ.get("MOFO_LIBRARY"):
        found["MOFO_LIBRARY"] = str(Path(os.environ["MOFO_LIBRARY"]).resolve())
    return {**found, **variables}


def run_python(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with this package, in a Python of its own, with these environment variables."""
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=120)


def header() -> str:
    """include/mofo.h without comments, and without what only C++ reads."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"#ifdef __cplusplus.*?#endif[^\n]*", "", text, flags=re.DOTALL)


def header_structs() -> dict[str, list[str]]:
    """The declarations of the fields of every struct in include/mofo.h."""
    bodies = re.findall(r"typedef struct (\w+) \{([^}]*)\}", header())
    return {name: [field.strip() for field in body.split(";") if field.strip()] for name, body in bodies}


def header_fields(struct: str) -> list[str]:
    """The names of a struct's fields in include/mofo.h."""
    return [re.findall(r"\w+", field)[-1] for field in header_structs()[struct]]


def floats(*values: float) -> array.array[float]:
    """An array of f32, of the standard library."""
    return array.array("f", values)


def optimizer(*tensors: str, numel: int = 8, **options: Any) -> tuple[mofo.Optimizer, dict[str, Any], dict[str, Any]]:
    """An optimizer with these tensors, their parameters and their gradients."""
    made = mofo.Optimizer(**{"num_threads": 1, **options})
    params = {name: floats(*(1 + i / 8 for i in range(numel))) for name in tensors}
    grads = {name: floats(*((i + 1) / 16 * (-1) ** i for i in range(numel))) for name in tensors}
    for name in tensors:
        made.add(name, params[name], grads[name])
    return made, params, grads
