"""A toy world for the planner: small records and a closed-form step with a lower bound below it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hwprofiles.specs import ClusterSpec, LinkSpec, SoftwareProfile, Source
from sim.columns import Columns
from sim.model import AttentionSpec, LayerSpec, ModelSpec, MoESpec
from sim.plan import Plan
from sim.report import Estimate, OutOfMemory, Report
from sim.workload import Workload

SOURCE = Source(kind="assumed", title="toy", where="tests", date="2026-01-01")
CAPACITY_BYTES = 10.0


def make_model(**moe: Any) -> ModelSpec:
    """Eight MoE layers: 16 heads, 8 KV heads, 8 experts, 2 per token."""
    attention = AttentionSpec(heads=16, kv_heads=8, head_dim=64, v_head_dim=64)
    fields: dict[str, Any] = {"num_experts": 8, "top_k": 2, "ffn_dim": 512} | moe
    layer = LayerSpec(attention=attention, moe=MoESpec(**fields))
    return ModelSpec(name="toy", hidden_dim=1024, vocab_size=1000, layers=(layer,) * 8, source=SOURCE)


def make_dense() -> ModelSpec:
    """The same with dense FFNs."""
    model = make_model()
    return replace(model, name="toy-dense", layers=tuple(replace(x, moe=None, ffn_dim=4096) for x in model.layers))


def make_cluster(nodes: int = 2) -> ClusterSpec:
    """Nodes of eight devices."""
    link = LinkSpec(name="link", bytes_per_s=1e11, latency_s=1e-6)
    return ClusterSpec(
        name="toy-cluster",
        device="toy-device",
        num_nodes=nodes,
        devices_per_node=8,
        domain_devices=8,
        scale_up=link,
        scale_out=link,
        host_mem_bytes=1e12,
        host_link=link,
        source=SOURCE,
    )


def make_software(**switches: Any) -> SoftwareProfile:
    """A plain Megatron-LM-like profile."""
    return SoftwareProfile(name="toy-sw", trainer="megatron-lm", version="0.19.2", source=SOURCE, **switches)


def make_workload(**fields: Any) -> Workload:
    """A small batch of short sequences."""
    base: dict[str, Any] = {"seq_tokens": 4096, "global_batch_seqs": 64}
    return Workload(**(base | fields))


def noise(plan: Plan) -> float:
    """A number in [0, 1) that belongs to the plan: spreads steps so that bounds do not rank them."""
    return hashlib.sha256(repr(plan).encode()).digest()[0] / 256


def toy_step_s(plan: Plan) -> float:
    """Step of a plan: work, a bubble, TP and EP costs, recompute, and the plan's own noise."""
    micro_batches = 64 / (plan.micro_batch_seqs * plan.dp)
    bubble = (plan.pp - 1) / (plan.vpp * micro_batches)
    extra = 0.05 * (plan.tp - 1) + 0.02 * (plan.ep - 1) + 0.03 * plan.etp + (0.3 if plan.recompute else 0.0)
    return (1 + bubble) * (1 + extra) * (1 + 0.2 * noise(plan))


def toy_bound_s(plan: Plan) -> float:
    """A true lower bound: the step without its noise."""
    return toy_step_s(plan) / (1 + 0.2 * noise(plan))


def toy_peak_bytes(plan: Plan) -> float:
    """Memory falls with sharding and recompute."""
    return (24 / plan.ep + 4 * plan.micro_batch_seqs) / (plan.tp * plan.pp) * (0.5 if plan.recompute else 1.0)


@dataclass(frozen=True)
class Rows:
    """What screening returns."""

    bound_s: np.ndarray[Any, Any]
    peak_bytes: np.ndarray[Any, Any]
    fits: np.ndarray[Any, Any]


def toy_screen(columns: Columns) -> Rows:
    """Bound and memory row by row."""
    plans = [columns.plan(i) for i in range(len(columns))]
    peak = np.array([toy_peak_bytes(p) for p in plans])
    return Rows(np.array([toy_bound_s(p) for p in plans]), peak, peak <= CAPACITY_BYTES)


def toy_report(plan: Plan, step_s: float | None = None, fits: bool = True) -> Report:
    """A report of the closed form."""
    step = toy_step_s(plan) if step_s is None else step_s
    work = {"gemm": 0.7 * step, "ep": 0.2 * step, "bubble": 0.1 * step}
    known = Estimate(value=step, low=step, high=step)
    return Report(
        model="toy",
        cluster="toy-cluster",
        software="toy-sw",
        devices=16,
        plan=plan,
        num_micro_batches=1,
        step_s=known,
        tokens_per_s_per_gpu=known.inverse(1.0),
        mfu=known.inverse(0.5),
        tflops_per_gpu=1.0,
        usd_per_step=None,
        breakdown=work,
        bubble_fraction=0.1,
        exposed_comm_s={"ep": 0.2 * step},
        peak_mem_bytes=toy_peak_bytes(plan),
        mem_capacity_bytes=CAPACITY_BYTES,
        usable_mem_bytes=CAPACITY_BYTES,
        memory=({"weights": toy_peak_bytes(plan)},),
        link_use={},
        out_of_memory=None if fits else OutOfMemory(lane=0, tag="weights", need_bytes=12.0, have_bytes=CAPACITY_BYTES),
        provenance=("assumed",),
    )
