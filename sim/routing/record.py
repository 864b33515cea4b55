"""What a step needs of routing: how far the most loaded rank and expert lie above the mean, by expert-parallel size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from sim.routing.curve import LoadCurve, curve
from sim.routing.held import fullest_load
from sim.routing.loads import ExpertLoads
from sim.routing.spread import node_spread


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Load over the experts of one expert-parallel group.

    max_over_mean: tokens of the most loaded rank over the mean (1.0 = forced balance, as vendor benchmarks run). Time
    follows the most loaded rank of every layer, memory the rank that holds most over its layers, never the mean. With
    `loads` (popularity per layer, one record per kind of MoE layer) it depends on the expert-parallel size and on the
    tokens: `max_over_mean_for`; the field then holds the value of one expert per rank and endless tokens.
    eps: expert-parallel sizes it is made for, where experts are placed (empty: any).
    consecutive: under forced balance a token's k experts are neighbours (token i takes ik to ik + k - 1), so that few
    ranks hold them: what stand-ins for a router do.
    recorded_tokens: of the layer of which a file recorded fewest (0: no file). notes: what reports say of the file.
    """

    max_over_mean: float = 1.0
    source: str = "forced balance"
    loads: tuple[ExpertLoads, ...] = ()
    seed: int = 0
    eps: tuple[int, ...] = ()
    consecutive: bool = False
    recorded_tokens: float = 0.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.max_over_mean >= 1.0:
            raise UserError(
                f"max_over_mean = {self.max_over_mean} is impossible: the most loaded rank holds at least the mean; "
                "give a number >= 1"
            )

    def curve_of(
        self, num_experts: int | None = None, top_k: int | None = None, capacity_factor: float | None = None
    ) -> LoadCurve | None:
        """The curve of a kind of MoE layer (None: the first); None where the load is one number."""
        loads = self.loads_of(num_experts, top_k)
        return None if loads is None else curve(loads, seed=self.seed, capacity_factor=capacity_factor, eps=self.eps)

    def at_ep(self, ep: int) -> Routing:
        """The routing as a plan of this expert-parallel size meets it."""
        return self

    def loads_of(self, num_experts: int | None = None, top_k: int | None = None) -> ExpertLoads | None:
        """Popularity of a kind of MoE layer; the first where it is not among them."""
        for loads in self.loads:
            if (loads.num_experts, loads.top_k) == (num_experts, top_k):
                return loads
        return self.loads[0] if self.loads else None

    def max_over_mean_for(
        self, ep: Any, tokens: Any = None, *, num_experts: int | None = None, top_k: int | None = None,
        capacity_factor: float | None = None,
    ) -> Any:  # fmt: skip
        """Expected rows of the hottest of `ep` ranks over the mean sent, numbers or columns.

        tokens: of the whole expert-parallel group in one micro-batch (None: so many that only popularity matters).
        capacity_factor: experts keep no more than their capacity; a load that is one number does not see it.
        """
        found = self.curve_of(num_experts, top_k, capacity_factor)
        return self.max_over_mean if found is None else found.at(found.rank_over_mean, ep, tokens)

    def by_layer_for(
        self, ep: Any, tokens: Any = None, *, num_experts: int | None = None, top_k: int | None = None,
        capacity_factor: float | None = None,
    ) -> Any:  # fmt: skip
        """`max_over_mean_for` of every layer of a kind, [..., layer]; None where the load is one number."""
        found = self.curve_of(num_experts, top_k, capacity_factor)
        return None if found is None else found.at(found.rank_by_layer, ep, tokens)

    def held_for(
        self, ep: Any, tokens: Any, layers: tuple[int, ...], *, beside: tuple[int, ...] = (),
        num_experts: int | None = None, top_k: int | None = None, capacity_factor: float | None = None,
    ) -> Any:  # fmt: skip
        """Expected rows over the mean, summed over `layers` (rows of a kind's popularity), of the rank that holds most
        of its pipeline stage; beside: the stage's other layers. Memory follows it; see `sim.routing.held`.

        Where the load is one number, the same rank is taken to be the hottest in all layers.
        """
        loads = self.loads_of(num_experts, top_k)
        if loads is None:
            return self.max_over_mean * len(layers)
        return fullest_load(loads, ep, tokens, layers, beside=beside, seed=self.seed, factor=capacity_factor)

    def dropped_for(
        self, ep: Any, tokens: Any, capacity_factor: float, *, num_experts: int | None = None, top_k: int | None = None
    ) -> Any:
        """Expected share of token-choices dropped under a capacity, [..., layer]; None where the load is one number."""
        found = self.curve_of(num_experts, top_k, capacity_factor)
        return None if found is None else found.at(found.dropped_by_layer, ep, tokens)

    def fullest_over_mean_for(
        self, ep: Any, tokens: Any = None, *, num_experts: int | None = None, top_k: int | None = None,
        capacity_factor: float | None = None,
    ) -> Any:  # fmt: skip
        """Expected rows of the fullest expert of the hottest rank over that rank's mean; arguments as above.

        Where only one number is known, experts of the hottest rank are taken to be as uneven as ranks (assumed).
        """
        found = self.curve_of(num_experts, top_k, capacity_factor)
        return self.max_over_mean if found is None else found.at(found.expert_over_mean, ep, tokens)

    def spread_for(self, ep: Any, domains: Any, *, num_experts: int | None = None, top_k: int | None = None) -> Any:
        """Distinct scale-up domains of a token over those of uniform routing, numbers or columns: of experts that were
        placed for it and whose pairs are known; 1 otherwise."""
        loads = self.loads_of(num_experts, top_k)
        if loads is None or not loads.placed or loads.joint is None:
            return 1.0
        shape = np.broadcast_shapes(np.shape(ep), np.shape(domains))
        if shape == ():
            return node_spread(loads, int(ep), int(domains))
        pairs = np.stack([np.broadcast_to(v, shape).ravel() for v in (ep, domains)]).astype(np.int64)
        few, which = np.unique(pairs, axis=1, return_inverse=True)
        found = np.array([node_spread(loads, e, d) for e, d in few.T.tolist()])
        return found[which.ravel()].reshape(shape)
