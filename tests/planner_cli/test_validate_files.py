"""`moecast validate` on the shipped files, on several at once, and on cells that are wrong."""

from __future__ import annotations

import csv
import json
from importlib import resources
from pathlib import Path

import pytest

from tests.planner_cli.running import moecast

PUBLISHED = Path(str(resources.files("calibration") / "published"))
NO_READER = "rates_of_nobody.csv"
EXCERPTS = {
    "calculon_megatron_a100_memory.csv": 2,
    "calculon_megatron_a100_time.csv": 2,
    "megatron_b200_one_node.csv": 2,
    "memory_feasibility.csv": 4,
    "parallel_folding.csv": 2,
    "training_runs.csv": 2,
    "vtrain_measured_multi.csv": 2,
    "vtrain_measured_single.csv": 2,
}
HEAD = "model,gpu,n_gpus,seq_len,gbs,tp,pp,ep,mbs,recompute,tok_s_gpu_norm,step_time_s"
GOOD = "Qwen3-30B-A3B,H100,16,4096,64,1,1,8,1,none,5000,"


def excerpt(name: str, folder: Path) -> Path:
    """The first rows of a shipped file."""
    with (PUBLISHED / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(x for x in file if not x.startswith("#")))
    path = folder / name
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[: EXCERPTS[name]])
    return path


def written(folder: Path, text: str, encoding: str = "utf-8") -> str:
    path = folder / "runs.csv"
    path.write_text(text, encoding=encoding)
    return str(path)


def test_every_shipped_file_is_known() -> None:
    assert {p.name for p in PUBLISHED.glob("*.csv")} == set(EXCERPTS)


@pytest.mark.parametrize("name", sorted(EXCERPTS))
def test_a_shipped_file_prints_its_table(name: str, tmp_path: Path) -> None:
    done = moecast("validate", str(excerpt(name, tmp_path)))
    assert done.code == 0, done.err
    assert "rows" in done.out and " ok" in done.out
    if name == "megatron_b200_one_node.csv":
        line = next(x for x in done.out.splitlines() if x.startswith("peak_memory"))
        assert line.split()[1] == "2"


def test_a_file_without_a_reader_is_one_row_among_several(tmp_path: Path) -> None:
    names = ("megatron_b200_one_node.csv", "memory_feasibility.csv", "calculon_megatron_a100_time.csv")
    strange = tmp_path / NO_READER
    strange.write_text("who,what\nnobody,1\n", encoding="utf-8")
    files = [*(str(excerpt(name, tmp_path)) for name in names), str(strange)]
    done = moecast("validate", *files)
    assert done.code == 0, done.err
    assert "peak_memory" in done.out and "unknown columns" in done.out
    rows = json.loads(moecast("validate", *files, "--json", "-").out)["rows"]
    assert [r["status"] for r in rows if r["id"] == NO_READER] == ["unsupported"]
    none = moecast("validate", files[-1], str(tmp_path / "missing.csv"))
    assert none.code == 2
    assert NO_READER in none.err and "missing.csv" in none.err


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("n_gpus", "nan", "n_gpus: 'nan' must be a whole number"),
        ("gbs", "inf", "gbs: 'inf' must be a whole number"),
        ("seq_len", "1e300", "seq_len: '1e300' must be a whole number"),
        ("tok_s_gpu_norm", "12,000", "tok_s_gpu_norm: '12,000' is not a number; leave out the thousands separators"),
        ("tok_s_gpu_norm", "abc", "tok_s_gpu_norm: 'abc' is not a number"),
        ("tok_s_gpu_norm", "-5", "tok_s_gpu_norm: '-5' must be a positive number"),
        ("step_time_s", "oops", "step_time_s: 'oops' is not a number"),
        ("step_time_s", "nan", "step_time_s: 'nan' must be a positive number"),
        ("recompute", "banana", "recompute: 'banana' is not known; use full, none, selective, core_attn"),
        ("recompute", "full,moe_act", "'full' stands alone"),
    ],
)
def test_a_bad_cell_is_said_in_its_row(column: str, cell: str, words: str, tmp_path: Path) -> None:
    row = dict(zip(HEAD.split(","), GOOD.split(","), strict=True)) | {column: cell}
    bad = ",".join(f'"{x}"' for x in row.values())
    done = moecast("validate", written(tmp_path, f"{HEAD}\n{bad}\n{GOOD}\n"), "--json", "-")
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["rows"]
    assert first["status"] == "unsupported" and words in first["reason"]
    assert second["status"] == "ok"


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    done = moecast("validate", written(tmp_path, f"{HEAD}\n{GOOD}\n", "utf-8-sig"))
    assert done.code == 0 and "1 rows (1 ok)" in done.out


def test_semicolons_are_named(tmp_path: Path) -> None:
    done = moecast("validate", written(tmp_path, f"{HEAD}\n{GOOD}\n".replace(",", ";")))
    assert done.code == 2 and "separated by ';' and must be separated by ','" in done.err


def test_one_outcome_alone_is_not_balanced(tmp_path: Path) -> None:
    head = "source,model,gpu,n_gpus,seq_len,gbs,mbs,method,tp,pp,cp,ep,recompute,outcome,peak_memory\n"
    path = written(tmp_path, head + "s,Llama3-8B,H100,8,4096,8,1,,1,1,1,,none,fits,\n")
    feasible = json.loads(moecast("validate", path, "--json", "-").out)["summary"]["feasibility"]
    assert feasible["balanced_accuracy"] is None
    assert feasible["note"] == "no OOM row is scored: nothing to balance"
    assert feasible["note"] in moecast("validate", path).out
