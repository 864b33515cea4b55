"""MoE layers with loads of their own: each kind priced at three loads, each virtual stage a mix of them.

The routed part of a layer is nearly linear in the rows of its hottest rank, so a kind is priced at the load of its
coldest layer, of the mean layer and of its hottest layer, and every layer lies on the broken line through them. What
a stage costs is then a count of each level: adding up over layers, and so over stages, is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from sim.build.context import Context
from sim.build.stages import StageContent
from sim.cost.timing import PartTime
from sim.model import LayerSpec
from sim.routing.layers import kind_loads, level_shares, load_levels, own_loads


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownLoads:
    """What follows from the routing, the expert-parallel sizes and the tokens alone, whatever is recomputed: shared by
    the costs of one table of plans. By kind of layer, or by the layers of a virtual stage and kind (kinds); stages: of
    all virtual stages of a layout (`sim.cost.stage_prices`)."""

    loads: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    shares: dict[int, Any] = field(default_factory=dict)
    counts: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    held: dict[tuple[Any, ...], tuple[tuple[int, ...], Any, Any]] = field(default_factory=dict)
    stages: dict[tuple[Any, ...], Any] = field(default_factory=dict)


class LayerLevels:
    """Loads and prices of the layers of one model under a routing.

    kinds, index: as `ModelSpec.layer_kinds` gives them; price: prices a kind of layer under a context; known: of
    contexts with the same loads.
    """

    def __init__(
        self, ctx: Context, kinds: Sequence[LayerSpec], index: Sequence[int],
        price: Callable[[Context, int], PartTime], known: KnownLoads | None = None,
    ) -> None:  # fmt: skip
        self.ctx, self.kinds, self.index = ctx, kinds, index
        self._price = price
        self._contexts: dict[int, tuple[Context, ...]] = {}
        self._parts: dict[int, tuple[PartTime, ...]] = {}
        self.known = KnownLoads() if known is None else known

    @cached_property
    def own(self) -> dict[int, int]:
        """Row in its kind's popularity, of layers with a load of their own."""
        return dict(own_loads(self.ctx.model, self.ctx.routing))

    def loads(self, kind: int) -> tuple[Any, Any]:
        """(load [..., row] of every layer of the kind's popularity, the three levels [level, ...])."""
        if kind not in self.known.loads:
            moe = self.kinds[kind].moe
            assert moe is not None
            ctx = self.ctx
            by_layer, mean = kind_loads(ctx.routing, moe, ctx.plan.ep, ctx.group_tokens, ctx.software.capacity_factor)
            self.known.loads[kind] = by_layer, load_levels(by_layer, mean)
        return self.known.loads[kind]

    def contexts(self, kind: int) -> tuple[Context, ...]:
        """The context at each level; at the mean the one that every other layer is priced in."""
        if kind not in self._contexts:
            _, (low, _, high) = self.loads(kind)
            self._contexts[kind] = replace(self.ctx, over_mean=low), self.ctx, replace(self.ctx, over_mean=high)
        return self._contexts[kind]

    def parts(self, kind: int, mean: PartTime) -> tuple[PartTime, ...]:
        """The kind priced at each level; `mean`: at the middle one."""
        if kind not in self._parts:
            low, _, high = self.contexts(kind)
            self._parts[kind] = self._price(low, kind), mean, self._price(high, kind)
        return self._parts[kind]

    def rows(self, content: StageContent, kind: int) -> list[int]:
        """Rows in the kind's popularity of the layers of a virtual stage that have loads of their own."""
        return [self.own[layer] for layer in content.own_loads if self.index[layer] == kind]

    def shares(self, kind: int) -> Any:
        """Shares of the levels [level, ..., row] that every layer of a kind's popularity is."""
        if kind not in self.known.shares:
            by_layer, levels = self.loads(kind)
            self.known.shares[kind] = level_shares(by_layer, levels[..., None])
        return self.known.shares[kind]

    def counts(self, content: StageContent, kind: int) -> Any:
        """How often each level [level, ...] enters a virtual stage."""
        key = (content.own_loads, kind)
        if key not in self.known.counts:
            self.known.counts[key] = self.shares(kind)[..., self.rows(content, kind)].sum(axis=-1)
        return self.known.counts[key]

    def hottest(self, content: StageContent, kind: int, values: Any) -> Any:
        """What rises with the load, at the hottest layer of a virtual stage; values[level, ...]: at each level."""
        at_layers = (values[..., None] * self.shares(kind)[..., self.rows(content, kind)]).sum(axis=0)
        return at_layers.max(axis=-1)
