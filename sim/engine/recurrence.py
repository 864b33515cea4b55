"""Whether the lanes of a lane-by-lane run have become periodic; the argument is that of `sim.engine.steady`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim.engine.steady import TOLERANCE

LOOKS = 8  # a look costs as much as some tasks: the next one comes when this part more has been run


class Timed(Protocol):
    """What is read of a lane: start and end of its ops, and ends of its sends, in order."""

    times_s: list[float]
    sends_s: list[float]


class Coded(Protocol):
    """What is read of a program."""

    @property
    def first(self) -> Sequence[Any]:
        """Ops before the loop."""
        ...

    @property
    def loop(self) -> Sequence[Any]:
        """Ops of one recurrence."""
        ...


class Recurrence:
    """The times of all lanes, a row for each recurrence, and the period found in them.

    width: rows that hold all that later ones depend on. seen: rows complete on all lanes; cycles, shift_s: after so
    many rows the state is the same, so much later; busy_s: of each lane in them; periods: how many were left out.
    """

    def __init__(self, programs: Sequence[Coded], width: int) -> None:
        self.width = width
        self.seen = 0
        self.cycles = 0
        self.shift_s = 0.0
        self.busy_s: list[float] = []
        self.periods = 0
        self._next = width + 1
        self._at = [(2 * len(p.first), 2 * len(p.loop), _sends(p.first), _sends(p.loop)) for p in programs]
        self._rows: NDArray[np.float64] = np.empty((0, sum(ops + sends for _, ops, _, sends in self._at)))

    def proves(self, lanes: Sequence[Timed]) -> bool:
        """Whether what was run by now proves a period; notes it down."""
        if self._at[0][1] * self._next > len(lanes[0].times_s) - self._at[0][0]:
            return False
        seen = min(
            min((len(lane.times_s) - before) // ops, (len(lane.sends_s) - sent) // sends if sends else self._next)
            for lane, (before, ops, sent, sends) in zip(lanes, self._at, strict=True)
        )
        if seen < self._next:
            return False
        fresh = []
        for lane, (before, ops, sent, sends) in zip(lanes, self._at, strict=True):
            fresh.append(np.array(lane.times_s[before + self.seen * ops : before + seen * ops]).reshape(-1, ops))
            if sends:
                fresh.append(np.array(lane.sends_s[sent + self.seen * sends : sent + seen * sends]).reshape(-1, sends))
        self._rows = np.concatenate([self._rows, np.concatenate(fresh, axis=1)])
        self.seen = seen
        self._next = seen + max(1, seen // LOOKS)
        found = self._period()
        if found:
            self.cycles = found
            self.shift_s = float(self._rows[-1, 0] - self._rows[-1 - found, 0])
            self.busy_s = self._busy(found)
        return found > 0

    def _period(self) -> int:
        """Rows after which all times are the same but for one shift (0: none)."""
        rows, width = self._rows, self.width
        early = rows[width - 1 : -1]
        shifts = rows[-1] - early
        least, most = shifts.min(axis=1), shifts.max(axis=1)
        alike = np.flatnonzero(most - least <= TOLERANCE * most)
        for at in alike[::-1]:
            cycles = len(early) - int(at)
            error_s = TOLERANCE * float(most[at])
            late = rows[len(rows) - width :] - rows[len(rows) - width - cycles : len(rows) - cycles]
            if late.max() - late.min() <= error_s:
                return cycles
        return 0

    def _busy(self, cycles: int) -> list[float]:
        """Seconds each lane's ops took in the last rows."""
        out, at = [], 0
        for _, ops, _, sends in self._at:
            mine = self._rows[-cycles:, at : at + ops]
            out.append(float(mine[:, 1::2].sum() - mine[:, ::2].sum()))
            at += ops + sends
        return out


def _sends(ops: Sequence[Any]) -> int:
    return sum(len(op.sends) for op in ops)
