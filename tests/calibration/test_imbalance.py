"""Loads that a stated power law implies, and how well its penalty is priced on shipped rows."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.kernels.imbalance import agreement, penalties, points, power_law_load, score
from hwprofiles.errors import UserError
from sim.routing.expected import hottest

DEVICES = ("h100", "h200", "b200", "gb200")


def test_the_fullest_rank_of_a_law_grows_with_ep_and_alpha_and_conserves_rows() -> None:
    for alpha in (1.01, 1.2):
        loads = [power_law_load(alpha, 4096, 256, 8, ep) for ep in (1, 8, 32, 64)]
        over = [load.max_over_mean for load in loads]
        assert over[0] == pytest.approx(1.0, rel=1e-6) and over == sorted(over)
        assert all(load.fullest <= min(load.rows, 4096) for load in loads)
    assert power_law_load(1.2, 4096, 256, 8, 32).rows > power_law_load(1.01, 4096, 256, 8, 32).rows


def test_a_token_is_never_counted_twice_by_one_expert() -> None:
    """Two of eight experts: the fullest takes every token at most, and what it cannot take goes to others."""
    one = power_law_load(1.2, 1024, 8, 2, 8)
    assert one.rows <= 1024 and one.mean == 256.0
    assert power_law_load(1.2, 1024, 8, 2, 1).rows == pytest.approx(2048.0)


@pytest.mark.parametrize("device", DEVICES)
def test_penalty_and_order_over_ep_are_as_measured(device: str) -> None:
    """The rows of 8, 32 and 64 ranks that the grouped GEMM was not fitted to."""
    found = score(device)
    assert found.penalty.cases > 200
    assert found.penalty.median < 0.15 and found.penalty.p90 < 0.40
    assert found.cell.median < 0.15
    assert found.clear_order >= 0.85 and found.order >= 0.75 and found.pairs > found.clear_pairs > 40


@pytest.mark.parametrize(("device", "twin"), [("h100", "h200"), ("b200", "gb200")])
def test_the_order_over_ep_is_about_as_good_as_a_near_alike_device_gives_it(device: str, twin: str) -> None:
    """The measured rows of the other device order few more pairs right than the prediction does."""
    repeat = agreement(device, twin)
    assert agreement(device, device).order == 1.0 and agreement(device, device).rows.p90 == 0.0
    assert repeat.rows.cases > 200 and 0.02 < repeat.rows.median < 0.15 and repeat.rows.p90 > 0.15
    for name in (device, twin):
        found = score(name)
        assert found.pairs == repeat.pairs
        assert found.order >= repeat.order - 0.03 and found.clear_order >= repeat.clear_order - 0.03


def test_even_rows_have_no_penalty() -> None:
    rows = points("h100")
    even = rows.assign(rows=rows.even_rows, m_max=rows.even_rows / rows.groups)
    np.testing.assert_allclose(penalties("h100", even).predicted, 1.0, rtol=1e-12)


def test_a_device_without_rows_says_so() -> None:
    with pytest.raises(UserError, match=r"moe_ranks\.csv is missing"):
        points("a100")


def test_counted_loads_of_even_routing_are_the_expected_maximum() -> None:
    """Fullest of E experts under even routing, as counted by a collector with uniform random choices."""
    from calibration.kernels.grouped import points as uneven

    rows = uneven("h100")
    rows = rows[(rows.kind == "counted") & (rows.rows >= 16 * rows.groups)]
    assert len(rows) >= 40
    mean = (rows.rows / rows.groups).to_numpy(float)
    want = []
    for each, groups, tokens in zip(mean, rows.groups, rows.tokens, strict=True):
        chance = min(each / tokens, 1.0)
        loads = np.full((1, int(groups)), each)
        want.append(hottest(loads, loads * (1.0 - chance))[0][0])
    off = np.asarray(want) / rows.m_max.to_numpy(float) - 1.0
    assert np.median(np.abs(off)) < 0.05
