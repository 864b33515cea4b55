"""Small cases for the tests of the layer-level run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from hwprofiles import catalogue
from hwprofiles.specs import SoftwareProfile
from sim.families import load_model
from sim.mesh import DEFAULT_MAP, RankMap
from sim.plan import Plan
from sim.routing import Routing, parse_routing, resolve
from sim.scenario import Scenario
from sim.workload import Workload

GRAPH = ("full_iteration",)


@cache
def software(**changes: Any) -> SoftwareProfile:
    """A dropless release that overlaps nothing unless told to."""
    off = {"a2a_overlap": False, "delay_wgrad": False, "shared_expert_overlap": False, "host_sync": False}
    release = catalogue.software("megatron-bridge-26.04")
    return replace(release, capacity_factor=None, **{**off, **changes})


def scenario(
    model: str, plan: Plan, *, batch: int, law: str = "", cluster: str = "dgx-h100", ranks: RankMap = DEFAULT_MAP,
    **switches: Any,
) -> Scenario:  # fmt: skip
    """One step on H100 nodes."""
    made = load_model(model)
    return Scenario(
        model=made, cluster=catalogue.cluster(cluster, gpus=plan.num_devices), software=software(**switches),
        workload=Workload(seq_tokens=4096, global_batch_seqs=batch), plan=plan,
        routing=resolve(parse_routing(law), made, seed=0) if law else Routing(), ranks=ranks,
    )  # fmt: skip


DEEP = Plan(pp=4, ep=64, dp=64, account_ends=True)
DEEP_VPP = Plan(pp=4, vpp=2, ep=64, dp=64, account_ends=True, schedule="interleaved")
MIX = Plan(tp=2, pp=4, ep=8, dp=8, edp=2)
CASES: dict[str, Scenario] = {
    "DeepSeek-V3 pp4": scenario("DeepSeek-V3", DEEP, batch=512),
    "DeepSeek-V3 pp4 vpp2 pairs": scenario(
        "DeepSeek-V3", DEEP_VPP, batch=1024, a2a_overlap=True, dispatcher="deepep"
    ),
    "DeepSeek-V3 pp1 pairs, delayed weight gradients": scenario(
        "DeepSeek-V3", Plan(ep=64, dp=64), batch=256, a2a_overlap=True, dispatcher="deepep", delay_wgrad=True,
        cuda_graph=GRAPH,
    ),
    "DeepSeek-V3 shared experts beside": scenario(
        "DeepSeek-V3", DEEP, batch=512, shared_expert_overlap=True, cuda_graph=GRAPH
    ),
    "DeepSeek-V3 recompute": scenario(
        "DeepSeek-V3", replace(DEEP, recompute=("moe_act", "layernorm")), batch=512
    ),
    "DeepSeek-V3 full recompute": scenario("DeepSeek-V3", replace(DEEP, recompute=("full",)), batch=512),
    "DeepSeek-V3 MoE recompute": scenario("DeepSeek-V3", replace(DEEP, recompute=("moe",)), batch=512),
    "Mixtral pp1": scenario("Mixtral-8x7B", Plan(tp=2, ep=8, dp=8, edp=2), batch=64),
    "Mixtral pp4 vpp2": scenario(
        "Mixtral-8x7B", Plan(tp=2, pp=4, vpp=2, ep=8, dp=8, edp=2, schedule="interleaved"), batch=128
    ),
    "Mixtral pairs": scenario("Mixtral-8x7B", Plan(ep=8, dp=16, edp=2), batch=128, a2a_overlap=True),
    "Mixtral sharded": scenario("Mixtral-8x7B", Plan(ep=8, dp=16, edp=2, zero_stage=3), batch=64),
    "Mixtral tp cp": scenario("Mixtral-8x7B", Plan(tp=2, cp=2, ep=8, dp=8, pp=2, edp=4), batch=128),
    "DeepSeek-V3 two batches": scenario(
        "DeepSeek-V3", DEEP, batch=512, two_batch_overlap=True, dispatcher="deepep", cuda_graph=GRAPH
    ),
    "Mixtral two batches": scenario(
        "Mixtral-8x7B", Plan(tp=2, ep=8, dp=8, edp=2), batch=64, two_batch_overlap=True
    ),
    "Qwen3 levels in the network": scenario(
        "Qwen3-30B-A3B", Plan(pp=2, ep=64, dp=64), batch=512, cluster="hgx-h100-2to1", cuda_graph=GRAPH
    ),
    "Qwen3 levels in the network, pairs": scenario(
        "Qwen3-30B-A3B", Plan(pp=2, vpp=2, ep=64, dp=64, schedule="interleaved"), batch=512, cluster="hgx-h100-2to1",
        a2a_overlap=True, dispatcher="deepep", dispatch_kernel="low_latency", fp8_dispatch=True,
    ),
    "Qwen3 uneven by layer": scenario("Qwen3-30B-A3B", Plan(pp=4, ep=16, dp=16), batch=256, law="lognormal:0.6"),
    "Qwen3 uneven by layer, two batches": scenario(
        "Qwen3-30B-A3B", Plan(pp=4, ep=16, dp=16), batch=256, law="lognormal:0.6", two_batch_overlap=True,
        dispatcher="deepep",
    ),
    "Qwen3 data parallel ranks far apart": scenario(
        "Qwen3-30B-A3B", Plan(tp=2, pp=2, ep=8, dp=8, edp=2), batch=128, ranks=RankMap(order="tp-cp-dp-ep-pp"),
    ),
    "Qwen3 pipelines inside nodes": scenario(
        "Qwen3-30B-A3B", Plan(tp=4, pp=2, ep=4, dp=4, edp=4), batch=128, ranks=RankMap(order="tp-cp-ep-pp-dp"),
    ),
    "Qwen3 two batches, counts read back": scenario(
        "Qwen3-30B-A3B", Plan(ep=8, dp=16, edp=2), batch=64, host_sync=True, two_batch_overlap=True
    ),
    "Mixtral zb-h1": scenario("Mixtral-8x7B", replace(MIX, schedule="zb-h1"), batch=128),
    "Mixtral zb-h2, sharded, full recompute": scenario(
        "Mixtral-8x7B", Plan(pp=2, ep=8, dp=8, zero_stage=3, schedule="zb-h2", recompute=("full",)), batch=64
    ),
    "Qwen3 zb-v uneven by layer": scenario(
        "Qwen3-30B-A3B", Plan(pp=4, vpp=2, ep=16, dp=16, schedule="zb-v"), batch=256, law="lognormal:0.6"
    ),
    "Qwen3 zb-v two batches": scenario(
        "Qwen3-30B-A3B", Plan(pp=4, vpp=2, ep=16, dp=16, schedule="zb-v"), batch=256, two_batch_overlap=True,
        dispatcher="deepep", cuda_graph=GRAPH,
    ),
    "Mixtral dualpipe": scenario("Mixtral-8x7B", replace(MIX, schedule="dualpipe"), batch=128),
    "DeepSeek-V3 dualpipe pairs": scenario(
        "DeepSeek-V3", replace(DEEP, schedule="dualpipe"), batch=1024, a2a_overlap=True, dispatcher="deepep"
    ),
    "DeepSeek-V3 dualpipe-v pairs": scenario(
        "DeepSeek-V3", replace(DEEP, vpp=2, schedule="dualpipe-v"), batch=1024, a2a_overlap=True, dispatcher="deepep"
    ),
}  # fmt: skip
