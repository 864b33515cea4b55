"""Ranks of one expert-parallel group in order of load: what lanes other than the hottest rank's carry."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sim.routing.expected import hottest
from sim.routing.loads import ExpertLoads, contiguous, rank_moments
from sim.routing.record import Routing


@dataclass(frozen=True, kw_only=True)
class ShareOfHottest(Routing):
    """The same routing seen by a rank that gets `share` of the rows of the hottest one."""

    share: float = 1.0

    def max_over_mean_for(
        self, ep: Any, tokens: Any = None, *, num_experts: int | None = None, top_k: int | None = None
    ) -> Any:
        """Expected rows of this rank over the mean (below 1 for a cold one); arguments as for `Routing`."""
        return self.share * super().max_over_mean_for(ep, tokens, num_experts=num_experts, top_k=top_k)


def colder(routing: Routing, share: float) -> Routing:
    """`routing` for a rank with `share` of the rows of the hottest; itself where the share is 1."""
    if share == 1.0:
        return routing
    return ShareOfHottest(**{f.name: getattr(routing, f.name) for f in fields(routing)}, share=share)


def median_share(routing: Routing, ep: int, tokens: float, *, num_experts: int, top_k: int) -> float:
    """Rows of the median rank over those of the hottest, both expected, mean over layers.

    Where only one number is known of the load, the median is taken to be the mean.
    """
    over = float(routing.max_over_mean_for(ep, tokens, num_experts=num_experts, top_k=top_k))
    loads = routing.loads_of(num_experts, top_k)
    if loads is None:
        return 1.0 / over
    mean, _ = rank_moments(loads, contiguous(loads, ep), ep)
    middle = float(np.median(mean, axis=1).mean()) * ep / loads.top_k
    return min(1.0, middle / over)


def node_shares(
    routing: Routing, ep: int, per_node: int, tokens: float, *, num_experts: int, top_k: int
) -> tuple[float, ...]:
    """Rows of the hottest rank of each node of `per_node` ranks over those of the hottest of all, hottest node first.

    Nodes are ordered in each layer and then averaged over layers: the first is the one that holds the hottest rank,
    whichever that is in a layer.
    """
    nodes = -(-ep // per_node)
    loads = routing.loads_of(num_experts, top_k)
    if loads is None or nodes == 1:
        over = float(routing.max_over_mean_for(ep, tokens, num_experts=num_experts, top_k=top_k))
        return (1.0,) + (1.0 / over,) * (nodes - 1)
    most = _hottest_by_node(loads, ep, per_node, tokens)
    ordered = np.sort(most, axis=1)[:, ::-1].mean(axis=0)
    return (1.0, *(min(1.0, float(x / ordered[0])) for x in ordered[1:]))


def _hottest_by_node(loads: ExpertLoads, ep: int, per_node: int, tokens: float) -> Any:
    """Expected rows of the hottest rank of each node, [layer, node]."""
    mean, variance = rank_moments(loads, contiguous(loads, ep), ep)
    starts = range(0, ep, per_node)
    columns = [
        hottest(mean[:, s : s + per_node] * tokens, variance[:, s : s + per_node] * tokens)[0]
        if ep - s > 1
        else mean[:, s] * tokens
        for s in starts
    ]
    return np.stack(columns, axis=1)
