"""Makes the virtual environment of `make test-torch`: python3 make_venv.py FOLDER

PyTorch comes from its own index of builds for the CPU, where that can be reached: PyPI's build for Linux brings some
gigabytes of CUDA along.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def cpu_builds_are_reachable() -> bool:
    try:
        urllib.request.urlopen(f"{CPU_BUILDS}/torch/", timeout=15).close()
    except (urllib.error.URLError, OSError) as error:
        print(f"{CPU_BUILDS} cannot be reached ({error}): PyTorch comes from PyPI, CUDA included", flush=True)
        return False
    return True


def main() -> None:
    folder = Path(sys.argv[1])
    marker = folder / "requirements.txt"
    if marker.is_file() and marker.read_bytes() == REQUIREMENTS.read_bytes():
        return
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    if cpu_builds_are_reachable():
        torch = next(
            line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")
        )
        subprocess.run([*pip, "--index-url", CPU_BUILDS, torch], check=True)
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    marker.write_bytes(REQUIREMENTS.read_bytes())


if __name__ == "__main__":
    main()
