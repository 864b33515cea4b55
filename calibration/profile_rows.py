"""The measured rows that a profile is made of: one device, one software environment, what was left out and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.harness.rows import Row, read_rows
from calibration.row_checks import check_rows
from hwprofiles.errors import UserError
from hwprofiles.specs import Source

ROWS, ENVIRONMENT = "rows.csv", "environment.json"
SAME = ("driver", "torch", "cuda")  # rows of other versions are another device as far as times go
LICENCE = "not stated (measured by the user)"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rows with a time (`rows`), the environment, and by family how many rows have none, by reason."""

    rows: tuple[Row, ...]
    env: Mapping[str, Any]
    left: Mapping[str, Mapping[str, int]]

    @property
    def cuda(self) -> bool:
        """True for a GPU: the host launches its kernels from outside."""
        return str(self.env["device_type"]) != "cpu"

    @property
    def device(self) -> str:
        """Name of the device as its driver or the operating system gives it."""
        return str(self.env["device"])

    def of(self, family: str, op: str | None = None) -> list[Row]:
        """Rows of a family, and of one op where it is given."""
        return [row for row in self.rows if row["family"] == family and op in (None, row["op"])]

    def source(self, kind: str, title: str, note: str = "", rows: Iterable[Row] | None = None) -> Source:
        """A source that names device, versions, dates and command of these rows (default: of all)."""
        chosen = list(rows) if rows is not None else list(self.rows)
        dates = sorted(row["date"] for row in chosen)
        span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        versions = [f"{name} {self.env[name]}" for name in SAME if self.env[name]]
        made = f"device {self.device}; " + "; ".join(versions)
        return Source(
            kind=kind,  # type: ignore[arg-type]  # the caller's literal
            title=f"{title}, {self.device}",
            where=f"moecast calibrate measure ({chosen[-1]['command']}), rows.csv",
            date=span,
            licence=LICENCE,
            note=f"{made}. {note}".rstrip(),
        )


def read(folder: Path) -> Measured:
    """Rows and environment of a folder that `measure` wrote, or of the only such folder in it.

    Rows made with another driver, torch or CUDA than the latest run are left out. Raises UserError.
    """
    folder = _only(Path(folder))
    try:
        env = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        rows = read_rows(folder / ROWS)
        missing = [name for name in ("device", "device_type", "mem_bytes", "multiprocessors", *SAME) if name not in env]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot be read: {error}; measure the device again", where=str(folder)) from None
    if missing:
        raise UserError(f"{ENVIRONMENT} lacks {', '.join(missing)}; measure the device again", where=str(folder))
    devices = sorted({row["device"] for row in rows})
    if devices and devices != [env["device"]]:
        raise UserError(
            f"{ROWS} holds rows of {', '.join(devices)}, {ENVIRONMENT} is of {env['device']}; keep one device a folder",
            where=str(folder),
        )
    left: dict[str, Counter[str]] = {}
    found = []
    for row in rows:
        if any(row[name] != env[name] for name in SAME):
            left.setdefault(row["family"], Counter())["older driver, torch or CUDA"] += 1
        elif row["status"] != "ok":
            left.setdefault(row["family"], Counter())[row["status"]] += 1
        else:
            found.append(row)
    if not found:
        raise UserError(f"{ROWS} has no measured row; run `moecast calibrate measure` again", where=str(folder))
    check_rows(found, str(folder / ROWS))
    return Measured(
        rows=tuple(found), env=env, left={name: dict(sorted(count.items())) for name, count in sorted(left.items())}
    )


def _only(folder: Path) -> Path:
    if (folder / ROWS).is_file():
        return folder
    if not folder.is_dir():
        raise UserError("no such folder; give the one that `moecast calibrate measure` wrote", where=str(folder))
    below = sorted(path.parent for path in folder.glob(f"*/{ROWS}"))
    if len(below) != 1:
        what = f"{len(below)} measured devices ({', '.join(p.name for p in below)})" if below else f"no {ROWS}"
        raise UserError(f"holds {what}; give the folder of one device", where=str(folder))
    return below[0]
