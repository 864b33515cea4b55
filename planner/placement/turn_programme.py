"""The fewest moves that bring every GPU of a layer to a target, where a GPU gives a few experts and takes as many.

Which GPUs take part, and what each gives, is an integer programme; who takes what is not part of it. A GPU that gives
an expert of weight w and stands at the load r without it may take any weight up to target - r (of several that it
takes, all but one up to a weight that is stated beforehand). What is given can be dealt to those who take exactly
where, above every weight, no more is given than may be taken (Hall's condition for nested sets), and then the heaviest
goes to who may take most.

Its relaxation rounded up is nearly always the answer. So the programme is solved first with what can be part of an
answer as good as that, by reduced costs, and with everything only where that gives none.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from planner.placement.records import Floats, Ints

MOST_NODES = 20
MOVES_GAP = 0.03  # relative, of the moves: less than one of the usual number
MOST_GIVEN = 3  # experts of one GPU
MOST_SETS = 150  # of experts that one GPU may give, of one size
SPLITS = 6  # of what a GPU may take among several experts
EASY = 0.1  # quantile of weight; who may take more than that is not hard to serve
LIGHT = 0.04  # quantile of weight up to which experts are wanted by those who are hard to serve
WHOLE = 1e-6
WITHIN = 0.2  # of a move, above the rounded relaxation


@dataclass(frozen=True, kw_only=True)
class _Option:
    """What one GPU does: slots it gives, and the most weight of each expert that it takes instead, rising."""

    gpu: int
    slots: tuple[int, ...]
    rooms: tuple[float, ...]


def fewest_turns(old: Ints, load: Floats, target: float) -> Ints | None:
    """Experts [G, S] after the moves, from `old` under load [E]; None where the programme has no answer.

    Equal speeds, no replicas; `target` in the unit of the loads.
    """
    from scipy.optimize import linprog

    full = load[old].sum(axis=1) > target
    options = _options(old, load, target)
    if not np.isin(np.flatnonzero(full), [o.gpu for o in options]).all():
        return None
    balance, once = _rows(old, load, options)
    n, k = len(options), len(load)
    cost = np.r_[[float(len(o.slots)) for o in options], np.zeros(k)]
    upper = np.r_[np.ones(n), np.full(k, np.inf)]
    relaxed: Any = linprog(
        cost, A_eq=_stacked(balance, once[full]), b_eq=np.r_[np.zeros(k), np.ones(int(full.sum()))],
        A_ub=once[~full], b_ub=np.ones(int((~full).sum())), bounds=np.c_[np.zeros(n + k), upper],
    )  # fmt: skip
    if relaxed.status != 0:
        return None
    beyond = np.ceil(relaxed.fun - WHOLE) + WITHIN - relaxed.fun
    likely = (relaxed.lower.marginals[:n] <= beyond) | (relaxed.x[:n] > WHOLE)
    for part in (likely, np.ones(n, dtype=bool)):
        kept = np.flatnonzero(np.r_[part, np.ones(k, dtype=bool)])
        chosen = _solved(cost[kept], balance[:, kept], once[:, kept], full, int(part.sum()))
        if chosen is not None:
            return _dealt(old, load, [options[kept[c]] for c in chosen])
    return None


def _solved(cost: Floats, balance: Any, once: Any, full: Any, whole: int) -> list[int] | None:
    """Columns of the first `whole` that are chosen; None where there is no answer."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    free = len(cost) - whole
    solved: Any = milp(
        cost,
        constraints=[LinearConstraint(balance, 0.0, 0.0), LinearConstraint(once, full.astype(np.float64), 1.0)],
        integrality=np.r_[np.ones(whole), np.zeros(free)],
        bounds=Bounds(0.0, np.r_[np.ones(whole), np.full(free, np.inf)]),
        options={"node_limit": MOST_NODES, "mip_rel_gap": MOVES_GAP},
    )
    return None if solved.x is None else [int(c) for c in np.flatnonzero(solved.x[:whole] > 0.5)]


