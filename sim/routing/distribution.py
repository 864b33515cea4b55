"""A step and its fullest rank's memory as distributions over routing noise.

Noise is worked out, not drawn:

- time: piecewise linear in x = mean over the micro-batches and layers of a step of the hottest rank's load over the
  mean, through the few points at which `seconds_at` was asked; each load is the maximum of `sim.routing.expected`,
  their mean normal (many terms), and the step waits for the slowest of the `edp` expert-parallel groups;
- memory: what a stage holds is linear in a rank's load summed over the layers of the stage, through the load and bytes
  of the simulated step (`HeldStage`); averaged over the micro-batches held at once the load is normal per rank, and the
  fullest of all stages, ranks, groups and windows of micro-batches counts;
- drift: both are averaged over drawn steps of the drifting popularity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from sim.routing.curve import steps_of
from sim.routing.expected import chance_below, hottest, quantile
from sim.routing.held import rank_loads
from sim.routing.loads import ExpertLoads
from sim.routing.record import Routing

Floats = NDArray[np.float64]
SecondsAt = Callable[[float], float]  # max_over_mean -> seconds of the step

LEVELS = (0.1, 0.5, 0.9, 0.99)
REACH = 12.0  # standard deviations that quantiles are searched in


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What noise averages over: ep ranks, groups (edp) of them, tokens of a group per micro-batch, micro-batches of a
    step; capacity of experts, if any."""

    ep: int
    groups: int = 1
    tokens: float
    micro_batches: int
    capacity_factor: float | None = None

    def __post_init__(self) -> None:
        names = ("ep", "groups", "tokens", "micro_batches")
        problems = [f"{name} = {getattr(self, name)}: give at least 1" for name in names if getattr(self, name) < 1]
        if problems:
            raise UserError(problems, where="layout of routing noise")


@dataclass(frozen=True, kw_only=True)
class HeldStage:
    """Memory of one pipeline stage of a simulated step, and what of it moves with routing.

    layers: its rows of the popularity. load: rows over the mean that its fullest rank holds over them, in the simulated
    step. peak_bytes: its peak there; routed_bytes: the part of it in proportion to the load. micro_batches: whose
    activations it holds at the peak.
    """

    layers: tuple[int, ...]
    load: float
    peak_bytes: float
    routed_bytes: float
    micro_batches: float = 1.0


@dataclass(frozen=True, kw_only=True)
class StepDistribution:
    """Quantiles of the step (seconds) and chance that the fullest rank runs out of memory during a step.

    time_over_mean: (p10, p50, p90, p99) of the load that drives it. bytes_*: of the fullest rank.
    """

    p10: float
    p50: float
    p90: float
    p99: float
    oom_probability: float
    bytes_p10: float
    bytes_p50: float
    bytes_p90: float
    bytes_p99: float
    time_over_mean: tuple[float, float, float, float]


def line_through(points: tuple[tuple[float, float], ...]) -> Callable[[float], float]:
    """Piecewise linear function through (x, y), its end pieces drawn on beyond the ends."""
    x, y = (np.asarray(column, float) for column in zip(*sorted(points), strict=True))

    def at(value: float) -> float:
        if len(x) == 1:
            return float(y[0])
        i = int(np.clip(np.searchsorted(x, value) - 1, 0, len(x) - 2))
        return float(y[i] + (y[i + 1] - y[i]) * (value - x[i]) / (x[i + 1] - x[i]))

    return at


@lru_cache(maxsize=32)
def layer_moments(
    loads: ExpertLoads, ep: int, tokens: float, capacity_factor: float | None = None
) -> tuple[Floats, Floats]:
    """Mean and variance [layer] of the hottest rank's rows over the mean sent, in one micro-batch; with padding."""
    return hottest(*rank_loads(loads, ep, tokens, capacity_factor))


