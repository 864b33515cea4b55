"""Loads through a placement to ranks: rows per rank and expert, bytes per pair of ranks, the most loaded of all.

Rows count routed copies: a token that goes to k experts makes k rows. Every function takes loads [..., layer,
expert] (leading axes: micro-batches) and placement [layer, expert] -> rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from sim.routing.loads import ExpertLoads, contiguous, rank_moments, summed
from sim.routing.sample import padded, sample_counts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

QUANTILES = (0.1, 0.5, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """Loads on ranks.

    rows[..., layer, rank]; fullest[..., layer, rank]: rows of the fullest expert of each rank; local[layer, rank]:
    experts there. mean[..., layer]: rows of the mean rank. hottest[..., layer]: rank that holds most.
    """

    rows: Floats
    fullest: Floats
    local: Ints

    @property
    def mean(self) -> Floats:
        """Rows of the mean rank."""
        out: Floats = self.rows.mean(axis=-1)
        return out

    @property
    def hottest(self) -> Ints:
        """The rank that holds most rows; the lowest of several."""
        out: Ints = np.asarray(self.rows.argmax(axis=-1))
        return out

    @property
    def max_over_mean(self) -> Floats:
        """Rows of the hottest rank over the mean rank; 1 where there are no rows."""
        return _ratio(self.rows.max(axis=-1), self.mean)

    @property
    def fullest_over_mean(self) -> Floats:
        """Rows of the fullest expert of the hottest rank over the mean of that rank's experts; 1 without rows."""
        hot = self.hottest[..., None]
        rows = np.take_along_axis(self.rows, hot, axis=-1)[..., 0]
        fullest = np.take_along_axis(self.fullest, hot, axis=-1)[..., 0]
        local = np.take_along_axis(np.broadcast_to(self.local, self.rows.shape), hot, axis=-1)[..., 0]
        return _ratio(fullest * local, rows)


def _ratio(a: Floats, b: Floats) -> Floats:
    return np.where(b > 0.0, a / np.where(b > 0.0, b, 1.0), 1.0)


def check_placement(placement: Ints, layers: int, experts: int, ep: int) -> None:
    """Raise UserError, with all problems, unless placement is [layer, expert] of ranks 0..ep-1."""
    problems = []
    if ep < 1:
        problems.append(f"ep = {ep}; give a whole number >= 1")
    if placement.shape != (layers, experts):
        problems.append(f"placement has shape {placement.shape}, the loads {(layers, experts)}; give one rank each")
    bad = np.argwhere((placement < 0) | (placement >= ep))
    problems += [
        f"layer {layer}, expert {expert} is placed on rank {placement[layer, expert]}; ranks are 0..{ep - 1}"
        for layer, expert in bad[:10]
    ]
    if len(bad) > 10:
        problems.append(f"and {len(bad) - 10} more experts outside 0..{ep - 1}")
    if problems:
        raise UserError(problems, where="placement")


def place(loads: Any, placement: Ints, ep: int) -> Placed:
    """Rows per rank of loads[..., layer, expert]. Raises UserError on a placement that does not fit."""
    loads = np.asarray(loads, dtype=np.float64)
    layers, experts = loads.shape[-2:]
    check_placement(placement, layers, experts, ep)
    cells = (placement + ep * np.arange(layers)[:, None]).ravel()
    wide = loads.reshape(-1, layers * experts)
    order = np.argsort(cells, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(cells[order]) > 0])
    fullest = np.zeros((len(wide), layers * ep))
    fullest[:, cells[order][starts]] = np.maximum.reduceat(wide[:, order], starts, axis=1)
    return Placed(
        rows=summed(loads, placement, ep),
        fullest=fullest.reshape(*loads.shape[:-1], ep),
        local=np.bincount(cells, minlength=layers * ep).reshape(layers, ep),
    )


def pair_rows(loads: ExpertLoads, placement: Ints, ep: int, tokens_per_rank: int, *, seed: int | None = None) -> Floats:
    """Rows [layer, source, destination] of one micro-batch: drawn by source, or the mean where no seed is given.

    Every source sends top_k x tokens_per_rank rows.
    """
    check_placement(placement, loads.num_layers, loads.num_experts, ep)
    if seed is None:
        mean = summed(loads.chance, placement, ep) * tokens_per_rank
        return np.repeat(mean[:, None, :], ep, axis=1)
    counts = sample_counts(loads, tokens_per_rank, draws=ep, seed=seed).astype(np.float64)
    return np.moveaxis(summed(counts, placement, ep), 0, 1)


