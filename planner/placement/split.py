"""Shares of the replicas of a fixed placement of one layer, by linear programme.

min T subject to: sum over the GPUs that hold e of f[e, g] = load_e; sum over the experts of g of f[e, g] <= T speed_g;
f >= 0. The dual values of the GPU rows name the hot set: the GPUs that no split can relieve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.placement.records import Floats, Ints


@dataclass(frozen=True, kw_only=True)
class Shares:
    """share [G, S] of each expert's load; time: the fullest GPU's; hot: GPUs with a price, that bind the optimum."""

    share: Floats
    time: float
    hot: tuple[int, ...]


def best_shares(load: Floats, experts: Ints, share: Floats, speeds: Floats) -> Shares:
    """The best shares of experts [G, S] for load [E]; `share` is returned where the programme gains nothing."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    gpus, slots = experts.shape
    flat = experts.ravel()
    gpu = np.repeat(np.arange(gpus), slots)
    n = len(flat)
    now = float(((load[experts] * share).sum(axis=1) / speeds).max())
    scale = float(load.sum() / speeds.sum())
    weight = load[flat] / scale
    below: Any = csr_array(
        (
            np.r_[weight / speeds[gpu], -np.ones(gpus)],
            (np.r_[gpu, np.arange(gpus)], np.r_[np.arange(n), np.full(gpus, n)]),
        ),
        shape=(gpus, n + 1),
    )
    whole: Any = csr_array((np.ones(n), (flat, np.arange(n))), shape=(len(load), n + 1))
    done = linprog(
        np.r_[np.zeros(n), 1.0], A_ub=below, b_ub=np.zeros(gpus), A_eq=whole, b_eq=np.ones(len(load)),
        bounds=(0.0, None), method="highs-ds",
    )  # fmt: skip
    if done.status != 0:
        return Shares(share=share, time=now, hot=())
    found: Any = done.x
    part = np.clip(found[:n], 0.0, 1.0)
    part /= np.bincount(flat, weights=part, minlength=len(load))[flat]
    best = part.reshape(experts.shape)
    time = float(((load[experts] * best).sum(axis=1) / speeds).max())
    prices: Any = done.ineqlin.marginals
    hot = tuple(np.flatnonzero(np.asarray(prices) < -1e-9).tolist())
    return Shares(share=best, time=time, hot=hot) if time <= now else Shares(share=share, time=now, hot=hot)
