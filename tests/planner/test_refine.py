"""Stages of a search's plans chosen: bounds below every simulated step, memory conditions, never slower than even."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from planner.export import export_plan
from planner.export.handover import handover_of
from planner.planfile import plan_json
from planner.ranks import Question
from planner.scaled import scaled
from planner.schema import check_plan
from planner.search import PlanResult, find_plans
from planner.stage_plan.free import Work, free_bounds, least_step_s
from planner.stage_plan.room import held_at_first_backward, may_fit, parts_of
from sim import run
from sim.build.tasks import simulate_step
from sim.columns import columns_of
from sim.cost.model import CostModel
from sim.cost.step import StepCost
from sim.families import load_model
from sim.mesh import DEFAULT_MAP
from sim.plan import Plan
from sim.report import Adjustment
from sim.routing import Routing
from sim.scenario import Scenario
from sim.workload import Workload
from tests.planner.test_stage_plan import MIXTRAL


@cache
def question(name: str = "mixtral-8x7b", gpus: int = 64, batch: int = 256) -> Question:
    model, machines = load_model(name), catalogue.cluster("dgx-h100", gpus=gpus)
    software = catalogue.software(
        catalogue.default_software(machines.device), device=machines.device, model=model.name, arch="moe"
    )
    workload = Workload(seq_tokens=4096, global_batch_seqs=batch)
    return Question(model=model, cluster=machines, software=software, workload=workload, routing=Routing())


def scenario(plan: Plan, q: Question) -> Scenario:
    return Scenario(model=q.model, cluster=q.cluster, software=q.software, workload=q.workload, plan=plan)


PLANS = (
    replace(MIXTRAL, account_ends=False),
    replace(MIXTRAL, account_ends=False, pp=8, dp=4, edp=2),
    replace(MIXTRAL, account_ends=False, vpp=2, schedule="interleaved"),
)


@settings(max_examples=25, deadline=None)
@given(which=st.integers(0, 2), seed=st.integers(0, 10**6), full=st.booleans())
def test_no_stages_beat_the_bound_and_none_that_fit_are_ruled_out(which: int, seed: int, full: bool) -> None:
    q, plan = question(), PLANS[which]
    rng, slots = np.random.default_rng(seed), plan.pp * plan.vpp
    inner = rng.multinomial(32 - (slots - 2), rng.dirichlet(np.full(slots, 5.0)))
    stages = tuple(int(n) + (0 < i < slots - 1) for i, n in enumerate(inner))
    modules = ("full",) if full else ()
    report = run.simulate(scenario(replace(plan, stages=stages, recompute=modules), q), trace=False)
    (rows,) = columns_of([plan])
    (bound,) = free_bounds(q, DEFAULT_MAP, rows, [modules])
    if report.fits:
        assert 0.5 * report.step_s.value < bound <= report.step_s.value * (1 + 1e-9)
    step = StepCost(CostModel(q.cluster, q.software), scenario(replace(plan, recompute=modules), q).context())
    m = np.array([plan.num_micro_batches(256)])
    assert not report.fits or may_fit(rows, m, parts_of(step), report.usable_mem_bytes).all()


@settings(max_examples=15, deadline=None)
@given(
    pp=st.integers(2, 5), m=st.integers(1, 12), seed=st.integers(0, 10**6), share=st.floats(0.2, 0.5),
    vpp=st.integers(1, 2),
)  # fmt: skip
def test_bound_holds_for_any_work_on_the_stages_of_an_event_run(
    pp: int, m: int, seed: int, share: float, vpp: int
) -> None:
    m = m * pp if vpp > 1 else m
    rng = np.random.default_rng(seed)
    q = question()
    base = run.Simulation(scenario(replace(MIXTRAL, account_ends=False), q)).profile()
    seconds = rng.uniform(0.1, 3.0, (pp, vpp))
    chunks = tuple(
        tuple(
            replace(base.chunks[0][0], forward_s=s * share, backward_s=s * (1 - share), paired_s=None,
                    forward_flows=(), backward_flows=()) for s in row.tolist()
        ) for row in seconds
    )  # fmt: skip
    tail = replace(base.tails[0], grad_flows=(), param_flows=(), grad_latency_s=0.0, param_latency_s=0.0,
                   optimizer_s=0.0, fixed_s=0.0, taken_s=0.0)  # fmt: skip
    profile = replace(
        base, pp=pp, vpp=vpp, num_micro_batches=m, chunks=chunks, tails=(tail,) * pp, p2p=(),
        schedule="interleaved" if vpp > 1 else "1f1b", static_bytes=base.static_bytes[:1] * pp,
    )  # fmt: skip
    step_s = simulate_step(profile).makespan_s
    whole = np.array([seconds.sum()])
    work = Work(alone_s=whole, paired_s=whole, layer_s=np.array([seconds.min()]), share=np.array([share]))
    (bound,) = least_step_s(np.array([pp]), np.array([m]), work, np.array([vpp == 1]))
    assert bound <= step_s * (1 + 1e-9)
    if vpp == 1 and m == 1:
        assert bound == pytest.approx(step_s)


def test_even_work_meets_the_bound_of_plain_1f1b() -> None:
    """Equal stages take W + (m - 1) W / p; the bound lies below by the share of forwards alone."""
    whole = np.array([12.0])
    work = Work(alone_s=whole, paired_s=whole, layer_s=np.array([1.0]), share=np.array([0.0]))
    (bound,) = least_step_s(np.array([4]), np.array([9]), work, np.array([True]))
    assert bound == pytest.approx(12.0 + 8 * 3.0)


def test_held_activations_are_those_of_the_first_backward() -> None:
    assert held_at_first_backward(4, 1, 32).tolist() == [4, 3, 2, 1]
    assert held_at_first_backward(4, 1, 2).tolist() == [2, 2, 2, 1]
    assert held_at_first_backward(2, 2, 8).tolist() == [2, 1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), pp=st.integers(2, 4), room=st.floats(0.5, 2.0))
def test_what_is_ruled_out_fits_no_shares(seed: int, pp: int, room: float) -> None:
    rng = np.random.default_rng(seed)
    parts = [(int(rng.integers(1, 4)), rng.uniform(1.0, 5.0), rng.uniform(0.5, 3.0)) for _ in range(3)]
    held = held_at_first_backward(pp, 1, 8)
    usable = room * sum(n * (s + held.mean() * a) for n, s, a in parts) / pp
    (rows,) = columns_of([Plan(pp=pp)])
    if not may_fit(rows, np.array([8]), parts, usable).all():
        for _ in range(200):
            cut = [rng.multinomial(n, rng.dirichlet(np.ones(pp))) for n, _, _ in parts]
            need = sum(c * (s + held * a) for c, (_, s, a) in zip(cut, parts, strict=True))
            assert np.max(need) > usable


@cache
def answer(way: str, batch: int = 128) -> PlanResult:
    q = question("deepseek-v2-lite", 32, batch)
    workload = replace(q.workload, with_mtp=False)
    return find_plans(
        q.model, q.cluster, q.software, workload, fixed={"pp": 4, "tp": 1, "vpp": 4, "recompute": (), "ep": 8}, top=2,
        stages=way,
    )  # fmt: skip


@pytest.mark.parametrize("way", ["auto", "ilp"])
def test_the_answer_is_never_slower_and_says_what_was_refined(way: str) -> None:
    even, free = answer("uniform"), answer(way)
    assert free.stages is not None and even.stages is None
    assert free.plans[0].report.step_s.value <= even.plans[0].report.step_s.value
    assert free.stages.even_s == even.plans[0].report.step_s.value
    assert free.stages.even_certificate == even.search.certificate
    assert any(row.outcome == "adopted" for row in free.stages.rows), "this case gains"
    best = free.plans[0].report
    assert best.plan.stages is not None and best.fits
    assert free.search.bound_s <= best.step_s.value and free.search.certificate == "gap"
    assert free.search.gap == pytest.approx(1 - free.search.bound_s / best.step_s.value)
    assert all(r.step_s is None or r.free_bound_s <= r.step_s for r in free.stages.rows) and not free.stages.void
    ilp, auto = answer("ilp").stages, answer("auto").stages
    assert ilp is not None and auto is not None and len(ilp.rows) >= len(auto.rows)


@pytest.mark.parametrize("way", ["auto", "ilp"])
def test_each_layout_is_listed_once_under_the_fastest_of_its_stages(way: str) -> None:
    listed = answer(way).plans
    layouts = [(replace(p.report.plan, stages=None, account_ends=False), p.report.ranks.order) for p in listed]
    assert len(listed) == 2 and len(set(layouts)) == 2
    assert [p.rank for p in listed] == [1, 2]
    best = answer(way).plans[0].report
    even = [p.report for p in answer("uniform").plans if p.report.plan.label() == best.plan.label()]
    assert even and all(best.step_s.value < report.step_s.value for report in even)


def test_the_chosen_stages_simulate_and_export_as_they_are() -> None:
    free = answer("auto")
    best = free.plans[0].report
    q = question("deepseek-v2-lite", 32, 128)
    workload = replace(q.workload, with_mtp=False)
    again = run.simulate(replace(scenario(best.plan, q), workload=workload, ranks=best.ranks), trace=False)
    assert again.step_s.value == best.step_s.value
    written = export_plan(handover_of(free, 1), "megatron-lm")
    assert any(best.pipeline_layout in text for text in written.files.values())
    data = plan_json(free)
    check_plan(data)
    assert data["stages"]["rows"][0]["programme"]["status"] in ("optimal", "limit")
    assert data["inputs"]["options"]["stages"] == "auto" and "stages" not in plan_json(answer("uniform"))


def test_anchors_move_every_second_of_it() -> None:
    free = answer("auto")
    moved = scaled(free, Adjustment(factor=2.0, share=1.0, before=(1.0, 1.0), after=(2.0, 2.0), anchors=()))
    assert moved.stages is not None and free.stages is not None
    assert moved.stages.bound_s == 2.0 * free.stages.bound_s == moved.search.bound_s
    assert moved.stages.gap == free.stages.gap


def test_an_unknown_way_is_named() -> None:
    with pytest.raises(UserError, match="fast"):
        answer("fast")


def test_the_bound_over_any_stages_holds_for_gpipe_whose_stages_stay_even() -> None:
    q = question("DeepSeek-V2-Lite", gpus=32)
    asked = {"fixed": {"schedule": "gpipe", "pp": 4}, "target": "layout", "top": 1, "stages": "auto"}
    found = find_plans(q.model, q.cluster, q.software, q.workload, **asked)  # type: ignore[arg-type]
    plan = found.plans[0].report.plan
    assert found.stages is not None and found.stages.kept_even == ("gpipe",) and found.search.gap > 0.0
    assert found.search.certificate == "gap"
    steps = [
        run.simulate(scenario(replace(plan, stages=stages, account_ends=False), q), trace=False).step_s.value
        for stages in ((7, 7, 7, 6), (8, 7, 6, 6), (7, 8, 7, 5), (9, 6, 6, 6), (3, 8, 8, 8), (12, 5, 5, 5))
    ]
    assert min(steps) < found.plans[0].report.step_s.value  # even stages are not the best here
    assert found.stages.bound_s <= min(steps)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), full=st.booleans(), m=st.sampled_from((8, 64, 256)))
def test_no_stages_of_gpipe_beat_its_bound(seed: int, full: bool, m: int) -> None:
    q, rng = question(batch=m), np.random.default_rng(seed)
    inner = rng.multinomial(32 - 2, rng.dirichlet(np.full(4, 5.0)))
    stages = tuple(int(n) + (0 < i < 3) for i, n in enumerate(inner))
    plan = replace(PLANS[0], schedule="gpipe", recompute=("full",) if full else ())
    report = run.simulate(scenario(replace(plan, stages=stages), q), trace=False)
    (rows,) = columns_of([plan])
    (bound,) = free_bounds(q, DEFAULT_MAP, rows, [plan.recompute])
    assert not report.fits or bound <= report.step_s.value * (1 + 1e-9)
