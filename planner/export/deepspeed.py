"""DeepSpeed: its JSON, with AutoTP and AutoEP, and a launch script.

Only sections listed in `SECTIONS` are written: the reader takes an unknown one silently.
"""

from __future__ import annotations

from typing import Any

from hwprofiles.errors import UserError
from planner.export.base import (
    SHELL_HEAD,
    SHELL_STRICT,
    Export,
    Handover,
    comment,
    export_of,
    heading,
    host_notes,
    json_text,
    refuse_broken,
    torchrun,
    training_notes,
)
from planner.rules.base import context
from planner.rules.deepspeed import BACKENDS, VERSION, preset_of

TARGET = "deepspeed"
VERSIONS = (VERSION,)
SECTIONS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "bf16", "fp16",
    "data_types", "zero_optimization", "tensor_parallel", "expert_parallel", "pipeline", "activation_checkpointing",
)  # fmt: skip


def config_of(asked: Handover) -> dict[str, Any]:
    """The JSON tree."""
    p, software, work = asked.plan, asked.software, asked.workload
    zero: dict[str, Any] = {"stage": p.zero_stage, "overlap_comm": software.dp_overlap_grad}
    if (software.optimizer_offload or work.offload.optimizer) and p.zero_stage:
        zero["offload_optimizer"] = {"device": "cpu"}
    half = work.precision == "fp16"
    tree: dict[str, Any] = {
        "train_batch_size": work.global_batch_seqs,
        "train_micro_batch_size_per_gpu": p.micro_batch_seqs,
        "gradient_accumulation_steps": asked.num_micro_batches,
        "fp16" if half else "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp16" if half and software.grad_dtype == "bf16" else software.grad_dtype},
        "zero_optimization": zero,
    }
    if p.tp > 1:
        tree["tensor_parallel"] = {"autotp_size": p.tp}
    if p.ep > 1:
        backend = BACKENDS[software.dispatcher]
        experts = {
            "enabled": True,
            "autoep_size": p.ep,
            "expert_tensor_parallel_size": p.etp,
            "preset_model": preset_of(context(asked.model, asked.cluster, software, work)),
            "comm_backend": backend,
        }
        if backend == "deepep":
            experts["comm_max_tokens_per_rank"] = p.micro_batch_seqs * work.seq_tokens
        tree["expert_parallel"] = experts
    if p.pp > 1:
        tree["pipeline"] = {"stages": p.pp, "activation_checkpoint_interval": int(p.recompute == ("full",))}
    if p.recompute == ("full",):
        tree["activation_checkpointing"] = {"partition_activations": False, "cpu_checkpointing": False}
    unknown = sorted(set(tree) - set(SECTIONS))
    if unknown:
        raise UserError(f"sections {', '.join(unknown)} are not among those the reader knows", where=TARGET)
    return tree


def _missing(asked: Handover) -> list[str]:
    out = ["model, data and optimizer: the training script's"]
    if asked.plan.pp > 1:
        sizes = ", ".join(map(str, asked.stages))
        out.append(f"pipeline stages of {sizes} layers: the script builds PipelineModule(num_stages={asked.plan.pp})")
    if asked.plan.recompute == ("full",):
        out.append("recompute of every block: the script wraps its blocks (the JSON only says how to keep them)")
    away = asked.software.optimizer_offload or asked.workload.offload.optimizer
    if away and not asked.plan.zero_stage:
        out.append("optimizer offload: it needs ZeRO 1 or more there")
    return out + training_notes(asked) + host_notes(asked)


def export(asked: Handover, version: str) -> Export:
    """`ds_config.json` and `launch.sh`. Raises UserError naming a broken rule."""
    refuse_broken(asked, TARGET)
    missing = tuple(_missing(asked))
    launch = (
        SHELL_HEAD
        + comment([*heading(asked, TARGET, version, missing), "", "Usage: ./launch.sh train.py ARGUMENTS..."])
        + SHELL_STRICT
        + torchrun(asked, '"$@" --deepspeed --deepspeed_config "$HERE/ds_config.json"')
    )
    files = {
        "ds_config.json": json_text(config_of(asked)),
        "launch.sh": launch,
    }
    return export_of(asked, TARGET, version, files, missing)
