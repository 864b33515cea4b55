"""What a hard rule is: a named constraint with a source, on columns and in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.space import end_items, split_heads
from sim.columns import Columns
from sim.mesh import DEFAULT_MAP, RankMap
from sim.model import LayerSpec, ModelSpec
from sim.plan import Plan
from sim.workload import Workload

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Context:
    """The question a plan answers, reduced to the integers the rules compare.

    heads, kv_heads, dense_width, shared_width, expert_width are greatest common divisors over the
    layers (0 = no such part): a degree divides all of them exactly when it divides the gcd.
    end_items: embedding, loss and MTP, which count as layers when ends are accounted. ranks: order and devices of
    the ranks, the same for all plans the rules are asked about at once.
    """

    model: ModelSpec
    cluster: ClusterSpec
    software: SoftwareProfile
    workload: Workload
    world: int
    layers: int
    end_items: int
    heads: int
    kv_heads: tuple[int, ...]
    dense_width: int
    shared_width: int
    expert_width: int
    experts: int
    top_k: int
    min_experts: int
    expert_bias: bool
    mla: bool
    ranks: RankMap = DEFAULT_MAP

    @property
    def moe(self) -> bool:
        """True when the model has routed experts."""
        return self.experts > 0

    def micro_batches(self, columns: Columns) -> NDArray[np.int64]:
        """Micro-batches per step of one data-parallel rank."""
        return self.workload.global_batch_seqs // (columns.micro_batch_seqs * columns.dp)


def context(
    model: ModelSpec,
    cluster: ClusterSpec,
    software: SoftwareProfile,
    workload: Workload,
    ranks: RankMap = DEFAULT_MAP,
) -> Context:
    """The context of a question."""
    layers: tuple[LayerSpec, ...] = model.layers
    moes = [layer.moe for layer in layers if layer.moe is not None]
    return Context(
        model=model,
        cluster=cluster,
        software=software,
        workload=workload,
        world=cluster.num_devices,
        layers=len(layers),
        end_items=end_items(model, workload),
        heads=gcd(*(split_heads(x) for x in layers)),
        kv_heads=tuple(sorted({x.attention.kv_heads for x in layers if x.attention.kind == "gqa"})),
        dense_width=gcd(0, *(x.ffn_dim for x in layers if x.moe is None)),
        shared_width=gcd(0, *(moe.shared_ffn_dim for moe in moes), *(moe.residual_ffn_dim for moe in moes)),
        expert_width=gcd(0, *(moe.ffn_dim for moe in moes)),
        experts=gcd(0, *(moe.num_experts for moe in moes)),
        top_k=max((moe.top_k for moe in moes), default=0),
        min_experts=min((moe.num_experts for moe in moes), default=0),
        expert_bias=any(moe.expert_bias for moe in moes),
        mla=any(x.attention.kind == "mla" for x in layers),
        ranks=ranks,
    )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A hard rule. `ok(columns, context)` marks the rows that keep it (one bool when all rows agree).

    text is the rule in general; say(plan, context) what one plan breaks, with its numbers; where
    the options concerned; remedy what would fix it. source and version say who asks for it.
    """

    id: str
    target: str
    text: str
    where: str
    remedy: str
    source: str
    version: str
    ok: Callable[[Columns, Context], Mask | bool]
    say: Callable[[Plan, Context], str]


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One broken rule of one plan, in words."""

    rule: str
    what: str
    where: str
    remedy: str
    source: str

    def __str__(self) -> str:
        """One line for people: what (where); remedy [rule, source]."""
        return f"{self.what} ({self.where}); {self.remedy} [rule {self.rule}: {self.source}]"
