"""Which layers of a model have a load of their own, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sim.model import ModelSpec, MoESpec
from sim.routing.record import Routing
from sim.routing.spec import moe_layers


def own_loads(model: ModelSpec, routing: Routing) -> Mapping[int, int]:
    """Row in its kind's popularity of every layer whose load is not that of the mean layer.

    Empty under forced balance, where all layers are alike, and where the popularity is not one of this model's layers.
    """
    own: dict[int, int] = {}
    for moe, layers in moe_layers(model).items() if routing.loads else ():
        loads = routing.loads_of(moe.num_experts, moe.top_k)
        if not moe.expert_choice and loads is not None and loads.num_layers == len(layers) and loads.layers_differ:
            own.update({layer: row for row, layer in enumerate(layers)})
    return own


def load_levels(by_layer: Any, mean: Any) -> Any:
    """The three loads [level, ...] a kind of layer is priced at: its coldest layer's, the mean, its hottest layer's."""
    by_layer = np.asarray(by_layer)
    return np.stack([by_layer.min(axis=-1), np.asarray(mean, float), by_layer.max(axis=-1)])


def level_shares(load: Any, levels: Any) -> Any:
    """Shares [level, ...] of the three levels that make up `load` on the broken line through them; they sum to 1."""
    low, middle, high = levels
    cold = np.clip((middle - load) / np.maximum(middle - low, 1e-300), 0.0, 1.0)
    hot = np.clip((load - middle) / np.maximum(high - middle, 1e-300), 0.0, 1.0)
    return np.stack([cold, 1.0 - cold - hot, hot])


def kind_loads(routing: Routing, moe: MoESpec, ep: Any, tokens: Any, capacity_factor: float | None) -> tuple[Any, Any]:
    """(hottest rank over mean [..., layer] of a kind, its mean over layers [...]), numbers or columns."""
    by_layer = routing.by_layer_for(
        ep, tokens, num_experts=moe.num_experts, top_k=moe.top_k, capacity_factor=capacity_factor
    )
    mean = routing.max_over_mean_for(
        ep, tokens, num_experts=moe.num_experts, top_k=moe.top_k, capacity_factor=capacity_factor
    )
    return by_layer, mean
