"""A whole step: parts -> virtual stages -> the step profile, for one plan or for columns of plans.

`StepCost` prices each distinct layer and end once. `stage_sums` adds them up for one virtual stage;
the event run (`profile`) and the lower bound (`sim.screen`) both use it, so they cannot drift apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from sim.build.context import ACT_BYTES, FP32_BYTES, Context
from sim.build.ends import update_ops
from sim.build.layer import end_ops, layer_ops
from sim.build.stages import StageContent
from sim.cost.comm import CommTime
from sim.cost.ends import check_s, data_parallel
from sim.cost.footprint import (
    head_working_bytes,
    kind_params,
    layer_working_bytes,
    placeholder_bytes,
    stage_params,
    static_bytes,
)
from sim.cost.held import HeldRows
from sim.cost.levels import KnownLoads, LayerLevels
from sim.cost.model import CostModel
from sim.cost.offload import ActivationOffload
from sim.cost.state import LocalParams, TwoCopies, shards, trained
from sim.cost.timing import (
    BACKWARD,
    FORWARD,
    PartTime,
    half_micro_batch,
    half_ops,
    pair_s,
    part_time,
    two_batch_part,
)
from sim.cost.update import Update
from sim.mesh import Boundaries, boundaries, group
from sim.model import LayerSpec, mtp_block


@dataclass(frozen=True, kw_only=True)
class StageSums:
    """One virtual stage, one micro-batch (numbers or columns).

    network_forward_s, network_backward_s: busy seconds of the port and each level above it, as `CommCost.network`.
    """

    forward_s: Any
    backward_s: Any
    paired_s: Any
    wgrad_s: Any
    network_forward_s: tuple[Any, ...]
    network_backward_s: tuple[Any, ...]
    saved_bytes: Any
    deferred_bytes: Any
    working_bytes: Any
    params: LocalParams


SUMMED = ("forward_s", "backward_s", "paired_s", "wgrad_s", "saved_bytes", "deferred_bytes")


class StepCost:
    """Prices of every part of a model under a plan (or a block of plans)."""

    def __init__(self, cost: CostModel, ctx: Context, known: KnownLoads | None = None) -> None:
        """known: loads of a step of the same plans under other settings (`LayerLevels`)."""
        self.cost = cost
        self.ctx = ctx
        self.kinds, index = ctx.model.layer_kinds()
        self.levels = LayerLevels(ctx, self.kinds, index, self.layer_at, known)
        self.held = HeldRows(ctx, self.levels)
        self.update = Update(cost, ctx, self.kinds)
        self.offload = ActivationOffload(cost, ctx)
        self._priced: dict[int, Any] = {}
        self._transients: dict[int, Any] = {}
        self._params: dict[tuple[Any, ...], LocalParams] = {}
        self._summed: dict[StageContent, StageSums] = {}
        self._all_kept: dict[StageContent, StageSums] = {}

    @property
    def stragglers(self) -> float:
        """How much longer work lasts where ranks of several nodes wait for each other: 1 on one node."""
        return 1.0 + self.cost.factors.stragglers * math.log2(max(1, self.cost.cluster.num_nodes))

    @cached_property
    def layer_parts(self) -> tuple[PartTime, ...]:
        """Time of one layer of each kind."""
        return tuple(self.layer_at(self.ctx, kind) for kind in range(len(self.kinds)))

    def half_part(self, half: Context, kind: int) -> PartTime:
        """Time of one layer of a kind on half of a micro-batch (two-batch overlap); half: from `half_of`."""
        layer = self.kinds[kind]
        return part_time(self.cost, half, half_ops(layer_ops(half, layer)), layer.moe)

    def half_of(self, ctx: Context, kind: int, row: int | None = None) -> Context:
        """The context of half a micro-batch, in which fewer tokens are more uneven.

        ctx: of the mean layer, of the coldest or hottest one of its kind, or (`row`) of one layer's own load.
        """
        half = half_micro_batch(ctx)
        if ctx.over_mean is None:
            return half
        by_layer, (low, _, high) = self.half_levels.loads(kind)
        if row is not None:
            return replace(half, over_mean=by_layer[..., row])
        return replace(half, over_mean=low if ctx is self.levels.contexts(kind)[0] else high)

    def layer_at(self, ctx: Context, kind: int, row: int | None = None) -> PartTime:
        """Time of one layer of a kind as the software runs it; arguments as for `half_of`."""
        layer = self.kinds[kind]
        whole = part_time(self.cost, ctx, layer_ops(ctx, layer), layer.moe)
        if not ctx.software.two_batch_overlap:
            return whole
        return two_batch_part(self.cost, whole, self.half_part(self.half_of(ctx, kind, row), kind))

    @cached_property
    def half_levels(self) -> LayerLevels:
        """Loads of the layers in half a micro-batch."""
        return LayerLevels(half_micro_batch(self.ctx), self.kinds, self.levels.index, self.half_part)

    @cached_property
    def half_parts(self) -> tuple[PartTime, ...]:
        """Time of one layer of each kind on half of a micro-batch (two-batch overlap)."""
        return tuple(self.half_part(half_micro_batch(self.ctx), kind) for kind in range(len(self.kinds)))

    def edge_s(self, content: StageContent, way: str) -> Any:
        """Seconds a virtual stage takes beyond its layers where two batches overlap: its ends hide nothing."""
        edges = [(n, part.edge_s[way]) for n, part in self.parts_of(content) if part.edge_s]
        return sum(n * seconds for n, seconds in edges) / sum(n for n, _ in edges) if edges else 0.0

    @cached_property
    def embedding(self) -> PartTime:
        """Time of the embedding."""
        return part_time(self.cost, self.ctx, end_ops(self.ctx, "embedding"))

    @cached_property
    def head(self) -> tuple[PartTime, ...]:
        """Final norm, head and loss; with MTP also its block (projection, layer, head again)."""
        parts = [part_time(self.cost, self.ctx, end_ops(self.ctx, "head"))]
        if self.ctx.workload.with_mtp and self.ctx.model.mtp_layers:
            for _ in range(self.ctx.model.mtp_layers):
                parts.append(part_time(self.cost, self.ctx, end_ops(self.ctx, "mtp")))
                parts += [self.layer_parts[self.kinds.index(layer)] for layer in mtp_block(self.ctx.model)]
        return tuple(parts)

    @cached_property
    def layer_params(self) -> tuple[LocalParams, ...]:
        """Local parameters of one layer of each kind."""
        params = kind_params(self.ctx)
        if self.ctx.workload.optimizer.name == "muon":
            return tuple(replace(p, more=self.update.matrices(kind)) for kind, p in enumerate(params))
        return params

    def layers_of(self, content: StageContent) -> list[tuple[Any, PartTime]]:
        """(count, part) of the layers of a virtual stage; counts are shares of levels where layers have own loads."""
        parts: list[tuple[Any, PartTime]] = []
        for kind, (n, part) in enumerate(zip(content.kind_counts, self.layer_parts, strict=True)):
            own = len(self.levels.rows(content, kind)) if content.own_loads else 0
            if own:
                parts += zip(self.levels.counts(content, kind), self.levels.parts(kind, part), strict=True)
            if n > own:
                parts.append((n - own, part))
        return parts

    def parts_of(self, content: StageContent) -> list[tuple[Any, PartTime]]:
        """(count, part) of everything on a virtual stage."""
        parts = self.layers_of(content)
        if content.embedding:
            parts.append((1, self.embedding))
        if content.head:
            parts += [(1, p) for p in self.head]
        return parts

    def prices(self, part: PartTime) -> Any:
        """What adds up over the parts of a stage, one row per field of SUMMED, then the links of the network
        forward and backward (once per part)."""
        if id(part) not in self._priced:
            alone = part.duration_s(FORWARD), part.duration_s(BACKWARD)
            pair = alone[0] + alone[1]
            if self.ctx.software.a2a_overlap:
                pair = np.maximum(pair_s(self.cost, part), part.host[FORWARD] + part.host[BACKWARD])
            ways = part.network_s[FORWARD], part.network_s[BACKWARD]
            busy = (seconds.get(link, 0.0) for seconds in ways for link in self.cost.comm.network)
            waits = self.stragglers
            work = (seconds * waits for seconds in (*alone, pair, part.wgrad_s))
            rows = (*work, part.saved, part.deferred, *busy)
            shape = np.shape(np.asarray(self.ctx.plan.tp))
            self._priced[id(part)] = np.stack([np.broadcast_to(row, shape) for row in rows])
        return self._priced[id(part)]

    def stage_sums(self, content: StageContent) -> StageSums:
        """Durations, NIC time, memory and parameters of one virtual stage."""
        if content not in self._summed:
            # what lies beside changes nothing but the activations of the fullest rank
            alone = replace(content, beside=()) if content.beside else content
            if alone not in self._all_kept:
                self._all_kept[alone] = self._sum(alone)
            all_kept = self._all_kept[alone]
            saved = self._kept_here(content, all_kept.saved_bytes)
            working = all_kept.working_bytes
            if content.embedding:
                table = self.table_bytes() + placeholder_bytes(self.ctx, self._kinds_on(content))
                working = np.maximum(working, table - saved)
            self._summed[content] = replace(all_kept, saved_bytes=saved, working_bytes=working)
        return self._summed[content]

    def _sum(self, content: StageContent) -> StageSums:
        """Every layer at its own hottest rank; the embedding's gradient is left out of the transients."""
        shape = np.shape(np.asarray(self.ctx.plan.tp))
        links = len(self.cost.comm.network)
        total = np.zeros((len(SUMMED) + 2 * links, *shape))
        for n, part in self.parts_of(content):
            total = total + n * self.prices(part)
        sums = dict(zip(SUMMED, total, strict=False))
        if self.ctx.software.two_batch_overlap:
            edges = [self.stragglers * self.edge_s(content, way) for way in (FORWARD, BACKWARD)]
            for name, seconds in (("forward_s", edges[0]), ("backward_s", edges[1]), ("paired_s", sum(edges))):
                sums[name] = sums[name] + seconds
        if stall_s := self.stall_s(content):
            alone = [sums[name] + waits for name, waits in zip(("forward_s", "backward_s"), stall_s, strict=True)]
            paired = self.offload.paired_s(self.moved_bytes(content), sums["paired_s"], *alone)
            sums |= {"forward_s": alone[0], "backward_s": alone[1], "paired_s": paired}
        forward, backward = total[len(SUMMED) : -links], total[-links:]
        sums["paired_s"] = np.minimum(sums["paired_s"], sums["forward_s"] + sums["backward_s"])
        return StageSums(
            **sums, network_forward_s=tuple(forward), network_backward_s=tuple(backward),
            working_bytes=self._working_bytes(content),
            params=self.params_of(content),
        )  # fmt: skip

    def stall_s(self, content: StageContent) -> tuple[Any, ...]:
        """Seconds a forward and a backward wait for copies to and from the host; () = none are made."""
        if not self.offload.on or not content.num_layers:
            return ()
        layers = self.layers_of(content)
        prices = [self.prices(part) for _, part in layers]
        return tuple(self.offload.stall_s(content, layers, [p[way] for p in prices]) for way in range(2))

    def moved_bytes(self, content: StageContent) -> Any:
        """Activation bytes of one micro-batch of a virtual stage that go to the host and come back."""
        if not self.offload.on or not content.num_layers:
            return 0.0
        return self.offload.moved_bytes(content, self.layers_of(content))

    def _kept_here(self, content: StageContent, saved: Any) -> Any:
        """Saved activations of the fullest rank, less what rests on the host."""
        excess = self.held.excess_bytes(content)
        if not self.offload.on:
            return saved - excess
        return self.offload.kept_bytes(content, self.layers_of(content), saved - excess, excess)

    def table_bytes(self) -> Any:
        """Gradient of the embedding's shape; none where it is frozen."""
        table = ACT_BYTES * self.ctx.model.vocab_size * self.ctx.model.hidden_dim / np.asarray(self.ctx.plan.tp)
        return 0.0 * table if self.ctx.workload.lora else table

    def _kinds_on(self, content: StageContent) -> list[LayerSpec]:
        return [layer for n, layer in zip(content.kind_counts, self.kinds, strict=True) if n]

    def _working_bytes(self, content: StageContent) -> Any:
        """Largest transient of one virtual stage on top of what is saved.

        Layers: what recompute holds again plus gradients of activations. Head and loss. (Embedding: `table_bytes`,
        when the stage's own activations are gone.) Gradient placeholders stay throughout.
        """
        ctx = self.ctx
        working = np.zeros(np.shape(np.asarray(ctx.plan.tp)))
        for kind, (n, part) in enumerate(zip(content.kind_counts, self.layer_parts, strict=True)):
            if n:
                working = np.maximum(working, self._layer_working_bytes(content, kind, part))
        if content.head:
            working = np.maximum(working, head_working_bytes(ctx))
        return working + placeholder_bytes(ctx, self._kinds_on(content))

    def _layer_working_bytes(self, content: StageContent, kind: int, mean: PartTime) -> Any:
        """Transient of the hottest layer of a kind on a virtual stage."""
        layer, levels = self.kinds[kind], self.levels
        if not content.own_loads or not levels.rows(content, kind):
            return mean.remat + layer_working_bytes(self.ctx, layer)
        if kind not in self._transients:
            at = zip(levels.parts(kind, mean), levels.contexts(kind), strict=True)
            sizes = np.broadcast_arrays(*(part.remat + layer_working_bytes(ctx, layer) for part, ctx in at))
            self._transients[kind] = np.stack(sizes)
        return levels.hottest(content, kind, self._transients[kind])

    def params_of(self, content: StageContent) -> LocalParams:
        """Parameters of one virtual stage on a rank, before data-parallel sharding."""
        key = (content.kind_counts, content.embedding, content.head)  # the loads of the layers do not matter
        if key not in self._params:
            self._params[key] = stage_params(self.ctx, content, self.kinds, self.layer_params)
        return self._params[key]

    def static(self, params: LocalParams) -> dict[str, Any]:
        """Weights, gradients and optimizer state by tag; FSDP adds two gathered layers."""
        tags = static_bytes(self.ctx, params)
        if self.ctx.plan.zero_stage == 3:
            largest = np.maximum.reduce([p.dense + p.routed for p in self.layer_params])
            grad = FP32_BYTES if self.ctx.software.grad_dtype == "fp32" else ACT_BYTES
            summed = np.maximum.reduce([q.dense + q.routed for q in (trained(self.ctx, p) for p in self.layer_params)])
            tags["gathered"] = largest * (2 * ACT_BYTES) + summed * grad
        return tags

    def of_state(self) -> StepCost:
        """The cost of the model's state: of this step, or of ranks that share it with those of the mirrored stages.

        Where the model is held twice, a stage's two parts lie on two ranks each, which reduce their gradients and
        shard the optimizer together: twice the data-parallel ranks of half the stages.
        """
        if self.ctx.plan.schedule != "dualpipe":
            return self
        return StepCost(self.cost, replace(self.ctx, plan=TwoCopies(of=self.ctx.plan)))

    def data_parallel(self, params: LocalParams) -> tuple[CommTime, CommTime]:
        """(gradient reduction, parameter gather) of one stage, once per step (`sim.cost.ends`)."""
        return data_parallel(self.cost, self.ctx, params)

    def check_s(self, params: LocalParams) -> Any:
        """Seconds per step in which one stage's gradients are checked before they are sent (`sim.cost.ends`)."""
        return check_s(self.cost, self.ctx, params)

    def optimizer_s(self, params: LocalParams) -> Any:
        """The weight update of a rank's share (`Update`); measured kernels where it is one over flat buffers."""
        if not self.ctx.software.flat_optimizer or self.ctx.workload.optimizer.stated:
            return self.update.seconds(params)
        plan, mine = self.ctx.plan, trained(self.ctx, params)
        buffers = (count / share for count, share in zip((mine.dense, mine.routed), shards(self.ctx), strict=True))
        ops = [op for count in buffers for op in update_ops(self.ctx, count)]
        # the norm is summed over the ranks
        ranks = group(plan, "dp_cp", self.cost.cluster, self.cost.ranks)
        norm = self.cost.comm.collective("all_reduce", FP32_BYTES, ranks)
        return sum((self.cost.device_s(op) for op in ops), norm.alone_s)

    def overhead_s(self, contents: tuple[StageContent, ...]) -> Any:
        """Host time of the step's end on one stage: fixed, and `end_launch_s` of each virtual stage."""
        return sum((self.end_launch_s(content) for content in contents), self.cost.factors.step_fixed_s)

    def end_launch_s(self, content: StageContent) -> Any:
        """Host time of the gradient copies, norm, Adam and copy-back loop over a virtual stage's parameter tensors."""
        if self.ctx.software.flat_optimizer:
            return np.zeros(np.shape(np.asarray(self.ctx.plan.tp)))  # a handful of launches, behind the backward
        layers = zip(content.kind_counts, self.kinds, strict=True)
        return self.update.launch_s(layers, content.embedding + content.head)

    @cached_property
    def boundaries(self) -> Boundaries:
        """The links between neighbouring pipeline stages."""
        return boundaries(self.ctx.plan, self.cost.cluster, self.cost.ranks)

    def p2p(self, highest: int) -> CommTime:
        """One activation (or its gradient) between two stages; highest: link they lie apart by (`Boundaries`)."""
        ctx = self.ctx
        # each tensor-parallel rank sends its share, whether or not activations rest in shares
        nbytes = ctx.tokens * ctx.model.hidden_dim * ctx.model.streams * ACT_BYTES / ctx.plan.tp
        return self.cost.comm.collective("p2p", nbytes, self.boundaries.pair(ctx.plan, highest))
