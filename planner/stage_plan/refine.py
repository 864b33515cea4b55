"""The stages of a search's plans refined: layers to stages and recompute by the programme, kept where simulated faster.

Two ways. `auto`: the plans that are listed. `ilp`: further rows of the table too, those of the least bound first,
unless no stages could make them faster than the best step found (`planner.stage_plan.free`). Either way the answer is
never slower than with even stages, and the bound holds for every row of the table under any stages. The programme
minimises a closed form, the simulator decides (also on choices of stages more alike, `planner.stage_plan.even_out`):
so a gap remains, and is named. Unlike virtual stages wait for each other, which the closed form does not see: here
they hold as many layers as even ones, or one more, but for the ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from planner.ranks import Laying, Question
from planner.runs import BOUND_TOLERANCE
from planner.space import recompute_choices
from planner.stage_plan.answer import laid_out, options_of
from planner.stage_plan.even_out import alike_choices
from planner.stage_plan.free import free_bounds, least_priced_s, step_end_s, work_of
from planner.stage_plan.priced import SCHEDULES, intervals
from planner.stage_plan.programme import solve_stages
from planner.stage_plan.records import Floats, Intervals, Modules, StageSolution
from planner.table import Progress, Table
from sim import run
from sim.build.stages import layers_per_stage
from sim.columns import DEGREE_FIELDS, Columns
from sim.cost.model import CostModel
from sim.cost.prices import distinct
from sim.cost.step import StepCost
from sim.mesh import RankMap
from sim.plan import Plan
from sim.report import Report
from sim.scenario import Scenario

WAYS = ("uniform", "auto", "ilp")
MOST_ROWS = 12  # rows whose stages are chosen beyond the listed plans
MOST_COLUMNS = 2500  # of a programme with virtual stages that is worth its time here


@dataclass(frozen=True, kw_only=True)
class RefinedRow:
    """One layout whose stages were chosen. outcome: "adopted", "not faster", "does not fit", "no stages fit", or the
    rule of the target that forbids them. even_s: simulated step of the listed plan with even stages, None of other
    rows. free_bound_s: no stages of this layout give a shorter step. solution: the programme's; None where nothing
    was solved.
    """

    label: str
    outcome: str
    step_s: float | None
    even_s: float | None
    free_bound_s: float
    stages: tuple[int, ...]
    recompute: Modules
    solution: StageSolution | None


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What refining did. way: auto or ilp. plans: (report, bound) of those adopted. bound_s: no row of the table,
    with any stages, is faster; gap: (best - bound_s) / best. even_s: the best step with even stages, with its gap and
    certificate. stopped: "listed" (only listed plans were refined), "bound" (no other row could be faster) or
    "limit".
    """

    way: str
    rows: tuple[RefinedRow, ...]
    plans: tuple[tuple[Report, float], ...]
    even_s: float
    even_gap: float
    even_certificate: str
    bound_s: float
    gap: float
    stopped: str

    @property
    def void(self) -> bool:
        """Whether a simulated step came out below its bound, so that nothing is proven."""
        return any(r.step_s is not None and r.step_s < r.free_bound_s * (1.0 - BOUND_TOLERANCE) for r in self.rows)

    def scaled(self, by: float) -> Refinement:
        """The same after anchoring: every simulated second times `by`; the closed form stays what it is."""
        rows = tuple(
            replace(r, step_s=_times(r.step_s, by), even_s=_times(r.even_s, by), free_bound_s=r.free_bound_s * by)
            for r in self.rows
        )
        return replace(self, rows=rows, even_s=self.even_s * by, bound_s=self.bound_s * by)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values, SI units."""
        return {
            "way": self.way, "even_s": self.even_s, "even_gap": self.even_gap,
            "even_certificate": self.even_certificate, "bound_s": self.bound_s, "gap": self.gap,
            "stopped": self.stopped, "rows": [_row_json(row) for row in self.rows],
        }  # fmt: skip


def _times(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def _row_json(row: RefinedRow) -> dict[str, Any]:
    s = row.solution
    solved = None if s is None or s.choice is None else {
        "objective_s": s.choice.objective_s, "bound_s": s.bound_s, "gap": s.gap, "status": s.status, "nodes": s.nodes,
        "solver": s.solver,
    }  # fmt: skip
    return {
        "label": row.label, "outcome": row.outcome, "step_s": row.step_s, "even_s": row.even_s,
        "free_bound_s": row.free_bound_s, "stages": list(row.stages), "recompute": list(row.recompute),
        "programme": solved,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Rows of the table whose stages can be chosen, one for each layout: (rank map, rows, bounds under any stages,
    bounds with even stages); rest_s: the least bound of all other rows."""

    parts: tuple[tuple[RankMap, Columns, Floats, Floats], ...]
    rest_s: float

    def below(self, best_s: float, *, even: bool) -> Iterator[tuple[float, Plan, RankMap]]:
        """(bound under any stages, plan, rank map) of the rows that may be faster; even: the least bound with even
        stages first, else the least bound under any."""
        every = [
            (float((with_even if even else free)[i]), at, i)
            for at, (_, _, free, with_even) in enumerate(self.parts)
            for i in np.flatnonzero(free < best_s).tolist()
        ]
        for _, at, i in sorted(every):
            ranks, rows, free, _ = self.parts[at]
            yield float(free[i]), _plan_of(rows, i), ranks


