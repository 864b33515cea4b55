"""Turns: experts that go round among three GPUs, which relieve two full GPUs at three moves, where exchanges of two
cost four.
"""

from __future__ import annotations

import numpy as np

from planner.placement.pack import Packing


def turn_three(packing: Packing, target: float) -> bool:
    """Bring the fullest GPU F and another too full one O to `target` by one turn; whether there is one.

    F gives a to U, U gives c to O, O gives b to F, or F and O the other way round. Of all that keep the three within
    the target, the one that fills U most. Equal speeds, no replicas.
    """
    time, load, value = packing.time, packing.load, packing.value
    top = target * float(packing.speeds[0])
    full = int(time.argmax())
    over = np.flatnonzero((time > target) & (np.arange(len(time)) != full))
    under = np.flatnonzero(time <= target)
    if not len(over) or not len(under):
        return False
    alone, best, found = np.array([full]), -np.inf, None
    for first, second in ((alone, over), (over, alone)):
        a, b, c = (value[g] for g in (first, second, under))
        # [first, second, slot of a, slot of b], then [second, U, slot of b, slot of c]
        one = (load[first][:, None] - a)[:, None, :, None] + b[None, :, None, :]
        two = (load[second][:, None] - b)[:, None, :, None] + c[None, :, None, :]
        three = (load[under][:, None] - c)[None, :, None, :] + a[:, None, :, None]  # [first, U, slot of a, slot of c]
        fits = (one[:, :, None, :, :, None] <= top) & (two[None, :, :, None, :, :] <= top)
        last = three[:, None, :, :, None, :]
        worth = np.where(fits & (last <= top), last, -np.inf)
        at = np.unravel_index(int(worth.argmax()), worth.shape)
        if worth[at] > best:
            best = float(worth[at])
            found = (int(first[at[0]]), int(second[at[1]]), int(under[at[2]])), tuple(int(x) for x in at[3:])
    if found is None:
        return False
    (f, o, u), (i, j, k) = found
    rows = [packing.expert[g].copy() for g in (f, o, u)]
    rows[0][i], rows[1][j], rows[2][k] = rows[1][j], rows[2][k], rows[0][i]
    for g, row in zip((f, o, u), rows, strict=True):
        packing.put(g, row)
    return True
