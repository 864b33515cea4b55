"""Lower bounds of the fullest GPU of one layer, by counting; speeds and slots are those of the GPUs.

No GPU can take less than the mean. Without replicas, some GPUs must hold the heaviest experts together with as many
others as fill their slots; with replicas, no split makes the heaviest replica lighter than the best shares do.
"""

from __future__ import annotations

import heapq

import numpy as np

from planner.placement.records import Floats, Ints


def load_bound(load: Floats, slots: int, speeds: Floats) -> float:
    """No placement of load [E] on G x slots slots has a smaller max over GPUs of load / speed [G].

    Holds for evenly split replicas; with free shares only the mean is left (`mean_bound`).
    """
    total = len(speeds) * slots
    found = [mean_bound(load, speeds)]
    if total == len(load):
        found += [_heaviest_together(load, slots, speeds), _two_of_the_heaviest(load, slots, speeds)]
    else:
        counts = fairest_counts(load, total, len(speeds))
        found.append(float((load / counts).max()) / float(speeds.max()))
    return max(found)


def mean_bound(load: Floats, speeds: Floats) -> float:
    """Load over the summed speed."""
    return float(load.sum() / speeds.sum())


def _heaviest_together(load: Floats, slots: int, speeds: Floats) -> float:
    """The i heaviest experts lie on some j GPUs, whose other slots hold at least the lightest of the rest."""
    rising = np.sort(load)
    light = np.concatenate([[0.0], np.cumsum(rising)])
    heavy = np.concatenate([[0.0], np.cumsum(rising[::-1])])
    fastest = np.concatenate([[0.0], np.cumsum(np.sort(speeds)[::-1])])
    i = np.arange(1, len(speeds) + 1)[:, None]
    j = np.arange(1, len(speeds) + 1)[None, :]
    possible = (j <= i) & (j * slots >= i)
    total = heavy[i] + light[np.clip(j * slots - i, 0, len(load))]
    per_gpu = np.where(possible, total / fastest[j], np.inf)
    return float(per_gpu.min(axis=1).max())


def _two_of_the_heaviest(load: Floats, slots: int, speeds: Floats) -> float:
    """Among the G m + 1 heaviest, some GPU holds m + 1; its other slots hold at least the lightest experts."""
    rising = np.sort(load)
    light = np.concatenate([[0.0], np.cumsum(rising)])
    falling = rising[::-1]
    gpus, best = len(speeds), 0.0
    for m in range(1, slots):
        if gpus * m + 1 > len(load):
            break
        together = falling[gpus * m - m : gpus * m + 1].sum() + light[slots - m - 1]
        best = max(best, float(together))
    return best / float(speeds.max())


def fairest_counts(load: Floats, total: int, most: int) -> Ints:
    """Replicas of each expert (sum = total, at most `most` each) with the smallest heaviest replica.

    Giving each further replica to the heaviest is exact: no other counts make the heaviest replica lighter.
    """
    counts = np.ones(len(load), dtype=np.int64)
    heap = [(-w, e) for e, w in enumerate(load.tolist())]
    heapq.heapify(heap)
    for _ in range(total - len(load)):
        _, e = heapq.heappop(heap)
        counts[e] += 1
        if counts[e] < most:
            heapq.heappush(heap, (-load[e] / counts[e], e))
    return counts
