"""Turns: experts that go round among three and more GPUs, which relieve full GPUs with fewer moves than exchanges do.

Turns of three relieve two GPUs at three moves. In turns of many each of the fullest and of the emptiest gives one
expert and takes one, so that most of the relief costs one move per GPU, where exchanges of two cost two per full GPU.

Which expert each gives is descended a choice at a time. Who takes which is then solved: of all ways to deal one expert
each to GPUs, the fullest GPU is least full where the fullest takes the lightest, and so on (an exchange of any two
orders them so without raising the larger sum).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.placement.pack import Packing
from planner.placement.records import Floats, Ints

ORDER = 48  # of the norm that stands for the fullest
MOST_STEPS = 120
LEAST = 1e-7
FULLEST = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48)  # how many are relieved, as tried
EMPTIEST = (0.34, 0.5, 0.75, 1.0)  # as many emptiest GPUs take part, of the fullest ones


def turned(old: Ints, load: Floats) -> Iterator[Ints]:
    """Experts [G, S] after turns of more and more GPUs; equal speeds, no replicas."""
    gpus = len(old)
    order = np.argsort(-load[old].sum(axis=1), kind="stable")
    for full in FULLEST:
        tried = set()
        for share in EMPTIEST:
            empty = max(1, round(share * full))
            if full + empty <= gpus and empty not in tried:
                tried.add(empty)
                yield _turn(old, load, np.concatenate([order[:full], order[gpus - empty :]]), full)


def _turn(old: Ints, load: Floats, chosen: Ints, full: int) -> Ints:
    held = old[chosen]
    value = load[held]  # [n, S]
    n, slots = value.shape
    rest = value.sum(axis=1, keepdims=True) - value  # without the expert in each slot
    mean = float(value.sum()) / n
    rows, every = np.arange(n), np.arange(n * slots)
    gives = np.where(rows < full, value.argmax(axis=1), value.argmin(axis=1))

    def worth(base: Floats, given: Floats) -> Floats:
        dealt = np.sort(base, axis=-1)[..., ::-1] + np.sort(given, axis=-1)
        out: Floats = ((dealt / mean) ** ORDER).sum(axis=-1)
        return out

    now = float(worth(rest[rows, gives], value[rows, gives]))
    for _ in range(MOST_STEPS):
        base, given = (np.repeat(v[rows, gives][None, :], n * slots, axis=0) for v in (rest, value))
        base[every, every // slots], given[every, every // slots] = rest.ravel(), value.ravel()
        found = worth(base, given)
        best = int(found.argmin())
        if not found[best] < now * (1.0 - LEAST):
            break
        now = float(found[best])
        gives[best // slots] = best % slots
    takes = np.argsort(-rest[rows, gives], kind="stable")
    light = np.argsort(value[rows, gives], kind="stable")
    out, after = old.copy(), held.copy()
    after[takes, gives[takes]] = held[light, gives[light]]
    out[chosen] = after
    return out


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
