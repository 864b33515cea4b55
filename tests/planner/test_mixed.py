"""The search over stages on several types: brute force on small cases, bounds below every run, never over even ones."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.errors import NoPlanError, UserError
from planner.mixed.rows import TypeQuestion, mixed_bounds, mixed_rows
from planner.mixed.search import MixedResult, find_mixed
from planner.ranks import Question
from planner.stage_plan.programme import solve_stages
from sim.columns import columns_of
from sim.families import load_model
from sim.mixed import Mixed, simulate_mixed
from sim.plan import Plan
from sim.routing import Routing
from sim.scenario import Scenario
from sim.workload import Workload
from tests.planner.test_stage_plan import alone_fit, brute, made

FIXED = {"tp": 2, "ep": 4, "vpp": 1, "micro_batch_seqs": 1, "recompute": (), "pp": 2, "cp": 1, "etp": 1}


@cache
def types(fast: int = 32, slow: int = 32, batch: int = 64) -> tuple[TypeQuestion, ...]:
    model, workload = load_model("mixtral-8x7b"), Workload(seq_tokens=4096, global_batch_seqs=batch)
    found = []
    for name, count in (("dgx-h100", fast), ("dgx-a100-80g", slow)):
        machines = catalogue.cluster(name, gpus=fast + slow)
        software = catalogue.software("megatron-lm", device=machines.device, model=model.name, arch="moe")
        question = Question(
            model=model, cluster=machines, software=software, workload=workload, routing=Routing()
        )  # fmt: skip
        found.append(TypeQuestion(question=question, devices=count))
    return tuple(found)


def step_s(plan: Plan, where: tuple[int, ...]) -> tuple[float, bool]:
    homes = [
        Scenario(model=t.question.model, cluster=t.cluster, software=t.question.software,
                 workload=t.question.workload, plan=plan) for t in types()
    ]  # fmt: skip
    report = simulate_mixed(Mixed(types=tuple(homes), where=where))
    return report.step_s.value, report.fits


@cache
def answer() -> MixedResult:
    return find_mixed(types(), fixed=FIXED)


def test_two_stages_are_those_of_brute_force() -> None:
    found = answer()
    plan = replace(found.plans[0].report.plan, stages=None)
    every = {}
    for where in ((0, 1), (1, 0)):
        for first in range(12, 32, 4):
            for count in range(first, min(32, first + 4)):
                seconds, fits = step_s(replace(plan, stages=(count, 32 - count)), where)
                if fits:
                    every[where, count] = seconds
    best = min(every.values())
    assert found.plans[0].report.step_s.value <= best * 1.01
    assert found.bound_s <= best
    assert found.stopped == "bound" and found.gap < 0.2
    fast_layers = found.plans[0].report.stages[found.plans[0].where.index(0)]
    assert fast_layers > 20


def test_it_is_not_slower_than_even_stages_and_names_the_gap() -> None:
    found = answer()
    best = found.plans[0]
    assert best.even_s is not None and best.report.step_s.value < best.even_s
    assert best.bound_s <= best.report.step_s.value and found.bound_s <= best.report.step_s.value
    assert found.gap == pytest.approx(1 - found.bound_s / best.report.step_s.value)
    assert [p.report.step_s.value for p in found.plans] == sorted(p.report.step_s.value for p in found.plans)
    assert not found.warnings and {p.where for p in found.plans} == {(0, 1), (1, 0)}


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), pp=st.sampled_from([2, 4]), full=st.booleans())
def test_no_stages_beat_the_bound(seed: int, pp: int, full: bool) -> None:
    rng = np.random.default_rng(seed)
    inner = rng.multinomial(32 - pp, rng.dirichlet(np.full(pp, 3.0))) + 1
    modules = ("full",) if full else ()
    plan = Plan(tp=2, pp=pp, ep=4, dp=32 // pp, edp=16 // pp, recompute=modules, stages=tuple(inner.tolist()))
    where = tuple(rng.permutation([0, 1] * (pp // 2)).tolist())
    where = where if where in (tuple(sorted(where)), tuple(sorted(where, reverse=True))) else tuple(sorted(where))
    (rows,) = columns_of([replace(plan, stages=None)])
    (bound,) = mixed_bounds(rows, types(), [modules])
    seconds, fits = step_s(plan, where)
    assert not fits or 0.2 * seconds < bound <= seconds * (1 + 1e-9)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), pp=st.integers(2, 4), layers=st.integers(3, 6), capacity=st.floats(6.0, 25.0))
def test_programme_agrees_with_brute_force_where_stages_differ(
    seed: int, pp: int, layers: int, capacity: float
) -> None:
    """Every stage has a speed and a memory of its own."""
    rng = np.random.default_rng(seed)
    columns = made(seed, pp, 1, layers, 2, capacity)
    speed, room = rng.uniform(0.5, 2.0, pp), rng.uniform(0.6, 1.4, pp) * capacity
    columns = replace(
        columns, capacity_bytes=room, fill_s=columns.fill_s / speed[columns.slot],
        steady_s=columns.steady_s / speed[columns.slot],
    )  # fmt: skip
    best = brute(columns, per_stage=False)
    found = solve_stages(alone_fit(columns))
    if best == np.inf:
        assert found.choice is None
        return
    assert found.choice is not None and found.status == "optimal"
    assert found.choice.objective_s == pytest.approx(best, rel=1e-9) == found.dynamic_s
    assert all(need <= have for need, have in zip(found.choice.stage_bytes, room, strict=True))


def test_stages_are_whole_shares_of_each_pool() -> None:
    table = mixed_rows(types(48, 16), {"recompute": ()}, "megatron-lm", [()])
    assert len(table.rows) and np.all(table.rows.pp % 4 == 0)
    assert np.all(np.diff(table.bounds) >= 0)
    with pytest.raises(NoPlanError, match="stages of whole pools"):
        find_mixed(types(48, 16), fixed={"pp": 2})


def test_pools_that_cannot_be_are_named() -> None:
    with pytest.raises(UserError, match="two or more"):
        find_mixed(types()[:1])
    odd = (replace(types()[0], devices=28), replace(types()[1], devices=36))
    with pytest.raises(UserError, match="whole number of nodes"):
        find_mixed(odd)
