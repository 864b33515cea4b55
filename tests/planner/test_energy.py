"""The least energy: a bound never above an event run, and the answer of simulating every layout."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from hwprofiles import catalogue
from planner.energy import EnergyAsk, row_bounds, score_s, waits_of
from planner.goals import Goal, point_of, reach
from planner.ranks import Question
from planner.rules import apply, context, rules_of
from planner.search import PlanResult, RankedPlan, find_plans
from planner.space import space
from planner.training import Terms, power_share, training_of
from sim.columns import Columns
from sim.cost.model import CostModel
from sim.families import load_model
from sim.mesh import DEFAULT_MAP
from sim.report import Report
from sim.routing import Routing
from sim.run import Simulation
from sim.scenario import Scenario
from sim.screen import Screener
from sim.workload import Precision, Workload

ROUNDING = 1e-9
SPLIT = {"schedule": ("1f1b", "interleaved", "dualpipe", "zb-h1", "zb-v"), "recompute": ()}
QUESTIONS: tuple[tuple[str, str, int, str, Precision, int, dict[str, Any], str], ...] = (
    ("DeepSeek-V2-Lite", "h800", 32, "megatron-bridge-26.04", "bf16", 160, SPLIT, "balanced"),
    ("Mixtral-8x7B", "dgx-a100-80g", 64, "megatron-core-0.9", "bf16", 320, {"recompute": ()}, "lognormal:0.4"),
    ("Qwen3-30B-A3B", "dgx-b200", 64, "megatron-bridge-26.04", "mxfp8", 320, {}, "balanced"),
    ("Llama2-13B", "dgx-h100", 32, "megatron-lm", "bf16", 160, {"recompute": ("full",)}, "balanced"),
)


def asked(case: tuple[str, str, int, str, Precision, int, dict[str, Any], str], **switches: Any) -> Question:
    name, cluster, gpus, software, precision, batch, _, routing = case
    from sim.routing import parse_routing, resolve

    model = load_model(name)
    loads = Routing() if routing == "balanced" else resolve(parse_routing(routing), model, seed=0)
    return Question(
        model=model, cluster=catalogue.cluster(cluster, gpus=gpus),
        software=replace(catalogue.software(software), **switches), routing=loads,
        workload=Workload(seq_tokens=4096, global_batch_seqs=batch, precision=precision),
    )  # fmt: skip


def legal(q: Question, fixed: dict[str, Any], target: str = "layout") -> list[Columns]:
    ctx, rules = context(q.model, q.cluster, q.software, q.workload), rules_of(target)
    return [b.take(apply(b, ctx, rules)[0]) for b in space(q.model, q.cluster, q.workload, fixed, q.software)]


@pytest.mark.parametrize("case", QUESTIONS, ids=lambda case: case[0])
@pytest.mark.parametrize("paired", [False, True])
def test_no_event_run_takes_less_than_the_bound(case: Any, paired: bool) -> None:
    q = asked(case, a2a_overlap=paired and case[0] != "Llama2-13B")
    screener = Screener(q.model, q.cluster, q.software, q.workload, routing=q.routing)
    cost, found = CostModel(q.cluster, q.software, ranks=DEFAULT_MAP), []
    for block in legal(q, case[6]):
        seen = screener(block) if len(block) else None
        if seen is None or not (seen.fits & np.isfinite(seen.bound_s)).any():
            continue
        fits = np.flatnonzero(seen.fits & np.isfinite(seen.bound_s))
        bounds = row_bounds(q, block.take(fits), cost, seen.bound_s[fits], 0.0)
        found += [(block, int(row), float(bound)) for row, bound in zip(fits, bounds, strict=True)]
    rng, shares = np.random.default_rng(7), []
    for at in rng.choice(len(found), size=min(8, len(found)), replace=False):
        block, row, bound = found[int(at)]
        plan = block.plan(row)
        scenario = Scenario(
            model=q.model, cluster=q.cluster, software=q.software, workload=q.workload, plan=plan,
            routing=q.routing.at_ep(plan.ep),
        )  # fmt: skip
        report = Simulation(scenario, cost=cost).report(trace=False)
        shares.append(bound / score_s(report, 0.0))
        assert shares[-1] <= 1.0 + ROUNDING, plan
    assert np.median(shares) > 0.9


SMALL = {"recompute": (), "etp": 1, "micro_batch_seqs": 1}
CASES: tuple[tuple[str, str, int, int, dict[str, Any]], ...] = (
    ("DeepSeek-V2-Lite", "dgx-h100", 16, 64, SMALL),
    ("Qwen3-30B-A3B", "dgx-b200", 16, 32, SMALL | {"vpp": 1, "schedule": "1f1b"}),
    ("Llama2-13B", "dgx-a100-80g", 16, 64, {"recompute": ("full",), "micro_batch_seqs": 1}),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_the_answer_is_that_of_simulating_every_layout(case: tuple[str, str, int, int, dict[str, Any]]) -> None:
    name, cluster, gpus, batch, fixed = case
    q = asked((name, cluster, gpus, "megatron-lm", "bf16", batch, {}, "balanced"))
    cost, joules = CostModel(q.cluster, q.software), []
    for block in legal(q, fixed, "megatron-lm"):
        for row in range(len(block)):
            scenario = Scenario(model=q.model, cluster=q.cluster, software=q.software, workload=q.workload,
                                plan=block.plan(row))  # fmt: skip
            report = Simulation(scenario, cost=cost).report(trace=False)
            if report.fits:
                joules.append(power_share(report) * report.step_s.value)

    def search(machines: Any) -> PlanResult:
        return find_plans(q.model, machines, q.software, q.workload, fixed=fixed, top=1, ranks=[DEFAULT_MAP],
                          energy=EnergyAsk(terms=None, runs=100))  # fmt: skip

    found = reach(Goal(objective="energy"), [q.cluster], search)
    assert found.counts[0].result is not None
    proof = found.counts[0].result.energy
    assert len(joules) >= 8 and proof is not None and not proof.void
    power = catalogue.device_of(q.cluster).power_w * gpus
    assert found.point.energy_j == pytest.approx(power * min(joules), rel=ROUNDING)
    assert found.energy_gap == pytest.approx(0.0, abs=ROUNDING) and proof.gap == 0.0
    assert found.to_json()["counts"][0]["energy_bound_j"] == pytest.approx(found.point.energy_j)


@cache
def searched(runs: int) -> PlanResult:
    q = asked(QUESTIONS[0])
    return find_plans(q.model, q.cluster, q.software, q.workload, fixed={"recompute": ()}, top=1, ranks=[DEFAULT_MAP],
                      energy=EnergyAsk(terms=None, runs=runs))  # fmt: skip


def test_on_a_limit_the_gap_is_the_answer() -> None:
    """Fewer event runs never give less energy or a smaller gap; the bound of each holds for the best of all."""
    proofs = [searched(runs).energy for runs in (0, 1, 60)]
    assert all(p is not None for p in proofs)
    best = [p.best_s for p in proofs if p is not None]
    gaps = [p.gap for p in proofs if p is not None]
    assert best == sorted(best, reverse=True) and gaps == sorted(gaps, reverse=True)
    assert all(p.bound_s <= min(best) for p in proofs if p is not None)


def report_of(result: PlanResult) -> Report:
    return result.plans[0].report


def test_a_run_takes_the_energy_of_its_steps_in_proportion() -> None:
    """Energy of a whole run over steps, devices and power is the score, up to one factor for all plans."""
    q = asked(QUESTIONS[0])
    terms = Terms(tokens=1e12, node_mtbf_s=5e6, restart_s=600.0, checkpoint_s=60.0)
    ask, reports = EnergyAsk(terms=terms, runs=0), [report_of(searched(0)), searched(60).lean[-1].report]
    waits = waits_of(ask, q, reports[0].step_s.value)
    assert waits is not None and waits > 0.0
    runs = [training_of(each, terms, q.model, q.cluster, q.workload).energy_j.value for each in reports]
    ratios = [energy / score_s(each, waits) for energy, each in zip(runs, reports, strict=True)]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-6)
    first = RankedPlan(rank=1, report=reports[0], bound_s=0.0)
    assert point_of(first, Goal(objective="energy", terms=terms), q.cluster, searched(0)).energy_j == runs[0]


def test_what_is_not_in_proportion_is_not_proved() -> None:
    q = asked(QUESTIONS[0])
    short = EnergyAsk(terms=Terms(tokens=1e6, node_mtbf_s=5e6, restart_s=600.0, checkpoint_s=60.0), runs=0)
    assert waits_of(short, q, 1.0) is None
    never = EnergyAsk(terms=replace(short.terms or Terms(tokens=1.0), node_mtbf_s=1.0, tokens=1e12), runs=0)
    assert waits_of(never, q, 1.0) is None
    free = EnergyAsk(terms=Terms(tokens=1e12, node_mtbf_s=math.inf), runs=0)
    assert waits_of(free, q, 1.0) == 0.0