def _rows_of(table: Table, question: Question, options: Sequence[Modules]) -> _Rows:
    """Layouts differ in degrees, rank map and micro-batch group; recompute and ends are the programme's to choose."""
    found: dict[RankMap, list[tuple[Columns, Floats]]] = {}
    rest = np.inf
    for block, bound, ranks in zip(table.blocks, table.bounds, table.ranks, strict=True):
        mine = (block.pp > 1) & (block.schedule in SCHEDULES)
        if not mine.all():
            rest = min(rest, float(bound[~mine].min()))
        if mine.any():
            found.setdefault(ranks, []).append((block.take(mine), bound[mine]))
    parts = []
    for ranks, pairs in found.items():
        blocks = [block for block, _ in pairs]
        columns: dict[str, Any] = {n: np.concatenate([getattr(b, n) for b in blocks]) for n in DEGREE_FIELDS}
        # a block's schedule is told by its virtual stages, and its group is one where there are any
        group = max(b.micro_batch_group for b in blocks)
        every = replace(blocks[0], **columns, schedule="1f1b", account_ends=False, micro_batch_group=group)
        first, which = distinct([getattr(every, name) for name in DEGREE_FIELDS])
        rows, even = every.take(first), np.full(len(first), np.inf)
        np.minimum.at(even, which, np.concatenate([bound for _, bound in pairs]))
        parts.append((ranks, rows, free_bounds(question, ranks, rows, options), even))
    return _Rows(parts=tuple(parts), rest_s=rest)


def _plan_of(rows: Columns, i: int) -> Plan:
    plan = rows.plan(i)
    if plan.vpp > 1:
        return replace(plan, schedule="interleaved")
    return replace(plan, micro_batch_group=0)


def refined(
    listed: Sequence[tuple[float, Report, float]], table: Table, layings: Mapping[RankMap, Laying],
    fixed: Mapping[str, Any], *, way: str, target: str, even: tuple[str, float], seed: int = 0, most: int = MOST_ROWS,
    progress: Progress | None = None,
) -> Refinement:  # fmt: skip
    """Refine the stages of the search's plans. listed: (step, report, bound), the best first; layings: of its rank
    maps; even: certificate and gap of the search, whose stages are even.

    Raises UserError for an unknown way.
    """
    if way not in WAYS[1:]:
        raise UserError(f"{way!r} is not known; use {', '.join(WAYS)}", where="--stages")
    question = next(iter(layings.values())).question
    only = tuple(fixed["recompute"]) if "recompute" in fixed else None
    tried = (only,) if only is not None else recompute_choices(question.model, question.software)
    rows = _rows_of(table, question, tried)
    made: list[RefinedRow] = []
    plans: list[tuple[Report, float]] = []
    tight: dict[tuple[Plan, RankMap], float] = {}
    best_s = listed[0][0]

    def take(plan: Plan, ranks: RankMap, even_s: float | None, free_s: float) -> None:
        nonlocal best_s
        beat_s = best_s if even_s is None else even_s
        if progress is not None:
            progress("choosing stages", len(made), None)
        row, report = _refine(question, plan, ranks, only, target, beat_s, free_s, seed)
        row = replace(row, even_s=even_s)
        made.append(row)
        tight[_layout(plan), ranks] = row.free_bound_s
        if report is not None and row.outcome == "adopted":
            plans.append((report, row.free_bound_s))
            best_s = min(best_s, report.step_s.value)

    for step_s, report, _ in listed:
        plan = report.plan
        if plan.pp > 1 and plan.schedule in SCHEDULES and (_layout(plan), report.ranks) not in tight:
            take(plan, report.ranks, step_s, 0.0)
    stopped = "listed"
    if way == "ilp":
        stopped, spent = "bound", 0
        for free_s, plan, ranks in rows.below(best_s, even=True):
            if free_s >= best_s or (_layout(plan), ranks) in tight:
                continue
            if spent == most:
                stopped = "limit"
                break
            spent += 1
            take(plan, ranks, None, free_s)
    bound = min(best_s, rows.rest_s)
    for free_s, plan, ranks in rows.below(bound, even=False):
        if free_s >= bound:
            break
        bound = min(bound, max(free_s, tight.get((_layout(plan), ranks), 0.0)))
    return Refinement(
        way=way, rows=tuple(made), plans=tuple(plans), even_s=listed[0][0], even_certificate=even[0],
        even_gap=even[1], bound_s=bound, gap=(best_s - bound) / best_s, stopped=stopped,
    )  # fmt: skip


