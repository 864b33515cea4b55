"""Replicas of one layer into the slots of GPUs so that the fullest GPU is as empty as can be: packing and repair.

Longest processing time first (Graham, 1969) gives a start. The fullest GPU is then relieved by the best exchange of two
replicas with any other GPU, and where no exchange helps, by dealing its replicas and those of one or two others anew in
the best of all ways. Ties break on the lowest GPU and slot, so that the outcome is the same on every machine.
"""

from __future__ import annotations

import heapq
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from planner.placement.records import Floats, Ints

MOST_DEALS = 7000  # ways to deal the replicas of a few GPUs that are all looked at
MOST_ASIDE = 3  # GPUs set aside while others are evened out
EVEN = 1e-3  # others are even enough for the next try
MOST_STEPS = 4000  # exchanges and deals per layer
MOST_FAILED_DEALS = 2000  # of one packing
PARTNERS = 6  # emptiest GPUs that are tried as partners of a deal


class Packing:
    """Mutable state of one layer: expert [G, S] in every slot, value [G, S] its load over its count, load [G]."""

    def __init__(self, expert: Ints, load: Floats, counts: Ints, speeds: Floats) -> None:
        self.expert = expert.copy()
        self.per_replica = load / counts
        self.speeds = speeds
        self.value: Floats = self.per_replica[self.expert]
        self.load: Floats = self.value.sum(axis=1)
        self.deals_left = MOST_FAILED_DEALS
        self.replicated = bool(np.any(counts > 1))
        self.held = np.zeros((len(load), len(speeds)), dtype=bool)
        if self.replicated:
            self.held[self.expert, np.arange(len(speeds))[:, None]] = True

    @property
    def time(self) -> Floats:
        """Load over speed [G]."""
        return self.load / self.speeds

    def put(self, gpu: int, experts: Ints) -> None:
        """Replace what a GPU holds."""
        if self.replicated:
            self.held[self.expert[gpu], gpu] = False
            self.held[experts, gpu] = True
        self.expert[gpu] = experts
        self.value[gpu] = self.per_replica[experts]
        self.load[gpu] = self.value[gpu].sum()


def pack_lpt(load: Floats, counts: Ints, slots: int, speeds: Floats) -> Ints:
    """Experts [G, S]: heaviest replica first, to the GPU that would be done first and does not hold the expert yet.

    A replica that no open GPU may take changes places with one that such a GPU may take.
    """
    gpus = len(speeds)
    per = load / counts
    order = sorted(range(len(load)), key=lambda e: (-per[e], e))
    speed = speeds.tolist()
    heap = [(0.0, 1.0 / s, g) for g, s in enumerate(speed)]
    heapq.heapify(heap)
    hosts: list[list[int]] = [[] for _ in range(gpus)]
    for e in order:
        weight, aside, swapped = float(per[e]), [], False
        for _ in range(int(counts[e])):
            if not heap:
                _make_room(hosts, e, slots)
                swapped = True
                continue
            time, inverse, g = heapq.heappop(heap)
            hosts[g].append(e)
            if len(hosts[g]) < slots:
                aside.append((time + weight * inverse, inverse, g))
        if swapped:  # room was made on some of them, and what others hold has changed
            aside = [(float(per[hosts[g]].sum()) * i, i, g) for _, i, g in aside if len(hosts[g]) < slots]
        for item in aside:
            heapq.heappush(heap, item)
    return np.array(hosts, dtype=np.int64)


def _make_room(hosts: list[list[int]], expert: int, slots: int) -> None:
    """Give `expert` a place on a full GPU that lacks it, whose own replica goes to a GPU with an open slot.

    There always is one: GPUs with an open slot hold `expert` already, so one of them lacks at least two of what a full
    GPU without `expert` holds.
    """
    open_gpus = [g for g, held in enumerate(hosts) if len(held) < slots]
    for g in open_gpus:
        for other, held in enumerate(hosts):
            if expert in held or other == g:
                continue
            movable = [x for x in held if x not in hosts[g]]
            if movable:
                held[held.index(movable[-1])] = expert
                hosts[g].append(movable[-1])
                return
    raise AssertionError("counts leave no placement with distinct GPUs")


def relieve(packing: Packing, target: float, steps: int = MOST_STEPS, wide: float = np.inf) -> None:
    """Exchange and deal until the fullest GPU is at `target`, nothing helps, or `steps` are done.

    A GPU that nothing relieves is set aside while the next fullest are evened out, which leaves some room everywhere,
    and is tried again. wide: while above it, a deal may take any GPU as its partner and not only the emptiest and those
    with light experts.
    """
    while steps > 0:
        aside = np.zeros(len(packing.speeds), dtype=bool)
        before = steps
        while steps > 0 and aside.sum() <= MOST_ASIDE:
            time = np.where(aside, -1.0, packing.time)
            full = int(time.argmax())
            even = packing.load[~aside].sum() / packing.speeds[~aside].sum()
            if time[full] <= (max(target, even * (1.0 + EVEN)) if aside.any() else target):
                break
            far = bool(time[full] > wide) and not aside.any()
            if (
                _exchange(packing, full)
                or _deal(packing, full, PARTNERS)
                or (far and _deal(packing, full, len(packing.speeds)))
            ):
                steps -= 1
            else:
                aside[full] = True
        if packing.time.max() <= target or not aside.any() or steps == before:
            return


