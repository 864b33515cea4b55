"""Rules that several trainers have word for word: one device mesh, no tensor parallelism in an expert, FSDP shards."""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.rules.base import Context, Mask, Rule
from sim.columns import Columns

# tp innermost, the pipeline outermost: the one order of a target without an option for it.
ONE_ORDER: dict[str, str] = {"tp-cp-ep-dp-pp": ""}


def rank_order_rule(
    prefix: str, *, text: str, of: str, target: str, version: str, source: str, order: str = "tp-cp-ep-dp-pp"
) -> Rule:
    """The rule of a target that lays ranks one way; `of` names what is laid so."""
    return Rule(
        id=f"{prefix}-rank-order",
        target=target,
        text=text,
        where="--rank-order",
        remedy=f"use {order}",
        source=source,
        version=version,
        ok=lambda c, x: x.ranks.order == order,
        say=lambda p, x: f"rank order {x.ranks.order} is not that of its {of}",
    )


def _etp(c: Columns, x: Context) -> Mask:
    out: Mask = c.etp == 1
    return out


def no_etp_rule(
    prefix: str, *, target: str, version: str, source: str, text: str = "there is no expert tensor parallelism",
    why: str = "has no counterpart",
) -> Rule:  # fmt: skip
    """The rule of a target without tensor parallelism inside an expert."""
    return Rule(
        id=f"{prefix}-etp",
        target=target,
        text=text,
        where="--etp",
        remedy="set etp 1",
        source=source,
        version=version,
        ok=_etp,
        say=lambda p, x: f"etp {p.etp} {why}",
    )


def shard_ranks(c: Any) -> Any:
    """Data-parallel ranks that share one copy of the parameters by FSDP, context parallelism left out.

    c: a plan or columns of plans.
    """
    if c.zero_stage < 2:
        return c.dp // c.dp
    return c.dp if c.fsdp_shard == 0 else np.maximum(c.fsdp_shard // c.cp, 1)


def _shard(c: Columns, x: Context) -> Mask | bool:
    if c.fsdp_shard == 0:
        return True
    out: Mask = (c.fsdp_shard % c.cp == 0) & (c.dp % np.maximum(c.fsdp_shard // c.cp, 1) == 0)
    return out


def _zero(c: Columns, x: Context) -> bool:
    return c.zero_stage in (0, 2, 3)


def zero_rule(prefix: str, *, fsdp: str, target: str, version: str, source: str) -> Rule:
    """The rule of a target whose data parallelism is replicated or FSDP."""
    return Rule(
        id=f"{prefix}-zero",
        target=target,
        text=f"data parallelism is replicated (ZeRO 0) or {fsdp} (ZeRO 2, 3)",
        where="--zero",
        remedy="use ZeRO 3, 2 or 0",
        source=source,
        version=version,
        ok=_zero,
        say=lambda p, x: f"ZeRO {p.zero_stage} has no counterpart",
    )


def shard_rule(prefix: str, *, target: str, version: str, source: str) -> Rule:
    """The rule of a target whose mesh splits data parallelism into replicas and shards."""
    return Rule(
        id=f"{prefix}-shard",
        target=target,
        text="a shard group is a multiple of cp, and a divisor of dp when divided by it",
        where="fsdp_shard, --cp",
        remedy="choose fsdp_shard as cp times a divisor of dp, or 0",
        source=source,
        version=version,
        ok=_shard,
        say=lambda p, x: f"shard group {p.fsdp_shard} with cp {p.cp} and dp {p.dp}",
    )
