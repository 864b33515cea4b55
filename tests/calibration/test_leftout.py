"""Refits without a group: planted errors are found again, and a left-out group cannot fit itself."""

from __future__ import annotations

import math

import pytest

from calibration.leftout import Effects, Refit
from calibration.parameters import bounds_of, shipped


def case(
    model: str, folder: str, error: float, *, share: float = 0.5, launch: float = 0.0, number: int = 0
) -> Effects:  # fmt: skip
    """A run whose log rate moves by `share` x log(clock) and -`launch` x log(host_launch_s)."""
    base = shipped(folder)
    clock = f"clock.{folder}"

    def ladder(name: str, slope: float) -> tuple[tuple[float, float], ...]:
        low, high = bounds_of(name)
        return tuple((v, slope * math.log(v / base[name])) for v in sorted({low, base[name], high}))

    ladders = {clock: ladder(clock, share), "host_launch_s": ladder("host_launch_s", -launch)}
    groups = {"model": model, "gpu": folder, "release": "r"}
    return Effects(
        key=f"{model}{folder}{number}", folder=folder, groups=groups, weight_group=("s", model), error=error,
        ladders=ladders,
    )  # fmt: skip


def test_refit_finds_a_planted_clock() -> None:
    error = 0.04  # everything predicted 4 % too fast: the clock must fall by exp(-0.04 / 0.5)
    cases = [case("a", "h100", error, number=i) for i in range(4)] + [case("b", "gb200", 0.0)]
    values = Refit(cases).fit(lambda _: True)
    assert values["clock.h100"] == pytest.approx(shipped("h100")["clock.h100"] * math.exp(-error / 0.5), rel=0.01)
    assert values["clock.gb200"] == shipped("gb200")["clock.gb200"]  # exact already: nothing moves


def test_a_left_out_model_does_not_fit_itself() -> None:
    cases = [case("a", "h100", 0.0, number=i) for i in range(3)] + [case("b", "h100", 0.05, number=i) for i in range(9)]
    refit = Refit(cases)
    by_model = dict(zip((c.groups["model"] for c in cases), refit.left_out("model"), strict=True))
    assert by_model["b"] == shipped("h100")  # fitted to "a", which is exact as shipped
    assert by_model["a"]["clock.h100"] < shipped("h100")["clock.h100"]


def test_a_left_out_device_takes_the_mean_clock_of_the_others() -> None:
    cases = [case("a", folder, 0.0) for folder in ("a100", "gb200", "h100")]
    values = Refit(cases).left_out("gpu")[2]
    others = [shipped(f)[f"clock.{f}"] for f in ("a100", "gb200")]
    assert values["clock.h100"] == pytest.approx(sum(others) / 2)


def test_parameters_stay_within_the_bounds_of_the_fit() -> None:
    cases = [case("a", "h100", sign * 3.0, launch=0.5, number=i) for i, sign in enumerate((1.0, 1.0, 1.0))]
    values = Refit(cases).fit(lambda _: True)
    for name, value in values.items():
        low, high = bounds_of(name)
        assert low * (1 - 1e-12) <= value <= high * (1 + 1e-12)
    assert values["clock.h100"] == pytest.approx(bounds_of("clock.h100")[0])


def test_table_error_is_the_simulated_one_at_the_rungs() -> None:
    one = case("a", "h100", 0.03, launch=0.2)
    refit = Refit([one])
    base = shipped("h100")
    low, _ = bounds_of("host_launch_s")
    moved = refit.error(0, {**base, "host_launch_s": low})
    assert refit.error(0, base) == pytest.approx(0.03)
    assert moved == pytest.approx(0.03 - 0.2 * math.log(low / base["host_launch_s"]))
