"""From left-out runs to the file of intervals: classes, what is left out for each, sources, memory, repeats."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from calibration import accuracy
from calibration.case import Case
from calibration.distances import (
    LEFT_OUT,
    Known,
    at_their_distance,
    balanced,
    calibrate,
    memory_bounds,
    repeat_spread,
    residuals,
)
from calibration.intervals import Residual
from calibration.validate import Row
from hwprofiles.catalogue import device_of
from sim.interval import DISTANCES
from sim.plan import Plan
from tests.calibration.test_leftout import case as effects_of


@pytest.fixture(scope="module")
def known() -> list[Known]:
    """Every twentieth scored run with planted errors: 10 % too fast on one model, else exact; no simulation."""
    every = [accuracy.cases(accuracy.RUNS)[i] for i in sorted(accuracy.first_of_each_case(accuracy.RUNS))]
    cases = [c for c in every if isinstance(c, Case)][::20]
    odd = next(c.model.name for c in cases if not c.model.is_moe)
    out = []
    for number, one in enumerate(cases):
        folder = device_of(one.cluster).measured
        effects = effects_of(one.model.name, folder, 0.1 if one.model.name == odd else 0.0, number=number)
        groups = {**one.group, "gpu": folder, "trainer": one.software.trainer, "case": one.weight_key}
        out.append(Known(case=one, effects=replace(effects, groups=groups), plan=Plan()))
    return out


def peak(error: float, source: str) -> Row:
    return Row(id="p", status="ok", measure="peak_bytes", error=error, scored=True, group={"source": source})


def test_every_run_has_a_residual_in_every_class(known: list[Known]) -> None:
    found = residuals(known)
    assert set(LEFT_OUT) == set(DISTANCES)
    for distance in DISTANCES:
        assert sum(r.distance == distance for r in found) == len(known)
    # planted as predicted too fast: measured steps are longer than predicted
    assert max(r.residual for r in found) == pytest.approx(0.1, abs=0.02)


def test_the_file_is_written_from_them_and_repeats(known: list[Known], tmp_path: Path) -> None:
    rows = [(peak(0.1, "a"), known[0].case), (peak(-0.2, "b"), known[0].case)]
    target = tmp_path / "intervals.toml"
    got = calibrate(known, rows, [], date="2026-01-02", target=target)
    first = target.read_bytes()
    calibrate(known, rows, [], date="2026-01-02", target=target)
    assert target.read_bytes() == first
    data = tomllib.loads(first.decode())
    assert data["models"] == sorted({k.case.model.name for k in known})
    dense = [k for k in known if not k.case.model.is_moe]
    stated = [k for k in dense if not k.case.software.unknown]
    assert 0 < len(stated) < len(dense)
    cases = {name: entry["cases"] for name, entry in data["step"]["dense"].items()}
    assert cases["same"] == cases["new model"] == len(stated)
    assert cases["new release"] == cases["new device"] == len(dense)
    assert data["memory"]["low"] == pytest.approx(1 / 1.1, abs=1e-4) and data["memory"]["high"] == 1.25
    assert set(got.gains) and got.coverages


def test_runs_with_unknown_switches_count_from_a_new_release_on(known: list[Known]) -> None:
    every = residuals(known)
    kept = at_their_distance(every, known)
    guessed = sum(bool(k.case.software.unknown) for k in known)
    assert 0 < guessed < len(known)
    for distance in DISTANCES:
        gone = guessed if distance in ("same", "new model") else 0
        assert sum(r.distance == distance for r in kept) == len(known) - gone
    stated = [replace(k, case=replace(k.case, software=replace(k.case.software, unknown=()))) for k in known]
    assert at_their_distance(every, stated) == every


def test_a_long_file_does_not_decide_alone() -> None:
    one = Residual(kind="dense", distance="new trainer", residual=0.1, group="a", source="a")
    rows = balanced([*[one] * 16, *[replace(one, source="b")] * 4, replace(one, distance="same")])
    assert [sum(r.weight for r in rows if r.source == s and r.distance == "new trainer") for s in "ab"] == [4.0, 2.0]
    assert rows[-1].weight == 1.0


def test_peaks_of_a_source_count_by_their_root() -> None:
    low, high, rows = memory_bounds([*[peak(0.0, "a")] * 16, *[peak(-0.2, "b")] * 4, peak(0.5, "a")])
    assert (low, high, rows) == (1.0, pytest.approx(1.25), 21)


def test_repeats_are_the_median_distance_from_the_middle() -> None:
    def run(key: str, value: float) -> Row:
        return Row(id=key, status="ok", measured=value, scored=True, key=key)

    rows = [run("a", 1.0), run("a", math.exp(0.02)), run("b", 5.0), run("c", 1.0), run("c", 1.0)]
    assert repeat_spread(rows) == pytest.approx(0.005)
    assert repeat_spread(rows[2:3]) == 0.0
