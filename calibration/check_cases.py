"""What the closed loop is held against: the measured blocks and training steps, each as a scenario of the simulator.

The rows of the families moe_block, moe_block_ep, train_step and train_step_ep carry every dimension; here they
become a model, a workload, a plan and (the rows that each rank received) a routing. Nothing of their times is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from calibration.harness.rows import Row
from hwprofiles.specs import ClusterSpec, SoftwareProfile, Source
from sim.model import AttentionSpec, LayerSpec, ModelSpec, MoESpec
from sim.plan import Plan
from sim.routing import Routing
from sim.scenario import Scenario
from sim.workload import Workload

BLOCKS = {"moe_block": "moe_block", "moe_block_device": "moe_block", "moe_block_ep": "moe_block_ep"}
STEPS = ("train_step", "train_step_ep")  # families; their ops are the whole step and its parts
WHOLE = "step"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measured row of a block or a step.

    op: "moe_block", "moe_block_ep", "train_step" or "train_step_ep"; part: "forward", "backward", of a step also
    "optimizer", "reduce" and "step" (all of it). launch_hidden: launch gaps do not count. spread: (p90 - p10) over the
    median. peak_bytes: above what stood before (blocks), in all (steps); None where it was not measured.
    """

    op: str
    part: str
    sizes: Mapping[str, Any]
    seconds: float
    spread: float
    peak_bytes: float | None
    max_over_mean: float = 1.0
    launch_hidden: bool = False

    @property
    def is_step(self) -> bool:
        """Whether this is a training step or a part of one."""
        return self.op in STEPS

    @property
    def label(self) -> str:
        """Sizes in short: what tells two shapes apart."""
        s = self.sizes
        text = f"b{s['batch']} s{s['seq']} d{s['hidden']} h{s['heads']}/{s['kv_heads']} E{s['experts']}k{s['top_k']}"
        text += f" f{s['ffn']}"
        if self.is_step:
            text += f" L{s['layers']} mb{s['micro_batches']}"
        return text if self.ranks == 1 else f"{text} x{self.ranks}"

    @property
    def ranks(self) -> int:
        """Ranks that measured it together."""
        return int(self.sizes.get("ranks", 1))


def measured(rows: Iterable[Row]) -> tuple[Measured, ...]:
    """The block and step rows that were measured, in the order of the file."""
    out = []
    for row in rows:
        if row["status"] != "ok":
            continue
        if row["op"] in BLOCKS:
            out.append(_measured(row, BLOCKS[row["op"]], row["pass"]))
        elif row["family"] in STEPS:
            out.append(_measured(row, row["family"], row["op"].removeprefix("train_step").removeprefix("_") or WHOLE))
    return tuple(out)


def _measured(row: Row, op: str, part: str) -> Measured:
    observed = json.loads(row["observed"]) if row["observed"] else {}
    load = observed["rows_max"] / observed["rows_mean"] if "rows_max" in observed else 1.0
    seconds = float(row["median_s"])
    return Measured(
        op=op, part=part, sizes=json.loads(row["sizes"]), seconds=seconds,
        spread=(float(row["p90_s"]) - float(row["p10_s"])) / seconds,
        peak_bytes=float(row["peak_bytes"]) if row["peak_bytes"] else None, max_over_mean=max(1.0, load),
        launch_hidden=row["op"] == "moe_block_device",
    )  # fmt: skip


def scenario(point: Measured, cluster: ClusterSpec, software: SoftwareProfile) -> Scenario:
    """The scenario of a measured point on as many devices of `cluster` as it ran on.

    A block is one layer, whose ends are not looked at. A rank of several holds its own data and its share of the
    experts.
    """
    s, ranks = point.sizes, point.ranks
    model = model_of(s)
    micro_batches = int(s.get("micro_batches", 1))
    plan = Plan(dp=ranks, ep=ranks, micro_batch_seqs=int(s["batch"]), zero_stage=0)
    return Scenario(
        model=model, cluster=_part_of(cluster, ranks), software=software, plan=plan,
        workload=Workload(seq_tokens=int(s["seq"]), global_batch_seqs=int(s["batch"]) * micro_batches * ranks),
        routing=Routing(max_over_mean=point.max_over_mean, source="measured"),
    )  # fmt: skip


def model_of(sizes: Mapping[str, Any]) -> ModelSpec:
    """The model of a row: equal blocks; one layer and a token vocabulary where it is a block alone."""
    dim = int(sizes["head_dim"])
    attention = AttentionSpec(heads=int(sizes["heads"]), kv_heads=int(sizes["kv_heads"]), head_dim=dim, v_head_dim=dim)
    moe = MoESpec(num_experts=int(sizes["experts"]), top_k=int(sizes["top_k"]), ffn_dim=int(sizes["ffn"]))
    layers = (LayerSpec(attention=attention, moe=moe),) * int(sizes.get("layers", 1))
    source = Source(kind="documentation", title="sizes of a measured row", where="rows.csv", date="")
    return ModelSpec(
        name="measured", hidden_dim=int(sizes["hidden"]), vocab_size=int(sizes.get("vocab", 1)), layers=layers,
        source=source,
    )  # fmt: skip


def _part_of(cluster: ClusterSpec, ranks: int) -> ClusterSpec:
    """So many devices of a cluster: one node of it, or whole nodes."""
    nodes = max(1, ranks // cluster.devices_per_node)
    per_node = ranks // nodes
    domain = min(cluster.domain_devices, ranks)
    return replace(cluster, num_nodes=nodes, devices_per_node=per_node, domain_devices=domain)
