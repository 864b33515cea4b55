"""The table of a study as a file: CSV, or Parquet (pyarrow)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwprofiles.errors import UserError

FORMATS = (".csv", ".parquet")


def check_format(path: str) -> None:
    """UserError when the ending names no format."""
    if not path.endswith(FORMATS):
        raise UserError(f"{path}: give a name that ends in {' or '.join(FORMATS)}", where="--export")


def write_table(rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Write one line per row; columns in order of first appearance. Raises UserError."""
    import pandas

    check_format(path)
    table = pandas.DataFrame(rows)
    # what was asked may be "8" in one case and 8 in another: text, so that a column has one type
    for name in table.columns:
        if table[name].map(type).nunique() > 1 and table[name].dtype == object and name.startswith("ask."):
            table[name] = table[name].map(lambda value: None if value is None else str(value))
    try:
        if path.endswith(".csv"):
            table.to_csv(path, index=False)
        else:
            table.to_parquet(path, index=False)
    except OSError as error:
        raise UserError(
            f"cannot write {Path(path)}: {error.strerror}; give a writable path", where="--export"
        ) from None
