"""The rows of a study's database that somebody sent: read in memory, checked, never trusted.

Nothing is written and no file is opened: SQLite reads the bytes themselves, with views, triggers and functions of the
file's own schema out of use, and stops when a query takes too many steps.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from hwprofiles.errors import UserError
from planner.compare import SQLITE_HEAD

MAX_BYTES = 64 * 2**20
MAX_ROWS = 20_000
MAX_CELL = 200  # characters of a text that is shown
MAX_TEXT = 1 << 20  # bytes of one value of the database
MAX_STEPS = 200  # times a million instructions of SQLite's machine
COLUMNS = ("inputs", "status", "error", "result", "seconds")
_PAGE_HEAD = 100  # bytes of the file's own header
_JOURNAL = slice(18, 20)  # read and write version: 2 where a log of changes stood beside the file


def study_rows(data: bytes, *, where: str = "study") -> list[dict[str, Any]]:
    """One flat row per case: what it asked (`ask.NAME`), its status and error, its figures; at most `MAX_ROWS`.

    Raises UserError for anything that is no database of `moecast sweep`. Cases that a log beside the file held are not
    in the file.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"the file has {len(data) / 2**20:.0f} MiB; give one of at most {MAX_BYTES >> 20}", where=where)
    if not data.startswith(SQLITE_HEAD) or len(data) < _PAGE_HEAD:
        raise UserError("not a database; give the file that `moecast sweep --db` wrote", where=where)
    plain = bytearray(data)
    plain[_JOURNAL] = b"\x01\x01"  # without its log beside it, it is an ordinary database
    try:
        with closing(sqlite3.connect(":memory:")) as base:
            return [_flat(row) for row in _read(base, bytes(plain))]
    except (sqlite3.Error, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(
            f"not a database of `moecast sweep` ({str(error)[:80]}); give the file it wrote", where=where
        ) from None


def _read(base: sqlite3.Connection, data: bytes) -> list[tuple[Any, ...]]:
    base.deserialize(data)
    base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_TEXT)
    for pragma in ("query_only = ON", "trusted_schema = OFF", "cell_size_check = ON"):
        base.execute(f"PRAGMA {pragma}")
    left = [MAX_STEPS]

    def stop() -> int:
        left[0] -= 1
        return int(left[0] < 0)

    base.set_progress_handler(stop, 1_000_000)
    kind = base.execute("SELECT type, sql FROM sqlite_master WHERE name = 'cases'").fetchone()
    if kind is None or kind[0] != "table" or "virtual" in str(kind[1]).lower():
        raise ValueError("no table of cases")
    named = {row[1] for row in base.execute("PRAGMA table_xinfo(cases)") if row[6] == 0}  # none that is computed
    if missing := [name for name in COLUMNS if name not in named]:
        raise ValueError(f"no column {', '.join(missing)}")
    query = f"SELECT {', '.join(COLUMNS)} FROM cases ORDER BY rowid LIMIT {MAX_ROWS}"
    return base.execute(query).fetchall()


def _flat(row: tuple[Any, ...]) -> dict[str, Any]:
    inputs, status, error, result, seconds = row
    asked, figures = json.loads(inputs), json.loads(result)
    if not isinstance(asked, Mapping) or not isinstance(figures, Mapping):
        raise ValueError("a case is no table")
    out: dict[str, Any] = {f"ask.{str(name)[:60]}": _cell(value) for name, value in asked.items()}
    out |= {"status": str(status)[:MAX_CELL], "error": str(error)[:MAX_CELL]}
    out |= {str(name)[:60]: _cell(value) for name, value in figures.items() if not isinstance(value, Mapping)}
    return out | {"seconds": float(seconds)}


def _cell(value: Any) -> Any:
    """Numbers, switches and null as they are, all else as short text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:MAX_CELL]
