"""What pipeline sends take alone, for a block of plans: screening adds them up along a pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.cost.step import StepCost


class Hops:
    """Seconds of pipeline sends over every boundary between stages; one row per plan.

    slowest_s: over the slowest boundary, the wrap from the last stage to the first left out; 0 without stages.
    """

    def __init__(self, step: StepCost) -> None:
        found, self._pp = step.boundaries, np.asarray(step.ctx.plan.pp)
        self._which, self._highest = found.which, found.highest
        tops = [int(top) for top in np.unique(found.highest) if top >= 0]
        self._seconds = np.zeros((max(tops) + 1, len(self._which)))
        self.slowest_s = np.zeros(len(self._which))
        # how many of the first 0, 1, 2, ... boundaries of a pipeline are of each kind
        self._count: dict[int, NDArray[np.int64]] = {}
        for top in tops:
            self._seconds[top] = step.p2p(top).alone_s
            count = np.zeros((len(found.highest), found.highest.shape[1] + 1), dtype=np.int64)
            np.cumsum(found.highest == top, axis=1, out=count[:, 1:])
            self._count[top] = count
            crossed = count[self._which, self._pp - 1] > 0
            self.slowest_s = np.maximum(self.slowest_s, np.where(crossed, self._seconds[top], 0.0))

    def at(self, boundary: Any, row: Any) -> Any:
        """Seconds over a boundary; -1 is the last one, from the last stage to the first."""
        top = self._highest[self._which[row], np.where(boundary < 0, self._pp[row] - 1, boundary)]
        return self._seconds[top, row]

    def before(self, stage: Any, row: Any) -> Any:
        """Seconds over all boundaries from the first stage to this one."""
        which = self._which[row]
        return sum(count[which, stage] * self._seconds[top, row] for top, count in self._count.items())
