"""`calibrate fit --runs`: planted clocks come back, priors and bounds hold, and nothing is written unasked."""

from __future__ import annotations

import csv
import math
from importlib import resources
from pathlib import Path

import pytest

from calibration import fit_runs as room
from calibration.leftout import Refit
from calibration.parameters import bounds_of, shipped
from calibration.validate import predict_file
from hwprofiles.errors import UserError
from hwprofiles.factors import factors
from tests.calibration.test_leftout import case
from tests.planner_cli.running import moecast

PUBLISHED = Path(str(resources.files("calibration"))) / "published" / "training_runs.csv"
WANTED = ("gt0001", "gt0002", "gt0003")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shipped rows as if they had run 10 % slower than predicted, and one without a figure."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(x for x in file if not x.startswith("#")) if r["id"] in WANTED]
    predicted = {r.id: r.predicted for r in predict_file(PUBLISHED, keep=lambda c: c.id in WANTED)}
    for row in rows:
        row["tok_s_gpu_norm"], row["doubt"], row["norm_how"] = str((predicted[row["id"]] or 0.0) / 1.1), "", "given"
        row["case_key"], row["tokens_per_s_gpu"], row["step_time_s"] = row["id"], "", ""
    rows.append({**rows[0], "id": "empty", "case_key": "empty", "tok_s_gpu_norm": "", "tokens_per_s_gpu": ""})
    rows[-1]["step_time_s"] = ""
    path = tmp_path_factory.mktemp("runs") / "slow.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_slow_runs_pull_the_clock_down_and_the_table_says_so(slow: Path, tmp_path: Path) -> None:
    found = room.fit_runs([str(slow)])
    by_name = {p.name: p for p in found.parameters}
    clock = by_name["clock.gb200"]
    assert found.runs == 3 and [ident for ident, _ in found.unusable] == ["empty"]
    assert clock.bounds[0] <= clock.value < clock.shipped == clock.prior[0] == factors("gb200").clock
    assert found.after < found.before == pytest.approx(math.log(1.1), abs=1e-6)
    assert clock.spread[0] <= clock.spread[1] < clock.shipped
    assert found == room.fit_runs([str(slow)])
    done = moecast("calibrate", "fit", "--runs", str(slow))
    assert done.code == 0, done.err
    for words in ("clock.gb200", "parameters fitted to 3 runs", "prior", "nothing was written", "row empty"):
        assert words in done.out


def test_values_are_written_only_where_asked(slow: Path, tmp_path: Path) -> None:
    shipped_text = (resources.files("hwprofiles") / "fitted" / "gb200.toml").read_text(encoding="utf-8")
    folder = tmp_path / "copy"
    (folder / "fitted").mkdir(parents=True)
    for name in ("gb200.toml", "common.toml"):
        text = (resources.files("hwprofiles") / "fitted" / name).read_text(encoding="utf-8")
        (folder / "fitted" / name).write_text(text, encoding="utf-8")
    found = room.fit_runs([str(slow)], out=folder)
    clock = next(p.value for p in found.parameters if p.name == "clock.gb200")
    assert f"clock = {clock:.4g}" in (folder / "fitted" / "gb200.toml").read_text(encoding="utf-8")
    assert (resources.files("hwprofiles") / "fitted" / "gb200.toml").read_text(encoding="utf-8") == shipped_text
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "factors.toml").write_text("clock = 0.9\n[source]\n", encoding="utf-8")
    room.fit_runs([str(slow)], out=profile)
    text = (profile / "factors.toml").read_text(encoding="utf-8")
    assert "host_launch_s = " in text and "clock = 0.9" in text  # no run used this profile: its clock stays


def test_refuses_with_all_problems(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        room.fit_runs([str(tmp_path / "missing.csv")])
    with pytest.raises(UserError, match=r"holds neither factors\.toml"):
        room.fit_runs(["shipped"], out=tmp_path)
    done = moecast("calibrate", "fit", "somewhere", "--runs", "x.csv")
    assert done.code == 2 and "leave out ROWS_DIR" in done.err
    done = moecast("calibrate", "fit")
    assert done.code == 2 and "no --out" in done.err


def test_a_prior_holds_back_what_few_runs_want() -> None:
    """All runs 20 % fast: the bare fit follows, a tight prior does not move, a wide one lies between or follows."""
    cases = [case("a", "h100", 0.1, share=1.0, number=i) for i in range(4)]
    start = shipped("h100")["clock.h100"]
    bare = Refit(cases).fit(lambda _: True)["clock.h100"]
    tight = Refit(cases, {"clock.h100": (start, 1e-3)}).fit(lambda _: True)["clock.h100"]
    wide = Refit(cases, {"clock.h100": (start, 10.0)}).fit(lambda _: True)["clock.h100"]
    assert bare == pytest.approx(start * math.exp(-0.1), rel=0.01)
    assert tight == pytest.approx(start, rel=0.01)
    assert wide == pytest.approx(bare, rel=0.01)
    low, high = bounds_of("clock.h100")
    assert low <= bare <= high
