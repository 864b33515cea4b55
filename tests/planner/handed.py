"""Handovers made by hand: a catalogue model on a catalogue cluster under a given plan, laid out but not simulated."""

from __future__ import annotations

from typing import Any

from hwprofiles import catalogue
from hwprofiles.specs import SoftwareProfile
from planner.export import Handover
from sim.build.stages import layout_text, stage_contents
from sim.families import load_model
from sim.mesh import DEFAULT_MAP, RankMap
from sim.plan import Plan
from sim.workload import Workload


def handover(
    plan: Plan,
    *,
    model: str = "Qwen3-30B-A3B",
    cluster: str = "dgx-h100",
    software: str | SoftwareProfile = "megatron-lm",
    ranks: RankMap = DEFAULT_MAP,
    base: str | None = None,
    **workload: Any,
) -> Handover:
    """What `handover_from` makes of a plan file, without the file."""
    spec = load_model(model)
    fields: dict[str, Any] = {"seq_tokens": 4096, "global_batch_seqs": 64, "with_mtp": spec.mtp_layers > 0} | workload
    contents = stage_contents(
        spec, plan.pp, plan.vpp, stages=plan.stages, account_ends=plan.account_ends, mtp=fields["with_mtp"]
    )
    stages = tuple(row[c].num_layers for c in range(plan.vpp) for row in contents)
    profile = software
    if isinstance(profile, str):
        profile = catalogue.software(profile, device=catalogue.cluster(cluster).device, model=model, arch="moe")
    return Handover(
        model=spec, cluster=catalogue.cluster(cluster, gpus=plan.num_devices), software=profile,
        workload=Workload(**fields), plan=plan, ranks=ranks, stages=stages,
        layout=layout_text(contents, mtp_layers=spec.mtp_layers if fields["with_mtp"] else 0), base=base,
    )  # fmt: skip
