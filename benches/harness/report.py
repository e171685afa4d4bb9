"""What is printed and written: the machine, tables, and a file with every sample."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from . import memory
from .contender import Contender
from .figures import Estimate, Record, record
from .library import Library

Shown = dict[str, Callable[[Record], str]]
"""Of a table, each column's name and text."""


def processor() -> str:
    """The processor's name, family and model: the name alone tells Zen 4 and Zen 5 of some clouds not apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.machine())
    if "cpu family" not in fields:
        return name
    wide = "AVX-512" if "avx512f" in fields.get("flags", "").split() else "no AVX-512"
    return f"{name}, family {fields['cpu family']}, model {fields['model']}, {wide}"


def nanoseconds_of_a_call(library: Library) -> float:
    """What a call of the library from Python takes, the clock included: of one that returns at once."""
    function, samples = library.functions.mofo_abi_version, []
    for _ in range(10_000):
        start = time.perf_counter()
        function()
        samples.append(time.perf_counter() - start)
    return sorted(samples)[len(samples) // 2] * 1e9


class Report:
    """Prints tables as they are measured, and keeps everything for the file."""

    def __init__(self, path: Path | None, **environment: Any) -> None:
        self.path = path
        self.document: Record = {"environment": {}, "tables": []}
        self.describe(**environment)

    def describe(self, **environment: Any) -> None:
        """Says on what is measured."""
        self.document["environment"].update(environment)
        for name, value in environment.items():
            print(f"{name}: {value}")

    @staticmethod
    def machine(library: Library) -> Record:
        """What every benchmark on the CPU should say."""
        return {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "mofo": f"{library.version}, {library.path}",
            "call_ns": round(nanoseconds_of_a_call(library)),
            "load": list(os.getloadavg()),
        }

    def times(
        self, case: str, title: str, contenders: Sequence[Contender], row: int, extra: Shown | None = None, **more: Any
    ) -> None:
        """The table of contenders that were measured together. `extra`: more columns."""
        records = [record(contender) for contender in contenders]
        rounds = f"{len(contenders[0].times)} rounds" + (f" of {row} steps each" if row > 1 else "")
        share = memory.huge_share()
        pages = "" if share is None else f", {100 * share:.0f} % of the memory on huge pages"
        shown = {**columns(records), **(extra or {})}
        self.table(case, f"{title}; {rounds}{pages}", shown, records, row=row, huge_share=share, **more)

    def table(self, case: str, title: str, shown: Shown, records: Sequence[Record], **more: Any) -> None:
        """Any table, and a line for each record that is an error."""
        print(f"\n### {title}\n")
        rows = [[text(found) for text in shown.values()] for found in records if "error" not in found]
        align = ["left", *["right"] * (len(shown) - 1)]
        print(tabulate(rows, list(shown), tablefmt="github", colalign=align if rows else None, disable_numparse=True))
        for found in records:
            if "error" in found:
                print(f"\n{found['name']}: {found['error']}")
        self.document["tables"].append({"case": case, "title": title, "records": list(records), **more})

    def records(self, case: str) -> list[Record]:
        """All that was measured of a case so far."""
        return [found for table in self.document["tables"] if table["case"] == case for found in table["records"]]

    def note(self, text: str) -> None:
        """A line below the table."""
        print(f"\n{text}")

    def write(self, settings: dict[str, Any]) -> None:
        """The file, if one was asked for."""
        if self.path is not None:
            self.document["settings"] = settings
            self.path.write_text(json.dumps(self.document, indent=1, default=str) + "\n", encoding="utf-8")


def columns(records: Sequence[Record]) -> Shown:
    """Of a table of times: those for which some record has something."""
    shown: Shown = {
        "step": lambda r: str(r["name"]),
        "ms": lambda r: f"{r['median_ms']:.4g}",
        "ns/entry": lambda r: f"{r['ns_per_entry']:.3f}",
        "B/entry": lambda r: f"{r['bytes_per_entry']:.3g}",
        "GB/s (range)": speed,
    }
    most = sorted(records, key=lambda r: -len(r["ratios"]))
    for name in dict.fromkeys(name for found in most for name in found["ratios"]):
        shown[f"x {name}"] = lambda r, name=name: interval(r["ratios"].get(name))  # type: ignore[misc]
    if any(found.get("blocks_estimated") for found in records):
        shown["failed"] = failed
    return shown


def speed(found: Record) -> str:
    """Bytes that a step of AdamW moves by this one's time; the memory of a shared host has several speeds."""
    low, high = found["gb_per_s_range"]
    return f"{found['gb_per_s']:.0f} ({low:.0f} to {high:.0f})"


def interval(found: Estimate | None, digits: int = 3) -> str:
    """A median and its interval."""
    if found is None:
        return "-"
    text = f"{found['median']:.{digits}f}"
    if found["low"] is None or found["high"] is None:
        return text
    return f"{text} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def failed(found: Record) -> str:
    """Estimates that failed, of all."""
    count = found.get("blocks_estimated")
    return f"{found['estimates_failed']} of {count}" if count else "-"
