"""Load and replication of one layer: counts, packing, repair, and an exact programme for what is left.

min T subject to: every expert in as many slots as its count, at most one of them on a GPU, every slot filled, and the
load over speed of every GPU <= T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.placement.bounds import fairest_counts, load_bound, mean_bound
from planner.placement.core import core_bound, core_sizes, core_start
from planner.placement.counts import count_candidates, shifted
from planner.placement.eplb import eplb_layer
from planner.placement.every_count import EveryCount
from planner.placement.pack import Packing, deals, pack_lpt, relieve
from planner.placement.records import Floats, Ints
from planner.placement.solver import solve
from planner.placement.split import best_shares

COMBINATORIAL = "combinatorial"
CLOSE = 2e-4  # a layer this near its bound is left alone
CLOSE_SINGLE = 4e-4  # the same without replicas, where less can be gained
WIDE = 8e-4  # beyond this no partner is too far-fetched
QUICK_STEPS = 60
FINALISTS = 3
SHIFTS = 8
MOST_NODES = 400  # of a layer programme
MOST_ITEMS = 60  # replicas of an exact repair
EXACT_BINARIES = 100  # a whole layer this small is solved to the end
COUNTS_LIMIT = "limit of the search over counts of replicas"


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """experts, share [G, S]; time: max over GPUs of load over speed; bound and its kind; limits that were hit."""

    experts: Ints
    share: Floats
    time: float
    bound: float
    bound_kind: str
    limits: tuple[str, ...] = ()


def plan_layer(
    load: Floats,
    *,
    slots: int,
    speeds: Floats,
    split: str = "even",
    seed: int = 0,
    quick: bool = False,
    close: float = 0.0,
) -> LayerPlan:
    """The best placement found for load [E] on G x slots slots, never worse than EPLB's.

    split: "even" (every replica takes the same) or "free" (shares by linear programme). Where EPLB's plan is better
    than anything even, its shares are taken over, with distinct GPUs. quick: the first packing, unimproved.
    """
    if quick:
        counts = fairest_counts(load, len(speeds) * slots, len(speeds))
        experts = pack_lpt(load, counts, slots, speeds)
        time = float(((load / counts)[experts].sum(axis=1) / speeds).max())
        bound = min(time, mean_bound(load, speeds))
        return LayerPlan(
            experts=experts, share=(1.0 / counts)[experts], time=time, bound=bound, bound_kind=COMBINATORIAL
        )
    bound = mean_bound(load, speeds) if split == "free" else load_bound(load, slots, speeds)
    bound = max(bound, core_bound(load, slots, speeds))
    kind, limits = COMBINATORIAL, tuple[str, ...]()
    if len(load) * len(speeds) <= EXACT_BINARIES:
        close = 0.0
    packing, counts = _search(load, slots, speeds, bound, replicas=len(speeds) * slots > len(load), close=close)
    time = float(packing.time.max())
    if time > bound * (1.0 + max(CLOSE_SINGLE, close)):
        if packing.replicated and len(load) * len(speeds) <= EXACT_BINARIES and speeds.min() == speeds.max():
            packing, counts, proved = _every_count(packing, load, counts)
            time = float(packing.time.max())
            if proved and split == "even":
                bound, kind = max(bound, time), "exact"
            limits = () if proved else (COUNTS_LIMIT,)
        else:
            proved = False
        found = None if proved else _exact(packing, load, counts, bound, seed)
        if found is not None:
            bound, kind, limits = found[0], found[1], (*limits, *found[2])
            time = float(packing.time.max())
    experts = packing.expert
    share = (1.0 / counts)[experts]
    if packing.replicated:
        hosts, copies = eplb_layer(load, gpus=len(speeds), slots=slots)
        theirs = float(((load / copies)[hosts].sum(axis=1) / speeds).max())
        if theirs < time:
            experts, share, time = (*distinct(hosts, copies, len(load)), theirs)
            bound, kind = mean_bound(load, speeds), COMBINATORIAL
        if split == "free":
            freed = best_shares(load, experts, share, speeds)
            share, time = freed.share, freed.time
    return LayerPlan(experts=experts, share=share, time=time, bound=min(bound, time), bound_kind=kind, limits=limits)


def _search(
    load: Floats, slots: int, speeds: Floats, bound: float, *, replicas: bool, close: float
) -> tuple[Packing, Ints]:
    """The best packing over the candidates of counts, and its counts."""
    gpus, target = len(speeds), bound * (1.0 + max(close, CLOSE if replicas else CLOSE_SINGLE))
    wide = bound * (1.0 + max(close, WIDE))
    ones = np.ones(len(load), dtype=np.int64)
    tried: list[tuple[float, int, Packing, Ints]] = []
    for i, counts in enumerate(count_candidates(load, gpus * slots, gpus) if replicas else [ones]):
        packing = Packing(pack_lpt(load, counts, slots, speeds), load, counts, speeds)
        if replicas:
            relieve(packing, target, QUICK_STEPS)
        tried.append((float(packing.time.max()), i, packing, counts))
        if tried[-1][0] <= target:
            return packing, counts
    tried.sort(key=lambda item: item[:2])
    for _, _, packing, _ in tried[:FINALISTS]:
        relieve(packing, target, wide=wide)
    if not replicas and tried[0][2].time.max() > wide and slots > 1:
        for i, core in enumerate(core_sizes(load, slots, gpus), start=1):
            packing = Packing(core_start(load, slots, speeds, core), load, ones, speeds)
            relieve(packing, target, wide=wide)
            tried.append((0.0, i, packing, ones))
    tried.sort(key=lambda item: (float(item[2].time.max()), item[1]))
    _, _, packing, counts = tried[0]
    return _shift(packing, load, counts, target) if replicas else (packing, counts)


def _shift(packing: Packing, load: Floats, counts: Ints, target: float) -> tuple[Packing, Ints]:
    """Give the fullest GPU's experts a replica more, one at a time, while that helps."""
    for _ in range(SHIFTS):
        time = packing.time
        if time.max() <= target:
            break
        full = int(time.argmax())
        for expert in packing.expert[full][np.argsort(-packing.value[full], kind="stable")].tolist():
            moved = shifted(load, counts, int(expert), len(packing.speeds))
            if moved is None:
                continue
            other = Packing(pack_lpt(load, moved, packing.expert.shape[1], packing.speeds), load, moved, packing.speeds)
            relieve(other, target, QUICK_STEPS * 4)
            if other.time.max() < time.max() * (1.0 - 1e-9):
                packing, counts = other, moved
                break
        else:
            break
    return packing, counts