def _exchange(packing: Packing, full: int) -> bool:
    """The exchange of one replica of a full GPU that leaves the lower maximum of the two; whether it helped."""
    time = packing.time
    mine, value = packing.value[full], packing.value
    less = mine[None, :, None] - value[:, None, :]
    after = np.maximum(
        (packing.load[full] - less) / packing.speeds[full],
        (packing.load[:, None, None] + less) / packing.speeds[:, None, None],
    )
    if packing.replicated:
        experts = packing.expert[full]
        clash = packing.held[experts, :].T[:, :, None] | packing.held[packing.expert, full][:, None, :]
        after = np.where(clash, np.inf, after)
    after[full] = np.inf
    best = int(after.argmin())
    g, i, j = np.unravel_index(best, after.shape)
    if not after[g, i, j] < time[full] * (1.0 - 1e-12):
        return False
    ours, theirs = packing.expert[full].copy(), packing.expert[g].copy()
    ours[i], theirs[j] = theirs[j], ours[i]
    packing.put(full, ours)
    packing.put(int(g), theirs)
    return True


def _deal(packing: Packing, full: int, partners: int) -> bool:
    """Deal the replicas of a full GPU and of one or two of the emptiest anew; whether their maximum fell."""
    time = packing.time
    slots = packing.expert.shape[1]
    rising = [int(g) for g in np.argsort(time, kind="stable") if g != full]
    empty = rising[:PARTNERS]
    lightest = packing.value.min(axis=1)
    light = [int(g) for g in np.argsort(lightest, kind="stable")[: partners + 1] if g != full]
    first = list(dict.fromkeys([*empty, *light]))
    if len(time) >= 3 and deals(slots, 3) is not None:
        tried = set()
        for b in first:
            for c in empty:
                pair = (min(b, c), max(b, c))
                if b != c and pair not in tried:
                    tried.add(pair)
                    if _deal_among(packing, (full, b, c)):
                        return True
        return False
    if deals(slots, 2) is None:
        return False
    return any(_deal_among(packing, (full, b)) for b in first)


def _deal_among(packing: Packing, gpus: tuple[int, ...]) -> bool:
    ways = deals(packing.expert.shape[1], len(gpus))
    assert ways is not None
    if packing.deals_left <= 0:
        return False
    at = list(gpus)
    time, speeds = float(packing.time[at].max()), packing.speeds[at]
    total = float(packing.load[at].sum())
    if total / speeds.sum() >= time * (1.0 - 1e-9):
        return False
    experts, value = packing.expert[at].ravel(), packing.value[at].ravel()
    hands = _hands(packing.expert.shape[1], len(gpus))
    first = hands[0] @ value
    if len(at) == 2:
        after = np.maximum(first / speeds[0], (total - first) / speeds[1])
    else:
        second = hands[1] @ value
        after = np.maximum(np.maximum(first / speeds[0], second / speeds[1]), (total - first - second) / speeds[2])
    if packing.replicated and len(np.unique(experts)) < len(experts):
        better = np.flatnonzero(after < time * (1.0 - 1e-9))  # the only ways whose doubles matter
        dealt = np.sort(experts[ways[better]], axis=2)
        after[better[(dealt[:, :, 1:] == dealt[:, :, :-1]).any(axis=(1, 2))]] = np.inf
    best = int(after.argmin())
    if not after[best] < time * (1.0 - 1e-9):
        packing.deals_left -= 1
        return False
    for gpu, way in zip(at, ways[best], strict=True):
        packing.put(gpu, experts[way])
    return True


@lru_cache(maxsize=16)
def deals(slots: int, gpus: int) -> NDArray[np.int64] | None:
    """Ways [way, gpu, slot] to deal gpus x slots things, but for which GPU gets which hand; None if too many."""
    count, left = 1, slots * gpus
    for _ in range(gpus - 1):
        count *= comb(left, slots)
        left -= slots
        if count > MOST_DEALS * 6:
            return None
    ways: list[tuple[tuple[int, ...], ...]] = []
    every = tuple(range(slots * gpus))
    for first in combinations(every, slots):
        if first[0] != 0:
            continue
        rest = tuple(x for x in every if x not in first)
        if gpus == 2:
            ways.append((first, rest))
            continue
        for second in combinations(rest, slots):
            if second[0] == rest[0]:
                ways.append((first, second, tuple(x for x in rest if x not in second)))
    return np.array(ways, dtype=np.int64) if len(ways) <= MOST_DEALS else None


@lru_cache(maxsize=16)
def _hands(slots: int, gpus: int) -> tuple[Floats, ...]:
    """Who is in the hand of each GPU but the last, [way, thing] as 0 and 1, so that sums are products."""
    ways = deals(slots, gpus)
    assert ways is not None
    out = np.zeros((gpus - 1, len(ways), slots * gpus))
    for gpu in range(gpus - 1):
        np.put_along_axis(out[gpu], ways[:, gpu], 1.0, axis=1)
    return tuple(out)
