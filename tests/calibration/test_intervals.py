"""Conformal bounds: order statistics, coverage on what was not seen, the file, and how predictions read it."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import intervals
from calibration.intervals import Residual
from hwprofiles import catalogue
from sim.interval import interval, widening


def residual(ratio: float, *, kind: str = "moe", group: str = "g", widen: float = 1.0) -> Residual:
    return Residual(kind=kind, group=group, ratio=ratio, widen=widen)


def test_bounds_are_the_order_statistics_of_the_rule() -> None:
    ratios = [0.5 + 0.05 * i for i in range(19)]  # n + 1 = 20: the 2nd and the 18th
    assert intervals.conformal(list(reversed(ratios))) == (pytest.approx(0.55), pytest.approx(1.35))


def test_few_residuals_give_their_range() -> None:
    assert intervals.conformal([0.9, 1.3]) == (0.9, 1.3)
    with pytest.raises(ValueError, match="no residuals"):
        intervals.conformal([])


@given(st.lists(st.floats(0.2, 5.0), min_size=1, max_size=60))
def test_bounds_hold_the_prediction_and_four_in_five(ratios: list[float]) -> None:
    low, high = intervals.conformal(ratios)
    assert low <= 1.0 <= high
    assert sum(low <= r <= high for r in ratios) >= 0.8 * len(ratios)


def test_coverage_of_new_draws_is_eighty_percent() -> None:
    rng = np.random.default_rng(7)
    inside = []
    for _ in range(400):
        draws = np.exp(rng.normal(0.0, 0.15, 61))
        low, high = intervals.conformal(draws[:-1].tolist())
        inside.append(low <= draws[-1] <= high)
    assert 0.75 < np.mean(inside) < 0.88  # 0.8 plus at most 2 / (n + 1), and four standard errors of 400 draws


def test_widening_is_taken_off_before_and_put_on_after() -> None:
    plain = [residual(1.0 + x) for x in (-0.1, 0.2)]
    wide = [residual(1.0 + 1.5 * x, widen=1.5) for x in (-0.1, 0.2)]
    dense = [residual(1.0, kind="dense")]
    assert intervals.bounds([*plain, *dense])["moe"] == pytest.approx(intervals.bounds([*wide, *dense])["moe"])
    assert intervals.covered([residual(1.29, widen=1.5), residual(1.31, widen=1.5)], {"moe": (0.9, 1.2)}) == 0.5


def test_crossed_coverage_does_not_see_its_own_group() -> None:
    """Groups far apart: each lies outside the bounds of the other, though all lie inside their own."""
    slow = [residual(1.5 + 0.01 * i, group="slow") for i in range(5)]
    fast = [residual(0.5 + 0.01 * i, group="fast") for i in range(5)]
    dense = [residual(1.0, kind="dense", group=f"d{i}") for i in range(2)]
    everything = [*slow, *fast, *dense]
    assert intervals.covered(everything, intervals.bounds(everything)) == 1.0
    assert intervals.crossed(everything) == pytest.approx(2 / 12)  # only the dense ones


def test_file_keeps_its_assumptions_and_names_its_source(tmp_path: Path) -> None:
    target = tmp_path / "intervals.toml"
    target.write_text("borrowed = 1.7\nunknown_switch = 1.3\n[moe]\nlow = 0.1\nhigh = 9.0\n")
    rows = [residual(1.0 + 0.01 * i) for i in range(-9, 10)] + [residual(1.1, kind="dense")]
    limits = intervals.write(rows, date="2026-01-02", target=target)
    data = tomllib.loads(target.read_text())
    assert (data["borrowed"], data["unknown_switch"]) == (1.7, 1.3)
    assert (data["moe"]["low"], data["moe"]["high"]) == pytest.approx(limits["moe"], abs=1e-4)
    assert (data["dense"]["low"], data["dense"]["high"], data["dense"]["cases"]) == (1.0, 1.1, 1)
    assert set(data["source"]) == {"kind", "title", "where", "date", "licence", "note"} and all(data["source"].values())
    first = target.read_bytes()
    intervals.write(rows, date="2026-01-02", target=target)
    assert target.read_bytes() == first


@pytest.mark.parametrize("is_moe", [True, False])
def test_prediction_reads_the_shipped_bounds(is_moe: bool) -> None:
    shipped = tomllib.loads(intervals.path().read_text(encoding="utf-8"))
    entry = shipped["moe" if is_moe else "dense"]
    device = catalogue.device("H100")
    software = replace(catalogue.software(catalogue.default_software("H100"), device="H100"), unknown=())
    got = interval(2.0, is_moe=is_moe, device=device, software=software)
    assert (got.value, got.low, got.high) == pytest.approx((2.0, 2.0 * entry["low"], 2.0 * entry["high"]))


def test_borrowed_tables_and_unknown_switches_widen() -> None:
    shipped = tomllib.loads(intervals.path().read_text(encoding="utf-8"))
    known = replace(catalogue.software(catalogue.default_software("H100"), device="H100"), unknown=())
    unknown = replace(known, unknown=("cuda_graph",))
    own, same_chip, other = (catalogue.device(name) for name in ("H100", "A100-40GB", "H800"))
    assert widening(own, known) == widening(same_chip, known) == 1.0
    assert widening(other, known) == shipped["borrowed"] > 1.0
    assert widening(other, unknown) == pytest.approx(shipped["borrowed"] * shipped["unknown_switch"])
    plain = interval(1.0, is_moe=True, device=own, software=known)
    wide = interval(1.0, is_moe=True, device=other, software=unknown)
    assert wide.low <= plain.low <= 1.0 <= plain.high <= wide.high


def test_a_trainer_outside_the_fit_widens_by_what_its_kind_missed() -> None:
    """Half the runs lie twice as far out as the bound: four in five need a factor of two. Files count equally."""
    limits = {"moe": (0.9, 1.2), "dense": (0.9, 1.1)}
    far = [residual(1.2, kind="dense", group="a") for _ in range(30)]
    near = [residual(0.9, kind="dense", group="a") for _ in range(30)]
    assert intervals.distance(far[0], limits) == pytest.approx(2.0)
    assert intervals.new_trainer([*far, *near], limits) == pytest.approx(2.0)
    calm = [residual(1.4, group="b") for _ in range(5)]
    assert intervals.new_trainer([*far, *near, *calm], limits) == pytest.approx(2.0)
    assert intervals.new_trainer([residual(1.01, group="c")], limits) == 1.0
    assert intervals.new_trainer([], limits) == 1.0


def test_predictions_of_a_release_nobody_fitted_are_wider() -> None:
    device = catalogue.device("H100")
    known = replace(catalogue.software("megatron-bridge-26.04"), unknown=())
    other = replace(known, name="a trainer of one's own")
    shipped = tomllib.loads(intervals.path().read_text(encoding="utf-8"))
    assert widening(device, known) == 1.0
    assert widening(device, other) == shipped["new_trainer"] > 1.0
    assert widening(device, other, trainer=False) == 1.0
