"""Facts that other planners get wrong, each by its name."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.forms import collectives as form
from hwprofiles.hostmap import host_map
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.build.profile import ChunkProfile, SendProfile, StageTail, StepProfile
from sim.build.tasks import simulate_step
from sim.cost.model import CostModel
from sim.cost.timing import BACKWARD, FORWARD, PartTime, pair_s
from sim.families import load_model
from sim.mesh import Group, RankMap
from sim.ops import Op
from sim.plan import Plan
from sim.report import Report, Trace
from sim.routing import Routing
from sim.routing.loads import ExpertLoads, contiguous
from sim.routing.place import pair_rows
from sim.routing.spec import parse_routing, resolve
from sim.run import Simulation, simulate
from sim.scenario import Scenario
from sim.workload import Workload

SEQ = 4096


@cache
def software(**changes: Any) -> SoftwareProfile:
    """A dropless release, whatever its own recipes drop."""
    release = catalogue.software("megatron-bridge-26.04")
    return replace(release, capacity_factor=None, host_sync=False, **changes)


def run(plan: Plan, *, cluster: ClusterSpec | None = None, routing: Routing | None = None, batch: int = 128) -> Report:
    """One step whose kernels are all captured, so that the host hides nothing."""
    scenario = Scenario(
        model=load_model("Qwen3-30B-A3B"), cluster=cluster or catalogue.cluster("dgx-h100", gpus=plan.num_devices),
        software=software(cuda_graph=("full_iteration",)), plan=plan, routing=routing or Routing(),
        workload=Workload(seq_tokens=SEQ, global_batch_seqs=batch),
    )  # fmt: skip
    return simulate(scenario, trace=False)


def moe_ops(plan: Plan, **switches: Any) -> tuple[CostModel, tuple[Op, ...]]:
    model = load_model("Qwen3-235B-A22B")
    trainer = software(**switches)
    work = Workload(seq_tokens=SEQ, global_batch_seqs=256)
    ctx = Context(model=model, workload=work, plan=plan, software=trainer, routing=Routing())
    cost = CostModel(catalogue.cluster("dgx-h100", gpus=plan.num_devices), trainer)
    return cost, layer_ops(ctx, model.layers[0])


def expert_s(plan: Plan, *, fused: bool) -> float:
    cost, ops = moe_ops(plan, fused_experts=fused)
    return sum(float(cost.device_s(op)) for op in ops if op.kind == "grouped_gemm" and op.pass_ != "wgrad")


# ---------------------------------------------------------------- experts


@pytest.mark.parametrize(("tp", "cp", "etp"), [(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 1, 2), (4, 2, 4), (1, 1, 2)])
def test_routed_rows_are_top_k_times_tokens_over_tp_and_cp_times_etp_and_ep_drops_out(
    tp: int, cp: int, etp: int
) -> None:
    model = load_model("Qwen3-235B-A22B")
    moe = model.layers[0].moe
    assert moe is not None
    rows = moe.top_k * SEQ / (tp * cp)
    found = []
    for ep in (2, 8, 16):
        plan = Plan(tp=tp, cp=cp, dp=64, ep=ep, etp=etp, edp=64 * tp * cp // etp // ep)
        balanced = replace(software(), capacity_factor=1.0)
        work = Workload(seq_tokens=SEQ, global_batch_seqs=256)
        ops = {op.name: op for op in layer_ops(Context(model=model, workload=work, plan=plan, software=balanced),
                                               model.layers[0])}  # fmt: skip
        assert float(ops["dispatch"].bytes) == pytest.approx(rows * model.hidden_dim * 2)
        assert float(ops["dispatch.etp"].bytes) == pytest.approx(rows * etp * model.hidden_dim * 2)
        assert float(ops["experts1"].m * ops["experts1"].groups) == pytest.approx(rows * etp)
        assert float(ops["experts2"].k) == pytest.approx(moe.ffn_dim / etp)  # the FFN's width divides by ETP again
        found.append(float(ops["experts1"].flop + ops["experts2"].flop))
    assert found == pytest.approx([found[0]] * 3)


def test_balanced_expert_parallelism_drops_out_of_expert_time() -> None:
    """A rank holds 1/EP of the experts and gets EP times the rows of each: the same GEMM work, in larger pieces."""
    degrees = (4, 8, 16, 32)
    plans = [Plan(ep=ep, dp=64, edp=64 // ep) for ep in degrees]
    fused = [expert_s(plan, fused=True) for plan in plans]
    # fewer experts on a rank: fewer weights to read and fewer part-filled tiles, nothing else
    assert fused == sorted(fused, reverse=True) and fused[0] < 1.06 * fused[-1]
    # one kernel per local expert: the pieces differ in size, the work does not
    apart = [expert_s(plan, fused=False) for plan in plans]
    assert max(apart) < 1.2 * min(apart)


@pytest.mark.parametrize("ep", [4, 8, 16])
def test_a_step_follows_the_most_loaded_rank(ep: int) -> None:
    """Time and memory rise with the hottest rank although the mean load is the same."""
    plan = Plan(ep=ep, dp=16, edp=16 // ep)
    reports = [run(plan, routing=Routing(max_over_mean=hot)) for hot in (1.0, 1.3, 2.0)]
    steps, peaks = [r.step_s.value for r in reports], [r.peak_mem_bytes for r in reports]
    assert steps == sorted(set(steps)) and peaks == sorted(set(peaks))
    # At least the expert GEMMs of the step grow in proportion.
    experts = [r.breakdown["experts"] for r in reports]
    assert experts[2] > 1.5 * experts[0]
    assert steps[2] - steps[0] >= 0.99 * (experts[2] - experts[0])


def test_the_penalty_of_uneven_experts_grows_with_ep() -> None:
    """The same popularity of experts: the more ranks share them out, the further the fullest is from the mean."""
    routing = resolve(parse_routing("zipf:0.5"), load_model("Qwen3-30B-A3B"))
    more_s, more_bytes = [], []
    for ep in (4, 8, 16, 32):
        plan = Plan(ep=ep, dp=32, edp=32 // ep)
        uneven, even = run(plan, routing=routing), run(plan, routing=Routing())
        more_s.append(uneven.breakdown["experts"] / even.breakdown["experts"])
        more_bytes.append(uneven.peak_mem_bytes - even.peak_mem_bytes)
    assert more_s[0] > 1.1 and more_s == sorted(set(more_s))
    assert more_bytes[0] > 0 and more_bytes == sorted(set(more_bytes))


def test_uniform_routing_is_blind_to_the_order_of_experts() -> None:
    """Whichever experts a rank holds, it sends and receives the same bytes, so that the exchange takes as long."""
    even = ExpertLoads(chance=np.full((1, 128), 8 / 128), top_k=8)
    cost, _ = moe_ops(Plan(ep=16, dp=64, edp=4))
    grp = Group(size=16, intra=8)

    def exchange_s(placement: Any, loads: ExpertLoads) -> float:
        sent = form.loads(pair_rows(loads, placement, 16, SEQ)[0] * 4096 * 2, 8)
        return float(cost.comm.exchange(sent.near, sent.far, grp).alone_s)

    placed = contiguous(even, 16)
    rng = np.random.default_rng(1)
    orders = [rng.permutation(128) for _ in range(8)]
    assert [exchange_s(placed[:, order], even) for order in orders] == pytest.approx([exchange_s(placed, even)] * 8)
    # it is about something: where some experts are wanted more, their order decides
    skewed = ExpertLoads(chance=np.where(np.arange(128) < 16, 15 / 32, 1 / 224)[None, :], top_k=8)
    assert max(exchange_s(placed[:, order], skewed) for order in orders) < 0.8 * exchange_s(placed, skewed)


def test_permuting_gpus_inside_a_node_changes_nothing() -> None:
    plan, made = Plan(tp=2, pp=2, ep=8, dp=8, edp=2), catalogue.cluster("dgx-h100", gpus=32)
    scenario = Scenario(
        model=load_model("Qwen3-30B-A3B"), cluster=made, software=software(cuda_graph=("full_iteration",)), plan=plan,
        workload=Workload(seq_tokens=SEQ, global_batch_seqs=128),
    )  # fmt: skip

    def report(devices: list[int]) -> Report:
        placed = replace(scenario, ranks=RankMap(hosts=host_map(devices)))
        return replace(Simulation(placed).report(trace=False), ranks=scenario.ranks)

    rng = np.random.default_rng(2)
    inside = [int(8 * node + gpu) for node in range(4) for gpu in rng.permutation(8)]
    assert report(inside) == report(list(range(32))) == Simulation(scenario).report(trace=False)
    dealt = [rank % 4 * 8 + rank // 4 for rank in range(32)]  # round the nodes: neighbours lie apart
    assert report(dealt).step_s.value > 1.2 * report(inside).step_s.value


@pytest.mark.parametrize(("dispatcher", "jump"), [("alltoall", 3.0), ("deepep", 1.5), ("hybridep", 1.5)])
def test_crossing_the_node_is_a_step(dispatcher: str, jump: float) -> None:
    """Dispatch jumps from 8 to 16 ranks, which a wider NVLink domain would spare it; sending a token once per
    node (DeepEP) makes the jump smaller."""
    times = {}
    for ep in (8, 16):
        plan = Plan(ep=ep, dp=64, edp=64 // ep)
        cost, ops = moe_ops(plan, dispatcher=dispatcher)
        op = next(op for op in ops if op.name == "dispatch")
        times[ep] = float(cost.comm_time(op, plan, top_k=8).alone_s)
    wide = CostModel(replace(cost.cluster, domain_devices=16), cost.software)
    inside_s = float(wide.comm_time(op, plan, top_k=8).alone_s)
    assert times[16] > jump * times[8]
    assert times[16] / inside_s > 1.2 and inside_s < jump * times[8]


def test_the_step_at_the_node_depends_on_the_kernel_and_on_the_size_of_messages() -> None:
    """Of one node over two: a few microseconds to a few times as long, by mode and by tokens."""
    cost, _ = moe_ops(Plan(ep=16, dp=64, edp=4), dispatcher="deepep")

    def jump(mode: str, tokens: int) -> float:
        inside_s, across_s = (
            float(cost.comm.dispatch(tokens * 8 * 7168 * 2.0, Group(size=ep, intra=8), top_k=8, hidden=7168,
                                     experts=256, phase="dispatch", mode=mode).alone_s)
            for ep in (8, 16)
        )  # fmt: skip
        return across_s / inside_s

    jumps = {(mode, n): jump(mode, n) for mode in ("normal", "low_latency") for n in (16, 128, 4096)}
    assert min(jumps.values()) > 1.0
    for tokens in (16, 128, 4096):
        assert abs(jumps["normal", tokens] / jumps["low_latency", tokens] - 1.0) > 0.05
    for mode in ("normal", "low_latency"):
        by_size = [jumps[mode, n] for n in (16, 128, 4096)]
        assert max(by_size) > 1.1 * min(by_size)


def test_crossing_the_node_shows_in_the_step() -> None:
    # enough micro-batches that the gradients of twice the experts per rank do not decide
    inside, across = (run(Plan(ep=ep, dp=32, edp=32 // ep), batch=1024) for ep in (8, 16))
    assert across.exposed_comm_s["ep"] > 1.5 * inside.exposed_comm_s["ep"]
    assert across.step_s.value > inside.step_s.value


# ---------------------------------------------------------------- idle time

PIPELINES = [("1f1b", 4, 1), ("interleaved", 4, 2)]


def pipeline(schedule: str, pp: int, vpp: int, times: tuple[float, ...], extra_s: tuple[float, float]) -> StepProfile:
    """One chunk time per stage; `extra_s` is added to the forward and backward of the last stage's neighbour."""
    chunks = []
    for stage in range(pp):
        forward, backward = extra_s if stage == 1 else (0.0, 0.0)
        one = ChunkProfile(forward_s=times[stage] + forward, backward_s=2 * times[stage] + backward)
        chunks.append((one,) * vpp)
    return StepProfile(
        pp=pp, vpp=vpp, schedule=schedule, num_micro_batches=12, chunks=tuple(chunks),
        tails=(StageTail(),) * pp, links={}, p2p=(SendProfile(latency_s=1e-5),) * pp,
    )  # fmt: skip


