"""One search over layouts and variants: its answer is that of every combination simulated, and its bounds hold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import catalogue
from planner import find_plans
from planner.grounds import ALL, FREE, Part, Priced, by_size
from planner.like import LikeRuns, Pieces
from planner.ranks import Laying, Question
from planner.result import PlanResult
from planner.rules import apply, context, rules_of
from planner.runs import event_runs
from planner.space import space
from planner.table import build_table
from planner.variants import Axes, axes_of
from planner.wide import WideSearch
from planner.wide_answer import BEYOND_BEST, NOT_TO_THE_END, Setting
from sim.cost.model import CostModel
from sim.families import load_model
from sim.mesh import DEFAULT_MAP
from sim.routing import Routing
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.workload import Offload, Workload

ROUNDING = 1e-9
PLAIN = {"schedule": "1f1b", "vpp": 1, "account_ends": False, "etp": 1, "micro_batch_seqs": 1}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A small question, and which values of its axes are searched (positions; None: all)."""

    model: str
    cluster: str
    gpus: int
    batch: int
    fixed: dict[str, Any]
    dimensions: tuple[str, ...]
    shares: tuple[int, ...] = (0,)
    away: tuple[Offload, ...] = (Offload(),)
    recomputes: tuple[tuple[str, ...], ...] | None = None
    target: str = "layout"
    seq: int = 4096
    wins: str = field(default="", compare=False)

    def question(self) -> Question:
        machines = catalogue.cluster(self.cluster, gpus=self.gpus)
        return Question(
            model=load_model(self.model), cluster=machines, software=catalogue.software("megatron-lm"),
            workload=Workload(seq_tokens=self.seq, global_batch_seqs=self.batch), routing=Routing(),
        )  # fmt: skip

    def axes(self) -> Axes:
        q = self.question()
        axes = axes_of(self.dimensions, q.model, q.cluster, q.software, q.workload, self.fixed)
        return replace(
            axes, shares=tuple(axes.shares[i] for i in self.shares), away=self.away,
            recomputes=self.recomputes or axes.recomputes,
        )  # fmt: skip

    def found(self, **more: Any) -> PlanResult:
        q = self.question()
        return find_plans(
            q.model, q.cluster, q.software, q.workload, fixed=self.fixed, target=self.target, top=2,
            ranks=[DEFAULT_MAP], axes=self.axes(), **more,
        )  # fmt: skip


CASES = (
    Case(
        model="Mixtral-8x7B", cluster="dgx-h100", gpus=16, batch=16, fixed=PLAIN | {"cp": 1, "tp": 2},
        dimensions=("dispatcher", "recompute"), recomputes=((), ("moe_act",), ("full",)), wins="dispatcher hybridep",
    ),
    Case(  # of a single module: nothing, and full recompute, are slower or do not fit
        model="Qwen3-30B-A3B", cluster="dgx-h100", gpus=8, batch=8, fixed=PLAIN | {"cp": 1, "tp": 1},
        dimensions=("offload", "recompute"), recomputes=((), ("moe_act",), ("full",)), wins="recompute moe_act",
        away=(Offload(), Offload(modules=("core_attn", "expert_fc1", "moe_act")), Offload(layers=4)),
    ),
    Case(
        model="DeepSeek-V2-Lite", cluster="dgx-h100", gpus=16, batch=32, fixed=PLAIN | {"cp": 1, "tp": 1, "pp": 1},
        dimensions=("dispatcher", "offload"), shares=(0, 4), away=(Offload(), Offload(modules=("core_attn",))),
        target="megatron-lm",
    ),
    Case(
        model="Llama2-13B", cluster="dgx-a100-80g", gpus=8, batch=8, fixed=PLAIN | {"recompute": ()},
        dimensions=("precision", "cp", "offload"), shares=(0, 2), seq=4096,
    ),
)  # fmt: skip


