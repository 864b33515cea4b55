"""The search over stages on several types of devices: rows by bound, stages by programme, event runs, a bound and a
gap.

Of every layout and every order of the types along the pipeline the programme chooses layers and recompute under each
type's seconds and memory; that choice, stages as alike as can be and even stages are simulated. Rows are taken in
order of bound plus bubble, so that good ones come early, until no bound of a row that is left is below the best step,
or the limit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import numpy as np

from hwprofiles.errors import NoPlanError, UserError
from hwprofiles.specs import LinkSpec
from planner.mixed.rows import MixedRows, TypeQuestion, mixed_rows
from planner.runs import BOUND_TOLERANCE
from planner.space import clean_fixed, recompute_choices
from planner.stage_plan.answer import options_of
from planner.stage_plan.even_out import alike_choices
from planner.stage_plan.free import least_priced_s, step_end_s, work_of
from planner.stage_plan.priced import SCHEDULES, intervals
from planner.stage_plan.programme import solve_stages
from planner.stage_plan.records import Modules, StageSolution
from planner.table import Progress, tie_key
from sim.build.stages import layers_per_stage
from sim.cost.model import CostModel
from sim.cost.step import StepCost
from sim.mixed import Mixed, simulate_mixed
from sim.plan import Plan
from sim.report import Report
from sim.scenario import Scenario
from sim.workload import Offload

MOST_ROWS = 16
MOST_COLUMNS = 2500  # of a programme with virtual stages that is worth its time here
FURTHER = 3  # rows whose bound alone is looked at, for each that is refined


@dataclass(frozen=True, kw_only=True)
class MixedPlan:
    """A simulated plan. where: type of each stage; even_s: the same layout with even stages under the best recompute,
    None where that does not fit; solution: of the programme; bound_s: no stages of this layout are faster."""

    report: Report
    where: tuple[int, ...]
    even_s: float | None
    solution: StageSolution
    bound_s: float


@dataclass(frozen=True, kw_only=True)
class MixedResult:
    """The answer. names, devices: of each type. bound_s: no layout of the table is faster, whatever its stages; gap:
    (best - bound_s) / best; stopped: "bound" or "limit". tried: rows whose stages were chosen; fitted: of them."""

    names: tuple[str, ...]
    devices: tuple[int, ...]
    plans: tuple[MixedPlan, ...]
    raw: int
    legal: int
    tried: int
    bound_s: float
    gap: float
    stopped: str
    rejected: Mapping[str, int]
    warnings: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)


def find_mixed(
    types: Sequence[TypeQuestion], *, fixed: Mapping[str, Any] | None = None, target: str = "megatron-lm",
    between: LinkSpec | None = None, top: int = 5, most: int = MOST_ROWS, seed: int = 0,
    progress: Progress | None = None,
) -> MixedResult:  # fmt: skip
    """The fastest plans whose stages run on all of these types. Raises UserError on impossible pools, NoPlanError where
    nothing fits."""
    began = time.perf_counter()
    given = clean_fixed(fixed)
    _check(types, given)
    first = types[0].question
    only = tuple(given["recompute"]) if "recompute" in given else None
    tried = (only,) if only is not None else recompute_choices(first.model, first.software)
    table = mixed_rows(types, given, target, tried)
    if not len(table.rows):
        raise NoPlanError(_nothing(table), search={"raw": table.raw, "rejected": dict(table.rejected)})
    done: list[MixedPlan] = []
    tight = table.bounds.copy()
    spent, best_s, stopped, why = 0, np.inf, "bound", dict[str, int]()
    for i in _order(table, types).tolist():
        if table.bounds[i] >= best_s:
            continue
        if (spent == most and done) or spent == FURTHER * most:
            stopped = "limit"
            break
        spent += 1
        if progress is not None:
            progress("choosing stages", spent, most)
        plan = table.plan(i)
        for where in _orders(plan, types):
            try:
                found, bound = _refine(types, plan, where, only, target, between, seed)
            except UserError as error:
                why[error.problems[0]] = why.get(error.problems[0], 0) + 1
                found, bound = None, float(table.bounds[i])
            done += [] if found is None else [replace(found, bound_s=max(bound, float(table.bounds[i])))]
            tight[i] = bound if where == _orders(plan, types)[0] else min(tight[i], bound)
        tight[i] = max(tight[i], table.bounds[i])
        best_s = min((p.report.step_s.value for p in done), default=np.inf)
    if not done:
        raise NoPlanError([*_nothing(table), *why], search={"raw": table.raw, "rejected": dict(table.rejected)})
    bound = min(best_s, float(tight.min()))
    done.sort(key=lambda p: (p.report.step_s.value, tie_key(p.report.plan), p.where))
    void = [p for p in done if p.report.step_s.value < p.bound_s * (1.0 - BOUND_TOLERANCE)]
    return MixedResult(
        names=tuple(t.cluster.name for t in types), devices=tuple(t.devices for t in types), plans=tuple(done[:top]),
        raw=table.raw, legal=len(table.rows), tried=spent, bound_s=bound, gap=(best_s - bound) / best_s,
        stopped=stopped, rejected=dict(sorted(table.rejected.items(), key=lambda item: (-item[1], item[0]))),
        warnings=tuple(f"no certificate: {p.report.plan.label()} was simulated below its bound" for p in void[:1]),
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def _check(types: Sequence[TypeQuestion], given: Mapping[str, Any]) -> None:
    problems = []
    if others := [name for name in given.get("schedule", ()) if name not in SCHEDULES]:
        problems.append(
            f"schedule {', '.join(others)}: stages on several types are chosen by the closed form of "
            f"{' and '.join(SCHEDULES)}, which says nothing of others; leave --schedule out or name one of these"
        )
    if types and types[0].question.workload.offload != Offload():
        problems.append(
            "offload to the host is not modelled on several types of devices, whose hosts and their links differ; "
            "leave --offload out"
        )
    if len(types) < 2:
        problems.append("one type of devices; give two or more, or use `moecast plan`")
    for t in types:
        if t.devices % t.cluster.devices_per_node:
            problems.append(
                f"{t.devices} devices of {t.cluster.name} are no whole number of nodes of {t.cluster.devices_per_node}"
            )
        if t.cluster.num_devices != sum(each.devices for each in types):
            problems.append(f"{t.cluster.name}: its question must be on all {sum(x.devices for x in types)} devices")
    if problems:
        raise UserError(problems, where="types of devices")


def _order(table: MixedRows, types: Sequence[TypeQuestion]) -> Any:
    """Rows by what they should take: the bound, and a bubble of even stages."""
    rows = table.rows
    m = types[0].question.workload.global_batch_seqs // (rows.micro_batch_seqs * rows.dp)
    likely = table.bounds * (1.0 + (rows.pp - 1) / (rows.vpp * np.maximum(1, m)))
    return np.argsort(likely, kind="stable")


def _orders(plan: Plan, types: Sequence[TypeQuestion]) -> list[tuple[int, ...]]:
    """The types along the pipeline, each in one piece, in every order."""
    total = sum(t.devices for t in types)
    counts = [t.devices * plan.pp // total for t in types]
    return [tuple(i for i in order for _ in range(counts[i])) for order in permutations(range(len(types)))]


def _scenario(t: TypeQuestion, plan: Plan) -> Scenario:
    q = t.question
    return Scenario(
        model=q.model, cluster=q.cluster, software=q.software, workload=q.workload, plan=plan,
        routing=q.routing.at_ep(plan.ep),
    )  # fmt: skip


def _refine(
    types: Sequence[TypeQuestion], plan: Plan, where: tuple[int, ...], only: Modules | None, target: str,
    between: LinkSpec | None, seed: int,
) -> tuple[MixedPlan | None, float]:  # fmt: skip
    """(the plan with its stages chosen, a bound for any stages) of one layout and one order; None where nothing fits.

    Raises UserError where a rule forbids it on one of the types.
    """
    layers = len(types[0].question.model.layers)
    even = layers_per_stage(layers, plan.pp * plan.vpp, account_ends=True)
    homes = [_scenario(t, plan) for t in types]
    allowed = [
        options_of(replace(s, plan=replace(plan, stages=even)), target=target, recompute=only) for s in homes
    ]  # fmt: skip
    options = [each for each in allowed[0] if all(each in others for others in allowed)]
    if not options:
        raise UserError("no recompute setting is allowed on every type", where=plan.label())
    columns = intervals(homes[0], options, [homes[i] for i in where])
    bound = _bound(homes, columns)
    solution = solve_stages(columns, seed=seed, most_columns=MOST_COLUMNS if columns.vpp > 1 else None)
    if solution.choice is None:
        return None, bound if solution.status != "infeasible" else np.inf

    def simulated(stages: tuple[int, ...], modules: Modules) -> Report:
        laid = replace(plan, stages=stages, recompute=modules, account_ends=False)
        return simulate_mixed(
            Mixed(types=tuple(replace(s, plan=laid) for s in homes), where=where, between=between)
        )  # fmt: skip

    choices = [solution.choice, *alike_choices(columns, solution.choice.objective_s)]
    pairs = dict.fromkeys((c.counts, c.recompute[0]) for c in choices)
    chosen = [simulated(*pair) for pair in pairs]
    with_even = [simulated(even, modules) for modules in dict.fromkeys(pair[1] for pair in pairs)]
    fit = [report for report in (*chosen, *with_even) if report.fits]
    if not fit:
        return None, bound
    best = min(fit, key=lambda r: (r.step_s.value, tie_key(r.plan)))
    even_s = min((r.step_s.value for r in with_even if r.fits), default=None)
    return MixedPlan(report=best, where=where, even_s=even_s, solution=solution, bound_s=bound), bound


def _bound(homes: Sequence[Scenario], columns: Any) -> float:
    """No stages of this layout, in this order of the types, are faster."""
    costs = [CostModel(s.cluster, s.software, ranks=s.ranks) for s in homes]
    works = [work_of(StepCost(cost, s.context())) for cost, s in zip(costs, homes, strict=True)]
    largest = replace(works[0], share=max(float(work.share) for work in works))
    paired = any(s.software.a2a_overlap for s in homes)
    ends = min(step_end_s(cost, s.software) for cost, s in zip(costs, homes, strict=True))
    return least_priced_s(columns, largest, paired=paired) + ends


def _nothing(table: MixedRows) -> list[str]:
    said = [f"no plan on these types of devices: {table.raw} candidates, {len(table.rows)} may fit"]
    said += [f"{count} lost to {name}" for name, count in sorted(table.rejected.items(), key=lambda i: -i[1])]
    return [*said, "free --pp, --tp or --recompute, use more devices, or make the pools equal in size"]
