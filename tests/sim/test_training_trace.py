"""DeepSeek's published training trace: an overlapped pair of one forward and one backward chunk, never fitted.

H800, expert parallel over 64, 4,096 tokens of 7,168, four MoE layers a chunk, routing forced balanced; the GPU span is
129.0 ms, of which 4.2 ms are exposed communication (deepseek-ai/profile-data, train.json).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles import catalogue
from hwprofiles.specs import SoftwareProfile
from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.cost.model import CostModel
from sim.cost.timing import BACKWARD, FORWARD, pair_s, part_time
from sim.detail import simulate_layers
from sim.families import load_model
from sim.model import ModelSpec
from sim.plan import Plan
from sim.report import Span
from sim.scenario import Scenario
from sim.workload import Workload

LAYERS, SPAN_S, EXPOSED_S, MICRO_BATCHES = 4, 129.0e-3, 8e-3, 3


def setting() -> tuple[ModelSpec, SoftwareProfile, Workload, Plan]:
    """What DualPipe does: two micro-batches side by side, weight gradients filling the gaps, fused experts, no
    read-back."""
    software = replace(
        catalogue.software("megatron-bridge-26.08"), dispatcher="deepep", a2a_overlap=True, delay_wgrad=True,
        cuda_graph=("full_iteration",), host_sync=False, fused_experts=True,
    )  # fmt: skip
    workload = Workload(seq_tokens=4096, global_batch_seqs=64 * MICRO_BATCHES, precision="fp8_block")
    return load_model("DeepSeek-V3"), software, workload, Plan(dp=64, ep=64)


def test_span_and_exposed_communication_of_the_overlapped_pair() -> None:
    model, software, workload, plan = setting()
    cost = CostModel(catalogue.cluster("h800", gpus=64), software)
    layer = next(layer for layer in model.layers if layer.moe is not None)
    ctx = Context(model=model, workload=workload, plan=plan, software=software)
    part = part_time(cost, ctx, layer_ops(ctx, layer), layer.moe)
    span_s = LAYERS * float(pair_s(cost, part))
    assert span_s == pytest.approx(SPAN_S, rel=0.10)
    compute_s = LAYERS * float(part.compute_s(FORWARD) + part.compute_s(BACKWARD))
    steal = cost.factors.overlap_sms["deepep"] / cost.device.num_sms
    comm_s = LAYERS * sum(float(seconds) for seconds in part.ep.values())
    # compute beside communication runs on what SMs are left; what the span has beyond that is exposed
    beside_s = min(comm_s, compute_s / (1.0 - steal))
    assert span_s - (compute_s + steal * beside_s) < EXPOSED_S


def test_span_and_exposed_communication_of_the_pair_in_the_layer_level_run() -> None:
    """The same four layers as events: the last backward and forward that run in turns."""
    model, software, workload, plan = setting()
    layer = next(layer for layer in model.layers if layer.moe is not None)
    scenario = Scenario(
        model=replace(model, layers=(layer,) * LAYERS), cluster=catalogue.cluster("h800", gpus=64), software=software,
        workload=workload, plan=plan,
    )  # fmt: skip
    trace = simulate_layers(scenario)
    pair = [s for s in trace.spans if s.name.startswith(("B1 ", "F2 ")) and s.kind in IN_LAYERS]
    begin_s = min(s.start_s for s in pair if s.kind != "wgrad")  # the head's weight gradient stands before the layers
    layers = [s for s in pair if s.start_s >= begin_s]
    assert sum(s.stream == "ep" for s in layers) == 4 * LAYERS
    span_s = max(s.end_s for s in layers) - min(s.start_s for s in layers)
    assert span_s == pytest.approx(SPAN_S, rel=0.10)
    assert span_s == pytest.approx(union_s(layers))
    exposed_s = span_s - union_s([s for s in layers if s.stream == "compute"])
    assert exposed_s < EXPOSED_S


IN_LAYERS = ("attention", "router", "experts", "shared", "unpermute", "wgrad", "ep")


def union_s(spans: list[Span]) -> float:
    """Seconds in which any of the spans runs."""
    total_s = until_s = 0.0
    for start_s, end_s in sorted((s.start_s, s.end_s) for s in spans):
        total_s += max(0.0, end_s - max(start_s, until_s))
        until_s = max(until_s, end_s)
    return total_s
