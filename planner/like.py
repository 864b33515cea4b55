"""Bounds of a plan from the event run of the same layout under other settings of recompute and offload.

Both runs have the same tasks in the same order; only what they take differs. Without contention on links the end of a
step is U(d) = max over paths of the sum of the durations d on them: it is no longer than the event run (links that are
shared never make a task shorter), grows with every duration, is convex, and U(x d) = x U(d). So a run of d bounds that
of e: let every pass of e take at least x times what it takes in d. Then

    U(e) >= min(1, x) U(d) - (what the ends of e are shorter by; a path passes those of one stage),
    U(e) >= U(d) + (x - 1) s - (likewise)     for x >= 1,

where s = (U(d) - U(y d')) / (1 - y) is the secant of passes alone scaled by y < 1, no more than their slope at 1. Where
the passes of e take what those of d take, so does its event run, but for the ends: what goes to the host has links of
its own, which one pass at a time uses no faster than it may, and the optimizer is the last that a stage does.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sim.build.alike import simulate_once
from sim.build.profile import ChunkProfile, StepProfile

Floats = NDArray[np.float64]
SCALED = 0.98  # y of the module's text
ROUNDING = 1e-10  # relative: what adding floats may differ by; a plan faster by no more counts as equal
_SENDS, _ENDS = "#sends", "#ends"


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """What the event run of a plan adds up. passes: seconds of every kind of pass; ends [kinds, stages]: of what
    ends the step on each stage and is not the same for all of a layout."""

    passes: Floats
    ends: Floats


class _Apart:
    """A run without contention. step_s: of the event run, where there was one; slope: s of the module's text."""

    def __init__(self, pieces: Pieces, profile: StepProfile) -> None:
        self.pieces, self._alone, self.runs = pieces, uncontended(profile), 1
        self.apart_s = simulate_once(self._alone).makespan_s
        self.step_s: float | None = None

    @cached_property
    def slope(self) -> float:
        self.runs += 1
        return max(0.0, (self.apart_s - simulate_once(_shorter(self._alone, SCALED)).makespan_s) / (1.0 - SCALED))

    def bound_s(self, now: Pieces, enough_s: float) -> float:
        then = self.pieces
        if then.passes.shape != now.passes.shape or then.ends.shape != now.ends.shape:
            return 0.0
        shorter = np.maximum(0.0, then.ends - now.ends).max(axis=1)
        if self.step_s is not None and np.allclose(then.passes, now.passes, rtol=ROUNDING, atol=0.0):
            return (self.step_s - float(shorter.sum())) * (1.0 - ROUNDING)
        some = then.passes > 0.0
        x = float(np.min(now.passes[some] / then.passes[some], initial=np.inf))
        if not np.isfinite(x):
            return 0.0
        kept = min(1.0, x)
        bound = kept * self.apart_s - float(np.maximum(0.0, kept * then.ends - now.ends).max(axis=1).sum())
        # the slope is no more than the whole: where that is not enough, it is not worth a run
        if bound < enough_s <= x * self.apart_s - float(shorter.sum()):
            bound = max(bound, self.apart_s + (x - 1.0) * self.slope - float(shorter.sum()))
        return bound * (1.0 - ROUNDING)


class LikeRuns:
    """Runs by layout, and what they say of other settings of it."""

    def __init__(self) -> None:
        self._runs: dict[Hashable, list[_Apart]] = {}

    @property
    def simulated(self) -> int:
        """Runs so far."""
        return sum(each.runs for runs in self._runs.values() for each in runs)

    def knows(self, layout: Hashable) -> bool:
        """Whether it was asked about before."""
        return layout in self._runs

    def bound_s(self, layout: Hashable, pieces: Pieces, enough_s: float) -> float:
        """Seconds that no event run of this layout with these pieces goes below; 0 where none was run. What reaches
        enough_s need not be made better."""
        found = 0.0
        for run in self._runs.get(layout, []):
            found = max(found, run.bound_s(pieces, enough_s))
            if found >= enough_s:
                break
        return found

    def apart_s(self, layout: Hashable, pieces: Pieces, profile: StepProfile) -> float:
        """Seconds of a step where nobody shares a link; 0 where steps overlap, or passes differ from one another, which
        are no such sums."""
        known = self._runs.setdefault(layout, [])
        if profile.post_validation or profile.stretch is not None:
            return 0.0
        run = _Apart(pieces, profile)
        known.append(run)
        return run.apart_s * (1.0 - ROUNDING)

    def ran(self, layout: Hashable, pieces: Pieces, step_s: float) -> None:
        """The event run of what was run without contention before."""
        for run in self._runs.get(layout, []):
            if run.pieces is pieces:
                run.step_s = step_s


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
