"""Stages as alike as can be: what the simulator is asked besides the programme's own choice.

The closed form charges the slowest stage and sees no difference among the rest; an event run does, as unlike stages
wait for each other. So of the choices that keep the slowest stage as fast as any, the one of least sum of squared times
is simulated too; with virtual stages, where the closed form sees least, without that cap.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.stage_plan.dynamic import Paths
from planner.stage_plan.pairs import alike_pairs
from planner.stage_plan.records import Intervals, Ints, StageChoice, choice_of

CLOSE = 1.1  # choices of an objective up to so many times the least are worth an event run
MOST = 3


def alike_choices(columns: Intervals, best_s: float) -> list[StageChoice]:
    """At most MOST choices that fit, one a recompute setting, the least closed form first; best_s: the programme's."""
    found: list[tuple[float, Ints]] = []
    if columns.placed != "loop":
        found = [(columns.objective_s(path), path) for path in alike_pairs(columns)]
        return _close(columns, found, best_s)
    for option in range(len(columns.options)):
        cap = np.inf
        if columns.vpp == 1:
            plain = Paths(columns, (option,))
            caps = plain.caps()
            start = plain.least_cap(caps)
            if start is None:
                continue
            cap = float(caps[start])
        squares = Paths(replace(columns, fill_s=columns.steady_s**2), (option,)).shortest(cap)
        if squares is not None and columns.fits(squares[1]):
            found.append((columns.objective_s(squares[1]), squares[1]))
    return _close(columns, found, best_s)


def _close(columns: Intervals, found: list[tuple[float, Ints]], best_s: float) -> list[StageChoice]:
    close = [each for each in sorted(found, key=lambda item: item[0]) if each[0] <= best_s * CLOSE]
    return [choice_of(columns, path) for _, path in close[:MOST]]


def alike_columns(columns: Intervals) -> Intervals:
    """The columns of virtual stages that hold about as many layers as each other, the first and the last no more."""
    layers, slots = columns.num_layers, columns.slots
    count = columns.stop - columns.first
    inner = (columns.slot > 0) & (columns.slot < slots - 1)
    most = -(-layers // max(1, slots - 2))
    return columns.take(np.flatnonzero((count <= most) & (~inner | (count >= layers // slots))))
