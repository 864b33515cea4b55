"""Published runs on a neighbour's kernels, scaled: which neighbours, that nothing of the device is left, the bounds."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from calibration.intervals import KINDS
from calibration.runs import read_training
from calibration.scaled_devices import OnScaled, bounds, on_scaled, render, residuals, sources_of
from hwprofiles import catalogue
from hwprofiles.scaling import families_scaled
from sim.interval import limits, scaled_bounds

RUNS = Path(str(resources.files("calibration") / "published" / "training_runs.csv"))


def test_a_device_takes_its_neighbours_by_peak() -> None:
    found = {name: sources_of(catalogue.device(name)) for name in ("A100-40GB", "H100", "B200", "GB200")}
    assert found == {"A100-40GB": ("H100",), "H100": ("A100", "B200"), "B200": ("H100", "GB200"), "GB200": ("B200",)}


def test_runs_on_scaled_kernels_have_none_of_their_own() -> None:
    with RUNS.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["gpu"]) == ("MPT-7B", "H100")]
    case = read_training("one", rows[0])
    assert case.scored and case.measured
    device = catalogue.device_of(on_scaled(case, "A100").cluster)
    assert device.name == "H100" and "gemm" in families_scaled(device) and "collectives" in families_scaled(device)
    found = list(residuals([case]))
    assert [r.source for r in found] == ["a100", "b200"]
    # kernels of an older device use it better: a step comes out too fast, and too slow from a newer one
    assert found[0].residual > 0.1 and found[1].residual < 0.0


def test_pairs_of_devices_count_alike() -> None:
    one = OnScaled(key="a", kind="moe", device="h100", source="a100", residual=0.0, weight=1.0)
    many = [replace(one, key=f"n{i}", residual=0.001 * i) for i in range(98)]
    far = [replace(one, key=f"f{i}", source="b200", residual=math.log(2.0)) for i in range(2)]
    found = bounds([*many, *far, replace(one, kind="dense")])
    assert found["moe"] == (1.0, pytest.approx(2.0), 100)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_bounds_are_read(kind: str) -> None:
    entry = scaled_bounds()[kind]
    low, high = limits("scaled device", is_moe=kind == "moe")
    assert low <= entry["low"] < 1.0 < entry["high"] <= high
    text = render({kind: (entry["low"], entry["high"], entry["runs"])})
    assert f"low = {entry['low']:.4f}\nhigh = {entry['high']:.4f}\nruns = {entry['runs']}" in text
