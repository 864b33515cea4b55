"""Which plan, and on how many devices: throughput, cost, time to train or energy, under a deadline and a budget.

Every count of devices is searched on its own; the answer is the best plan by the objective that keeps deadline and
budget, with the Pareto set of time, memory, money and devices over all plans that were simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hwprofiles.errors import NoPlanError, UserError
from hwprofiles.specs import ClusterSpec
from planner.planfile import plan_fields
from planner.search import PlanResult, RankedPlan
from planner.training import Terms, Training, power_share, training_json, training_of
from planner.variants import Chosen
from sim.report import Report

OBJECTIVES = ("throughput", "cost", "time-to-train", "energy")
LEAN_RUNS = 48  # event runs per count of devices on plans that need less memory
ENERGY_RUNS = 60  # and on plans that may take less energy, where that is the objective


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is wanted. terms: None where no tokens were named; then times and costs are those of a step.
    price_usd_per_s: of a device, where it is not the catalogue's; by cluster or device where types have their own."""

    objective: str = "throughput"
    terms: Terms | None = None
    deadline_s: float | None = None
    budget_usd: float | None = None
    price_usd_per_s: float | Mapping[str, float] | None = None

    def options(self) -> dict[str, Any]:
        """As JSON; what never fails is null."""
        terms = None if self.terms is None else {
            name: None if value is None or math.isinf(value) else value for name, value in asdict(self.terms).items()
        }  # fmt: skip
        price = dict(self.price_usd_per_s) if isinstance(self.price_usd_per_s, Mapping) else self.price_usd_per_s
        limits = {"deadline_s": self.deadline_s, "budget_usd": self.budget_usd, "price_usd_per_s": price}
        return {"objective": self.objective, **limits, "terms": terms}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A simulated plan as the Pareto set sees it. time_s, usd, energy_j: of the run, or of a step without tokens;
    usd None: no price. keeps: deadline and budget. chosen: what the plan runs with, where that was searched."""

    devices: int
    report: Report
    bound_s: float
    time_s: float
    usd: float | None
    energy_j: float
    training: Training | None
    keeps: bool
    chosen: Chosen | None = None

    @property
    def costs(self) -> tuple[float, ...]:
        """What the Pareto set compares, less is better: seconds, bytes, USD, devices."""
        return self.time_s, self.report.peak_mem_bytes, self.usd or 0.0, float(self.devices)


@dataclass(frozen=True, kw_only=True)
class Count:
    """The search on one count of devices of one cluster: its plans by the objective, or why there is none."""

    devices: int
    cluster: str
    result: PlanResult | None
    points: tuple[Point, ...]
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The answer: the result of the chosen count, its plans by the objective, and everything beside it."""

    goal: Goal
    chosen: PlanResult
    point: Point
    counts: tuple[Count, ...]
    pareto: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """Keys that join the plan file: goal, counts, pareto."""
        return {
            "goal": self.goal.options(),
            "counts": [_count_json(count, self.goal) for count in self.counts],
            "pareto": [point_json(point) for point in self.pareto],
        }

    @property
    def front_gap(self) -> float | None:
        """No plan of any table is faster by more, on as many devices and with no more memory, than one of `pareto`;
        None where a search was not asked for it."""
        fronts = [count.result.front for count in self.counts if count.result is not None]
        return None if None in fronts else max((f.gap for f in fronts if f is not None), default=0.0)

    @property
    def energy_gap(self) -> float | None:
        """No plan of any table takes less energy than that of `point` by more; None where a search does not know."""
        bounds = [energy_bound_j(count) for count in self.counts if count.result is not None]
        least = min((b for b in bounds if b is not None), default=math.inf)
        if None in bounds or math.isinf(least):
            return None
        return max(0.0, 1.0 - least / self.point.energy_j)

    def trainings(self) -> list[dict[str, Any] | None]:
        """The run of each plan of the chosen result, in its order."""
        by_plan = {(p.report.plan, p.report.ranks): p.training for c in self.counts for p in c.points
                   if (p.devices, p.report.cluster) == (self.point.devices, self.point.report.cluster)}  # fmt: skip
        found = [by_plan.get((each.report.plan, each.report.ranks)) for each in self.chosen.plans]
        return [None if each is None else training_json(each) for each in found]


