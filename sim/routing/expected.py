"""The largest of many independent normal loads: moments and distribution, by quadrature.

With F(x) the product of the ranks' normal distribution functions, E[max] = low + integral of 1 - F above a point
`low` that the maximum practically never stays under. Loads that sum to a constant (every token chooses k experts)
are independent ones less a common term, which moves the mean of the maximum not at all when all ranks
have the same variance and its variance by a known amount; see `hottest`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

Floats = NDArray[np.float64]

# Gauss-Legendre points between the ends below: a third of a standard deviation apart where all ranks are alike.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(32)
BELOW, ABOVE = 5.0, 6.0  # standard deviations; what lies outside is below 1e-6 of one
TINY = 1e-12  # of the mean: a standard deviation that keeps certain loads inside the arithmetic
BISECTIONS = 14


def hottest(mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of the largest of n loads on the last axis, which sum to a constant.

    variance: of each load before that sum is taken off (see `sim.routing.loads`), >= 0, in the square of mean's unit.
    """
    spread = np.sqrt(variance) + TINY * np.maximum(np.abs(mean), 1.0)
    low = (mean - BELOW * spread).max(axis=-1, keepdims=True)
    width = (mean + ABOVE * spread).max(axis=-1, keepdims=True) - low
    common = variance.sum(axis=-1) / variance.shape[-1] ** 2
    # loads that stay under `low` leave the maximum alone
    reach = mean + ABOVE * spread
    count = int((reach > low).sum(axis=-1).max())
    if count < mean.shape[-1]:
        most = np.argpartition(-reach, count - 1, axis=-1)[..., :count]
        mean, spread = (np.take_along_axis(each, most, axis=-1) for each in (mean, spread))
    x = low + width * (_POINTS + 1.0) / 2.0
    over = 1.0 - ndtr((x[..., None, :] - mean[..., :, None]) / spread[..., :, None]).prod(axis=-2)
    weight = width * _WEIGHTS / 2.0
    first = (over * weight).sum(axis=-1)
    second = 2.0 * ((x - low) * over * weight).sum(axis=-1)
    return low[..., 0] + first, np.maximum(second - first**2 - common, 0.0)


def hottest_chances(mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """(mean of the largest of n loads on the last axis, chance [..., load] of each of them to be it, which sum to 1).

    Arguments, and the mean, as of `hottest`.
    """
    spread = np.sqrt(variance) + TINY * np.maximum(np.abs(mean), 1.0)
    low = (mean - BELOW * spread).max(axis=-1, keepdims=True)
    width = (mean + ABOVE * spread).max(axis=-1, keepdims=True) - low
    reach = mean + ABOVE * spread
    count = int((reach > low).sum(axis=-1).max())
    most = np.argpartition(-reach, min(count, mean.shape[-1] - 1), axis=-1)[..., :count]
    least, wide = (np.take_along_axis(each, most, axis=-1)[..., None] for each in (mean, spread))
    z = ((low + width * (_POINTS + 1.0) / 2.0)[..., None, :] - least) / wide
    below = ndtr(z)  # of loads that reach above `low`: never tiny
    all_below = below.prod(axis=-2, keepdims=True)
    density = np.exp(-0.5 * z**2) / below * all_below / wide
    chance = np.zeros(np.shape(mean))
    np.put_along_axis(chance, most, (density * _WEIGHTS).sum(axis=-1), axis=-1)
    total = chance.sum(axis=-1, keepdims=True)
    surest = np.arange(mean.shape[-1]) == mean.argmax(axis=-1)[..., None]
    chance = np.where(total > 0.0, chance / np.where(total > 0.0, total, 1.0), surest)
    largest = low[..., 0] + ((1.0 - all_below[..., 0, :]) * (width * _WEIGHTS / 2.0)).sum(axis=-1)
    return largest, chance


def chance_below(x: Any, mean: Floats, spread: Floats, copies: Any = 1.0) -> Floats:
    """P(no load exceeds x): loads normal and independent on the last axis, each (or the whole set) drawn `copies`
    times."""
    gap = np.asarray(x, float)[..., None] - mean
    spread = np.maximum(spread, TINY * np.maximum(np.abs(mean), 1.0))
    chance: Floats = np.exp((copies * log_ndtr(gap / spread)).sum(axis=-1))
    return chance


def quantile(chance: Callable[[Floats], Floats], shares: Any, low: float, high: float) -> Floats:
    """x with chance(x) = each of `shares`, for a chance that rises from low to high, all at once.

    Bisection down to a hundredth of a standard deviation or so, then a straight line.
    """
    shares = np.asarray(shares, float)
    lows, highs = np.full(shares.shape, low), np.full(shares.shape, high)
    under, over = np.zeros(shares.shape), np.ones(shares.shape)
    for _ in range(BISECTIONS):
        middle = (lows + highs) / 2.0
        found = chance(middle)
        below = found < shares
        lows, highs = np.where(below, middle, lows), np.where(below, highs, middle)
        under, over = np.where(below, found, under), np.where(below, over, found)
    way = np.clip((shares - under) / np.maximum(over - under, 1e-300), 0.0, 1.0)
    out: Floats = lows + (highs - lows) * way
    return out