def _every_count(packing: Packing, load: Floats, counts: Ints) -> tuple[Packing, Ints, bool]:
    """The best of all counts and packings of a small layer, and whether all of them were looked at."""
    gpus, slots = packing.expert.shape
    speed = float(packing.speeds[0])
    every = EveryCount(load, slots, gpus, float(packing.time.max()) * speed)
    if every.found is not None:
        experts, counts = every.found
        packing = Packing(experts, load, counts, packing.speeds)
    return packing, counts, every.finished


def _exact(
    packing: Packing, load: Floats, counts: Ints, bound: float, seed: int
) -> tuple[float, str, tuple[str, ...]] | None:
    """Solve the layer, or its fullest and emptiest GPUs, as an integer programme; (bound, its kind, limits)."""
    gpus, slots = packing.expert.shape
    whole = len(load) * gpus <= EXACT_BINARIES and not packing.replicated
    if not whole and deals(slots, 2) is not None:
        return None  # all deals among a few GPUs have been looked at
    if not whole and gpus <= 2:
        return None
    size = gpus if whole else max(2, min(6, gpus, MOST_ITEMS // slots))
    order = np.argsort(-packing.time, kind="stable")
    chosen = np.concatenate([order[:1], order[::-1][: size - 1]]) if not whole else np.arange(gpus)
    solved = _programme(packing, chosen, bound, seed)
    if not whole:
        return bound, COMBINATORIAL, ()
    status, dual = solved
    if status == "optimal":
        return max(bound, min(dual, float(packing.time.max()))), "exact", ()
    return max(bound, dual), "milp_dual", ("node limit of the layer programme",)


def _programme(packing: Packing, chosen: Ints, bound: float, seed: int) -> tuple[str, float]:
    """Deal the replicas on the chosen GPUs by integer programme; keeps what is better. (status, dual bound)."""
    import pulp

    slots = packing.expert.shape[1]
    items = packing.expert[chosen].ravel()
    value, speeds = packing.per_replica[items], packing.speeds[chosen]
    scale = float(packing.time.max())
    problem = pulp.LpProblem("layer", pulp.LpMinimize)
    top = pulp.LpVariable("T", lowBound=0.0)
    put: dict[tuple[int, int], Any] = {
        (i, g): pulp.LpVariable(f"x_{i}_{g}", cat="Binary") for i in range(len(items)) for g in range(len(chosen))
    }
    problem += top
    for i in range(len(items)):
        problem += pulp.lpSum(put[i, g] for g in range(len(chosen))) == 1, f"placed_{i}"
    for g in range(len(chosen)):
        problem += pulp.lpSum(put[i, g] for i in range(len(items))) == slots, f"slots_{g}"
        terms = pulp.lpSum(put[i, g] * (float(value[i]) / scale / float(speeds[g])) for i in range(len(items)))
        problem += terms <= top, f"load_{g}"
        for e in np.unique(items).tolist():
            same = np.flatnonzero(items == e).tolist()
            if len(same) > 1:
                problem += pulp.lpSum(put[i, g] for i in same) <= 1, f"once_{e}_{g}"
    solved = solve(problem, seed=seed, gap=CLOSE / 10, nodes=MOST_NODES)
    if solved.status != "infeasible":
        hands = [[i for i in range(len(items)) if put[i, g].value() > 0.5] for g in range(len(chosen))]
        if all(len(hand) == slots for hand in hands):
            times = [float(value[hand].sum()) / float(speeds[g]) for g, hand in enumerate(hands)]
            if max(times) < float(packing.time[chosen].max()):
                for g, hand in zip(chosen.tolist(), hands, strict=True):
                    packing.put(int(g), items[hand])
    return solved.status, solved.bound * scale


def distinct(hosts: Ints, copies: Ints, experts: int) -> tuple[Ints, Floats]:
    """The same GPU loads with distinct experts on each GPU: copies that share a GPU become one with their summed share.

    The slot that is freed takes an expert the GPU lacks, with no share.
    """
    out, share = hosts.copy(), (1.0 / copies)[hosts]
    for g, held in enumerate(hosts):
        first: dict[int, int] = {}
        for s, e in enumerate(held.tolist()):
            if e not in first:
                first[e] = s
                continue
            share[g, first[e]] += share[g, s]
            out[g, s] = next(x for x in range(experts) if x not in out[g])
            share[g, s] = 0.0
    return out, share
