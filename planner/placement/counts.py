"""How many replicas each expert of a layer gets: candidates for the search, and moving one replica at a time.

The count rule, not the packing, causes the worst cases of greedy balancers: replicas of the heaviest expert alone leave
replicas too coarse for the mean GPU, and too few light ones to even out the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.placement.bounds import fairest_counts
from planner.placement.records import Floats, Ints

SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)


def count_candidates(load: Floats, total: int, gpus: int) -> Iterator[Ints]:
    """Counts [E] with sum `total`, at most `gpus` each, no candidate twice; the greedy ones first.

    The others give as many replicas as bring each below a share of the mean GPU; what is left goes to the heaviest
    replicas, or is spread by one each over the heaviest experts.
    """
    seen: set[bytes] = set()
    for counts in _all(load, total, gpus):
        if counts is not None and counts.tobytes() not in seen:
            seen.add(counts.tobytes())
            yield counts


def _all(load: Floats, total: int, gpus: int) -> Iterator[Ints | None]:
    yield fairest_counts(load, total, gpus)
    mean = load.sum() / gpus
    for share in SHARES:
        counts = np.clip(np.ceil(load / (share * mean)), 1, gpus).astype(np.int64)
        left = total - int(counts.sum())
        if left < 0:
            continue
        yield _to_heaviest(load, counts, left, gpus)
        yield _spread(load, counts, left, gpus)


def _to_heaviest(load: Floats, counts: Ints, left: int, gpus: int) -> Ints | None:
    counts = counts.copy()
    for _ in range(left):
        per = np.where(counts < gpus, load / counts, -1.0)
        counts[int(per.argmax())] += 1
    return counts if counts.max() <= gpus else None


def _spread(load: Floats, counts: Ints, left: int, gpus: int) -> Ints | None:
    counts = counts.copy()
    while left > 0:
        order = np.argsort(-load / counts, kind="stable")
        chosen = order[counts[order] < gpus][:left]
        if not len(chosen):
            return None
        counts[chosen] += 1
        left -= len(chosen)
    return counts


def shifted(load: Floats, counts: Ints, expert: int, gpus: int) -> Ints | None:
    """Counts with one replica more of `expert`, taken where the replicas that are left stay lightest."""
    if counts[expert] >= gpus:
        return None
    spare = np.where(counts > 1, load / np.maximum(counts - 1, 1), np.inf)
    spare[expert] = np.inf
    giver = int(spare.argmin())
    if not np.isfinite(spare[giver]):
        return None
    out = counts.copy()
    out[expert] += 1
    out[giver] -= 1
    return out
