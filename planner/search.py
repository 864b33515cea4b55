"""The search: rules, memory and lower bound on columns, then event runs in order of the bound.

The bound of a candidate never exceeds its simulated step, so once the next bound reaches the k-th
best step nothing later can enter the top k: the answer is exact over the table. On a limit the
remaining gap is part of the answer instead. The search stops on counts, never on the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.energy import EnergyAsk, EnergyProof, least_energy
from planner.front import Front, front_runs
from planner.neighbours import Neighbour, neighbours_of
from planner.ranks import Laying, Question, SimulateFn, maps_that_differ, rank_maps, spread
from planner.result import (
    NEXT_KEPT,
    OUT_OF_MEMORY_EVENT,
    Certificate,
    PlanResult,
    RankedPlan,
    SearchSummary,
    misfits_of,
    no_plan,
)
from planner.rules import rules_of
from planner.runs import Runs, event_runs
from planner.space import clean_fixed, space
from planner.stage_plan.refine import Refinement, refined
from planner.table import Candidate, Progress, ScreenFn, Table, build_table, in_order_of_parts, tie_key
from planner.variants import Axes, Chosen
from planner.wide import WideSearch
from planner.wide_answer import Wide
from sim.cost.model import CostModel
from sim.mesh import RankMap
from sim.model import ModelSpec
from sim.notes import notes
from sim.plan import Plan
from sim.report import Report
from sim.routing import Routing
from sim.workload import Workload

DEFAULT_MAX_SIMULATED = 200
__all__ = [
    "DEFAULT_MAX_SIMULATED", "NEXT_KEPT", "OUT_OF_MEMORY_EVENT", "Certificate", "PlanResult", "RankedPlan",
    "SearchSummary", "find_plans",
]  # fmt: skip


def find_plans(
    model: ModelSpec,
    cluster: ClusterSpec,
    software: SoftwareProfile,
    workload: Workload,
    *,
    fixed: Mapping[str, Any] | None = None,
    target: str = "megatron-lm",
    top: int = 5,
    max_simulated: int | None = DEFAULT_MAX_SIMULATED,
    progress: Progress | None = None,
    seed: int = 0,
    simulate_fn: SimulateFn | None = None,
    screen_fn: ScreenFn | None = None,
    capacity_bytes: float | None = None,
    routing: Routing | None = None,
    ranks: Sequence[RankMap] | None = None,
    lean: int = 0,
    stages: str = "uniform",
    energy: EnergyAsk | None = None,
    axes: Axes | None = None,
    below_s: float = math.inf,
) -> PlanResult:
    """The `top` fastest plans of the candidate table, with a certificate or the remaining gap.

    fixed pins plan fields (None = free). max_simulated limits the event runs of the first rank
    map, and as many again of all the others (None = no limit).
    progress(stage, done, total) is called as work proceeds. seed is recorded; nothing here is random. routing: loads of
    experts (default: forced balance), by expert-parallel size. ranks: rank maps to choose among, the preferred first
    (default: every rank order the target runs; with simulate_fn or screen_fn, which see plans alone, the first).
    lean: event runs spent on plans that need less memory than the fastest (`planner.front`); energy: on those that may
    take less energy (`planner.energy`).
    stages: "uniform", or "auto" or "ilp" for stages chosen by integer programme (`planner.stage_plan.refine`).
    axes: what is searched besides the table (`planner.wide`); the proof is then of the first plan, over all of it.
    below_s: with axes, a step that one of its plans is known to take.
    An interrupt keeps the event runs that fit, and leaves out what would follow them. Raises UserError on bad options
    and NoPlanError, with the candidates lost per rule, when nothing legal fits.
    """
    started = time.perf_counter()
    given = clean_fixed(fixed)
    top = max(1, top)
    rules = rules_of(target)
    loads = routing or Routing()
    question = Question(model=model, cluster=cluster, software=software, workload=workload, routing=loads)
    maps = maps_that_differ(rank_maps(target) if ranks is None else ranks, cluster)
    maps = maps[:1] if simulate_fn or screen_fn else maps
    layings = {
        each: Laying(ranks=each, question=question, given_screen=screen_fn, given_simulate=simulate_fn) for each in maps
    }
    first, *others = layings.values()
    ctx = first.ctx
    capacity = _capacity_bytes(cluster, software) if capacity_bytes is None else capacity_bytes
    blocks = space(model, cluster, workload, given, software)
    table = build_table(blocks, ctx, rules, first.screen, progress, others, spread)
    screened = time.perf_counter()
    if table.fits == 0 and axes is None:
        raise no_plan(table, {}, rules, capacity, ctx)
    # Some rows beyond the limit: the bound of the first is what the gap is measured against.
    limit = None if max_simulated is None else max(1, max_simulated)
    ordered = in_order_of_parts(table, first.ranks, None if limit is None else limit + NEXT_KEPT)
    run = event_runs(ordered, layings, top, limit, progress)
    rejected = dict(table.rejected)
    if run.misfits:
        rejected[OUT_OF_MEMORY_EVENT] = len(run.misfits)
    if not run.done and run.stopped == "interrupted":
        raise KeyboardInterrupt
    wide: Wide | None = None
    if axes is not None:
        widely = WideSearch(axes, question, maps, rules, given, table, run, layings, top=top, progress=progress)
        wide = widely.answer(rejected, below_s=below_s)
        run = replace(run, stopped=wide.stopped)
    if not run.done and (wide is None or not wide.done):
        counted = table if wide is None else replace(table, raw=wide.raw, legal=wide.legal)
        raise no_plan(counted, rejected if wide is None else wide.rejected, rules, capacity, ctx, run)
    if wide is None:
        plans = plans_of(run.done[:top])
        summary = _summary(table, run, rejected, top)
    else:
        plans, summary = wide.listed(top), wide.summary()
    said = _warnings(summary, run.void if wide is None else wide.void)
    chosen, best = plans[0].report, plans[0].report.step_s.value
    ended = time.perf_counter()
    under = layings if wide is None else {m: wide.laying(plans[0], m) for m in layings}
    orders = [each for m, each in under.items() if m.hosts == chosen.ranks.hosts and m != chosen.ranks]
    front = least = None
    near: tuple[Neighbour, ...] = ()
    try:
        if run.stopped != "interrupted":
            front = front_runs(table, run, layings, lean) if lean > 0 and run.done else None
            least = least_energy(table, run, layings, energy) if energy is not None and run.done else None
            steps = run.steps if wide is None else wide.steps(plans[0])
            near = neighbours_of(chosen.plan, best, under[chosen.ranks], rules, steps, given, orders)
    except KeyboardInterrupt:  # what was run until now stands
        run = replace(run, stopped="interrupted")
        summary = replace(summary, stopped="interrupted")
    free = None
    if stages != "uniform" and run.stopped != "interrupted":
        listed = run.done[:top] if wide is None else wide.alike(plans[0])[:top]
        free = refined(
            listed, table, under, given, way=stages, target=target, seed=seed, progress=progress,
            even=(summary.certificate, summary.gap),
        )  # fmt: skip
        done = plans_of(run.done) if wide is None else wide.plans()
        plans, summary = _with_stages(done, summary, free, top, plans[0].chosen)
        if wide is not None:
            summary = wide.with_stages(summary, plans[0].report.step_s.value)
    return PlanResult(
        model=model,
        cluster=cluster,
        software=software,
        workload=workload,
        target=target,
        options={
            "fixed": given,
            "top": top,
            "max_simulated": max_simulated,
            "seed": seed,
            "routing": loads.source,
            "rank_orders": list(dict.fromkeys(m.order for m in maps)),
            "host_maps": list(dict.fromkeys(m.hosts.digest for m in maps if m.hosts is not None)),
            **({} if stages == "uniform" else {"stages": stages}),
            **({} if axes is None else {"searched": list(axes.dimensions)}),
        },
        plans=plans,
        search=summary,
        rules=rules,
        next_best=run.left[:NEXT_KEPT],
        misfits=(*run.misfits[:NEXT_KEPT], *misfits_of(table.nearest, capacity)),
        fast_misfits=misfits_of(_worth_memory(table, best), capacity),
        neighbours=near,
        warnings=(*said, *_notes(under[chosen.ranks], chosen)),
        timing={
            "seconds": time.perf_counter() - started,
            "screening_s": screened - started,
            "simulating_s": ended - screened,
        },
        lean=_further(plans, front, least, wide),
        # both proofs are of the table: of further variants they say nothing
        front=front if wide is None else None,
        stages=free,
        energy=least if wide is None else None,
        variants=() if wide is None else wide.lines,
    )


def plans_of(done: Sequence[tuple[float, Report, float]]) -> tuple[RankedPlan, ...]:
    """Event runs (step, report, bound) as plans."""
    return tuple(RankedPlan(rank=i + 1, report=r, bound_s=b) for i, (_, r, b) in enumerate(done))


def _with_stages(
    done: Sequence[RankedPlan], even: SearchSummary, free: Refinement, top: int, chosen: Chosen | None
) -> tuple[tuple[RankedPlan, ...], SearchSummary]:
    """Plans with even stages and those whose stages were chosen (they run with `chosen`), by step, each layout and
    recompute once, under the fastest of its stages; the summary, true of both."""
    every = [*done, *(RankedPlan(rank=0, report=r, bound_s=b, chosen=chosen) for r, b in free.plans)]
    every.sort(key=lambda each: (each.report.step_s.value, tie_key(each.report.plan)))
    layouts: dict[tuple[Plan, str], RankedPlan] = {}
    for each in every:
        report = each.report
        layouts.setdefault((replace(report.plan, stages=None, account_ends=False), report.ranks.order), each)
    listed = tuple(replace(each, rank=i + 1) for i, each in enumerate(list(layouts.values())[:top]))
    certificate: Certificate = "void" if even.certificate == "void" or free.void else "gap"
    if certificate == "gap" and free.gap <= 0.0:
        certificate = "best exact"
    return listed, replace(even, bound_s=free.bound_s, gap=max(0.0, free.gap), certificate=certificate)


def _further(
    listed: Sequence[RankedPlan], front: Front | None, least: EnergyProof | None, wide: Wide | None
) -> tuple[RankedPlan, ...]:
    """Plans run beside those listed, each once; with variants also what was run of them."""
    runs = [*(() if front is None else front.runs), *(() if least is None else least.runs)]
    found = [RankedPlan(rank=0, report=r, bound_s=b, chosen=None if wide is None else wide.asked(r)) for r, b in runs]
    known = {(p.report.plan, p.report.ranks) for p in listed}
    once: dict[tuple[Plan, RankMap], RankedPlan] = {}
    for each in (*found, *(() if wide is None else wide.plans())):
        if (key := (each.report.plan, each.report.ranks)) not in known:
            once.setdefault(key, replace(each, rank=0))
    return tuple(once.values())


def _capacity_bytes(cluster: ClusterSpec, software: SoftwareProfile) -> float:
    """What a rank may allocate, as screening and the event run see it."""
    return CostModel(cluster, software).usable_bytes


def _summary(table: Table, run: Runs, rejected: Mapping[str, int], top: int) -> SearchSummary:
    best = run.done[0][0]
    last = run.done[min(top, len(run.done)) - 1][0]
    bound = min(best, run.next_bound_s)
    certificate: Certificate = "gap"
    if run.void:
        certificate = "void"
    elif run.next_bound_s == float("inf") or (len(run.done) >= top and run.next_bound_s >= last):
        certificate = "exact"
    elif run.next_bound_s >= best:
        certificate = "best exact"
    return SearchSummary(
        raw=table.raw,
        legal=table.legal,
        fits=table.fits - len(run.misfits),
        simulated=run.simulated,
        bound_s=bound,
        gap=(best - bound) / best if best > 0 else 0.0,
        certificate=certificate,
        stopped=run.stopped,
        rejected=dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
    )


def _notes(laying: Laying, chosen: Report) -> tuple[str, ...]:
    """What is worth saying of the first plan (`sim.notes`); nothing where someone else simulates."""
    return () if laying.given_simulate is not None else notes(laying.scenario(chosen.plan))


def _warnings(summary: SearchSummary, void: Sequence[str]) -> tuple[str, ...]:
    said = [f"no certificate: {text}" for text in void[:1]]
    if summary.stopped in ("limit", "interrupted") and summary.gap > 0.0:
        why = "at its limit of event runs" if summary.stopped == "limit" else "by an interrupt"
        said.append(f"search stopped {why}: a plan up to {summary.gap:.1%} faster may exist")
    return tuple(said)


def _worth_memory(table: Table, best: float) -> list[Candidate]:
    """Rejected by memory with a bound below the best step, the smallest excess first."""
    return [c for c in reversed(table.unfit_front) if c.bound_s < best][:NEXT_KEPT]
