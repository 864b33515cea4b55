"""`moecast place` with a machine: seconds, held-out score, homes and speeds on the command line, and their mistakes."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from planner.placement.placefile import load_placement
from planner.placement.read import read_instance
from planner.placement.records import TimeFigures
from planner.placement.verify import check_answer
from tests.planner_cli.running import moecast

MACHINE = ["--cluster", "dgx-h100", "--model", "mixtral-8x7b"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """loads, classes and speeds of two layers of eight experts on four GPUs, in nodes of two."""
    rng = np.random.default_rng(3)
    skew = np.exp(0.6 * rng.standard_normal((2, 8)))
    write(
        tmp_path / "loads.csv",
        "layer,expert,count",
        [(i, e, round(9000 * skew[i, e])) for i in (0, 1) for e in range(8)],
    )
    chosen = [(k, i, e, 900 if e % 2 == k else 100) for k in (0, 1) for i in (0, 1) for e in range(8)]
    write(tmp_path / "classes.csv", "class,layer,expert,count", chosen)
    write(tmp_path / "speeds.csv", "gpu,speed", [(0, 0.5), (1, 1), (2, 1), (3, 1)])
    return tmp_path


def write(path: Path, header: str, rows: list[tuple[object, ...]]) -> None:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")


def place(files: Path, *more: str) -> list[str]:
    return ["place", "--loads", str(files / "loads.csv"), "--gpus", "4", "--gpus-per-node", "2", *more]


def test_seconds_stand_beside_the_answer(files: Path) -> None:
    saved = files / "placement.json"
    done = moecast(*place(files, *MACHINE, "--objective", "time", "--json", "-", "--out", str(saved)))
    assert done.code == 0, done.err
    said = json.loads(done.out)["certificate"]
    time = said["time"]
    assert said["objective"] == time["after_s"] <= min(time["baselines_s"].values())
    assert said["lower_bound"] <= said["objective"] < time["before_s"]
    assert set(time) == {field.name for field in fields(TimeFigures)}
    keys = {*time, *time["gain"], *time["weights_s_per_row"]}
    text = (Path(__file__).parents[2] / "docs/reference/json.md").read_text(encoding="utf-8")
    assert not sorted(keys - set(re.findall(r"\w+", text)))
    instance = read_instance(files / "loads.csv", gpus=4, gpus_per_node=2, slots_per_gpu=2)
    assert not check_answer(instance, load_placement(saved)[0]).problems
    shown = moecast(*place(files, *MACHINE))
    for words in ("simulated", "80 % interval", "training step", "contiguous", "on these very counts"):
        assert words in shown.out
    line = next(line for line in shown.out.splitlines() if "80 % interval" in line and "drawn anew" in line)
    before, after, low, high, gain = (float(x) for x in re.findall(r"\d+\.\d+", line)[:5])
    assert low <= after <= high
    assert gain / 100.0 == pytest.approx(1.0 - after / before, abs=0.01 / before + 1e-4)


def test_held_out_half_and_file(files: Path) -> None:
    half = moecast(*place(files, "--held-out", "half", "--json", "-"))
    gain = json.loads(half.out)["certificate"]["held_out"]
    assert gain["low"] <= gain["value"] <= gain["high"] and gain["counts"]
    even = [(i, e, 40 + (e * 7 + i) % 5) for i in (0, 1) for e in range(8)]
    write(files / "even.csv", "layer,expert,count", even)
    none = moecast(
        "place", "--loads", str(files / "even.csv"), *place(files)[3:], "--held-out", str(files / "even.csv")
    )
    assert "none beyond its sampling error" in none.out


def test_held_out_counts_of_other_experts_or_layers(files: Path) -> None:
    """The message is about the two files, not about slots."""
    write(files / "more.csv", "layer,expert,count", [(i, e, 5 + e) for i in (0, 1) for e in range(64)])
    more = moecast(*place(files, "--held-out", str(files / "more.csv")))
    assert more.code == 2 and "slots" not in more.err
    assert "64 experts in 2 layers (0 to 1), the loads 8 experts in 2 layers (0 to 1)" in more.err
    write(files / "later.csv", "layer,expert,count", [(i, e, 5 + e) for i in (4, 5) for e in range(8)])
    later = moecast(*place(files, "--held-out", str(files / "later.csv")))
    assert later.code == 2 and "8 experts in 2 layers (4 to 5), the loads 8 experts in 2 layers (0 to 1)" in later.err


def test_classes_get_homes_and_slow_gpus_less(files: Path) -> None:
    done = moecast(*place(files, *MACHINE, "--classes", str(files / "classes.csv"), "--json", "-"))
    homes = json.loads(done.out)["homes"]
    assert np.array(homes["share"]).sum(axis=1) == pytest.approx([1.0, 1.0])
    assert homes["remote"] <= homes["remote_spread"] + 1e-12
    slow = moecast(*place(files, "--speeds", str(files / "speeds.csv"), "--json", "-"))
    data = json.loads(slow.out)
    loads = read_instance(files / "loads.csv", gpus=4, gpus_per_node=2, slots_per_gpu=2).loads
    first = sum(loads[i][layer["experts_on_gpu"][0]].sum() for i, layer in enumerate(data["layers"]))
    assert first < 0.25 * loads.sum()


def test_mistakes_have_remedies(files: Path) -> None:
    done = moecast(*place(files, "--objective", "tiem", "--cluster", "dgx-h100", "--classes", "c.csv"))
    assert done.code == 2
    for words in ("did you mean time", "--cluster and --model go together", "--classes needs --model"):
        assert words in done.err
    assert "needs --cluster and --model" in moecast(*place(files, "--objective", "time")).err
    write(files / "speeds.csv", "gpu,speed", [(0, 0.5), (0, 1), (2, 0), (9, 1)])
    bad = moecast(*place(files, "--speeds", str(files / "speeds.csv")))
    assert bad.code == 2
    for words in ("gpu 0 again", "GPU 9, speed 1; give GPUs 0 to 3", "GPU 2, speed 0", "GPU 1 is missing"):
        assert words in bad.err
    other = moecast(*place(files, "--cluster", "dgx-h100", "--model", "qwen3-30b-a3b"))
    assert other.code == 2 and "8 experts" in other.err
