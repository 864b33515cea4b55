"""The clock: calls that are due, in order of their time; of equal times in the order in which they were asked for."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Clock:
    """Time in seconds and what is still to happen. A call and its argument stand in the heap as they are: an event of
    a long pipeline costs a push and a pop, no object."""

    __slots__ = ("_count", "_due", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0
        self._due: list[tuple[float, int, Callable[[Any], None], Any]] = []

    def after(self, delay_s: float, call: Callable[[Any], None], value: object) -> None:
        """Make `call(value)` in delay_s seconds."""
        self._count += 1
        heappush(self._due, (self.now + delay_s, self._count, call, value))

    def run(self) -> None:
        """Go through all calls, those that are asked for on the way too."""
        due = self._due
        while due:
            self.now, _, call, value = heappop(due)
            call(value)
