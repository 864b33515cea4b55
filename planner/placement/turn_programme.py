"""The fewest moves that bring every GPU of a layer to a target, where a GPU gives and takes one or two experts.

Which GPUs take part, and what each gives, is an integer programme; who takes what is not part of it. A GPU that gives
an expert of weight w and stands at the load r without it may take any weight up to target - r (of two that it takes,
one up to a weight that is stated beforehand). What is given can be dealt to those who take exactly where, above every
weight, no more is given than may be taken (Hall's condition for nested sets), and then the heaviest goes to who may
take most.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from planner.placement.records import Floats, Ints

MOST_NODES = 20
MOVES_GAP = 0.03  # relative, of the moves: less than one of the usual number
SHARES_OF_LIGHT = (0.02, 0.1, 0.3)  # quantiles of weight that one of two taken experts may reach


@dataclass(frozen=True, kw_only=True)
class _Option:
    """What one GPU does: slots it gives, and the most weight of each expert that it takes instead."""

    gpu: int
    slots: tuple[int, ...]
    rooms: tuple[float, ...]


def fewest_turns(old: Ints, load: Floats, target: float) -> Ints | None:
    """Experts [G, S] after the moves, from `old` under load [E]; None where the programme has no answer.

    Equal speeds, no replicas; `target` in the unit of the loads.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    options, full = _options(old, load, target)
    if any(all(o.gpu != g for o in options) for g in full):
        return None
    steps = np.sort(load)
    n, k = len(options), len(steps)
    # surplus above the step: of what may be taken over what is given; surplus[j] = surplus[j + 1] + changes at step j
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for c, option in enumerate(options):
        for slot in option.slots:
            rows.append(int(np.searchsorted(steps, load[old[option.gpu, slot]], side="left")))
            columns.append(c)
            values.append(-1.0)
        for room in option.rooms:
            rows.append(int(np.searchsorted(steps, room, side="right")) - 1)
            columns.append(c)
            values.append(1.0)
    for j in range(k):
        rows += [j] * (2 if j + 1 < k else 1)
        columns += [n + j] + ([n + j + 1] if j + 1 < k else [])
        values += [-1.0] + ([1.0] if j + 1 < k else [])
    balance: Any = csr_array((values, (rows, columns)), shape=(k, n + k))
    at = [o.gpu for o in options]
    once: Any = csr_array((np.ones(n), (at, np.arange(n))), shape=(len(old), n + k))
    least = np.isin(np.arange(len(old)), full).astype(np.float64)
    cost = np.r_[[float(len(o.slots)) for o in options], np.zeros(k)]
    solved: Any = milp(
        cost,
        constraints=[LinearConstraint(balance, 0.0, 0.0), LinearConstraint(once, least, 1.0)],
        integrality=np.r_[np.ones(n), np.zeros(k)],
        bounds=Bounds(0.0, np.r_[np.ones(n), np.full(k, np.inf)]),
        options={"node_limit": MOST_NODES, "mip_rel_gap": MOVES_GAP},
    )
    if solved.x is None:
        return None
    return _dealt(old, load, [o for o, x in zip(options, solved.x[:n], strict=True) if x > 0.5])


def _options(old: Ints, load: Floats, target: float) -> tuple[list[_Option], Ints]:
    """(what each GPU may do, GPUs above the target, which must do something)."""
    value = load[old]
    total = value.sum(axis=1)
    lightest = float(load.min())
    light = np.quantile(load, SHARES_OF_LIGHT).tolist()
    out = []
    for g in range(len(old)):
        for s in range(old.shape[1]):
            room = target - float(total[g] - value[g, s])
            if room >= lightest:
                out.append(_Option(gpu=g, slots=(s,), rooms=(room,)))
        if total[g] <= target or any(o.gpu == g for o in out[-old.shape[1] :]):
            continue  # one expert is enough
        for pair in combinations(range(old.shape[1]), 2):
            room = target - float(total[g] - value[g, list(pair)].sum())
            rooms = [(each, room - each) for each in light if room - each >= lightest]
            out += [_Option(gpu=g, slots=pair, rooms=both) for both in rooms]
    return out, np.flatnonzero(total > target)


def _dealt(old: Ints, load: Floats, chosen: list[_Option]) -> Ints:
    """The heaviest that is given to who may take most, and so on."""
    places = [(room, o.gpu, slot) for o in chosen for room, slot in zip(sorted(o.rooms), o.slots, strict=True)]
    given = sorted((old[g, s] for _, g, s in places), key=lambda e: (-load[e], e))
    out = old.copy()
    for (_, g, s), expert in zip(sorted(places, key=lambda p: (-p[0], p[1], p[2])), given, strict=True):
        out[g, s] = expert
    return out