def idle_s(trace: Trace, stage: int) -> float:
    return trace.makespan_s - trace.lane_busy_s[stage]


@settings(max_examples=40)
@given(
    kind=st.sampled_from(PIPELINES),
    times=st.tuples(*[st.floats(0.5e-3, 2e-3)] * 4),
    extra=st.tuples(st.floats(0, 1e-3), st.floats(0, 1e-3)),
)
def test_a_longer_all_to_all_never_raises_its_stages_idle_time(
    kind: tuple[str, int, int], times: tuple[float, ...], extra: tuple[float, float]
) -> None:
    """At a fixed plan: the step ends later by at most what the stage works longer; the rest hides in its bubble."""
    before = simulate_step(pipeline(*kind, times, (0.0, 0.0)))
    after = simulate_step(pipeline(*kind, times, extra))
    assert after.makespan_s >= before.makespan_s * (1 - 1e-9)
    assert idle_s(after, 1) <= idle_s(before, 1) + 1e-9 * after.makespan_s


def test_a_longer_all_to_all_of_an_idle_stage_is_free() -> None:
    """A stage that waits for slower ones takes a longer all-to-all without ending the step later in proportion."""
    times = (2e-3, 1e-3, 2e-3, 2e-3)
    before, after = (simulate_step(pipeline("1f1b", 4, 1, times, extra)) for extra in ((0.0, 0.0), (0.4e-3, 0.4e-3)))
    assert after.lane_busy_s[1] - before.lane_busy_s[1] == pytest.approx(12 * 0.8e-3)
    # Only the filling and the draining of the pipeline see it: once each, not once per micro-batch.
    assert after.makespan_s - before.makespan_s <= 0.8e-3 * (1 + 1e-9)


