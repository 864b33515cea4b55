"""Two-batch overlap: halves of a micro-batch hide each other's all-to-all, at the price of smaller kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from sim.columns import columns_of
from sim.cost.timing import (
    BACKWARD,
    FORWARD,
    PartTime,
    beside_s,
    comm_sm_share,
    half_micro_batch,
    overlap_left,
    two_batch_part,
)
from sim.detail import simulate_layers
from sim.plan import Plan
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.screen import screen
from tests.sim.layer_scenarios import DEEP, GRAPH, scenario

FAR = scenario("DeepSeek-V3", DEEP, batch=512, cuda_graph=GRAPH, fused_experts=True)


def on(s: Scenario, state: bool = True, **more: object) -> Scenario:
    return replace(s, software=replace(s.software, two_batch_overlap=state, **more))  # type: ignore[arg-type]


def step_s(s: Scenario) -> float:
    return simulate(s, trace=False).step_s.value


def test_every_shipped_release_runs_one_batch_at_a_time() -> None:
    assert not any(catalogue.software(name).two_batch_overlap for name in catalogue.names("software"))


def test_exchanges_across_nodes_are_worth_two_batches() -> None:
    assert step_s(on(FAR)) < 0.87 * step_s(FAR)
    assert step_s(on(FAR, tuned_overlap=True)) < 0.8 * step_s(FAR)


def test_small_batches_lose() -> None:
    """Inside a node there is little to hide; kernels of a few rows do not halve with them, launches double."""
    workload = replace(FAR.workload, seq_tokens=128)
    near = scenario("Qwen3-30B-A3B", Plan(ep=8, dp=8), batch=64, cuda_graph=GRAPH)
    small = replace(near, workload=replace(workload, global_batch_seqs=64))
    assert step_s(on(small)) > 1.1 * step_s(small)
    host_bound = on(small, state=False, cuda_graph=())
    assert step_s(on(host_bound)) > 1.5 * step_s(host_bound)


def test_the_switch_changes_nothing_without_an_exchange() -> None:
    alone = scenario("Mixtral-8x7B", Plan(tp=8, dp=2, edp=16), batch=32)
    assert step_s(on(alone)) >= step_s(alone)
    dense = scenario("Llama-3.1-8B", Plan(tp=2, dp=4, edp=8), batch=32)
    assert step_s(on(dense)) == step_s(dense)


def test_breakdown_still_sums_to_the_step_and_bound_stays_below() -> None:
    for s in (on(FAR), on(scenario("Mixtral-8x7B", Plan(ep=8, pp=2, dp=8), batch=128))):
        report = simulate(s, trace=False)
        assert sum(report.breakdown.values()) == pytest.approx(report.step_s.value)
        (columns,) = columns_of([s.plan])
        seen = screen(s.model, s.cluster, s.software, s.workload, columns)
        assert 0.9 * report.step_s.value < float(seen.bound_s[0]) <= report.step_s.value * (1 + 1e-12)
        assert report.exposed_comm_s["ep"] < simulate(on(s, state=False), trace=False).exposed_comm_s["ep"]


def test_columns_and_numbers_agree() -> None:
    plans = [Plan(ep=ep, dp=64, edp=64 // ep, micro_batch_seqs=mb) for ep in (8, 32) for mb in (1, 2)]
    s = on(scenario("Qwen3-30B-A3B", plans[0], batch=256, cuda_graph=GRAPH))
    (columns,) = columns_of(plans)
    seen = screen(s.model, s.cluster, s.software, s.workload, columns)
    for plan, bound_s in zip(plans, seen.bound_s, strict=True):
        (one,) = columns_of([plan])
        assert screen(s.model, s.cluster, s.software, s.workload, one).bound_s[0] == pytest.approx(bound_s)


def test_a_layer_is_its_slots() -> None:
    """Each exchange of a half beside each half of compute once; the ends of a virtual stage hide nothing."""
    sim = Simulation(on(FAR))
    half, two = sim.step.half_parts[-1], sim.step.layer_parts[-1]
    steal, left = comm_sm_share(sim.cost), overlap_left(sim.cost)
    assert left > 0.0
    for way, suffix in ((FORWARD, ""), (BACKWARD, ".bwd")):
        d, c = (float(half.ep[name + suffix]) for name in ("dispatch", "combine"))
        a, f = (float(half.halves[way][name]) for name in ("attn", "ffn"))
        slots = sum(float(beside_s(x, y, steal, left)) for x, y in ((c, a), (d, a), (d, f), (c, f)))
        assert float(two.device_s(way)) == pytest.approx(slots)
        assert float(two.edge_s[way]) == pytest.approx(a + c - float(beside_s(c, a, steal, left)))


def test_without_communication_two_batches_cost_two_halves() -> None:
    sim = Simulation(on(FAR))
    half = PartTime()
    for way in (FORWARD, BACKWARD):
        half.classes[way] = {"gemm": np.array(3e-3)}
        half.halves[way] = {"attn": np.array(1e-3), "ffn": np.array(2e-3)}
        half.exposed[way] = {"ep": np.array(0.0), "tp": np.array(1e-4)}
    half.ep = {name: np.array(0.0) for name in ("dispatch", "combine", "dispatch.bwd", "combine.bwd")}
    two = two_batch_part(sim.cost, PartTime(), half)
    for way in (FORWARD, BACKWARD):
        assert float(two.device_s(way)) == pytest.approx(2 * 3.1e-3)
        assert float(two.edge_s[way]) == pytest.approx(0.0)


def test_half_a_micro_batch_has_half_the_rows() -> None:
    ctx = FAR.context()
    assert half_micro_batch(ctx).rows == ctx.rows / 2
    assert half_micro_batch(ctx).plan.ep == ctx.plan.ep


def test_memory_is_that_of_the_whole_micro_batch() -> None:
    assert simulate(on(FAR), trace=False).peak_mem_bytes == simulate(FAR, trace=False).peak_mem_bytes


def test_events_agree_with_the_closed_form_in_both_directions() -> None:
    small = scenario("Qwen3-30B-A3B", Plan(ep=8, dp=8), batch=64, cuda_graph=GRAPH)
    small = on(replace(small, workload=replace(small.workload, seq_tokens=128)))
    for s in (on(FAR), small):
        assert simulate_layers(s).makespan_s == pytest.approx(step_s(s), rel=0.02)


def test_halves_take_turns_in_the_events() -> None:
    trace = simulate_layers(on(FAR))
    mine = [s for s in trace.spans if s.lane == 1 and s.name.startswith("F0 ")]
    layers = sum(s.name.startswith("F0 L") and s.name.endswith(" dispatch") for s in mine) // 2
    assert layers == 16 and sum(s.name.endswith(" combine") for s in mine) == 2 * layers
    compute = [(s.start_s, s.end_s) for s in mine if s.stream == "compute"]
    hidden = [
        s for s in mine if s.stream == "ep" and any(a < s.end_s - 1e-9 and s.start_s + 1e-9 < b for a, b in compute)
    ]
    # all but the last combine run beside compute
    assert len(hidden) == 4 * layers - 1


def test_one_exchange_is_not_hidden_twice(tmp_path: Path) -> None:
    text = Path(catalogue.__file__).with_name("software").joinpath("megatron-core-0.7.toml").read_text()
    path = tmp_path / "both.toml"
    text = text.replace("a2a_overlap = false", "a2a_overlap = true\ntwo_batch_overlap = true")
    path.write_text(text)
    with pytest.raises(UserError, match="set one of them"):
        catalogue.software(str(path))


@pytest.mark.parametrize(("comm_s", "hides_s"), [(0.5e-3, 0.5e-3), (10e-3, 2e-3 / 0.8)])
def test_a_share_of_what_hides_stays_exposed_unless_placed_by_hand(comm_s: float, hides_s: float) -> None:
    left = overlap_left(Simulation(FAR).cost)
    assert left > 0.0 == overlap_left(Simulation(on(FAR, tuned_overlap=True)).cost)
    assert beside_s(comm_s, 2e-3, 0.2, left) == pytest.approx(beside_s(comm_s, 2e-3, 0.2) + left * hides_s)
