"""hatchling's hook: builds the shared library with cargo and puts it into the wheel.

`MOFO_LIBRARY` names a shared library to take instead, for another target or with other features; `CARGO` the cargo to
call, whose own environment variables, such as `CARGO_TARGET_DIR`, work as usual.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILE_NAME = {"darwin": "libmofo.dylib", "win32": "mofo.dll"}.get(sys.platform, "libmofo.so")

NO_SDIST = (
    "mofo has no source distribution for Python: the library is built from the whole checkout, which has this folder "
    "as a part. Build a wheel (`pip wheel bindings/python`, or `python -m build --wheel bindings/python`), or install "
    "from the checkout (`pip install bindings/python`)"
)


class LibraryHook(BuildHookInterface[Any]):
    """Called by hatchling before each build."""

    PLUGIN_NAME = "custom"
    _notice: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the library to what is built."""
        if self.target_name == "sdist":
            raise SystemExit(NO_SDIST)
        package = Path(self.root) / "src" / "mofo"
        library = self._library()
        # Python itself runs nothing of the library, so that any Python does; the library is for one platform.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["pure_python"] = False
        if version == "editable":
            # Then the package is where it lies.
            shutil.copy2(library, package / FILE_NAME)
        else:
            build_data["force_include"][str(library)] = f"mofo/{FILE_NAME}"
            # hatchling takes no licence from outside of its folder.
            metadata = f"mofo-{self.metadata.version}.dist-info"
            for name in ("LICENSE-MIT", "LICENSE-APACHE"):
                build_data["force_include"][str(Path(self.root).resolve().parent.parent / name)] = (
                    f"{metadata}/licenses/{name}"
                )
            self._add_notice(build_data, f"{metadata}/licenses/LICENSE-THIRD-PARTY")

    def _add_notice(self, build_data: dict[str, Any], place: str) -> None:
        """Adds what is linked into the library besides mofo, with the licences, which must be handed on with it."""
        checkout = Path(self.root).resolve().parent.parent
        missing = [tool for tool in ("sh", os.environ.get("CARGO", "cargo")) if shutil.which(tool) is None]
        if missing:
            # Possible only with a library that was built elsewhere, or on a system that has no sh.
            self.app.display_warning(
                f"without {missing[0]} nothing lists the licences of what is linked into the library, so the wheel "
                "lacks them: it is not to be handed on without LICENSE-THIRD-PARTY (packaging/third-party.sh)"
            )
            return
        command = ["sh", str(checkout / "packaging" / "third-party.sh")]
        done = subprocess.run(command, stdout=subprocess.PIPE)
        if done.returncode != 0:
            raise SystemExit(f"`{' '.join(command)}` failed: it lists the licences of what is linked into the library")
        # Removed in `finalize`.
        self._notice = Path(tempfile.mkdtemp()) / "LICENSE-THIRD-PARTY"
        self._notice.write_bytes(done.stdout)
        build_data["force_include"][str(self._notice)] = place

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling after each build."""
        if self._notice is not None:
            shutil.rmtree(self._notice.parent)

    def _library(self) -> Path:
        named = os.environ.get("MOFO_LIBRARY")
        if named:
            if not Path(named).is_file():
                raise SystemExit(f"MOFO_LIBRARY names {named}, which is not a file, seen from {Path.cwd()}")
            return Path(named).resolve()
        return self._built(Path(self.root).resolve().parent.parent / "Cargo.toml")

    def _built(self, manifest: Path) -> Path:
        """What cargo has built, as cargo itself tells."""
        if not manifest.is_file():
            raise SystemExit(f"there is no {manifest}: mofo is built in its checkout")
        cargo = os.environ.get("CARGO", "cargo")
        command = [cargo, "build", "--release", "--lib", "--locked", "--manifest-path", str(manifest)]
        self.app.display_info(" ".join(command))
        try:
            done = subprocess.run([*command, "--message-format=json-render-diagnostics"], stdout=subprocess.PIPE)
        except FileNotFoundError:
            raise SystemExit(
                f"{cargo} is not there: mofo is written in Rust and built with cargo (https://rustup.rs), "
                "or MOFO_LIBRARY names a shared library that is built already"
            ) from None
        if done.returncode != 0:
            raise SystemExit(f"`{' '.join(command)}` failed")
        messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
        for message in messages:
            if message["reason"] == "compiler-artifact" and message["manifest_path"] == str(manifest):
                for name in message["filenames"]:
                    if Path(name).name == FILE_NAME:
                        return Path(name)
        raise SystemExit(f"cargo has built no {FILE_NAME}: the target cannot have shared libraries")
