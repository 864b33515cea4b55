"""The dynamic programme over interval columns: exact where every stage has one virtual stage.

For a cap tau on the steady time of a stage the cheapest path is a shortest path over (stage, layer); the step is
(sum of fill) + (m - 1) tau, so sweeping tau over the distinct column times from the least feasible one up, until
the least sum of any path and (m - 1) tau exceed the best, is exact (parametric search over the bottleneck).
"""

from __future__ import annotations

import numpy as np

from planner.stage_plan.records import Floats, Intervals, Ints


class Paths:
    """Shortest paths over the columns of one set; group: which options may be mixed."""

    def __init__(self, columns: Intervals, options: tuple[int, ...]) -> None:
        self.columns = columns
        size = columns.num_layers + 1
        shape = (len(options), columns.slots, size, size)
        self.fill, self.steady = np.full(shape, np.inf), np.full(shape, np.inf)
        self.at = np.full(shape, -1, dtype=np.int64)
        for i, option in enumerate(options):
            rows = np.flatnonzero(columns.option == option)
            where = (i, columns.slot[rows], columns.first[rows], columns.stop[rows])
            self.fill[where], self.steady[where], self.at[where] = columns.fill_s[rows], columns.steady_s[rows], rows

    def shortest(self, cap_s: float = np.inf) -> tuple[float, Ints] | None:
        """(sum of fill, column of each slot) of the cheapest path whose columns are all within cap_s."""
        cost = np.where(self.steady <= cap_s, self.fill, np.inf)
        option = cost.argmin(axis=0)
        table = np.take_along_axis(cost, option[None], axis=0)[0]
        before = np.full(table.shape[1], np.inf)
        before[0] = 0.0
        came = np.empty(table.shape[:2], dtype=np.int64)
        for slot, prices in enumerate(table):
            sums = before[:, None] + prices
            came[slot] = sums.argmin(axis=0)
            before = sums.min(axis=0)
        if not np.isfinite(before[-1]):
            return None
        path = np.empty(len(table), dtype=np.int64)
        stop = table.shape[1] - 1
        for slot in range(len(table) - 1, -1, -1):
            first = int(came[slot, stop])
            path[slot] = self.at[option[slot, first, stop], slot, first, stop]
            stop = first
        return float(before[-1]), path

    def caps(self) -> Floats:
        """Distinct steady times, ascending."""
        return np.unique(self.steady[np.isfinite(self.steady)])

    def least_cap(self, caps: Floats) -> int | None:
        """Position of the least cap under which there is a path."""
        low, high = 0, len(caps) - 1
        if high < 0 or self.shortest(float(caps[high])) is None:
            return None
        while low < high:
            middle = (low + high) // 2
            if self.shortest(float(caps[middle])) is None:
                low = middle + 1
            else:
                high = middle
        return low


def groups_of(columns: Intervals, *, per_stage: bool) -> tuple[tuple[int, ...], ...]:
    """Options that may stand on one pipeline: all of them, or each alone."""
    every = tuple(range(len(columns.options)))
    return (every,) if per_stage else tuple((option,) for option in every)


def sweep(columns: Intervals, *, per_stage: bool) -> Ints | None:
    """Column of each slot of the path with the least objective; None where nothing fits. Only for one chunk a stage."""
    assert columns.vpp == 1, "stages with several chunks do not cost column by column"
    weight = columns.num_micro_batches - 1
    best_s, best = np.inf, None
    for options in groups_of(columns, per_stage=per_stage):
        paths = Paths(columns, options)
        caps = paths.caps()
        start, least = paths.least_cap(caps), paths.shortest()
        if start is None or least is None:
            continue
        for cap in caps[start:]:
            if least[0] + weight * cap >= best_s:
                break
            found = paths.shortest(float(cap))
            assert found is not None
            objective = columns.objective_s(found[1])
            if objective < best_s:
                best_s, best = objective, found[1]
    return best
