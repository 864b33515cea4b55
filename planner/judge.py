"""A given plan against the best one: its time, its gap, and the one change that helps most.

A change is one choice of the plan (a degree doubled or halved, recompute, sharding, stages, rank order) or one switch
of the trainer that a flag turns on. What breaks a rule or does not fit is no help; of what is left, those whose lower
bound beats the given step are run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from hwprofiles.errors import UserError
from planner.neighbours import MOVED, moved
from planner.planfile import plan_fields
from planner.rules import RANK_ORDERS, check
from planner.rules.flags import switches_of
from planner.search import PlanResult, find_plans
from planner.space import recompute_choices
from planner.switches import legal, simulated_below, turned_on
from sim import run
from sim.plan import Plan
from sim.report import Report, rank_fields
from sim.scenario import Scenario

ZERO_STAGES = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of the given plan and the step it leads to."""

    change: str
    step_s: float
    gain: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What is said of a given plan. gap: given step over best step, minus 1. changes: those that help, best first."""

    given: Report
    best: PlanResult
    gap: float
    changes: tuple[Change, ...]
    tried: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        first = self.best.plans[0].report
        return {
            "given": _brief(self.given),
            "best": _brief(first),
            "gap": self.gap,
            "certificate": self.best.search.certificate,
            "changes": [asdict(change) for change in self.changes],
            "changes_tried": self.tried,
            "notes": list(self.notes),
        }


def _brief(report: Report) -> dict[str, Any]:
    step = report.step_s
    return {
        "label": report.plan.label(),
        "plan": plan_fields(report.plan),
        "step_s": {"value": step.value, "low": step.low, "high": step.high},
        "mfu": report.mfu.value,
        "fits": report.fits,
        "peak_mem_bytes": report.peak_mem_bytes,
        "rank_order": rank_fields(report.ranks)["rank_order"],
    }


def judge(asked: Scenario, *, target: str = "megatron-lm", notes: tuple[str, ...] = ()) -> Judgement:
    """Judge the plan of a scenario. Raises UserError naming every rule it breaks, NoPlanError where nothing fits."""
    broken = check(
        asked.plan, asked.model, asked.cluster, asked.software, asked.workload, target=target, ranks=asked.ranks
    )
    if broken:
        raise UserError([str(v) for v in broken], where=f"{target} cannot run {asked.plan.label()}")
    given = run.simulate(asked, trace=False)
    best = find_plans(
        asked.model, asked.cluster, asked.software, asked.workload, target=target, top=1, routing=asked.routing
    )
    changes, tried = _changes(asked, given, target)
    fastest = best.plans[0].report.step_s.value
    return Judgement(
        given=given, best=best, gap=given.step_s.value / fastest - 1.0, changes=changes, tried=tried, notes=notes
    )


def _changes(asked: Scenario, given: Report, target: str) -> tuple[tuple[Change, ...], int]:
    """Changes that help, best first, and how many were legal. Where the given plan does not fit, all that fit help."""
    found: list[Change] = []
    tried = 0
    now = given.step_s.value
    for name, other in _single(asked, target):
        if not legal(other, target):
            continue
        tried += 1
        report = simulated_below(other, now if given.fits else inf)
        if report is not None:
            step = report.step_s.value
            found.append(Change(change=name, step_s=step, gain=1.0 - step / now, label=other.plan.label()))
    return tuple(sorted(found, key=lambda c: (c.step_s, c.change))), tried


def _single(asked: Scenario, target: str) -> Iterator[tuple[str, Scenario]]:
    """Every scenario one change away from the given one, in an explicit order."""
    plan, world = asked.plan, asked.cluster.num_devices
    for name in MOVED:
        old = int(getattr(plan, name))
        for value in (old // 2, old * 2):
            if value >= 1 and not (value < old and old % 2):
                yield f"{name} {old} -> {value}", replace(asked, plan=_restaged(moved(plan, name, value, world), asked))
    choices = dict.fromkeys((*recompute_choices(asked.model, asked.software), plan.recompute))
    for modules in choices:
        if modules != plan.recompute:
            said = ", ".join(modules) or "none"
            yield f"recompute {said}", replace(asked, plan=replace(plan, recompute=modules))
    for stage in ZERO_STAGES:  # those that the target does not run break a rule
        if stage != plan.zero_stage:
            said = "distributed optimizer (ZeRO 1)" if stage == 1 else f"ZeRO {plan.zero_stage} -> {stage}"
            yield said, replace(asked, plan=replace(plan, zero_stage=stage, fsdp_shard=0))
    if plan.pp > 1:
        lighter = replace(plan, account_ends=not plan.account_ends, stages=None)
        yield (
            ("count embedding and loss as layers" if lighter.account_ends else "even stages"),
            replace(asked, plan=lighter),
        )
    for order in RANK_ORDERS[target]:
        if order != asked.ranks.order:
            yield f"rank order {order}", replace(asked, ranks=replace(asked.ranks, order=order))
    for switch in switches_of(target, asked.software):
        if switch.name != "sequence_parallel" or plan.tp > 1:
            yield switch.said, replace(asked, software=turned_on(asked.software, (switch.name,)))


def _restaged(plan: Plan, asked: Scenario) -> Plan:
    """A moved plan whose stages hold: a changed number of stages is laid out anew."""
    slots, layers = plan.pp * plan.vpp, len(asked.model.layers)
    same = slots == asked.plan.pp * asked.plan.vpp
    if same:
        return plan
    return replace(plan, stages=None, account_ends=plan.pp > 1 and (plan.account_ends or layers % slots != 0))
