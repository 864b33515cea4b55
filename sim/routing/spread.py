"""Nodes that a token's experts lie on, from pairs of experts that tokens hold."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from hwprofiles.forms.dispatch import expected_hits
from sim.routing.loads import ExpertLoads

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def expected_nodes(pairs: Floats, load: Floats, part: Ints, nodes: int, top_k: int) -> float:
    """Mean distinct nodes of a token, from pairs [E, E] of experts that tokens hold and load [E], under part [E].

    The hits of a node are taken as beta-binomial with the mean and the variance that load and pairs give: P(no hit) =
    B(a, b + k) / B(a, b) (Skellam, 1948, J. Roy. Stat. Soc. B 10). On tokens of `planner.placement.generate` it lies
    within 2 % of the count. Tokens per load are load / top_k, and pairs are scaled to k (k - 1) of a token.
    """
    tokens = float(load.sum()) / top_k
    free = pairs - np.diag(np.diag(pairs))
    if tokens <= 0.0 or free.sum() <= 0.0 or top_k < 2:
        return float(min(top_k, nodes))
    scale = tokens * top_k * (top_k - 1) / float(free.sum())
    total = 0.0
    for node in range(nodes):
        here = part == node
        mean = float(load[here].sum()) / tokens
        both = float(free[np.ix_(here, here)].sum()) * scale / tokens  # E[H (H - 1)]
        share = mean / top_k
        if share <= 0.0 or share >= 1.0:
            total += float(share > 0.0)
            continue
        alike = both / (top_k * (top_k - 1)) - share**2  # covariance of two choices
        rho = alike / (share * (1.0 - share))
        if rho <= 1e-6:  # choices that avoid each other: independent ones are the nearest of the family
            missed = (1.0 - share) ** top_k
        else:
            m = 1.0 / min(rho, 1.0 - 1e-9) - 1.0
            a, b = share * m, (1.0 - share) * m
            missed = float(np.exp(betaln(a, b + top_k) - betaln(a, b)))
        total += 1.0 - missed
    return total


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
