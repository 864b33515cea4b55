"""Screening and memory of schedules that split the backward or hold the model twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwprofiles.errors import UserError
from sim.build.forms import layout_of
from sim.build.forms_split import split_form, whole_form
from sim.build.layer import layer_ops
from sim.build.order import SPLIT_SCHEDULES, V_SHAPED, chunks_on
from sim.build.schedule import check_schedule
from sim.columns import columns_of
from sim.cost.timing import operand_bytes
from sim.families import load_model
from sim.plan import Plan
from sim.report import Report
from sim.run import Simulation
from sim.scenario import Scenario
from sim.screen import Screener
from tests.sim.test_screen import CASES, MIN_MEDIAN_RATIO, ROUNDING, Case, draw

CHOSEN = (CASES[0], CASES[5], CASES[8])
PLANS = 3


def of_schedule(case: Case, schedule: str, seed: int) -> list[Plan]:
    """Random legal layouts run by this schedule."""
    model, _, _, work = case.spec()
    found: list[Plan] = []
    for _, _, plan in draw(case, 400, seed=seed):
        vpp = 2 if schedule in V_SHAPED else 1
        other = replace(plan, schedule=schedule, vpp=vpp)
        if plan.pp == 1 or plan.pp * vpp > len(model.layers) or len(found) == PLANS:
            continue
        try:
            m = plan.num_micro_batches(work.global_batch_seqs)
            check_schedule(schedule, pp=plan.pp, vpp=chunks_on(schedule, vpp), num_micro_batches=m)
        except UserError:
            continue
        found.append(other)
    return found


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.model)
@pytest.mark.parametrize("free", [False, True])
def test_bound_and_peak_against_event_runs(case: Case, free: bool) -> None:
    model, machines, trainer, work = case.spec()
    trainer = replace(trainer, optimizer_post_validation=free)
    screener = Screener(model, machines, trainer, work)
    ratios = []
    for schedule in ("1f1b", *SPLIT_SCHEDULES):
        for plan in of_schedule(case, schedule, seed=2 + free):
            scenario = Scenario(model=model, cluster=machines, software=trainer, workload=work, plan=plan)
            report = Simulation(scenario, cost=screener.cost).report(trace=False)
            seen = screener(columns_of([plan])[0])
            ratios.append(float(seen.bound_s[0]) / report.step_s.value)
            assert ratios[-1] <= 1.0 + ROUNDING, plan
            assert seen.peak_bytes[0] == pytest.approx(report.peak_mem_bytes, rel=ROUNDING), plan
    assert len(ratios) > 2 * len(SPLIT_SCHEDULES)
    assert float(np.median(ratios)) >= MIN_MEDIAN_RATIO


def test_bound_and_peak_of_groups_of_micro_batches() -> None:
    model, machines, trainer, work = CHOSEN[1].spec()
    screener = Screener(model, machines, trainer, work)
    checked = 0
    for _, _, plan in draw(CHOSEN[1], 200, seed=9):
        m = plan.num_micro_batches(work.global_batch_seqs)
        if plan.vpp == 1 or m < 2 * plan.pp or checked == 6:
            continue
        group = next(g for g in range(plan.pp + 1, m + 1) if m % g == 0 or m % g >= plan.pp)
        wide = replace(plan, micro_batch_group=group)
        scenario = Scenario(model=model, cluster=machines, software=trainer, workload=work, plan=wide)
        report = Simulation(scenario, cost=screener.cost).report(trace=False)
        seen = screener(columns_of([wide])[0])
        assert float(seen.bound_s[0]) <= report.step_s.value * (1.0 + ROUNDING), wide
        assert seen.peak_bytes[0] == pytest.approx(report.peak_mem_bytes, rel=ROUNDING), wide
        checked += 1
    assert checked == 6


def step_of(schedule: str, **changes: object) -> tuple[Scenario, Report]:
    """DeepSeek-V3 on 16 even stages (of a V: halves), a layer of the middle on each chunk."""
    model, machines, trainer, work = CASES[0].spec()
    model = replace(model, layers=model.layers[-32:], mtp_layers=0)
    per_stage = machines.num_devices // 16
    plan = Plan(pp=16, dp=per_stage, ep=per_stage // 2, edp=2, schedule=schedule)
    plan = replace(plan, vpp=2 if schedule in V_SHAPED else 1)
    work = replace(work, global_batch_seqs=64 * plan.dp, with_mtp=False)
    trainer = replace(trainer, **changes)  # type: ignore[arg-type]
    scenario = Scenario(model=model, cluster=machines, software=trainer, workload=work, plan=plan)
    return scenario, Simulation(scenario).report()


def test_two_copies_of_the_weights_and_one_of_the_optimizer() -> None:
    _, once = step_of("1f1b")
    _, twice = step_of("dualpipe")
    # stages 0 and 15 hold the table and the head, each once in 1F1B and both in DualPipe
    assert twice.memory[5]["weights"] == pytest.approx(2.0 * once.memory[5]["weights"])
    assert twice.memory[5]["gradients"] == pytest.approx(2.0 * once.memory[5]["gradients"])
    assert twice.memory[5]["optimizer"] == pytest.approx(once.memory[5]["optimizer"])
    ends = once.memory[0]["weights"] + once.memory[15]["weights"]
    assert twice.memory[0]["weights"] == pytest.approx(ends) == twice.memory[15]["weights"]
    assert [twice.memory[s] for s in range(8)] == [twice.memory[15 - s] for s in range(8)]


def test_activations_follow_the_counts_in_flight() -> None:
    found = {schedule: step_of(schedule)[1] for schedule in ("1f1b", "dualpipe", "dualpipe-v", "zb-h1", "zb-h2")}
    held = {name: report.memory[0]["activations"] for name, report in found.items()}
    of_1f1b = held["1f1b"] / 16  # of one micro-batch
    assert found["1f1b"].memory[5]["activations"] == pytest.approx(11 * of_1f1b, rel=0.02)
    assert found["dualpipe"].memory[5]["activations"] == pytest.approx(17 * of_1f1b, rel=0.02)
    assert found["zb-h1"].memory[0]["activations"] == pytest.approx(16 * of_1f1b, rel=1e-9)
    assert found["zb-h2"].memory[0]["activations"] == pytest.approx(31 * of_1f1b, rel=1e-9)
    # what delayed weight gradients hold grows towards the last stage
    last = [sum(found[name].memory[14].values()) for name in ("1f1b", "zb-h1", "zb-h2")]
    assert last == sorted(last) and last[0] < last[1] < last[2]


def test_what_a_weight_gradient_needs() -> None:
    scenario, _ = step_of("zb-h1")
    sim = Simulation(scenario)
    layer = scenario.model.layers[-1]
    ops = layer_ops(scenario.context(), layer)
    by_name = {op.name: float(operand_bytes(op)) for op in ops if op.pass_ == "wgrad"}
    assert layer.moe is not None
    width = 2.0 if scenario.workload.precision == "bf16" else 1.03
    rows = next(op for op in ops if op.kind == "grouped_gemm" and op.pass_ == "wgrad")
    d, h = scenario.model.hidden_dim, layer.moe.ffn_dim
    count = float(rows.k * rows.groups)
    assert by_name[rows.name] == pytest.approx(width * count * (d + 2 * h), rel=0.04)
    parts = sim.step.layer_parts[sim.step.kinds.index(layer)]
    assert float(parts.deferred) == pytest.approx(sum(by_name.values()))
    plain = Simulation(replace(scenario, plan=replace(scenario.plan, schedule="1f1b")))
    assert float(plain.step.layer_parts[0].deferred) == 0.0


def test_the_breakdown_of_a_split_step_adds_up() -> None:
    for schedule in SPLIT_SCHEDULES:
        for free in (False, True):
            _, report = step_of(schedule, optimizer_post_validation=free)
            assert sum(report.breakdown.values()) == pytest.approx(report.step_s.value)
            assert 0.0 < report.bubble_fraction < 0.3
            assert report.trace is not None
            assert {"forward", "backward", "wgrad"} <= {span.kind for span in report.trace.spans}


@pytest.mark.parametrize("schedule", SPLIT_SCHEDULES)
@pytest.mark.parametrize("pp", [2, 4, 6])
def test_forms_of_many_micro_batches_are_those_of_the_whole_order(schedule: str, pp: int) -> None:
    """Long orders are extended from a short one; walking them whole counts the same steps, sends and moments."""
    model, vpp = load_model("DeepSeek-V2-Lite"), 2 if schedule in V_SHAPED else 1
    layout = layout_of(model, pp, vpp, account_ends=True, mtp=False, schedule=schedule)
    for m in (2 * pp + 6, 2 * pp + 7, 2 * pp + 8, 2 * pp + 9, 4 * pp + 6, 4 * pp + 7, 4 * pp + 9, 4 * pp + 24):
        short = split_form(layout, schedule, m)
        if short is None:  # dualpipe: pairs of micro-batches
            assert m % 2
            continue
        whole = whole_form(layout, schedule, m)
        for name in ("steps", "late", "sends"):
            assert np.array_equal(getattr(short, name), getattr(whole, name)), name
        for name in ("stage", "running", "held"):
            assert np.array_equal(getattr(short.peaks, name), getattr(whole.peaks, name)), name
