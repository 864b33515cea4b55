"""The time of a pipeline from the durations of its chunks, many steps at once and without the event engine.

A pipeline without contention is a longest path: every forward and backward starts when its lane is free and what it
needs has arrived. Durations may have leading axes (drawn steps, replicas), so one walk through the schedule times
them all. Links shared by several streams are taken at their mean use; differences between walks are used, not totals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sim.build.profile import SendProfile, StageTail, StepProfile
from sim.build.schedule import group_size, lane_order

FAIR = 0.5  # of a link, for each of two streams that both want more

Amounts = tuple[tuple[str, float], ...]


def pipeline_s(profile: StepProfile, stretch: Any = None) -> Any:
    """Seconds of a step: [...] for stretch[..., stage, chunk, micro-batch, way], a number without.

    stretch: durations over those of the profile, of a forward, a backward, and of either when paired (`StepProfile`).
    """
    p, m = profile, profile.num_micro_batches
    later: Callable[[Any, Any], Any] = max if stretch is None else np.maximum
    group = group_size(p.pp, m) if p.vpp > 1 else 1
    orders = [
        lane_order(p.schedule, pp=p.pp, vpp=p.vpp, stage=stage, num_micro_batches=m, group=group)
        for stage in range(p.pp)
    ]
    sends = p.p2p if p.pp > 1 else ()
    hops = {
        (kind, stage): _hop_s(p, stage, p.send_of(kind, stage)) if sends else (0.0, 0.0)
        for kind in ("F", "B") for stage in range(p.pp)
    }  # fmt: skip
    free: list[Any] = [_gathered_s(tail, p) for tail in p.tails]
    ends: dict[tuple[str, int, int, int], Any] = {}
    place = [0] * p.pp
    left = sum(map(len, orders))
    while left:
        before = left
        for stage, order in enumerate(orders):
            while place[stage] < len(order):
                step = order[place[stage]]
                source = source_of(step.kind, stage, step.chunk, pp=p.pp, vpp=p.vpp)
                key = None if source is None else (step.kind, *source, step.micro_batch)
                if key is not None and key not in ends:
                    break
                seconds = _duration_s(p, stage, step, stretch)
                start = free[stage] if key is None else later(free[stage], ends[key])
                end = start + seconds
                ends[step.kind, stage, step.chunk, step.micro_batch] = end + hops[step.kind, stage][0]
                free[stage] = end + hops[step.kind, stage][1]
                place[stage] += 1
                left -= 1
        assert left < before, "a schedule whose steps wait for each other"
    total = free[0] + _tail_s(p.tails[0], p, stage=0)
    for stage in range(1, p.pp):
        total = later(total, free[stage] + _tail_s(p.tails[stage], p, stage=stage))
    return total


def source_of(kind: str, stage: int, chunk: int, *, pp: int, vpp: int) -> tuple[int, int] | None:
    """(stage, chunk) whose output a step needs; None for the first forward and the loss."""
    if kind == "F":
        if stage > 0:
            return stage - 1, chunk
        return (pp - 1, chunk - 1) if chunk > 0 else None
    if stage < pp - 1:
        return stage + 1, chunk
    return (0, chunk + 1) if chunk < vpp - 1 else None


def _duration_s(p: StepProfile, stage: int, step: Any, stretch: Any) -> Any:
    cost = p.chunks[stage][step.chunk]
    forward = step.kind == "F"
    seconds = cost.forward_s if forward else cost.backward_s
    paired = step.paired and cost.paired_s is not None
    if paired:
        seconds *= cost.pair_factor
    if stretch is None:
        return seconds
    return seconds * stretch[..., stage, step.chunk, step.micro_batch, 2 if paired else 0 if forward else 1]


def _hop_s(p: StepProfile, stage: int, send: SendProfile) -> tuple[float, float]:
    """Seconds (from a stage to its neighbour, by which sending holds the stage itself up).

    A send that does not block shares its link with what the stage's next chunk puts there, max-min fairly: the chunk
    keeps its rate up to half of the link, beyond that it is stretched.
    """
    if not p.p2p_overlap:
        whole = send.latency_s + _alone_s(send.flows, p.links)
        return whole, whole
    seconds = sum(c.forward_s + c.backward_s for c in p.chunks[stage])
    moved: dict[str, float] = {}
    for chunk in p.chunks[stage]:
        for link, size in (*chunk.forward_flows, *chunk.backward_flows):
            moved[link] = moved.get(link, 0.0) + size / p.links[link]
    longest, held = 0.0, 0.0
    for link, size in send.flows:
        used = min(1.0, moved.get(link, 0.0) / seconds) if seconds > 0.0 else 0.0
        alone = size / p.links[link] / max(1.0 - used, FAIR)
        longest, held = max(longest, alone), max(held, alone * max(0.0, 1.0 - FAIR / used) if used > FAIR else 0.0)
    return send.latency_s + longest, held


def _alone_s(flows: Amounts, links: Mapping[str, float]) -> float:
    return max((size / links[link] for link, size in flows), default=0.0)


def _gathered_s(tail: StageTail, p: StepProfile) -> float:
    """When a stage's first forward may begin: all parameters are there, or the first piece of them."""
    whole = tail.param_latency_s + _alone_s(tail.param_flows, p.links)
    return whole / (p.vpp * tail.buckets) if tail.overlap_param else whole


def _tail_s(tail: StageTail, p: StepProfile, *, stage: int) -> float:
    """Seconds a stage takes after its last backward."""
    whole = tail.grad_latency_s + _alone_s(tail.grad_flows, p.links)
    left = whole
    if tail.overlap_grad:
        piece, cost = whole / (p.vpp * tail.buckets), p.chunks[stage][0]
        left = max(piece, tail.buckets * piece - cost.backward_s * (tail.buckets - 1) / tail.buckets)
    return left + tail.optimizer_s + tail.fixed_s + tail.taken_s
