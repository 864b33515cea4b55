"""The search over stages on several types of devices: rows by bound, stages by game, event runs, a bound and a gap.

Of every layout and every order of the types along the pipeline the stages are chosen under each type's seconds and
memory against the longest path through the order of their work (`planner.mixed.game`); those whose own path is short
enough to be the best are simulated. Rows are taken in order of bound plus bubble, so that good ones come early, until
no bound of a row that is left is below the best step, or the limit.
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
from planner.mixed.refine import MixedPlan, Refiner, loads_of, scenario_of
from planner.mixed.rows import MixedRows, TypeQuestion, mixed_rows
from planner.runs import BOUND_TOLERANCE
from planner.space import clean_fixed, recompute_choices
from planner.stage_plan.priced import SCHEDULES
from planner.table import Progress, tie_key
from sim.build.stages import layers_per_stage
from sim.mixed import Mixed, simulate_mixed
from sim.plan import Plan
from sim.workload import Offload

MOST_ROWS = 24  # whose stages are chosen
FURTHER = 4  # rows that are priced together, for each of those


@dataclass(frozen=True, kw_only=True)
class MixedResult:
    """The answer. names, devices: of each type. bound_s: no layout of the table is faster, whatever its stages; gap:
    (best - bound_s) / best; stopped: "bound" or "limit". tried: rows whose stages were chosen."""

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
    if progress is not None:
        progress("bounds of layouts", 0, None)
    table = mixed_rows(types, given, target, tried)
    if not len(table.rows):
        raise NoPlanError(_nothing(table), search={"raw": table.raw, "rejected": dict(table.rejected)})
    likely = _order(table, types)[: FURTHER * most]
    block = np.unique(np.concatenate([likely, np.arange(min(len(table.rows), FURTHER * most))]))  # rows are by bound
    refiner = Refiner(types, table.rows.take(block), tried, target=target, between=between, seed=seed)
    done: list[MixedPlan] = []
    tight, seen = table.bounds.copy(), np.zeros(len(table.rows), dtype=bool)
    best_s, why = np.inf, dict[str, int]()

    def look(i: int, beat_s: float) -> None:
        """Choose the stages of a row in every order of the types."""
        nonlocal best_s
        plan, bounds, seen[i] = table.plan(i), [], True
        for where in _orders(plan, types):
            try:
                found, bound = refiner.refine(int(np.searchsorted(block, i)), plan, where, beat_s=min(beat_s, best_s))
            except UserError as error:
                why[error.problems[0]] = why.get(error.problems[0], 0) + 1
                found, bound = (), float(table.bounds[i])
            bounds.append(max(bound, float(table.bounds[i])))
            done.extend(replace(each, bound_s=bounds[-1]) for each in found)
            best_s = min((p.report.step_s.value for p in done), default=np.inf)
        tight[i] = min(bounds)

    for i in likely.tolist():
        if table.bounds[i] >= best_s:
            continue
        if seen.sum() >= most and done:
            break
        if progress is not None:
            progress("choosing stages" + (f", best {best_s:.3g} s" if done else ""), int(seen.sum()), most)
        look(i, np.inf)
    # rows of low bounds that are not likely the best: so far as the bound of all asks for it
    for number, i in enumerate(np.setdiff1d(block, np.flatnonzero(seen)).tolist()):
        least_s = min(best_s, float(tight[seen].min()))
        if table.bounds[i] >= least_s or number >= most or not done:
            break
        if progress is not None:
            progress(f"bounding what is left, best {best_s:.3g} s", number, None)
        look(i, least_s)
    stopped = "limit" if np.any(table.bounds[~seen] < best_s) else "bound"
    if not done:
        raise NoPlanError([*_nothing(table), *why], search={"raw": table.raw, "rejected": dict(table.rejected)})
    bound = min(best_s, float(tight.min()))
    done.sort(key=lambda p: (p.report.step_s.value, tie_key(p.report.plan), p.where))
    apart: dict[tuple[Plan, tuple[int, ...]], MixedPlan] = {}
    for p in done:
        apart.setdefault((_layout(p.report.plan), p.where), p)
    listed = list(apart.values())[:top]
    void = [p for p in done if p.report.step_s.value < p.bound_s * (1.0 - BOUND_TOLERANCE)]
    if progress is not None:
        progress("even stages beside", 0, None)
    return MixedResult(
        names=tuple(t.cluster.name for t in types), devices=tuple(t.devices for t in types),
        plans=tuple(_listed(types, p, tried, between) for p in listed),
        raw=table.raw, legal=len(table.rows), tried=int(seen.sum()), bound_s=bound, gap=(best_s - bound) / best_s,
        stopped=stopped, rejected=dict(sorted(table.rejected.items(), key=lambda item: (-item[1], item[0]))),
        warnings=tuple(f"no certificate: {p.report.plan.label()} was simulated below its bound" for p in void[:1]),
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def _layout(plan: Plan) -> Plan:
    """What stays of a plan when stages and recompute are free."""
    return replace(plan, recompute=(), account_ends=False, stages=None)


def _listed(
    types: Sequence[TypeQuestion], found: MixedPlan, options: Sequence[tuple[str, ...]], between: LinkSpec | None
) -> MixedPlan:
    """A plan with the loads of its stages, and even stages under the best recompute beside it."""
    plan = found.report.plan
    even = layers_per_stage(len(types[0].question.model.layers), plan.pp * plan.vpp, account_ends=True)

    def laid(**changes: Any) -> Mixed:
        homes = tuple(scenario_of(t, replace(plan, **changes)) for t in types)
        return Mixed(types=homes, where=found.where, between=between)

    reports = [simulate_mixed(laid(stages=even, recompute=modules)) for modules in options]
    even_s = min((r.step_s.value for r in reports if r.fits), default=None)
    return replace(found, even_s=even_s, loads=loads_of(laid(), found.report))


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


def _nothing(table: MixedRows) -> list[str]:
    said = [f"no plan on these types of devices: {table.raw} candidates, {len(table.rows)} may fit"]
    said += [f"{count} lost to {name}" for name, count in sorted(table.rejected.items(), key=lambda i: -i[1])]
    return [*said, "free --pp, --tp or --recompute, use more devices, or make the pools equal in size"]
