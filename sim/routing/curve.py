"""Load curves: the hottest rank over the mean by expert-parallel size and tokens, layer by layer.

Drift, capacity and padding are in them, so that whatever prices a layer at its load sees all three:

- drift: means over drawn steps of the drifting popularity (`steps_of`);
- capacity: every rank lets at most ceil(factor x tokens x top_k / experts) of its own tokens go to one expert, as
  Megatron-LM does; min(load, capacity) of a normal load has closed moments, and the ranks' add up;
- padding: half a tile per local expert.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from sim.routing.expected import hottest
from sim.routing.loads import ExpertLoads, contiguous, freed, rank_moments, summed
from sim.routing.popularity import Drift, drifted, inclusion, weights_of

Floats = NDArray[np.float64]
Table = tuple[tuple[float, ...], ...]

# Tokens of an expert-parallel group that curves are worked out for; noise falls with their root.
TOKEN_GRID = tuple(float(8**i) for i in range(3, 8))
DRIFT_STEPS = 16
CURVE_STEPS = 4  # of those that curves work out with noise; the rest as `_drift_left` says


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadCurve:
    """Expected load of the hottest rank over the mean rank, and of its fullest expert over its mean expert.

    rank_over_mean[i][j], expert_over_mean[i][j]: at eps[i] ranks and TOKEN_GRID[j] tokens of the whole group in one
    micro-batch, averaged over layers (each waits for its own hottest rank). Loads are means over micro-batches.
    rank_by_layer, dropped_by_layer [ep, tokens, layer]: the same of every layer, and the share of token-choices that a
    capacity drops (0 without one). Loads count rows over the mean of the rows sent, dropped ones included.
    """

    num_experts: int
    top_k: int
    eps: tuple[int, ...]
    rank_over_mean: Table
    expert_over_mean: Table
    rank_by_layer: Floats
    dropped_by_layer: Floats

    def at(self, table: Any, ep: Any, tokens: Any) -> Any:
        """`table` at ep ranks and `tokens` (None: endless), numbers or columns of the same length.

        Linear in log(ep) and in 1 / sqrt(tokens); beyond either end the nearest. A table with layers gives
        [..., layer].
        """
        if tokens is None:
            tokens = TOKEN_GRID[-1]
        x, counts = np.broadcast_arrays(np.log2(np.asarray(ep, float)), np.asarray(tokens, float))
        grid = np.asarray(table)[:, ::-1]
        first, right = _between(x, np.log2(np.asarray(self.eps, float)))
        low, up = between_tokens(counts)
        if grid.ndim == 3:
            right, up = np.asarray(right)[..., None], np.asarray(up)[..., None]
        after = np.minimum(first + 1, grid.shape[0] - 1)
        value = (1 - right) * ((1 - up) * grid[first, low] + up * grid[first, low + 1])
        value = value + right * ((1 - up) * grid[after, low] + up * grid[after, low + 1])
        return float(value) if np.ndim(value) == 0 else value


def between_tokens(tokens: Any) -> tuple[Any, Any]:
    """(index, share): tokens lie that share of the way, linear in 1 / sqrt, from one of `TOKEN_GRID` (from many to few)
    to the next."""
    return _between(1.0 / np.sqrt(np.asarray(tokens, float)), 1.0 / np.sqrt(np.asarray(TOKEN_GRID[::-1])))


def _between(x: Any, at: Floats) -> tuple[Any, Any]:
    """(index, share): x lies that share of the way from at[index] to the next."""
    if len(at) == 1:
        return np.zeros(np.shape(x), dtype=np.int64), np.zeros(np.shape(x))
    index = np.clip(np.searchsorted(at, x, side="right") - 1, 0, len(at) - 2)
    return index, np.clip((x - at[index]) / (at[index + 1] - at[index]), 0.0, 1.0)


def divisors(n: int) -> tuple[int, ...]:
    """All numbers that divide n, rising."""
    return tuple(i for i in range(1, n + 1) if n % i == 0)


@lru_cache(maxsize=16)
def steps_of(loads: ExpertLoads, seed: int, count: int = DRIFT_STEPS) -> tuple[ExpertLoads, ...]:
    """Popularity at steps of a long run under its drift; itself where it does not drift.

    Steps so far apart that they are independent, as a whole run sees them, whatever the rate. Fewer are the first ones.
    """
    if loads.drift.spread == 0.0:
        return (loads,)
    apart = replace(loads.drift, rate=1.0)
    weights = drifted(weights_of(loads.chance), apart, steps=count, seed=seed)
    still = replace(loads, joint=None, transitions=None, drift=Drift())
    return tuple(replace(still, chance=inclusion(w, loads.top_k)) for w in weights)


def curve(
    loads: ExpertLoads, *, seed: int = 0, capacity_factor: float | None = None, eps: tuple[int, ...] = ()
) -> LoadCurve:
    """The load curve of a popularity under contiguous placement, worked out once. seed: of the drift; eps: sizes it is
    worked out at (default: all that divide the experts).

    Never falls with ep: the hottest of finer ranks holds at least the mean of the hottest coarser one. (Sizes
    that do not divide each other could break that by a little; the running maximum is taken.)
    """
    return _curve(loads, seed, capacity_factor, eps or divisors(loads.num_experts))


@lru_cache(maxsize=32)
def _curve(loads: ExpertLoads, seed: int, capacity_factor: float | None, eps: tuple[int, ...]) -> LoadCurve:
    steps = steps_of(loads, seed, CURVE_STEPS)
    shape = (len(steps), len(eps), len(TOKEN_GRID))
    ranks, dropped = (np.zeros((*shape, loads.num_layers)) for _ in range(2))
    experts = np.zeros(shape)
    for i, step in enumerate(steps):
        for j, ep in enumerate(eps):
            for k, n in enumerate(TOKEN_GRID):
                ranks[i, j, k], dropped[i, j, k], experts[i, j, k] = _cell(step, ep, n, capacity_factor)
    layered, lost, fullest = ranks.mean(axis=0), dropped.mean(axis=0), experts.mean(axis=0)
    layered = layered + _drift_left(loads, seed, eps, capacity_factor)
    table = layered.mean(axis=-1)
    if capacity_factor is None:
        table = np.maximum(np.maximum.accumulate(table, axis=0), 1.0)
        fullest = np.maximum(fullest, 1.0)
    if not loads.layers_differ:
        layered = np.zeros_like(layered)
    layered = layered + (table - layered.mean(axis=-1))[..., None]
    return LoadCurve(
        num_experts=loads.num_experts, top_k=loads.top_k, eps=eps,
        rank_over_mean=tuple(map(tuple, table.tolist())), expert_over_mean=tuple(map(tuple, fullest.tolist())),
        rank_by_layer=layered, dropped_by_layer=lost,
    )  # fmt: skip


@lru_cache(maxsize=64)
def rank_rows(
    loads: ExpertLoads, ep: int, tokens: float, capacity_factor: float | None = None
) -> tuple[Floats, Floats]:
    """Mean and variance [layer, rank] of the rows that ranks work on, of `tokens` tokens of the group; no padding.

    Variances before the fixed sum is taken off (`sim.routing.loads`). Under a capacity experts are taken one by one:
    neither groups nor joint choices are followed.
    """
    if capacity_factor is None:
        mean, variance = rank_moments(loads, contiguous(loads, ep), ep)
        return mean * tokens, variance * tokens
    placement = contiguous(loads, ep)
    mean, variance = kept_rows(loads, ep, tokens, capacity_factor)
    return summed(mean, placement, ep), summed(variance, placement, ep)


def kept_rows(loads: ExpertLoads, ep: int, tokens: float, factor: float) -> tuple[Floats, Floats]:
    """Mean and variance [layer, expert] of the rows kept under a capacity that each of `ep` ranks applies to its own.

    E[min(X, C)] and E[min(X, C)^2] of a normal X (by parts: Johnson, Kotz, Balakrishnan, Continuous Univariate
    Distributions, chapter 13, censored normal).
    """
    own = tokens / ep
    limit = np.ceil(factor * own * loads.top_k / loads.num_experts)
    mean = loads.chance * own
    spread = np.sqrt(freed(loads.chance * (1.0 - loads.chance)) * loads.clumping * own) + 1e-12 * own
    z = (limit - mean) / spread
    below, density = ndtr(z), np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    first = mean * below - spread * density + limit * (1.0 - below)
    second = (mean**2 + spread**2) * below - spread * (mean + limit) * density + limit**2 * (1.0 - below)
    return np.clip(first, 0.0, mean) * ep, np.maximum(second - first**2, 0.0) * ep


def padding_rows(loads: ExpertLoads, ep: int) -> float:
    """Rows that padding adds to a rank: half a tile per local expert on average, more relative to few rows."""
    return (loads.pad_to - 1) / 2.0 * loads.num_experts / ep


def _drift_left(loads: ExpertLoads, seed: int, eps: tuple[int, ...], factor: float | None) -> Any:
    """What the hottest rank's mean load [ep, tokens, layer] is over all drift steps more than over the first few.

    Added to the few that are worked out with noise (a control variate), as popularity varies more from step to step
    than its noise does. Capacities, which cut the largest loads off, go without.
    """
    steps = steps_of(loads, seed)
    if len(steps) == 1 or factor is not None:
        return 0.0
    chance = np.stack([step.chance for step in steps])
    hottest_mean = np.stack(
        [chance.reshape(*chance.shape[:2], ep, -1).sum(axis=-1).max(axis=-1) * ep / loads.top_k for ep in eps], axis=1
    )
    left: Floats = hottest_mean.mean(axis=0) - hottest_mean[:CURVE_STEPS].mean(axis=0)
    return left[:, None, :]


def _cell(loads: ExpertLoads, ep: int, tokens: float, factor: float | None) -> tuple[Floats, Any, float]:
    """(hottest rank over mean [layer], dropped share [layer], fullest expert of the hottest rank over its mean)."""
    mean, variance = rank_rows.__wrapped__(loads, ep, tokens, factor)
    most, _ = hottest(mean, variance)
    sent = loads.top_k * tokens
    over = (most + padding_rows(loads, ep)) * ep / sent
    dropped = 0.0 if factor is None else 1.0 - mean.sum(axis=-1) / sent
    return over, dropped, _fullest(loads, mean, ep, tokens, factor)


def _fullest(loads: ExpertLoads, rank_mean: Floats, ep: int, tokens: float, factor: float | None) -> float:
    """Fullest expert of the rank with the most popular experts over that rank's mean expert."""
    if factor is None:
        mean, variance = loads.chance * tokens, None
    else:
        mean, variance = kept_rows(loads, ep, tokens, factor)
    hot = np.arange(loads.num_layers), rank_mean.argmax(axis=1)
    chosen = mean.reshape(loads.num_layers, ep, -1)[hot]
    if variance is None:
        chance = chosen / tokens
        spread = freed(chance * (1.0 - chance)) * loads.clumping * tokens
    else:
        spread = variance.reshape(loads.num_layers, ep, -1)[hot]
    most, _ = hottest(chosen, spread)
    return float((most / np.maximum(chosen.mean(axis=1), 1e-300)).mean())
