"""The hot core of a layer without replicas: its heaviest experts with the lightest ones that fill their slots.

Where some experts are so heavy that they and any companions exceed the mean GPU, the core alone sets the optimum. It
gives a bound (no placement treats the heaviest experts better than the lightest companions, dealt in the best way, do)
and a start for the search that an exchange at a time does not reach.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from math import comb, prod

import numpy as np

from planner.placement.pack import Packing, pack_lpt, relieve
from planner.placement.records import Floats, Ints

MOST_DEALT = 2000  # ways to deal companions that are all looked at


def core_bound(load: Floats, slots: int, speeds: Floats) -> float:
    """A lower bound by dealing the lightest experts to the two or three heaviest in every way; 0 where speeds differ.

    Either two of the i heaviest share a GPU, or each has a GPU of its own and the i (S - 1) lightest are no worse
    companions than any others.
    """
    if len(load) != len(speeds) * slots or speeds.min() < speeds.max() or slots < 2:
        return 0.0
    rising, best = np.sort(load), 0.0
    for i in range(2, min(3, len(speeds)) + 1):
        ways = _companions(i, slots - 1)
        if ways is None or i * slots > len(load):
            break
        heavy = rising[::-1][:i]
        apart = (rising[: i * (slots - 1)][ways].sum(axis=2) + heavy).max(axis=1).min()
        together = heavy[-2:].sum() + rising[: slots - 2].sum()
        best = max(best, min(float(apart), float(together)))
    return best / float(speeds[0])


@lru_cache(maxsize=8)
def _companions(gpus: int, each: int) -> Ints | None:
    """All ways [way, gpu, place] to deal gpus x each companions to GPUs that differ; None if too many."""
    if prod(comb(left * each, each) for left in range(2, gpus + 1)) > MOST_DEALT:
        return None
    hands: list[tuple[tuple[int, ...], ...]] = [()]
    for left in range(gpus, 0, -1):
        grown = []
        for hand in hands:
            rest = [x for x in range(gpus * each) if all(x not in h for h in hand)]
            grown += [(*hand, h) for h in combinations(rest, each)] if left > 1 else [(*hand, tuple(rest))]
        hands = grown
    return np.array(hands, dtype=np.int64)


def core_start(load: Floats, slots: int, speeds: Floats, core: int) -> Ints:
    """Experts [G, S]: the `core` heaviest and the lightest that fill their GPUs evened out, all others apart."""
    order = np.argsort(load, kind="stable")
    hot, light = order[::-1][:core], order[: core * (slots - 1)]
    ones = np.ones(len(load), dtype=np.int64)
    first = np.concatenate([hot, light])
    inner = Packing(
        pack_lpt(load[first], ones[: len(first)], slots, speeds[:core]), load[first], ones[: len(first)], speeds[:core]
    )
    relieve(inner, float(load[first].sum() / speeds[:core].sum()))
    rest = order[core * (slots - 1) : len(load) - core]
    outer = pack_lpt(load[rest], ones[: len(rest)], slots, speeds[core:])
    return np.concatenate([first[inner.expert], rest[outer]])


def core_sizes(load: Floats, slots: int, gpus: int, most: int = 12) -> list[int]:
    """Sizes of core worth a start: those whose GPUs must take the most on average, largest first; at most two."""
    rising = np.sort(load)
    i = np.arange(1, min(most, gpus - 1) + 1)
    heavy, light = np.cumsum(rising[::-1]), np.cumsum(rising)
    mean = (heavy[i - 1] + light[i * (slots - 1) - 1]) / i if slots > 1 else heavy[i - 1] / i
    return [int(i[k]) for k in np.argsort(-mean, kind="stable")[:2]]
