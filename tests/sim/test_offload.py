"""Activations in host memory: bytes leave and come back, the step waits where the link is too slow, memory falls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from sim.build.saved import MODULE_OPS
from sim.columns import columns_of
from sim.cost.offload import DOWN, UP
from sim.families import load_model
from sim.plan import Plan
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.screen import screen
from sim.workload import OFFLOAD_MODULES, Offload, Workload

SOFTWARE = catalogue.software("megatron-lm", device="H100", arch="moe")
PLAN = Plan(tp=2, pp=4, dp=4, ep=4, edp=2)


def scenario(offload: Offload, plan: Plan = PLAN, link: float = 1.0, model: str = "Qwen3-30B-A3B") -> Scenario:
    cluster = catalogue.cluster("dgx-h100", gpus=plan.num_devices)
    host = replace(cluster.host_link, bytes_per_s=cluster.host_link.bytes_per_s * link)
    return Scenario(
        model=load_model(model), cluster=replace(cluster, host_link=host), software=SOFTWARE, plan=plan,
        workload=Workload(seq_tokens=4096, global_batch_seqs=8 * plan.dp, offload=offload),
    )  # fmt: skip


ALL = Offload(modules=OFFLOAD_MODULES)


def test_every_module_names_ops_that_keep_something() -> None:
    """Of the models that have the module: a name that no layer builds would offload nothing."""
    assert set(MODULE_OPS) == set(OFFLOAD_MODULES)
    for module in OFFLOAD_MODULES:
        moved = []
        for model in ("Qwen3-30B-A3B", "DeepSeek-V3"):
            run = Simulation(scenario(Offload(modules=(module,)), model=model))
            moved.append(float(run.step.moved_bytes(run.contents[1][0])))
        # in 16 bits the core's output is the projection's input, and counted with the core
        assert all(m > 0.0 for m in moved) == (module != "attn_proj"), module


def test_what_goes_down_comes_up_once_per_micro_batch() -> None:
    run = Simulation(scenario(ALL))
    report = run.report(trace=False)
    for lane, row in enumerate(run.profile().chunks):
        moved = float(run.step.moved_bytes(run.contents[lane][0]))
        assert dict(row[0].forward_flows)[DOWN] == dict(row[0].backward_flows)[UP] == moved > 0.0
    most = max(dict(row[0].forward_flows)[DOWN] for row in run.profile().chunks)
    assert report.link_use[DOWN]["bytes"] == pytest.approx(8 * most)
    assert report.link_use[UP]["bytes"] == pytest.approx(8 * most)


def test_memory_falls_by_what_rests_on_the_host() -> None:
    kept, run = Simulation(scenario(Offload())), Simulation(scenario(Offload(modules=("core_attn", "moe_act"))))
    content = run.contents[1][0]
    layers = run.step.layers_of(content)
    in_transit = max(float(part.away) for _, part in layers)
    gone = float(kept.step.stage_sums(content).saved_bytes - run.step.stage_sums(content).saved_bytes)
    assert gone == pytest.approx(float(run.step.moved_bytes(content)) - in_transit)


def test_a_link_fast_enough_hides_it_all_and_a_slow_one_sets_the_pace() -> None:
    plain = simulate(scenario(Offload()), trace=False).step_s.value
    hidden = simulate(scenario(ALL, link=100.0), trace=False)
    assert hidden.step_s.value == pytest.approx(plain)
    assert "offload" not in hidden.breakdown
    slow = Simulation(scenario(ALL, link=1e-3))
    chunk, rate = slow.profile().chunks[1][0], slow.profile().links[DOWN]
    moved = float(slow.step.moved_bytes(slow.contents[1][0]))
    assert chunk.forward_s == pytest.approx(moved / rate) and chunk.backward_s == pytest.approx(moved / rate)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(1e-3, 10.0), min_size=2, max_size=2), st.sampled_from(("layers", "modules")))
def test_a_slower_link_is_never_faster(links: list[float], way: str) -> None:
    asked = ALL if way == "modules" else Offload(layers=12)
    fast, slow = (simulate(scenario(asked, link=x), trace=False).step_s.value for x in sorted(links, reverse=True))
    assert slow >= fast * (1 - 1e-12)


def test_whole_layers_share_the_time_of_all_layers() -> None:
    """Half of the layers offloaded have twice the time a copy would have beside one layer."""
    plan = Plan(dp=8, ep=8)
    plain = Simulation(scenario(Offload(), plan))
    layer = plain.step.layers_of(plain.contents[0][0])[0][1]
    rate = 64e9 * plain.cost.factors.host_link_share
    own_s = float(layer.duration_s("forward")) * plain.step.stragglers
    link = float(layer.saved) / (1.5 * own_s) / rate  # a layer's copy takes one and a half times the layer
    for layers, waits in ((24, False), (48, True)):
        run = Simulation(scenario(Offload(layers=layers), plan, link=link))
        stall_s = float(run.step.stall_s(run.contents[0][0])[0])
        assert (stall_s > 0.0) == waits
    assert stall_s == pytest.approx(0.5 * 48 * own_s)


def test_host_memory_holds_what_is_in_flight() -> None:
    """1F1B: stage 0 of pp stages has pp micro-batches between forward and backward."""
    s = scenario(ALL)
    run = Simulation(s)
    moved = [float(run.step.moved_bytes(row[0])) for row in run.contents]
    report = run.report(trace=False)
    most = max((PLAN.pp - stage) * size for stage, size in enumerate(moved))
    assert report.host_mem_bytes == pytest.approx(s.cluster.devices_per_node * most)


def test_recomputed_modules_have_nothing_to_send() -> None:
    full = Simulation(scenario(Offload(modules=("moe_act",)), replace(PLAN, recompute=("moe_act",))))
    kept = Simulation(scenario(Offload(modules=("moe_act",))))
    assert float(full.step.moved_bytes(full.contents[1][0])) == 0.0
    assert float(kept.step.moved_bytes(kept.contents[1][0])) > 0.0


def test_layers_and_modules_together_are_refused() -> None:
    with pytest.raises(UserError, match="one of them"):
        simulate(scenario(Offload(layers=2, modules=("core_attn",))))


@pytest.mark.parametrize("asked", [ALL, Offload(layers=6), Offload(modules=("core_attn",), optimizer=0.5)])
@pytest.mark.parametrize("overlap", [False, True])
def test_screening_sees_the_same_memory_and_a_true_bound(asked: Offload, overlap: bool) -> None:
    for plan in (PLAN, Plan(pp=2, vpp=2, dp=8, ep=8, edp=1, schedule="interleaved"), Plan(dp=16, ep=8, edp=2)):
        for link in (0.2, 1.0):
            s = scenario(asked, plan, link)
            if overlap:
                s = replace(s, software=replace(SOFTWARE, a2a_overlap=True, delay_wgrad=True))
            report = simulate(s, trace=False)
            seen = screen(s.model, s.cluster, s.software, s.workload, columns_of([plan])[0])
            assert seen.peak_bytes[0] == pytest.approx(report.peak_mem_bytes)
            assert 0.85 * report.step_s.value < seen.bound_s[0] <= report.step_s.value * (1 + 1e-9)


def test_breakdown_still_sums_to_the_step() -> None:
    report: Any = simulate(scenario(ALL, link=0.2), trace=False)
    assert report.breakdown["offload"] > 0.0
    assert sum(report.breakdown.values()) == pytest.approx(report.step_s.value)
