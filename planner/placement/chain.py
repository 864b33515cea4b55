"""Experts of all layers to equal parts so that tokens which travel from layer to layer change part as rarely as can be.

For few experts a dynamic programme over unlabelled partitions is exact. Larger chains are swept: with the layers beside
it fixed, a layer is a linear assignment on V_l = A_{l-1}^T X_{l-1} + A_l X_{l+1}; labels of every suffix are matched
anew after each sweep; last come exchanges inside the load cap.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import combinations, permutations

import numpy as np
from scipy.optimize import linear_sum_assignment

from planner.placement.partition import assign, improve, one_hot, spectral_parts
from planner.placement.records import Floats, Ints

SWEEPS = 6
CAPPED_SWEEPS = 4
MOST_PARTITIONS = 300
MOST_LABELLINGS = 720
Step = Callable[[str, float, float | None], None]


def kept(flow: Floats, part: Ints) -> float:
    """Flow [L - 1, E, E] that stays in its part [L, E]."""
    return float(sum((flow[i] * (part[i][:, None] == part[i + 1][None, :])).sum() for i in range(len(flow))))


def exact_chain(flow: Floats, load: Floats, cap: Floats, parts: int, *, worst_link: bool = False) -> Ints | None:
    """Part [L, E] with the most kept flow of all under cap [L], proved; None where there are too many partitions.

    worst_link: instead with the least sum over pairs of layers of the largest flow between two parts.

    State: an unlabelled partition into equal parts whose loads keep the cap; transition: the best matching of blocks.
    Caps that no partition of a layer keeps are raised to the best one's load.
    """
    states = _partitions(load.shape[1], parts)
    if states is None:
        return None
    x = np.stack([one_hot(state, parts) for state in states])  # [state, expert, part]
    labels = np.array(list(permutations(range(parts))), dtype=np.int64)
    fits = []
    for layer in range(len(load)):
        fullest = np.einsum("e,sep->sp", load[layer], x).max(axis=1)
        fits.append(np.flatnonzero(fullest <= max(cap[layer], fullest.min()) * (1.0 + 1e-12)))
    best = np.zeros(len(fits[0]))
    back: list[tuple[Ints, Ints]] = []
    for layer in range(len(flow)):
        here, there = x[fits[layer]], x[fits[layer + 1]]
        moved = np.einsum("sep,ef,tfq->stpq", here, flow[layer], there, optimize=True)
        if worst_link:
            gained = -_largest_between(moved, labels)
        else:
            gained = moved[:, :, np.arange(parts)[None, :], labels].sum(axis=-1)  # [state, next, labelling]
        reach = best[:, None] + gained.max(axis=-1)
        came = reach.argmax(axis=0)
        back.append((came, gained[came, np.arange(len(came))].argmax(axis=-1)))
        best = reach.max(axis=0)
    path = [int(best.argmax())]
    turns: list[int] = []
    for came, turn in reversed(back):
        turns.append(int(turn[path[-1]]))
        path.append(int(came[path[-1]]))
    path, turns = path[::-1], turns[::-1]
    out = [states[fits[0][path[0]]]]
    rename = np.arange(parts)
    for layer, way in enumerate(turns):
        after = np.empty(parts, dtype=np.int64)
        after[labels[way]] = rename  # block p goes on as block labels[way][p]
        rename = after
        out.append(rename[states[fits[layer + 1][path[layer + 1]]]])
    return np.stack(out)


def _largest_between(moved: Floats, labels: Ints) -> Floats:
    """Largest flow [state, next, labelling] between different parts, of flow [state, next, block, block]."""
    out = np.empty((*moved.shape[:2], len(labels)))
    same = np.eye(moved.shape[2], dtype=bool)
    for k, way in enumerate(labels):
        out[:, :, k] = np.where(same, 0.0, moved[:, :, :, way]).max(axis=(2, 3))
    return out


@lru_cache(maxsize=8)
def _partitions(experts: int, parts: int) -> tuple[Ints, ...] | None:
    """All partitions [expert] -> block into equal blocks, each once; None if too many."""
    size, count, labellings = experts // parts, 1, 1
    for i in range(parts):
        labellings *= i + 1
        for j in range(1, size):
            count = count * (experts - i * size - j) // j
        if count > MOST_PARTITIONS * 50 or labellings > MOST_LABELLINGS:
            return None
    out: list[Ints] = []

    def fill(left: tuple[int, ...], block: int, part: Ints) -> None:
        if not left:
            out.append(part.copy())
            return
        for others in combinations(left[1:], size - 1):
            part[[left[0], *others]] = block
            fill(tuple(x for x in left[1:] if x not in others), block + 1, part)

    if count > MOST_PARTITIONS:
        return None
    fill(tuple(range(experts)), 0, np.empty(experts, dtype=np.int64))
    return tuple(out)


def swept_chain(flow: Floats, load: Floats, cap: Floats, parts: int, progress: Step | None = None) -> Ints:
    """Part [L, E] by sweeps, every part of every layer within cap [L] where exchanges reach it."""
    layers = len(load)
    start = spectral_parts(flow[0] @ flow[0].T, parts)
    part = [start]
    for i in range(layers - 1):
        part.append(assign(flow[i].T @ one_hot(part[-1], parts)))
    order = [*range(layers), *range(layers - 2, 0, -1)]
    last = -1.0
    for sweep in range(SWEEPS):
        if progress is not None:
            progress("sweeping layers", sweep, SWEEPS + CAPPED_SWEEPS)
        for i in order:
            part[i] = assign(_around(flow, part, i, parts))
        _relabel(flow, part, parts)
        now = kept(flow, np.stack(part))
        if now <= last * (1.0 + 1e-4):
            break
        last = now
    wide = np.repeat(cap[:, None], parts, axis=1)
    for sweep in range(CAPPED_SWEEPS):
        if progress is not None:
            progress("sweeping layers under the load cap", SWEEPS + sweep, SWEEPS + CAPPED_SWEEPS)
        for i in order:
            part[i] = improve(part[i], _around(flow, part, i, parts), load[i], wide[i])
        _relabel(flow, part, parts)
    return np.stack(part)


def _around(flow: Floats, part: list[Ints], i: int, parts: int) -> Floats:
    """V [E, N] of a layer from the layers beside it."""
    out = np.zeros((flow.shape[1], parts))
    if i > 0:
        out += flow[i - 1].T @ one_hot(part[i - 1], parts)
    if i < len(flow):
        out += flow[i] @ one_hot(part[i + 1], parts)
    return out


def _relabel(flow: Floats, part: list[Ints], parts: int) -> None:
    """Match the parts of every suffix to those before it, in place."""
    for i in range(len(flow)):
        between = one_hot(part[i], parts).T @ flow[i] @ one_hot(part[i + 1], parts)
        rows, columns = linear_sum_assignment(between, maximize=True)
        rename = np.empty(parts, dtype=np.int64)
        rename[columns] = rows
        if not np.array_equal(rename, np.arange(parts)):
            for j in range(i + 1, len(part)):
                part[j] = rename[part[j]]
