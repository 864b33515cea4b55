"""Dispatch fan-out: experts that tokens hold together share a node, so that a token goes to few nodes.

The number of nodes of a token is the connectivity of a hypergraph; what is maximised is its pairwise surrogate, the
co-active pairs on one node, from a spectral start by exchanges inside the load cap. It is scored on other tokens.
"""

from __future__ import annotations

import numpy as np

from planner.placement.partition import improve, spectral_parts
from planner.placement.records import Floats, Ints

KICKS = 10


def fan_out_parts(pairs: Floats, load: Floats, cap: float, nodes: int, *, seed: int = 0) -> Ints:
    """Node [E] of the experts of one layer from pairs [E, E] (tokens that hold both), every node within `cap`.

    Of three starts the best goes on: some experts change places at random and exchanges climb again, a few times.
    """
    free = pairs - np.diag(np.diag(pairs))
    seen = free.sum(axis=1)
    chance = np.maximum(np.outer(seen, seen) / max(float(seen.sum()), 1e-300), 1e-300)  # pairs of independent choices
    over, times = np.maximum(free - chance, 0.0), free / chance
    np.fill_diagonal(times, 0.0)
    zero = np.zeros((len(load), nodes))
    caps = np.full(nodes, cap)
    found = [improve(spectral_parts(kernel, nodes), zero, load, caps, free) for kernel in (free, over, times)]
    worth = [_kept(free, part) for part in found]
    best, most = found[int(np.argmax(worth))], max(worth)
    rng = np.random.default_rng(seed)
    for _ in range(KICKS):
        part, some = best.copy(), rng.choice(len(load), size=max(2, len(load) // 8), replace=False)
        part[some] = part[np.roll(some, 1)]
        part = improve(part, zero, load, caps, free)
        if _kept(free, part) > most and np.bincount(part, weights=load).max() <= cap * (1.0 + 1e-9):
            best, most = part, _kept(free, part)
    return best


def _kept(pairs: Floats, part: Ints) -> float:
    return float((pairs * (part[:, None] == part[None, :])).sum())


def nodes_per_token(chosen: Ints, part: Ints, nodes: int) -> float:
    """Mean number of distinct nodes of tokens that chose experts [token, k], under part [E] -> node."""
    hit = np.zeros((len(chosen), nodes), dtype=bool)
    np.put_along_axis(hit, part[chosen], True, axis=1)
    return float(hit.sum(axis=1).mean())
