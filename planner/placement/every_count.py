"""Small layers with replicas on GPUs that are alike: every choice of counts, packed exactly, by branch and bound.

In a placement below T every expert has more replicas than its load holds T. GPUs are filled one by one, each with the
heaviest replica that is left: its load must not pass T, and must leave no more than T for each of the other GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from planner.placement.records import Floats, Ints

MOST_TRIED = 100_000  # hands of a GPU and counts that are looked at
BELOW = 1.0 - 1e-9


class EveryCount:
    """The least largest load of a GPU over all placements of load [E] with even shares, below a given one.

    best: of what was found (the given one at first); found: (experts [G, S], counts [E]) or None; finished: whether all
    placements were looked at, so that none is below `best`.
    """

    def __init__(self, load: Floats, slots: int, gpus: int, time: float) -> None:
        self.load, self.slots, self.gpus = load.tolist(), slots, gpus
        self.best = time
        self.found: tuple[Ints, Ints] | None = None
        self.left = MOST_TRIED
        self.order = sorted(range(len(load)), key=lambda e: (-self.load[e], e))
        for counts in self._counts(0, gpus * slots, [1] * len(load)):
            while self.left > 0 and (hosts := self._packed(counts)) is not None:
                per = load / np.array(counts)
                experts = np.array(hosts, dtype=np.int64)
                self.best = float(per[experts].sum(axis=1).max())
                self.found = experts, np.array(counts, dtype=np.int64)
        self.finished = self.left > 0

    def _counts(self, at: int, slots: int, counts: list[int]) -> Iterator[list[int]]:
        """Counts of the experts from place `at` of the order on that fill so many slots, no replica above the best."""
        self.left -= 1
        if self.left <= 0:
            return
        rest = len(self.order) - at
        if rest == 0:
            if slots == 0:
                yield counts
            return
        e = self.order[at]
        for count in range(max(1, slots - (rest - 1) * self.gpus), min(self.gpus, slots - rest + 1) + 1):
            if self.load[e] / count <= self.best * BELOW:
                counts[e] = count
                yield from self._counts(at + 1, slots - count, counts)

    def _packed(self, counts: list[int]) -> list[list[int]] | None:
        """A placement with these counts below the best; None where there is none, or no more may be looked at."""
        per = [w / n for w, n in zip(self.load, counts, strict=True)]
        order = sorted(range(len(per)), key=lambda e: (-per[e], e))
        return self._filled(per, order, list(counts), self.gpus, sum(self.load))

    def _filled(
        self, per: list[float], order: list[int], left: list[int], gpus: int, total: float
    ) -> list[list[int]] | None:
        if gpus == 0:
            return []
        top = self.best * BELOW
        there = [e for e in order if left[e] > 0]
        held = list(dict.fromkeys([there[0], *(e for e in there if left[e] == gpus)]))  # the rest is on every GPU left
        others = [e for e in there if e not in held]
        open_slots, base = self.slots - len(held), sum(per[e] for e in held)
        if open_slots < 0 or open_slots > len(others) or base > top:
            return None
        for more in combinations(others, open_slots):
            self.left -= 1
            if self.left <= 0:
                return None
            load = base + sum(per[e] for e in more)
            if load > top or total - load > top * (gpus - 1) + 1e-9 * top:
                continue
            hand = [*held, *more]
            for e in hand:
                left[e] -= 1
            if (rest := self._filled(per, order, left, gpus - 1, total - load)) is not None:
                return [hand, *rest]
            for e in hand:
                left[e] += 1
        return None
