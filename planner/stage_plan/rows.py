"""Layouts of a table whose stages may be chosen, priced together: a bound of each under any stages.

First from sums alone (`planner.stage_plan.free`), of every layout; then, of those that may still be faster than a known
step, with whole layers that fit, from columns without those that alone take as long as that step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from planner.ranks import Question
from planner.space import recompute_choices
from planner.stage_plan.free import Work, free_bounds_by_option, least_priced_s, step_end_s, work_of
from planner.stage_plan.priced import SCHEDULES, STATED, Spans, StagePrices, columns_of, refuse_unlaid, spans_of
from planner.stage_plan.records import Floats, Intervals, Ints, Modules, Setting
from planner.table import Table
from sim.build.context import Context
from sim.columns import DEGREE_FIELDS, Columns
from sim.cost.model import CostModel
from sim.cost.prices import distinct
from sim.cost.step import StepCost
from sim.mesh import RankMap
from sim.plan import Plan

LOT = 64  # layouts priced at a time
SPARE = 1.0 + 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Layouts:
    """Layouts under one rank map, of 1f1b and interleaved (told by their virtual stages) or of one other schedule.

    even_s: least bound with even stages; free_s [option, row]: no stages of the row are faster under the option; inf:
    none fits.
    """

    ranks: RankMap
    block: Columns
    even_s: Floats
    free_s: Floats

    def plan(self, row: int) -> Plan:
        """One layout as a plan, without stages or recompute."""
        plan = replace(self.block.plan(row), recompute=())
        if plan.schedule not in SCHEDULES:
            return plan
        return replace(plan, schedule="interleaved") if plan.vpp > 1 else replace(plan, micro_batch_group=0)

    def rows_like(self, plans: Iterable[Plan]) -> list[int]:
        """Rows of the same degrees as one of these plans."""
        wanted = {tuple(getattr(plan, name) for name in DEGREE_FIELDS) for plan in plans}
        rows = zip(*(getattr(self.block, name).tolist() for name in DEGREE_FIELDS), strict=True)
        return [number for number, row in enumerate(rows) if row in wanted]


def layout_of_plan(plan: Plan) -> Plan:
    """What stays of a plan when stages and recompute are free."""
    return replace(plan, recompute=(), account_ends=False, stages=None)


def layouts_of(
    table: Table, question: Question, options: Sequence[Modules], limit_s: float = np.inf
) -> tuple[list[Layouts], float, dict[str, float]]:  # fmt: skip
    """(layouts whose stages may be chosen, least bound of the table's rows without stages to choose, least bound under
    any stages of each schedule whose stages stay even all the same). Recompute and ends are the programme's to choose;
    a block's micro-batch group is one where there are virtual stages. limit_s: what takes longer is not looked at
    closely."""
    found: dict[tuple[RankMap, str], list[tuple[Columns, Floats]]] = {}
    rest, kept = np.inf, dict[str, float]()
    for block, bound, ranks in zip(table.blocks, table.bounds, table.ranks, strict=True):
        mine = (block.pp > 1) & (block.schedule in STATED)
        if (whole := block.pp == 1).any():
            rest = min(rest, float(bound[whole].min()))
        if (even := ~mine & ~whole).any():
            # the table's bounds are of even stages: others may be faster, though none are tried here
            free = free_bounds_by_option(question, ranks, block.take(even), options, limit_s)
            kept[block.schedule] = min(kept.get(block.schedule, np.inf), float(free.min()))
        if mine.any():
            family = SCHEDULES[0] if block.schedule in SCHEDULES else block.schedule
            found.setdefault((ranks, family), []).append((block.take(mine), bound[mine]))
    out = []
    for (ranks, family), pairs in found.items():
        blocks = [block for block, _ in pairs]
        columns: dict[str, Any] = {n: np.concatenate([getattr(b, n) for b in blocks]) for n in DEGREE_FIELDS}
        group = max(b.micro_batch_group for b in blocks)
        every = replace(blocks[0], **columns, schedule=family, account_ends=False, micro_batch_group=group)
        first, which = distinct([getattr(every, name) for name in DEGREE_FIELDS])
        rows, even_s = every.take(first), np.full(len(first), np.inf)
        np.minimum.at(even_s, which, np.concatenate([bound for _, bound in pairs]))
        free = free_bounds_by_option(question, ranks, rows, options, limit_s)
        out.append(Layouts(ranks=ranks, block=rows, even_s=even_s, free_s=free))
    return out, rest, kept


def modules_tried(question: Question, only: Modules | None) -> tuple[Modules, ...]:
    """Recompute settings to choose among."""
    return (only,) if only is not None else recompute_choices(question.model, question.software)


@dataclass(frozen=True, kw_only=True, eq=False)
class Priced:
    """One layout priced: its columns below a step, under the options that may be below it, and their bound (the step
    itself where none is)."""

    plan: Plan
    ranks: RankMap
    columns: Intervals
    bound_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Pricing:
    """Prices layouts of one question. options: of recompute, as `free_s` has them."""

    question: Question
    options: Sequence[Modules]
    _spans: dict[tuple[int, ...], Spans] = field(default_factory=dict)

    def below(self, layouts: Layouts, rows: Ints, limits_s: Floats) -> Iterator[Priced]:
        """These rows, each priced below its limit; those that stages cannot be chosen of are left out."""
        for start in range(0, len(rows), LOT):
            yield from self._lot(layouts, rows[start : start + LOT], limits_s[start : start + LOT])

    def _lot(self, layouts: Layouts, rows: Ints, limits_s: Floats) -> Iterator[Priced]:
        q, block = self.question, layouts.block.take(rows)
        cost = CostModel(q.cluster, q.software, ranks=layouts.ranks)
        wanted = (layouts.free_s[:, rows] < limits_s).any(axis=1)
        prices: dict[int, StagePrices] = {}
        works: dict[int, Work] = {}
        for at in np.flatnonzero(wanted).tolist():
            plan = replace(block, recompute=self.options[at])
            context = Context(model=q.model, workload=q.workload, plan=plan, software=q.software, routing=q.routing)
            prices[at] = StagePrices(StepCost(cost, context))
            works[at] = work_of(prices[at].step)
        for i, row in enumerate(rows.tolist()):
            plan_i, limit_s = layouts.plan(row), float(limits_s[i])
            m = plan_i.num_micro_batches(q.workload.global_batch_seqs)
            try:
                refuse_unlaid(plan_i, len(q.model.layers), m)
            except UserError:
                continue
            mine = [at for at in prices if layouts.free_s[at, row] < limit_s]
            if mine:
                columns = self._columns(cost, plan_i, m, mine, prices, works, i, limit_s)
                bound_s = self._bound(cost, plan_i, columns, [works[at] for at in mine], i, limit_s)
                least = min(float(layouts.free_s[at, row]) for at in mine)
                yield Priced(
                    plan=plan_i, ranks=layouts.ranks, columns=columns, bound_s=min(limit_s, max(least, bound_s))
                )  # fmt: skip

    def _columns(
        self, cost: CostModel, plan: Plan, m: int, mine: Sequence[int], prices: Mapping[int, StagePrices],
        works: Mapping[int, Work], row: int, limit_s: float,
    ) -> Intervals:  # fmt: skip
        q = self.question
        passes = m / 2 if plan.schedule == "dualpipe" else m
        layer_s = min(float(_at(works[at].least_s, row)) for at in mine)
        longest = min(len(q.model.layers), int(limit_s / (passes * layer_s) * SPARE) + 1)
        spans = self._spans_of(plan, longest, prices[mine[0]].step)
        tables = [prices[at].table(spans.contents)[..., row][:, spans.content] for at in mine]
        return columns_of(
            spans, tables, plan=plan, options=[Setting(recompute=self.options[at]) for at in mine],
            layers=len(q.model.layers), num_micro_batches=m, capacity_bytes=np.full(plan.pp, cost.usable_bytes),
            host_capacity_bytes=np.full(plan.pp, q.cluster.host_mem_bytes / q.cluster.devices_per_node),
            useful=lambda c: passes * c.steady_s <= limit_s * SPARE,
        )  # fmt: skip

    def _spans_of(self, plan: Plan, longest: int, step: StepCost) -> Spans:
        key = (plan.pp, plan.vpp, longest)
        if key not in self._spans:
            self._spans[key] = spans_of(self.question.model, plan, longest, own=step.levels.own)
        return self._spans[key]

    def _bound(
        self, cost: CostModel, plan: Plan, columns: Intervals, works: Sequence[Work], row: int, limit_s: float
    ) -> float:  # fmt: skip
        software = self.question.software
        largest = max(float(_at(work.share, row)) for work in works)
        work = replace(works[0], share=largest)
        split = plan.schedule not in SCHEDULES
        bound = least_priced_s(columns, work, paired=software.a2a_overlap, split=split, limit_s=limit_s)
        return bound + step_end_s(cost, software)


def _at(value: Any, row: int) -> Any:
    found = np.asarray(value)
    return found if found.ndim == 0 else found[row]
