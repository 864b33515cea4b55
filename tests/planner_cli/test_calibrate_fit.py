"""`moecast calibrate fit`: from rows to a profile that plan, simulate and show take; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration import refit
from tests.calibration import made_rows as made
from tests.planner_cli.running import Done, moecast

MODEL = str(Path(__file__).resolve().parents[2] / "examples" / "model.toml")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    root = tmp_path_factory.mktemp("fit")
    rows = made.write(root / "measured" / "test-gpu", [*made.everything(), *made.collectives(8)], mem_bytes=2**38)
    out = root / "profile"
    return moecast(
        "calibrate", "fit", str(rows.parent), "--out", str(out), "--name", "mine", "--price", "3.6 USD/h"
    ), out


def test_prints_errors_and_the_next_command(fitted: tuple[Done, Path]) -> None:
    done, out = fitted
    assert done.code == 0, done.err
    for word in ("gemm", "grouped_gemm", "shapes (n, k)", "uneven rows", f"--cluster {out}/cluster.toml"):
        assert word in done.out
    assert json.loads((out / "fit.json").read_text(encoding="utf-8"))["device"] == "mine"


def test_every_command_takes_the_profile(fitted: tuple[Done, Path]) -> None:
    _, out = fitted
    cluster = f"{out}/cluster.toml"
    shown = moecast("show", "devices", f"{out}/device.toml")
    assert shown.code == 0 and "mine" in shown.out
    size = ("--model", MODEL, "--cluster", cluster, "--seq-len", "1024", "--global-batch", "8")
    done = moecast("simulate", *size, "--software", "moecast-harness", "--ep", "8", "--json", "-")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    text = " | ".join(record["provenance"])
    assert "measured on mine" in text and "borrowed" not in text and "whole runs" not in text
    narrow = ("--pp", "1", "--cp", "1", "--tp", "1", "--micro-batch", "1")
    planned = moecast("plan", *size, *narrow, "--json", "-")
    assert planned.code == 0, planned.err
    assert json.loads(planned.out)["plans"]


def test_two_nodes_need_no_more_than_the_cluster_file(fitted: tuple[Done, Path]) -> None:
    _, out = fitted
    size = ("--model", MODEL, "--cluster", f"{out}/cluster.toml", "--gpus", "16", "--global-batch", "16")
    done = moecast("simulate", *size, "--software", "moecast-harness", "--ep", "16", "--json", "-")
    assert done.code == 0, done.err


@pytest.mark.parametrize(("words", "said"), [
    (("ROWS", "--price", "cheap"), "USD"), (("ROWS", "--price", "-1 USD/h"), "zero or more"),
    (("ROWS", "--name", " "), "--name"), (("--name", "x"), "ROWS_DIR"), (("nowhere",), "no such folder"),
])  # fmt: skip
def test_refuses(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = moecast("calibrate", "fit", *words, "--out", str(tmp_path / "out"))
    assert done.code == 2 and said in done.err
    assert not (tmp_path / "out").exists()


def test_measure_refuses_an_unknown_family_and_bad_ranks(tmp_path: Path) -> None:
    done = moecast("calibrate", "measure", "--device", "cpu", "--out", str(tmp_path), "--family", "gems")
    assert done.code == 2 and "grouped_gemm" in done.err
    done = moecast("calibrate", "measure", "--device", "cpu", "--out", str(tmp_path), "--ranks", "0")
    assert done.code == 2 and "--ranks" in done.err


def test_refit_names_what_came_out_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = refit.resources.files("hwprofiles")
    files = ("fitted/kernels/a100/attention.toml", "measured/a100/attention.csv", "measured/a100/mla.csv")

    def attention(folder: str, out: Path) -> None:
        for name in files:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes((shipped / name).read_bytes())

    def grouped(folder: str, out: Path) -> None:
        name = "fitted/kernels/a100/grouped.toml"
        (out / name).write_bytes((shipped / name).read_bytes() + b"# changed\n")

    monkeypatch.setattr(refit, "SYSTEMS", {"a100": ""})
    monkeypatch.setattr(refit.gemm, "shipped", lambda folder: (
        shipped / "fitted/kernels/a100/gemm.toml").read_text(encoding="utf-8"))  # fmt: skip
    monkeypatch.setattr(refit.attention, "write_one", attention)
    monkeypatch.setattr(refit, "_grouped", grouped)
    done = moecast("calibrate", "fit", "--out", str(tmp_path))
    assert done.code == 0, done.err
    assert "1 differ" in done.out and "fitted/kernels/a100/grouped.toml" in done.out
    assert "gemm.toml" not in done.out