def _rows(old: Ints, load: Floats, options: list[_Option]) -> tuple[Any, Any]:
    """(balance, once): columns are the options and the surplus at every weight; a GPU does one thing at most.

    Surplus at a weight: of what may be taken over what is given from there up, so that surplus[j] = surplus[j + 1] +
    changes at step j, none below zero.
    """
    from scipy.sparse import csr_array

    steps, n, k = np.sort(load), len(options), len(load)
    column = np.repeat(np.arange(n), [len(o.slots) for o in options])
    given = [load[old[o.gpu, s]] for o in options for s in o.slots]
    taken = [room for o in options for room in o.rooms]
    down, up = np.searchsorted(steps, given, side="left"), np.searchsorted(steps, taken, side="right") - 1
    rows = np.concatenate([down, up, np.arange(k), np.arange(k - 1)])
    columns = np.concatenate([column, column, n + np.arange(k), n + np.arange(1, k)])
    values = np.repeat([-1.0, 1.0, -1.0, 1.0], [len(down), len(up), k, k - 1])
    balance = csr_array((values, (rows, columns)), shape=(k, n + k))
    once = csr_array((np.ones(n), ([o.gpu for o in options], np.arange(n))), shape=(len(old), n + k))
    return balance, once


def _stacked(first: Any, second: Any) -> Any:
    from scipy.sparse import vstack

    return vstack([first, second], format="csr")


def _options(old: Ints, load: Floats, target: float) -> list[_Option]:
    """What each GPU may do: give one expert, and more where one is not easily given and replaced.

    Where that is so of any GPU, it needs the lightest experts: who has some may give them along with another.
    """
    value, rising = load[old], np.sort(load)
    room = target - value.sum(axis=1)
    within = room >= 0.0
    widest = np.sort((room[:, None] + value)[within].max(axis=1, initial=0.0))
    anywhere = float(widest[-min(3, len(widest))]) if len(widest) else 0.0  # what some GPU can take
    easy = float(rising[int(EASY * len(load))])
    light = float(rising[min(len(load), MOST_GIVEN + int(LIGHT * len(load))) - 1])
    most = min(MOST_GIVEN, old.shape[1])
    out: list[_Option] = []
    extra: list[_Option] = []
    hard = False
    for g, held in enumerate(value):
        served = bool(within[g])
        for k in range(1, most + 1):
            if comb(len(held), k) > MOST_SETS:
                break
            hard |= k > 1 and not served
            better = served
            for slots in combinations(range(len(held)), k):
                weights = held[list(slots)]
                if k > 1 and served and np.sort(weights)[-2] > light:
                    continue
                taken = float(room[g] + weights.sum())
                found = [_Option(gpu=g, slots=slots, rooms=rooms) for rooms in _splits(rising, taken, k)]
                (extra if k > 1 and served else out).extend(found)
                better |= taken - rising[: k - 1].sum() >= easy and weights.max() <= anywhere
            served = better
    return out + extra if hard else out


def _splits(rising: Floats, most: float, k: int) -> list[tuple[float, ...]]:
    """Weights that each of k experts may reach, `most` in all: light ones of neighbouring weights and what is left."""
    if most < rising[:k].sum():
        return []
    if k == 1:
        return [(most,)]
    light = int(np.searchsorted(rising, most / k, side="right"))
    firsts = [rising[s : s + k - 1] for s in sorted({int(s) for s in np.linspace(0, light, SPLITS)})]
    split = [(*each.tolist(), float(most - each.sum())) for each in firsts if most - each.sum() >= each[-1]]
    return [*split, (most / k,) * k]


def _dealt(old: Ints, load: Floats, chosen: list[_Option]) -> Ints:
    """The heaviest that is given to who may take most, and so on."""
    places = [(room, o.gpu, slot) for o in chosen for room, slot in zip(o.rooms, o.slots, strict=True)]
    given = sorted((old[g, s] for _, g, s in places), key=lambda e: (-load[e], e))
    out = old.copy()
    for (_, g, s), expert in zip(sorted(places, key=lambda p: (-p[0], p[1], p[2])), given, strict=True):
        out[g, s] = expert
    return out