def test_a_paired_all_to_all_costs_nothing_but_its_sms_until_it_is_longer_than_what_hides_it() -> None:
    """Where the overlap is placed by hand; else the calibrated share of what is hidden comes on top."""

    def pair(comm_s: float, *, tuned: bool = True) -> float:
        cost = CostModel(made, software(a2a_overlap=True, dispatcher="deepep", tuned_overlap=tuned))
        part = PartTime()
        for way in (FORWARD, BACKWARD):
            part.halves[way] = {"attn": np.array(2e-3), "ffn": np.array(2e-3)}
            part.classes[way] = {"gemm": np.array(4e-3)}
            part.exposed[way] = {"ep": np.array(2 * comm_s)}
        part.ep = {name: np.array(comm_s) for name in ("dispatch", "combine", "dispatch.bwd", "combine.bwd")}
        return float(pair_s(cost, part))

    made = catalogue.cluster("dgx-h100", gpus=64)
    cost, times = CostModel(made, software()), (0.0, 0.5e-3, 1.0e-3, 2.0e-3)
    steal = cost.factors.overlap_sms["deepep"] / cost.device.num_sms
    np.testing.assert_allclose([pair(t) for t in times], [8e-3 + 4 * steal * t for t in times])
    left = cost.factors.overlap_exposed
    np.testing.assert_allclose([pair(t, tuned=False) for t in times], [8e-3 + 4 * (steal + left) * t for t in times])
    assert pair(10e-3) == pytest.approx(40e-3)


