"""Objectives, deadlines and the Pareto set, on closed-form searches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.errors import NoPlanError, UserError
from planner.front import front_runs
from planner.goals import Goal, Point, counts_between, pareto_of, reach
from planner.runs import event_runs
from planner.search import PlanResult, find_plans
from planner.table import build_table, in_order
from planner.training import Terms
from sim.plan import Plan
from sim.report import Report
from tests.planner.toy import make_model, make_software, make_workload, toy_peak_bytes, toy_report, toy_screen

CLUSTERS = [catalogue.cluster("dgx-h100", gpus=n) for n in (8, 16, 32)]
TERMS = Terms(tokens=1e11, node_mtbf_s=1e6, restart_s=100.0, storage_bytes_per_s=1e10)


def search(cluster: catalogue.ClusterSpec) -> PlanResult:
    """Speeds up with the square root of the devices, so that more devices cost more."""

    def simulate(plan: Plan) -> object:
        return replace(toy_report(plan, step_s=10.0 / math.sqrt(cluster.num_devices) + plan.tp),
                       devices=cluster.num_devices)  # fmt: skip

    return find_plans(
        make_model(), cluster, make_software(), make_workload(), top=3, simulate_fn=simulate,  # type: ignore[arg-type]
        screen_fn=toy_screen, capacity_bytes=10.0, max_simulated=20, lean=4,
    )  # fmt: skip


def test_cost_takes_few_devices_and_time_takes_many() -> None:
    cheap = reach(Goal(objective="cost", terms=TERMS), CLUSTERS, search)
    soon = reach(Goal(objective="time-to-train", terms=TERMS), CLUSTERS, search)
    fast = reach(Goal(), CLUSTERS, search)
    assert (cheap.point.devices, soon.point.devices, fast.point.devices) == (8, 32, 32)
    assert cheap.point.usd is not None and soon.point.usd is not None and cheap.point.usd < soon.point.usd
    assert cheap.chosen.cluster.num_devices == 8
    assert cheap.chosen.plans[0].report.plan == cheap.point.report.plan


def test_deadline_and_budget_are_kept_or_named() -> None:
    soon = reach(Goal(objective="time-to-train", terms=TERMS), CLUSTERS, search).point
    cheap = reach(Goal(objective="cost", terms=TERMS), CLUSTERS, search).point
    between = (soon.time_s + cheap.time_s) / 2
    kept = reach(Goal(objective="cost", terms=TERMS, deadline_s=between), CLUSTERS, search).point
    assert kept.time_s <= between and kept.devices > cheap.devices
    with pytest.raises(NoPlanError) as caught:
        reach(Goal(terms=TERMS, deadline_s=soon.time_s / 2, budget_usd=1.0), CLUSTERS, search)
    said = "\n".join(caught.value.problems)
    assert "soonest" in said and "cheapest" in said and str(soon.devices) in said


def test_count_without_a_plan_is_a_line_not_the_end() -> None:
    def some(cluster: catalogue.ClusterSpec) -> PlanResult:
        if cluster.num_devices == 8:
            raise NoPlanError("too small")
        return search(cluster)

    found = reach(Goal(objective="cost", terms=TERMS), CLUSTERS, some)
    assert [c.why for c in found.counts] == ["too small", "", ""]
    assert found.point.devices == 16


@given(st.lists(st.tuples(*[st.integers(1, 4)] * 4), min_size=1, max_size=12))
def test_pareto_set_is_exactly_what_nothing_beats(costs: list[tuple[int, ...]]) -> None:
    points = []
    for time_s, peak, usd, devices in costs:
        report = replace(toy_report(Plan()), peak_mem_bytes=float(peak))
        points.append(Point(devices=devices, report=report, bound_s=0.0, time_s=float(time_s), usd=float(usd),
                            energy_j=0.0, training=None, keeps=True))  # fmt: skip
    kept = {p.costs for p in pareto_of(points)}
    every = {p.costs for p in points}
    free = {a for a in every if not any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in every)}
    assert kept == free


def test_counts_double_and_end_at_the_most() -> None:
    assert counts_between(8, 48, 8) == (8, 16, 32, 48)
    assert counts_between(1, 8, 8) == (1, 2, 4, 8)
    with pytest.raises(UserError, match="whole number of nodes"):
        counts_between(8, 20, 8)


def test_lean_plans_need_less_memory_than_the_fastest() -> None:
    result = search(CLUSTERS[1])
    assert result.lean
    assert min(p.report.peak_mem_bytes for p in result.lean) < result.plans[0].report.peak_mem_bytes


def test_front_is_exact_with_enough_runs_and_says_its_gap_before() -> None:
    """The front of every row's own step and peak, by brute force, is that of the plans simulated."""
    from planner.ranks import Laying, Question
    from planner.rules import rules_of
    from planner.space import space
    from sim.mesh import DEFAULT_MAP
    from sim.routing import Routing

    question = Question(model=make_model(), cluster=CLUSTERS[1], software=make_software(), workload=make_workload(),
                        routing=Routing())  # fmt: skip
    laying = Laying(ranks=DEFAULT_MAP, question=question, given_screen=toy_screen, given_simulate=sized)
    blocks = space(question.model, question.cluster, question.workload, {}, question.software)
    table = build_table(blocks, laying.ctx, rules_of("layout"), laying.screen, None)
    layings = {DEFAULT_MAP: laying}
    run = event_runs(in_order(table, None), layings, 1, 5, None)
    every = [sized(block.plan(i)) for block in table.blocks for i in range(len(block))]
    rows = {(r.step_s.value, r.peak_mem_bytes) for r in every}
    free = {a for a in rows if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in rows)}
    last = 1.0
    for most in (0, 3, 30, 10_000):
        front = front_runs(table, run, layings, most)
        assert front.gap <= last and len(front.runs) <= most
        last = front.gap
        ran = [(s, r.peak_mem_bytes) for s, r, _ in run.done]
        ran += [(r.step_s.value, r.peak_mem_bytes) for r, _ in front.runs]
        short = max(1.0 - step / min((s for s, p in ran if p <= peak), default=math.inf) for step, peak in rows)
        assert short <= front.gap + 1e-12
    assert front.gap == 0.0 and front.open == 0
    assert free <= set(ran)
    assert len(front.runs) < len(every) / 2


