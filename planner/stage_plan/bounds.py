"""Simple paths and a simple bound: what the integer programme starts from."""

from __future__ import annotations

import numpy as np

from planner.stage_plan.dynamic import Paths
from planner.stage_plan.records import Floats, Intervals, Ints
from sim.build.stages import layers_per_stage

LIGHTER = 2  # layers that the first virtual stage may hold less than its chunk, in a start
TELLING = 3  # moments of a stage that are asked whether layers fit, of those of the most held


def least_bottleneck_s(columns: Intervals, options: tuple[int, ...]) -> float:
    """A bound below the steady time of the slowest stage of any path; inf where some slot has no column, or stages that
    fit do not hold all layers.

    In a time t a stage holds at most n(t) layers, whichever they are and however its virtual stages share them; the
    stages hold all of them: the least t under which the n(t) add up to the number of layers. Of memory a stage is asked
    whether so many layers may fit at one moment after the other; nothing is asked of the order of layers.
    """
    size, mine = columns.num_layers + 1, np.isin(columns.option, options)
    shift = np.arange(size)[:, None] - np.arange(size)
    stages = []
    for stage in range(columns.held_once):
        total: Floats | None = None
        rows = _telling(columns, stage) if columns.vpp > 1 else []
        for chunk, slot in enumerate(columns.mates(stage)):
            here = np.flatnonzero(mine & (columns.slot == slot))
            length = (columns.stop - columns.first)[here]
            # seconds, then shares of what may be allocated at each moment, by layers held
            least = np.full((1 + len(rows), size), np.inf)
            np.minimum.at(least[0], length, columns.steady_s[here])
            if rows:
                share = columns.need_bytes(stage, chunk, here)[rows] / columns.capacity_bytes[stage]
                for line, values in zip(least[1:], share, strict=True):
                    np.minimum.at(line, length, values)
            if total is None:
                total = least
            else:
                shifted = np.where(shift >= 0, least[:, np.maximum(shift, 0)], np.inf)
                total = (shifted + total[:, None, :]).min(axis=2)
        assert total is not None
        seconds = np.where((total[1:] <= 1.0).all(axis=0), total[0], np.inf)
        # the least time of a stage that holds n layers or more
        stages.append(np.minimum.accumulate(seconds[::-1])[::-1])
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


def _telling(columns: Intervals, stage: int) -> list[int]:
    """The moments of a stage at which most is held: in all, and of the virtual stage of which least is."""
    held = columns.counts[stage][0]
    found = [np.argsort(-each, kind="stable")[:TELLING] for each in (held.sum(axis=1), held.min(axis=1))]
    return sorted({int(i) for each in found for i in each})


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
    """A path of one option that fits, from the even split: the best move of a single layer from a slowest or overfull
    virtual stage to another, as long as one helps; None where that ends without one."""
    slots, at = np.arange(columns.slots), paths.at[0]
    now: tuple[float, ...] = (np.inf,)
    path, tried = None, _starts(columns)
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
        tried = counts + _moves(columns, path, counts)
    return path if path is not None and columns.fits(path) else None


def _starts(columns: Intervals) -> Ints:
    """Layers of virtual stages [start, slot]: as even as they go, and with stages of a chunk alike but for the ends of
    the model, chunks as alike as that allows: unlike stages of a chunk wait for the slowest of them."""
    layers, pp, vpp, slots = columns.num_layers, columns.pp, columns.vpp, columns.slots
    found = [layers_per_stage(layers, slots, account_ends=True)]
    mean = -(-layers // slots)
    for last in range(mean + 1):  # layers of the last virtual stage, of the others of its chunk, fewer on the first
        for beside in range(max(1, mean - 1), mean + 2):
            for fewer in range(min(LIGHTER, mean) + 1):
                rest = layers - last - (pp - 1) * beside + fewer
                if rest % pp or rest < pp * (vpp - 1):
                    continue
                base, more = divmod(rest // pp, vpp - 1)
                for chunks in (
                    [base + 1] * more + [base] * (vpp - 1 - more),
                    [base] * (vpp - 1 - more) + [base + 1] * more,
                ):
                    counts = [n for n in chunks for _ in range(pp)] + [beside] * (pp - 1) + [last]
                    counts[0] -= fewer
                    found.append(tuple(counts))
    return np.array(list(dict.fromkeys(found)), dtype=np.int64)


def _moves(columns: Intervals, path: Ints, counts: Ints) -> Ints:
    """Changes of layers [move, slot] that may help."""
    seconds = columns.steady_s[path].reshape(columns.vpp, columns.pp)
    slow = (seconds >= seconds.max(axis=1, keepdims=True) * (1.0 - 1e-9)).ravel()
    full = columns.stage_bytes(path) > columns.capacity_bytes
    slots = np.arange(columns.slots)
    givers = slots[(slow | full[slots % columns.pp]) & (counts > 0)]
    giver, taker = (line.ravel() for line in np.meshgrid(givers, slots))
    giver, taker = giver[giver != taker], taker[giver != taker]
    found: Ints = (slots == taker[:, None]).astype(np.int64) - (slots == giver[:, None])
    return found


def _worth(columns: Intervals, paths: Ints) -> tuple[Floats, Floats, Floats]:
    """Of each path: what does not fit; objective; among stages equally slow, those that are more alike."""
    excess = np.maximum(columns.stage_bytes(paths) / columns.capacity_bytes - 1.0, 0.0).sum(axis=-1)
    seconds: Floats = columns.steady_s[paths]
    scale = float(seconds[0].mean()) or 1.0
    spread = ((seconds / scale) ** 2).sum(axis=-1)
    return excess, np.round(columns.objectives_s(paths) / scale, 9), np.round(spread, 9)
