"""Expert popularity of every MoE layer and what it puts on ranks: means and variances of routed rows.

One token makes top_k choices; rank r gets those that fall on its experts. Given the chance p of each expert, the
hits of a choice without replacement have variance p (1 - p) and, nearly, the covariance of independent loads of
variance c whose sum is then held fixed: c_e [e = f] - c_e c_f / sum(c) (Hajek, 1964, Ann. Math. Stat.), with c such
that the variances are p (1 - p). What is given here is c, summed over the experts of a rank: the fixed sum is put
back by `sim.routing.expected`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from sim.routing.popularity import SURE, Drift, inclusion

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertLoads:
    """Popularity of the experts of all MoE layers with the same (num_experts, top_k).

    chance[layer, expert]: that a token holds the expert; sums to top_k per layer. joint[layer, e, f]: that it holds
    both (diagonal: chance), where a trace tells it; empty otherwise. transitions[layer, e, f]: chance that a token on
    e is on f in the next layer (rows sum to top_k; one layer fewer), where a trace tells it. num_groups, top_k_groups:
    routing limited to so many of the groups of neighbouring experts (1, 1: free). pad_to: rows of an expert are padded
    to a multiple of it. clumping: variance of a rank's rows over that of independent tokens (1: independent).
    placed: in the order of the slots of a placement, so that neighbours share a node and `joint` says how far a token
    spreads.
    """

    chance: Floats
    top_k: int
    joint: Floats | None = None
    transitions: Floats | None = None
    num_groups: int = 1
    top_k_groups: int = 1
    drift: Drift = field(default_factory=Drift)
    pad_to: int = 1
    clumping: float = 1.0
    placed: bool = False
    source: str = "stated"

    def __post_init__(self) -> None:
        problems = []
        if self.chance.ndim != 2 or 0 in self.chance.shape:
            problems.append(f"chance has shape {self.chance.shape}; give [layer, expert]")
        elif not np.all(np.abs(self.chance.sum(axis=1) - self.top_k) <= SUM_TOLERANCE * self.top_k):
            problems.append(f"the chances of a layer must sum to top_k = {self.top_k}")
        elif self.chance.min() < 0.0 or self.chance.max() > 1.0 + SUM_TOLERANCE:
            problems.append("a chance lies outside 0..1; a token holds an expert at most once")
        if self.num_groups < 1 or not 1 <= self.top_k_groups <= self.num_groups:
            problems.append(f"{self.top_k_groups} of {self.num_groups} groups is impossible")
        elif self.chance.ndim == 2 and self.chance.shape[1] % self.num_groups:
            problems.append(f"{self.chance.shape[1]} experts do not divide into {self.num_groups} groups")
        if self.pad_to < 1:
            problems.append(f"pad_to = {self.pad_to}; give a whole number >= 1")
        if not 0.0 <= self.clumping < np.inf:
            problems.append(f"clumping = {self.clumping}; give a finite number >= 0")
        if self.transitions is not None:
            layers, experts = self.chance.shape[0], self.chance.shape[-1]
            if self.transitions.shape != (layers - 1, experts, experts):
                problems.append(f"transitions have shape {self.transitions.shape}; give [layer - 1, expert, expert]")
            elif self.transitions.size and np.any(np.abs(self.transitions.sum(axis=-1) - self.top_k) > 1e-6):
                problems.append(f"the transitions of an expert must sum to top_k = {self.top_k}")
        if problems:
            raise UserError(problems, where=self.source)

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self.chance.shape[0])

    @property
    def layers_differ(self) -> bool:
        """Whether popularity is not the same in all layers."""
        return bool(np.any(self.chance != self.chance[0]))

    @property
    def num_experts(self) -> int:
        """Routed experts of a layer."""
        return int(self.chance.shape[1])


def contiguous(loads: ExpertLoads, ep: int) -> Ints:
    """placement[layer, expert] -> rank: neighbouring experts together, as trainers do it."""
    rank = np.arange(loads.num_experts, dtype=np.int64) * ep // loads.num_experts
    return np.broadcast_to(rank, loads.chance.shape)


def summed(values: Floats, placement: Ints, ranks: int) -> Floats:
    """values[..., layer, expert] added up per rank: [..., layer, rank]."""
    layers = placement.shape[0]
    flat = (placement + ranks * np.arange(layers)[:, None]).ravel()
    wide = values.reshape(-1, flat.size)
    out: Floats = np.array([np.bincount(flat, weights=row, minlength=layers * ranks) for row in wide], dtype=np.float64)
    return out.reshape(*values.shape[:-2], layers, ranks)


def rank_moments(loads: ExpertLoads, placement: Ints, ep: int) -> tuple[Floats, Floats]:
    """Mean and variance [layer, rank] of the rows one token puts on a rank, the fixed sum left out (see module)."""
    mean = summed(loads.chance, placement, ep)
    if loads.joint is not None:
        variance = freed(np.maximum(_block_sums(loads.joint, placement, ep) - mean**2, 0.0))
    elif loads.top_k_groups < loads.num_groups:
        variance = freed(_group_variance(loads, placement, ep, mean))
    else:
        variance = summed(freed(loads.chance * (1.0 - loads.chance)), placement, ep)
    return mean, variance * loads.clumping


def freed(variance: Floats) -> Floats:
    """Variances of loads with a fixed sum -> of independent loads that give them once the sum is fixed.

    Solves v = c - c^2 / sum(c) on the last axis to first order; exact where all are alike. One load alone is certain.
    """
    total = np.maximum(variance.sum(axis=-1, keepdims=True), 1e-300)
    if variance.shape[-1] == 1:
        return np.zeros_like(variance)
    out: Floats = variance / np.maximum(1.0 - variance / total, 0.5)
    return out


def _block_sums(joint: Floats, placement: Ints, ep: int) -> Floats:
    """Sum of joint[layer, e, f] over pairs of experts on the same rank."""
    on = np.zeros((*placement.shape, ep))
    np.put_along_axis(on, placement[..., None], 1.0, axis=-1)
    sums: Floats = np.einsum("lef,ler,lfr->lr", joint, on, on, optimize=True)
    return sums


def group_chance(loads: ExpertLoads) -> Floats:
    """Chance [layer, group] that a token keeps each group; sums to top_k_groups."""
    share = loads.chance.reshape(loads.num_layers, loads.num_groups, -1)
    out: Floats = np.maximum(inclusion(share.sum(axis=-1) + 1e-12, loads.top_k_groups), share.max(axis=-1))
    return out


def _group_variance(loads: ExpertLoads, placement: Ints, ep: int, mean: Floats) -> Floats:
    """Variance of a rank's rows per token when a token keeps only `top_k_groups` groups.

    Law of total variance: which groups are kept (chance q, as above for experts), then which experts of them
    (chance p / q, top_k of the kept groups' experts).
    """
    groups = loads.num_groups
    kept = group_chance(loads)
    size = loads.num_experts // groups
    within = np.minimum(loads.chance / np.repeat(kept, size, axis=1), SURE)
    group = np.arange(loads.num_experts) // size
    cell = placement * groups + group
    hits = within * (1.0 - within)
    # experts of the kept groups, among which the choice is
    among = np.maximum((hits * np.repeat(kept, size, axis=1)).sum(axis=1, keepdims=True), 1e-300)
    per_cell = summed(hits / np.maximum(1.0 - hits / among, 0.5), cell, ep * groups).reshape(-1, ep, groups)
    total = np.maximum((kept * per_cell.sum(axis=1)).sum(axis=-1), 1e-300)[:, None, None]
    inner = (kept[:, None, :] * (per_cell - per_cell**2 / total)).sum(axis=-1)
    given = summed(within, cell, ep * groups).reshape(-1, ep, groups)
    choice = freed(kept * (1.0 - np.minimum(kept, 1.0)))[:, None, :]
    all_choice = np.maximum(choice.sum(axis=-1), 1e-300)
    outer = (given**2 * choice).sum(axis=-1) - (given * choice).sum(axis=-1) ** 2 / all_choice
    out: Floats = np.maximum(inner + outer, 0.0)
    return out
