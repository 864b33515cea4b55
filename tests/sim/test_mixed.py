"""Stages on several types of devices: equal to one type where all are, each stage at its own speed and memory."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.specs import LinkSpec
from sim import run
from sim.families import load_model
from sim.mixed import Mixed, MixedSimulation, simulate_mixed
from sim.plan import Plan
from sim.scenario import Scenario
from sim.workload import Offload, Workload

PLAN = Plan(tp=2, pp=4, ep=4, dp=8, edp=4)


@cache
def home(cluster: str, plan: Plan = PLAN) -> Scenario:
    model, machines = load_model("mixtral-8x7b"), catalogue.cluster(cluster, gpus=64)
    software = catalogue.software("megatron-lm", device=machines.device, model=model.name, arch="moe")
    workload = Workload(seq_tokens=4096, global_batch_seqs=256)
    return Scenario(model=model, cluster=machines, software=software, workload=workload, plan=plan)


FAST, SLOW = "dgx-h100", "dgx-a100-80g"


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, vpp=2, schedule="interleaved")])
def test_one_type_on_all_stages_is_the_simulation_of_that_type(plan: Plan) -> None:
    fast, slow = home(FAST, plan), home(SLOW, plan)
    for i, alone in enumerate((fast, slow)):
        one, mixed = run.simulate(alone, trace=False), simulate_mixed(Mixed(types=(fast, slow), where=(i,) * 4))
        assert mixed.step_s == one.step_s and mixed.breakdown == one.breakdown
        assert mixed.peak_mem_bytes == one.peak_mem_bytes and mixed.usable_mem_bytes == one.usable_mem_bytes
        assert mixed.usd_per_step == pytest.approx(one.usd_per_step) and mixed.mfu.value == pytest.approx(one.mfu.value)
        assert mixed.link_use == one.link_use and mixed.pipeline_layout == one.pipeline_layout


def test_each_stage_takes_the_seconds_of_its_own_type() -> None:
    types = (home(FAST), home(SLOW))
    mixed = MixedSimulation(Mixed(types=types, where=(0, 1, 1, 0))).profile()
    own = [run.Simulation(s).profile() for s in types]
    for stage, at in enumerate((0, 1, 1, 0)):
        assert mixed.chunks[stage][0].forward_s == own[at].chunks[stage][0].forward_s
        assert mixed.static_bytes[stage] == own[at].static_bytes[stage]
        seconds = {n: size / mixed.links[n] for n, size in mixed.tails[stage].grad_flows}
        assert seconds == pytest.approx({n: size / own[at].links[n] for n, size in own[at].tails[stage].grad_flows})
    step_s = [simulate_mixed(Mixed(types=types, where=w)).step_s.value for w in ((0,) * 4, (0, 1, 1, 0), (1,) * 4)]
    assert step_s[0] < step_s[1] < step_s[2]


def test_fewer_layers_on_the_slow_type_are_faster() -> None:
    def with_stages(*stages: int) -> float:
        plan = replace(PLAN, stages=stages)
        return simulate_mixed(Mixed(types=(home(FAST, plan), home(SLOW, plan)), where=(0, 0, 1, 1))).step_s.value

    assert with_stages(11, 12, 5, 4) < with_stages(8, 8, 8, 8)


def test_a_slow_link_between_the_types_costs() -> None:
    types = (home(FAST), home(SLOW))
    steps = []
    for rate in (None, 1e12, 1e9, 1e7):
        link = None if rate is None else LinkSpec(name="between", bytes_per_s=rate, latency_s=0.0)
        steps.append(simulate_mixed(Mixed(types=types, where=(0, 0, 1, 1), between=link)).step_s.value)
    assert steps[0] == steps[1] < steps[2] < steps[3]


def test_memory_is_that_of_the_type() -> None:
    plan = replace(PLAN, stages=(10, 8, 8, 6))
    types = (home(FAST, plan), home("dgx-a100-40g", plan))
    first, last = (simulate_mixed(Mixed(types=types, where=w)) for w in ((1, 0, 0, 0), (0, 0, 0, 1)))
    assert not first.fits and first.out_of_memory is not None and first.out_of_memory.lane == 0
    assert last.fits and last.cluster == "dgx-h100 + dgx-a100-40g"


def test_what_cannot_be_mixed_is_said_at_once() -> None:
    fast, other = home(FAST), home(SLOW, replace(PLAN, recompute=("full",)))
    away = replace(fast, workload=replace(fast.workload, offload=Offload(optimizer=0.5)))
    with pytest.raises(UserError) as caught:
        simulate_mixed(Mixed(types=(away, other), where=(0, 1)))
    said = "\n".join(caught.value.problems)
    for piece in ("different plans", "2 stages have a type", "offload"):
        assert piece in said, piece