def _layout(plan: Plan) -> Plan:
    """What stays of a plan when stages and recompute are free."""
    return replace(plan, recompute=(), account_ends=False, stages=None)


def _refine(
    question: Question, plan: Plan, ranks: RankMap, only: Modules | None, target: str, beat_s: float,
    free_s: float, seed: int,
) -> tuple[RefinedRow, Report | None]:  # fmt: skip
    """The stages of one layout chosen and simulated; beat_s: the step they have to beat."""
    q = question
    scenario = Scenario(
        model=q.model, cluster=q.cluster, software=q.software, workload=q.workload, plan=_layout(plan),
        routing=q.routing.at_ep(plan.ep), ranks=ranks,
    )  # fmt: skip
    label = plan.label()

    def gives(outcome: str, bound_s: float, **more: Any) -> RefinedRow:
        base: dict[str, Any] = {"step_s": None, "even_s": None, "stages": (), "recompute": (), "solution": None}
        return RefinedRow(label=label, outcome=outcome, free_bound_s=bound_s, **(base | more))

    try:
        # rules that ask for an even split do not bind stages that are stated
        counts = layers_per_stage(len(q.model.layers), plan.pp * plan.vpp, account_ends=True)
        stated = replace(scenario, plan=replace(scenario.plan, stages=counts))
        options = options_of(stated, target=target, recompute=only)
        columns = intervals(scenario, options)
        cost = CostModel(q.cluster, q.software, ranks=ranks)
        work = work_of(StepCost(cost, scenario.context()))
        priced = least_priced_s(columns, work, paired=q.software.a2a_overlap)
        bound = max(free_s, priced + step_end_s(cost, q.software))
        columns = _alike(columns) if columns.vpp > 1 else columns
        solution = solve_stages(columns, seed=seed, most_columns=MOST_COLUMNS if columns.vpp > 1 else None)
        if solution.choice is None:
            return gives("no stages fit" if solution.status == "infeasible" else "no stages found", bound), None
        choices = {
            (c.counts, c.recompute[0]): c
            for c in (solution.choice, *alike_choices(columns, solution.choice.objective_s))
        }
        reports = [run.simulate(laid_out(scenario, each, target), trace=False) for each in choices.values()]
    except UserError as error:
        return gives(error.problems[0], free_s), None
    report = min(reports, key=lambda r: (not r.fits, r.step_s.value))
    said = {"stages": report.plan.stages, "recompute": report.plan.recompute, "solution": solution}
    step_s = report.step_s.value
    outcome = "does not fit" if not report.fits else "not faster" if step_s >= beat_s else "adopted"
    return gives(outcome, bound, step_s=step_s, **said), report


def _alike(columns: Intervals) -> Intervals:
    """The columns of virtual stages that hold about as many layers as each other, the first and the last no more."""
    layers, slots = columns.num_layers, columns.slots
    count = columns.stop - columns.first
    inner = (columns.slot > 0) & (columns.slot < slots - 1)
    most = -(-layers // max(1, slots - 2))
    return columns.take(np.flatnonzero((count <= most) & (~inner | (count >= layers // slots))))
