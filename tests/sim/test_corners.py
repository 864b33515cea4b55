"""Of many vectors of counts only those are kept at which a sum of prices can be largest."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sim.build.corners import corners

POINTS = st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=40)
PRICES = st.lists(st.floats(0.0, 10.0), min_size=3, max_size=3)


@given(points=POINTS, prices=PRICES)
def test_the_largest_sum_is_that_of_all(points: list[list[int]], prices: list[float]) -> None:
    every = np.array(points, dtype=np.int64)
    kept = corners(every)
    assert {tuple(row) for row in kept.tolist()} <= {tuple(row) for row in points}
    assert np.isclose((kept @ np.array(prices)).max(), (every @ np.array(prices)).max(), rtol=1e-12)


@given(points=POINTS, scale=st.sampled_from([1, 1 << 20, 1 << 40]))
def test_whether_a_row_is_kept_does_not_hang_on_the_size_of_the_counts(points: list[list[int]], scale: int) -> None:
    few = corners(np.array(points, dtype=np.int64))
    many = corners(scale * np.array(points, dtype=np.int64))
    # too large to be told apart by one number, rows between two others stay
    assert {tuple(row) for row in (scale * few).tolist()} <= {tuple(row) for row in many.tolist()}


def test_of_a_straight_line_the_ends_are_kept() -> None:
    line = np.array([[9 - k, k, 1] for k in range(10)])
    assert corners(line).tolist() == [[0, 9, 1], [9, 0, 1]]
    assert corners(np.array([[1, 1, 0], [2, 1, 0], [1, 1, 0]])).tolist() == [[2, 1, 0]]
    bent = np.array([[0, 9, 0], [5, 5, 0], [9, 0, 0]])
    assert len(corners(bent)) == 3
