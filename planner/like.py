"""Bounds of a plan from the event run of the same layout under other settings of recompute and offload.

Both runs have the same tasks in the same order; only what they take differs. Without contention on links the end of a
step is U(d) = max over paths of the sum of the durations d on them: it is no longer than the event run (links that are
shared never make a task shorter), grows with every duration, is convex, and U(x d) = x U(d). So a run of d bounds that
of e: let every pass of e take at least x times what it takes in d. Then

    U(e) >= min(1, x) U(d) - (what the ends of e are shorter by; a path passes those of one stage),
    U(e) >= U(d) + (x - 1) s     for x >= 1, and for x <= y < 1,

where s = (U(d) - U(y d')) / (1 - y) is the secant of passes alone scaled by y. Where all of e takes what d takes, its
event run is that of d: what goes to the host has links of its own, which one pass at a time uses no faster than it
may.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sim.build.alike import simulate_once
from sim.build.profile import ChunkProfile, StepProfile

Floats = NDArray[np.float64]
SCALED = 0.98  # y of the module's text: near 1 the secant is the slope, further away it holds for more plans
ROUNDING = 1e-9
_SENDS, _ENDS = "#sends", "#ends"


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """What the event run of a plan adds up. passes: seconds of every kind of pass; ends [2, stages]: optimizer and what
    is fixed at the end of the step."""

    passes: Floats
    ends: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    pieces: Pieces
    step_s: float
    apart_s: float
    slope: float


class LikeRuns:
    """Event runs by layout, and what they say of other settings of it."""

    def __init__(self) -> None:
        self._runs: dict[Hashable, list[_Run]] = {}
        self.simulated = 0

    def add(self, layout: Hashable, pieces: Pieces, profile: StepProfile, step_s: float) -> None:
        """An event run; two more of it without contention, one with shorter passes."""
        if profile.post_validation or profile.stretch is not None:
            return  # steps that overlap, and passes that differ from one another, are no such sums
        alone = uncontended(profile)
        apart_s = simulate_once(alone).makespan_s
        slope = (apart_s - simulate_once(_shorter(alone, SCALED)).makespan_s) / (1.0 - SCALED)
        self.simulated += 2
        run = _Run(pieces=pieces, step_s=step_s, apart_s=apart_s, slope=max(0.0, slope))
        self._runs.setdefault(layout, []).append(run)

    def knows(self, layout: Hashable) -> bool:
        """Whether there was an event run of it."""
        return layout in self._runs

    def bound_s(self, layout: Hashable, pieces: Pieces) -> float:
        """Seconds that no event run of this layout with these pieces goes below; 0 where no other was run."""
        return max((_bound_s(run, pieces) for run in self._runs.get(layout, [])), default=0.0)


def _bound_s(run: _Run, pieces: Pieces) -> float:
    then, now = run.pieces, pieces
    if then.passes.shape != now.passes.shape or then.ends.shape != now.ends.shape:
        return 0.0
    if np.allclose(then.passes, now.passes, rtol=ROUNDING, atol=0.0) and np.allclose(
        then.ends, now.ends, rtol=ROUNDING, atol=0.0
    ):
        return run.step_s * (1.0 - ROUNDING)
    some = then.passes > 0.0
    x = float(np.min(now.passes[some] / then.passes[some], initial=np.inf))
    if not np.isfinite(x):
        return 0.0
    kept = min(1.0, x)
    shorter = float(np.maximum(0.0, kept * then.ends - now.ends).max(axis=1).sum())
    bound = kept * run.apart_s - shorter
    if x >= 1.0 or x <= SCALED:
        shorter = float(np.maximum(0.0, then.ends - now.ends).max(axis=1).sum())
        bound = max(bound, run.apart_s + (x - 1.0) * run.slope - shorter)
    return bound * (1.0 - ROUNDING)


def ends_of(profile: StepProfile) -> Floats:
    """Seconds [2, stages] of the optimizer and of what is fixed at the end of the step."""
    return np.array([[tail.optimizer_s for tail in profile.tails], [tail.fixed_s for tail in profile.tails]])


def uncontended(profile: StepProfile) -> StepProfile:
    """The same step where nobody shares a link: sends, gradients and parameters have links of their own, passes take
    the time they take alone."""
    p = profile
    links = {name + kind: rate for name, rate in p.links.items() for kind in (_SENDS, _ENDS)}
    return replace(
        p,
        chunks=tuple(tuple(replace(c, forward_flows=(), backward_flows=()) for c in row) for row in p.chunks),
        tails=tuple(
            replace(t, grad_flows=_on(t.grad_flows, _ENDS), param_flows=_on(t.param_flows, _ENDS)) for t in p.tails
        ),
        p2p=tuple(replace(send, flows=_on(send.flows, _SENDS)) for send in p.p2p),
        links=links,
    )


def _on(flows: tuple[tuple[str, float], ...], kind: str) -> tuple[tuple[str, float], ...]:
    return tuple((name + kind, size) for name, size in flows)


def _shorter(profile: StepProfile, by: float) -> StepProfile:
    """The same step with every pass this many times as long."""
    made: Mapping[int, ChunkProfile] = {
        id(chunk): replace(
            chunk, forward_s=chunk.forward_s * by, backward_s=chunk.backward_s * by, wgrad_s=chunk.wgrad_s * by,
            paired_s=None if chunk.paired_s is None else chunk.paired_s * by,
        )
        for row in profile.chunks
        for chunk in row
    }  # fmt: skip
    return replace(profile, chunks=tuple(tuple(made[id(chunk)] for chunk in row) for row in profile.chunks))
