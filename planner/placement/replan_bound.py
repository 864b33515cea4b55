"""How little a budget of moves can leave: a lower bound of the summed fullest GPUs, whatever is moved.

For a layer to have no GPU above T, every fuller GPU needs so many moves that its heaviest experts, replaced by the
lightest of all, bring it there; and what it is over T must go to other GPUs, each with one move at least, none beyond
T. Counts of replicas stay; speeds are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.placement.bounds import load_bound
from planner.placement.records import Floats, Instance, Ints, Placement, gpu_time

LEVELS = 400  # of T between the bound and the present maximum of a layer


@dataclass(frozen=True, kw_only=True, eq=False)
class Floor:
    """Of one layer: to have its fullest GPU at level [LEVELS] or above, below the next, takes moves [LEVELS] at least;
    most: its fullest GPU where nothing moves."""

    level: Floats
    moves: Ints
    most: float


def least_moves(value: Floats, target: Floats) -> Ints:
    """No fewer moves [T] bring all GPUs of value [G, S], loads in slots, to `target` [T]; G S + 1 where none do."""
    gpus, slots = value.shape
    total = value.sum(axis=1)
    heavy = np.cumsum(np.sort(value, axis=1)[:, ::-1], axis=1)
    light = np.cumsum(np.sort(value, axis=None)[:slots])
    after = np.concatenate([total[:, None], total[:, None] - heavy + light], axis=1)  # [G, moves]
    out = np.empty(len(target), dtype=np.int64)
    for i, top in enumerate(target.tolist()):
        need = (after > top).sum(axis=1)
        over = total > top
        room = np.cumsum(np.sort(top - total[~over])[::-1])
        takers = int(np.searchsorted(room, float((total[over] - top).sum()) * (1.0 - 1e-12))) + 1 if over.any() else 0
        out[i] = gpus * slots + 1 if need.max() > slots or takers > len(room) else int(need.sum()) + takers
    return out


def floors(instance: Instance, previous: Placement) -> list[Floor]:
    """Of every layer, for GPUs of equal speed and slots."""
    out = []
    most = gpu_time(instance, previous).max(axis=1)
    for load, hosts, now in zip(instance.loads, previous.experts, most.tolist(), strict=True):
        counts = np.bincount(hosts.ravel(), minlength=instance.num_experts)
        least = min(load_bound(load, instance.slots_per_gpu, instance.speeds), now)
        levels = np.linspace(least, now, LEVELS + 1)
        moves = least_moves((load / counts)[hosts], levels[1:] * float(instance.speeds[0]))
        moves = np.where(moves > hosts.size, previous.experts.size + 1, moves)  # never, in whatever budget
        out.append(Floor(level=levels[:-1], moves=moves, most=now))  # just below the next level may be as low as this
    return out


def least_within(layers: Sequence[Floor], max_moves: int) -> tuple[float, Floats]:
    """(least sum of fullest GPUs within `max_moves` moves, the layers' own in it [L]), by dynamic programme."""
    best = np.zeros(max_moves + 1)
    chosen: list[tuple[Floats, Ints]] = []
    for floor in layers:
        after, spent = best + floor.most, np.zeros(max_moves + 1, dtype=np.int64)
        top = np.full(max_moves + 1, floor.most)
        cheapest = np.flatnonzero(np.diff(floor.moves, prepend=-1))  # of as many moves, the lowest level
        for level, cost in zip(floor.level[cheapest].tolist(), floor.moves[cheapest].tolist(), strict=True):
            if cost <= max_moves:
                tried = best[: max_moves + 1 - cost] + level
                better = tried < after[cost:]
                for table, new in ((after, tried[better]), (top, level), (spent, cost)):
                    table[cost:][better] = new
        best = after
        chosen.append((top, spent))
    left, tops = max_moves, np.empty(len(chosen))
    for i in range(len(chosen) - 1, -1, -1):
        tops[i] = chosen[i][0][left]
        left -= int(chosen[i][1][left])
    return float(best[-1]), tops


def least_after(instance: Instance, previous: Placement, max_moves: int) -> tuple[float, Floats]:
    """(sum over layers of the fullest GPU that no placement within `max_moves` moves of the previous one goes below,
    the layers' own in it [L])."""
    if instance.speeds.min() < instance.speeds.max() or instance.slots:
        now = gpu_time(instance, previous).max(axis=1)
        bounds = np.array([load_bound(load, instance.slots_per_gpu, instance.speeds) for load in instance.loads])
        return float(np.minimum(bounds, now).sum()), np.minimum(bounds, now)
    return least_within(floors(instance, previous), min(max_moves, previous.experts.size))
