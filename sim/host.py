"""Host memory of a node: optimizer state that lives there, and activations that rest there between their passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.build.profile import StepProfile
from sim.build.stages import StageContent
from sim.cost.offload import DOWN
from sim.cost.state import host_state_bytes
from sim.cost.step import StepCost
from sim.report import Trace


@dataclass(frozen=True, kw_only=True)
class HostNeed:
    """node_bytes: of all devices of a node whose ranks are of the stage that needs most; lane: that stage."""

    node_bytes: float = 0.0
    lane: int = 0


def host_need(step: StepCost, contents: Sequence[Sequence[StageContent]], profile: StepProfile, run: Trace) -> HostNeed:
    """What a node keeps in host memory at the fullest moment of the step; weights, code and data are not counted."""
    away = [[dict(chunk.forward_flows).get(DOWN, 0.0) for chunk in row] for row in profile.chunks]
    state = [0.0] * len(contents)
    for stage, row in enumerate(contents):
        params = step.params_of(row[0])
        for content in row[1:]:
            params = params + step.params_of(content)
        state[stage] = float(host_state_bytes(step.ctx, params))
    resting = held_on_host(run, away) if any(any(row) for row in away) else [0.0] * len(contents)
    need = [a + b for a, b in zip(state, resting, strict=True)]
    lane = int(np.argmax(need))
    return HostNeed(node_bytes=need[lane] * step.cost.cluster.devices_per_node, lane=lane)


def held_on_host(run: Trace, away: Sequence[Sequence[float]]) -> list[float]:
    """Peak bytes per lane; away[lane][chunk]: from a forward to the end of its backward."""
    peaks = []
    for lane, row in enumerate(away):
        ends: dict[tuple[int, int, str], float] = {}
        starts: dict[tuple[int, int, str], float] = {}
        for span in run.spans_of(lane):
            if span.kind in ("forward", "backward"):
                key = (span.micro_batch, span.chunk, span.kind)
                starts[key] = min(starts.get(key, span.start_s), span.start_s)
                ends[key] = max(ends.get(key, span.end_s), span.end_s)
        moves = [(at, 1, row[chunk]) for (_, chunk, kind), at in starts.items() if kind == "forward"]
        moves += [(at, 0, -row[chunk]) for (_, chunk, kind), at in ends.items() if kind == "backward"]
        held = peak = 0.0
        for _, _, size in sorted(moves):
            held += size
            peak = max(peak, held)
        peaks.append(peak)
    return peaks