# ---------------------------------------------------------------- better hardware

CLUSTER = """
name = "variant"
device = "variant-h100"
num_nodes = 4
devices_per_node = 8
domain_devices = 8
host_mem_bytes = "2 TB"
[device_spec]
name = "variant-h100"
mem_bytes = "{mem_gib} GiB"
mem_bytes_per_s = "{mem_rate} TB/s"
power_w = "700 W"
usd_per_s = "2 USD/h"
num_sms = 132
launch_s = "2.5 us"
measured = "h100"
[device_spec.peak_flop_per_s]
bf16 = "989 TFLOP/s"
[scale_up]
name = "scale_up"
bytes_per_s = "{up} GB/s"
latency_s = "2 us"
[scale_out]
name = "scale_out"
bytes_per_s = "{out} Gb/s"
latency_s = "6 us"
[host_link]
name = "host"
bytes_per_s = "60 GB/s"
latency_s = "2 us"
[source]
kind = "assumed"
title = "a variant of a test"
where = "this test"
date = "2026-11-22"
"""
PLANS = (
    Plan(ep=8, dp=32, edp=4),
    Plan(ep=32, dp=32),
    Plan(tp=2, pp=4, ep=8, dp=4),
    Plan(pp=4, vpp=3, ep=8, dp=8, schedule="interleaved"),
    Plan(cp=2, pp=2, ep=16, dp=8),
    Plan(tp=2, ep=4, etp=2, dp=16, edp=4),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clusters")


def variant(folder: Path, **figures: float) -> ClusterSpec:
    path = folder / "cluster.toml"
    path.write_text(CLUSTER.format(**({"mem_gib": 80, "mem_rate": 3.35, "up": 450, "out": 400} | figures)))
    return catalogue.cluster(str(path))


RATES = {"mem_rate": (1.5, 6.0), "up": (50.0, 900.0), "out": (25.0, 1600.0)}


@settings(max_examples=40)
@given(
    plan=st.sampled_from(PLANS),
    figure=st.sampled_from(sorted(RATES)),
    where=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_more_bandwidth_is_never_slower(folder: Path, plan: Plan, figure: str, where: tuple[float, float]) -> None:
    low, high = RATES[figure]
    slow, fast = (low * (high / low) ** x for x in sorted(where))
    slow_s, fast_s = (run(plan, cluster=variant(folder, **{figure: rate})).step_s.value for rate in (slow, fast))
    assert fast_s <= slow_s * (1 + 1e-9)


@settings(max_examples=25)
@given(plan=st.sampled_from(PLANS), sizes=st.tuples(st.integers(16, 200), st.integers(16, 200)))
def test_more_memory_never_makes_a_plan_not_fit(folder: Path, plan: Plan, sizes: tuple[int, int]) -> None:
    small, large = (run(plan, cluster=variant(folder, mem_gib=size)) for size in sorted(sizes))
    assert large.fits or not small.fits
    assert small.peak_mem_bytes == large.peak_mem_bytes and small.step_s.value == large.step_s.value


def test_memory_decides_somewhere_in_that_range(folder: Path) -> None:
    """So that the fact above is about something: each plan fits in 200 GiB, none in 16."""
    for plan in PLANS:
        assert run(plan, cluster=variant(folder, mem_gib=200)).fits
        assert not run(plan, cluster=variant(folder, mem_gib=16)).fits
