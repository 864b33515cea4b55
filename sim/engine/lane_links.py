"""Links of one lane in a lane-by-lane run: what each flow gets while the set of flows stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sim.engine.graph import Work
from sim.engine.links import ROUNDING, water_fill


@dataclass(slots=True)
class Flow:
    """Bytes of one task on one link (its number). cap: its rate where it meets no other."""

    link: int
    cap: float
    left_bytes: float


Alone = tuple[float, float, tuple[Flow, ...]]  # (latency_s, seconds after it, flows as they begin)


def alone(work: Work, place: Mapping[str, int], capacity: Sequence[float]) -> Alone:
    """What a task takes when it meets no other (`sim.engine.graph.Task`)."""
    flows, longest_s = [], work.busy_s
    for name, size in work.flows:
        if size > 0.0:
            alone_s = max(size / capacity[place[name]], work.busy_s)
            longest_s = max(longest_s, alone_s)
            flows.append(Flow(place[name], size / alone_s, size))
    return work.latency_s, longest_s, tuple(flows)


def lasts(taken: Alone) -> bool:
    """Whether all flows of a task last as long as it does alone."""
    _, took_s, flows = taken
    return all(flow.left_bytes / flow.cap >= took_s * (1.0 - ROUNDING) for flow in flows)


def leading(sent: Alone, ops: Iterable[Alone], capacity: Sequence[float]) -> int | None:
    """Of the flows of a send, the one that drains last whichever ops run beside it, while the others slow none of these
    down (None: there is no such flow)."""
    latency_s, took_s, flows = sent
    could = {i for i, flow in enumerate(flows) if flow.left_bytes / flow.cap >= took_s * (1.0 - ROUNDING)}
    for op in ops:
        found = [beside(op, (latency_s, took_s, (flow,)), capacity) for flow in flows]
        speeds = [rate / flow.cap if link >= 0 else 1.0 for flow, (link, rate, _) in zip(flows, found, strict=True)]
        could &= {i for i, speed in enumerate(speeds) if speed <= min(speeds) * (1.0 + ROUNDING * 1e-3)}
        for i, (_, _, slowed) in enumerate(found):
            if slowed < 1.0:
                could &= {i}
    return min(could, default=None)


def beside(taken: Alone, sent: Alone, capacity: Sequence[float]) -> tuple[int, float, float]:
    """Of a task and a send of one flow: (link they contend on or -1, rate of the send there, by how much the task's
    flow is slower there than alone)."""
    for flow in taken[2]:
        for other in sent[2]:
            if flow.link == other.link and flow.cap + other.cap > capacity[flow.link] * (1.0 + ROUNDING):
                rate, left = water_fill((flow.cap, other.cap), capacity[flow.link])
                return flow.link, left, rate / flow.cap
    return -1, 0.0, 1.0


def run_on(
    mine: Sequence[Flow], sent: Sequence[Flow], behind: Sequence[Flow], capacity: Sequence[float],
    now_s: float, until_s: float,
) -> float:  # fmt: skip
    """Let the flows of a lane run to the first drain, or to `until_s`; the time that is then.

    mine: of its op, sent: of its send, behind: of what gets of a link what these leave; each has at most one flow on a
    link. What drains within rounding drains.
    """
    moving = [(flow, flow.cap) for flow in mine] if mine else []
    if sent:
        for flow in sent:
            rate = flow.cap
            for i, (other, alone_rate) in enumerate(moving):
                if other.link == flow.link:
                    taken, rate = water_fill((alone_rate, rate), capacity[flow.link])
                    moving[i] = other, taken
                    break
            moving.append((flow, rate))
    front = len(moving)
    for flow in behind:
        rate = room = capacity[flow.link]
        for other, taken in moving[:front]:
            if other.link == flow.link:
                room -= taken
        if room > rate * ROUNDING:
            moving.append((flow, room if room < flow.cap else flow.cap))
    next_s = until_s
    for flow, rate in moving:
        drained_s = now_s + flow.left_bytes / rate
        if drained_s < next_s:
            next_s = drained_s
    passed_s = next_s - now_s
    limit_s = passed_s + ROUNDING * 1e-3 * next_s
    for flow, rate in moving:
        left = flow.left_bytes
        flow.left_bytes = 0.0 if left <= limit_s * rate else left - rate * passed_s
    return next_s
