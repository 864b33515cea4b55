"""A step run lane by lane: for a search, which asks for totals of many pipelines and for no event of any.

Lanes share no link, and hand each other outputs in a fixed order. So what a lane does until it waits for an output that
is not there yet is a matter of its own; it is run at one go, at the cost of a few sums per task. When all lanes wait,
the earliest send under way ends next: no lane can start anything before it, hence nothing can slow it down. Links are
shared as in `sim.engine.links`, and tests hold the run against the event engine, to rounding.

Where the lanes recur, the run proves a period as `sim.engine.steady` does, goes on with as many recurrences as are left
over by whole periods, and adds those to the totals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush

from sim.engine.graph import Work
from sim.engine.lane_general import Lane, Lanes
from sim.engine.lane_links import Flow, beside, lasts, leading
from sim.engine.lane_programs import LaneRun, Outcome, Program, Stuck


class Lanewise(Lanes):
    """One run."""

    def __init__(
        self, programs: Sequence[Program], works: Sequence[Work], links: Mapping[str, float], channels: int, *,
        loops: int, width: int,
    ) -> None:  # fmt: skip
        super().__init__(programs, works, links, channels, loops=loops, width=width)
        # while an op's flows last as long as it does, the leading flow of a send has one rate beside it
        self.led = list(self.alone)
        self.rest: dict[int, tuple[Flow, ...]] = {}
        known: dict[tuple[int, frozenset[int]], int | None] = {}
        self.plain = [self._is_plain(program, known) for program in programs]

    def _is_plain(self, program: Program, known: dict[tuple[int, frozenset[int]], int | None]) -> bool:
        """Whether the sends of a lane have a leading flow each, or one at most. known: found for equal ones."""
        if not program.sent:
            return True
        ops = {id(self.alone[work]): self.alone[work] for work in program.works}
        if any(op[0] > 0.0 or not lasts(op) for op in ops.values()):
            return False
        for work in program.sent:
            sent = self.alone[work]
            latency_s, took_s, flows = sent
            if len(flows) < 2:
                continue
            key = id(sent), frozenset(ops)
            if key not in known:
                known[key] = leading(sent, ops.values(), self.capacity)
            at = known[key]
            if at is None:
                return False
            self.led[work] = latency_s, took_s, (flows[at],)
            self.rest[work] = (*flows[:at], *flows[at + 1 :])
        return True

    def run(self) -> Outcome:
        """To the end. Raises Stuck where lanes wait for each other for ever."""
        self._run_lanes()
        lanes, found = self.lanes, self.recurrence
        if any(lane.part < 3 or lane.send is not None for lane in lanes):
            raise Stuck("lanes wait for each other")
        end_s = max(lane.at_s for lane in lanes)
        busy_s = [sum(lane.times_s[1::2]) - sum(lane.times_s[::2]) for lane in lanes]
        if found.periods:
            end_s += found.periods * found.shift_s
            busy_s = [a + found.periods * b for a, b in zip(busy_s, found.busy_s, strict=True)]
        runs = [LaneRun(times_s=each.times_s, sends_s=each.sends_s, background=each.background) for each in lanes]
        skipped = found.periods * found.cycles
        return Outcome(makespan_s=end_s, busy_s=tuple(busy_s), lanes=runs, loops=self.loops, skipped=skipped)

    def _run_lanes(self) -> None:
        """All lanes to their ends; those where sends have one flow here: most of a search is spent so, hence few
        calls."""
        lanes, ready, heap, arrived, waiting = self.lanes, self.ready, self.heap, self.arrived, self.waiting
        took_s, alone, capacity, count = self.took_s, self.alone, self.capacity, len(self.alone)
        led, more = self.led, bool(self.rest)
        begins = [_begin(latency_s, busy_s, flows) for latency_s, busy_s, flows in led]
        pairs: dict[int, tuple[int, float, float]] = {}
        passed, number, plain = self.passed, len(lanes), self.plain
        while True:
            if ready:
                n = ready.popleft()
            elif heap:
                now, n, version = heappop(heap)
                lane = lanes[n]
                if lane.version != version:
                    continue
                if lane.back >= 0 or lane.behind or not plain[n]:
                    self._in_general(n, self._send_over)
                    continue
                # all lanes wait, and the send of this one is the first that ends
                assert lane.send is not None
                lane.at_s = now
                lane.sends_s.append(now)
                channel = lane.send[1]
                arrived[channel].append(now)
                if waiting[channel] >= 0:
                    ready.append(waiting[channel])
                    waiting[channel] = -1
                if lane.queue:
                    lane.send = lane.queue.popleft()
                    latency, lane.link, lane.cap, lane.left = begins[lane.send[0]]
                    lane.from_s = now + latency
                    if more:
                        lane.rest = self._others(lane.send[0])
                    heappush(heap, (lane.from_s + lane.left / lane.cap, n, version))
                else:
                    lane.send = None
                continue
            else:
                return
            lane = lanes[n]
            lane.version += 1
            if lane.back >= 0 or lane.behind or not plain[n]:
                self._in_general(n, self._go)
                continue
            # one lane from here to where it waits, its state in local names
            queue, times, ends, ops, i, at = lane.queue, lane.times_s, lane.sends_s, lane.ops, lane.i, lane.at_s
            send, from_s, cap, left = -1, lane.from_s, lane.cap, lane.left
            channel = -1
            if lane.send is not None:
                send, channel = lane.send
            most = len(ops)
            going = True
            while going:
                if i == most and lane.part == 1:
                    lane.done = done = lane.done + 1
                    passed[done] += 1
                    if passed[done] == number:
                        self._look()
                    i = 0
                    if done >= self.loops:
                        lane.part, lane.ops = 2, self.programs[n].last
                        ops = lane.ops
                        most = len(ops)
                    continue
                if i == most:
                    lane.at_s, lane.i, lane.from_s, lane.cap, lane.left = at, 0, from_s, cap, left
                    lane.send = (send, channel) if send >= 0 else None
                    if lane.part == 2:
                        self._unpack(lane)
                    if not self._next_part(n):
                        break
                    ops, i = lane.ops, 0
                    most = len(ops)
                    continue
                work, waits, _, hands, sends, grad = ops[i]
                start = at
                if len(waits) == 1:
                    given = arrived[waits[0]]
                    if not given:
                        waited = waits[0]
                        break
                    start = given.popleft()
                    if start < at:
                        start = at
                elif waits:
                    waited = -1
                    for each in waits:
                        if not arrived[each]:
                            waited = each
                    if waited >= 0:
                        break
                    for each in waits:
                        other = arrived[each].popleft()
                        if other > start:
                            start = other
                end = alone_end = start + took_s[work]
                drained: dict[int, float] | None = None  # of links where a send slows the op down
                while send >= 0:
                    # a stretch in which the send has one rate
                    since = at if at > from_s else from_s
                    if since >= end:
                        break
                    rate, until, link, slowed = cap, end, -1, 1.0
                    if since < start:
                        until = start
                    else:
                        pair = pairs.get(work * count + send)
                        if pair is None:
                            pair = pairs[work * count + send] = beside(alone[work], led[send], capacity)
                        if pair[0] >= 0:
                            link = pair[0]
                            stop = alone_end if drained is None else drained.get(link, alone_end)
                            if since < stop:
                                _, rate, slowed = pair
                                until = stop if slowed == 1.0 else since + (stop - since) / slowed
                            else:
                                link = -1
                    over = since + left / rate
                    at = over if over <= until else until
                    if slowed < 1.0:
                        if drained is None:
                            drained = {}
                        drained[link] = stop + (at - since) * (1.0 - slowed)
                        if drained[link] > end:
                            end = drained[link]
                    if over > until:
                        left -= rate * (until - since)
                        if more:
                            self._move(lane.rest, since, until, work if since >= start else -1, alone_end)
                        continue
                    ends.append(over)
                    arrived[channel].append(over)
                    if waiting[channel] >= 0:
                        ready.append(waiting[channel])
                        waiting[channel] = -1
                    if queue:
                        send, channel = queue.popleft()
                        latency, lane.link, cap, left = begins[send]
                        from_s = over + latency
                        if more:
                            lane.rest = self._others(send)
                    else:
                        send = -1
                at = end
                times.append(start)
                times.append(end)
                i += 1
                for each in hands:
                    arrived[each].append(end)
                    if waiting[each] >= 0:
                        ready.append(waiting[each])
                        waiting[each] = -1
                for fresh in sends:
                    if send < 0:
                        send, channel = fresh
                        latency, lane.link, cap, left = begins[send]
                        from_s = end + latency
                        if more:
                            lane.rest = self._others(send)
                    else:
                        queue.append(fresh)
                if grad >= 0:
                    going = False
            else:
                # a background task begins
                lane.at_s, lane.i, lane.from_s, lane.cap, lane.left = at, i, from_s, cap, left
                lane.send = (send, channel) if send >= 0 else None
                lane.behind.append(grad)
                self._in_general(n, self._go)
                continue
            if lane.part == 3:
                continue
            waiting[waited] = n
            lane.at_s, lane.i, lane.from_s, lane.cap, lane.left = at, i, from_s, cap, left
            if send >= 0:
                lane.send = send, channel
                heappush(heap, ((at if at > from_s else from_s) + left / cap, n, lane.version))
            else:
                lane.send = None

    # -- between the two ways --------------------------------------------------------------------

    def _in_general(self, n: int, go_on: Callable[[int], None]) -> None:
        """Let the general lanes go on with one."""
        if not self.plain[n]:
            go_on(n)
            return
        lane = self.lanes[n]
        self._unpack(lane)
        go_on(n)
        if lane.send is not None:
            lane.link, lane.cap, lane.left = -1, 1.0, lane.own_s - max(lane.from_s, lane.at_s)
            lane.rest = []
            for flow in lane.flows:
                if flow.link == self.led[lane.send[0]][2][0].link:
                    lane.link, lane.cap, lane.left = flow.link, flow.cap, flow.left_bytes
                else:
                    lane.rest.append(flow)

    def _unpack(self, lane: Lane) -> None:
        lane.own_s, lane.flows = max(lane.from_s, lane.at_s), []
        if lane.send is not None:
            if lane.link < 0:
                lane.own_s += lane.left
            else:
                rest = lane.rest if self.rest else []
                lane.flows = [Flow(lane.link, lane.cap, lane.left), *(flow for flow in rest if flow.left_bytes > 0.0)]

    def _others(self, send: int) -> list[Flow]:
        """The flows of a send behind its leading one, as it begins."""
        return [Flow(flow.link, flow.cap, flow.left_bytes) for flow in self.rest.get(send, ())]

    def _move(self, rest: list[Flow], since_s: float, until_s: float, work: int, alone_end_s: float) -> None:
        """What the flows behind a leading one move in a stretch of time, beside an op (-1: none)."""
        for flow in rest:
            moved = flow.cap * (until_s - since_s)
            link, rate, _ = (-1, 0.0, 1.0) if work < 0 else beside(self.alone[work], (0.0, 0.0, (flow,)), self.capacity)
            if link >= 0:
                moved -= (flow.cap - rate) * max(0.0, min(until_s, alone_end_s) - since_s)
            flow.left_bytes = max(0.0, flow.left_bytes - moved)


def _begin(latency_s: float, busy_s: float, flows: Sequence[Flow]) -> tuple[float, int, float, float]:
    """(latency, link, cap, bytes) of a task of at most one flow; without one, seconds at a cap of 1."""
    return (latency_s, flows[0].link, flows[0].cap, flows[0].left_bytes) if flows else (latency_s, -1, 1.0, busy_s)
