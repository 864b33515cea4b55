"""Plans to export: for each target, legal plans of eight models on six clusters, chosen by a fixed seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hwprofiles import catalogue
from planner.export import Handover
from planner.rules import RANK_ORDERS, apply, context, rules_of
from planner.space import space
from sim.build.stages import layout_text, stage_contents
from sim.families import load_model
from sim.mesh import RankMap
from sim.plan import Plan
from sim.workload import Offload, Optimizer, RampUp, Workload
from tests.planner.handed import handover

MODELS = (
    "Mixtral-8x7B", "Qwen3-30B-A3B", "DeepSeek-V3", "DeepSeek-V2-Lite", "GPT-OSS-20B", "OLMoE-1B-7B",
    "Qwen3-235B-A22B", "Llama3-8B",
)  # fmt: skip
CLUSTERS = (
    ("dgx-h100", 64), ("dgx-a100-80g", 32), ("dgx-b200", 16), ("h800", 128), ("gb200-nvl72", 72), ("dgx-h200", 8),
)  # fmt: skip
EACH = 5
# What the profile and the question must be for a target to have any plan at all.
QUESTIONS: dict[str, dict[str, Any]] = {
    "megatron-lm": {},
    "megatron-bridge": {},
    "deepspeed": {"zero_stage": 1},
    "torchtitan": {"zero_stage": 3},
    "accelerate": {"zero_stage": 3, "pp": 1},
}


FLAT = Plan(dp=32, ep=8, edp=4)
FOLDED = Plan(tp=2, dp=16, ep=8, edp=4)
CHUNKED = Plan(pp=2, vpp=2, dp=16, ep=8, edp=2, schedule="interleaved")
# Plan, switches of the profile and precision that the candidate table of a plain profile does not bring.
SWITCHED: tuple[tuple[Plan, dict[str, Any], str], ...] = (
    *((replace(FLAT, zero_stage=zero), {}, "bf16") for zero in (0, 2, 3)),
    (replace(FLAT, zero_stage=3, fsdp_shard=8), {}, "bf16"),
    *((FOLDED, {}, precision) for precision in ("fp8", "fp8_block", "mxfp8", "nvfp4")),
    (FOLDED, {"fp8_param_gather": True}, "fp8"),
    (FOLDED, {}, "fp16"),
    (FOLDED, {"grad_dtype": "bf16"}, "fp16"),
    (CHUNKED, {"a2a_overlap": True, "delay_wgrad": True}, "bf16"),
    (FLAT, {"activation_offload_layers": 4}, "bf16"),
    *(
        (FOLDED, switches, "bf16")
        for switches in (
            {"dispatcher": "deepep", "grad_dtype": "bf16"}, {"dispatcher": "hybridep"}, {"capacity_factor": 1.0},
            {"cuda_graph": ("attn", "moe_router")}, {"cuda_graph": ("full_iteration",)}, {"tp_overlap": True},
            {"loss_fp32_logits": False}, {"flash_attention": False},
        )
    ),
)  # fmt: skip


# How a step is trained where it changes the environment or what else the command line may say.
TRAINED: tuple[dict[str, Any], ...] = (
    {"offload": Offload(modules=("core_attn",))},
    {"ramp_up": RampUp(start=32, increment=32, samples=960, train_samples=9600)},
    {"ramp_up": RampUp(start=32, increment=32, samples=960)},
    {
        "offload": Offload(optimizer=0.5),
        "optimizer": Optimizer(main_params="fp32", main_grads="fp32", exp_avg="bf16", exp_avg_sq="bf16"),
    },
)
# Layers of other kinds that flags of a GPT hold: gated delta nets, sparse latent attention.
KINDS = ("Qwen3-Next-80B-A3B", "GLM-5")


def switched() -> list[Handover]:
    """Handovers of SWITCHED, KINDS and TRAINED, for the targets that have all these switches."""
    base = catalogue.software("megatron-lm", device="H100", model="Qwen3-30B-A3B", arch="moe")
    made = [
        handover(plan, software=replace(base, **switches), precision=precision)
        for plan, switches, precision in SWITCHED
    ]
    made += [handover(FOLDED, model=model, software=base) for model in KINDS]
    return made + [handover(FOLDED, software=base, **work) for work in TRAINED]


def handovers(target: str) -> list[Handover]:
    """Legal plans of a target; fewer than EACH where a model has fewer on a cluster."""
    rng = np.random.default_rng(20261122)
    out: list[Handover] = switched() if target in ("megatron-lm", "megatron-bridge") else []
    for model_name in MODELS:
        model = load_model(model_name)
        for cluster_name, gpus in CLUSTERS:
            cluster = catalogue.cluster(cluster_name, gpus=gpus)
            software = catalogue.software("megatron-lm", device="H100", model=model_name, arch="moe", precision="bf16")
            batch = 2 * 3 * gpus if gpus % 9 else 8 * gpus
            mtp = model.mtp_layers > 0 and target.startswith("megatron")
            work = Workload(seq_tokens=4096, global_batch_seqs=batch, with_mtp=mtp)
            orders = list(RANK_ORDERS[target])
            legal = []
            for block in space(model, cluster, work, QUESTIONS[target], software):
                for order in orders:
                    ctx = context(model, cluster, software, work, RankMap(order=order))
                    mask, _ = apply(block, ctx, rules_of(target))
                    legal += [(block, int(i), order) for i in np.flatnonzero(mask)]
            few = rng.choice(len(legal), size=min(EACH, len(legal)), replace=False) if legal else []
            for at in few:
                block, i, order = legal[int(at)]
                plan = block.plan(i)
                contents = stage_contents(model, plan.pp, plan.vpp, account_ends=plan.account_ends, mtp=mtp)
                out.append(
                    Handover(
                        model=model, cluster=cluster, software=software, workload=work, plan=plan,
                        ranks=RankMap(order=order), base="llama3:llama3_8b" if target == "torchtitan" else None,
                        stages=tuple(row[c].num_layers for c in range(plan.vpp) for row in contents),
                        layout=layout_text(contents, mtp_layers=model.mtp_layers if mtp else 0),
                    )
                )  # fmt: skip
    return out
