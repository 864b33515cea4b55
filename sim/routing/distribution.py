"""A step and its hottest rank's memory as distributions over routing noise.

Step time and memory are taken as piecewise linear in max_over_mean, through the few points at which `evaluate` was
asked; noise is worked out, not drawn:

- time: x = mean over the micro-batches and layers of a step of the hottest rank's load over the mean; each is the
  maximum of `sim.routing.expected`, their mean normal (many terms), and the step waits for the slowest of the `edp`
  expert-parallel groups;
- memory: x = a rank's load over the mean, summed over the layers of its stage and the micro-batches it holds at once;
  normal per rank, and the fullest of all ranks, groups and windows of micro-batches counts. The same rank is
  rarely the hottest in every layer, so that this lies below the mean over layers of the hottest rank;
- drift: both are averaged over drawn steps of the drifting popularity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from sim.routing.curve import padding_rows, rank_rows, steps_of
from sim.routing.expected import chance_below, hottest, quantile
from sim.routing.loads import ExpertLoads
from sim.routing.record import Routing

Floats = NDArray[np.float64]
# max_over_mean -> (seconds of the step, bytes of the fullest rank)
Evaluate = Callable[[float], tuple[float, float]]

LEVELS = (0.1, 0.5, 0.9, 0.99)
LIMIT_STEPS = 40  # of the bisection for the load that fills a device
REACH = 12.0  # standard deviations that quantiles are searched in


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What noise averages over: ep ranks, groups (edp) of them, tokens of a group per micro-batch, micro-batches of a
    step, MoE layers of a stage, micro-batches whose activations a rank holds at once; capacity of experts, if any."""

    ep: int
    groups: int = 1
    tokens: float
    micro_batches: int
    stage_layers: int
    held_micro_batches: int = 1
    capacity_factor: float | None = None

    def __post_init__(self) -> None:
        names = ("ep", "groups", "tokens", "micro_batches", "stage_layers", "held_micro_batches")
        problems = [f"{name} = {getattr(self, name)}: give at least 1" for name in names if getattr(self, name) < 1]
        if problems:
            raise UserError(problems, where="layout of routing noise")


@dataclass(frozen=True, kw_only=True)
class StepDistribution:
    """Quantiles of the step (seconds) and chance that the fullest rank runs out of memory during a step.

    time_over_mean, memory_over_mean: (p10, p50, p90, p99) of the loads that drive them. bytes_*: of the fullest rank.
    """

    p10: float
    p50: float
    p90: float
    p99: float
    oom_probability: float
    bytes_p50: float
    bytes_p99: float
    time_over_mean: tuple[float, float, float, float]
    memory_over_mean: tuple[float, float, float, float]


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
    unit = loads.top_k * tokens / ep
    most, variance = hottest(*rank_rows(loads, ep, tokens, capacity_factor))
    return (most + padding_rows(loads, ep)) / unit, variance / unit**2


@dataclass(frozen=True, kw_only=True, eq=False)
class _Moments:
    """Loads over the mean at one popularity: mean and variance of the step's, mean and spread of ranks' [any]."""

    time_mean: float
    time_variance: float
    held_mean: Floats
    held_spread: Floats


def _moments(loads: ExpertLoads, layout: Layout) -> _Moments:
    """Time: mean over layers and micro-batches of the hottest rank. Memory: every rank of every stage by itself.

    Layers are cut into stages of `stage_layers`; the last may be shorter.
    """
    most, spread = layer_moments(loads, layout.ep, layout.tokens, layout.capacity_factor)
    mean, variance = rank_rows(loads, layout.ep, layout.tokens, layout.capacity_factor)
    unit = loads.top_k * layout.tokens / layout.ep
    cut = np.arange(0, loads.num_layers, layout.stage_layers)
    layers = np.diff(np.r_[cut, loads.num_layers])[:, None]
    # here each rank is looked at alone, its rows among all the others' (the fixed sum is back in)
    own = variance * (1.0 - variance / np.maximum(variance.sum(axis=1, keepdims=True), 1e-300))
    noise = np.add.reduceat(own, cut, axis=0) / (layers * unit) ** 2 / layout.held_micro_batches
    held = np.add.reduceat(mean, cut, axis=0) / layers / unit + padding_rows(loads, layout.ep) / unit
    return _Moments(
        time_mean=float(most.mean()), time_variance=float(spread.mean()) / layout.micro_batches / loads.num_layers,
        held_mean=held.ravel(), held_spread=np.sqrt(noise).ravel(),
    )  # fmt: skip


