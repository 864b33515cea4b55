"""Load that one rank holds over the layers of its pipeline stage: what activations follow.

Time waits for the hottest rank of every layer, whichever that is; memory is one rank's own, and the same rank is rarely
the hottest in every layer. Counted are rows over the mean summed over the layers of a stage, of the rank that has most
of them: the largest of sums (`fullest_load`), never the sum of the largest (`sim.routing.curve`). Where a stage has
several virtual stages, each counts what the stage's fullest rank has of it, so that they add up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.routing.curve import CURVE_STEPS, TOKEN_GRID, between_tokens, padding_rows, rank_rows, steps_of
from sim.routing.expected import hottest, hottest_chances
from sim.routing.loads import ExpertLoads

Floats = NDArray[np.float64]
Rows = tuple[int, ...]


def rank_loads(loads: ExpertLoads, ep: int, tokens: float, factor: float | None = None) -> tuple[Floats, Floats]:
    """Mean, padding included, and variance [layer, rank] of rows over the mean sent in one micro-batch.

    Variances before the fixed sum is taken off (`sim.routing.loads`).
    """
    unit = loads.top_k * tokens / ep
    mean, variance = rank_rows(loads, ep, tokens, factor)
    return (mean + padding_rows(loads, ep)) / unit, variance / unit**2


def fullest_load(
    loads: ExpertLoads, ep: Any, tokens: Any, layers: Rows, *, beside: Rows = (), seed: int = 0,
    factor: float | None = None,
) -> Any:  # fmt: skip
    """Expected rows over the mean, summed over `layers`, of the fullest rank; numbers or columns of ep and tokens.

    layers: rows of the popularity. beside: those of the rest of the pipeline stage; the fullest rank is that of both.
    factor: capacity. Expected over noise and drift; between the token counts of `TOKEN_GRID` as load curves are.
    """
    eps, counts = np.broadcast_arrays(np.asarray(ep), np.asarray(tokens, float))
    sizes, row, low, share = _places(eps.shape, eps.astype(np.int64).tobytes(), counts.tobytes())
    table = np.zeros((len(sizes), len(TOKEN_GRID)))
    for line, (size, asked) in zip(table, sizes, strict=True):
        line[list(asked)] = _over_tokens(loads, size, layers, beside, seed, factor, asked)
    out = (1.0 - share) * table[row, low] + share * table[row, low + 1]
    return float(out) if np.ndim(out) == 0 else out


@lru_cache(maxsize=64)
def _places(
    shape: tuple[int, ...], eps: bytes, counts: bytes
) -> tuple[tuple[tuple[int, tuple[int, ...]], ...], Any, Any, Any]:
    """((size, tokens of the grid that are asked for), which of them each entry has, its place between tokens of the
    grid): one for all stages of a table."""
    sizes, which = np.unique(np.frombuffer(eps, np.int64), return_inverse=True)
    low, share = between_tokens(np.frombuffer(counts).reshape(shape))
    found = [np.unique(low.ravel()[which == i]) for i in range(len(sizes))]
    asked = (tuple(np.union1d(first, first + 1).tolist()) for first in found)
    return tuple(zip(sizes.tolist(), asked, strict=True)), which.reshape(shape), low, share


@lru_cache(maxsize=1 << 15)
def _over_tokens(
    loads: ExpertLoads, ep: int, layers: Rows, beside: Rows, seed: int, factor: float | None, asked: tuple[int, ...]
) -> Floats:  # fmt: skip
    """`fullest_load` at some token counts of the grid, which are numbered from many to few."""
    at = [len(TOKEN_GRID) - 1 - place for place in asked]
    mean, variance, all_steps = _moments(loads, ep, seed, factor)
    mine, noise = (each[:, at][:, :, list(layers)].sum(axis=2) for each in (mean, variance))
    if not beside:
        most = hottest(mine, noise)[0]
    else:
        chance, per_variance = _of_stage(loads, ep, tuple(sorted(layers + beside)), seed, factor, asked)
        most = (chance * mine).sum(axis=-1) + (chance * noise).sum(axis=-1) * per_variance
    out: Floats = most.mean(axis=0)
    if len(all_steps):  # steps of a drift that were not worked out with noise: a control variate, as in load curves
        own = all_steps[:, list(layers)].sum(axis=1)
        full = own + all_steps[:, list(beside)].sum(axis=1)
        of_fullest = np.take_along_axis(own, full.argmax(axis=-1)[:, None], axis=-1)[:, 0]
        out = out + of_fullest.mean() - of_fullest[: len(most)].mean()
    return out


@lru_cache(maxsize=4096)
def _of_stage(
    loads: ExpertLoads, ep: int, layers: Rows, seed: int, factor: float | None, asked: tuple[int, ...]
) -> tuple[Floats, Floats]:  # fmt: skip
    """Of a whole stage: chance [step, tokens, rank] of each rank to be the fullest, and what noise adds to the fullest
    one's load [step, tokens], per unit of its variance."""
    mean, variance, _ = _moments(loads, ep, seed, factor)
    at = [len(TOKEN_GRID) - 1 - place for place in asked]
    whole, spread = (each[:, at][:, :, list(layers)].sum(axis=2) for each in (mean, variance))
    largest, chance = hottest_chances(whole, spread)
    excess = largest - (chance * whole).sum(axis=-1)
    return chance, excess / np.maximum((chance * spread).sum(axis=-1), 1e-300)


@lru_cache(maxsize=32)
def _moments(loads: ExpertLoads, ep: int, seed: int, factor: float | None) -> tuple[Floats, Floats, Floats]:
    """Mean and variance [step, tokens, layer, rank] of the first drift steps; mean [step, layer, rank] of all of them
    (no step without a drift, or under a capacity)."""
    first = steps_of(loads, seed, CURVE_STEPS)
    cells = [[rank_loads(step, ep, n, factor) for n in TOKEN_GRID] for step in first]
    mean, variance = (np.array([[cell[i] for cell in row] for row in cells]) for i in (0, 1))
    steps = steps_of(loads, seed)
    if len(steps) == 1 or factor is not None:
        return mean, variance, np.empty((0, loads.num_layers, ep))
    return mean, variance, np.array([rank_loads(step, ep, TOKEN_GRID[-1])[0] for step in steps])
