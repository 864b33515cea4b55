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
    """Paths that fit: shortest ones, those of the least cap on a column, and even ones with single layers moved."""
    found: list[Ints] = []
    for paths in tables:
        caps = paths.caps()
        start = paths.least_cap(caps)
        tries = [] if start is None else [paths.shortest(), paths.shortest(float(caps[start]))]
        found += [each[1] for each in tries if each is not None]
    if columns.vpp > 1:
        for option in range(len(columns.options)):
            path = _moved(columns, option)
            found += [] if path is None else [path]
    return [path for path in found if columns.fits(path)]


def _moved(columns: Intervals, option: int) -> Ints | None:
    """From the even split, single layers from one virtual stage to another as long as that helps; None: no start."""
    even = layers_per_stage(columns.num_layers, columns.slots, account_ends=True)
    counts = np.array(even, dtype=np.int64)
    path = _path(columns, counts, option)
    if path is None:
        return None
    now, better = _worth(columns, path), True
    while better:
        better = False
        for giver in range(columns.slots):
            for taker in range(columns.slots):
                if giver == taker or counts[giver] == 0:
                    continue
                tried = counts.copy()
                tried[giver] -= 1
                tried[taker] += 1
                other = _path(columns, tried, option)
                if other is None:
                    continue
                worth = _worth(columns, other)
                if worth < now:
                    counts, path, now, better = tried, other, worth, True
    return path


def _path(columns: Intervals, counts: Ints, option: int) -> Ints | None:
    stops = np.cumsum(counts).tolist()
    keys = zip(range(columns.slots), [0, *stops[:-1]], stops, strict=True)
    path = [columns.place.get((*key, option), -1) for key in keys]
    return None if min(path) < 0 else np.array(path, dtype=np.int64)


def _worth(columns: Intervals, path: Ints) -> tuple[float, float, float]:
    """What does not fit; objective; among stages equally slow, those that are more alike."""
    excess = np.maximum(columns.stage_bytes(path) / columns.capacity_bytes - 1.0, 0.0)
    stage_s: Floats = columns.steady_s[path]
    scale = float(stage_s.mean()) or 1.0
    objective, spread = columns.objective_s(path) / scale, float(((stage_s / scale) ** 2).sum())
    return float(excess.sum()), round(objective, 9), round(spread, 9)
