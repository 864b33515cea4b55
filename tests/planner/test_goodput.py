"""Failures and checkpoints: closed forms against each other and against a simulation of failures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.goodput import (
    daly_interval_s,
    exact_interval_s,
    expected_s,
    long_run,
    repeated,
    system_mtbf_s,
    young_interval_s,
)


def test_intervals_by_hand() -> None:
    assert young_interval_s(50.0, 10_000.0) == pytest.approx(1000.0)
    # Daly: 1000 (1 + sqrt(0.0025)/3 + 0.0025/9) - 50
    assert daly_interval_s(50.0, 10_000.0) == pytest.approx(1000.0 * (1 + 0.05 / 3 + 0.0025 / 9) - 50.0)
    assert daly_interval_s(300.0, 100.0) == 100.0
    assert system_mtbf_s(1e6, 100) == 1e4


@given(cost=st.floats(1e-3, 0.5), restart=st.floats(0.0, 1.0))
def test_exact_interval_is_the_least_and_dalys_is_near(cost: float, restart: float) -> None:
    best = exact_interval_s(cost, 1.0)
    least = expected_s(1.0, best, cost, 1.0, restart)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert expected_s(1.0, best * factor, cost, 1.0, restart) >= least
    assert expected_s(1.0, daly_interval_s(cost, 1.0), cost, 1.0, restart) <= least * 1.001


@given(work=st.floats(10.0, 1e6), cost=st.floats(0.01, 100.0), mtbf=st.floats(50.0, 1e9), restart=st.floats(0.0, 500.0))
def test_parts_sum_and_agree_with_dalys_formula(work: float, cost: float, mtbf: float, restart: float) -> None:
    run = long_run(work, cost_s=cost, mtbf_s=mtbf, restart_s=restart)
    assert run.total_s == pytest.approx(expected_s(work, run.interval_s, cost, mtbf, restart), rel=1e-6)
    parts = run.work_s + run.checkpoint_s + run.rework_s + run.restart_s
    assert parts == pytest.approx(run.total_s)
    assert run.rework_s >= -1e-6 * run.total_s
    assert 0.0 < run.goodput <= 1.0
    assert run.total_s >= long_run(work, cost_s=cost, mtbf_s=2 * mtbf, restart_s=restart).total_s * (1 - 1e-12)


def test_no_failures_cost_nothing_and_too_many_never_end() -> None:
    free = long_run(1000.0, cost_s=5.0, mtbf_s=math.inf, restart_s=60.0)
    assert (free.total_s, free.goodput, free.sd_s) == (1000.0, 1.0, 0.0)
    assert long_run(1000.0, cost_s=5.0, mtbf_s=math.inf, restart_s=60.0, interval_s=100.0).total_s == 1050.0
    assert math.isinf(long_run(1e4, cost_s=1.0, mtbf_s=10.0, restart_s=600.0, interval_s=1e4).total_s)


def one_run(rng: np.random.Generator, segments: int, length: float, mtbf: float, restart: float) -> float:
    """A run event by event."""
    now = 0.0
    for _ in range(segments):
        while (fails := rng.exponential(mtbf)) < length:
            now += fails
            while (again := rng.exponential(mtbf)) < restart:
                now += again
            now += restart
        now += length
    return now


@pytest.mark.parametrize(("interval", "cost", "mtbf", "restart"), [(20.0, 2.0, 100.0, 10.0), (60.0, 5.0, 50.0, 30.0)])
def test_mean_and_spread_against_simulated_failures(interval: float, cost: float, mtbf: float, restart: float) -> None:
    rng = np.random.default_rng(7)
    segments, runs = 10, 3000
    run = long_run(segments * interval, cost_s=cost, mtbf_s=mtbf, restart_s=restart, interval_s=interval)
    seen = np.array([one_run(rng, segments, interval + cost, mtbf, restart) for _ in range(runs)])
    assert seen.mean() == pytest.approx(run.total_s, abs=4 * run.sd_s / math.sqrt(runs))
    assert seen.std() == pytest.approx(run.sd_s, rel=0.08)


def test_repeated_without_repair_has_the_textbook_moments() -> None:
    """M (e^x - 1) and M^2 (e^2x - 1 - 2x e^x), x = length / M."""
    for x in (1e-6, 0.01, 0.5, 2.0):
        found = repeated(x * 3.0, 3.0)
        assert found.mean_s == pytest.approx(3.0 * math.expm1(x), rel=1e-9)
        if x > 1e-3:
            assert found.variance_s2 == pytest.approx(9.0 * (math.exp(2 * x) - 1 - 2 * x * math.exp(x)), rel=1e-6)
