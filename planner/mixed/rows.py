"""Layouts of stages on several types of devices, and a lower bound of each whatever layers its stages hold.

A stage is a slice of ranks of one type. Candidates are those of one cluster of as many devices, kept where the rules
hold on every type and a stage is a whole share of each pool. With weights l_k >= 0 of the types, the stages' weighted
seconds add up to sum_s l_k(s) w_s >= sum of each part's least l_k t_k, so that the slowest stage takes at least that
over sum_k p_k l_k, with p_k stages of type k; l_k = 1 over the seconds of the whole model on type k. The step takes m
times that. Plain 1F1B without pairs takes T >= W + c_s w_s (`planner.stage_plan.free`), W at least each part on its
fastest type, so sum_s l_k(s) w_s <= (T - W) sum_s l_k(s) / c_s: the largest such sum over the orders of the types
bounds T. Layers are whole: with t_k the least seconds of a layer on type k the slowest stage takes at least the
smallest T under which stages of T / t_k whole layers hold all of the model, and each a layer less than it has virtual
stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np

from hwprofiles.specs import ClusterSpec
from planner.ranks import Question
from planner.rules import apply, context, rules_of
from planner.space import space
from planner.stage_plan.free import part_works, step_end_s
from planner.stage_plan.priced import SCHEDULES
from planner.stage_plan.records import Floats, Modules
from planner.stage_plan.room import may_fit, parts_of
from sim.build.context import Context
from sim.columns import DEGREE_FIELDS, Columns
from sim.cost.model import CostModel
from sim.cost.prices import distinct, setting_fields
from sim.cost.step import StepCost
from sim.mesh import DEFAULT_MAP
from sim.plan import Plan

# Rules of even splits: stages are stated here.
EVEN_RULES = ("layers-over-stages", "megatron-even-stages", "torchtitan-stage-count")


@dataclass(frozen=True, kw_only=True, eq=False)
class TypeQuestion:
    """One type of devices: the question on as many of them as all pools have together, and how many there are."""

    question: Question
    devices: int

    @property
    def cluster(self) -> ClusterSpec:
        """The cluster of the question."""
        return self.question.cluster


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedRows:
    """Layouts by bound, best first; rejected: candidates lost for each reason."""

    rows: Columns
    bounds: Floats
    raw: int
    rejected: Mapping[str, int]

    def plan(self, i: int) -> Plan:
        """One layout, without stages and recompute."""
        plan = self.rows.plan(i)
        return replace(plan, schedule="interleaved") if plan.vpp > 1 else replace(plan, micro_batch_group=0)


def _sliced(rows: Columns, types: Sequence[TypeQuestion]) -> Any:
    """Rows whose stages are whole shares of each pool, and of its nodes and domains."""
    total = sum(t.devices for t in types)
    width = total // np.maximum(1, rows.pp)
    ok = (rows.pp >= 2) & (width * rows.pp == total)
    for t in types:
        ok &= t.devices % np.maximum(1, width) == 0
        for block in (t.cluster.devices_per_node, t.cluster.domain_devices):
            ok &= (width % block == 0) | (block % np.maximum(1, width) == 0)
    return ok


def mixed_rows(
    types: Sequence[TypeQuestion], fixed: Mapping[str, Any], target: str, options: Sequence[Modules]
) -> MixedRows:
    """The layouts of a question on several types, in order of their bound."""
    first = types[0].question
    rules = [rule for rule in rules_of(target) if rule.id not in EVEN_RULES]
    contexts = [
        context(q.model, q.cluster, q.software, q.workload, DEFAULT_MAP) for q in (t.question for t in types)
    ]  # fmt: skip
    raw, rejected, kept = 0, dict[str, int](), list[Columns]()
    for block in space(first.model, first.cluster, first.workload, fixed, first.software):
        raw += len(block)
        rows = block
        for ctx in contexts:
            mask, broken = apply(rows, ctx, rules)
            for name, count in broken.items():
                rejected[name] = rejected.get(name, 0) + count
            rows = rows.take(mask)
        whole = _sliced(rows, types) & (rows.schedule in SCHEDULES)
        # the first and the last virtual stage may hold an end of the model alone
        held = rows.pp * rows.vpp - 2 <= len(first.model.layers)
        for name, lost in (("stages of whole pools", ~whole), ("virtual stages without a layer", whole & ~held)):
            if lost.any():
                rejected[name] = rejected.get(name, 0) + int(np.count_nonzero(lost))
        rows = rows.take(whole & held)
        if len(rows):
            kept.append(rows)
    if not kept:
        empty = Columns(**{name: np.zeros(0, dtype=np.int64) for name in DEGREE_FIELDS})  # type: ignore[arg-type]
        return MixedRows(rows=empty, bounds=np.zeros(0), raw=raw, rejected=rejected)
    columns: dict[str, Any] = {name: np.concatenate([getattr(b, name) for b in kept]) for name in DEGREE_FIELDS}
    group = max(b.micro_batch_group for b in kept)
    every = replace(kept[0], **columns, schedule="1f1b", account_ends=False, micro_batch_group=group)
    alone, _ = distinct([getattr(every, name) for name in DEGREE_FIELDS])
    rows = every.take(alone)
    bounds = mixed_bounds(rows, types, options)
    order = np.argsort(bounds, kind="stable")
    order = order[np.isfinite(bounds[order])]
    no_room = len(rows) - len(order)
    if no_room:
        rejected["out of memory"] = no_room
    return MixedRows(rows=rows.take(order), bounds=bounds[order], raw=raw, rejected=rejected)


def mixed_bounds(rows: Columns, types: Sequence[TypeQuestion], options: Sequence[Modules]) -> Floats:
    """Seconds no event run of a row beats, whatever its stages and whichever type each runs on; inf: nothing fits."""
    first, which = distinct([getattr(rows, name) for name in (*setting_fields(3), "pp", "vpp")])
    costs = [CostModel(t.cluster, t.question.software, ranks=DEFAULT_MAP) for t in types]
    m = np.maximum(1, types[0].question.workload.global_batch_seqs // (rows.micro_batch_seqs * rows.dp))
    total, first_q = sum(t.devices for t in types), types[0].question
    least = np.full(len(rows), np.inf)
    for modules in options:
        few = replace(rows.take(first), recompute=modules)
        steps = [_step(t.question, few, cost) for t, cost in zip(types, costs, strict=True)]
        works = [part_works(step) for step in steps]
        whole = [sum(part.count * part.paired_s for part in parts) for parts in works]
        shares = sum(
            part[0].count * np.minimum.reduce([p.paired_s / w for p, w in zip(part, whole, strict=True)])
            for part in zip(*works, strict=True)
        )
        stages = sum(
            (t.devices / total) * np.asarray(few.pp) / w for t, w in zip(types, whole, strict=True)
        )  # fmt: skip
        layer_s = [np.minimum.reduce([p.paired_s for p in parts if p.layer]) for parts in works]
        pipes = [t.devices * few.pp // total for t in types]
        slowest_s = np.maximum(shares / stages, _whole_layers(few, layer_s, pipes, len(first_q.model.layers)))[which]
        bound = m * slowest_s
        if not any(t.question.software.a2a_overlap for t in types):
            way_s = sum(
                p[0].count * np.minimum.reduce([each.alone_s for each in p]) for p in zip(*works, strict=True)
            )  # fmt: skip
            forward = np.maximum.reduce([p.forward_s / p.alone_s for parts in works for p in parts])
            filled = _filled(
                rows, m, [t.devices for t in types], [np.asarray(1.0 / w)[which] for w in whole],
                np.asarray(shares)[which], np.asarray(way_s)[which], np.asarray(forward)[which],
            )  # fmt: skip
            bound = np.maximum(bound, filled)
        fits = may_fit(rows, m, _least_parts(steps, which), max(cost.usable_bytes for cost in costs))
        least = np.minimum(least, np.where(fits, bound, np.inf))
    return least + min(step_end_s(cost, t.question.software) for cost, t in zip(costs, types, strict=True))


def _whole_layers(rows: Columns, layer_s: Sequence[Any], pipes: Sequence[Any], layers: int) -> Floats:
    """Least seconds of the slowest stage whose stages hold whole layers; layer_s: least of a layer on each type, pipes:
    stages of each type."""
    each = [np.broadcast_to(seconds, len(rows))[:, None] for seconds in layer_s]
    tried = np.concatenate([np.arange(layers + 1)[None] * seconds for seconds in each], axis=1)
    rounding = 1.0 + 1e-9
    holds = [np.floor(tried * rounding / seconds) for seconds in each]
    enough = sum(np.asarray(n)[:, None] * held for n, held in zip(pipes, holds, strict=True)) >= layers
    for held in holds:  # of the virtual stages of a stage one may hold an end of the model alone
        enough = enough & (held >= (rows.vpp - 1)[:, None])
    out: Floats = np.where(enough, tried, np.inf).min(axis=1)
    return out


def _filled(
    rows: Columns, m: Any, devices: Sequence[int], weights: Sequence[Floats], shares: Floats, way_s: Floats,
    forward: Floats,
) -> Floats:  # fmt: skip
    """The bound of plain 1F1B with its fill; 0 for rows with virtual stages or one micro-batch. weights: l_k of each
    row; shares: sum of each part's least l_k t_k; way_s: W; forward: largest share of the forward."""
    out = np.zeros(len(rows))
    total = sum(devices)
    for pp in np.unique(rows.pp).tolist():
        mine = np.flatnonzero((rows.pp == pp) & (rows.vpp == 1) & (m > 1))
        before = np.minimum(m[mine, None], pp - np.arange(pp)[None]) - 1
        late = np.maximum(m[mine, None] - 1 - before * forward[mine, None], 1e-9)
        most = np.zeros(len(mine))
        for order in permutations(range(len(devices))):
            where = [i for i in order for _ in range(devices[i] * pp // total)]
            each = np.stack([weights[i][mine] for i in where], axis=1)
            most = np.maximum(most, (each / late).sum(axis=1))
        out[mine] = way_s[mine] + shares[mine] / most
    return out


def _step(question: Question, plan: Any, cost: CostModel) -> StepCost:
    q = question
    return StepCost(
        cost, Context(model=q.model, workload=q.workload, plan=plan, software=q.software, routing=q.routing)
    )  # fmt: skip


def _least_parts(steps: Sequence[StepCost], which: Any) -> list[tuple[int, Any, Any]] | None:
    """The parts with the fewest bytes of any type, at each row; None where they do not add up."""
    found = [parts_of(step) for step in steps]
    if any(parts is None for parts in found):
        return None
    known = [parts for parts in found if parts is not None]
    return [
        (same[0][0], *(np.minimum.reduce([np.broadcast_to(part[i], len(steps[0].ctx.plan.tp)) for part in same])[which]
                       for i in (1, 2)))
        for same in zip(*known, strict=True)
    ]  # fmt: skip
