"""Nodes that a token's experts lie on, from pairs of experts that tokens hold."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from hwprofiles.forms.hits import expected_hits
from sim.routing.loads import ExpertLoads

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_CLUMPING = 1e-6  # correlation below which choices count as independent


def expected_nodes(pairs: Floats, load: Floats, part: Ints, nodes: int, top_k: int) -> float:
    """Mean distinct nodes of a token, from pairs [E, E] of experts that tokens hold and load [E], under part [E].

    Pairs do not tell how many tokens miss a node: that takes choices of all k. Two estimates err to either side, and
    their mean is taken. Hits as beta-binomial with the mean and variance of load and pairs (Skellam, 1948, J. Roy.
    Stat. Soc. B 10) clump too much; choices that are independent given one of them clump too little. On drawn tokens of
    known structure the mean lies 1 % below to 3 % above the count. Pairs are scaled to k (k - 1) of a token.
    """
    experts, tokens = len(load), float(load.sum()) / top_k
    free = pairs - np.diag(np.diag(pairs))
    if tokens <= 0.0 or free.sum() <= 0.0 or top_k < 2:
        return float(min(top_k, nodes))
    free = free * (tokens * top_k * (top_k - 1) / float(free.sum()))
    on: Floats = (part[:, None] == np.arange(nodes)).astype(np.float64)
    share = load @ on / (tokens * top_k)
    both = np.einsum("en,ef,fn->n", on, free, on, optimize=True) / (tokens * top_k * (top_k - 1))
    clumped = sum(_missed(float(s), float(b), top_k) for s, b in zip(share, both, strict=True))
    given = np.clip(free @ on / np.maximum(load[:, None] * (top_k - 1), 1e-300), 0.0, 1.0)
    others = float(experts - 1)
    away = np.ones_like(given)
    for drawn in range(top_k - 1):
        away *= np.clip((others * (1.0 - given) - drawn) / max(others - drawn, 1.0), 0.0, 1.0)
    loose = float((load @ (away * (1.0 - on))).sum()) / (tokens * top_k)
    return nodes - (clumped + loose) / 2.0


def _missed(share: float, both: float, top_k: int) -> float:
    """Chance that a token misses a node with `share` of the choices and of two choices `both` there."""
    if share <= 0.0 or share >= 1.0:
        return float(share <= 0.0)
    rho = (both - share**2) / (share * (1.0 - share))  # correlation of two choices
    if rho > LEAST_CLUMPING:
        m = 1.0 / min(rho, 1.0 - 1e-9) - 1.0
        a, b = share * m, (1.0 - share) * m
        return float(np.exp(betaln(a, b + top_k) - betaln(a, b)))
    drawn = np.arange(top_k)
    # choices that avoid each other: drawn without replacement from as many as give that correlation
    size = max(1.0 - 1.0 / min(rho, -LEAST_CLUMPING), top_k + 1.0)
    return float(np.prod(np.clip((size * (1.0 - share) - drawn) / (size - drawn), 0.0, 1.0)))


@lru_cache(maxsize=256)
def node_spread(loads: ExpertLoads, ep: int, domains: int) -> float:
    """Mean distinct domains of a token over those of uniform routing, experts (or slots) dealt to `ep` ranks in order
    and those to `domains`; mean over layers. 1 where no pairs are known, or one domain holds all."""
    if loads.joint is None or domains < 2:
        return 1.0
    rank = np.arange(loads.num_experts, dtype=np.int64) * ep // loads.num_experts
    part = rank * domains // ep
    uniform = float(expected_hits(loads.top_k, domains, loads.num_experts))
    found = [expected_nodes(c, w, part, domains, loads.top_k) for c, w in zip(loads.joint, loads.chance, strict=True)]
    return float(np.mean(found)) / uniform
