"""Equal parts of the experts of one layer that keep what belongs together, under a cap on the load of a part.

V [E, N] is what an expert gains in each part from what stands still (the layers beside it); C [E, E] what a pair gains
in the same part. Exchanging i in part a for j in part b gains V[i, b] + V[j, a] - V[i, a] - V[j, b], where V includes
C X of the present parts, less 2 C[i, j].
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from planner.placement.records import Floats, Ints

LLOYD_ROUNDS = 8
MOST_EXCHANGES = 400
LEAST_GAIN = 1e-9


def one_hot(part: Ints, parts: int) -> Floats:
    """X [E, N] of part [E]."""
    out: Floats = (part[:, None] == np.arange(parts)).astype(np.float64)
    return out


def assign(value: Floats) -> Ints:
    """Part [E] with the largest summed value [E, N], equally many in each: a linear assignment, exact."""
    experts, parts = value.shape
    rows, places = linear_sum_assignment(np.repeat(value, experts // parts, axis=1), maximize=True)
    out = np.empty(experts, dtype=np.int64)
    out[rows] = places // (experts // parts)
    return out


def spectral_parts(affinity: Floats, parts: int) -> Ints:
    """Balanced parts [E] of a symmetric affinity [E, E]: leading eigenvectors, then rounds of balanced k-means.

    Centres start farthest first from the expert with the largest affinity; nothing is drawn.
    """
    degree = np.sqrt(np.maximum(affinity.sum(axis=1), 1e-300))
    _, vectors = np.linalg.eigh(affinity / degree[:, None] / degree[None, :])
    points = vectors[:, -parts:]
    points = points * np.sign(points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])])
    points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    centres = [points[int(degree.argmax())]]
    for _ in range(parts - 1):
        nearest = (points @ np.stack(centres).T).max(axis=1)
        centres.append(points[int(nearest.argmin())])
    middle = np.stack(centres)
    part = assign(points @ middle.T)
    for _ in range(LLOYD_ROUNDS):
        x = one_hot(part, parts)
        middle = (x.T @ points) / x.sum(axis=0)[:, None]
        again = assign(points @ middle.T)
        if np.array_equal(again, part):
            break
        part = again
    return part


def improve(part: Ints, value: Floats, load: Floats, cap: Floats, pairs: Floats | None = None) -> Ints:
    """Best exchanges one at a time: first down to the cap [N] at the least loss, then up in value inside the cap.

    value [E, N]: of the surroundings alone; pairs [E, E]: symmetric gain of a pair, zero on the diagonal.
    """
    part = part.copy()
    parts = value.shape[1]
    loads: Floats = np.bincount(part, weights=load, minlength=parts).astype(np.float64)
    total = value if pairs is None else value + pairs @ one_hot(part, parts)
    for _ in range(MOST_EXCHANGES):
        over = loads - cap
        full = int(over.argmax())
        if over[full] > 0.0:
            found = _relieving(part, total, pairs, load, loads, cap, full)
        else:
            found = _gaining(part, total, pairs, load, loads, cap)
        if found is None:
            break
        i, j = found
        a, b = int(part[i]), int(part[j])
        if pairs is not None:
            moved = pairs[:, j] - pairs[:, i]
            total[:, a] += moved
            total[:, b] -= moved
        part[i], part[j] = b, a
        loads[a] += load[j] - load[i]
        loads[b] += load[i] - load[j]
    return part


def _gains(some: Ints, part: Ints, total: Floats, pairs: Floats | None) -> Floats:
    """Gain [some, E] of exchanging each of `some` for each expert."""
    every = np.arange(len(part))
    gain = (
        total[some][:, part] + total[:, part[some]].T - total[some, part[some]][:, None] - total[every, part][None, :]
    )
    return gain if pairs is None else gain - 2.0 * pairs[some]


def _gaining(
    part: Ints, total: Floats, pairs: Floats | None, load: Floats, loads: Floats, cap: Floats
) -> tuple[int, int] | None:
    every = np.arange(len(part))
    gain = _gains(every, part, total, pairs)
    room = (cap - loads)[part]
    more = load[None, :] - load[:, None]  # what i's part takes on
    fits = (more <= room[:, None]) & (-more <= room[None, :]) & (part[:, None] != part[None, :])
    gain = np.where(fits, gain, -np.inf)
    best = int(gain.argmax())
    i, j = divmod(best, len(part))
    return (i, j) if gain[i, j] > LEAST_GAIN * max(1.0, float(np.abs(total).max())) else None


def _relieving(
    part: Ints, total: Floats, pairs: Floats | None, load: Floats, loads: Floats, cap: Floats, full: int
) -> tuple[int, int] | None:
    """The exchange that loses least per load taken off the fullest part, and leaves the other part no fuller."""
    mine = np.flatnonzero(part == full)
    gain = _gains(mine, part, total, pairs)
    less = load[mine][:, None] - load[None, :]
    after = loads[part][None, :] + less
    excess = loads[full] - cap[full]
    helps = (less > 0.0) & (part != full)[None, :] & (after - cap[part][None, :] < excess)
    if not helps.any():
        return None
    useful = np.minimum(less, excess) - np.maximum(after - cap[part][None, :], 0.0)
    helps &= useful > 1e-12 * max(1.0, float(load.max()))
    if not helps.any():
        return None
    loss = np.where(helps, -gain / np.where(helps, useful, 1.0), np.inf)
    i, j = np.unravel_index(int(loss.argmin()), loss.shape)
    return int(mine[i]), int(j)