def every_step(case: Case) -> list[float]:
    """Simulated steps of every layout under every combination that fits."""
    q, axes, rules = case.question(), case.axes(), rules_of(case.target)
    steps = []
    for ground in axes.grounds:
        cost = CostModel(q.cluster, ground.software)
        for share, away in np.ndindex(len(axes.shares), len(axes.away)):
            work = replace(ground.workload, offload=axes.offload(share, away))
            ctx = context(q.model, q.cluster, ground.software, work)
            for recompute in axes.recomputes or (None,):
                fixed = {**case.fixed, **ground.fixed, **({} if recompute is None else {"recompute": recompute})}
                for block in space(q.model, q.cluster, work, fixed, ground.software):
                    for row in np.flatnonzero(apply(block, ctx, rules)[0]):
                        scenario = Scenario(
                            model=q.model, cluster=q.cluster, software=ground.software, workload=work,
                            plan=block.plan(int(row)),
                        )  # fmt: skip
                        report = Simulation(scenario, cost=cost).report(trace=False)
                        steps += [report.step_s.value] if report.fits else []
    return steps


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_the_answer_is_the_best_of_every_combination(case: Case) -> None:
    found, steps = case.found(), every_step(case)
    first = found.plans[0]
    assert first.chosen is not None
    assert len(steps) >= 8
    assert found.search.certificate == "best exact" and found.search.gap == 0.0
    assert first.report.step_s.value == pytest.approx(min(steps), rel=ROUNDING)
    assert found.search.simulated < len(steps)
    assert case.wins in first.chosen.label
    # counted: every layout under every combination, each once
    assert found.search.raw == found.search.fits + sum(found.search.rejected.values())
    assert sum(1 for _ in steps) <= found.search.raw


def test_each_plan_runs_with_what_it_says() -> None:
    case = CASES[1]
    found = case.found()
    q = case.question()
    for plan in found.plans:
        scenario = Scenario(
            model=q.model, cluster=q.cluster, software=found.software_of(plan), workload=found.workload_of(plan),
            plan=plan.report.plan, ranks=plan.report.ranks,
        )  # fmt: skip
        assert simulate(scenario, trace=False).step_s.value == pytest.approx(plan.report.step_s.value, rel=ROUNDING)


def test_a_known_step_leaves_the_answer_and_saves_work() -> None:
    case = CASES[0]
    plain = case.found()
    best = plain.plans[0].report.step_s.value
    again = case.found(below_s=best)
    assert again.plans[0].report == plain.plans[0].report and again.search.certificate == "best exact"
    assert again.search.simulated <= plain.search.simulated


def test_what_stops_early_says_what_is_left() -> None:
    case, q = CASES[0], CASES[0].question()
    rules = rules_of(case.target)
    laying = Laying(ranks=DEFAULT_MAP, question=q)
    blocks = space(q.model, q.cluster, q.workload, case.fixed, q.software)
    table = build_table(blocks, laying.ctx, rules, laying.screen, None)
    run = event_runs([], {DEFAULT_MAP: laying}, 1, None, None)
    search = WideSearch(
        case.axes(), q, [DEFAULT_MAP], rules, case.fixed, table, run, {DEFAULT_MAP: laying}, limit=2
    )  # fmt: skip
    found = search.answer(table.rejected)
    best = case.found().plans[0].report.step_s.value
    assert found.stopped == "limit" and found.simulated <= 3
    # what it did not get to is not told to be slower
    said = {line["why"] for line in found.lines}
    assert NOT_TO_THE_END in said and BEYOND_BEST not in said
    assert NOT_TO_THE_END not in {line["why"] for line in case.found().variants}
    assert found.bound_s <= best

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    stopped = WideSearch(
        case.axes(), q, [DEFAULT_MAP], rules, case.fixed, table, run, {DEFAULT_MAP: laying}, progress=stop
    ).answer(table.rejected)  # fmt: skip
    assert stopped.stopped == "interrupted" and stopped.bound_s == 0.0


MODELS = (("Mixtral-8x7B", "dgx-h100", 16), ("DeepSeek-V2-Lite", "h800", 16), ("Llama2-13B", "dgx-b200", 16))
SCHEDULES = ("1f1b", "interleaved", "zb-h1", "dualpipe-v", "gpipe")


