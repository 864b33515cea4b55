"""`moecast sweep` from the command line: table, export, resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.planner_cli.running import moecast

pytest.importorskip("joblib")

STUDY = """
[study]
name = "small"
[base]
model = "Qwen3-30B-A3B"
cluster = "dgx-h100"
gpus = 32
global_batch = 64
recompute = "full"
[grid]
ep = [8, 5]
[[list]]
seq_len = 4096
[[list]]
seq_len = 0
"""


def test_sweep_answers_exports_and_resumes(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(STUDY)
    table, said = tmp_path / "s.csv", tmp_path / "s.json"
    done = moecast("sweep", str(file), "--jobs", "1", "--export", str(table), "--json", str(said))
    assert done.code == 0, done.err
    assert "1 breaks rules, 2 error, 1 ok" in done.out
    data = json.loads(said.read_text())
    assert data["asked"] == 4 and data["missing"] == 0 and data["differences"] == 0
    by_ep = {row["ask.ep"]: row for row in data["rows"] if row["ask.seq_len"]}
    assert by_ep[8]["fits"] and by_ep[8]["step_s"] > 0
    assert by_ep[5]["status"] == "breaks rules" and by_ep[5]["error"]
    assert len(table.read_text().splitlines()) == 5
    file.write_text(STUDY.replace("[8, 5]", "[8, 5, 4]"))  # a new grid asks for what is new
    again = json.loads(moecast("sweep", str(file), "--jobs", "1", "--json", "-").out)
    assert again["asked"] == 2 and again["cases"] == 6
    retried = json.loads(moecast("sweep", str(file), "--jobs", "1", "--retry", "--json", "-").out)
    assert retried["asked"] == 3  # those whose row is an error


def test_sweep_refuses_before_it_starts(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(STUDY)
    done = moecast("sweep", str(file), "--jobs", "no", "--export", str(tmp_path / "x.xls"))
    assert done.code == 2 and "--jobs" in done.err and ".parquet" in done.err
    assert not (tmp_path / "s.db").exists()
    assert moecast("sweep", str(tmp_path / "none.toml")).code == 2
