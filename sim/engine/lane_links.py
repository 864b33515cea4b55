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


def rates(
    mine: Sequence[Flow], sent: Sequence[Flow], behind: Sequence[Flow], capacity: Sequence[float]
) -> list[tuple[Flow, float]]:
    """Rates of the flows of a lane's op, of its send, and of what gets of a link what these leave; each has at most
    one flow on a link."""
    if not mine and not sent:
        return [(flow, flow.cap) for flow in behind]
    out = [(flow, flow.cap) for flow in mine]
    used = {flow.link: flow.cap for flow, _ in out}
    for flow in sent:
        before = used.get(flow.link)
        rate = flow.cap
        if before is not None:
            both = water_fill((before, rate), capacity[flow.link])
            at = next(i for i, (other, _) in enumerate(out) if other.link == flow.link)
            out[at] = out[at][0], both[0]
            used[flow.link], rate = both
        used[flow.link] = used.get(flow.link, 0.0) + rate
        out.append((flow, rate))
    for flow in behind:
        rate = flow.cap
        if flow.link in used:
            room = capacity[flow.link] - used[flow.link]
            rate = 0.0 if room <= capacity[flow.link] * ROUNDING else min(rate, room)
        out.append((flow, rate))
    return out


def run_on(moving: Iterable[tuple[Flow, float]], now_s: float, until_s: float) -> float:
    """Let flows run at their rates to the first drain, or to `until_s`; the time that is then. What drains within
    rounding drains."""
    lasting = [(flow, rate, flow.left_bytes / rate) for flow, rate in moving if rate > 0.0]
    next_s = until_s
    for _, _, left_s in lasting:
        if now_s + left_s < next_s:
            next_s = now_s + left_s
    limit_s = next_s - now_s + ROUNDING * 1e-3 * next_s
    for flow, rate, left_s in lasting:
        flow.left_bytes = 0.0 if left_s <= limit_s else flow.left_bytes - rate * (next_s - now_s)
    return next_s
