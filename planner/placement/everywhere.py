"""Experts placed for whatever expert-parallel size a plan has: what the search for a layout sees of placement.

The first kind of MoE layers is placed anew for every size that a candidate has, once; its load over ranks and its
fan-out over domains are then those of the placed experts, for the bound of a candidate as for its event run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from planner.placement.answer import place_experts
from planner.placement.records import PlacementResult
from planner.placement.scoring import placed_routing, routing_instance
from sim.routing import Routing

PLACED = ", placed"


@dataclass(frozen=True, kw_only=True)
class PlacedEverywhere(Routing):
    """A routing whose experts are placed by expert-parallel size, on nodes of `devices_per_node` GPUs.

    redundant_experts: slots for further copies in a layer, of which as many are used as the GPUs share equally.
    """

    devices_per_node: int = 8
    redundant_experts: int = 0
    _found: dict[int, tuple[Routing, PlacementResult | None]] = field(default_factory=dict, compare=False, repr=False)

    def at_ep(self, ep: int) -> Routing:
        """The routing with experts placed on `ep` GPUs; as it was where they cannot be dealt equally, or on one."""
        return self._at(ep)[0]

    def placement_at(self, ep: int) -> PlacementResult | None:
        """The placement behind `at_ep`, with its certificate; None where nothing is placed."""
        return self._at(ep)[1]

    def _at(self, ep: int) -> tuple[Routing, PlacementResult | None]:
        if ep not in self._found:
            given = {f.name: getattr(self, f.name) for f in fields(Routing)}
            plain = Routing(**given | {"source": self.source.removesuffix(PLACED)})
            if ep == 1 or self.loads[0].num_experts % ep:
                self._found[ep] = plain, None
            else:
                per_node = next(n for n in range(min(self.devices_per_node, ep), 0, -1) if ep % n == 0)
                experts = self.loads[0].num_experts
                slots = min((experts + self.redundant_experts) // ep, experts)
                asked = routing_instance(plain, gpus=ep, gpus_per_node=per_node, slots_per_gpu=slots)
                result = place_experts(asked, seed=self.seed)
                self._found[ep] = placed_routing(plain, result.placement), result
        return self._found[ep]

    def _each(self, ep: Any, tokens: Any, ask: Callable[[Routing, Any, Any], Any]) -> Any:
        """`ask` of the routing at every size of a column, put together again."""
        sizes, counts = np.broadcast_arrays(np.asarray(ep), np.nan if tokens is None else np.asarray(tokens, float))
        if sizes.ndim == 0:
            return ask(self.at_ep(int(sizes)), ep, tokens)
        out: Any = None
        for each in np.unique(sizes).tolist():
            here = sizes == each
            found = np.asarray(ask(self.at_ep(int(each)), sizes[here], None if tokens is None else counts[here]))
            found = np.broadcast_to(found, (int(here.sum()), *found.shape[1:]))
            if out is None:
                out = np.empty((*sizes.shape, *found.shape[1:]))
            out[here] = found
        return out

    def max_over_mean_for(self, ep: Any, tokens: Any = None, **kind: Any) -> Any:
        """As `Routing.max_over_mean_for`, of placed experts."""
        return self._each(ep, tokens, lambda r, e, t: r.max_over_mean_for(e, t, **kind))

    def by_layer_for(self, ep: Any, tokens: Any = None, **kind: Any) -> Any:
        """As `Routing.by_layer_for`, of placed experts."""
        return self._each(ep, tokens, lambda r, e, t: r.by_layer_for(e, t, **kind))

    def fullest_over_mean_for(self, ep: Any, tokens: Any = None, **kind: Any) -> Any:
        """As `Routing.fullest_over_mean_for`, of placed experts."""
        return self._each(ep, tokens, lambda r, e, t: r.fullest_over_mean_for(e, t, **kind))

    def held_for(self, ep: Any, tokens: Any, layers: tuple[int, ...], **kind: Any) -> Any:
        """As `Routing.held_for`, of placed experts."""
        return self._each(ep, tokens, lambda r, e, t: r.held_for(e, t, layers, **kind))

    def dropped_for(self, ep: Any, tokens: Any, capacity_factor: float, **kind: Any) -> Any:
        """As `Routing.dropped_for`, of placed experts."""
        return self._each(ep, tokens, lambda r, e, t: r.dropped_for(e, t, capacity_factor, **kind))

    def spread_for(self, ep: Any, domains: Any, **kind: Any) -> Any:
        """As `Routing.spread_for`, of placed experts."""
        return self._each(ep, domains, lambda r, e, d: r.spread_for(e, d, **kind))


def placed_everywhere(routing: Routing, devices_per_node: int, *, redundant_experts: int = 0) -> Routing:
    """The routing with its experts placed for every size; itself under forced balance, where nothing changes."""
    if not routing.loads:
        return routing
    given = {f.name: getattr(routing, f.name) for f in fields(Routing)} | {"source": routing.source + PLACED}
    return PlacedEverywhere(**given, devices_per_node=devices_per_node, redundant_experts=redundant_experts)