def energy_bound_j(count: Count) -> float | None:
    """Joules that no plan on this count of devices goes below; None where its search does not know."""
    proof = None if count.result is None else count.result.energy
    if proof is None or proof.void or not count.points:
        return None
    return (1.0 - proof.gap) * min(point.energy_j for point in count.points)


def counts_between(least: int, most: int, per_node: int) -> tuple[int, ...]:
    """Devices to try: doubling from `least`, and `most` itself; whole nodes beyond one node."""
    found = [least]
    while found[-1] * 2 < most:
        found.append(found[-1] * 2)
    if most > found[-1]:
        found.append(most)
    odd = [n for n in found if n > per_node and n % per_node]
    if odd:
        raise UserError(
            f"{odd[0]} devices are no whole number of nodes of {per_node}; give --gpus and --max-gpus in whole nodes",
            where="--max-gpus",
        )
    return tuple(found)


def value_of(point: Point, objective: str) -> float:
    """What the objective makes as small as can be."""
    if objective == "throughput":
        return point.report.step_s.value
    if objective == "cost":
        return math.inf if point.usd is None else point.usd
    return point.time_s if objective == "time-to-train" else point.energy_j


def point_of(plan: RankedPlan, goal: Goal, cluster: ClusterSpec, result: PlanResult) -> Point:
    """A simulated plan with what it costs."""
    report, bound_s = plan.report, plan.bound_s
    from hwprofiles.catalogue import device_of

    if goal.terms is None:
        power = device_of(cluster).power_w * report.devices
        return Point(
            devices=report.devices, report=report, bound_s=bound_s, time_s=report.step_s.value,
            usd=report.usd_per_step, energy_j=power * power_share(report) * report.step_s.value, training=None,
            keeps=True, chosen=plan.chosen,
        )  # fmt: skip
    training = training_of(report, goal.terms, result.model, cluster, result.workload_of(plan))
    time_s, usd = training.time_s.value, training.usd.value
    late = goal.deadline_s is not None and time_s > goal.deadline_s
    dear = goal.budget_usd is not None and usd > goal.budget_usd
    return Point(
        devices=report.devices, report=report, bound_s=bound_s, time_s=time_s, usd=usd,
        energy_j=training.energy_j.value, training=training, keeps=math.isfinite(time_s) and not late and not dear,
        chosen=plan.chosen,
    )  # fmt: skip


