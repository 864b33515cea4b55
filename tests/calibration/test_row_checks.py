"""Rows that cannot be fitted: every problem is told, with the row and the remedy, and nothing is written."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from calibration.check import check
from calibration.harness.rows import COLUMNS, read_rows
from calibration.profile import build
from hwprofiles.errors import UserError

SHIPPED = Path(__file__).parents[2] / "calibration" / "measured" / "cpu-amd-epyc-1-thread"


def damaged(tmp_path: Path, family: str, column: str, value: str) -> Path:
    folder = tmp_path / "rows"
    shutil.copytree(SHIPPED, folder)
    rows = read_rows(folder / "rows.csv")
    next(row for row in rows if row["family"] == family and row["status"] == "ok")[column] = value
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "abc", "", "1e300"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match="median_s"):
        build(damaged(tmp_path, "memory", "median_s", value), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "column", "value", "said"),
    [
        ("gemm", "sizes", "{", "no JSON object"),
        ("gemm", "sizes", "[]", "no JSON object"),
        ("gemm", "sizes", '{"m":-1,"n":0,"k":4}', "not positive"),
        ("gemm", "dtype", "int3", "int3"),
        ("attention", "sizes", "{}", "lack batch"),
        ("collectives", "observed", "{bad", "observed"),
        ("train_step", "peak_bytes", "x", "peak_bytes"),
        ("moe_block", "sizes", "{}", "lack"),
    ],
)
def test_a_bad_cell_names_its_row_and_column(tmp_path: Path, family: str, column: str, value: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        check(damaged(tmp_path, family, column, value))
    assert family in str(caught.value) and "measure` again" in str(caught.value)
