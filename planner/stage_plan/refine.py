"""The stages of a search's plans refined: layers to stages and recompute by the programme, kept where simulated faster.

The plans that are listed come first. Then every other layout of the table that could be faster than the best step is
bounded with whole layers that fit (`planner.stage_plan.rows`), and the most promising of those left are chosen too: a
few (`auto`), or as many as there are up to a limit (`ilp`). Either way the answer is never slower than with even
stages, and the bound holds for every row of the table under any stages, of gpipe too, whose stages stay even. The
programme minimises a closed form, the simulator decides (also on choices of stages more alike,
`planner.stage_plan.even_out`): so a gap remains, and is named. Unlike virtual stages wait for each other, which the
closed form does not see: here they hold as many layers as even ones, or one more, but for the ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from planner.ranks import Laying, Question
from planner.stage_plan.answer import laid_out, options_of
from planner.stage_plan.even_out import alike_choices, alike_columns
from planner.stage_plan.programme import solve_stages
from planner.stage_plan.records import Modules
from planner.stage_plan.refinement import RefinedRow, Refinement
from planner.stage_plan.rows import Layouts, Priced, Pricing, layout_of_plan, layouts_of, modules_tried
from planner.table import Progress, Table
from sim import run
from sim.build.stages import layers_per_stage
from sim.mesh import RankMap
from sim.plan import Plan
from sim.report import Report
from sim.scenario import Scenario

__all__ = ["Refinement", "refined"]

WAYS = ("uniform", "auto", "ilp")
MOST_ROWS = 24  # rows whose stages are chosen beyond the listed plans, by `ilp`
MOST_AUTO = 3  # by `auto`
MOST_BOUNDED = 256  # layouts bounded with whole layers
LOT = 24  # of them at a time
MOST_COLUMNS = {"auto": 400, "ilp": 800}  # of a programme with virtual stages that is worth its time here
ENOUGH = {"auto": 0.005, "ilp": 0.001}  # gap in the closed form of such a one that is left to the event runs
NEAR = 1.02  # a choice so much slower than what it has to beat is tried with stages more alike too


@dataclass(kw_only=True, eq=False)
class _Found:
    """What was refined so far. tight: bound of each layout that is known better than from sums."""

    best_s: float
    rows: list[RefinedRow] = field(default_factory=list)
    plans: list[tuple[Report, float]] = field(default_factory=list)
    tight: dict[tuple[Plan, RankMap], float] = field(default_factory=dict)
    bounded: int = 0

    def take(self, key: tuple[Plan, RankMap], row: RefinedRow, report: Report | None) -> None:
        """Add a layout whose stages were chosen."""
        self.rows.append(row)
        self.tight[key] = row.free_bound_s
        if report is not None and row.outcome == "adopted":
            self.plans.append((report, row.free_bound_s))
            self.best_s = min(self.best_s, report.step_s.value)


def refined(
    listed: Sequence[tuple[float, Report, float]], table: Table, layings: Mapping[RankMap, Laying],
    fixed: Mapping[str, Any], *, way: str, target: str, even: tuple[str, float], seed: int = 0,
    most: int | None = None, progress: Progress | None = None,
) -> Refinement:  # fmt: skip
    """Refine the stages of the search's plans. listed: (step, report, bound), the best first; layings: of its rank
    maps; even: certificate and gap of the search, whose stages are even; most: rows chosen beyond the listed plans.

    An interrupt keeps what was chosen until then. Raises UserError for an unknown way.
    """
    if way not in WAYS[1:]:
        raise UserError(f"{way!r} is not known; use {', '.join(WAYS)}", where="--stages")
    most = (MOST_AUTO if way == "auto" else MOST_ROWS) if most is None else most
    question = next(iter(layings.values())).question
    only = tuple(fixed["recompute"]) if "recompute" in fixed else None
    found, stopped, every, rest_s = _Found(best_s=listed[0][0]), "interrupted", list[Layouts](), 0.0
    kept = dict[str, float]()
    try:
        options = modules_tried(question, only)
        every, rest_s, kept = layouts_of(table, question, options, max(step_s for step_s, _, _ in listed))
        asked = _Asked(
            question=question, pricing=Pricing(question=question, options=options), only=only, target=target, way=way,
            seed=seed, progress=progress,
        )  # fmt: skip
        # of rows that have no stages the search knows more than their bounds; of those whose stages stay even though
        # others would do it knows nothing more
        known_s = listed[0][0] * (1.0 - even[1]) if even[0] != "void" else 0.0
        rest_s = min(max(rest_s, known_s), *kept.values(), np.inf)
        _listed(asked, listed, every, found)
        ended = _further(asked, every, found, most)
        bound = _least(asked, every, found, min(found.best_s, rest_s))
        stopped = "listed" if ended == "limit" and way == "auto" else ended
    except KeyboardInterrupt:
        bound = min(found.best_s, rest_s, *kept.values(), *(float(layouts.free_s.min()) for layouts in every))
    return Refinement(
        way=way, rows=tuple(found.rows), plans=tuple(found.plans), even_s=listed[0][0], even_certificate=even[0],
        even_gap=even[1], bound_s=bound, gap=(found.best_s - bound) / found.best_s, stopped=stopped,
        bounded=found.bounded, kept_even=tuple(sorted(kept)),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asked:
    """The question and how it is answered. only: the recompute modules that are fixed."""

    question: Question
    pricing: Pricing
    only: Modules | None
    target: str
    way: str
    seed: int
    progress: Progress | None

    def say(self, what: str, done: int, total: int | None) -> None:
        """Report progress where somebody listens."""
        if self.progress is not None:
            self.progress(what, done, total)


def _listed(
    asked: _Asked, listed: Sequence[tuple[float, Report, float]], every: Sequence[Layouts], found: _Found
) -> None:
    """Choose the stages of the plans that are listed, each below its step with even stages."""
    steps: dict[tuple[Plan, RankMap], float] = {}
    for step_s, report, _ in listed:
        steps.setdefault((layout_of_plan(report.plan), report.ranks), step_s)
    for layouts in every:
        wanted = {plan: step_s for (plan, ranks), step_s in steps.items() if ranks == layouts.ranks}
        rows = [row for row in layouts.rows_like(wanted) if layouts.plan(row) in wanted]
        limits = np.array([wanted[layouts.plan(row)] for row in rows])
        for priced in asked.pricing.below(layouts, np.array(rows, dtype=np.int64), limits):
            asked.say("choosing stages", len(found.rows), None)
            step_s = wanted[priced.plan]
            chosen, made = _refine(asked, priced, step_s)
            found.take((priced.plan, priced.ranks), replace(chosen, even_s=step_s), made)
    found.rows.sort(key=lambda row: row.even_s or np.inf)


def _unknown(every: Sequence[Layouts], found: _Found) -> list[tuple[float, int, int]]:
    """(bound from sums, of which layouts, row) of those that may be faster than the best step and are not priced."""
    return [
        (float(least), number, row)
        for number, layouts in enumerate(every)
        for row, least in enumerate(layouts.free_s.min(axis=0))
        if least < found.best_s and (layouts.plan(row), layouts.ranks) not in found.tight
    ]  # fmt: skip


def _priced(
    asked: _Asked, every: Sequence[Layouts], lot: Sequence[tuple[float, int, int]], found: _Found
) -> list[Priced]:  # fmt: skip
    """These layouts priced below the best step; those that may be below it."""
    left = []
    for number in sorted({at for _, at, _ in lot}):
        layouts = every[number]
        rows = np.array([row for _, at, row in lot if at == number], dtype=np.int64)
        for row in rows.tolist():  # of what no stages can be stated nothing is faster than the best
            found.tight[layouts.plan(row), layouts.ranks] = found.best_s
        for priced in asked.pricing.below(layouts, rows, np.full(len(rows), found.best_s)):
            found.tight[priced.plan, priced.ranks] = priced.bound_s
            if priced.bound_s < found.best_s:
                left.append(priced)
    found.bounded += len(lot)
    return left


@dataclass(kw_only=True, eq=False)
class _Pool:
    """Layouts that may be faster than the best step, the most promising first: priced, and waiting to be."""

    asked: _Asked
    every: Sequence[Layouts]
    found: _Found
    waiting: list[tuple[float, int, int]]
    left: list[Priced] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting.sort(key=self._promise_of)

    def _promise_of(self, item: tuple[float, int, int]) -> float:
        bound_s, number, row = item
        return _promise(self.every[number].plan(row), bound_s, self.asked.question)

    def next(self) -> Priced | None:
        """The most promising one, taken out; None: none may be faster."""
        while True:
            best_s = self.found.best_s
            self.left = [priced for priced in self.left if priced.bound_s < best_s]
            self.waiting = [item for item in self.waiting if item[0] < best_s]
            hopes = [_promise(p.plan, p.bound_s, self.asked.question) for p in self.left]
            if hopes and (not self.waiting or min(hopes) <= self._promise_of(self.waiting[0])):
                return self.left.pop(hopes.index(min(hopes)))
            if not self.waiting:
                return None
            self.left += _priced(self.asked, self.every, self.waiting[:LOT], self.found)
            self.waiting = self.waiting[LOT:]
            self.asked.say("bounding layouts", self.found.bounded, None)


def _further(asked: _Asked, every: Sequence[Layouts], found: _Found, most: int) -> str:
    """Choose the stages of at most so many other layouts, the most promising first; why it ended.

    Of layouts with virtual stages the bound knows least: those without take turns with them.
    """
    unknown = _unknown(every, found)
    loops = [every[number].plan(row).schedule == "interleaved" for _, number, row in unknown]
    waiting = [[each for each, loop in zip(unknown, loops, strict=True) if loop == of] for of in (False, True)]
    pools = [_Pool(asked=asked, every=every, found=found, waiting=each) for each in waiting]
    chosen = 0
    while True:
        first, other = pools if chosen % 2 == 0 else pools[::-1]
        priced = first.next() or other.next()
        if priced is None:
            return "bound"
        if chosen == most:
            return "limit"
        asked.say("choosing stages", chosen, most)
        chosen += 1
        row, report = _refine(asked, priced, found.best_s)
        found.take((priced.plan, priced.ranks), row, report)


def _least(asked: _Asked, every: Sequence[Layouts], found: _Found, bound_s: float) -> float:
    """The least bound of any layout, no more than bound_s: those of the least bound from sums priced first, until the
    next one cannot lower it."""
    waiting = sorted(_unknown(every, found))
    while True:
        known = [bound_s]
        for layouts in every:
            least = layouts.free_s.min(axis=0)
            for row in np.flatnonzero(least < bound_s).tolist():
                tight = found.tight.get((layouts.plan(row), layouts.ranks))
                known += [] if tight is None else [max(tight, float(least[row]))]
        lowest = min(known)
        waiting = [item for item in waiting if item[0] < lowest]
        if not waiting or found.bounded >= MOST_BOUNDED:
            return min(lowest, waiting[0][0]) if waiting else lowest
        _priced(asked, every, waiting[:LOT], found)
        waiting = waiting[LOT:]
        asked.say("bounding layouts", found.bounded, None)


def _promise(plan: Plan, bound_s: float, question: Question) -> float:
    """What a layout should take: its bound, and the ramps of virtual stages, of which the bound knows nothing."""
    if plan.schedule != "interleaved":
        return bound_s
    m = plan.num_micro_batches(question.workload.global_batch_seqs)
    return bound_s * (1.0 + (plan.pp - 1) / (plan.vpp * max(1, m)))


def _refine(asked: _Asked, priced: Priced, beat_s: float) -> tuple[RefinedRow, Report | None]:
    """The stages of one layout chosen and simulated; beat_s: the step they have to beat, below which it was priced."""
    q, plan, bound = asked.question, priced.plan, priced.bound_s
    scenario = Scenario(
        model=q.model, cluster=q.cluster, software=q.software, workload=q.workload, plan=plan,
        routing=q.routing.at_ep(plan.ep), ranks=priced.ranks,
    )  # fmt: skip

    def gives(outcome: str, **more: Any) -> RefinedRow:
        base: dict[str, Any] = {"step_s": None, "even_s": None, "stages": (), "recompute": (), "solution": None}
        return RefinedRow(label=plan.label(), outcome=outcome, free_bound_s=bound, **(base | more))

    try:
        # rules that ask for an even split do not bind stages that are stated
        counts = layers_per_stage(len(q.model.layers), plan.pp * plan.vpp, account_ends=True)
        stated = replace(scenario, plan=replace(scenario.plan, stages=counts))
        allowed = options_of(stated, target=asked.target, recompute=asked.only)
        columns = priced.columns
        columns = columns.take(np.isin(columns.option, [i for i, o in enumerate(columns.options) if o in allowed]))
        virtual = columns.placed == "loop" and columns.vpp > 1
        columns = alike_columns(columns) if virtual else columns
        # without virtual stages the dynamic programme has proved the answer
        solution = solve_stages(
            columns, seed=asked.seed, most_columns=MOST_COLUMNS[asked.way] if virtual else 0,
            enough=ENOUGH[asked.way], cutoff_s=beat_s if virtual else np.inf,
        )  # fmt: skip
        if solution.choice is None:
            return gives("not faster" if solution.status == "infeasible" else "no stages found"), None
        if bound >= beat_s or solution.choice.objective_s >= beat_s:
            return gives("not faster", solution=solution), None
        reports = [run.simulate(laid_out(scenario, solution.choice, asked.target), trace=False)]
        # the closed form knows least of virtual stages
        if virtual or reports[0].step_s.value < beat_s * NEAR:
            met = (solution.choice.counts, solution.choice.recompute[0])
            alike = {(c.counts, c.recompute[0]): c for c in alike_choices(columns, solution.choice.objective_s)}
            tried = [c for key, c in alike.items() if key != met and c.objective_s < beat_s]
            reports += [run.simulate(laid_out(scenario, c, asked.target), trace=False) for c in tried]
    except UserError as error:
        return gives(error.problems[0]), None
    report = min(reports, key=lambda r: (not r.fits, r.step_s.value))
    said = {"stages": report.plan.stages, "recompute": report.plan.recompute, "solution": solution}
    step_s = report.step_s.value
    outcome = "does not fit" if not report.fits else "not faster" if step_s >= beat_s else "adopted"
    return gives(outcome, step_s=step_s, **said), report
