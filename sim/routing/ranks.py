"""Ranks of one expert-parallel group in order of load: what lanes other than the hottest rank's carry."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sim.routing.curve import padding_rows, rank_rows, steps_of
from sim.routing.expected import hottest
from sim.routing.loads import ExpertLoads
from sim.routing.record import Routing


@dataclass(frozen=True, kw_only=True)
class ShareOfHottest(Routing):
    """The same routing seen by a rank that gets `share` of the rows of the hottest one."""

    share: float = 1.0

    def max_over_mean_for(self, ep: Any, tokens: Any = None, **kind: Any) -> Any:
        """Expected rows of this rank over the mean (below 1 for a cold one); arguments as for `Routing`."""
        return self.share * super().max_over_mean_for(ep, tokens, **kind)

    def by_layer_for(self, ep: Any, tokens: Any = None, **kind: Any) -> Any:
        """The same of every layer; the share is one and the same in all of them."""
        found = super().by_layer_for(ep, tokens, **kind)
        return None if found is None else self.share * found

    def held_for(self, ep: Any, tokens: Any, layers: tuple[int, ...], **kind: Any) -> Any:
        """What this rank holds over the layers of its stage."""
        return self.share * super().held_for(ep, tokens, layers, **kind)


def colder(routing: Routing, share: float) -> Routing:
    """`routing` for a rank with `share` of the rows of the hottest; itself where the share is 1."""
    if share == 1.0:
        return routing
    return ShareOfHottest(**{f.name: getattr(routing, f.name) for f in fields(routing)}, share=share)


def median_share(
    routing: Routing, ep: int, tokens: float, *, num_experts: int, top_k: int, capacity_factor: float | None = None
) -> float:
    """Rows of the median rank over those of the hottest, both expected, mean over layers (and steps of a drift).

    Where only one number is known of the load, the median is taken to be the mean.
    """
    over = _over(routing, ep, tokens, num_experts, top_k, capacity_factor)
    loads = routing.loads_of(num_experts, top_k)
    if loads is None:
        return 1.0 / over
    middle = [np.median(mean, axis=1).mean() for mean, _ in _rows(routing, loads, ep, tokens, capacity_factor)]
    return min(1.0, float(np.mean(middle)) * ep / (loads.top_k * tokens) / over)


def node_shares(
    routing: Routing, ep: int, per_node: int, tokens: float, *, num_experts: int, top_k: int,
    capacity_factor: float | None = None,
) -> tuple[float, ...]:  # fmt: skip
    """Rows of the hottest rank of each node of `per_node` ranks over those of the hottest of all, hottest node first.

    Nodes are ordered in each layer and then averaged over layers: the first is the one that holds the hottest rank,
    whichever that is in a layer.
    """
    nodes = -(-ep // per_node)
    loads = routing.loads_of(num_experts, top_k)
    if loads is None or nodes == 1:
        over = _over(routing, ep, tokens, num_experts, top_k, capacity_factor)
        return (1.0,) + (1.0 / over,) * (nodes - 1)
    most = np.concatenate(
        [_hottest_by_node(*rows, ep, per_node) for rows in _rows(routing, loads, ep, tokens, capacity_factor)]
    )
    ordered = np.sort(most, axis=1)[:, ::-1].mean(axis=0)
    return (1.0, *(min(1.0, float(x / ordered[0])) for x in ordered[1:]))


def _over(routing: Routing, ep: int, tokens: float, num_experts: int, top_k: int, factor: float | None) -> float:
    return float(routing.max_over_mean_for(ep, tokens, num_experts=num_experts, top_k=top_k, capacity_factor=factor))


def _rows(routing: Routing, loads: ExpertLoads, ep: int, tokens: float, factor: float | None) -> list[tuple[Any, Any]]:
    """Mean, padding included, and variance [layer, rank] of the rows of ranks at each step of the drift."""
    found = [rank_rows(step, ep, tokens, factor) for step in steps_of(loads, routing.seed)]
    return [(mean + padding_rows(loads, ep), variance) for mean, variance in found]


def _hottest_by_node(mean: Any, variance: Any, ep: int, per_node: int) -> Any:
    """Expected rows of the hottest rank of each node, [layer, node]."""
    columns = [
        hottest(mean[:, s : s + per_node], variance[:, s : s + per_node])[0] if ep - s > 1 else mean[:, s]
        for s in range(0, ep, per_node)
    ]
    return np.stack(columns, axis=1)