@cache
def priced(at: int) -> tuple[Priced, tuple[Part, ...], Axes]:
    name, cluster, gpus = MODELS[at]
    model, machines = load_model(name), catalogue.cluster(cluster, gpus=gpus)
    software = catalogue.software("megatron-lm")
    question = Question(
        model=model, cluster=machines, software=software, workload=Workload(seq_tokens=4096, global_batch_seqs=32),
        routing=Routing(),
    )  # fmt: skip
    axes = axes_of(("offload", "recompute"), model, machines, software, question.workload, {})
    ground = Priced(axes.grounds[0], axes, question, [DEFAULT_MAP])
    fixed = {"schedule": SCHEDULES, "cp": 1, "etp": 1, "micro_batch_seqs": 1}
    parts, _, _ = ground.layouts(fixed, rules_of("layout"), axes.recomputes or ())
    return ground, tuple(parts), axes


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_relaxed_bounds_and_memory_hold_under_every_setting(data: st.DataObject) -> None:
    ground, parts, axes = priced(data.draw(st.integers(0, len(MODELS) - 1)))
    part = data.draw(st.sampled_from(parts))
    part = part.take(np.array(sorted(data.draw(st.sets(st.integers(0, len(part.rows) - 1), min_size=1, max_size=4)))))
    share = data.draw(st.integers(0, len(axes.shares) - 1))
    away, more = data.draw(st.sampled_from(by_size(axes)))
    rows = replace(part.rows, recompute=data.draw(st.sampled_from(axes.recomputes or ((),))))
    true = ground.screener(share, away, part.ranks)(rows)
    least = ground.relaxed(FREE, ALL, part.ranks, rows)
    kept = ground.relaxed(FREE, 0, part.ranks, rows)
    free = ground.relaxed(FREE, away, part.ranks, rows)
    slack = 1.0 + ROUNDING
    assert (part.bound_s <= kept.bound_s * slack).all()
    assert (kept.bound_s <= free.bound_s * slack).all() and (free.bound_s <= true.bound_s * slack).all()
    assert (least.peak_bytes <= free.peak_bytes * slack).all() and (free.peak_bytes <= true.peak_bytes * slack).all()
    for other in more:
        assert (ground.relaxed(FREE, other, part.ranks, rows).peak_bytes <= free.peak_bytes * slack).all()


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_a_run_bounds_other_settings_of_its_layout(data: st.DataObject) -> None:
    ground, parts, axes = priced(data.draw(st.integers(0, len(MODELS) - 1)))
    part = data.draw(st.sampled_from(parts))
    plan = part.rows.plan(data.draw(st.integers(0, len(part.rows) - 1)))
    q = ground.question
    blocks = build_table([part.rows.take(np.array([0]))], ground.laying(0, 0, DEFAULT_MAP).ctx, (),
                         ground.screener(0, 0, DEFAULT_MAP), None)  # fmt: skip
    run = event_runs([], {DEFAULT_MAP: ground.laying(0, 0, DEFAULT_MAP)}, 1, None, None)
    search = WideSearch(axes, q, [DEFAULT_MAP], (), {}, blocks, run, {})
    likes, made = LikeRuns(), list[tuple[Any, Pieces, Simulation]]()
    for _ in range(2):
        share = data.draw(st.integers(0, len(axes.shares) - 1))
        away = data.draw(st.integers(0, len(axes.away) - 1))
        one = replace(plan, recompute=data.draw(st.sampled_from(axes.recomputes or ((),))))
        setting = Setting(share=share, away=away)
        made.append((one, search.pieces(setting, DEFAULT_MAP, one), search.simulation(setting, DEFAULT_MAP, one)))
    (_, pieces, first), (_, others, second) = made
    apart_s = likes.apart_s("layout", pieces, first.profile())
    step_s = first.report(trace=False).step_s.value
    assert apart_s <= step_s
    likes.ran("layout", pieces, step_s)
    assert likes.bound_s("layout", others, np.inf) <= second.report(trace=False).step_s.value * (1.0 + ROUNDING)