def test_a_changed_machine_grows_with_its_changes() -> None:
    """Counts of devices are of the machine that was asked about, not of its preset."""
    from planner.question.case import question_of
    from planner.question.money import AskedPlan, clusters_of

    case = {"model": "llama2-7b", "cluster": "dgx-h100", "gpus": "16", "cluster.scale_out.bytes_per_s": 1e11}
    asked = AskedPlan(cluster="dgx-h100", gpus="16")
    sizes = clusters_of(asked, {"dgx-h100": question_of(case)}, None, 64)
    assert [c.num_devices for c in sizes] == [16, 32, 64]
    assert {c.scale_out.bytes_per_s for c in sizes} == {1e11}
    part = question_of({**case, "gpus": "4"})
    with pytest.raises(UserError, match="does not grow"):
        clusters_of(replace(asked, gpus="4"), {"dgx-h100": part}, None, 64)


def test_one_count_without_a_plan_says_why_in_full() -> None:

    def nothing(_: object) -> NoReturn:
        raise NoPlanError(["no plan", "7 lost to a rule"], search={})

    with pytest.raises(NoPlanError) as caught:
        reach(Goal(), CLUSTERS[:1], nothing)
    assert list(caught.value.problems) == ["no plan", "7 lost to a rule"]
    with pytest.raises(NoPlanError) as caught:
        reach(Goal(), CLUSTERS[:2], nothing)
    assert list(caught.value.problems) == [f"{c.num_devices} devices of {c.name}: no plan" for c in CLUSTERS[:2]]


def sized(plan: Plan) -> Report:
    """The toy step with the toy peak of its own plan."""
    return replace(toy_report(plan), peak_mem_bytes=toy_peak_bytes(plan))


def test_an_interrupt_keeps_the_counts_before_it() -> None:
    def stopped(cluster: Any) -> PlanResult:
        if cluster is not CLUSTERS[0]:
            raise KeyboardInterrupt
        return search(cluster)

    found = reach(Goal(), CLUSTERS, stopped)
    assert [count.devices for count in found.counts] == [CLUSTERS[0].num_devices]
    assert found.chosen.search.stopped == "interrupted" and found.chosen.plans

    def never(cluster: Any) -> PlanResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reach(Goal(), CLUSTERS, never)