def distribution(
    routing: Routing, layout: Layout, seconds_at: SecondsAt, stages: Sequence[HeldStage], *, capacity_bytes: float,
    points: tuple[float, ...] = (),
) -> StepDistribution:  # fmt: skip
    """Quantiles of the step and of the fullest rank's bytes, and the chance of running out of memory.

    seconds_at is asked at `points` (default: 1 and the expected max_over_mean), nothing else costs a
    simulation. Forced balance and one stated number have no noise: all quantiles are then equal.
    """
    expected = float(routing.max_over_mean_for(layout.ep, layout.tokens, capacity_factor=layout.capacity_factor))
    seconds = line_through(tuple((x, seconds_at(x)) for x in sorted({*(points or (1.0, expected))})))
    if not routing.loads:
        s, b = seconds(expected), max(stage.peak_bytes for stage in stages)
        return StepDistribution(
            p10=s, p50=s, p90=s, p99=s, oom_probability=float(b > capacity_bytes), bytes_p10=b, bytes_p50=b,
            bytes_p90=b, bytes_p99=b, time_over_mean=(expected,) * 4,
        )  # fmt: skip
    steps = steps_of(routing.loads[0], routing.seed)
    times = _time_levels(steps, layout)
    held = [_held_bytes(step, layout, stages) for step in steps]
    nbytes, spread = np.stack([mean for mean, _ in held]), np.stack([noise for _, noise in held])
    ranks = [layout.ep if stage.layers else 1 for stage in stages]
    windows = [layout.groups * max(1.0, layout.micro_batches / stage.micro_batches) for stage in stages]
    copies = np.repeat(windows, ranks)

    def in_memory(x: Floats) -> Floats:
        chance: Floats = chance_below(x[..., None], nbytes, spread, copies).mean(axis=-1)
        return chance

    p10, p50, p90, p99 = (seconds(x) for x in times)
    b10, b50, b90, b99 = _levels(in_memory, nbytes, spread)
    return StepDistribution(
        p10=p10, p50=p50, p90=p90, p99=p99, bytes_p10=b10, bytes_p50=b50, bytes_p90=b90, bytes_p99=b99,
        oom_probability=float(np.clip(1.0 - in_memory(np.asarray(capacity_bytes)), 0.0, 1.0)), time_over_mean=times,
    )  # fmt: skip


def _time_levels(steps: Sequence[ExpertLoads], layout: Layout) -> tuple[float, float, float, float]:
    """Quantiles of the mean over layers and micro-batches of the hottest rank, slowest group."""
    found = [layer_moments(step, layout.ep, layout.tokens, layout.capacity_factor) for step in steps]
    level = np.array([[most.mean()] for most, _ in found])
    terms = layout.micro_batches * steps[0].num_layers
    spread = np.sqrt(np.array([[variance.mean() / terms] for _, variance in found]))

    def in_time(x: Floats) -> Floats:
        chance: Floats = chance_below(x[..., None], level, spread, layout.groups).mean(axis=-1)
        return chance

    return _levels(in_time, level, spread)


def _held_bytes(loads: ExpertLoads, layout: Layout, stages: Sequence[HeldStage]) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the bytes of every rank of every stage, one stage after the other, at one
    popularity; a stage without routed layers is one rank."""
    mean, variance = rank_loads(loads, layout.ep, layout.tokens, layout.capacity_factor)
    # here each rank is looked at alone, its rows among all the others' (the fixed sum is back in)
    own = variance * (1.0 - variance / np.maximum(variance.sum(axis=1, keepdims=True), 1e-300))
    nbytes, spread = [], []
    for stage in stages:
        if not stage.layers:
            nbytes.append([stage.peak_bytes])
            spread.append([0.0])
            continue
        rows, per_load = list(stage.layers), stage.routed_bytes / stage.load
        nbytes.append(stage.peak_bytes + per_load * (mean[rows].sum(axis=0) - stage.load))
        spread.append(per_load * np.sqrt(own[rows].sum(axis=0) / stage.micro_batches))
    return np.concatenate(nbytes), np.concatenate(spread)


def _levels(chance: Callable[[Floats], Floats], mean: Floats, spread: Floats) -> tuple[float, float, float, float]:
    # no quantile of the largest lies below the largest of the lowest
    low = float((mean - REACH * spread).max(axis=-1).min())
    high = float((mean + REACH * spread).max())
    p10, p50, p90, p99 = (float(x) for x in quantile(chance, LEVELS, low, high))
    return p10, p50, p90, p99
