"""Simple paths and a simple bound: what the integer programme starts from."""

from __future__ import annotations

import numpy as np

from planner.stage_plan.dynamic import Paths
from planner.stage_plan.records import Floats, Intervals, Ints
from sim.build.stages import layers_per_stage


def least_bottleneck_s(columns: Intervals, options: tuple[int, ...]) -> float:
    """A bound below the steady time of the slowest stage of any path; inf where some slot has no column.

    In a time t a stage holds at most n(t) layers, whichever they are; the stages hold all of them: the least t under
    which the n(t) add up to the number of layers. Nothing is asked of order or memory.
    """
    size = columns.num_layers + 1
    least = np.full((columns.slots, size), np.inf)
    mine = np.flatnonzero(np.isin(columns.option, options))
    length = (columns.stop - columns.first)[mine]
    np.minimum.at(least, (columns.slot[mine], length), columns.steady_s[mine])
    stages = []
    for stage in range(columns.pp):
        total = least[stage]
        for slot in range(stage + columns.pp, columns.slots, columns.pp):
            grid = total[:, None] + least[slot][None, :]
            total = np.array([grid[np.arange(n + 1), n - np.arange(n + 1)].min() for n in range(size)])
        # the least time of a stage that holds n layers or more
        stages.append(np.minimum.accumulate(total[::-1])[::-1])
    times = np.stack(stages)
    levels = np.unique(times[np.isfinite(times)])
    low, high = 0, len(levels)
    while low < high:
        middle = (low + high) // 2
        held = (times <= levels[middle]).sum(axis=1) - 1
        if held.min() < 0 or held.sum() < columns.num_layers:
            low = middle + 1
        else:
            high = middle
    return float(levels[low]) if low < len(levels) else float("inf")


def simple_paths(columns: Intervals, tables: list[Paths]) -> list[Ints]:
    """Paths that fit: shortest ones and those of the least cap on a column."""
    found: list[Ints] = []
    for paths in tables:
        caps = paths.caps()
        start = paths.least_cap(caps)
        tries = [] if start is None else [paths.shortest(), paths.shortest(float(caps[start]))]
        found += [each[1] for each in tries if each is not None]
    return [path for path in found if columns.fits(path)]


def moved(columns: Intervals, paths: Paths) -> Ints | None:
    """A path of one option that fits, from the even split: the best move of a single layer from one virtual stage to
    another, as long as one helps; None where that ends without one."""
    slots, at = np.arange(columns.slots), paths.at[0]
    counts = np.array(layers_per_stage(columns.num_layers, columns.slots, account_ends=True), dtype=np.int64)
    giver, taker = (line.ravel() for line in np.indices((columns.slots, columns.slots)))
    giver, taker = giver[giver != taker], taker[giver != taker]
    moves = (slots == taker[:, None]).astype(np.int64) - (slots == giver[:, None])
    now: tuple[float, ...] = (np.inf,)
    path, tried = None, counts[None]
    while True:
        stops = np.cumsum(tried, axis=1)
        there = at[slots, stops - tried, stops]
        rows = np.flatnonzero((there >= 0).all(axis=1))
        if not len(rows):
            break
        worth = _worth(columns, there[rows])
        best = np.lexsort(worth[::-1])[0]
        found = tuple(float(each[best]) for each in worth)
        if found >= now:
            break
        now, path, counts = found, there[rows[best]], tried[rows[best]]
        tried = counts + moves[counts[giver] > 0]
    return path if path is not None and columns.fits(path) else None


def _worth(columns: Intervals, paths: Ints) -> tuple[Floats, Floats, Floats]:
    """Of each path: what does not fit; objective; among stages equally slow, those that are more alike."""
    excess = np.maximum(columns.stage_bytes(paths) / columns.capacity_bytes - 1.0, 0.0).sum(axis=-1)
    seconds: Floats = columns.steady_s[paths]
    scale = float(seconds[0].mean()) or 1.0
    spread = ((seconds / scale) ** 2).sum(axis=-1)
    return excess, np.round(columns.objectives_s(paths) / scale, 9), np.round(spread, 9)
