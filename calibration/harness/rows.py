"""The CSV file of measured rows: appended row by row, read back tolerantly, so that a run can resume."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibration.harness.points import Point

COLUMNS = (
    "family",
    "op",
    "dtype",
    "pass",
    "sizes",
    "median_s",
    "p10_s",
    "p90_s",
    "repeats",
    "status",
    "flop",
    "bytes",
    "relative_error",
    "peak_bytes",
    "observed",
    "device",
    "driver",
    "torch",
    "cuda",
    "date",
    "sm_clock_hz",
    "mem_clock_hz",
    "power_w",
    "command",
)
KEY = ("family", "op", "dtype", "pass", "sizes", "device", "driver", "torch", "cuda")
OUT_OF_TIME = "skipped: time budget"
Row = dict[str, str]


def sizes_text(sizes: Mapping[str, Any]) -> str:
    """Sizes as compact JSON with sorted keys, so that equal sizes are equal text."""
    return json.dumps(dict(sizes), sort_keys=True, separators=(",", ":"))


def number(value: float | int | None) -> str:
    """Short text of a number; empty for None."""
    return "" if value is None else f"{value:.7g}"


def point_row(point: Point, environment: Mapping[str, Any]) -> Row:
    """The columns known before measuring; the others stay empty."""
    row = dict.fromkeys(COLUMNS, "")
    row |= {"family": point.family, "op": point.op, "dtype": point.dtype, "pass": point.pass_}
    row |= {"sizes": sizes_text(point.sizes), "flop": number(point.flop), "bytes": number(point.bytes)}
    row |= {name: str(environment[name]) for name in ("device", "driver", "torch", "cuda", "date", "command")}
    return row


def key(row: Mapping[str, str]) -> tuple[str, ...]:
    """What makes two rows the same point in the same environment."""
    return tuple(row[name] for name in KEY)


def read_rows(path: Path) -> list[Row]:
    """Rows of a measured file, the last one of each point; a line torn by an interruption is left out.

    Raises ValueError where the columns are not those of this version.
    """
    if not path.exists() or path.stat().st_size == 0:
        return []
    # A line without its end may lack part of its last cell, so it does not count.
    finished = path.read_text(encoding="utf-8").rpartition("\n")[0]
    if not finished:
        return []
    reader = csv.DictReader(finished.splitlines())
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path} has other columns than this version writes")
    whole = [row for row in reader if None not in row and None not in row.values() and row["status"]]
    return list({key(row): row for row in whole}.values())


class RowWriter:
    """Appends rows to a file, each flushed at once. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open for appending; cut off a torn last line; write the header of a new file."""
        _cut_torn_line(path)
        new = not path.exists() or path.stat().st_size == 0
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")
        if new:
            self._writer.writeheader()
            self._file.flush()

    def write(self, row: Row) -> None:
        """Append one row."""
        self._writer.writerow(row)
        self._file.flush()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])
