"""Lanes of a lane-by-lane run in general: with background tasks, and sends of several flows (`sim.engine.lanewise`)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappush

from sim.engine.graph import Work
from sim.engine.lane_links import Flow, alone, run_on
from sim.engine.lane_programs import ALL, NO_GATE, Op, Program
from sim.engine.recurrence import Recurrence


@dataclass(slots=True)
class Lane:
    """Where a lane is. at_s: its stream has run up to then; send: (work, channel) under way, its flows begin at from_s,
    have `flows` left and it is not over before own_s. link, cap, left: the leading flow of a send while none of the
    general lanes' methods looks at it (without a flow: seconds left at a cap of 1), rest: its other flows."""

    ops: Sequence[Op]
    part: int = 0
    i: int = 0
    done: int = 0
    at_s: float = 0.0
    version: int = 0
    send: tuple[int, int] | None = None
    from_s: float = 0.0
    link: int = -1
    cap: float = 1.0
    left: float = 0.0
    rest: list[Flow] = field(default_factory=list)
    own_s: float = 0.0
    flows: list[Flow] = field(default_factory=list)
    queue: deque[tuple[int, int]] = field(default_factory=deque)
    behind: deque[int] = field(default_factory=deque)  # background tasks that may begin
    back: int = -1
    back_start_s: float = 0.0
    back_from_s: float = 0.0
    back_own_s: float = 0.0
    back_flows: list[Flow] = field(default_factory=list)
    back_over: int = 0
    times_s: list[float] = field(default_factory=list)
    sends_s: list[float] = field(default_factory=list)
    background: list[tuple[int, float, float]] = field(default_factory=list)


NO_FLOWS: Sequence[Flow] = ()


