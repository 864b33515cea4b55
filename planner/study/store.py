"""The results of studies: one SQLite file, one row per case, written by one process alone.

Write-ahead logging: what was committed survives a kill of the writer, and others may read meanwhile. A row is keyed by
the digest of everything its result depends on, so a study that is started again asks only for what is missing.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprofiles.errors import UserError

_TABLES = """
CREATE TABLE IF NOT EXISTS cases (
  digest TEXT PRIMARY KEY, inputs TEXT NOT NULL, program TEXT NOT NULL, status TEXT NOT NULL, error TEXT NOT NULL,
  result TEXT NOT NULL, seconds REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS differences (digest TEXT NOT NULL, result TEXT NOT NULL);
"""
_COLUMNS = {
    "cases": ("digest", "inputs", "program", "status", "error", "result", "seconds"),
    "differences": ("digest", "result"),
}  # fmt: skip
BUSY_S = 30.0  # how long a reader's lock is waited for
LOOKED_UP = 500  # digests per query

OK, NO_FIT, NO_PLAN, ILLEGAL, FAILED = "ok", "does not fit", "no plan", "breaks rules", "error"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The outcome of one case. result: JSON values, the same for the same case; seconds: how long it took."""

    digest: str
    status: str
    error: str = ""
    result: Mapping[str, Any]
    seconds: float = 0.0

    def text(self) -> str:
        """The result as canonical JSON."""
        return json.dumps(self.result, sort_keys=True, separators=(",", ":"))


@contextmanager
def writing(path: str | Path) -> Iterator[Store]:
    """The database, open for the one process that may write it; a second one is a UserError."""
    lock = Path(f"{path}.lock")
    try:
        with lock.open("a") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    "another study is writing this database; wait for it or give another --db", where=str(path)
                ) from None
            store = Store(path)
            try:
                yield store
            finally:
                store.close()
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror}; give a file in a folder you may write",
                        where=str(path)) from None  # fmt: skip
    except sqlite3.Error as error:
        raise UserError(
            f"the database cannot be written ({error}); every row committed before is kept: make room, or let others "
            "finish with it, and the same command goes on from there",
            where=str(path),
        ) from None


class Store:
    """An open database of results."""

    def __init__(self, path: str | Path) -> None:
        try:
            self._base = sqlite3.connect(path, timeout=BUSY_S)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.executescript(_TABLES)
            for table, wanted in _COLUMNS.items():
                have = tuple(line[1] for line in self._base.execute(f"PRAGMA table_info({table})"))
                if have != wanted:
                    raise UserError(
                        f"its table {table!r} has the columns {', '.join(have)}, not {', '.join(wanted)}: another "
                        "program or another release wrote it; it is left alone, give another --db",
                        where=str(path),
                    )
        except sqlite3.DatabaseError as error:
            full = isinstance(error, sqlite3.OperationalError) and "full" in str(error)
            said = "cannot be made: no room on its disk" if full else f"not a database of results ({error})"
            raise UserError(f"{said}; give another --db", where=str(path)) from None

    def close(self) -> None:
        """Close the file; everything added is on disk already."""
        self._base.close()

    def add(self, rows: Iterable[Row], inputs: Mapping[str, Mapping[str, Any]], program: str) -> None:
        """Commit rows at once. A row that is there stays; a different result for it is kept aside and counted."""
        with self._base:
            for row in rows:
                asked = json.dumps(inputs[row.digest], sort_keys=True, default=str)
                put = self._base.execute(
                    "INSERT INTO cases VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING",
                    (row.digest, asked, program, row.status, row.error, row.text(), row.seconds),
                )
                if put.rowcount:
                    continue
                kept = self._base.execute("SELECT status, result FROM cases WHERE digest = ?", (row.digest,)).fetchone()
                if kept != (row.status, row.text()):
                    self._base.execute("INSERT INTO differences VALUES (?, ?)", (row.digest, row.text()))

    def rows(self, digests: Iterable[str]) -> dict[str, Row]:
        """The rows that are there, by digest."""
        wanted = list(digests)
        found: dict[str, Row] = {}
        for start in range(0, len(wanted), LOOKED_UP):
            part = wanted[start : start + LOOKED_UP]
            marks = ",".join("?" * len(part))
            query = f"SELECT digest, status, error, result, seconds FROM cases WHERE digest IN ({marks})"
            for digest, status, error, result, seconds in self._base.execute(query, part):
                found[digest] = Row(
                    digest=digest, status=status, error=error, result=json.loads(result), seconds=seconds
                )
        return found

    def done(self, digests: Iterable[str]) -> dict[str, str]:
        """Status of the cases that are there, by digest."""
        every = dict(self._base.execute("SELECT digest, status FROM cases"))
        return {digest: every[digest] for digest in digests if digest in every}

    def forget(self, digests: Iterable[str]) -> None:
        """Remove rows, so that their cases are asked again."""
        with self._base:
            self._base.executemany("DELETE FROM cases WHERE digest = ?", [(digest,) for digest in digests])

    def differences(self) -> int:
        """Results that came out differently the second time; anything but 0 is a defect of the program."""
        count: int = self._base.execute("SELECT COUNT(*) FROM differences").fetchone()[0]
        return count
