"""Activations of the fullest rank: what parts of a stage keep, less what no single rank has all of.

Parts are priced at the hottest rank of each layer (`sim.cost.levels`), which time waits for. The bytes a layer keeps
are linear in the rows it receives, so those of the rank that holds most over its stage (`sim.routing.held`) follow
from its load and the bytes of a row. Transients of one layer stay those of its hottest rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.build.moe import hottest_over_mean
from sim.build.stages import StageContent
from sim.cost.levels import LayerLevels
from sim.model import MoESpec
from sim.routing import ExpertLoads


@dataclass(frozen=True, kw_only=True)
class Held:
    """Routed rows of one virtual stage and micro-batch, numbers or columns.

    loads, layers: the popularity and the rows of it that its layers have. load: rows over the mean summed over layers,
    of the fullest rank; priced: the same with each layer at its own hottest rank. bytes_per_load: activation bytes per
    unit of either.
    """

    loads: ExpertLoads
    layers: tuple[int, ...]
    load: Any
    priced: Any
    bytes_per_load: Any

    @property
    def excess_bytes(self) -> Any:
        """What prices hold too much: no rank is the hottest in every layer."""
        return self.bytes_per_load * np.maximum(0.0, self.priced - self.load)


class HeldRows:
    """What virtual stages hold under the routing of a context; nothing to correct where no popularity is known."""

    def __init__(self, ctx: Context, levels: LayerLevels) -> None:
        self.ctx, self.levels = ctx, levels
        self._slopes: dict[int, Any] = {}
        self._means: dict[MoESpec, Any] = {}

    def of(self, content: StageContent) -> list[Held]:
        """One record per kind of experts on the virtual stage; empty under forced balance and one stated load."""
        return [self._held(content, moe, same) for moe, same in self.kinds_of(content).items()]

    def kinds_of(self, content: StageContent) -> dict[MoESpec, list[int]]:
        """Kinds of layers on the virtual stage by their experts, as `of` takes them."""
        if not self.ctx.routing.loads:
            return {}
        kinds: dict[MoESpec, list[int]] = {}
        for kind, (n, layer) in enumerate(zip(content.kind_counts, self.levels.kinds, strict=True)):
            if n and layer.moe is not None:
                kinds.setdefault(layer.moe, []).append(kind)
        return kinds

    def excess_bytes(self, content: StageContent) -> Any:
        """`Held.excess_bytes` of a virtual stage."""
        return sum((each.excess_bytes for each in self.of(content)), 0.0)

    def _held(self, content: StageContent, moe: MoESpec, kinds: Sequence[int]) -> Held:
        loads = self.ctx.routing.loads_of(moe.num_experts, moe.top_k)
        assert loads is not None
        layers, load, priced = self.rows_of(content, moe, kinds)
        count = sum(content.kind_counts[kind] for kind in kinds)
        width = sum(content.kind_counts[kind] * self.slope(kind) for kind in kinds)
        return Held(loads=loads, layers=layers, load=load, priced=priced, bytes_per_load=width / count)

    def rows_of(self, content: StageContent, moe: MoESpec, kinds: Sequence[int]) -> tuple[tuple[int, ...], Any, Any]:
        """(layers, load, priced) of `Held` for the kinds of layers with these experts, whatever a row keeps."""
        key, known = (content.kind_counts, content.own_loads, content.beside, *kinds), self.levels.known.held
        if key not in known:
            loads = self.ctx.routing.loads_of(moe.num_experts, moe.top_k)
            assert loads is not None
            known[key] = self._load(content, moe, kinds, loads)
        return known[key]

    def _load(
        self, content: StageContent, moe: MoESpec, kinds: Sequence[int], loads: ExpertLoads
    ) -> tuple[tuple[int, ...], Any, Any]:
        ctx, levels = self.ctx, self.levels
        count = sum(content.kind_counts[kind] for kind in kinds)
        layers, beside = (self._rows(where, kinds) for where in (content.own_loads, content.beside))
        own = {kind: levels.rows(content, kind) if content.own_loads else [] for kind in kinds}
        if moe not in self._means:
            self._means[moe] = hottest_over_mean(ctx, moe)
        priced: Any = self._means[moe] * (count - len(layers))
        for kind, rows in own.items():
            priced = priced + (levels.loads(kind)[0][..., rows].sum(axis=-1) if rows else 0.0)
        if not layers:  # all alike
            layers = tuple(row % loads.num_layers for row in range(count))
        load = ctx.routing.held_for(
            ctx.plan.ep, ctx.group_tokens, layers, beside=beside, num_experts=moe.num_experts, top_k=moe.top_k,
            capacity_factor=ctx.software.capacity_factor,
        )  # fmt: skip
        return layers, np.minimum(load, priced), priced

    def _rows(self, layers: Sequence[int], kinds: Sequence[int]) -> tuple[int, ...]:
        """Rows in their popularity of those layers that are of one of the kinds."""
        return tuple(self.levels.own[layer] for layer in layers if self.levels.index[layer] in kinds)

    def slope(self, kind: int) -> Any:
        """Activation bytes of one layer per unit of load: what one more mean rank's rows keep."""
        if kind not in self._slopes:
            two = np.array([1.0, 2.0]).reshape(2, *(1,) * np.ndim(self.ctx.plan.ep))
            ops = layer_ops(replace(self.ctx, over_mean=two), self.levels.kinds[kind])
            saved = sum(op.saved_bytes for op in ops)
            self._slopes[kind] = saved[1] - saved[0] if np.ndim(saved) > np.ndim(self.ctx.plan.ep) else 0.0
        return self._slopes[kind]
