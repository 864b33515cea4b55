"""The clock: SimPy's environment, and calls that are due at a time without an event object of their own kind each."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any

from simpy import Environment
from simpy.events import NORMAL


class Due:
    """A call at its time, as little of a SimPy event as `Environment.step` asks for: nobody waits for it twice."""

    __slots__ = ("call", "callbacks", "value")
    _ok = True

    def __init__(self, call: Callable[[Any], None], value: object) -> None:
        self.callbacks: Any = _FIRE
        self.call = call
        self.value = value


def _fire(due: Any) -> None:
    due.call(due.value)


_FIRE = (_fire,)


class Clock(Environment):
    """Time in seconds and what is still to happen; of equal times in the order in which they were asked for."""

    def after(self, delay_s: float, call: Callable[[Any], None], value: object) -> None:
        """Make `call(value)` in delay_s seconds."""
        due: Any = Due(call, value)
        heappush(self._queue, (self._now + delay_s, NORMAL, next(self._eid), due))
