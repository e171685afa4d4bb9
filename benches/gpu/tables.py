"""Markdown tables of what was found."""

from collections.abc import Callable, Sequence
from typing import Any

Record = dict[str, Any]
Column = Callable[[Record], str]


def interval(values: Sequence[float], digits: int) -> str:
    return f"{values[0]:.{digits}f} to {values[1]:.{digits}f}"


def failed(record: Record) -> str:
    """Failed estimates of all."""
    estimated = record.get("blocks_estimated")
    return "-" if estimated is None else f"{record['estimates_failed']} of {estimated}"


TIMES: dict[str, Column] = {
    "workload": lambda r: str(r["workload"]),
    "contender": lambda r: str(r["contender"]),
    "dtype": lambda r: str(r["dtype"]),
    "median ms": lambda r: f"{r['median_ms']:.4g}",
    "95 %": lambda r: f"{r['interval_ms'][0]:.4g} to {r['interval_ms'][1]:.4g}",
    "ratio": lambda r: f"{r['ratio']:.3f} to {r['baseline']}" if "ratio" in r else "-",
    "ratio 95 %": lambda r: interval(r["ratio_interval"], 3) if "ratio" in r else "-",
    "bytes/entry": lambda r: f"{r['bytes_per_entry']:.1f}",
    "GB/s": lambda r: f"{r['gb_per_s']:.0f}",
    "of copy": lambda r: f"{100 * r['of_copy']:.0f} %",
    "call us": lambda r: f"{r['host_us']:.0f}",
    "estimates failed": failed,
    "scratch": lambda r: f"{100 * r['scratch_share']:.2f} %" if "scratch_share" in r else "-",
}
HOST: dict[str, Column] = {
    "workload": lambda r: str(r["workload"]),
    "tensors": lambda r: str(r["tensors"]),
    "call us": lambda r: f"{r['median_us']:.1f}",
    "95 %": lambda r: interval(r["interval_us"], 1),
    "of that on the processor": lambda r: f"{r['processor_us']:.1f}",
}
MEMORY: dict[str, Column] = {
    "workload": lambda r: str(r["workload"]),
    "dtype": lambda r: str(r["dtype"]),
    "tensors": lambda r: str(r["tensors"]),
    "scratch MiB": lambda r: f"{r['scratch_bytes'] / 2**20:.2f}",
    "of parameters, gradients and moments": lambda r: f"{100 * r['share']:.3f} %",
    "estimates failed": failed,
}
EQUALITY: dict[str, Column] = {
    "case": lambda r: str(r["case"]),
    "steps": lambda r: str(r["steps"]),
    "entries": lambda r: str(r["entries"]),
    "GPU equals CPU": lambda r: "yes" if r["equal"] else "NO: " + "; ".join(r["differences"]),
    "estimates failed": failed,
}


def print_table(title: str, columns: dict[str, Column], records: Sequence[Record]) -> None:
    """A table, and a line for each record that is an error."""
    rows = [[text(record) for text in columns.values()] for record in records if "error" not in record]
    print(f"\n### {title}\n")
    if rows:
        print("| " + " | ".join(columns) + " |")
        print("|" + "---|" * len(columns))
        for row in rows:
            print("| " + " | ".join(row) + " |")
    for record in records:
        if "error" in record:
            print(f"\n{record['workload']}: {record['error']}")
