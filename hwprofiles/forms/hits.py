"""How many distinct places (ranks, scale-up domains) the k experts of a token lie in, under uniform routing.

Places hold equal, consecutive shares of the experts. Group-limited routing (DeepSeek-V3) first picks `limit` of
`groups` equal groups of consecutive experts, then k experts of those: a token then reaches fewer places, also where
there are no more places than it may have groups.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from math import comb, isinf
from typing import Any

import numpy as np

from hwprofiles.interpolate import Floats


def expected_hits(top_k: Any, places: Any, experts: Any = np.inf, *, limit: Any = 0, groups: Any = 0) -> Floats:
    """Distinct places of `places` that `top_k` different experts of `experts` fall in: g (1 - C(E - E/g, k) / C(E, k)).

    Endless experts (the default) are a draw with replacement, g (1 - (1 - 1/g)^k). `limit` of `groups` groups are
    drawn first (0: free choice), all draws alike; a place that has x experts in common with the groups drawn is missed
    with C(L E/G - x, k) / C(L E/G, k). Numbers or columns.

    >>> round(float(expected_hits(8, 8)), 3), float(expected_hits(2, 8, 8)), round(float(expected_hits(8, 8, 256)), 3)
    (5.251, 2.0, 5.295)
    >>> round(float(expected_hits(8, 8, 256, limit=4, groups=8)), 3)
    3.629
    """
    numbers = (top_k, places, experts, limit, groups)
    dims = tuple(np.ndim(v) for v in numbers)
    if max(dims) == 0:
        return np.asarray(_hits(*(float(v) for v in numbers)))
    if dims == (0, 1, 0, 0, 0) and 0 < limit < groups:  # the plans of one model: few different sizes
        sizes, where = np.unique(places, return_inverse=True)
        each = [_hits(*(float(v) for v in (top_k, size, experts, limit, groups))) for size in sizes]
        return np.array(each)[where]
    columns = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in numbers))
    hit = _column_hits(*columns[:3])
    limited = (columns[3] > 0) & (columns[3] < columns[4])
    if np.any(limited):
        rows = np.stack([column[limited] for column in columns])
        few, where = np.unique(rows, axis=1, return_inverse=True)
        hit[limited] = np.array([_hits(*(float(v) for v in row)) for row in few.T])[where.reshape(-1)]
    return hit


def block_hits(top_k: Any, places: Any, experts: Any) -> Floats:
    """Distinct places of k consecutive experts where token i takes experts ik to ik + k - 1, modulo all of them.

    A place holds L = E / g experts, and blocks start at all multiples of gcd(k, L) alike: (k + L - gcd) / L places in
    the mean. Numbers or columns.

    >>> float(block_hits(8, 8, 128)), float(block_hits(8, 64, 256))
    (1.0, 2.0)
    """
    if np.any(np.isinf(experts)):
        return np.ones(np.broadcast_shapes(np.shape(top_k), np.shape(places)))
    k, held = np.asarray(top_k, np.int64), np.maximum(np.asarray(experts) // np.asarray(places), 1).astype(np.int64)
    hit: Floats = (k + held - np.gcd(k, held)) / held
    return hit


@lru_cache(maxsize=4096)
def _hits(top_k: float, places: float, experts: float, limit: float, groups: float) -> float:
    """`expected_hits` of numbers: every layer and plan asks again for the same few."""
    if not 0 < limit < groups:
        return float(_column_hits(*(np.asarray(v, dtype=np.float64) for v in (top_k, places, experts))))
    return sum(
        count * _reached(int(top_k), overlaps, experts, int(limit), int(groups))
        for overlaps, count in _overlaps(int(places), int(groups)).items()
    )


@lru_cache(maxsize=512)
def _overlaps(places: int, groups: int) -> Counter[tuple[Fraction, ...]]:
    """Shares of all experts that a place has in common with each group it touches, and how many places are alike."""
    found: Counter[tuple[Fraction, ...]] = Counter()
    for place in range(places):
        low, high = Fraction(place, places), Fraction(place + 1, places)
        first, last = place * groups // places, -(-(place + 1) * groups // places)
        shares = (min(high, Fraction(g + 1, groups)) - max(low, Fraction(g, groups)) for g in range(first, last))
        found[tuple(sorted(shares))] += 1
    return found


def _reached(k: int, overlaps: tuple[Fraction, ...], experts: float, limit: int, groups: int) -> float:
    """Chance that one of k experts falls in a place with these shares, over all draws of groups."""
    hit = 0.0
    for many in range(min(len(overlaps), limit) + 1):
        chance = comb(groups - len(overlaps), limit - many) / comb(groups, limit)
        for drawn in combinations(overlaps, many) if chance else ():
            inside = float(sum(drawn) * groups / limit)  # of the experts to choose from
            hit += chance * (1.0 - _missed(k, experts * limit / groups, inside))
    return hit


def _missed(k: int, pool: float, share: float) -> float:
    """Chance that none of k different experts of `pool` falls in `share` of them."""
    missed = 1.0
    for drawn in range(k):
        missed *= 1.0 - min(share if isinf(pool) else share * pool / max(pool - drawn, 1e-9), 1.0)
    return missed


def _column_hits(k: Floats, g: Floats, e: Floats) -> Floats:
    g = np.maximum(g, 1.0)
    endless = np.isinf(e)
    # of the experts not drawn yet, the share in one place that was missed so far; each draw leaves one fewer
    place, rest = np.where(endless, 1.0 / g, e / g), np.where(endless, 1.0, e)
    less = np.where(endless, 0.0, 1.0)
    missed = np.ones(np.broadcast(k, g, e).shape)
    for drawn in range(int(np.max(k, initial=0.0))):
        kept = 1.0 - np.minimum(place / np.maximum(rest - drawn * less, 1e-9), 1.0)
        missed = missed * (kept if np.all(drawn < k) else np.where(drawn < k, kept, 1.0))
    hit: Floats = g * (1.0 - missed)
    return hit
