"""Links: bytes of several tasks on one bandwidth, by priority, then max-min fairly under per-flow caps.

Processor sharing by water-filling: flows of one priority are served in order of their caps, each getting
min(cap, what is left / flows left); the next priority fills what they leave. While the caps fit the link together,
every flow drains at its cap and no event is spent; once they do not, each arrival and departure re-times the link.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

from sim.engine.clock import Clock

# Caps that exceed the link by less than this share are rounding, not contention.
ROUNDING = 1e-9


class Owner(Protocol):
    """What a link needs of the engine."""

    clock: Clock
    num_events: int

    def hold(self, i: int) -> None:
        """Task i must also wait for a flow to drain."""

    def release(self, i: int) -> None:
        """That flow has drained."""


class Flow:
    """Bytes of one task on one link. alone_s: seconds to drain without contention; cap = bytes / alone_s."""

    __slots__ = ("alone_s", "cap", "counted_s", "held", "left_bytes", "link", "priority", "rate", "size_bytes", "task")

    def __init__(self, task: int, link: Link, size_bytes: float, alone_s: float, priority: int = 0) -> None:
        self.task = task
        self.priority = priority
        self.link = link
        self.size_bytes = size_bytes
        self.left_bytes = size_bytes
        self.alone_s = alone_s
        self.cap = size_bytes / alone_s
        self.rate = self.cap
        self.counted_s = 0.0
        self.held = False


def water_fill(caps: Sequence[float], capacity: float) -> list[float]:
    """Max-min fair rates (bytes/s) of flows with caps on a link of `capacity` bytes/s.

    The smallest cap first: it gets its cap if that is below the equal share of what is left.
    (Bertsekas and Gallager, Data Networks, section 6.5.2.)
    """
    rates = [0.0] * len(caps)
    left = capacity
    for served, i in enumerate(sorted(range(len(caps)), key=caps.__getitem__)):
        rates[i] = min(caps[i], left / (len(caps) - served))
        left -= rates[i]
    return rates


_cap, _level = attrgetter("cap"), attrgetter("priority")


def _fill(flows: Sequence[Flow], capacity: float) -> None:
    """`water_fill` of the caps of flows, written into their rates."""
    left, waiting = capacity, len(flows)
    for flow in sorted(flows, key=_cap):
        equal = left / waiting
        flow.rate = rate = flow.cap if flow.cap <= equal else equal
        left -= rate
        waiting -= 1


class Link:
    """One link of one lane, or of all. busy_s: seconds it carried anything; carried_bytes: integral of its rate.

    rates: with `series`, its load as steps (time_s, bytes/s from then on), as it was run.
    """

    def __init__(self, owner: Owner, capacity: float, *, series: bool = False) -> None:
        self.owner = owner
        self.capacity = capacity
        self._fits = capacity * (1.0 + ROUNDING)
        self.carried_bytes = 0.0
        self.intervals: list[tuple[float, float]] = []
        self.rates: list[tuple[float, float]] = []
        self._series = series
        self._flows: dict[Flow, None] = {}
        self._cap_sum = 0.0
        self._contended = False
        self._version = 0
        self._busy_from_s = 0.0

    @property
    def busy_s(self) -> float:
        """Seconds it carried anything, so far."""
        return self.busy_between(0.0, float("inf"))

    def busy_between(self, start_s: float, end_s: float) -> float:
        """Seconds of [start_s, end_s) in which it carried anything."""
        return sum(max(0.0, min(e, end_s) - max(s, start_s)) for s, e in self.intervals)

    def arrive(self, flow: Flow, *, ends_with_task: bool) -> None:
        """A flow starts. ends_with_task: alone it drains when its task ends, so no event of its own is needed."""
        now = self.owner.clock.now
        if self._flows:
            self._settle(now)
        else:
            self._busy_from_s = now
        flow.counted_s = now
        self._flows[flow] = None
        self._cap_sum += flow.cap
        if not self._contended and self._cap_sum <= self._fits:
            if self._series:
                self._note(now, self._cap_sum)
            if not ends_with_task:
                self.owner.num_events += 1
                self.owner.clock.after(flow.alone_s, self.leave, flow)
            return
        self._contended = True
        for each in self._flows:
            if not each.held:
                each.held = True
                self.owner.hold(each.task)
        self._share(now)

    def leave(self, flow: Flow) -> None:
        """A flow that met no contention is over with its task (no effect on a flow under contention)."""
        if flow in self._flows and not flow.held:
            self._remove(flow)

    def _remove(self, flow: Flow) -> None:
        self.carried_bytes += flow.left_bytes
        del self._flows[flow]
        self._cap_sum -= flow.cap
        if self._series and (not self._flows or not self._contended):
            self._note(self.owner.clock.now, self._cap_sum if self._flows else 0.0)
        if not self._flows:
            self._cap_sum = 0.0
            self._contended = False
            self._version += 1
            now = self.owner.clock.now
            if self.intervals and self.intervals[-1][1] == self._busy_from_s:
                self.intervals[-1] = (self.intervals[-1][0], now)
            else:
                self.intervals.append((self._busy_from_s, now))

    def _note(self, now: float, rate: float) -> None:
        """Load from now on; of several changes at one time the last counts."""
        if self.rates and self.rates[-1][0] == now:
            self.rates.pop()
        if rate != (self.rates[-1][1] if self.rates else 0.0):
            self.rates.append((now, rate))

    def _settle(self, now: float) -> None:
        """Book what every flow has moved at its present rate."""
        for flow in self._flows:
            moved, left = flow.rate * (now - flow.counted_s), flow.left_bytes
            if left < moved:
                moved = left
            flow.left_bytes = left - moved
            flow.counted_s = now
            self.carried_bytes += moved

    def _share(self, now: float) -> None:
        """New rates, and the event of the next drain."""
        flows = list(self._flows)
        highest = flows[0].priority
        if all(flow.priority == highest for flow in flows):
            _fill(flows, self.capacity)
        else:
            flows = self._by_priority(flows)
        flows = [flow for flow in flows if flow.rate > 0.0]
        if self._series:
            self._note(now, sum(flow.rate for flow in flows))
        drained_s = [flow.left_bytes / flow.rate for flow in flows]
        wait_s = min(drained_s)
        # Flows that drain together leave together, or rounding would spend an event on each.
        limit_s = wait_s + ROUNDING * 1e-3 * (now + wait_s)
        done = [flow for flow, after_s in zip(flows, drained_s, strict=True) if after_s <= limit_s]
        self._version += 1
        self.owner.num_events += 1
        self.owner.clock.after(wait_s, self._on_drain, (self._version, done))

    def _by_priority(self, flows: list[Flow]) -> list[Flow]:
        """Rates of flows of several priorities; those of the first come first."""
        left = self.capacity
        levels = sorted({flow.priority for flow in flows})
        for priority in levels:
            equal = [flow for flow in flows if flow.priority == priority]
            _fill(equal, left)
            if priority != levels[-1]:
                left = max(0.0, left - sum(flow.rate for flow in equal))
                if left <= self.capacity * ROUNDING:
                    left = 0.0
        return sorted(flows, key=_level)

    def _on_drain(self, event: tuple[int, list[Flow]]) -> None:
        version, done = event
        if version != self._version:
            return
        now = self.owner.clock.now
        self._settle(now)
        for flow in done:
            self._remove(flow)
        if self._flows:
            self._share(now)
        for flow in done:
            self.owner.release(flow.task)