def pareto_of(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points that no other is as good as in every respect and better in one; by time."""
    ordered = sorted(points, key=lambda p: (p.costs, p.report.plan.label()))
    kept: list[Point] = []
    for point in ordered:  # whoever dominates a point stands before it
        beaten = any(all(a <= b for a, b in zip(other.costs, point.costs, strict=True)) for other in kept)
        if not beaten:
            kept.append(point)
    return tuple(kept)


def reach(goal: Goal, clusters: Sequence[ClusterSpec], search: Callable[[ClusterSpec], PlanResult]) -> Reached:
    """Search every cluster (other counts, other nodes) and choose. search: raises NoPlanError where nothing fits.

    Raises NoPlanError when no count has a plan, or none that keeps deadline and budget.
    """
    counts: list[Count] = []
    for cluster in clusters:
        try:
            result = search(cluster)
        except KeyboardInterrupt:  # what the counts before gave stands, and says that it was interrupted
            if not any(count.points for count in counts):
                raise
            counts = [_interrupted(count) for count in counts]
            break
        except NoPlanError as error:
            if len(clusters) == 1:
                raise  # nothing to choose among: the counts per rule and the nearest misses are the answer
            counts.append(
                Count(devices=cluster.num_devices, cluster=cluster.name, result=None, points=(), why=error.problems[0])
            )
            continue
        points = [point_of(p, goal, result.cluster, result) for p in (*result.plans, *result.lean)]
        counts.append(
            Count(devices=cluster.num_devices, cluster=cluster.name, result=result, points=tuple(points))
        )  # fmt: skip
        if result.search.stopped == "interrupted":
            break
    every = [point for count in counts for point in count.points]
    if not every:
        raise NoPlanError(
            [f"{c.devices} devices of {c.cluster}: {c.why}" for c in counts], search={"counts": len(counts)}
        )
    good = [point for point in every if point.keeps]
    if not good:
        raise NoPlanError(_misses(every, goal), search={"counts": len(counts)})
    best = min(good, key=lambda p: (value_of(p, goal.objective), p.costs, p.report.plan.label()))
    count = next(c for c in counts if any(p is best for p in c.points))
    assert count.result is not None
    found = Reached(goal=goal, chosen=count.result, point=best, counts=tuple(counts), pareto=pareto_of(every))
    return replace(found, chosen=_in_order(found, count.points))


def _interrupted(count: Count) -> Count:
    """The count whose search says that it was interrupted."""
    if count.result is None:
        return count
    return replace(count, result=replace(count.result, search=replace(count.result.search, stopped="interrupted")))


def _in_order(found: Reached, points: Sequence[Point]) -> PlanResult:
    """The result with its plans by the objective, those that keep deadline and budget first."""
    goal, result = found.goal, found.chosen
    ranked = sorted(
        points, key=lambda p: (not p.keeps, value_of(p, goal.objective), p.costs, p.report.plan.label())
    )[: len(result.plans)]  # fmt: skip
    plans = tuple(
        RankedPlan(rank=i + 1, report=p.report, bound_s=p.bound_s, chosen=p.chosen) for i, p in enumerate(ranked)
    )
    said = result.warnings
    if [p.report for p in plans] != [p.report for p in result.plans]:
        proved = goal.objective == "energy" and found.energy_gap is not None
        how = "" if proved else " among the plans simulated"
        said = (*said, f"ranked by {goal.objective}{how}; the certificate of the search is of the step time")
    if goal.objective == "energy" and (gap := found.energy_gap) is not None and gap > 0.0:
        said = (*said, f"a plan that takes up to {gap:.1%} less energy may exist")
    return replace(result, plans=plans, warnings=said, options={**result.options, "goal": goal.options()})


def _misses(points: Sequence[Point], goal: Goal) -> list[str]:
    """Why nothing keeps deadline and budget: the soonest and the cheapest plan."""
    soonest = min(points, key=lambda p: p.costs)
    cheapest = min(points, key=lambda p: (p.usd or 0.0, p.costs))
    limits, given = [], []
    if goal.deadline_s is not None:
        given.append("--deadline")
        limits.append(f"within {goal.deadline_s / 86400:.3g} days")
    if goal.budget_usd is not None:
        given.append("--budget")
        limits.append(f"for {goal.budget_usd:,.0f} USD")
    if not math.isfinite(soonest.time_s):
        return [
            "no plan trains the tokens at all: failures leave no time to work; --mtbf, --checkpoint-cost and --restart "
            "say how often a node fails and what that costs"
        ]
    said = [f"no plan trains the tokens {' and '.join(limits)}"]
    for name, p in (("soonest", soonest), ("cheapest", cheapest)):
        said.append(f"{name}: {p.report.plan.label()} on {p.devices:,} devices of {p.report.cluster}, "
                    f"{p.time_s / 86400:.3g} days, {p.usd or 0.0:,.0f} USD; "
                    f"raise {', '.join(given)} or --max-gpus")  # fmt: skip
    return said


def point_json(point: Point) -> dict[str, Any]:
    """A point as JSON, SI units."""
    report = point.report
    said = {} if point.chosen is None else {"chosen": point.chosen.label}
    return said | {
        "devices": point.devices, "cluster": report.cluster, "label": report.plan.label(),
        "plan": plan_fields(report.plan), "rank_order": report.ranks.order, "step_s": report.step_s.value,
        "peak_mem_bytes": report.peak_mem_bytes,
        "time_s": _finite(point.time_s), "usd": None if point.usd is None else _finite(point.usd),
        "energy_j": _finite(point.energy_j), "keeps": point.keeps,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _count_json(count: Count, goal: Goal) -> Mapping[str, Any]:
    if count.result is None:
        return {"devices": count.devices, "cluster": count.cluster, "best": None, "why": count.why,
                "certificate": None, "gap": None, "front_gap": None, "front_open": None,
                "energy_bound_j": None}  # fmt: skip
    best = min(count.points, key=lambda p: (not p.keeps, value_of(p, goal.objective), p.costs))
    search = count.result.search
    return {"devices": count.devices, "cluster": count.cluster, "best": point_json(best), "why": "",
            "certificate": search.certificate, "gap": search.gap,
            "front_gap": None if count.result.front is None else count.result.front.gap,
            "front_open": None if count.result.front is None else count.result.front.open,
            "energy_bound_j": energy_bound_j(count)}  # fmt: skip
