"""The time of a pipeline from the durations of its chunks, many steps at once and without the event engine.

A pipeline without contention is a longest path: every forward and backward starts when its lane is free and what it
needs has arrived. Durations may have leading axes (drawn steps, replicas), so one walk through the schedule times
them all. Links shared by several streams are taken at their mean use; differences between walks are used, not totals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sim.build.order import Step, source_of, target_of
from sim.build.profile import SendProfile, StageTail, StepProfile
from sim.build.schedule import lane_order, repeats_after

FAIR = 0.5  # of a link, for each of two streams that both want more

Amounts = tuple[tuple[str, float], ...]


def pipeline_s(profile: StepProfile, stretch: Any = None) -> Any:
    """Seconds of a step: [...] for stretch[..., stage, chunk, micro-batch, way], a number without.

    stretch: durations over those of the profile, of a forward, a backward, and of either when paired (`StepProfile`).
    """
    p, m = profile, profile.num_micro_batches
    later: Callable[[Any, Any], Any] = max if stretch is None else np.maximum
    group = repeats_after(p.schedule, pp=p.pp, vpp=p.vpp, num_micro_batches=m, group=p.group)
    orders = [
        lane_order(p.schedule, pp=p.pp, vpp=p.vpp, stage=stage, num_micro_batches=m, group=group)
        for stage in range(p.pp)
    ]
    sends = p.p2p if p.pp > 1 else ()
    hops = {
        (kind, stage, chunk): _hop_s(p, stage, p.send_of(kind, stage, chunk)) if sends else (0.0, 0.0)
        for kind in ("F", "B") for stage in range(p.pp) for chunk in range(p.vpp)
    }  # fmt: skip
    free: list[Any] = [_gathered_s(tail, p) for tail in p.tails]
    ends: dict[tuple[str, int, int, int], Any] = {}
    first: list[Any] = [None] * p.pp
    place = [0] * p.pp
    left = sum(map(len, orders))
    while left:
        before = left
        for stage, order in enumerate(orders):
            while place[stage] < len(order):
                steps = order[place[stage] : place[stage] + 1 + order[place[stage]].joint]
                keys = [key for step in steps if (key := _needed(p, stage, step)) is not None]
                if any(key not in ends for key in keys):
                    break
                end = free[stage]
                for key in keys:
                    end = later(end, ends[key])
                if first[stage] is None:
                    first[stage] = end
                for step in steps:
                    end = end + _duration_s(p, stage, step, stretch)
                free[stage] = end
                for step in steps:
                    to_next, held = (0.0, 0.0)
                    if step.kind != "W" and _leaves(p, stage, step):
                        to_next, held = hops[step.kind, stage, step.chunk]
                    ends[step.kind, stage, step.chunk, step.micro_batch] = end + to_next
                    free[stage] = free[stage] + held
                place[stage] += len(steps)
                left -= len(steps)
        assert left < before, "a schedule whose steps wait for each other"
    total: Any = None
    for stage in range(p.pp):
        end = free[stage] + _tail_s(p.tails[stage], p, stage=stage)
        if p.post_validation:
            end = end - later(0.0, first[stage] - _gather_s(p.tails[stage], p))
        total = end if total is None else later(total, end)
    return total


def _needed(p: StepProfile, stage: int, step: Step) -> tuple[str, int, int, int] | None:
    source = source_of(step.kind, stage, step.chunk, pp=p.pp, vpp=p.vpp, placed=p.placed)
    return None if source is None else (step.kind, *source, step.micro_batch)


def _leaves(p: StepProfile, stage: int, step: Step) -> bool:
    """Whether a step's output goes over a boundary as its stage's; the turn of a V stays on its stage."""
    if p.placed == "loop":
        return True
    target = target_of(step.kind, stage, step.chunk, pp=p.pp, vpp=p.vpp, placed=p.placed)
    return target is not None and target[0] != stage


def _duration_s(p: StepProfile, stage: int, step: Step, stretch: Any) -> Any:
    cost = p.chunks[stage][step.chunk]
    seconds = cost.step_s(step)
    if stretch is None:
        return seconds
    way = 2 if step.paired and cost.paired_s is not None else 0 if step.kind == "F" else 1
    return seconds * stretch[..., stage, step.chunk, step.micro_batch, way]


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
    whole = _gather_s(tail, p)
    return whole / (p.vpp * tail.buckets) if tail.overlap_param else whole


def _gather_s(tail: StageTail, p: StepProfile) -> float:
    return tail.param_latency_s + _alone_s(tail.param_flows, p.links)


def _tail_s(tail: StageTail, p: StepProfile, *, stage: int) -> float:
    """Seconds a stage takes after its last backward."""
    whole = tail.grad_latency_s + _alone_s(tail.grad_flows, p.links)
    left = whole
    if tail.overlap_grad:
        piece, cost = whole / (p.vpp * tail.buckets), p.chunks[stage][0]
        left = max(piece, tail.buckets * piece - cost.backward_s * (tail.buckets - 1) / tail.buckets)
    return left + tail.optimizer_s + tail.fixed_s + tail.taken_s
