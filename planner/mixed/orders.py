"""The order of a pipeline's work as a graph: which forward or backward waits for which, and its longest path.

Nodes are the forwards and backwards of every micro-batch on every virtual stage; each waits for the one before it on
its stage and for the one before it along the pipeline. Whatever a node takes, no event run is shorter than any path
through them. Durations are those of virtual stages, first of all forwards, then of all backwards: [2 slots], slot =
chunk x pp + stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from planner.stage_plan.records import Floats, Ints
from sim.build.schedule import lane_order


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """kind[node]: position of the node's duration; lane, line: the nodes it waits for on its stage and along the
    pipeline (-1: none). Nodes stand after those that they wait for."""

    slots: int
    kind: tuple[int, ...]
    lane: tuple[int, ...]
    line: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.kind)

    def longest(self, durations: Sequence[float]) -> tuple[float, Ints]:
        """(seconds of the longest path, how often each duration stands on it [2 slots])."""
        ends = [0.0] * (len(self) + 1)  # the last is that of no node
        came = [-1] * len(self)
        for i, (kind, lane, line) in enumerate(zip(self.kind, self.lane, self.line, strict=True)):
            before = lane if ends[lane] >= ends[line] else line
            came[i] = before
            ends[i] = ends[before] + durations[kind]
        at = max(range(len(self)), key=ends.__getitem__)
        seconds = ends[at]
        counts = np.zeros(2 * self.slots, dtype=np.int64)
        while at >= 0:
            counts[self.kind[at]] += 1
            at = came[at]
        return seconds, counts

    def lengths(self, durations: Floats) -> Floats:
        """Seconds of the longest path under each line of durations [cases, 2 slots]."""
        ends = np.zeros((len(self) + 1, len(durations)))
        each = np.ascontiguousarray(durations.T)
        for i, (kind, lane, line) in enumerate(zip(self.kind, self.lane, self.line, strict=True)):
            np.add(np.maximum(ends[lane], ends[line]), each[kind], out=ends[i])
        out: Floats = ends.max(axis=0)
        return out


@lru_cache(maxsize=64)
def order_of(*, pp: int, vpp: int, num_micro_batches: int, group: int = 0) -> Order:
    """The graph of 1F1B (vpp 1) or its interleaved form; group: see `sim.build.schedule.group_size`."""
    schedule, slots = "interleaved" if vpp > 1 else "1f1b", pp * vpp
    lanes = [
        lane_order(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=num_micro_batches, group=group)
        for stage in range(pp)
    ]
    place: dict[tuple[str, int, int], int] = {}
    kinds, before, along = list[int](), list[int](), list[int]()
    next_at, last = [0] * pp, [-1] * pp
    moved = True
    while moved:
        moved = False
        for stage, steps in enumerate(lanes):
            while next_at[stage] < len(steps):
                step = steps[next_at[stage]]
                slot = step.chunk * pp + stage
                forward = step.kind == "F"
                if forward:
                    needs = None if slot == 0 else ("F", step.micro_batch, slot - 1)
                else:
                    needs = ("B", step.micro_batch, slot + 1) if slot < slots - 1 else ("F", step.micro_batch, slot)
                if needs is not None and needs not in place:
                    break
                place[step.kind, step.micro_batch, slot] = len(kinds)
                along.append(-1 if needs is None else place[needs])
                before.append(last[stage])
                last[stage] = len(kinds)
                kinds.append(slot if forward else slots + slot)
                next_at[stage] += 1
                moved = True
    assert len(kinds) == 2 * slots * num_micro_batches, "an order that waits for itself"
    return Order(slots=slots, kind=tuple(kinds), lane=tuple(before), line=tuple(along))
