"""Plan -> export: what the planner proposes for a target, the exporter of that target takes, whatever was asked.

python -m tests.planner.test_target_loop COUNT     (as many questions of each target as COUNT says)
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from planner.export import EXPORTS, export_plan
from planner.export.handover import handover_of
from planner.rules import TARGETS
from planner.search import find_plans
from sim.families import load_model
from sim.workload import Lora, Offload, Optimizer, RampUp, Workload

MODELS = ("Qwen3-30B-A3B", "Mixtral-8x7B", "DeepSeek-V2-Lite", "OLMoE-1B-7B", "Llama3-8B", "GPT-OSS-20B", "DeepSeek-V3")
CLUSTERS = (("dgx-h100", 16), ("dgx-h100", 32), ("gb200-nvl72", 36), ("dgx-a100-80g", 24), ("dgx-b200", 64))
PROFILES = ("megatron-lm", "megatron-bridge-26.06", "torchtitan-2024-12", "nemo-25.07", "megatron-core-0.9")
BATCH = 2 * 2 * 9 * 64
LEVERS: tuple[dict[str, Any], ...] = (
    {}, {}, {}, {"lora": Lora(rank=16)}, {"optimizer": Optimizer(name="muon")},
    {"optimizer": Optimizer(exp_avg="bf16")}, {"offload": Offload(optimizer=0.5)}, {"offload": Offload(optimizer=1.0)},
    {"offload": Offload(modules=("core_attn",))},
    {"ramp_up": RampUp(start=BATCH // 2, increment=BATCH // 2, samples=10**6)},
)  # fmt: skip
SWITCHES: tuple[dict[str, Any], ...] = (
    {}, {}, {"dispatcher": "deepep"}, {"dispatcher": "allgather"}, {"a2a_overlap": True},
    {"shared_expert_overlap": True}, {"capacity_factor": 1.0}, {"sequence_parallel": False}, {"p2p_overlap": False},
    {"cuda_graph": ("attn",)},
    {"two_batch_overlap": True}, {"optimizer_offload": True}, {"activation_offload_layers": 2},
)  # fmt: skip
FIXED: tuple[dict[str, Any], ...] = (
    {}, {}, {"pp": 2}, {"pp": 1, "zero_stage": 3}, {"zero_stage": 1}, {"zero_stage": 2}, {"tp": 2, "ep": 8}, {"etp": 2},
    {"schedule": "zb-h1"}, {"schedule": "interleaved"}, {"cp": 2}, {"account_ends": True}, {"recompute": ("full",)},
)  # fmt: skip
BASES = {"torchtitan": "qwen3:qwen3_30b_a3b", "kubernetes": "registry.example/trainer:1"}


def asked_of(target: str, seed: int) -> tuple[int, str]:
    """(plans exported, what was asked): 0 plans where nothing legal fits. Raises AssertionError for a plan refused."""
    rng = np.random.default_rng([seed, sorted(TARGETS).index(target)])

    def pick(values: tuple[Any, ...]) -> Any:
        return values[int(rng.integers(len(values)))]

    name, (cluster, gpus) = pick(MODELS), pick(CLUSTERS)
    model, machines = load_model(name), catalogue.cluster(cluster, gpus=gpus)
    arch = "moe" if model.is_moe else "dense"
    levers, switches, fixed = pick(LEVERS), pick(SWITCHES), pick(FIXED)
    precision = pick(("bf16", "bf16", "fp8", "fp16"))
    profile = replace(
        catalogue.software(pick(PROFILES), device=machines.device, model=name, arch=arch, precision=precision),
        **switches,
    )
    if target in ("torchtitan", "accelerate", "deepspeed") and rng.random() < 0.7:  # else nearly none has a plan
        levers, profile = {}, replace(profile, a2a_overlap=False, shared_expert_overlap=False, two_batch_overlap=False)
    said = f"{target}: {name} on {gpus} of {cluster}, {profile.name} {switches}, {precision} {levers}, {fixed}"
    try:
        work = Workload(
            seq_tokens=4096, global_batch_seqs=BATCH, precision=precision, **levers,
            with_mtp=model.mtp_layers > 0 and bool(rng.random() < 0.5),
        )  # fmt: skip
        result = find_plans(
            model, machines, profile, work, fixed=fixed, target=target, top=3, max_simulated=6,
            stages=pick(("uniform", "uniform", "auto")),
        )  # fmt: skip
    except UserError:  # nothing legal fits, or the question contradicts itself
        return 0, said
    count = 0
    for rank in range(1, len(result.plans) + 1):
        for file in (target, "slurm", "kubernetes") if target in EXPORTS else ("slurm", "kubernetes"):
            asked = handover_of(result, rank, base=BASES.get(file))
            try:
                made = export_plan(asked, file)
            except UserError as error:
                raise AssertionError(f"{said}: {file} refuses {asked.plan}: {error}") from None
            assert all(made.degrees[k] == getattr(asked.plan, k) for k in made.degrees)
            count += 1
    return count, said


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_is_proposed_is_exported(target: str) -> None:
    assert sum(asked_of(target, seed)[0] for seed in range(4)) > 0


if __name__ == "__main__":
    for which in sorted(TARGETS):
        rows = [asked_of(which, seed) for seed in range(int(sys.argv[1]))]
        good = [n for n, _ in rows if n]
        print(f"{which}: {len(rows)} questions, {len(good)} with plans, {sum(good)} files", flush=True)
