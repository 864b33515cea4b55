"""On small real questions the plan that the search chooses is the one that simulating every legal layout finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hwprofiles import catalogue
from planner import find_plans
from planner.rules import apply, context, rules_of
from planner.space import space
from sim.cost.model import CostModel
from sim.families import load_model
from sim.mesh import DEFAULT_MAP
from sim.run import Simulation
from sim.scenario import Scenario
from sim.workload import Workload

ROUNDING = 1e-9
CASES: tuple[tuple[str, str, int, int, dict[str, Any]], ...] = (
    ("DeepSeek-V2-Lite", "dgx-h100", 16, 64, {"recompute": (), "etp": 1, "micro_batch_seqs": 1}),
    ("Mixtral-8x7B", "dgx-h100", 32, 64, {"recompute": (), "etp": 1, "micro_batch_seqs": 1}),
    ("Qwen3-30B-A3B", "dgx-b200", 16, 32, {"recompute": (), "etp": 1, "micro_batch_seqs": 1}),
    ("GPT-OSS-20B", "dgx-h100", 16, 64, {"recompute": ("full",), "tp": 1}),
    ("Llama2-13B", "dgx-a100-80g", 16, 64, {"recompute": ("full",)}),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_the_search_finds_the_exhaustive_optimum(case: tuple[str, str, int, int, dict[str, Any]]) -> None:
    name, cluster, gpus, batch, fixed = case
    fixed = fixed | {"account_ends": False, "schedule": "1f1b", "vpp": 1}
    model, machines = load_model(name), catalogue.cluster(cluster, gpus=gpus)
    trainer, work = catalogue.software("megatron-lm"), Workload(seq_tokens=4096, global_batch_seqs=batch)
    ctx, rules = context(model, machines, trainer, work), rules_of("megatron-lm")
    cost = CostModel(machines, trainer)
    steps = []
    for block in space(model, machines, work, fixed, trainer):
        for row in np.flatnonzero(apply(block, ctx, rules)[0]):
            plan = block.plan(int(row))
            scenario = Scenario(model=model, cluster=machines, software=trainer, workload=work, plan=plan)
            report = Simulation(scenario, cost=cost).report(trace=False)
            if report.fits:
                steps.append(report.step_s.value)
    found = find_plans(model, machines, trainer, work, fixed=fixed, top=1, ranks=[DEFAULT_MAP])
    assert len(steps) >= 8
    assert found.search.certificate == "exact"
    assert found.search.simulated < len(steps)
    assert found.plans[0].report.step_s.value == pytest.approx(min(steps), rel=ROUNDING)
