"""DeepSeek's published training trace: an overlapped pair of one forward and one backward chunk, never fitted.

H800, expert parallel over 64, 4,096 tokens of 7,168, four MoE layers a chunk, routing forced balanced; the GPU span is
129.0 ms, of which 4.2 ms are exposed communication (deepseek-ai/profile-data, train.json).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprofiles import catalogue
from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.cost.model import CostModel
from sim.cost.timing import BACKWARD, FORWARD, pair_s, part_time
from sim.families import load_model
from sim.plan import Plan
from sim.workload import Workload

LAYERS, SPAN_S, EXPOSED_S = 4, 129.0e-3, 8e-3


def test_span_and_exposed_communication_of_the_overlapped_pair() -> None:
    model = load_model("DeepSeek-V3")
    # what DualPipe does: two micro-batches side by side, weight gradients filling the gaps, fused experts, no read-back
    software = replace(
        catalogue.software("megatron-bridge-26.08"), dispatcher="deepep", a2a_overlap=True, delay_wgrad=True, tuned_overlap=True,
        cuda_graph=("full_iteration",), host_sync=False, fused_experts=True,
    )  # fmt: skip
    workload = Workload(seq_tokens=4096, global_batch_seqs=64, precision="fp8_block")
    plan = Plan(dp=64, ep=64)
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