class Lanes:
    """The lanes of one run of programs, in general.

    works: by number, none of them with two flows on one link; links: bytes/s of each; loops: recurrences; width: so
    many of them hold all that later steps depend on.
    """

    def __init__(
        self, programs: Sequence[Program], works: Sequence[Work], links: Mapping[str, float], channels: int, *,
        loops: int, width: int,
    ) -> None:  # fmt: skip
        place = {name: i for i, name in enumerate(links)}
        self.programs = programs
        self.capacity = tuple(links.values())
        # equal work is often the same
        known = {id(work): alone(work, place, self.capacity) for work in works}
        self.alone = [known[id(work)] for work in works]
        self.took_s = [latency_s + busy_s for latency_s, busy_s, _ in self.alone]
        self.loops = loops
        self.arrived: list[deque[float]] = [deque() for _ in range(channels)]
        self.waiting: list[int] = [-1] * channels
        self.ready: deque[int] = deque(range(len(programs)))  # the longest first, so that lanes stay level
        self.heap: list[tuple[float, int, int]] = []
        self.lanes = [Lane(ops=p.first, behind=deque(p.background)) for p in programs]
        self.recurrence = Recurrence(programs, width)
        self.passed = [0] * (loops + 1)  # lanes that have been through a loop

    # -- one lane --------------------------------------------------------------------------------

    def _go(self, n: int) -> None:
        """Run a lane until it waits for what is not there, or to its end."""
        lane = self.lanes[n]
        lane.version += 1
        arrived, took_s, times = self.arrived, self.took_s, lane.times_s
        while True:
            ops, i = lane.ops, lane.i
            while i < len(ops):
                work, waits, gate, hands, sends, grad = ops[i]
                start = lane.at_s
                for channel in waits:
                    if not arrived[channel]:
                        lane.i = i
                        self._wait(n, channel)
                        return
                for channel in waits:
                    at = arrived[channel].popleft()
                    if at > start:
                        start = at
                if lane.send is None and lane.back < 0 and not lane.behind:
                    end = start + took_s[work]
                else:
                    start, end = self._beside(lane, start, gate, work)
                lane.at_s = end
                times.append(start)
                times.append(end)
                i += 1
                for channel in hands:
                    self._hand(channel, end)
                if sends:
                    lane.queue.extend(sends)
                    if lane.send is None:
                        self._next_send(lane, end)
                if grad >= 0:
                    lane.behind.append(grad)
            lane.i = 0
            if not self._next_part(n):
                return

    def _next_part(self, n: int) -> bool:
        """What the lane runs when it is through with its ops; False: nothing."""
        lane, program = self.lanes[n], self.programs[n]
        if lane.part == 1:
            lane.done += 1
            self.passed[lane.done] += 1
            if self.passed[lane.done] == len(self.lanes):
                self._look()
            if lane.done < self.loops:
                return True
        elif lane.part == 0 and self.loops:
            lane.part, lane.ops = 1, program.loop
            return True
        elif lane.part == 2:
            lane.part = 3
            self._drain(lane, math.inf)
            return False
        lane.part, lane.ops = 2, program.last
        return True

    def _look(self) -> None:
        """Look for a period in what all lanes have run, and leave out what whole periods can stand for."""
        found = self.recurrence
        if found.periods or not found.proves(self.lanes):
            return
        # a lane may be ahead: it stays in the loop until it is through with what it has begun
        least = max(found.seen, 1 + max(lane.done for lane in self.lanes))
        if any(lane.part > 1 for lane in self.lanes):
            return
        found.periods = max(0, self.loops - least) // found.cycles
        self.loops -= found.periods * found.cycles

    def _wait(self, n: int, channel: int) -> None:
        """The lane waits for an output; its send under way may end before that comes."""
        lane = self.lanes[n]
        self.waiting[channel] = n
        if lane.send is not None:
            heappush(self.heap, (self._idle_end(lane), n, lane.version))

    def _hand(self, channel: int, at_s: float) -> None:
        """An output is there."""
        self.arrived[channel].append(at_s)
        n = self.waiting[channel]
        if n >= 0:
            self.waiting[channel] = -1
            self.ready.append(n)

    # -- sends and background tasks beside the compute stream --------------------------------------

    def _next_send(self, lane: Lane, at_s: float) -> None:
        """The next send of the queue begins; none where it is empty."""
        if not lane.queue:
            lane.send = None
            return
        lane.send = send = lane.queue.popleft()
        latency_s, busy_s, flows = self.alone[send[0]]
        lane.from_s = from_s = at_s + latency_s
        lane.own_s = from_s + busy_s
        lane.flows = [Flow(flow.link, flow.cap, flow.left_bytes) for flow in flows]

    def _end_send(self, lane: Lane, at_s: float) -> None:
        """The send under way is over, its output is there."""
        assert lane.send is not None
        channel = lane.send[1]
        lane.sends_s.append(at_s)
        self._next_send(lane, at_s)
        self._hand(channel, at_s)

    def _idle_end(self, lane: Lane) -> float:
        """When the send under way ends if its lane starts nothing (what is in the background gives way)."""
        at_s = lane.at_s if lane.at_s > lane.from_s else lane.from_s
        end_s = lane.own_s
        for flow in lane.flows:
            drained_s = at_s + flow.left_bytes / flow.cap
            if drained_s > end_s:
                end_s = drained_s
        return end_s

    def _send_over(self, n: int) -> None:
        """All lanes wait, and the send of this one is the first that ends."""
        lane = self.lanes[n]
        lane.version += 1
        if lane.back >= 0 or lane.behind:
            self._drain(lane, math.inf, sends=1)
        else:
            lane.at_s = at_s = self._idle_end(lane)
            self._end_send(lane, at_s)
        if lane.send is not None:
            heappush(self.heap, (self._idle_end(lane), n, lane.version))

    def _beside(self, lane: Lane, start_s: float, gate: int, work: int) -> tuple[float, float]:
        """Start and end of an op that may start at `start_s`, beside a send and background tasks."""
        if start_s > lane.at_s:
            self._drain(lane, start_s)
        if gate != NO_GATE:
            count = lane.back_over + len(lane.behind) + (lane.back >= 0) if gate == ALL else gate + 1
            if lane.back_over < count:
                start_s = self._drain(lane, math.inf, over=count)
        latency_s, busy_s, flows = self.alone[work]
        mine = [Flow(flow.link, flow.cap, flow.left_bytes) for flow in flows]
        from_s = start_s + latency_s
        return start_s, self._drain(lane, math.inf, own_s=from_s + busy_s, from_s=from_s, flows=mine)

    def _drain(
        self, lane: Lane, until_s: float, *, own_s: float = -1.0, from_s: float = 0.0, flows: Sequence[Flow] = (),
        sends: int = 0, over: int = -1,
    ) -> float:  # fmt: skip
        """Run a lane on until one of these: a time, the end of an op (own_s: its time alone, flows: from from_s on), so
        many sends more, so many background tasks over, or nothing left to run. Returns the time it is then."""
        now_s, sent = lane.at_s, len(lane.sends_s) + sends
        while True:
            while lane.send is not None and now_s >= lane.own_s and not lane.flows:
                self._end_send(lane, now_s)
            while self._background(lane, now_s):
                pass
            if own_s >= 0.0:
                if now_s >= own_s and not flows:
                    break
            elif now_s >= until_s or 0 <= over <= lane.back_over or (sends and len(lane.sends_s) >= sent):
                break
            elif lane.send is None and lane.back < 0:
                now_s = until_s if until_s < math.inf else now_s
                break
            next_s, mine, sending, behind = until_s, NO_FLOWS, NO_FLOWS, NO_FLOWS
            if now_s < own_s < next_s:
                next_s = own_s
            if now_s >= from_s:
                mine = flows
            elif from_s < next_s:
                next_s = from_s
            if lane.send is not None:
                if now_s < lane.own_s < next_s:
                    next_s = lane.own_s
                if now_s >= lane.from_s:
                    sending = lane.flows
                elif lane.from_s < next_s:
                    next_s = lane.from_s
            if lane.back >= 0:
                if now_s < lane.back_own_s < next_s:
                    next_s = lane.back_own_s
                if now_s >= lane.back_from_s:
                    behind = lane.back_flows
                elif lane.back_from_s < next_s:
                    next_s = lane.back_from_s
            if not mine and not sending and not behind:
                now_s = next_s
                continue
            now_s = run_on(mine, sending, behind, self.capacity, now_s, next_s)
            if mine:
                flows = [flow for flow in mine if flow.left_bytes > 0.0]
            if sending:
                lane.flows = [flow for flow in sending if flow.left_bytes > 0.0]
            if behind:
                lane.back_flows = [flow for flow in behind if flow.left_bytes > 0.0]
        lane.at_s = now_s
        return now_s

    def _background(self, lane: Lane, now_s: float) -> bool:
        """End the background task that is through, begin the next; False where there is nothing to do."""
        if lane.back >= 0:
            if now_s < lane.back_own_s or lane.back_flows:
                return False
            lane.background.append((lane.back, lane.back_start_s, now_s))
            lane.back = -1
            lane.back_over += 1
            return True
        if not lane.behind:
            return False
        lane.back = lane.behind.popleft()
        latency_s, busy_s, flows = self.alone[lane.back]
        lane.back_start_s, lane.back_from_s = now_s, now_s + latency_s
        lane.back_own_s = lane.back_from_s + busy_s
        lane.back_flows = [Flow(flow.link, flow.cap, flow.left_bytes) for flow in flows]
        return True
