"""What a lane-by-lane run is given and what it gives back (`sim.engine.lanewise`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

NO_GATE, ALL = -1, -2


class Op(NamedTuple):
    """One task of a compute stream. work: number of its work; waits: channels it takes an output off.

    gate: the background task of its lane that must be over (`ALL`: every one so far). hands: channels that have its
    output at its end; sends: (work, channel) of transfers that begin then, in order. grad: work of the background task
    that may begin then, or -1.
    """

    work: int
    waits: tuple[int, ...] = ()
    gate: int = NO_GATE
    hands: tuple[int, ...] = ()
    sends: tuple[tuple[int, int], ...] = ()
    grad: int = -1


@dataclass(frozen=True, kw_only=True)
class Program:
    """What one lane runs: `first`, then `loop` as often as the run says, then `last`. background: works of what may
    begin at once on its background stream."""

    first: Sequence[Op]
    loop: Sequence[Op]
    last: Sequence[Op]
    background: Sequence[int] = ()

    @cached_property
    def works(self) -> frozenset[int]:
        """Works of its ops."""
        return frozenset(op.work for op in self._distinct)

    @cached_property
    def sent(self) -> frozenset[int]:
        """Works of its sends."""
        return frozenset(work for op in self._distinct for work, _ in op.sends)

    @property
    def _distinct(self) -> Iterable[Op]:
        """Its ops; one object that recurs, once."""
        return {id(op): op for part in (self.first, self.loop, self.last) for op in part}.values()


@dataclass(frozen=True, kw_only=True)
class LaneRun:
    """Of one lane, of the part that was run: start and end of every op, ends of its sends in their order, and (work,
    start, end) of background tasks."""

    times_s: list[float]
    sends_s: list[float]
    background: list[tuple[int, float, float]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run found. loops: how often the loop was run; skipped: how often not; steps of the run.

    makespan_s, busy_s[lane]: of the whole step.
    """

    makespan_s: float
    busy_s: tuple[float, ...]
    lanes: Sequence[LaneRun]
    loops: int
    skipped: int


class Stuck(RuntimeError):
    """Lanes wait for each other."""
