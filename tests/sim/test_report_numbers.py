"""What a report says beside the step: the split of layers, link use against hand counts, the fabric's latency."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calibration.layout import stages_of
from hwprofiles import catalogue
from sim import Scenario, simulate
from sim.families import load_model
from sim.plan import Plan
from sim.workload import Workload

MODEL = load_model("Qwen3-30B-A3B")


def scenario(*, latency_s: float | None = None, **degrees: int) -> Scenario:
    """Qwen3-30B-A3B on 16 H100; EP16 crosses the node."""
    cluster = catalogue.cluster("dgx-h100", gpus=16)
    if latency_s is not None:
        cluster = replace(cluster, scale_out=replace(cluster.scale_out, latency_s=latency_s))
    plan = Plan(**{"dp": 16, "ep": 16, "edp": 1, "micro_batch_seqs": 1, **degrees})
    return Scenario(
        model=MODEL, cluster=cluster, software=catalogue.software("megatron-lm", device="H100", arch="moe"),
        workload=Workload(seq_tokens=4096, global_batch_seqs=64), plan=plan,
    )  # fmt: skip


@pytest.mark.parametrize(("pp", "vpp"), [(1, 1), (4, 1), (4, 3), (8, 2)])
def test_pipeline_layout_is_the_split_that_was_simulated(pp: int, vpp: int) -> None:
    """The printed layout parses back to the layers per virtual stage, and these add up to the model."""
    dp = 16 // pp
    schedule = "interleaved" if vpp > 1 else "1f1b"
    plan = Plan(pp=pp, vpp=vpp, dp=dp, ep=dp, schedule=schedule)
    report = simulate(replace(scenario(), plan=plan))
    assert report.pipeline_layout.startswith("E") and report.pipeline_layout.endswith("L")
    assert stages_of(report.pipeline_layout) == report.stages
    assert len(report.stages) == pp * vpp and sum(report.stages) == len(MODEL.layers)


def test_a_slower_fabric_costs_every_exchange_its_latency() -> None:
    """200 microseconds more on the way cost each of the four exchanges of a layer and micro-batch at least that."""
    fast, slow = (simulate(scenario(latency_s=s, micro_batch_seqs=4)) for s in (None, 205e-6))  # not host-bound
    exchanges = 4 * len(MODEL.layers) * fast.num_micro_batches
    assert slow.step_s.value - fast.step_s.value >= 0.9 * exchanges * 200e-6


def test_link_use_counts_what_crosses_each_link() -> None:
    """EP8 stays on NVLink; EP16 over two nodes puts about half of each token's copies on the NIC."""
    inside, across = simulate(scenario(ep=8, edp=2)), simulate(scenario())
    layers, micro = len(MODEL.layers), inside.num_micro_batches
    token_bytes = 4096 * MODEL.hidden_dim * 2
    once = token_bytes * micro * layers * 4
    # over the achieved share of the rate, so never below the plain bytes
    assert across.link_use["scale_out"]["bytes"] >= once
    assert inside.link_use["scale_out"]["bytes"] < 0.5 * across.link_use["scale_out"]["bytes"]
    assert inside.link_use["scale_up"]["bytes"] >= once
    for report in (inside, across):
        for use in report.link_use.values():
            assert 0.0 < use["utilisation"] <= 1.0
