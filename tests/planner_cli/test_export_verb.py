"""`moecast export`: from the command's own plan file to files, and what it refuses."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.planner_cli.running import SMALL, moecast

PINS = ("--tp", "2", "--pp", "2", "--ep", "8", "--micro-batch", "1", "--recompute", "none", "--software", "megatron-lm")


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    done = moecast("plan", *SMALL, *PINS, "--out", str(path))
    assert done.code == 0, done.err
    return path


def test_files_are_written_and_named(plan_file: Path, tmp_path: Path) -> None:
    done = moecast("export", str(plan_file), "--to", "megatron-lm", "--out", str(tmp_path / "run"))
    assert done.code == 0, done.err
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"megatron_args.sh", "launch.sh", "notes.txt"}
    assert "--tensor-model-parallel-size 2" in (tmp_path / "run/megatron_args.sh").read_text()
    assert "not expressed: " in done.out and "wrote " in done.err
    assert "warning" not in done.out  # the digest says that nothing changed since


def test_what_cannot_run_names_the_rule(plan_file: Path, tmp_path: Path) -> None:
    done = moecast("export", str(plan_file), "--to", "accelerate", "--out", str(tmp_path))
    assert done.code == 2 and "accelerate-pp" in done.err and "accelerate-zero" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "nemo"), "use one of: megatron-lm"),
        (("--to", "megatron-lm", "--version", "1"), "0.19.2"),
        (("--to", "megatron-lm", "--rank", "99"), "plans 1 to"),
        (("--to", "megatron-lm", "--rank", "x"), "not a whole number"),
        (("--to", "megatron-lm", "--model", "Mixtral-8x7B"), "give the model it was made for"),
    ],
)
def test_bad_options_are_said(plan_file: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = moecast("export", str(plan_file), *options, "--out", str(tmp_path))
    assert done.code == 2 and said in " ".join(done.err.split()), done.err


def test_another_cluster_than_the_plans_is_a_warning(plan_file: Path, tmp_path: Path) -> None:
    done = moecast("export", str(plan_file), "--to", "megatron-lm", "--cluster", "dgx-h200", "--out", str(tmp_path))
    assert done.code == 0 and "not byte for byte" in " ".join(done.out.split())


def test_a_folder_that_cannot_be_made_is_said(plan_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = moecast("export", str(plan_file), "--to", "megatron-lm", "--out", str(tmp_path / "file"))
    assert done.code == 2 and "--out" in done.err


def test_timelines_per_lane_and_compressed(tmp_path: Path) -> None:
    asked = ("--ep", "8", "--pp", "2", "--software", "megatron-lm", "--recompute", "full")
    where = ("--trace", str(tmp_path / "t.json.gz"), "--trace-lanes", f"{tmp_path}/lanes:gz")
    done = moecast("simulate", *SMALL, *asked, *where)
    assert done.code == 0, done.err
    assert sorted(p.name for p in (tmp_path / "lanes").iterdir()) == ["rank-0000.json.gz", "rank-0001.json.gz"]
    assert gzip.decompress((tmp_path / "t.json.gz").read_bytes()).startswith(b"{")
