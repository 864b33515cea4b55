"""The hard rules of layouts and of each trainer: named, sourced, on columns and in words.

A rule is evaluated on a whole block at once (`apply`), where the first broken rule in order takes
the count, or on one plan (`check`), where every broken rule is listed with its remedy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprofiles.errors import UserError
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.rules import accelerate, bridge, deepspeed, layout, megatron, sglang, torchtitan
from planner.rules.accelerate import ACCELERATE_RULES
from planner.rules.base import Context, Mask, Rule, Violation, context
from planner.rules.bridge import BRIDGE_RULES
from planner.rules.deepspeed import DEEPSPEED_RULES
from planner.rules.layout import LAYOUT_RULES
from planner.rules.megatron import MEGATRON_RULES
from planner.rules.sglang import SGLANG_RULES
from planner.rules.torchtitan import TORCHTITAN_RULES
from planner.rules.training import MEGATRON_LM_RULES, MEGATRON_TRAINING_RULES, TRAINING_RULES, elsewhere
from sim.columns import Columns, columns_of
from sim.mesh import DEFAULT_MAP, RankMap
from sim.model import ModelSpec
from sim.plan import Plan
from sim.workload import Workload

__all__ = [
    "RANK_ORDERS", "TARGETS", "Context", "Rule", "Violation", "apply", "check", "context", "rules_of", "violations",
]  # fmt: skip

_LAYOUT = LAYOUT_RULES + TRAINING_RULES
_MEGATRON = _LAYOUT + MEGATRON_RULES + MEGATRON_TRAINING_RULES
TARGETS: dict[str, tuple[Rule, ...]] = {
    "layout": _LAYOUT,
    "megatron-lm": _MEGATRON + MEGATRON_LM_RULES,
    "megatron-bridge": _MEGATRON + BRIDGE_RULES,
    "torchtitan": _LAYOUT
    + TORCHTITAN_RULES
    + elsewhere("torchtitan", target="torchtitan", version=torchtitan.VERSION, source="torchtitan 0.3.0 configuration"),
    "deepspeed": _LAYOUT
    + DEEPSPEED_RULES
    + elsewhere("deepspeed", target="deepspeed", version=deepspeed.VERSION, source=deepspeed.AUTO_EP),
    "accelerate": _LAYOUT
    + ACCELERATE_RULES
    + elsewhere("accelerate", target="accelerate", version=accelerate.VERSION, source=accelerate.DISTRIBUTED),
    "sglang": _LAYOUT + SGLANG_RULES,
}
# Rank orders a target can run, its default first, and the option of its command that asks for each.
RANK_ORDERS: dict[str, dict[str, str]] = {
    "layout": layout.RANK_ORDERS,
    "megatron-lm": megatron.RANK_ORDERS,
    "megatron-bridge": bridge.RANK_ORDERS,
    "torchtitan": torchtitan.RANK_ORDERS,
    "deepspeed": deepspeed.RANK_ORDERS,
    "accelerate": accelerate.RANK_ORDERS,
    "sglang": sglang.RANK_ORDERS,
}


def rules_of(target: str) -> tuple[Rule, ...]:
    """Rules of a target in the order they are asked; an unknown target is a UserError."""
    if target not in TARGETS:
        raise UserError(f"unknown target {target!r}; use one of: {', '.join(TARGETS)}", where="--target")
    return TARGETS[target]


def apply(block: Columns, ctx: Context, rules: Sequence[Rule]) -> tuple[Mask, dict[str, int]]:
    """(rows that keep every rule, rows lost per rule id); a row counts for the first rule it breaks."""
    rejected: dict[str, int] = {}
    index = np.arange(len(block))
    rows = block
    for rule in rules:
        if len(rows) == 0:
            break
        said = rule.ok(rows, ctx)
        if said is True:  # one answer for all rows
            continue
        ok = np.broadcast_to(np.asarray(said, dtype=bool), (len(rows),))
        lost = len(rows) - int(np.count_nonzero(ok))
        if lost:
            rejected[rule.id] = lost
            keep = np.flatnonzero(ok)
            # Later rules see only survivors: cheaper, and safe from the zero degrees of broken rows.
            index, rows = index[keep], rows.take(keep)
    mask = np.zeros(len(block), dtype=bool)
    mask[index] = True
    return mask, rejected


def violations(plan: Plan, ctx: Context, rules: Sequence[Rule]) -> list[Violation]:
    """Every rule one plan breaks, in order (a degree below 1 hides the rest: nothing divides by it)."""
    row = columns_of([plan])[0]
    found: list[Violation] = []
    explicit = plan.stages is not None
    for rule in rules:
        if explicit and rule.id in ("layers-over-stages", "megatron-even-stages", "torchtitan-stage-count"):
            continue
        if not bool(np.all(rule.ok(row, ctx))):
            found.append(_violation(rule, rule.say(plan, ctx)))
            if rule.id == "degrees-positive":
                return found
    if plan.stages is not None:
        found += _stage_violations(plan, plan.stages, ctx)
    return found


def _violation(rule: Rule, what: str) -> Violation:
    return Violation(rule=rule.id, what=what, where=rule.where, remedy=rule.remedy, source=rule.source)


def _stage_violations(plan: Plan, stages: tuple[int, ...], ctx: Context) -> list[Violation]:
    said: list[str] = []
    if len(stages) != plan.pp * plan.vpp:
        said.append(f"{len(stages)} stage sizes given for pp {plan.pp} x vpp {plan.vpp} = {plan.pp * plan.vpp} stages")
    if sum(stages) != ctx.layers or min(stages, default=0) < 0:
        said.append(f"stage sizes add up to {sum(stages)}, the model has {ctx.layers} layers")
    return [
        Violation(
            rule="stage-sizes",
            what=what,
            where="stages",
            remedy="give one size of 0 or more per virtual stage, adding up to the layers",
            source="megatron-core 0.19.2 pipeline-model-parallel-layout (rule 4)",
        )
        for what in said
    ]


def check(
    plan: Plan,
    model: ModelSpec,
    cluster: ClusterSpec,
    software: SoftwareProfile,
    workload: Workload,
    *,
    target: str = "layout",
    ranks: RankMap = DEFAULT_MAP,
) -> list[Violation]:
    """Every rule of `target` that one plan breaks; empty when the plan is legal.

    Raises UserError only for an unknown target; the caller turns the list into its own error.
    """
    return violations(plan, context(model, cluster, software, workload, ranks), rules_of(target))
