"""Pipeline sends: each boundary between stages costs what its own pair of stages crosses."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.hostmap import host_map
from hwprofiles.specs import ClusterSpec, FabricLevel
from planner import find_plans
from planner.ranks import spread
from planner.rules import apply, context, rules_of
from planner.space import space
from sim.build.tasks import simulate_step
from sim.columns import columns_of
from sim.detail import simulate_layers
from sim.families import load_model
from sim.mesh import DEFAULT_MAP, RankMap, boundaries
from sim.plan import Plan
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.screen import screen
from sim.workload import Workload

WORK = Workload(seq_tokens=4096, global_batch_seqs=128)
RATE, LATENCY_S = 1e9 / 8, 20e-3  # of the line between the sites, all devices together


@cache
def sites(rate: float = RATE) -> ClusterSpec:
    level = FabricLevel(name="site", devices=32, bytes_per_s=rate, latency_s=LATENCY_S, shared_by="group")
    return replace(catalogue.cluster("dgx-h100", gpus=64), fabric=(level,))


def asked(pp: int, vpp: int = 1, made: ClusterSpec | None = None, **changes: Any) -> Scenario:
    made = made or sites()
    dp = made.num_devices // pp
    plan = Plan(
        pp=pp, vpp=vpp, dp=dp, ep=min(8, dp), edp=dp // min(8, dp), recompute=("full",),
        schedule="interleaved" if vpp > 1 else "1f1b",
    )  # fmt: skip
    trainer = catalogue.software("megatron-lm")
    plan = replace(plan, **changes)
    return Scenario(model=load_model("Qwen3-30B-A3B"), cluster=made, software=trainer, plan=plan, workload=WORK)


def defined(plan: Plan, made: ClusterSpec, ranks: RankMap) -> list[int]:
    """Highest link of each boundary, pair by pair."""
    names = ranks.axes(expert=False)
    inner = int(np.prod([getattr(plan, n) for n in names[: names.index("pp")]]))
    device = range(plan.num_devices) if ranks.hosts is None else ranks.hosts.devices
    blocks = (made.domain_devices, *(level.devices for level in made.fabric))
    out = [0] * plan.pp
    for rank in range(plan.num_devices):
        stage = rank // inner % plan.pp
        other = rank + inner if stage < plan.pp - 1 else rank - (plan.pp - 1) * inner
        apart = sum(device[rank] // block != device[other] // block for block in blocks)
        out[stage] = max(out[stage], apart)
    return out


@given(
    tp=st.sampled_from([1, 2, 3, 4]), dp=st.sampled_from([1, 2, 4, 5]), pp=st.integers(1, 8), seed=st.integers(0, 4),
    order=st.sampled_from(["tp-cp-ep-dp-pp", "tp-cp-pp-ep-dp", "pp-tp-cp-ep-dp"]), mapped=st.booleans(),
)  # fmt: skip
def test_boundaries_are_those_of_the_pairs(tp: int, dp: int, pp: int, seed: int, order: str, mapped: bool) -> None:
    plan = Plan(tp=tp, dp=dp, pp=pp, etp=1, ep=1, edp=tp * dp)
    shuffled = host_map(np.random.default_rng(seed).permutation(plan.num_devices).tolist())
    ranks = RankMap(order=order, hosts=shuffled if mapped else None)
    found = boundaries(plan, sites(), ranks)
    assert found.highest[0].tolist() == defined(plan, sites(), ranks)
    assert np.all((found.senders > 0.0) & (found.senders <= 1.0))


def test_a_block_of_plans_has_the_boundaries_of_each() -> None:
    plans = [
        asked(pp, vpp, schedule="interleaved").plan
        for pp, vpp in ((1, 1), (2, 1), (4, 1), (4, 2), (8, 3), (16, 1), (64, 1))
    ]
    block = boundaries(columns_of(plans)[0], sites())
    for row, plan in zip(block.which, plans, strict=True):
        one = boundaries(plan, sites())
        assert block.highest[row, : plan.pp].tolist() == one.highest[0].tolist()
        assert np.all(block.highest[row, plan.pp :] == -1)
        assert block.senders[:, row].tolist() == one.senders[:, 0].tolist()


@pytest.mark.parametrize(("pp", "per_node"), [(16, 2), (32, 4)])
def test_sends_inside_a_node_and_between_nodes(pp: int, per_node: int) -> None:
    made = catalogue.cluster("dgx-h100", gpus=64)
    sends = Simulation(asked(pp, made=made)).profile().p2p
    assert len(sends) == pp
    for stage, send in enumerate(sends):
        link = "scale_out" if stage % per_node == per_node - 1 else "scale_up"
        assert [name for name, _ in send.flows] == [link]
    assert sends[0].latency_s < sends[per_node - 1].latency_s


@pytest.mark.parametrize("pp", [2, 4, 8, 16])
def test_a_line_between_sites_carries_the_batch_however_many_stages_there_are(pp: int) -> None:
    """By hand: every sequence crosses once each way, tokens x hidden x 2 bytes, over one line."""
    scenario = asked(pp)
    sim = Simulation(scenario)
    profile = sim.profile()
    crossed = [s for s, send in enumerate(profile.p2p[:-1]) if "site" in dict(send.flows)]
    assert crossed == [pp // 2 - 1]
    line_s = WORK.global_batch_seqs * WORK.seq_tokens * scenario.model.hidden_dim * 2.0 / RATE
    send = profile.p2p[crossed[0]]
    assert send.latency_s >= LATENCY_S
    m, seconds = profile.num_micro_batches, dict(send.flows)["site"] / profile.links["site"]
    comm = sim.cost.comm
    reached = comm._fabric.p2p * comm._fabric.line  # of a port's rate, by a send
    assert m * seconds * reached == pytest.approx(line_s, rel=1e-9)
    step = simulate(scenario, trace=False).step_s.value
    hop_s = seconds + send.latency_s
    without = simulate(replace(scenario, cluster=replace(sites(), fabric=())), trace=False).step_s.value
    assert m * hop_s < step < (m + pp) * hop_s + without  # filling and draining cross again
    # both directions side by side: what a lane put on the line is what its sends add up to
    run = simulate_step(profile, steady=False)
    for lane in (pp // 2 - 1, pp // 2):
        assert run.link_bytes[lane, "site"] == pytest.approx(m * dict(send.flows)["site"])
    assert simulate_step(profile).makespan_s == pytest.approx(run.makespan_s, rel=1e-9)


def test_virtual_stages_wrap_over_the_slow_line() -> None:
    plain, wrapped = asked(4), asked(4, 2)
    profile = Simulation(wrapped).profile()
    assert ["site" in dict(send.flows) for send in profile.p2p] == [False, True, False, True]
    run = simulate_step(profile, steady=False)
    m, size = profile.num_micro_batches, dict(profile.p2p[1].flows)["site"]
    # forwards of both chunks over the middle, of the first chunk back; gradients the other way round
    sent = [run.link_bytes.get((lane, "site"), 0.0) / (m * size) for lane in range(4)]
    assert sent == pytest.approx([1.0, 2.0, 2.0, 1.0])
    step = simulate(wrapped, trace=False).step_s.value
    assert step > 2.5 * simulate(plain, trace=False).step_s.value


def test_a_faster_line_is_never_slower_and_a_fast_one_costs_nothing() -> None:
    for pp, vpp in ((2, 1), (4, 1), (4, 2), (16, 1)):
        steps = [simulate(asked(pp, vpp, sites(rate)), trace=False).step_s.value for rate in (1e8, 1e9, 1e10, 1.6e12)]
        assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("overlap", [True, False])
def test_the_bound_stays_below_the_step_and_near_it(overlap: bool) -> None:
    for rate in (RATE, 1e10):
        for pp, vpp in ((2, 1), (4, 1), (8, 1), (4, 2), (8, 2), (16, 1)):
            scenario = asked(pp, vpp, sites(rate))
            scenario = replace(scenario, software=replace(scenario.software, p2p_overlap=overlap))
            found = screen(scenario.model, scenario.cluster, scenario.software, WORK, columns_of([scenario.plan])[0])
            step = simulate(scenario, trace=False).step_s.value
            assert 0.6 * step < found.bound_s[0] <= step * (1 + 1e-9)


def test_the_layer_level_run_crosses_the_same_line() -> None:
    scenario = replace(asked(4), workload=replace(WORK, global_batch_seqs=64))
    layers = simulate_layers(scenario).makespan_s
    assert layers == pytest.approx(simulate(scenario, trace=False).step_s.value, rel=0.03)


def test_maps_that_change_a_boundary_do_not_spread_alike() -> None:
    plan, made = asked(16).plan, sites()
    nodes = [n * 8 + d for n in (0, 4, 1, 5, 2, 6, 3, 7) for d in range(8)]
    lies = [spread(columns_of([plan])[0], made, RankMap(hosts=hosts)) for hosts in (None, host_map(nodes))]
    assert not np.array_equal(*lies)


def test_a_plan_over_two_sites_is_what_brute_force_finds() -> None:
    base, fixed = asked(4), {"tp": 1, "cp": 1, "ep": 8, "etp": 1, "micro_batch_seqs": 1, "recompute": ("full",)}
    world = (base.model, base.cluster, base.software, WORK)
    result = find_plans(*world, fixed=fixed, ranks=[DEFAULT_MAP], max_simulated=None)
    ctx, steps = context(*world), []
    for block in space(base.model, base.cluster, WORK, fixed, base.software):
        legal, _ = apply(block, ctx, rules_of("megatron-lm"))
        for row in np.flatnonzero(legal):
            report = simulate(replace(base, plan=block.plan(int(row))), trace=False)
            if report.out_of_memory is None:
                steps.append(report.step_s.value)
    assert result.plans[0].report.step_s.value == pytest.approx(min(steps), rel=1e-12)
    assert len(steps) > 10 and max(steps) > 2 * min(steps)
