"""Schedules whose stages hold two virtual stages from both ends of the model: a dynamic programme from outside in.

In "v" and "both" placement stage i holds virtual stages i and n - 1 - i (`sim.build.order`), whose passes take turns as
they come: a stage works for the seconds of both, m times (half as often where the model is held twice), and the slowest
stage bounds the step. Pairs are filled from the ends of the model inwards: the state is (layers before, layers behind),
a pair fits or not by itself, and the least slowest pair over all ways in is exact. A second pass takes, among ways no
slower, the one of least sum of squares of virtual stages, as alike as can be: a pass of one runs beside one of another.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from planner.stage_plan.records import Floats, Intervals, Ints, StageSolution, choice_of

SOLVER = "dynamic programme over pairs of virtual stages"
ROUND = 1e-12
SLACK = 0.03  # by which a slowest stage may be slower where virtual stages are then more alike


@dataclass(frozen=True, kw_only=True, eq=False)
class _Level:
    """The two virtual stages of one stage: seconds [first layer or stop, layers held], inf where there is no column,
    and which columns they are; device and host bytes of them [row of memory, first or stop, layers held]."""

    down_s: Floats
    up_s: Floats
    down: Ints
    up: Ints
    down_share: Floats
    up_share: Floats


class Pairs:
    """The programme of one option, of stages within cap_s. slowest_s: steady seconds of the slowest stage of the best
    way; inf: there is none."""

    def __init__(self, columns: Intervals, option: int, cap_s: float = np.inf) -> None:
        self.columns = columns
        self.levels = [self._level(stage, option) for stage in range(columns.slots // 2)]
        self.slowest_s = float(self._forward(cap_s)[-1].min())

    def _level(self, stage: int, option: int) -> _Level:
        c = self.columns
        size = c.num_layers + 1
        most = int((c.stop - c.first).max(initial=0)) + 1
        found = []
        for chunk, slot in enumerate(c.mates(stage)):
            mine = np.flatnonzero((c.slot == slot) & (c.option == option))
            edge = (c.first if chunk == 0 else c.stop)[mine]
            where = edge, (c.stop - c.first)[mine]
            seconds, at = np.full((size, most), np.inf), np.full((size, most), -1, dtype=np.int64)
            seconds[where], at[where] = c.steady_s[mine], mine
            shares = [c.need_bytes(stage, chunk, mine) / c.capacity_bytes[stage]]
            if c.on_host:
                shares.append(c.need_bytes(stage, chunk, mine, host=True) / c.host_capacity_bytes[stage])
            rows = np.concatenate(shares)
            share = np.full((len(rows), size, most), np.inf)
            share[:, where[0], where[1]] = rows
            found.append((seconds, at, share))
        (down_s, down, down_share), (up_s, up, up_share) = found
        return _Level(down_s=down_s, up_s=up_s, down=down, up=up, down_share=down_share, up_share=up_share)

    def _ways(self, level: _Level, a: Ints, b: Ints, cap_s: float) -> tuple[Ints, Ints, Ints, Floats]:
        """(state, layers down, layers up, seconds) of every pair that fits, within cap_s, from states (a, b)."""
        seconds = level.down_s[a][:, :, None] + level.up_s[b][:, None, :]
        lengths = np.arange(seconds.shape[1])
        room = (b - a)[:, None, None] - lengths[:, None] - lengths
        state, down, up = np.nonzero((seconds <= cap_s) & np.isfinite(seconds) & (room >= 0))
        need = level.down_share[:, a[state], down] + level.up_share[:, b[state], up]
        fits = (need <= 1.0).all(axis=0)
        state, down, up = state[fits], down[fits], up[fits]
        return state, down, up, seconds[state, down, up]

    def _forward(self, cap_s: float, price: Floats | None = None) -> list[Floats]:
        """Of each level the least value of a way to each state, [layers before, layers not behind]: seconds of the
        slowest stage, or (price, of each column) what its columns cost together."""
        size = self.columns.num_layers + 1
        value = np.full((size, size), np.inf)
        value[0, size - 1] = 0.0
        tables = [value]
        for number, level in enumerate(self.levels):
            a, b = np.nonzero(np.isfinite(value))
            after = np.full(size * size, np.inf)
            if len(a):
                state, down, up, seconds = self._ways(level, a, b, cap_s)
                before = value[a[state], b[state]]
                if price is None:
                    here = np.maximum(before, seconds)
                else:
                    here = before + price[level.down[a[state], down]] + price[level.up[b[state], up]]
                np.minimum.at(after, (a[state] + down) * size + b[state] - up, here)
            value = after.reshape(size, size)
            if number == len(self.levels) - 1:
                value = np.where(np.eye(size, dtype=bool), value, np.inf)
            tables.append(value)
        return tables

    def least_sum(self, price: Floats, cap_s: float = np.inf) -> float:
        """What the columns of the cheapest way cost together; price: of each column."""
        return float(self._forward(cap_s, price)[-1].min())

    def path(self, slack: float = 0.0) -> Ints | None:
        """Column of each virtual stage of the way of least sum of squared seconds, of ways slower by no more than this
        share than the best."""
        if not np.isfinite(self.slowest_s):
            return None
        cap_s, squares = self.slowest_s * (1.0 + slack + ROUND), self.columns.steady_s**2
        tables = self._forward(cap_s, squares)
        size = self.columns.num_layers + 1
        a, b = (int(n) for n in np.unravel_index(int(tables[-1].argmin()), (size, size)))
        path = np.empty(self.columns.slots, dtype=np.int64)
        for stage in range(len(self.levels) - 1, -1, -1):
            level, before = self.levels[stage], tables[stage]
            come_a, come_b = np.nonzero(np.isfinite(before))
            state, down, up, _ = self._ways(level, come_a, come_b, cap_s)
            here = np.flatnonzero((come_a[state] + down == a) & (come_b[state] - up == b))
            state, down, up = state[here], down[here], up[here]
            first, last = level.down[come_a[state], down], level.up[come_b[state], up]
            one = int((before[come_a[state], come_b[state]] + squares[first] + squares[last]).argmin())
            a, b = int(come_a[state[one]]), int(come_b[state[one]])
            path[stage], path[self.columns.slots - 1 - stage] = first[one], last[one]
        return path


def least_step_s(columns: Intervals, limit_s: float = np.inf) -> float:
    """A bound below the step under any stages and any option; inf where nothing fits. limit_s: beyond it nothing is
    asked.

    A stage works all its passes after the first micro-batch came down through the stages before it, and the last one
    goes back up through them: T >= sum of ramps before + work - late weight gradients, and the step ends no earlier
    than those of the first stage. Of these bounds of the stages, weighed so that equal stages count as they would in
    the best of uneven ones, the sum is least for one way in.
    """
    passes = columns.num_micro_batches / (2 if columns.placed == "both" else 1)
    least = np.inf
    ended = replace(columns, steady_s=columns.steady_s + columns.end_s / passes)
    for option in range(len(columns.options)):
        cap_s = min(least, limit_s) / passes
        pairs = Pairs(ended, option, cap_s)
        if not np.isfinite(pairs.slowest_s):
            continue
        price = ramp_prices(columns, len(pairs.levels), passes)
        bound = max(passes * pairs.slowest_s, pairs.least_sum(price, cap_s))
        least = min(least, bound)
    return float(least)


def ramp_prices(columns: Intervals, stages: int, passes: float) -> Floats:
    """Of each column its part of the weighed sum of the stages' bounds (`least_step_s`)."""
    stage, _ = columns.homes
    if columns.placed == "both":
        stage = np.minimum(stage, columns.pp - 1 - stage)
    # weights under which a second of work costs the same on every stage, itself and in the ramps of later ones
    share = float(columns.ramp_s.sum() / max(columns.steady_s.sum(), np.finfo(float).tiny))
    weights, after = np.zeros(stages), 0.0
    for at in range(stages - 1, -1, -1):
        weights[at] = max(0.0, 1.0 - share * after) / passes
        after += weights[at]
    weights /= weights.sum()
    later = weights.sum() - np.cumsum(weights)
    late = np.where(stage == 0, later[stage], -weights[stage])
    price: Floats = weights[stage] * passes * columns.steady_s + later[stage] * columns.ramp_s + late * columns.late_s
    return price


def solve_pairs(columns: Intervals) -> StageSolution:
    """Best stages under one setting for all of them."""
    began = time.perf_counter()
    best: Pairs | None = None
    for option in range(len(columns.options)):
        # a later option has to be faster: of equal ones the first stands
        pairs = Pairs(columns, option, np.inf if best is None else best.slowest_s * (1.0 - ROUND))
        if np.isfinite(pairs.slowest_s):
            best = pairs
    path = None if best is None else best.path()
    choice = None if path is None else choice_of(columns, path)
    objective = None if choice is None else choice.objective_s
    return StageSolution(
        status="infeasible" if choice is None else "optimal", choice=choice, bound_s=objective,
        gap=None if choice is None else 0.0, programme_s=None, dynamic_s=objective, per_stage=False,
        priced=len(columns), columns=len(columns), nodes=0, solver=SOLVER, seconds=time.perf_counter() - began,
    )  # fmt: skip


def alike_pairs(columns: Intervals) -> list[Ints]:
    """For each option a path of stages nearly as fast as its best, and its virtual stages as alike as can be."""
    found = [Pairs(columns, option).path(SLACK) for option in range(len(columns.options))]
    return [path for path in found if path is not None]
