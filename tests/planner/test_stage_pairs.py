"""Stages of schedules that split the backward: the programme against brute force, memory and bounds against event
runs, and layouts priced together against those priced alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.search import PlanResult, find_plans
from planner.stage_plan.answer import best_stages
from planner.stage_plan.free import free_bounds
from planner.stage_plan.orders import held_at_most, moments_of, passes_on
from planner.stage_plan.pairs import Pairs, least_step_s, solve_pairs
from planner.stage_plan.priced import intervals
from planner.stage_plan.programme import solve_stages
from planner.stage_plan.records import Intervals, Moment, Setting
from planner.stage_plan.room import may_fit, parts_of
from planner.stage_plan.rows import Layouts, Pricing
from sim import run
from sim.build.order import SPLIT_SCHEDULES
from sim.columns import Columns, columns_of
from sim.cost.model import CostModel
from sim.cost.step import StepCost
from sim.mesh import DEFAULT_MAP
from sim.plan import Plan
from tests.planner.test_refine import PLANS, question, scenario
from tests.planner.test_stage_plan import MIXTRAL, brute, made

BASE = replace(MIXTRAL, account_ends=False)
SPLIT = (
    replace(BASE, schedule="zb-h1"), replace(BASE, schedule="zb-h2"), replace(BASE, schedule="zb-v", vpp=2),
    replace(BASE, schedule="dualpipe"), replace(BASE, schedule="dualpipe-v", vpp=2),
)  # fmt: skip
OPTIONS = ((), ("full",))


def two_ended(seed: int, placed: str, stages: int, layers: int) -> Intervals:
    """Columns of random layers on stages that hold both ends of the model, with moments and memory of their own."""
    pp, vpp = (stages, 2) if placed == "v" else (2 * stages, 1)
    rng = np.random.default_rng(seed)
    columns = made(seed, pp, vpp, layers, 2)
    held = rng.integers(1, 4, (pp, 2, 2)).tolist()
    moments = tuple(
        tuple(Moment(running=at, held=tuple(held[s][at]), deferred=(1, 2), either=(0, 1)) for at in range(2))
        for s in range(pp)
    )
    return replace(
        columns, placed=placed, moments=moments, deferred_bytes=0.5 * columns.saved_bytes,
        capacity_bytes=np.full(pp, rng.uniform(15.0, 60.0)),
    )  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6), placed=st.sampled_from(["v", "both"]), stages=st.integers(1, 3),
    layers=st.integers(4, 6),
)  # fmt: skip
def test_pairs_agree_with_brute_force(seed: int, placed: str, stages: int, layers: int) -> None:
    columns = two_ended(seed, placed, stages, layers)
    best, found = brute(columns, per_stage=False), solve_pairs(columns)
    if best == np.inf:
        assert found.status == "infeasible" and found.choice is None
        return
    assert found.choice is not None and found.status == "optimal"
    assert found.choice.objective_s == pytest.approx(best, rel=1e-9)
    assert max(found.choice.stage_bytes) <= columns.capacity_bytes[0]
    # without ramps the bound of the step is that of the slowest stage
    assert least_step_s(columns) == pytest.approx(best, rel=1e-9)


def test_slack_makes_virtual_stages_more_alike() -> None:
    columns = two_ended(5, "v", 3, 6)
    columns = replace(columns, capacity_bytes=np.full(3, 1e9))
    pairs = Pairs(columns, 0)
    strict, loose = pairs.path(), pairs.path(0.5)
    assert strict is not None and loose is not None
    squares = [float((columns.steady_s[path] ** 2).sum()) for path in (strict, loose)]
    assert squares[1] <= squares[0] and columns.bottleneck_s(strict) <= columns.bottleneck_s(loose) * (1 + 1e-12)
    assert columns.bottleneck_s(loose) <= 1.5 * pairs.slowest_s * (1 + 1e-9)


@pytest.mark.parametrize("plan", SPLIT, ids=lambda plan: plan.schedule)
def test_memory_is_that_of_the_simulator_and_passes_add_up(plan: Plan) -> None:
    asked = scenario(plan, question())
    columns = intervals(asked, [Setting(), Setting(recompute=("full",))])
    found = solve_stages(columns)
    assert found.choice is not None
    chosen = replace(plan, stages=found.choice.counts, recompute=found.choice.recompute[0])
    peaks = [sum(tags.values()) for tags in run.Simulation(replace(asked, plan=chosen)).report(trace=False).memory]
    assert found.choice.stage_bytes[: len(peaks)] == pytest.approx(peaks, rel=1e-9)
    m = columns.num_micro_batches
    passes = passes_on(plan.schedule, plan.pp, plan.vpp, m)
    each = m // 2 if plan.schedule == "dualpipe" else m
    assert (passes.forward + passes.paired_forward == each).all()
    assert (passes.backward + passes.paired_backward == each).all()
    held = held_at_most(plan.schedule, plan.pp, plan.vpp, m)
    moments = moments_of(plan, m)
    assert len(held) == len(moments) == plan.pp and min(held) >= 0


@settings(max_examples=10, deadline=None)
@given(plan=st.sampled_from([*SPLIT, *PLANS]), seed=st.integers(0, 10**6), full=st.booleans())
def test_no_stages_beat_the_bounds(plan: Plan, seed: int, full: bool) -> None:
    q = question()
    rng, slots = np.random.default_rng(seed), plan.pp * plan.vpp
    inner = rng.multinomial(32 - (slots - 2), rng.dirichlet(np.full(slots, 5.0)))
    stages = tuple(int(n) + (0 < i < slots - 1) for i, n in enumerate(inner))
    modules = ("full",) if full else ()
    report = run.simulate(scenario(replace(plan, stages=stages, recompute=modules), q), trace=False)
    step = StepCost(CostModel(q.cluster, q.software), scenario(replace(plan, recompute=modules), q).context())
    if not report.fits:
        return
    rows = block_of(plan)
    assert may_fit(rows, np.array([plan.num_micro_batches(256)]), parts_of(step), report.usable_mem_bytes).all()
    (free,) = free_bounds(q, DEFAULT_MAP, rows, [modules])
    (priced,) = priced_of(plan, 2.0 * report.step_s.value, modules)
    assert 0.4 * report.step_s.value < free <= priced <= report.step_s.value * (1 + 1e-9)


def block_of(*plans: Plan) -> Columns:
    """Layouts as a table has them: interleaved is told by its virtual stages."""
    like = plans[0] if plans[0].schedule in SPLIT_SCHEDULES else replace(plans[0], schedule="1f1b")
    (rows,) = columns_of([replace(plan, schedule=like.schedule) for plan in plans])
    return rows


def priced_of(plan: Plan, limit_s: float, modules: tuple[str, ...]) -> list[float]:
    """Bound of one layout under one option."""
    rows = block_of(plan)
    free = free_bounds(question(), DEFAULT_MAP, rows, [modules])[None]
    layouts = Layouts(ranks=DEFAULT_MAP, block=rows, even_s=np.zeros(1), free_s=free)
    pricing = Pricing(question=question(), options=[modules])
    return [each.bound_s for each in pricing.below(layouts, np.array([0]), np.array([limit_s]))]


@pytest.mark.parametrize("plan", [BASE, SPLIT[0], SPLIT[3]], ids=lambda plan: plan.schedule)
def test_layouts_priced_together_are_priced_as_alone(plan: Plan) -> None:
    q = question()
    plans = [plan, replace(plan, tp=4, dp=4, edp=4)]
    layouts = Layouts(ranks=DEFAULT_MAP, block=block_of(*plans), even_s=np.zeros(2), free_s=np.zeros((2, 2)))
    pricing = Pricing(question=q, options=OPTIONS)
    for at, made_of in enumerate(pricing.below(layouts, np.arange(2), np.full(2, 1e6))):
        alone = intervals(scenario(plans[at], q), [Setting(recompute=each) for each in OPTIONS])
        together = made_of.columns
        assert together.place.keys() == alone.place.keys() and made_of.plan == plans[at]
        rows_of = np.array([alone.place[key] for key in together.place])
        for name in ("fill_s", "steady_s", "static_bytes", "saved_bytes", "working_bytes", "deferred_bytes", "ramp_s"):
            assert getattr(together, name) == pytest.approx(getattr(alone, name)[rows_of], rel=1e-9)


def test_columns_beyond_the_limit_are_left_out_and_nothing_else() -> None:
    q, plan = question(), BASE
    layouts = Layouts(ranks=DEFAULT_MAP, block=block_of(plan), even_s=np.zeros(1), free_s=np.zeros((1, 1)))
    pricing = Pricing(question=q, options=[("full",)])
    (whole,) = pricing.below(layouts, np.array([0]), np.array([1e6]))
    limit_s = 1.2 * whole.bound_s
    (less,) = pricing.below(layouts, np.array([0]), np.array([limit_s]))
    m = whole.columns.num_micro_batches
    kept = {key for key, i in whole.columns.place.items() if m * whole.columns.steady_s[i] <= limit_s}
    assert set(less.columns.place) == kept < set(whole.columns.place)
    assert less.bound_s == pytest.approx(whole.bound_s, rel=1e-9)
    (none,) = pricing.below(layouts, np.array([0]), np.array([0.5 * whole.bound_s]))
    assert none.bound_s == 0.5 * whole.bound_s


@cache
def two_way(way: str) -> PlanResult:
    q = question("deepseek-v2-lite", 32, 256)
    fixed = {"pp": 4, "tp": 1, "ep": 8, "micro_batch_seqs": 1, "schedule": ("1f1b", "dualpipe-v")}
    return find_plans(q.model, q.cluster, q.software, q.workload, fixed=fixed, target="layout", top=3, stages=way)


def test_a_search_over_split_schedules_refines_them_too() -> None:
    even, free = two_way("uniform"), two_way("auto")
    assert free.stages is not None and free.stages.rows
    refined = {row.label for row in free.stages.rows}
    assert {p.report.plan.label() for p in even.plans} <= refined
    assert any("dualpipe-v" in label for label in refined)
    best = free.plans[0].report
    assert best.step_s.value <= even.plans[0].report.step_s.value and not free.stages.void
    assert 0.0 <= free.search.gap < 0.25 and free.search.bound_s <= best.step_s.value


def test_an_interrupt_keeps_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    whole = solve_stages

    def second_stops(*args: object, **more: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("planner.stage_plan.refine.solve_stages", second_stops)
    free = two_way("ilp")
    assert free.stages is not None and free.stages.stopped == "interrupted"
    assert len(free.stages.rows) == 1 and free.plans and free.search.bound_s <= free.plans[0].report.step_s.value


def test_one_layout_of_a_split_schedule_has_stages_beside_even_ones() -> None:
    answer = best_stages(scenario(SPLIT[4], question()), target="layout")
    assert answer.after.fits and answer.together.status == "optimal" and answer.apart is None
    assert answer.to_json()["closed_form"].startswith("m x") and not answer.alike


def test_virtual_stages_are_alike_where_that_is_faster() -> None:
    plan = replace(BASE, vpp=4, schedule="interleaved")
    answer = best_stages(scenario(plan, question()), target="megatron-lm")
    counts = answer.together.choice.counts  # type: ignore[union-attr]
    assert answer.after.plan.stages == counts
    if answer.alike:
        inner = counts[1:-1]
        assert max(inner) - min(inner) <= 1
    assert answer.to_json()["alike"] is answer.alike