def distribution(
    routing: Routing, layout: Layout, evaluate: Evaluate, *, capacity_bytes: float,
    points: tuple[float, ...] = (), memory_points: tuple[float, ...] = (),
) -> StepDistribution:  # fmt: skip
    """Quantiles of the step and of the fullest rank's bytes, and the chance of running out of memory.

    evaluate is asked at `points` (default: 1 and the expected max_over_mean), nothing else costs a
    simulation. Forced balance and one stated number have no noise: all quantiles are then equal.
    """
    expected = float(routing.max_over_mean_for(layout.ep, layout.tokens, capacity_factor=layout.capacity_factor))
    asked = sorted({*(points or (1.0, expected)), *memory_points})
    answers = [(x, *evaluate(x)) for x in asked]
    seconds = line_through(tuple((x, s) for x, s, _ in answers))
    nbytes = line_through(tuple((x, b) for x, _, b in answers))
    if not routing.loads:
        s, b = seconds(expected), nbytes(expected)
        over = (expected,) * 4
        return StepDistribution(
            p10=s, p50=s, p90=s, p99=s, oom_probability=float(b > capacity_bytes), bytes_p50=b, bytes_p99=b,
            time_over_mean=over, memory_over_mean=over,
        )  # fmt: skip
    found = [_moments(loads, layout) for loads in steps_of(routing.loads[0], routing.seed)]
    level = np.array([[each.time_mean] for each in found])
    spread = np.sqrt(np.array([[each.time_variance] for each in found]))
    held, held_spread = np.stack([e.held_mean for e in found]), np.stack([e.held_spread for e in found])
    copies = layout.groups * max(1.0, layout.micro_batches / layout.held_micro_batches)

    def in_time(x: Floats) -> Floats:
        chance: Floats = chance_below(x[..., None], level, spread, layout.groups).mean(axis=-1)
        return chance

    def in_memory(x: Floats) -> Floats:
        chance: Floats = chance_below(x[..., None], held, held_spread, copies).mean(axis=-1)
        return chance

    times = _levels(in_time, level, spread)
    loads_held = _levels(in_memory, held, held_spread)
    p10, p50, p90, p99 = (seconds(x) for x in times)
    return StepDistribution(
        p10=p10, p50=p50, p90=p90, p99=p99, oom_probability=_overflow(in_memory, nbytes, capacity_bytes, loads_held),
        bytes_p50=nbytes(loads_held[1]), bytes_p99=nbytes(loads_held[3]), time_over_mean=times,
        memory_over_mean=loads_held,
    )  # fmt: skip


def _levels(chance: Callable[[Floats], Floats], mean: Floats, spread: Floats) -> tuple[float, float, float, float]:
    # no quantile of the largest lies below the largest of the lowest
    low = float((mean - REACH * spread).max(axis=-1).min())
    high = float((mean + REACH * spread).max())
    p10, p50, p90, p99 = (float(x) for x in quantile(chance, LEVELS, low, high))
    return p10, p50, p90, p99


def _overflow(
    chance: Callable[[Floats], Floats], nbytes: Callable[[float], float], capacity: float, around: tuple[float, ...]
) -> float:
    """P(bytes > capacity): bytes rise with the load, so one load is the limit."""
    low, high = 0.0, max(4.0 * around[-1], 4.0)
    if nbytes(low) > capacity:
        return 1.0
    limit = high
    if nbytes(high) > capacity:
        limit = _reach(nbytes, capacity, low, high)
    return float(np.clip(1.0 - chance(np.asarray(limit)), 0.0, 1.0))


def _reach(nbytes: Callable[[float], float], capacity: float, low: float, high: float) -> float:
    """The load at which bytes reach the capacity; bisection."""
    for _ in range(LIMIT_STEPS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if nbytes(middle) > capacity else (middle, high)
    return (low + high) / 2.0