def pair_tokens(loads: ExpertLoads, placement: Ints, ep: int, tokens_per_rank: int) -> Floats:
    """Expected tokens [layer, source, destination] that go to at least one expert there: what dispatch by token sends.

    1 - product of (1 - p) over the destination's experts, choices taken as independent.
    """
    check_placement(placement, loads.num_layers, loads.num_experts, ep)
    miss = summed(np.log1p(-np.minimum(loads.chance, 1.0 - 1e-12)), placement, ep)
    return np.repeat((-np.expm1(miss) * tokens_per_rank)[:, None, :], ep, axis=1)


@dataclass(frozen=True, kw_only=True)
class LoadStats:
    """Loads of one MoE layer over micro-batches (rows of a rank's micro-batch).

    mean_rows: of a rank; max_over_mean, fullest_over_mean: means over micro-batches; quantiles: of max_over_mean
    at QUANTILES. sent_rows, received_rows: most that any rank sends to, receives from, other ranks; node_sent_rows,
    node_received_rows: the same of a node's ranks together, to and from other nodes.
    """

    layer: int
    mean_rows: float
    max_over_mean: float
    fullest_over_mean: float
    quantiles: tuple[float, ...]
    sent_rows: float
    received_rows: float
    node_sent_rows: float
    node_received_rows: float


def exchanged(pairs: Floats, ranks_per_node: int) -> tuple[Floats, Floats, Floats, Floats]:
    """(sent, received) most of any rank, then of any node, [layer]; pairs[layer, source, destination] in any unit.

    What stays on its rank (or node) is not sent. The last node may be smaller.
    """
    ep = pairs.shape[-1]
    away = pairs * (1.0 - np.eye(ep))
    node = np.arange(ep) // max(1, ranks_per_node)
    on = (node[:, None] == np.arange(node[-1] + 1)).astype(np.float64)
    nodes = np.einsum("lsd,sn,dm->lnm", pairs, on, on, optimize=True) * (1.0 - np.eye(node[-1] + 1))
    return away.sum(2).max(1), away.sum(1).max(1), nodes.sum(2).max(1), nodes.sum(1).max(1)


def layer_stats(
    loads: ExpertLoads, ep: int, tokens_per_rank: int, *, placement: Ints | None = None, micro_batches: int = 32,
    ranks_per_node: int = 8, seed: int = 0,
) -> tuple[LoadStats, ...]:  # fmt: skip
    """Load statistics of every layer over drawn micro-batches of the whole group (ep x tokens_per_rank tokens)."""
    placement = contiguous(loads, ep) if placement is None else placement
    counts = sample_counts(loads, ep * tokens_per_rank, draws=micro_batches, seed=seed)
    placed = place(padded(counts, loads.pad_to), placement, ep)
    over = placed.max_over_mean
    fullest = placed.fullest_over_mean.mean(axis=0)
    quantiles = np.quantile(over, QUANTILES, axis=0)
    moved = exchanged(pair_rows(loads, placement, ep, tokens_per_rank, seed=seed + 1), ranks_per_node)
    return tuple(
        LoadStats(
            layer=i, mean_rows=float(placed.mean[:, i].mean()), max_over_mean=float(over[:, i].mean()),
            fullest_over_mean=float(fullest[i]), quantiles=tuple(float(q) for q in quantiles[:, i]),
            sent_rows=float(moved[0][i]), received_rows=float(moved[1][i]),
            node_sent_rows=float(moved[2][i]), node_received_rows=float(moved[3][i]),
        )
        for i in range(loads.num_layers)
    )  # fmt: skip


def stay_share(loads: ExpertLoads, placement: Ints) -> Floats:
    """Share [layer - 1] of a token's choices in the next layer that lie where its choice in this layer does.

    placement[layer, expert] -> rank (or node): sum over e, f in the same place of chance[e] transition[e, f] / k^2.
    Dispatch and combine are not shorter by it: trainers return tokens to their rank between layers. Raises UserError
    without transitions.
    """
    if loads.transitions is None:
        raise UserError("no transitions are known; give a trace with a column per layer", where="routing")
    same = placement[:-1, :, None] == placement[1:, None, :]
    both = loads.chance[:-1, :, None] * loads.transitions
    out: Floats = (both * same).sum(axis=(1, 2)) / loads.top_k**2
    return out


def expected_rows(loads: ExpertLoads, ep: int, tokens: int, placement: Ints | None = None) -> Floats:
    """Mean rows [layer, rank] of a micro-batch of `tokens` tokens of the whole group."""
    placement = contiguous(loads, ep) if placement is None else placement
    mean, _ = rank_moments(loads, placement, ep)
    return mean * tokens
